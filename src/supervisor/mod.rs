//! The only task that changes what is served.
//!
//! ```text
//!   Report (nvml), Reload (config) ──► CDI specification ──► wanted: ResourceSet ──┐
//!   Stale, held devices, time ─────────────────────────────────────────────────────┴──► Ledger::step ─► diff
//!                                                       ─► start │ update │ stop an Endpoint
//!
//!   a resource:  (absent) ──Start──► served ──last device leaves──► empty list ──LINGER──► Stop ──► (absent)
//!                                      ▲                                │
//!                                      └──────── devices come back ─────┘
//!   a device:    listed ──gone──► Unhealthy ──SEEN, no recent Allocate, no pod holds it──► left out
//! ```
//!
//! No driver is a state, not an end: what was served stays listed as unhealthy until the driver is back.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

mod held;

use self::held::Held;
use crate::cdi::Cdi;
use crate::inventory::Inventory;
use crate::kubelet::{Context, Endpoint, EndpointEvent, PodResourcesError, held_devices};
use crate::nvml::{DriverError, Report};
use crate::resource::allocate::Rules;
use crate::resource::ledger::{Change, Ledger};
use crate::resource::policy::OfferPolicy;
use crate::resource::{Device, DeviceId, Reason, ResourceName, ResourceSet, resolve};

/// How long a list that says `Unhealthy` stands before the device may be left out, so that the kubelet sees both.
const SEEN: Duration = Duration::from_millis(500);

/// How long an empty resource stays, since a repartition brings most of them back.
const LINGER: Duration = Duration::from_secs(5);

/// How often something that waits to leave is looked at.
const TICK: Duration = Duration::from_millis(250);

/// How often the CDI specification is looked after, and how soon one that is not complete or could not be written:
/// what it consists of is in places that the driver's thread does not look at.
const CDI_LOOK: Duration = Duration::from_secs(10);
const CDI_AGAIN: Duration = Duration::from_secs(5);

/// All endpoints end within this time at exit, or are left to the end of the process.
const EXIT_LIMIT: Duration = Duration::from_millis(800);

/// What the supervisor is told by the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// What is offered, and under which names.
    pub offer: OfferPolicy,
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

/// Everything that happens to the supervisor.
enum Event {
    Report(Report),
    Reload(Box<Reload>),
    Stale(EndpointEvent),
    Held(Result<HashSet<DeviceId>, PodResourcesError>),
    Tick,
}

/// Where events come from.
#[derive(Debug)]
pub struct Inputs {
    /// From the driver's thread.
    pub reports: mpsc::Receiver<Report>,
    /// From the endpoints, by way of [`Context::events`].
    pub endpoints: mpsc::Receiver<EndpointEvent>,
    /// From the configuration.
    pub reloads: mpsc::Receiver<Reload>,
}

/// Serves until `stopping` is cancelled. `rescan` asks the driver's thread to look again.
pub async fn run(
    policy: Policy,
    context: Context,
    cdi: Cdi,
    mut inputs: Inputs,
    rescan: impl Fn(),
    stopping: CancellationToken,
) -> Result<(), SupervisorError> {
    let mut supervisor = Supervisor::new(policy, context, cdi);
    let (held_sender, mut held) = mpsc::channel(1);
    let ended = loop {
        let pause = supervisor.pause();
        let event = tokio::select! {
            () = stopping.cancelled() => break Ok(()),
            report = inputs.reports.recv() => match report {
                Some(report) => Event::Report(report),
                None => break Err(SupervisorError::SessionEnded),
            },
            Some(event) = inputs.endpoints.recv() => Event::Stale(event),
            Some(reload) = inputs.reloads.recv() => Event::Reload(Box::new(reload)),
            Some(answer) = held.recv() => Event::Held(answer),
            () = sleep(pause.unwrap_or_default()), if pause.is_some() => Event::Tick,
        };
        match event {
            Event::Report(report) => {
                if let Err(error) = supervisor.take_report(report) {
                    break Err(error);
                }
            }
            Event::Stale(EndpointEvent::Stale { resource, device }) => {
                info!(%resource, %device, "a listed device is not what it was; looking at the driver again");
                rescan();
            }
            Event::Held(answer) => {
                let watched = supervisor.is_watched();
                supervisor.held.take(answer, watched);
            }
            Event::Reload(reload) => supervisor.take_reload(*reload),
            Event::Tick => supervisor.try_again(),
        }
        supervisor.apply();
        if let Some(socket) = supervisor.wants_to_know_held() {
            let sender = held_sender.clone();
            // Bounded by its own time-outs; the channel has room for the one question under way.
            tokio::spawn(async move {
                let answer = held_devices(&socket).await;
                if sender.send(answer).await.is_err() {
                    debug!("the supervisor has ended");
                }
            });
        }
    };
    supervisor.stop_all().await;
    ended
}

/// Brings the CDI specification up to date, and marks the devices that are not in it. Whether all of them are.
fn mark_incomplete(wanted: &mut ResourceSet, cdi: &mut Cdi, inventory: &Inventory) -> bool {
    let update = cdi.update(inventory);
    if let Ok(update) = &update
        && update.written
    {
        info!("wrote the CDI specification");
        if update.without_libraries {
            wanted.warnings.push(
                "none of the driver's libraries is below the driver root: containers get device nodes by CDI, and have \
                 to bring the libraries along"
                    .to_owned(),
            );
        }
    }
    for device in wanted.resources.values_mut().flatten() {
        let reason = match &update {
            Ok(update) => {
                let incomplete = update.incomplete.iter().find(|incomplete| incomplete.id == device.uuid);
                incomplete.map(|incomplete| incomplete.reason.clone())
            }
            Err(error) => Some(error.to_string()),
        };
        device.reasons.extend(reason.map(Reason::Incomplete));
    }
    update.is_ok_and(|update| update.incomplete.is_empty())
}

struct Supervisor {
    policy: Policy,
    context: Context,
    cdi: Cdi,
    /// When the specification is looked after again, where there is one.
    cdi_again: Option<Instant>,
    inventory: Option<Inventory>,
    /// Why there is no driver, while there is none.
    no_driver: Option<String>,
    wanted: ResourceSet,
    ledger: Ledger,
    endpoints: BTreeMap<ResourceName, Endpoint>,
    leaving_since: HashMap<(ResourceName, DeviceId), Instant>,
    empty_since: HashMap<ResourceName, Instant>,
    held: Held,
    /// Endpoints on their way out.
    stops: HashMap<ResourceName, JoinHandle<()>>,
}

impl Supervisor {
    fn new(policy: Policy, context: Context, cdi: Cdi) -> Self {
        Self {
            policy,
            context,
            cdi,
            cdi_again: None,
            inventory: None,
            no_driver: None,
            wanted: ResourceSet::default(),
            ledger: Ledger::default(),
            endpoints: BTreeMap::new(),
            leaving_since: HashMap::new(),
            empty_since: HashMap::new(),
            held: Held::default(),
            stops: HashMap::new(),
        }
    }

    fn take_report(&mut self, report: Report) -> Result<(), SupervisorError> {
        match report {
            Report::Inventory { inventory, .. } => self.take_inventory(inventory),
            Report::NoDriver(error) if self.inventory.is_none() && self.policy.fail_on_init_error => {
                return Err(SupervisorError::NoDriver(error));
            }
            Report::NoDriver(error) => {
                self.no_driver = Some(error.to_string());
                self.resolve();
            }
            Report::Event(_) | Report::StaleLibrary(_) | Report::OnHold => {}
        }
        Ok(())
    }

    fn take_inventory(&mut self, inventory: Inventory) {
        let first = self.inventory.is_none();
        let inventory = match &self.inventory {
            Some(previous) => inventory.with_unreadable_from(previous),
            None => inventory,
        };
        self.inventory = Some(inventory);
        self.no_driver = None;
        self.resolve();
        if let (true, Some(inventory)) = (first, &self.inventory) {
            info!(
                driver = inventory.driver_version,
                gpus = inventory.gpus.len(),
                mig_devices = inventory.gpus.iter().map(|gpu| gpu.mig_devices.len()).sum::<usize>(),
                strategy = %self.policy.offer.strategy,
                resources = self.wanted.resources.len(),
                "found"
            );
        }
    }

    fn take_reload(&mut self, reload: Reload) {
        self.policy = reload.policy;
        if self.context.rules != reload.rules {
            self.context.rules = reload.rules;
            for endpoint in self.endpoints.values() {
                endpoint.set_rules(self.context.rules.clone());
            }
        }
        self.resolve();
    }

    fn try_again(&mut self) {
        if self.cdi_again.is_some_and(|at| at <= Instant::now()) {
            self.resolve();
        }
    }

    /// Works out what should be offered, from everything that is known. The CDI specification comes first: the kubelet
    /// must not hear of a device that a container runtime cannot resolve.
    fn resolve(&mut self) {
        let Some(inventory) = &self.inventory else { return };
        let mut wanted = resolve(inventory, &self.policy.offer);
        let by_cdi = self.context.rules.strategies.iter().any(|strategy| strategy.is_cdi());
        let complete = !by_cdi || mark_incomplete(&mut wanted, &mut self.cdi, inventory);
        self.cdi_again = by_cdi.then(|| Instant::now() + if complete { CDI_LOOK } else { CDI_AGAIN });
        for withheld in wanted.withheld.iter().filter(|withheld| !self.wanted.withheld.contains(withheld)) {
            warn!(index = withheld.index, device = %withheld.id, reason = withheld.reason, "withheld");
        }
        for warning in wanted.warnings.iter().filter(|warning| !self.wanted.warnings.contains(warning)) {
            warn!("{warning}");
        }
        if let Some(why) = &self.no_driver {
            wanted = wanted.all_unhealthy(&Reason::NoDriver(why.clone()));
        }
        if wanted.resources.is_empty() && (self.wanted != wanted || self.ledger == Ledger::default()) {
            warn!(strategy = %self.policy.offer.strategy, "this node has nothing to offer under this strategy");
        }
        self.wanted = wanted;
    }

    /// Whether the kubelet follows our lists.
    fn is_watched(&self) -> bool {
        self.endpoints.values().any(Endpoint::is_watched)
    }

    /// How long nothing needs to be looked at; `None`: for ever.
    fn pause(&self) -> Option<Duration> {
        if !self.leaving_since.is_empty() || !self.empty_since.is_empty() {
            return Some(TICK);
        }
        self.cdi_again.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// The socket to ask, when a device waits to be let go by its pod.
    fn wants_to_know_held(&mut self) -> Option<PathBuf> {
        let newest = *self.leaving_since.values().max()?;
        let ask = self.is_watched() && self.held.ask(newest);
        ask.then(|| self.policy.pod_resources_socket.clone())
    }

    fn apply(&mut self) {
        let next = self.ledger.step(
            &self.wanted,
            |name, id| self.may_leave(name, id),
            |name| self.empty_since.get(name).is_some_and(|since| since.elapsed() >= LINGER),
        );
        for change in self.ledger.diff(&next) {
            self.log(&change);
            self.carry_out(change);
        }
        self.ledger = next;
        let now = Instant::now();
        let leaving = self.ledger.leaving().map(|(name, id)| (name.clone(), id.clone()));
        let since = |old: Option<Instant>| old.unwrap_or(now);
        self.leaving_since =
            leaving.map(|key| (key.clone(), since(self.leaving_since.get(&key).copied()))).collect();
        let empty = self.ledger.empty().cloned();
        self.empty_since =
            empty.map(|key| (key.clone(), since(self.empty_since.get(&key).copied()))).collect();
    }

    /// The rules of the kubelet: it must have seen the device as unhealthy, must be done with an `Allocate` of
    /// it, and no pod may hold it.
    fn may_leave(&self, name: &ResourceName, id: &DeviceId) -> bool {
        let Some(since) = self.leaving_since.get(&(name.clone(), id.clone())) else { return false };
        let Some(endpoint) = self.endpoints.get(name) else { return false };
        // A kubelet that is away cannot be told, and crashes on the way back where a device of a running pod is missing.
        endpoint.is_watched()
            && since.elapsed() >= SEEN
            && endpoint.since_allocated(id).is_none_or(|ago| ago >= self.policy.removal_grace)
            && self.held.lets_go(id, *since)
    }

    fn carry_out(&mut self, change: Change) {
        match change {
            Change::Start(name, devices) => {
                let before = self.stops.remove(&name);
                let endpoint = Endpoint::start(self.context.clone(), name.clone(), devices, before);
                self.endpoints.insert(name, endpoint);
            }
            Change::Update(name, devices) => {
                if let Some(endpoint) = self.endpoints.get(&name) {
                    endpoint.update(devices);
                }
            }
            Change::Stop(name) => {
                if let Some(endpoint) = self.endpoints.remove(&name) {
                    self.stops.retain(|_, stop| !stop.is_finished());
                    self.stops.insert(name, tokio::spawn(endpoint.stop(false)));
                }
            }
        }
    }

    /// One line per resource that changes, and one per device that turns unhealthy or well again.
    fn log(&self, change: &Change) {
        let (name, devices) = match change {
            Change::Start(name, devices) | Change::Update(name, devices) => (name, devices),
            Change::Stop(name) => {
                info!(resource = %name, "no device left; no longer served");
                return;
            }
        };
        let old = self.ledger.lists().get(name).map_or(&[][..], Vec::as_slice);
        for device in devices {
            let before = old.iter().find(|other| other.id == device.id);
            let was_healthy = before.is_none_or(Device::is_healthy);
            if device.is_healthy() {
                if !was_healthy {
                    info!(resource = %name, device = %device.id, index = device.index(), "healthy again");
                }
            } else if before.is_none_or(|before| before.reasons != device.reasons) {
                let reason = device.reasons_text();
                warn!(resource = %name, device = %device.id, index = device.index(), reason, "unhealthy");
            }
        }
        let told = |list: &[Device]| {
            list.iter().map(|device| (device.id.clone(), device.is_healthy())).collect::<Vec<_>>()
        };
        if told(old) != told(devices) {
            let healthy = devices.iter().filter(|device| device.is_healthy()).count();
            info!(resource = %name, devices = devices.len(), healthy, "list changed");
        }
    }

    async fn stop_all(&mut self) {
        let mut stops = JoinSet::new();
        for endpoint in std::mem::take(&mut self.endpoints).into_values() {
            stops.spawn(endpoint.stop(true));
        }
        let all = async { while stops.join_next().await.is_some() {} };
        if timeout(EXIT_LIMIT, all).await.is_err() {
            warn!("some endpoints did not end in time");
        }
    }
}
