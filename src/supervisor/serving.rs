//! What is being served: an endpoint per resource, and the rules by which a device leaves its list.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tracing::{info, warn};

use super::held::Held;
use super::snapshot::Served;
use crate::kubelet::{Context, Endpoint, Holding, PodResourcesError};
use crate::resource::allocate::Rules;
use crate::resource::ledger::{Change, Ledger};
use crate::resource::{Device, DeviceId, ResourceName, ResourceSet};

/// How long a list that says `Unhealthy` stands before the device may be left out, so that the kubelet sees both.
const SEEN: Duration = Duration::from_millis(500);

/// How long an empty resource stays, since a repartition brings most of them back.
const LINGER: Duration = Duration::from_secs(5);

/// How often something that waits to leave is looked at.
const TICK: Duration = Duration::from_millis(250);

/// How long the first lists wait for the kubelet's word on what pods hold.
const FIRST_ANSWER: Duration = Duration::from_secs(1);

/// All endpoints end within this time at exit, or are left to the end of the process.
const EXIT_LIMIT: Duration = Duration::from_millis(800);

/// The lists, the endpoints that serve them, and what is known of the pods that hold devices.
pub(super) struct Serving {
    context: Context,
    ledger: Ledger,
    endpoints: BTreeMap<ResourceName, Endpoint>,
    leaving_since: HashMap<(ResourceName, DeviceId), Instant>,
    empty_since: HashMap<ResourceName, Instant>,
    held: Held,
    /// What pods held when the kubelet first said so, until it is listed.
    found_held: Option<Vec<Holding>>,
    /// Until when nothing is served, because the kubelet has not yet said what pods hold.
    wait_until: Option<Instant>,
    started: Instant,
    /// A device that was handed out less than this ago is not left out of the list.
    removal_grace: Duration,
    /// Endpoints on their way out.
    stops: HashMap<ResourceName, JoinHandle<()>>,
}

impl Serving {
    /// Serves what `ledger` lists: nothing, or what was served before a configuration that fixes other things.
    pub(super) fn new(context: Context, removal_grace: Duration, ledger: Ledger) -> Self {
        let start = |(name, devices): (&ResourceName, &Vec<Device>)| {
            let endpoint = Endpoint::start(context.clone(), name.clone(), devices.clone(), None);
            (name.clone(), endpoint)
        };
        let endpoints = ledger.lists().iter().map(start).collect();
        let kubelet_is_there = context.folder.borrow().kubelet.is_some();
        let started = Instant::now();
        Self {
            context,
            ledger,
            endpoints,
            leaving_since: HashMap::new(),
            empty_since: HashMap::new(),
            held: Held::default(),
            found_held: None,
            wait_until: kubelet_is_there.then(|| started + FIRST_ANSWER),
            started,
            removal_grace,
            stops: HashMap::new(),
        }
    }

    pub(super) fn set_rules(&mut self, rules: Rules, removal_grace: Duration) {
        self.removal_grace = removal_grace;
        if self.context.rules != rules {
            self.context.rules = rules;
            for endpoint in self.endpoints.values() {
                endpoint.set_rules(self.context.rules.clone());
            }
        }
    }

    /// Whether the kubelet follows our lists.
    fn is_watched(&self) -> bool {
        self.endpoints.values().any(Endpoint::is_watched)
    }

    /// How long nothing needs to be looked at; `None`: for ever.
    pub(super) fn pause(&self) -> Option<Duration> {
        let first = self.wait_until.map(|until| until.saturating_duration_since(Instant::now()));
        let moves = !self.leaving_since.is_empty() || !self.empty_since.is_empty();
        let tick = (moves || self.held.is_awaited()).then_some(TICK);
        first.into_iter().chain(tick).min()
    }

    /// Whether the kubelet has to be asked now what pods hold: at the start, and when a device waits to be let go.
    pub(super) fn has_a_question(&mut self) -> bool {
        if self.wait_until.is_some() && self.held.ask_now() {
            return true;
        }
        let first = (!self.held.is_known()).then_some(self.started);
        let Some(newest) = self.leaving_since.values().copied().chain(first).max() else { return false };
        self.is_watched() && self.held.ask(newest)
    }

    /// Takes the kubelet's answer, or that there was none.
    pub(super) fn take_held(&mut self, answer: Result<Vec<Holding>, PodResourcesError>) {
        self.wait_until = None;
        let first = !self.held.is_known();
        let watched = self.is_watched();
        self.held.take(answer, watched);
        if first && self.held.is_known() {
            self.found_held = Some(self.held.holdings().to_vec());
        }
    }

    /// What is served, for people.
    pub(super) fn served(&self) -> BTreeMap<ResourceName, Served> {
        let lists = self.ledger.lists().iter();
        let served = lists.filter_map(|(name, devices)| {
            let endpoint = self.endpoints.get(name)?.status();
            Some((name.clone(), Served { devices: devices.clone(), endpoint }))
        });
        served.collect()
    }

    /// Moves what is served towards `wanted`; whether something changed. `known`: whether the driver has said what there
    /// is.
    pub(super) fn apply(&mut self, wanted: &ResourceSet, known: bool) -> bool {
        if self.wait_until.is_some_and(|until| until > Instant::now()) {
            return false;
        }
        self.wait_until = None;
        let mut before = self.ledger.clone();
        if known && let Some(holdings) = self.found_held.take() {
            before.keep_held(holdings.into_iter().filter_map(of_ours), wanted);
        }
        let next = before.step(
            wanted,
            |name, id| self.may_leave(name, id),
            |name| self.empty_since.get(name).is_some_and(|since| since.elapsed() >= LINGER),
        );
        let steps = self.ledger.diff(&next);
        let changed = !steps.is_empty();
        for change in steps {
            log(&change, &self.ledger);
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
        changed
    }

    /// The rules of the kubelet: it must have seen the device as unhealthy, must be done with an `Allocate` of
    /// it, and no pod may hold it.
    fn may_leave(&self, name: &ResourceName, id: &DeviceId) -> bool {
        let Some(since) = self.leaving_since.get(&(name.clone(), id.clone())) else { return false };
        let Some(endpoint) = self.endpoints.get(name) else { return false };
        // A kubelet that is away cannot be told, and crashes on the way back where a device of a running pod is missing.
        endpoint.is_watched()
            && since.elapsed() >= SEEN
            && endpoint.since_allocated(id).is_none_or(|ago| ago >= self.removal_grace)
            && self.held.lets_go(name, id, *since)
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

    /// Ends all endpoints, and gives back what was listed.
    pub(super) async fn stop(mut self) -> Ledger {
        let mut stops = JoinSet::new();
        for endpoint in std::mem::take(&mut self.endpoints).into_values() {
            stops.spawn(endpoint.stop(true));
        }
        let all = async { while stops.join_next().await.is_some() {} };
        if timeout(EXIT_LIMIT, all).await.is_err() {
            warn!("some endpoints did not end in time");
        }
        self.ledger
    }
}

/// A device that this program, or NVIDIA's before it, has handed out: nobody else's IDs look like that.
fn of_ours(holding: Holding) -> Option<(ResourceName, DeviceId)> {
    let id = holding.device.as_str();
    let is_ours = id.starts_with("GPU-") || id.starts_with("MIG-");
    is_ours.then(|| holding.resource.parse().ok()).flatten().map(|name| (name, holding.device))
}

/// One line per resource that changes, and one per device that turns unhealthy or well again.
fn log(change: &Change, before: &Ledger) {
    let (name, devices) = match change {
        Change::Start(name, devices) | Change::Update(name, devices) => (name, devices),
        Change::Stop(name) => {
            info!(resource = %name, "no device left; no longer served");
            return;
        }
    };
    let old = before.lists().get(name).map_or(&[][..], Vec::as_slice);
    // What is true of one replica is true of all.
    for device in devices.iter().filter(|device| device.replica.is_none_or(|replica| replica.number == 0)) {
        let before = old.iter().find(|other| other.id == device.id);
        let was_healthy = before.is_none_or(Device::is_healthy);
        if device.is_healthy() {
            if !was_healthy {
                info!(resource = %name, device = %device.uuid, index = device.index(), "healthy again");
            }
        } else if before.is_none_or(|before| before.reasons != device.reasons) {
            let reason = device.reasons_text();
            warn!(resource = %name, device = %device.uuid, index = device.index(), reason, "unhealthy");
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
