//! Pods: what is asked for, and what their containers get.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Index;

use crate::api;

/// A pod as somebody would write it: containers with limits.
///
/// ```
/// # use fake_kubelet::PodSpec;
/// PodSpec::new("training").container("main").limit("nvidia.com/mig-2g.20gb", 1);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct PodSpec {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) containers: Vec<ContainerSpec>,
}

/// One container of a [`PodSpec`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContainerSpec {
    pub(crate) name: String,
    pub(crate) init: bool,
    pub(crate) limits: BTreeMap<String, usize>,
}

impl PodSpec {
    /// A pod in the namespace `default`, without containers yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), namespace: "default".to_owned(), containers: Vec::new() }
    }

    /// Puts the pod into another namespace. Names are unique over all namespaces here.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Adds a container; the limits that follow are its own.
    pub fn container(self, name: impl Into<String>) -> Self {
        self.with_container(name.into(), false)
    }

    /// Adds an init container. Its devices are used again by the containers after it.
    pub fn init_container(self, name: impl Into<String>) -> Self {
        self.with_container(name.into(), true)
    }

    /// Asks for `count` devices for the last container (a container `main` is made if there is none).
    pub fn limit(mut self, resource: impl Into<String>, count: usize) -> Self {
        if self.containers.is_empty() {
            self = self.container("main");
        }
        if let Some(container) = self.containers.last_mut() {
            container.limits.insert(resource.into(), count);
        }
        self
    }

    fn with_container(mut self, name: String, init: bool) -> Self {
        self.containers.push(ContainerSpec { name, init, limits: BTreeMap::new() });
        self
    }

    /// What the scheduler counts: the sum of the containers, or the largest init container.
    pub(crate) fn requests(&self) -> BTreeMap<String, usize> {
        let mut sums: BTreeMap<String, usize> = BTreeMap::new();
        for container in self.containers.iter().filter(|c| !c.init) {
            for (resource, count) in &container.limits {
                *sums.entry(resource.clone()).or_default() += count;
            }
        }
        for container in self.containers.iter().filter(|c| c.init) {
            for (resource, count) in &container.limits {
                let sum = sums.entry(resource.clone()).or_default();
                *sum = (*sum).max(*count);
            }
        }
        sums
    }
}

/// A pod that runs, as its containers see it. `pod["main"]` is one of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its containers, by name.
    pub containers: BTreeMap<String, Container>,
}

/// What a container was given, merged over its resources as the kubelet merges it: in the order of the
/// resource names, and of two answers for the same name or container path the first one wins. (The kubelet's own
/// order is that of a Go map: a plugin may not rely on it.)
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// The device IDs it holds, per resource, sorted.
    pub allocated: BTreeMap<String, Vec<String>>,
    /// Environment.
    pub envs: BTreeMap<String, String>,
    /// Mounts.
    pub mounts: Vec<api::Mount>,
    /// Device nodes: path on the host, path in the container, permissions.
    pub devices: Vec<api::DeviceSpec>,
    /// Annotations for the container runtime.
    pub annotations: BTreeMap<String, String>,
    /// Names of CDI devices.
    pub cdi_devices: Vec<String>,
}

impl Pod {
    /// The device IDs of one resource over all containers, sorted, each once.
    pub fn ids(&self, resource: &str) -> Vec<String> {
        let held = self.containers.values().filter_map(|c| c.allocated.get(resource)).flatten();
        held.cloned().collect::<BTreeSet<_>>().into_iter().collect()
    }
}

impl Index<&str> for Pod {
    type Output = Container;

    fn index(&self, container: &str) -> &Container {
        &self.containers[container]
    }
}

impl AsRef<str> for Pod {
    fn as_ref(&self) -> &str {
        &self.name
    }
}

/// The entry of a pod in the kubelet's checkpoint: container, then resource.
#[derive(Debug, Clone, Default)]
pub(crate) struct PodRecord {
    pub(crate) namespace: String,
    pub(crate) containers: BTreeMap<String, BTreeMap<String, Allocation>>,
}

/// What one `Allocate` yielded: the IDs with their NUMA nodes, and the answer, kept for container restarts.
#[derive(Debug, Clone)]
pub(crate) struct Allocation {
    pub(crate) ids: BTreeMap<String, Option<i64>>,
    pub(crate) response: api::ContainerAllocateResponse,
}

impl PodRecord {
    /// The IDs that any container of the pod holds of one resource.
    pub(crate) fn ids<'a>(&'a self, resource: &'a str) -> impl Iterator<Item = &'a String> {
        self.containers.values().filter_map(move |held| held.get(resource)).flat_map(|held| held.ids.keys())
    }

    /// The pod as people see it, and what the answers of its resources contradict each other in.
    pub(crate) fn to_pod(&self, name: &str) -> (Pod, Vec<String>) {
        let mut conflicts = Vec::new();
        let mut containers = BTreeMap::new();
        for (container, held) in &self.containers {
            containers.insert(container.clone(), merge(container, held, &mut conflicts));
        }
        (Pod { name: name.to_owned(), namespace: self.namespace.clone(), containers }, conflicts)
    }
}

fn merge(name: &str, held: &BTreeMap<String, Allocation>, conflicts: &mut Vec<String>) -> Container {
    let mut container = Container { name: name.to_owned(), ..Container::default() };
    for (resource, Allocation { ids, response }) in held {
        container.allocated.insert(resource.clone(), ids.keys().cloned().collect());
        keep_first(&mut container.envs, &response.envs, name, "environment variable", conflicts);
        keep_first(&mut container.annotations, &response.annotations, name, "annotation", conflicts);
        for mount in &response.mounts {
            match container.mounts.iter().find(|m| m.container_path == mount.container_path) {
                None => container.mounts.push(mount.clone()),
                Some(first) if first.host_path == mount.host_path => {}
                Some(_) => {
                    conflicts.push(format!("container {name}: two mounts at {}", mount.container_path));
                }
            }
        }
        for node in &response.devices {
            match container.devices.iter().find(|d| d.container_path == node.container_path) {
                None => container.devices.push(node.clone()),
                Some(first) if first.host_path == node.host_path => {}
                Some(_) => {
                    conflicts.push(format!("container {name}: two devices at {}", node.container_path));
                }
            }
        }
        container.cdi_devices.extend(response.cdi_devices.iter().map(|device| device.name.clone()));
    }
    container
}

fn keep_first(
    into: &mut BTreeMap<String, String>,
    from: &std::collections::HashMap<String, String>,
    container: &str,
    what: &str,
    conflicts: &mut Vec<String>,
) {
    for (key, value) in from {
        let kept = into.entry(key.clone()).or_insert_with(|| value.clone());
        if kept != value {
            conflicts.push(format!("container {container}: {what} {key} is both {kept:?} and {value:?}"));
        }
    }
}
