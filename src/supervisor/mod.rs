//! The only task that changes what is served.
//!
//! ```text
//!   Report (nvml) ────────► health ──┐
//!   Reload (config) ───► resolve ────┴─► wanted: ResourceSet ──┐
//!   SIGUSR1, SIGUSR2 ──────────────────────────────────────────┤
//!   Stale, held devices, time ─────────────────────────────────┴─► Ledger::step ─► diff
//!                                                                  ─► start │ update │ stop an Endpoint
//!
//!   a resource:  (absent) ──Start──► served ──last device leaves──► empty list ──LINGER──► Stop ──► (absent)
//!                                      ▲                                │
//!                                      └──────── devices come back ─────┘
//!   a device:    listed ──gone, dropped──► Unhealthy ──SEEN, no recent Allocate, no pod holds it──► left out
//!                new ──beside one that is on its way out──► Unhealthy ──that one has left──► Healthy
//!                listed ──a reason──► Unhealthy ──no reason is left──► Healthy
//! ```
//!
//! `outlook` works out what should be offered, `serving` moves what is served towards it.
//! No driver is a state, not an end: what was served stays listed as unhealthy until the driver is back.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

mod endpoints;
mod held;
#[cfg(test)]
mod lives;
mod outlook;
#[cfg(test)]
mod properties;
mod serving;
mod snapshot;
mod told;

use self::endpoints::{Endpoints, Kubelet};
pub use self::outlook::Knowledge;
use self::outlook::Outlook;
use self::serving::Serving;
pub use self::snapshot::{Served, Snapshot};
use crate::cdi::Cdi;
use crate::health::HealthPolicy;
use crate::kubelet::{Context, EndpointEvent, Look, look};
use crate::metrics::Metrics;
use crate::nvml::{DriverError, Report, Session, Status};
use crate::resource::allocate::Rules;
use crate::resource::ledger::Ledger;
use crate::resource::policy::OfferPolicy;

/// So many reports are taken at once before anything is done about them: a storm of events is one change.
const BURST: usize = 256;

/// What the supervisor is told by the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// What is offered, and under which names.
    pub offer: OfferPolicy,
    /// Which errors make a device sick, and what makes it well.
    pub health: HealthPolicy,
    /// A device that was handed out less than this ago is not left out of the list.
    pub removal_grace: Duration,
    /// Where to ask which devices pods hold.
    pub pod_resources_socket: PathBuf,
    /// Whether a driver that cannot be used at start ends the program.
    pub fail_on_init_error: bool,
}

/// Why the program cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// There is no driver at start, and the configuration says to fail then.
    #[error("{0}; with --fail-on-init-error=false this program would wait for the driver")]
    NoDriver(#[source] DriverError),
    /// The thread that asks the driver has ended.
    #[error("the driver's thread has ended unexpectedly")]
    SessionEnded,
}

/// What can be changed while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reload {
    /// What is offered.
    pub policy: Policy,
    /// How answers are made.
    pub rules: Rules,
}

/// What people tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Another configuration.
    Reload(Box<Reload>),
    /// Withdraw all devices and leave the driver alone (SIGUSR1).
    Hold,
    /// Use it again (SIGUSR2).
    Resume,
    /// End, so that other parts can begin with what these have served.
    StartOver,
}

/// Where events come from.
#[derive(Debug)]
pub struct Inputs {
    /// From the driver's thread.
    pub reports: mpsc::Receiver<Report>,
    /// From the endpoints, by way of [`Context::events`].
    pub endpoints: mpsc::Receiver<EndpointEvent>,
    /// From people.
    pub commands: mpsc::Receiver<Command>,
    /// From whoever wants to know whether the supervisor goes on.
    pub pulse: mpsc::Receiver<Pulse>,
}

/// Where the latest [`Snapshot`] is put.
pub type Shown = watch::Sender<Option<Arc<Snapshot>>>;

/// A question whether the supervisor goes on.
pub type Pulse = oneshot::Sender<()>;

/// What the supervisor asks of the driver.
pub trait Driver {
    /// To be looked at.
    fn rescan(&self);
    /// To be closed, and not asked until [`Driver::resume`].
    fn hold(&self);
    /// To be used again.
    fn resume(&self);
    /// How it is getting on.
    fn status(&self) -> Arc<Status>;
}

impl Driver for Session {
    fn rescan(&self) {
        self.rescan();
    }

    fn hold(&self) {
        self.hold();
    }

    fn resume(&self) {
        self.resume();
    }

    fn status(&self) -> Arc<Status> {
        self.status()
    }
}

/// Whom the supervisor tells something, besides the kubelet.
#[expect(missing_debug_implementations, reason = "a driver has nothing to show here")]
pub struct Outside<'a> {
    /// To look at the driver, or to leave it alone.
    pub driver: &'a dyn Driver,
    /// What is known and served.
    pub show: &'a Shown,
    /// The other end of [`Inputs::pulse`], for whoever reads the snapshot.
    pub pulse: mpsc::Sender<Pulse>,
}

/// What outlives a configuration that fixes other things: what is known, and what the kubelet was told.
#[derive(Debug, Default)]
pub struct Carried {
    knowledge: Knowledge,
    ledger: Ledger,
}

/// How serving ended, where nothing failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// As told.
    Stopped,
    /// The driver's library that is loaded is not the one on disk, and cannot be unloaded: only a new process image
    /// can load the other one.
    StaleLibrary(PathBuf),
    /// As told, and what was served is served again at once ([`Command::StartOver`]).
    ToStartOver,
}

/// Everything that happens to the supervisor.
enum Event {
    Report(Report),
    Command(Command),
    Stale(EndpointEvent),
    /// What pods hold.
    Look(Look),
    Pulse(Pulse),
    Tick,
}

/// Serves until `stopping` is cancelled, beginning with what `carried` holds, which it keeps up to date.
pub async fn run(
    reload: Reload,
    context: Context,
    cdi: Cdi,
    mut inputs: Inputs,
    outside: Outside<'_>,
    carried: &mut Carried,
    stopping: CancellationToken,
) -> Result<Ended, SupervisorError> {
    let Carried { knowledge, ledger } = std::mem::take(carried);
    let by_cdi = is_by_cdi(&reload.rules);
    let grace = reload.policy.removal_grace;
    let driver_root = context.paths.driver_root.clone();
    let metrics = context.metrics.clone();
    let kubelet_socket = context.kubelet_socket.clone();
    let mut folder = context.folder.clone();
    let mut supervisor = Supervisor {
        outlook: Outlook::new(reload.policy, cdi, by_cdi, knowledge),
        serving: Serving::new(Endpoints::new(Context { rules: reload.rules, ..context }), grace, ledger),
        outside,
        driver_root,
        metrics,
        stale: None,
    };
    let (look_sender, mut looks) = mpsc::channel(1);
    let ended = loop {
        if supervisor.serving.has_a_question() {
            let sender = look_sender.clone();
            let socket = supervisor.outlook.policy().pod_resources_socket.clone();
            let kubelet_socket = kubelet_socket.clone();
            // Bounded by its own time-outs; the channel has room for the one question under way.
            tokio::spawn(async move {
                let look = look(&socket, &kubelet_socket).await;
                if sender.send(look).await.is_err() {
                    debug!("the supervisor has ended");
                }
            });
        }
        let pause = supervisor.pause();
        let event = tokio::select! {
            () = stopping.cancelled() => break Ok(Ended::Stopped),
            report = inputs.reports.recv() => match report {
                Some(report) => Event::Report(report),
                None => break Err(SupervisorError::SessionEnded),
            },
            Some(event) = inputs.endpoints.recv() => Event::Stale(event),
            Some(command) = inputs.commands.recv() => Event::Command(command),
            Some(look) = looks.recv() => Event::Look(look),
            Ok(()) = folder.changed(), if supervisor.serving.waits_for_kubelet() => Event::Tick,
            Some(asker) = inputs.pulse.recv() => Event::Pulse(asker),
            () = sleep(pause.unwrap_or_default()), if pause.is_some() => Event::Tick,
        };
        let mut next = Some(event);
        let mut ended = None;
        let mut room = BURST;
        while let (Some(event), None) = (next.take(), &ended) {
            ended = supervisor.take(event);
            room -= 1;
            next = if room > 0 { inputs.reports.try_recv().ok().map(Event::Report) } else { None };
        }
        if let Some(ended) = ended {
            break ended;
        }
        supervisor.apply();
    };
    carried.knowledge = supervisor.outlook.into_knowledge();
    let for_good = !matches!(ended, Ok(Ended::ToStartOver | Ended::StaleLibrary(_)));
    let (endpoints, ledger) = supervisor.serving.into_parts();
    carried.ledger = ledger;
    endpoints.end(for_good).await;
    ended
}

fn is_by_cdi(rules: &Rules) -> bool {
    rules.strategies.iter().any(|strategy| strategy.is_cdi())
}

struct Supervisor<'a, K> {
    outlook: Outlook,
    serving: Serving<K>,
    outside: Outside<'a>,
    driver_root: PathBuf,
    metrics: Metrics,
    /// The library that was found to be stale while the driver was left alone.
    stale: Option<PathBuf>,
}

impl<K: Kubelet> Supervisor<'_, K> {
    /// Takes one event; answers how serving ends, if it does.
    fn take(&mut self, event: Event) -> Option<Result<Ended, SupervisorError>> {
        let look = match event {
            Event::Report(Report::Inventory { inventory, began }) => {
                self.outlook.take_inventory(inventory, began.into());
                false
            }
            Event::Report(Report::Event(event)) => {
                let counted = self.outlook.policy().health.checks.counts(event.kind);
                self.metrics.count_event(&event, counted);
                self.outlook.take_event(&event)
            }
            Event::Report(Report::NoDriver(error)) => {
                if !self.outlook.is_known() && self.outlook.policy().fail_on_init_error {
                    return Some(Err(SupervisorError::NoDriver(error)));
                }
                // A call that hangs is no evidence against any device.
                if error.is_no_answer() && self.outlook.has_driver() {
                    self.outlook.take_no_answer(error.to_string());
                } else {
                    self.outlook.take_no_driver(error.to_string(), error.is_unloaded());
                }
                false
            }
            Event::Report(Report::StaleLibrary(library)) => {
                if !self.outlook.is_on_hold() {
                    return Some(Ok(Ended::StaleLibrary(library)));
                }
                // A new image would open the driver.
                self.stale = Some(library);
                false
            }
            Event::Report(Report::OnHold { closed: true }) => {
                info!("on hold: NVML is shut down, and no device is offered; SIGUSR2 goes on");
                false
            }
            Event::Report(Report::OnHold { closed: false }) => {
                warn!(
                    "on hold, but a call that hangs keeps NVML open; no device is offered, and a line follows when it \
                     is shut down; SIGUSR2 goes on"
                );
                false
            }
            Event::Stale(EndpointEvent::Stale { resource, device }) => {
                info!(%resource, %device, "a listed device may not be what it was; looking at the driver again");
                true
            }
            Event::Look(look) => {
                self.serving.take_look(look);
                self.outlook.take_held(self.serving.held());
                false
            }
            Event::Command(Command::Reload(reload)) => {
                let grace = reload.policy.removal_grace;
                self.outlook.set_policy(reload.policy, is_by_cdi(&reload.rules));
                self.serving.kubelet.set_rules(reload.rules);
                self.serving.set_removal_grace(grace);
                false
            }
            Event::Command(Command::Hold) => {
                self.outlook.hold();
                // The lists first: nobody shall be sent to a driver that is about to be taken away.
                self.apply();
                self.outside.driver.hold();
                false
            }
            Event::Command(Command::StartOver) => return Some(Ok(Ended::ToStartOver)),
            Event::Command(Command::Resume) => {
                if let Some(library) = self.stale.take() {
                    return Some(Ok(Ended::StaleLibrary(library)));
                }
                self.outlook.end_hold();
                self.outside.driver.resume();
                false
            }
            Event::Pulse(asker) => {
                if asker.send(()).is_err() {
                    debug!("whoever asked for a sign of life has gone");
                }
                false
            }
            Event::Tick => self.outlook.tick(),
        };
        if look {
            self.outside.driver.rescan();
        }
        None
    }

    /// How long nothing needs to be looked at; `None`: for ever.
    fn pause(&self) -> Option<Duration> {
        self.outlook.pause().into_iter().chain(self.serving.pause()).min()
    }

    fn apply(&mut self) {
        if !self.outlook.is_heard() {
            return;
        }
        let (wanted, offer) = (self.outlook.wanted(), &self.outlook.policy().offer);
        let inventory = self.outlook.inventory();
        let served = self.serving.apply(wanted, inventory.as_deref(), offer);
        let shown = self.outside.show.borrow().as_ref().map(|shown| shown.held_unknown.clone());
        let held_unknown = self.serving.trouble().map(str::to_owned);
        if self.outlook.take_changed() || served || shown.is_some_and(|shown| shown != held_unknown) {
            self.outside.show.send_replace(Some(Arc::new(self.snapshot())));
        }
    }

    fn snapshot(&self) -> Snapshot {
        let outlook = &self.outlook;
        Snapshot {
            inventory: outlook.inventory(),
            no_driver: outlook.no_driver().map(str::to_owned),
            no_answer: outlook.no_answer().map(str::to_owned),
            on_hold: outlook.is_on_hold(),
            strategy: outlook.policy().offer.strategy,
            resources: self.serving.served(),
            offered: outlook.wanted().resources.keys().cloned().collect(),
            withheld: outlook.wanted().withheld.clone(),
            warnings: outlook.wanted().warnings.clone(),
            recovery: outlook.recovery_rules(),
            driver_root: self.driver_root.clone(),
            held_unknown: self.serving.trouble().map(str::to_owned),
            pod_resources_socket: outlook.policy().pod_resources_socket.clone(),
            driver: self.outside.driver.status(),
            pulse: self.outside.pulse.clone(),
        }
    }
}
