//! What a test can see of the kubelet at one moment.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use crate::api;

/// A device as the kubelet has it: healthy only while its endpoint is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The ID.
    pub id: String,
    /// Whether it can be allocated.
    pub healthy: bool,
    /// The (first) NUMA node, where the plugin named one.
    pub numa: Option<i64>,
}

impl From<&api::Device> for Device {
    fn from(device: &api::Device) -> Self {
        let nodes = device.topology.as_ref().map(|topology| topology.nodes.as_slice()).unwrap_or_default();
        Self {
            id: device.id.clone(),
            healthy: device.health == api::HEALTHY,
            numa: nodes.first().map(|node| node.id),
        }
    }
}

/// The two numbers in a node's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capacity {
    /// Healthy and unhealthy devices.
    pub capacity: usize,
    /// Healthy devices, allocated or not.
    pub allocatable: usize,
}

/// A `Register` that was answered with success.
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    /// The resource's name.
    pub resource: String,
    /// The socket's file name.
    pub endpoint: String,
    /// The API version that was asked for.
    pub version: String,
    /// What `GetDevicePluginOptions` said, which is what the kubelet goes by.
    pub options: api::DevicePluginOptions,
    /// What the request said, which the kubelet ignores.
    pub requested_options: Option<api::DevicePluginOptions>,
    /// When it was answered.
    pub at: Instant,
    /// In which life of the kubelet: 1 after the start, one more with each restart.
    pub life: usize,
}

/// One `ListAndWatch` message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceList {
    /// When it was read.
    pub at: Instant,
    /// The devices in it, by ID.
    pub devices: BTreeMap<String, Device>,
}

/// How often the kubelet did something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Calls {
    /// `Register` requests, refused ones too.
    pub register: usize,
    /// `GetDevicePluginOptions` calls.
    pub options: usize,
    /// `ListAndWatch` streams opened.
    pub list_and_watch: usize,
    /// `ListAndWatch` messages read.
    pub lists: usize,
    /// `GetPreferredAllocation` calls, raw ones too.
    pub preferred: usize,
    /// `Allocate` calls, raw ones too.
    pub allocate: usize,
    /// `PreStartContainer` calls, raw ones too.
    pub pre_start: usize,
}

impl std::ops::AddAssign for Calls {
    fn add_assign(&mut self, other: Self) {
        self.register += other.register;
        self.options += other.options;
        self.list_and_watch += other.list_and_watch;
        self.lists += other.lists;
        self.preferred += other.preferred;
        self.allocate += other.allocate;
        self.pre_start += other.pre_start;
    }
}

/// Everything at one moment. Its `Display` is what a time-out prints.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct View {
    /// Whether the kubelet runs.
    pub running: bool,
    /// The resources it knows.
    pub resources: BTreeMap<String, ResourceView>,
    /// All registrations, over all lives.
    pub registrations: Vec<Registration>,
    /// Why it refused registrations.
    pub refusals: Vec<String>,
    /// Where a real kubelet would have crashed.
    pub crashes: Vec<String>,
    /// Which running pods failed, and why.
    pub failed_pods: Vec<String>,
}

/// One resource at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResourceView {
    /// Capacity and allocatable.
    pub capacity: Capacity,
    /// The devices of the last list.
    pub devices: BTreeMap<String, Device>,
    /// The device IDs held by pods.
    pub allocated: Vec<String>,
    /// The socket's file name; none after a kubelet restart until the plugin has registered again.
    pub endpoint: Option<String>,
    /// Whether the kubelet considers the endpoint alive. A stopped one gets no calls.
    pub connected: bool,
    /// How many lists came since the last registration.
    pub lists: usize,
}

impl View {
    /// The numbers of a resource, if the kubelet knows it.
    pub fn capacity(&self, resource: &str) -> Option<Capacity> {
        self.resources.get(resource).map(|seen| seen.capacity)
    }

    /// Whether a plugin serves the resource, and has sent at least one list since it registered.
    pub fn serves(&self, resource: &str) -> bool {
        self.resources.get(resource).is_some_and(|seen| seen.connected && seen.lists > 0)
    }

    /// How many registrations of a resource succeeded.
    pub fn registrations_of(&self, resource: &str) -> usize {
        self.registrations.iter().filter(|registration| registration.resource == resource).count()
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.running { "running" } else { "stopped" };
        write!(f, "kubelet {state}, {} registrations", self.registrations.len())?;
        if self.resources.is_empty() {
            write!(f, ", no resources")?;
        }
        for (name, seen) in &self.resources {
            let Capacity { capacity, allocatable } = seen.capacity;
            let endpoint = seen.endpoint.as_deref().unwrap_or("no endpoint");
            let link = if seen.connected { "connected" } else { "stopped" };
            write!(
                f,
                "; {name}: allocatable {allocatable} of {capacity} ({endpoint}, {link}, {} lists)",
                seen.lists
            )?;
        }
        for refusal in &self.refusals {
            write!(f, "; refused: {refusal}")?;
        }
        for crash in &self.crashes {
            write!(f, "; CRASH: {crash}")?;
        }
        for failure in &self.failed_pods {
            write!(f, "; FAILED: {failure}")?;
        }
        Ok(())
    }
}
