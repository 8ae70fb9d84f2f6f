//! What one resource offers at the moment, shared by its server's calls and its endpoint.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Context;
use crate::inventory::Links;
use crate::nvml::{Paths, file_stamp};
use crate::resource::allocate::{AllocateError, Answer, Rules, allocate, unchanged};
use crate::resource::preferred::preferred;
use crate::resource::{Device, DeviceId, ResourceName};

/// A list, and how often one was to be sent though nothing had changed.
#[derive(Debug, Default)]
pub(super) struct List {
    pub(super) devices: Vec<Device>,
    pub(super) repeats: u64,
}

/// The list that is being served, and when each of its devices was last handed out.
#[derive(Debug)]
pub(super) struct Offer {
    resource: ResourceName,
    rules: Mutex<Arc<Rules>>,
    paths: Paths,
    links: watch::Receiver<Arc<Links>>,
    list: watch::Sender<List>,
    /// How many lists there were.
    version: watch::Sender<u64>,
    allocated: Mutex<HashMap<DeviceId, Instant>>,
}

impl Offer {
    pub(super) fn new(resource: ResourceName, context: &Context, devices: Vec<Device>) -> Self {
        Self {
            resource,
            rules: Mutex::new(Arc::new(context.rules.clone())),
            paths: context.paths.clone(),
            links: context.links.clone(),
            list: watch::Sender::new(List { devices, repeats: 0 }),
            version: watch::Sender::new(0),
            allocated: Mutex::default(),
        }
    }

    pub(super) fn resource(&self) -> &ResourceName {
        &self.resource
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<List> {
        self.list.subscribe()
    }

    /// Tells of each list without counting as somebody who follows them.
    pub(super) fn subscribe_silently(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub(super) fn publish(&self, devices: Vec<Device>) {
        let mut allocated = self.lock();
        let ids: HashSet<_> = devices.iter().map(|device| &device.id).collect();
        allocated.retain(|id, _| ids.contains(id));
        self.list.send_modify(|list| list.devices = devices);
        self.version.send_modify(|version| *version += 1);
    }

    /// Has streams send the list once more.
    pub(super) fn publish_again(&self) {
        self.list.send_modify(|list| list.repeats += 1);
    }

    /// Whether a `ListAndWatch` stream is open: each has a receiver of the list.
    pub(super) fn is_watched(&self) -> bool {
        self.list.receiver_count() > 0
    }

    pub(super) fn set_rules(&self, rules: Rules) {
        *self.rules.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }

    fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Time since an `Allocate` last gave this device away; `None` if none did.
    pub(super) fn since_allocated(&self, id: &DeviceId) -> Option<Duration> {
        self.lock().get(id).map(Instant::elapsed)
    }

    /// Answers each container's request, or none: the kubelet would take half an answer for a whole one.
    pub(super) fn allocate(&self, containers: &[Vec<String>]) -> Result<Vec<Answer>, AllocateError> {
        // Held to the end, so that no list can be published between looking at one and noting the allocation.
        let mut allocated = self.lock();
        let list = self.list.borrow();
        let devices = &list.devices;
        let rules = self.rules();
        let dev_root = self.paths.dev_root();
        let answer = |ids: &Vec<String>| {
            let answer = allocate(self.resource.as_str(), devices, ids, &rules, &dev_root, Path::exists)?;
            unchanged(devices, ids, file_stamp)?;
            Ok(answer)
        };
        let answers = containers.iter().map(answer).collect::<Result<_, _>>()?;
        let now = Instant::now();
        allocated.extend(containers.iter().flatten().map(|id| (DeviceId(id.clone()), now)));
        Ok(answers)
    }

    pub(super) fn preferred(
        &self,
        available: &[String],
        must_include: &[String],
        size: usize,
    ) -> Vec<String> {
        let links = Arc::clone(&self.links.borrow());
        let policy = self.rules().allocation;
        preferred(&self.list.borrow().devices, &links, available, must_include, size, policy)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeviceId, Instant>> {
        self.allocated.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
