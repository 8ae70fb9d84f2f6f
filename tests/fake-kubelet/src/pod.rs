//! Pods: what is asked for, and what their containers get.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Index;

use crate::api;
use crate::pod_devices::{Allocation, ContainerDevices, PodDevices};

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
    pub(crate) is_static: bool,
    pub(crate) containers: Vec<ContainerSpec>,
}

/// What kind of container it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It has ended before the containers after it begin.
    Init,
    /// An init container with `restartPolicy: Always`: it goes on.
    Sidecar,
    Main,
}

/// One container of a [`PodSpec`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContainerSpec {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) limits: BTreeMap<String, usize>,
}

impl PodSpec {
    /// A pod in the namespace `default`, without containers yet.
    pub fn new(name: impl Into<String>) -> Self {
        let namespace = "default".to_owned();
        Self { name: name.into(), namespace, is_static: false, containers: Vec::new() }
    }

    /// Makes it a static pod: the kubelet knows it from a file, as soon as it starts.
    pub fn static_pod(mut self) -> Self {
        self.is_static = true;
        self
    }

    /// Puts the pod into another namespace. Names are unique over all namespaces here.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Adds a container; the limits that follow are its own.
    pub fn container(self, name: impl Into<String>) -> Self {
        self.with_container(name.into(), Kind::Main)
    }

    /// Adds an init container, which ends before the next one begins. Its devices are used again by the containers
    /// after it, and podresources never names it.
    pub fn init_container(self, name: impl Into<String>) -> Self {
        self.with_container(name.into(), Kind::Init)
    }

    /// Adds an init container that goes on running (`restartPolicy: Always`). It keeps its devices.
    pub fn sidecar(self, name: impl Into<String>) -> Self {
        self.with_container(name.into(), Kind::Sidecar)
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

    fn with_container(mut self, name: String, kind: Kind) -> Self {
        self.containers.push(ContainerSpec { name, kind, limits: BTreeMap::new() });
        self
    }

    /// The containers in the order in which the kubelet admits them.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = &ContainerSpec> {
        let (main, first): (Vec<_>, Vec<_>) = self.containers.iter().partition(|c| c.kind == Kind::Main);
        first.into_iter().chain(main)
    }

    /// What the scheduler counts: the sum of the containers, or the largest init container.
    pub(crate) fn requests(&self) -> BTreeMap<String, usize> {
        let mut sums: BTreeMap<String, usize> = BTreeMap::new();
        for container in self.containers.iter().filter(|c| c.kind != Kind::Init) {
            for (resource, count) in &container.limits {
                *sums.entry(resource.clone()).or_default() += count;
            }
        }
        for container in self.containers.iter().filter(|c| c.kind == Kind::Init) {
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

/// How far a pod has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Running, or about to; also while it terminates.
    Active,
    /// All containers have ended, or it was not admitted.
    Ended,
}

/// A pod on the node.
#[derive(Debug, Clone)]
pub(crate) struct PodRecord {
    /// A new one for each pod, whatever its name.
    pub(crate) uid: String,
    pub(crate) spec: PodSpec,
    pub(crate) phase: Phase,
    /// Whether the kubelet has heard of it since it started.
    pub(crate) known: bool,
    /// Whether its containers have been started.
    pub(crate) started: bool,
    /// Whether they have been started more than once.
    pub(crate) restarted: bool,
}

impl PodRecord {
    /// The pod as people see it, and what the answers of its resources contradict each other in.
    pub(crate) fn to_pod(&self, devices: &PodDevices) -> (Pod, Vec<String>) {
        let mut conflicts = Vec::new();
        let none = ContainerDevices::new();
        let containers = self.spec.containers.iter().map(|container| {
            let held = devices.container(&self.uid, &container.name).unwrap_or(&none);
            (container.name.clone(), merge(&container.name, held, &mut conflicts))
        });
        let containers = containers.collect();
        let (name, namespace) = (self.spec.name.clone(), self.spec.namespace.clone());
        (Pod { name, namespace, containers }, conflicts)
    }
}

fn merge(name: &str, held: &ContainerDevices, conflicts: &mut Vec<String>) -> Container {
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
