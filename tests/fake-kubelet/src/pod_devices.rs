//! What the kubelet remembers of its allocations: per pod, container and resource the devices and the answer.

use std::collections::{BTreeMap, BTreeSet};

use crate::api;

/// What one `Allocate` yielded: the IDs with their NUMA nodes, and the answer, kept for container restarts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Allocation {
    pub(crate) ids: BTreeMap<String, Option<i64>>,
    pub(crate) response: api::ContainerAllocateResponse,
}

/// The allocations of one container, by resource.
pub(crate) type ContainerDevices = BTreeMap<String, Allocation>;

/// All allocations, by the pod's UID and the container's name. This, and what is registered, is in the checkpoint.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct PodDevices(BTreeMap<String, BTreeMap<String, ContainerDevices>>);

impl PodDevices {
    pub(crate) fn insert(&mut self, uid: &str, container: &str, resource: &str, allocation: Allocation) {
        let containers = self.0.entry(uid.to_owned()).or_default();
        containers.entry(container.to_owned()).or_default().insert(resource.to_owned(), allocation);
    }

    /// Keeps only the entries of these pods.
    pub(crate) fn keep(&mut self, pods: &BTreeSet<String>) {
        self.0.retain(|uid, _| pods.contains(uid));
    }

    /// What a container holds.
    pub(crate) fn container(&self, uid: &str, container: &str) -> Option<&ContainerDevices> {
        self.0.get(uid)?.get(container)
    }

    /// The devices of one resource that a container holds; none if it was never given any.
    pub(crate) fn ids_of(&self, uid: &str, container: &str, resource: &str) -> Option<BTreeSet<String>> {
        let allocation = self.container(uid, container)?.get(resource)?;
        Some(allocation.ids.keys().cloned().collect())
    }

    /// The devices of one resource that any container of a pod holds, its init containers too.
    pub(crate) fn pod<'a>(&'a self, uid: &str, resource: &'a str) -> impl Iterator<Item = &'a String> {
        let containers = self.0.get(uid).into_iter().flat_map(BTreeMap::values);
        containers.filter_map(move |held| held.get(resource)).flat_map(|allocation| allocation.ids.keys())
    }

    /// The devices of one resource that are in use.
    pub(crate) fn in_use(&self, resource: &str) -> BTreeSet<String> {
        self.0.keys().flat_map(|uid| self.pod(uid, resource)).cloned().collect()
    }

    /// Whether any pod holds devices of a resource.
    pub(crate) fn has_resource(&self, resource: &str) -> bool {
        self.entries().any(|(_, _, name, _)| name == resource)
    }

    /// UID, container, resource and allocation, as the checkpoint lists them.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&String, &String, &String, &Allocation)> {
        self.0.iter().flat_map(|(uid, containers)| {
            containers.iter().flat_map(move |(container, held)| {
                held.iter().map(move |(resource, allocation)| (uid, container, resource, allocation))
            })
        })
    }
}
