//! The kubelet's device manager, and the endpoints that stand between it and the supervisor.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::checks::{Kind, Violation, conflict};
use super::node::Node;
use crate::kubelet::EndpointStatus;
use crate::resource::allocate::Rules;
use crate::resource::{Device, DeviceId, ResourceName};
use crate::supervisor::endpoints::Kubelet;

/// The kubelet forgets a resource whose plugin has been away for so long.
const FORGET: Duration = Duration::from_mins(5);

/// A device as the kubelet is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) healthy: bool,
    pub(super) numa: Option<u32>,
}

pub(super) type List = BTreeMap<DeviceId, Told>;

/// What a resource's server has.
#[derive(Debug, Default)]
pub(super) struct SimEndpoint {
    pub(super) devices: Vec<Device>,
    allocated: HashMap<DeviceId, Instant>,
    /// Whether a stream is open, and what was last sent on it.
    pub(super) watched: bool,
    pub(super) sent: Option<List>,
}

impl SimEndpoint {
    pub(super) fn list(&self) -> List {
        let told = |device: &Device| Told { healthy: device.is_healthy(), numa: device.numa_node };
        self.devices.iter().map(|device| (device.id.clone(), told(device))).collect()
    }
}

/// What the kubelet has of a resource.
#[derive(Debug, Default)]
pub(super) struct Resource {
    /// The newest list of this life, if there was one.
    pub(super) list: Option<List>,
    pub(super) healthy: BTreeSet<DeviceId>,
    pub(super) stopped: Option<Instant>,
}

/// What a container was given.
#[derive(Debug, Clone)]
pub(super) struct Allocated {
    pub(super) pod: u32,
    pub(super) init: bool,
    pub(super) resource: ResourceName,
    pub(super) ids: BTreeMap<DeviceId, Option<u32>>,
}

#[derive(Debug, Clone)]
pub(super) struct Container {
    pub(super) init: bool,
    pub(super) resource: ResourceName,
    pub(super) count: usize,
}

/// A pod that has not ended.
#[derive(Debug, Clone)]
pub(super) struct Pod {
    pub(super) containers: Vec<Container>,
    /// How many of them have been admitted.
    pub(super) admitted: usize,
    /// Whether the kubelet has heard of it since its start.
    pub(super) known: bool,
}

/// The file `kubelet_internal_checkpoint`.
#[derive(Debug, Clone, Default)]
pub(super) struct File {
    /// Grows with each write.
    pub(super) number: u64,
    pub(super) held: Vec<Allocated>,
    registered: Vec<ResourceName>,
}

#[derive(Debug, Default)]
pub(super) struct SimKubelet {
    pub(super) up: bool,
    /// Whether its socket's file is there: a crash leaves it.
    pub(super) socket: bool,
    pub(super) life: u64,
    pub(super) sources_ready: bool,
    pub(super) endpoints: BTreeMap<ResourceName, SimEndpoint>,
    pub(super) resources: BTreeMap<ResourceName, Resource>,
    pub(super) pods: BTreeMap<u32, Pod>,
    pub(super) held: Vec<Allocated>,
    pub(super) file: Option<File>,
    /// Which endpoints were started or got another list since somebody looked.
    pub(super) changed: BTreeSet<ResourceName>,
    /// When lists were sent again in the last minute.
    pub(super) sent_again: Vec<Instant>,
}

impl SimKubelet {
    /// A life ends. Whoever was being admitted has to come again.
    pub(super) fn stop(&mut self, in_good_order: bool) {
        self.up = false;
        self.socket &= !in_good_order;
        for endpoint in self.endpoints.values_mut() {
            endpoint.watched = false;
        }
        self.pods.retain(|_, pod| pod.admitted == pod.containers.len());
        self.pods.values_mut().for_each(|pod| pod.known = false);
    }

    /// Another begins, with what the checkpoint says.
    pub(super) fn start(&mut self, now: Instant) {
        let File { held, registered, .. } = self.file.clone().unwrap_or_default();
        let stopped = |name| (name, Resource { stopped: Some(now), ..Resource::default() });
        self.resources = registered.into_iter().map(stopped).collect();
        self.held = held;
        self.sources_ready = false;
        (self.up, self.socket) = (true, true);
        self.life += 1;
    }

    /// The API server's pods are there.
    pub(super) fn know_pods(&mut self) {
        self.pods.values_mut().for_each(|pod| pod.known = true);
        self.sources_ready = true;
    }

    /// The plugin's process ends, and with it all its servers.
    pub(super) fn plugin_gone(&mut self, now: Instant) {
        for name in std::mem::take(&mut self.endpoints).into_keys() {
            self.disconnected(&name, now);
        }
    }

    fn disconnected(&mut self, name: &ResourceName, now: Instant) {
        if let Some(resource) = self.resources.get_mut(name) {
            resource.healthy.clear();
            resource.stopped.get_or_insert(now);
        }
    }

    /// Takes the newest list of a resource, if it says something new.
    pub(super) fn take_list(&mut self, name: &ResourceName) -> Result<(), Violation> {
        let Some(endpoint) = self.endpoints.get_mut(name).filter(|endpoint| endpoint.watched) else {
            return Ok(());
        };
        let list = endpoint.list();
        if endpoint.sent.as_ref() == Some(&list) {
            return Ok(());
        }
        endpoint.sent = Some(list.clone());
        self.judge(name, &list)?;
        let resource = self.resources.entry(name.clone()).or_default();
        resource.stopped = None;
        resource.healthy = list.iter().filter(|(_, told)| told.healthy).map(|(id, _)| id.clone()).collect();
        resource.list = Some(list);
        self.write();
        Ok(())
    }

    /// What no list may do to the kubelet.
    fn judge(&self, name: &ResourceName, list: &List) -> Result<(), Violation> {
        if let Some(resource) = self.resources.get(name)
            && let Some(id) = resource.healthy.iter().find(|id| !list.contains_key(id))
        {
            return Err(Violation::new(
                Kind::LeftAtOnce,
                format!("{id} was healthy in {name} and is missing"),
            ));
        }
        for held in
            self.held.iter().filter(|held| held.resource == *name && self.pods.contains_key(&held.pod))
        {
            for (id, numa) in &held.ids {
                let pod = held.pod;
                match list.get(id) {
                    None => {
                        let text = format!("pod {pod} holds {id} of {name}, which is missing in a list");
                        return Err(Violation::new(Kind::Missing, text));
                    }
                    Some(told) if told.numa != *numa => {
                        let text =
                            format!("pod {pod} holds {id} of {name}, which is listed without its NUMA node");
                        return Err(Violation::new(Kind::Topology, text));
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Drops what pods held that have ended, as `List` and admissions do.
    pub(super) fn update_allocated(&mut self) {
        if self.sources_ready {
            let pods = &self.pods;
            self.held.retain(|held| pods.contains_key(&held.pod));
        }
    }

    pub(super) fn write(&mut self) {
        let number = self.file.as_ref().map_or(0, |file| file.number) + 1;
        let registered = self.resources.keys().cloned().collect();
        self.file = Some(File { number, held: self.held.clone(), registered });
    }

    /// Forgets resources that nobody has served for long.
    pub(super) fn forget(&mut self, now: Instant) {
        if !self.up {
            return;
        }
        let before = self.resources.len();
        self.resources.retain(|_, resource| resource.stopped.is_none_or(|at| now - at < FORGET));
        if self.resources.len() != before {
            self.write();
        }
    }

    /// What `List` answers: nothing of pods that it does not know, and nothing of init containers.
    pub(super) fn listed(&mut self) -> Vec<Allocated> {
        self.update_allocated();
        let is_known = |held: &&Allocated| self.pods.get(&held.pod).is_some_and(|pod| pod.known);
        self.held.iter().filter(|held| !held.init).filter(is_known).cloned().collect()
    }

    /// The devices of a resource that can be given to a pod, and those of its own init containers.
    pub(super) fn available(&self, pod: u32, name: &ResourceName) -> (Vec<DeviceId>, Vec<DeviceId>) {
        let of_resource = || self.held.iter().filter(|held| held.resource == *name);
        let used: BTreeSet<_> = of_resource().flat_map(|held| held.ids.keys()).collect();
        let healthy = self.resources.get(name).into_iter().flat_map(|resource| &resource.healthy);
        let free = healthy.filter(|id| !used.contains(id)).cloned().collect();
        let own = of_resource().filter(|held| held.pod == pod && held.init);
        (own.flat_map(|held| held.ids.keys().cloned()).collect(), free)
    }

    /// The plugin's answer to an `Allocate`: whether it is one, or which slice is not what it was.
    pub(super) fn allocate(
        &mut self,
        name: &ResourceName,
        ids: &[DeviceId],
        node: &Node,
    ) -> Result<(), Option<DeviceId>> {
        let endpoint = self.endpoints.get_mut(name).filter(|endpoint| endpoint.watched).ok_or(None)?;
        for id in ids {
            let device = endpoint.devices.iter().find(|device| device.id == *id && device.is_healthy());
            let device = device.ok_or(None)?;
            if device.mig.as_ref().is_some_and(|slice| !node.has(slice)) {
                return Err(Some(id.clone()));
            }
        }
        endpoint.allocated.extend(ids.iter().map(|id| (id.clone(), Instant::now())));
        Ok(())
    }

    /// Whether another pod has what these devices are made of.
    pub(super) fn judge_allocation(
        &self,
        pod: u32,
        ids: &[DeviceId],
        exists: impl Fn(&str) -> bool,
    ) -> Result<(), Violation> {
        for held in self.held.iter().filter(|held| held.pod != pod && self.pods.contains_key(&held.pod)) {
            for other in held.ids.keys() {
                if let Some(id) = ids.iter().find(|id| conflict(id, other, &exists)) {
                    let (holder, resource) = (held.pod, &held.resource);
                    let text =
                        format!("{id} is given to pod {pod}, while pod {holder} holds {other} of {resource}");
                    return Err(Violation::new(Kind::GivenTwice, text));
                }
            }
        }
        Ok(())
    }
}

/// What the supervisor has of it.
#[derive(Debug, Clone)]
pub(super) struct Link(pub(super) Rc<RefCell<SimKubelet>>);

impl Kubelet for Link {
    fn is_there(&self) -> bool {
        self.0.borrow().socket
    }

    fn start(&mut self, resource: ResourceName, devices: Vec<Device>) {
        let mut kubelet = self.0.borrow_mut();
        kubelet.changed.insert(resource.clone());
        kubelet.endpoints.insert(resource, SimEndpoint { devices, ..SimEndpoint::default() });
    }

    fn update(&mut self, resource: &ResourceName, devices: Vec<Device>) {
        let mut kubelet = self.0.borrow_mut();
        kubelet.changed.insert(resource.clone());
        if let Some(endpoint) = kubelet.endpoints.get_mut(resource) {
            endpoint.allocated.retain(|id, _| devices.iter().any(|device| device.id == *id));
            endpoint.devices = devices;
        }
    }

    fn send_again(&mut self, resource: &ResourceName) {
        let mut kubelet = self.0.borrow_mut();
        kubelet.changed.insert(resource.clone());
        kubelet.sent_again.retain(|at| at.elapsed() < Duration::from_mins(1));
        kubelet.sent_again.push(Instant::now());
        if let Some(endpoint) = kubelet.endpoints.get_mut(resource) {
            endpoint.sent = None;
        }
    }

    fn stop(&mut self, resource: &ResourceName) {
        let mut kubelet = self.0.borrow_mut();
        kubelet.endpoints.remove(resource);
        kubelet.disconnected(resource, Instant::now());
    }

    fn set_rules(&mut self, _rules: Rules) {}

    fn is_watched(&self, resource: &ResourceName) -> bool {
        self.0.borrow().endpoints.get(resource).is_some_and(|endpoint| endpoint.watched)
    }

    fn since_allocated(&self, resource: &ResourceName, device: &DeviceId) -> Option<Duration> {
        let kubelet = self.0.borrow();
        kubelet.endpoints.get(resource)?.allocated.get(device).map(Instant::elapsed)
    }

    fn status(&self, _resource: &ResourceName) -> Option<Arc<EndpointStatus>> {
        None
    }
}
