//! The kubelet's device manager, without its clock, files and sockets: what it knows, and how that changes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tonic::transport::Channel;

use crate::api;
use crate::api::device_plugin_client::DevicePluginClient;
use crate::checkpoint::Checkpoint;
use crate::client::Client;
use crate::pod::{Phase, PodRecord, PodSpec};
use crate::pod_devices::PodDevices;
use crate::topology::TopologyPolicy;
use crate::view::{Calls, Capacity, Device, DeviceList, Registration, ResourceView, View};

/// How many lists are remembered per resource: enough for any test, bounded for benchmarks.
const LISTS_REMEMBERED: usize = 10_000;

/// The longest device ID that fits the API.
const MAX_ID: usize = 63;

/// The plugin that currently answers for a resource.
#[derive(Debug, Clone)]
pub(crate) struct PluginEndpoint {
    /// None after a kubelet restart: the resource is known from the checkpoint alone.
    pub(crate) registered: Option<Registered>,
    /// Since when it gets no calls any more.
    pub(crate) stopped: Option<Instant>,
    lists: usize,
}

/// What a registration left behind.
#[derive(Debug, Clone)]
pub(crate) struct Registered {
    pub(crate) client: u64,
    pub(crate) name: String,
    pub(crate) plugin: DevicePluginClient<Channel>,
    pub(crate) options: api::DevicePluginOptions,
}

/// All the kubelet knows. Maps are keyed by resource name, except `pods`.
#[derive(Debug)]
pub(crate) struct Manager {
    /// The clients, found by resource name alone: the root of the race.
    pub(crate) clients: BTreeMap<String, Arc<Client>>,
    /// Connections that the race left open, with nobody to close them.
    pub(crate) leaked: Vec<Arc<Client>>,
    pub(crate) endpoints: BTreeMap<String, PluginEndpoint>,
    all: BTreeMap<String, BTreeMap<String, Device>>,
    healthy: BTreeMap<String, BTreeSet<String>>,
    unhealthy: BTreeMap<String, BTreeSet<String>>,
    /// The pods on the node, by name.
    pub(crate) pods: BTreeMap<String, PodRecord>,
    /// What was allocated to pods. Those that have ended stay in it until somebody asks.
    pub(crate) held: PodDevices,
    /// Whether the API server has named its pods since the start.
    pub(crate) sources_ready: bool,
    last_client: u64,
    last_pod: u64,
    shuffles: u64,
    forget_after: Duration,
    policy: TopologyPolicy,
    pub(crate) running: bool,
    pub(crate) life: usize,
    pub(crate) history: History,
}

/// What happened, for tests to ask about; it survives restarts.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) registrations: Vec<Registration>,
    pub(crate) refusals: Vec<String>,
    pub(crate) lists: BTreeMap<String, VecDeque<DeviceList>>,
    pub(crate) calls: BTreeMap<String, Calls>,
    pub(crate) crashes: Vec<String>,
    pub(crate) failed_pods: Vec<String>,
    pub(crate) complaints: Vec<String>,
    pub(crate) checkpoint_writes: usize,
    pub(crate) pod_resources_calls: usize,
}

impl Manager {
    pub(crate) fn new(forget_after: Duration, policy: TopologyPolicy) -> Self {
        Self {
            clients: BTreeMap::new(),
            leaked: Vec::new(),
            endpoints: BTreeMap::new(),
            all: BTreeMap::new(),
            healthy: BTreeMap::new(),
            unhealthy: BTreeMap::new(),
            pods: BTreeMap::new(),
            held: PodDevices::default(),
            sources_ready: false,
            last_client: 0,
            last_pod: 0,
            shuffles: 0,
            forget_after,
            policy,
            running: false,
            life: 0,
            history: History::default(),
        }
    }

    /// A new life begins: of the former one only the checkpoint is left.
    pub(crate) fn start(&mut self, now: Instant, checkpoint: Checkpoint) {
        let stopped = || PluginEndpoint { registered: None, stopped: Some(now), lists: 0 };
        let Checkpoint { held, registered } = checkpoint;
        self.held = held;
        self.endpoints = registered.keys().map(|resource| (resource.clone(), stopped())).collect();
        self.healthy = registered.into_keys().map(|resource| (resource, BTreeSet::new())).collect();
        self.unhealthy = self.healthy.clone();
        self.all.clear();
        self.running = true;
        self.life += 1;
    }

    /// The end of a life: every connection is closed.
    pub(crate) fn stop(&mut self, now: Instant) {
        for client in std::mem::take(&mut self.clients).into_values() {
            client.close();
        }
        for resource in self.endpoints.keys().cloned().collect::<Vec<_>>() {
            self.plugin_disconnected(&resource, now);
        }
        self.leaked.clear();
        self.running = false;
        self.sources_ready = false;
        for pod in self.pods.values_mut() {
            pod.known = false;
        }
    }

    /// Numbers the clients, so that an old one can be told from a new one.
    pub(crate) fn next_client(&mut self) -> u64 {
        self.last_client += 1;
        self.last_client
    }

    /// Takes a client out of the map: with the race, whichever stands there under its resource's name.
    pub(crate) fn deregister(&mut self, client: &Client, emulate_race: bool) {
        if emulate_race || self.clients.get(&client.resource).is_some_and(|found| found.id == client.id) {
            self.clients.remove(&client.resource);
        }
    }

    /// The client that the current endpoint of a resource belongs to.
    pub(crate) fn endpoint_client(&self, resource: &str) -> Option<u64> {
        self.endpoints.get(resource)?.registered.as_ref().map(|registered| registered.client)
    }

    /// What the plugin of a resource said it can do.
    pub(crate) fn options(&self, resource: &str) -> Option<api::DevicePluginOptions> {
        self.endpoints.get(resource)?.registered.as_ref().map(|registered| registered.options)
    }

    /// The plugin to call for a resource. A stopped endpoint gets no calls, even if its connection is open.
    pub(crate) fn callable(&self, resource: &str) -> Result<Registered, String> {
        let endpoint =
            self.endpoints.get(resource).ok_or_else(|| format!("unknown Device Plugin {resource}"))?;
        match &endpoint.registered {
            Some(registered) if endpoint.stopped.is_none() => Ok(registered.clone()),
            _ => Err(format!("endpoint {resource} has been stopped")),
        }
    }

    pub(crate) fn plugin_connected(&mut self, registration: Registration, registered: Registered) {
        let endpoint = PluginEndpoint { registered: Some(registered), stopped: None, lists: 0 };
        self.endpoints.insert(registration.resource.clone(), endpoint);
        self.history.registrations.push(registration);
    }

    /// Stops whichever endpoint is current, and marks all its devices unhealthy.
    pub(crate) fn plugin_disconnected(&mut self, resource: &str, now: Instant) {
        let Some(endpoint) = self.endpoints.get_mut(resource) else { return };
        endpoint.stopped = Some(now);
        let healthy = self.healthy.get_mut(resource).map(std::mem::take).unwrap_or_default();
        self.unhealthy.entry(resource.to_owned()).or_default().extend(healthy);
    }

    /// A message replaces the whole list, whether or not its endpoint is stopped.
    pub(crate) fn list_received(&mut self, resource: &str, devices: &[api::Device], now: Instant) {
        self.calls(resource).lists += 1;
        self.judge_list(resource, devices);
        let list: BTreeMap<String, Device> =
            devices.iter().map(|device| (device.id.clone(), Device::from(device))).collect();
        let ids = |healthy: bool| {
            let of_health = list.values().filter(|device| device.healthy == healthy);
            of_health.map(|device| device.id.clone()).collect::<BTreeSet<_>>()
        };
        self.healthy.insert(resource.to_owned(), ids(true));
        self.unhealthy.insert(resource.to_owned(), ids(false));
        self.all.insert(resource.to_owned(), list.clone());
        if let Some(endpoint) = self.endpoints.get_mut(resource) {
            endpoint.lists += 1;
        }
        let lists = self.history.lists.entry(resource.to_owned()).or_default();
        if lists.len() == LISTS_REMEMBERED {
            lists.pop_front();
        }
        lists.push_back(DeviceList { at: now, devices: list });
        self.look_up_held(resource);
    }

    /// Whether the kubelet, had it just allocated these, would find each in its list. It doesn't check.
    pub(crate) fn dereference<'a>(&mut self, resource: &str, ids: impl IntoIterator<Item = &'a String>) {
        let known = self.all.get(resource);
        for id in ids {
            if known.is_none_or(|devices| !devices.contains_key(id)) {
                self.history.crashes.push(format!(
                    "{resource}: {id} was just allocated, and is no longer in the list: the kubelet dereferences nil"
                ));
            }
        }
    }

    /// The newest list of a resource; it stays when its endpoint stops.
    pub(crate) fn list(&self, resource: &str) -> Option<&BTreeMap<String, Device>> {
        self.all.get(resource)
    }

    /// Whether the device manager is asked about a resource at all.
    pub(crate) fn is_device_resource(&self, resource: &str) -> bool {
        self.healthy.contains_key(resource) || self.held.has_resource(resource)
    }

    pub(crate) fn numa(&self, resource: &str, id: &str) -> Option<i64> {
        self.all.get(resource)?.get(id)?.numa
    }

    pub(crate) fn healthy(&self, resource: &str) -> Option<&BTreeSet<String>> {
        self.healthy.get(resource)
    }

    /// The policy of the Topology Manager.
    pub(crate) fn policy(&self) -> TopologyPolicy {
        self.policy
    }

    /// The healthy devices of each resource, as they stand in the checkpoint.
    pub(crate) fn registered(&self) -> &BTreeMap<String, BTreeSet<String>> {
        &self.healthy
    }

    /// The devices of a resource in the hands of pods that have not ended.
    pub(crate) fn allocated(&self, resource: &str) -> BTreeSet<String> {
        let active = self.pods.values().filter(|pod| pod.phase == Phase::Active);
        active.flat_map(|pod| self.held.pod(&pod.uid, resource)).cloned().collect()
    }

    /// Drops what pods held that have ended, as `List` and each admission do. Before all sources have named their pods
    /// nobody can know which have.
    pub(crate) fn update_allocated(&mut self) {
        if self.sources_ready {
            let active = self.pods.values().filter(|pod| pod.known && pod.phase == Phase::Active);
            self.held.keep(&active.map(|pod| pod.uid.clone()).collect());
        }
    }

    /// A new pod, of which nothing has been admitted.
    pub(crate) fn add_pod(&mut self, spec: &PodSpec) -> PodRecord {
        self.last_pod += 1;
        let uid = format!("{:08x}-0000-4000-8000-{:012x}", self.last_pod, self.last_pod);
        let (phase, spec) = (Phase::Active, spec.clone());
        let record = PodRecord { uid, spec, phase, known: true, started: false, restarted: false };
        self.pods.insert(record.spec.name.clone(), record.clone());
        record
    }

    /// IDs in no particular order, as Go's sets yield them, but the same in each run of a test.
    pub(crate) fn shuffle<'a>(&mut self, ids: impl IntoIterator<Item = &'a String>) -> Vec<String> {
        let mut ids: Vec<String> = ids.into_iter().cloned().collect();
        self.shuffles += 1;
        let mut random = self.shuffles;
        for last in (1..ids.len()).rev() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // The high bits are the random ones; the remainder fits any usize.
            let other = usize::try_from((random >> 33) % (last as u64 + 1)).unwrap_or(0);
            ids.swap(last, other);
        }
        ids
    }

    pub(crate) fn calls(&mut self, resource: &str) -> &mut Calls {
        self.history.calls.entry(resource.to_owned()).or_default()
    }

    /// The devices as the kubelet has them, by ID.
    pub(crate) fn devices(&self, resource: &str) -> BTreeMap<String, Device> {
        let mut devices = self.all.get(resource).cloned().unwrap_or_default();
        for device in devices.values_mut() {
            device.healthy = self.healthy.get(resource).is_some_and(|healthy| healthy.contains(&device.id));
        }
        devices
    }

    /// Everything, for tests. The resources that the kubelet would have forgotten by now still count.
    pub(crate) fn view(&self) -> View {
        let resources = self.healthy.keys().map(|resource| (resource.clone(), self.resource(resource)));
        View {
            running: self.running,
            resources: resources.collect(),
            registrations: self.history.registrations.clone(),
            refusals: self.history.refusals.clone(),
            crashes: self.history.crashes.clone(),
            failed_pods: self.history.failed_pods.clone(),
        }
    }

    fn resource(&self, resource: &str) -> ResourceView {
        let count = |of: &BTreeMap<String, BTreeSet<String>>| of.get(resource).map_or(0, BTreeSet::len);
        let allocatable = count(&self.healthy);
        let endpoint = self.endpoints.get(resource);
        ResourceView {
            capacity: Capacity { capacity: allocatable + count(&self.unhealthy), allocatable },
            devices: self.devices(resource),
            allocated: self.allocated(resource).into_iter().collect(),
            endpoint: endpoint.and_then(|it| it.registered.as_ref()).map(|it| it.name.clone()),
            connected: endpoint.is_some_and(|it| it.stopped.is_none()),
            lists: endpoint.map_or(0, |it| it.lists),
        }
    }

    /// Drops the resources whose endpoint has been stopped for long, or that have none at all; whether there were any.
    pub(crate) fn forget(&mut self, now: Instant) -> bool {
        let names: BTreeSet<String> = self.healthy.keys().chain(self.unhealthy.keys()).cloned().collect();
        let mut forgotten = false;
        for resource in names {
            let gone = self.endpoints.get(&resource).is_none_or(|endpoint| {
                endpoint.stopped.is_some_and(|at| now.saturating_duration_since(at) >= self.forget_after)
            });
            if gone {
                self.endpoints.remove(&resource);
                self.healthy.remove(&resource);
                self.unhealthy.remove(&resource);
                forgotten = true;
            }
        }
        forgotten
    }

    /// With a Topology Manager policy, a kubelet that starts looks up the devices of running pods, init containers too,
    /// in the newest list, as soon as any device in it names a NUMA node. It doesn't check.
    ///
    /// When its pods come, before or after the list, is chance. So a list is judged when it comes, and a test needs no
    /// restart at the right moment.
    fn look_up_held(&mut self, resource: &str) {
        let Some(list) = self.all.get(resource) else { return };
        if self.policy == TopologyPolicy::None || list.values().all(|device| device.numa.is_none()) {
            return;
        }
        for pod in self.pods.values().filter(|pod| pod.phase == Phase::Active) {
            for id in self.held.pod(&pod.uid, resource).filter(|id| !list.contains_key(*id)) {
                self.history.crashes.push(format!(
                    "{resource}: {id} is held by the running pod {} and is not in the list: the topology manager \
                     dereferences nil when the pod is admitted again",
                    pod.spec.name
                ));
            }
        }
    }

    /// Notes what a kubelet bears in silence, and a plugin should not do.
    fn judge_list(&mut self, resource: &str, devices: &[api::Device]) {
        let mut complain = |what: String| self.history.complaints.push(format!("{resource}: {what}"));
        let mut seen = BTreeSet::new();
        for device in devices {
            if !seen.insert(&device.id) {
                complain(format!("{} is in the list twice", device.id));
            }
            if device.id.is_empty() || device.id.len() > MAX_ID {
                complain(format!("the ID {:?} has {} characters", device.id, device.id.len()));
            }
            if device.health != api::HEALTHY && device.health != api::UNHEALTHY {
                complain(format!("{} has the health {:?}", device.id, device.health));
            }
        }
        let list: BTreeMap<_, _> = devices.iter().map(|d| (d.id.clone(), Device::from(d))).collect();
        let first = self.endpoints.get(resource).is_none_or(|endpoint| endpoint.lists == 0);
        let before = self.history.lists.get(resource).and_then(VecDeque::back);
        // A plugin may need the checkpoint that is written for it, to see whether an unhealthy device is free.
        let healthy = list.values().all(|device| device.healthy);
        if healthy && !first && before.is_some_and(|before| before.devices == list) {
            complain("a list that changes nothing, for which the checkpoint is written".to_owned());
        }
    }
}
