//! One resource, kept served and registered.
//!
//! ```text
//!            ┌──────────────────────────── wait for kubelet.sock ◄───────────────────────────┐
//!            ▼                                                                               │
//!   bind a new socket ─► serve ─► Register ──ok──► a stream within 5 s? ──yes──► registered  │
//!                                    │                    │ no                       │      │
//!                              error │ back-off           ▼                          ▼      │
//!                                    └──────────────────► close ◄── why it ended (Ended) ────┘
//! ```
//!
//! The registration ends when the kubelet made a new socket (it restarted), our socket's file is gone, no stream
//! is left, or another instance of this program left the node (the kubelet then stops whichever endpoint
//! is current). Closing waits until the kubelet has dropped its connection: registering before that lets the end of
//! the old stream take the new one down (reference: kubernetes PR 135437).

use std::collections::BTreeSet;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Context;
use super::folder::FolderState;
use super::offer::Offer;
use super::registration::register;
use super::server::Server;
use crate::resource::allocate::Rules;
use crate::resource::{Device, DeviceId, ResourceName};

/// The first and the longest wait between two attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The kubelet opens its stream right after a registration.
const STREAM_LIMIT: Duration = Duration::from_secs(5);

/// How long the kubelet has to drop the connection of an old registration, and what its own clean-up takes
/// after that.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
const CLEAN_UP: Duration = Duration::from_millis(100);

/// A registration that lasted this long was a good one: the next attempt need not wait.
const STABLE: Duration = Duration::from_secs(10);

/// When we end for good, nobody waits for the kubelet to close its side.
const AT_EXIT: Duration = Duration::from_millis(100);

/// What it means when somebody connects and does not make a call.
const OLD_KUBELET: &str = "; it connected to us without making a call, as kubelets before Kubernetes 1.26 do, whose \
    authority no HTTP/2 server but Go's accepts: 1.26 is the oldest version that works";

/// What can be seen of an endpoint from outside.
#[derive(Debug)]
pub struct EndpointStatus(Mutex<Registration>);

/// Whether a resource is registered with the kubelet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registration {
    /// It is.
    Registered,
    /// It is not; why, for people.
    Missing(String),
}

impl EndpointStatus {
    fn new() -> Self {
        Self(Mutex::new(Registration::Missing("the kubelet's socket is not there".to_owned())))
    }

    /// How things are now.
    pub fn registration(&self) -> Registration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, registration: Registration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = registration;
    }
}

/// A resource that is being served. Its task ends with [`Endpoint::stop`].
#[derive(Debug)]
pub struct Endpoint {
    offer: Arc<Offer>,
    status: Arc<EndpointStatus>,
    stopping: CancellationToken,
    /// Whether the kubelet is not waited for at the end.
    in_haste: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Endpoint {
    /// Serves `devices` as `resource`, and registers with the kubelet whenever there is one; but only once `before`,
    /// an endpoint of the same resource on its way out, has ended.
    pub fn start(
        context: Context,
        resource: ResourceName,
        devices: Vec<Device>,
        before: Option<JoinHandle<()>>,
    ) -> Self {
        context.metrics.begin(&resource);
        let offer = Arc::new(Offer::new(resource, &context, devices));
        let stopping = CancellationToken::new();
        let status = Arc::new(EndpointStatus::new());
        let in_haste = Arc::new(AtomicBool::new(false));
        let keeper = Keeper {
            folder: context.folder.clone(),
            context,
            offer: Arc::clone(&offer),
            status: Arc::clone(&status),
            in_haste: Arc::clone(&in_haste),
        };
        let stop = stopping.clone();
        let task = tokio::spawn(async move {
            if let Some(before) = before
                && let Err(error) = before.await
            {
                warn!(%error, "the endpoint before this one did not end well");
            }
            keeper.run(stop).await;
        });
        Self { offer, status, stopping, in_haste, task }
    }

    /// Replaces the list; streams send it if it differs in what the kubelet is told.
    pub fn update(&self, devices: Vec<Device>) {
        self.offer.publish(devices);
    }

    /// Has streams send the list once more.
    pub fn send_again(&self) {
        self.offer.publish_again();
    }

    /// Changes how answers are made from now on; what containers have got stays as it is.
    pub fn set_rules(&self, rules: Rules) {
        self.offer.set_rules(rules);
    }

    /// What can be seen of it from outside.
    pub fn status(&self) -> Arc<EndpointStatus> {
        Arc::clone(&self.status)
    }

    /// Whether somebody follows the list at the moment.
    pub fn is_watched(&self) -> bool {
        self.offer.is_watched()
    }

    /// Time since a device of this resource was last handed out; `None` if it never was.
    pub fn since_allocated(&self, id: &DeviceId) -> Option<Duration> {
        self.offer.since_allocated(id)
    }

    /// Ends the stream and the server, and removes the socket. What is served no more may be served again at once, and
    /// then the kubelet has to be done with this registration; at the program's end (`for_good`) nobody waits for it.
    pub async fn stop(self, for_good: bool) {
        self.in_haste.store(for_good, Ordering::Relaxed);
        self.stopping.cancel();
        if let Err(error) = self.task.await {
            warn!(resource = %self.offer.resource(), %error, "the endpoint's task failed");
        }
    }
}

/// Why a registration is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Stopping,
    KubeletRestarted,
    KubeletGone,
    SocketGone,
    NoStream,
    OtherInstanceLeft,
}

impl Ended {
    /// One word for metrics.
    fn word(self) -> &'static str {
        match self {
            Self::Stopping => "stopping",
            Self::KubeletRestarted => "kubelet_restarted",
            Self::KubeletGone => "kubelet_gone",
            Self::SocketGone => "socket_gone",
            Self::NoStream => "no_stream",
            Self::OtherInstanceLeft => "other_instance_left",
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopping => "stopping",
            Self::KubeletRestarted => "the kubelet restarted",
            Self::KubeletGone => "the kubelet's socket has gone",
            Self::SocketGone => "our socket was removed",
            Self::NoStream => "the kubelet has no stream open",
            Self::OtherInstanceLeft => "another instance of this plugin left the node",
        })
    }
}

struct Keeper {
    context: Context,
    folder: watch::Receiver<FolderState>,
    offer: Arc<Offer>,
    status: Arc<EndpointStatus>,
    in_haste: Arc<AtomicBool>,
}

impl Keeper {
    async fn run(mut self, stopping: CancellationToken) {
        let mut backoff = Backoff::new();
        let mut last_error = String::new();
        let mut why = "start";
        let mut registered_with = None;
        loop {
            let ready = self.folder.wait_for(|state| state.kubelet.is_some());
            let ready = tokio::select! {
                () = stopping.cancelled() => return,
                ready = ready => ready.is_ok(),
            };
            if !ready {
                return;
            }
            let before = self.folder.borrow_and_update().clone();
            let name = self.context.socket_names.next(self.offer.resource());
            let registered = tokio::select! {
                () = stopping.cancelled() => return,
                registered = self.serve_and_register(&name) => registered,
            };
            match registered {
                Ok(server) => {
                    last_error.clear();
                    // Its end shows in several ways, whichever is noticed first.
                    if registered_with.is_some_and(|kubelet| Some(kubelet) != before.kubelet) {
                        why = Ended::KubeletRestarted.word();
                    }
                    registered_with = before.kubelet;
                    self.context.metrics.count_registration(self.offer.resource(), why);
                    let since = Instant::now();
                    self.status.set(Registration::Registered);
                    let ended = self.wait(&server, &before, &name, &stopping).await;
                    if ended == Ended::Stopping {
                        if self.in_haste.load(Ordering::Relaxed) {
                            server.close(AT_EXIT).await;
                        } else {
                            server.close(CLOSE_LIMIT).await;
                            sleep(CLEAN_UP).await;
                        }
                        return;
                    }
                    why = ended.word();
                    let hint = if server.refused_a_client() { OLD_KUBELET } else { "" };
                    self.status.set(Registration::Missing(format!("{ended}{hint}")));
                    info!(resource = %self.offer.resource(), "registering again: {ended}{hint}");
                    tokio::select! {
                        () = stopping.cancelled() => return,
                        () = async { server.close(CLOSE_LIMIT).await; sleep(CLEAN_UP).await } => {}
                    }
                    let may_repeat = matches!(ended, Ended::NoStream | Ended::OtherInstanceLeft);
                    if since.elapsed() >= STABLE || !may_repeat {
                        backoff = Backoff::new();
                        continue;
                    }
                }
                Err(error) => {
                    self.context.metrics.count_registration_error(self.offer.resource());
                    self.status.set(Registration::Missing(error.clone()));
                    // The same words again and again help nobody.
                    if error != last_error {
                        warn!(resource = %self.offer.resource(), error, "not registered; trying on");
                        last_error = error;
                    }
                }
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                () = sleep(backoff.next()) => {}
                // At once when the kubelet comes back.
                () = new_kubelet(&mut self.folder, &before) => backoff = Backoff::new(),
            }
        }
    }

    async fn serve_and_register(&self, name: &str) -> Result<Server, String> {
        let path = self.context.plugin_folder().join(name);
        let server = Server::start(path, Arc::clone(&self.offer), &self.context)
            .map_err(|error| with_sources(&error))?;
        let resource = self.offer.resource();
        match register(&self.context.kubelet_socket, resource, name).await {
            Ok(()) => {
                info!(%resource, socket = name, "registered with the kubelet");
                Ok(server)
            }
            Err(error) => {
                let hint = if server.refused_a_client() { OLD_KUBELET } else { "" };
                server.close(CLOSE_LIMIT).await;
                Err(format!("{error}{hint}"))
            }
        }
    }

    /// Waits until the registration on the socket `name` is over. `before` is what the folder held before it.
    async fn wait(
        &mut self,
        server: &Server,
        before: &FolderState,
        name: &str,
        stopping: &CancellationToken,
    ) -> Ended {
        let mut streams = server.streams();
        let opened = timeout(STREAM_LIMIT, streams.wait_for(|open| *open > 0));
        tokio::select! {
            () = stopping.cancelled() => return Ended::Stopping,
            opened = opened => if !matches!(opened, Ok(Ok(_))) { return Ended::NoStream },
            // Looked at below.
            _ = self.folder.wait_for(|state| state.kubelet != before.kubelet) => {}
        }
        let mut others = self.others();
        loop {
            let state = self.folder.borrow_and_update().clone();
            match state.kubelet {
                Some(kubelet) if Some(kubelet) != before.kubelet => return Ended::KubeletRestarted,
                // A stopped kubelet keeps its socket's file or takes it along; the stream tells what counts.
                None if *streams.borrow() == 0 => return Ended::KubeletGone,
                _ => {}
            }
            if !state.sockets.contains(name) && !server.is_reachable() {
                return Ended::SocketGone;
            }
            let others_now = self.others();
            if !others.is_subset(&others_now) {
                return Ended::OtherInstanceLeft;
            }
            others = others_now;
            tokio::select! {
                () = stopping.cancelled() => return Ended::Stopping,
                changed = self.folder.changed() => if changed.is_err() { return Ended::Stopping },
                _ = streams.wait_for(|open| *open == 0) => return Ended::NoStream,
            }
        }
    }

    fn others(&self) -> BTreeSet<String> {
        let resource = self.offer.resource();
        let names = &self.context.socket_names;
        let state = self.folder.borrow();
        state.sockets.iter().filter(|name| names.is_of_other_instance(name, resource)).cloned().collect()
    }
}

async fn new_kubelet(folder: &mut watch::Receiver<FolderState>, before: &FolderState) {
    let is_new = |state: &FolderState| state.kubelet.is_some() && state.kubelet != before.kubelet;
    // Whoever watches the folder outlives us; if not, nothing will come.
    if folder.wait_for(is_new).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Doubles from the first wait to the longest, and adds up to a quarter at random, so that a node's resources
/// do not all try in the same moment.
#[derive(Debug)]
struct Backoff {
    next: Duration,
}

impl Backoff {
    fn new() -> Self {
        Self { next: BACKOFF.0 }
    }

    fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(BACKOFF.1);
        let random = RandomState::new().build_hasher().finish() % 256;
        wait + wait / 1024 * u32::try_from(random).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_cap_and_stay_near_it() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..12).map(|_| backoff.next()).collect();
        assert!(waits[0] >= BACKOFF.0 && waits[0] <= BACKOFF.0 * 5 / 4);
        assert!(waits.iter().all(|wait| *wait <= BACKOFF.1 * 5 / 4));
        assert!(waits[11] >= BACKOFF.1);
    }
}
