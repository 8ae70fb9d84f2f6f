//! How the kubelet admits a pod: it picks devices, asks the plugin's advice, allocates, and remembers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tonic::Status;

use crate::api;
use crate::manager::{Manager, Registered};
use crate::pod::{Allocation, ContainerSpec, Pod, PodRecord, PodSpec};
use crate::shared::Shared;

/// The kubelet's limit on `PreStartContainer`.
const PRE_START_LIMIT: Duration = Duration::from_secs(30);

/// Why a pod isn't running. `UnexpectedAdmissionError` is the kubelet's own name for all but the first two.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdmissionError {
    /// There are not enough free healthy devices; usually the scheduler says so.
    #[error(
        "Insufficient {resource}: requested {requested}, free {free} (allocatable {allocatable} of {capacity})"
    )]
    Insufficient {
        /// The resource.
        resource: String,
        /// How many devices the pod asks for.
        requested: usize,
        /// How many healthy devices no pod holds.
        free: usize,
        /// How many devices are healthy.
        allocatable: usize,
        /// How many devices there are.
        capacity: usize,
    },
    /// The fake has a pod of that name, or none.
    #[error("pod {name} {}", if *.exists { "exists already" } else { "doesn't exist" })]
    Name {
        /// The pod's name.
        name: String,
        /// Whether it exists.
        exists: bool,
    },
    /// The kubelet itself gave up, before or after the plugin's answer.
    #[error("UnexpectedAdmissionError: Allocate failed due to {reason}, which is unexpected")]
    Kubelet {
        /// Its words.
        reason: String,
    },
    /// The plugin's call failed.
    #[error("UnexpectedAdmissionError: {call} for {resource} failed due to {status}, which is unexpected")]
    Plugin {
        /// The resource.
        resource: String,
        /// The call's name.
        call: &'static str,
        /// The plugin's answer. Not the error's source: the kubelet's words have it already.
        status: Box<Status>,
    },
}

impl AdmissionError {
    /// The status that the plugin answered with, if it was the plugin.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Plugin { status, .. } => Some(status),
            _ => None,
        }
    }
}

type Reusable = BTreeMap<String, BTreeSet<String>>;

pub(crate) async fn run_pod(shared: &Arc<Shared>, spec: PodSpec) -> Result<Pod, AdmissionError> {
    let _one_at_a_time = shared.admission.lock().await;
    shared.with(|manager| schedule(manager, &spec))?;
    let record = PodRecord { namespace: spec.namespace.clone(), containers: BTreeMap::new() };
    shared.change(|manager| manager.pods.insert(spec.name.clone(), record));

    let result = start(shared, &spec).await;
    if result.is_err() {
        // A pod that isn't admitted has failed for good, and holds nothing.
        shared.change_on_disk(|manager| manager.delete_pod(&spec.name));
    }
    result
}

pub(crate) async fn restart_containers(shared: &Arc<Shared>, name: &str) -> Result<Pod, AdmissionError> {
    let record = shared.with(|manager| manager.pods.get(name).cloned());
    let missing = || AdmissionError::Name { name: name.to_owned(), exists: false };
    let record = record.ok_or_else(missing)?;
    for held in record.containers.values() {
        pre_start(shared, held).await?;
    }
    Ok(record.to_pod(name).0)
}

async fn start(shared: &Arc<Shared>, spec: &PodSpec) -> Result<Pod, AdmissionError> {
    let mut reusable = Reusable::new();
    let (first, then): (Vec<_>, Vec<_>) = spec.containers.iter().partition(|container| container.init);
    for container in first.into_iter().chain(then) {
        let held = admit_container(shared, &spec.name, container, &reusable).await?;
        for (resource, allocation) in &held {
            let free = reusable.entry(resource.clone()).or_default();
            for id in allocation.ids.keys() {
                // What an init container held, the next may have; what a container holds stays with it.
                if container.init {
                    free.insert(id.clone())
                } else {
                    free.remove(id)
                };
            }
        }
        pre_start(shared, &held).await?;
    }
    let pod = shared.change_on_disk(|manager| {
        let record = manager.pods.get(&spec.name).cloned().unwrap_or_default();
        let (pod, conflicts) = record.to_pod(&spec.name);
        manager
            .history
            .complaints
            .extend(conflicts.into_iter().map(|what| format!("pod {}: {what}", spec.name)));
        pod
    });
    Ok(pod)
}

/// What scheduler and kubelet check before anything is allocated.
fn schedule(manager: &mut Manager, spec: &PodSpec) -> Result<(), AdmissionError> {
    if manager.pods.contains_key(&spec.name) {
        return Err(AdmissionError::Name { name: spec.name.clone(), exists: true });
    }
    let view = manager.view(std::time::Instant::now());
    for (resource, requested) in spec.requests() {
        let seen = view.capacity(&resource).unwrap_or_default();
        let free = free_devices(manager, &resource).len();
        if requested > free {
            let (capacity, allocatable) = (seen.capacity, seen.allocatable);
            return Err(AdmissionError::Insufficient { resource, requested, free, allocatable, capacity });
        }
    }
    Ok(())
}

fn free_devices(manager: &Manager, resource: &str) -> BTreeSet<String> {
    let allocated = manager.allocated(resource);
    manager.healthy(resource).into_iter().flatten().filter(|id| !allocated.contains(*id)).cloned().collect()
}

async fn admit_container(
    shared: &Arc<Shared>,
    pod: &str,
    container: &ContainerSpec,
    reusable: &Reusable,
) -> Result<BTreeMap<String, Allocation>, AdmissionError> {
    shared.with(|manager| {
        if let Some(record) = manager.pods.get_mut(pod) {
            record.containers.entry(container.name.clone()).or_default();
        }
    });
    let mut held = BTreeMap::new();
    for (resource, &count) in container.limits.iter().filter(|(_, count)| **count > 0) {
        let none = BTreeSet::new();
        let reuse = reusable.get(resource).unwrap_or(&none);
        let ids = pick(shared, resource, count, reuse).await?;
        let allocation = allocate(shared, resource, ids).await?;
        shared.change(|manager| {
            if let Some(record) = manager.pods.get_mut(pod) {
                let held = record.containers.entry(container.name.clone()).or_default();
                held.insert(resource.clone(), allocation.clone());
            }
        });
        held.insert(resource.clone(), allocation);
    }
    Ok(held)
}

/// Chooses `count` devices: first those of the pod's init containers, then the ones that the plugin prefers as far as
/// they are free, then any.
async fn pick(
    shared: &Arc<Shared>,
    resource: &str,
    count: usize,
    reuse: &BTreeSet<String>,
) -> Result<Vec<String>, AdmissionError> {
    let (mut chosen, free, endpoint) = shared.with(|manager| {
        let mut chosen = manager.shuffle(reuse);
        chosen.truncate(count);
        let free = free_devices(manager, resource);
        let free = manager.shuffle(&free);
        (chosen, free, endpoint(manager, resource))
    });
    if chosen.len() == count {
        return Ok(chosen);
    }
    if free.len() < count - chosen.len() {
        let needed = count - chosen.len();
        let available = free.len();
        return Err(AdmissionError::Kubelet {
            reason: format!(
                "requested number of devices unavailable for {resource}. Requested: {needed}, Available: {available}"
            ),
        });
    }
    let mut preferred = Vec::new();
    let offered = shared.with(|manager| manager.options(resource));
    if offered.is_some_and(|options| options.get_preferred_allocation_available) {
        let available = free.iter().chain(&chosen).cloned().collect();
        let request = preferred_request(available, chosen.clone(), count);
        let mut plugin = endpoint?.plugin;
        shared.with(|manager| manager.calls(resource).preferred += 1);
        let call = plugin.get_preferred_allocation(request);
        let answer = bounded(shared.settings.call_limit, resource, "GetPreferredAllocation", call).await?;
        preferred =
            answer.container_responses.into_iter().next().map(|it| it.device_i_ds).unwrap_or_default();
    }
    let wanted = preferred.into_iter().filter(|id| free.contains(id)).collect::<Vec<_>>();
    for id in wanted.into_iter().chain(free) {
        if chosen.len() < count && !chosen.contains(&id) {
            chosen.push(id);
        }
    }
    Ok(chosen)
}

async fn allocate(
    shared: &Arc<Shared>,
    resource: &str,
    ids: Vec<String>,
) -> Result<Allocation, AdmissionError> {
    let endpoint = shared.with(|manager| {
        manager.calls(resource).allocate += 1;
        endpoint(manager, resource)
    })?;
    let mut plugin = endpoint.plugin;
    let call = plugin.allocate(allocate_request(vec![ids.clone()]));
    let answer = bounded(shared.settings.call_limit, resource, "Allocate", call).await?;
    let Some(response) = answer.container_responses.into_iter().next() else {
        return Err(AdmissionError::Kubelet {
            reason: "no containers return in allocation response".to_owned(),
        });
    };
    Ok(shared.change(|manager| {
        manager.dereference(resource, &ids);
        let ids = ids.into_iter().map(|id| (id.clone(), manager.numa(resource, &id))).collect();
        Allocation { ids, response }
    }))
}

/// Before each start of a container, also of one that starts again, if the plugin wants to be told.
async fn pre_start(shared: &Arc<Shared>, held: &BTreeMap<String, Allocation>) -> Result<(), AdmissionError> {
    for (resource, allocation) in held {
        let endpoint = shared.with(|manager| {
            let required = manager.options(resource).is_some_and(|options| options.pre_start_required);
            required.then(|| endpoint(manager, resource)).transpose()
        })?;
        let Some(mut endpoint) = endpoint else { continue };
        shared.with(|manager| manager.calls(resource).pre_start += 1);
        let devices_ids = allocation.ids.keys().cloned().collect();
        let call = endpoint.plugin.pre_start_container(api::PreStartContainerRequest { devices_ids });
        bounded(PRE_START_LIMIT, resource, "PreStartContainer", call).await?;
    }
    Ok(())
}

/// The endpoint that would be called now; a stopped one never is.
fn endpoint(manager: &Manager, resource: &str) -> Result<Registered, AdmissionError> {
    manager.callable(resource).map_err(|reason| AdmissionError::Kubelet { reason })
}

/// A call of the plugin. The kubelet sets no limit but for `PreStartContainer`; a test needs one.
async fn bounded<T>(
    limit: Duration,
    resource: &str,
    call: &'static str,
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, AdmissionError> {
    let failed =
        |status| AdmissionError::Plugin { resource: resource.to_owned(), call, status: Box::new(status) };
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(failed(status)),
        Err(_elapsed) => Err(failed(Status::deadline_exceeded(format!("no answer within {limit:?}")))),
    }
}

pub(crate) fn allocate_request(containers: Vec<Vec<String>>) -> api::AllocateRequest {
    let requests = containers.into_iter().map(|devices_ids| api::ContainerAllocateRequest { devices_ids });
    api::AllocateRequest { container_requests: requests.collect() }
}

pub(crate) fn preferred_request(
    available: Vec<String>,
    must_include: Vec<String>,
    size: usize,
) -> api::PreferredAllocationRequest {
    let request = api::ContainerPreferredAllocationRequest {
        available_device_i_ds: available,
        must_include_device_i_ds: must_include,
        allocation_size: i32::try_from(size).unwrap_or(i32::MAX),
    };
    api::PreferredAllocationRequest { container_requests: vec![request] }
}
