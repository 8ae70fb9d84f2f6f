//! How the kubelet admits a pod: it picks devices, asks the plugin's advice, allocates, and remembers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tonic::Status;

use crate::api;
use crate::manager::{Manager, Registered};
use crate::pod::{ContainerSpec, Kind, Phase, Pod, PodRecord, PodSpec};
use crate::pod_devices::Allocation;
use crate::shared::Shared;
use crate::topology::{self, Nodes, TopologyPolicy};
use crate::view::Capacity;

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
    /// The Topology Manager's policy refuses it.
    #[error("TopologyAffinityError: Resources cannot be allocated with Topology locality")]
    Topology,
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

/// From this minor version on, a container that had restarted before the kubelet did keeps its devices unchecked too.
const TRUSTS_RESTARTED: u32 = 34;

/// From this minor version on, CDI devices reach the container; older kubelets drop them silently.
const TAKES_CDI: u32 = 29;

type Reusable = BTreeMap<String, BTreeSet<String>>;

pub(crate) async fn run_pod(shared: &Arc<Shared>, spec: PodSpec) -> Result<Pod, AdmissionError> {
    if !spec.is_static && !shared.sources_ready().await {
        return Err(AdmissionError::Kubelet {
            reason: "the API server has not named its pods yet".to_owned(),
        });
    }
    let _one_at_a_time = shared.admission.lock().await;
    let pod = shared.change(|manager| {
        schedule(manager, &spec)?;
        Ok(manager.add_pod(&spec))
    })?;
    let result = start(shared, &pod).await;
    shared.change(|manager| match (&result, manager.pods.get_mut(&spec.name)) {
        (Ok(_), Some(pod)) => pod.started = true,
        // A pod that isn't admitted has failed for good. What it was given until then is dropped when somebody asks.
        _ => drop(manager.pods.remove(&spec.name)),
    });
    result
}

pub(crate) async fn restart_containers(shared: &Arc<Shared>, name: &str) -> Result<Pod, AdmissionError> {
    let pod = shared.with(|manager| {
        let pod = manager.pods.get_mut(name).filter(|pod| pod.phase == Phase::Active)?;
        pod.restarted = true;
        Some(pod.clone())
    });
    let pod = pod.ok_or_else(|| AdmissionError::Name { name: name.to_owned(), exists: false })?;
    for container in pod.spec.in_order().filter(|container| container.kind != Kind::Init) {
        pre_start(shared, &pod, container).await?;
    }
    Ok(shared.with(|manager| pod.to_pod(&manager.held).0))
}

async fn start(shared: &Arc<Shared>, pod: &PodRecord) -> Result<Pod, AdmissionError> {
    admit(shared, pod).await?;
    for container in pod.spec.in_order() {
        pre_start(shared, pod, container).await?;
    }
    Ok(shared.change(|manager| {
        let (seen, conflicts) = pod.to_pod(&manager.held);
        let name = &pod.spec.name;
        let conflicts = conflicts.into_iter().map(|what| format!("pod {name}: {what}"));
        manager.history.complaints.extend(conflicts);
        seen
    }))
}

/// Admits a new pod, or one that runs already, by a kubelet that has just started.
pub(crate) async fn admit(shared: &Arc<Shared>, pod: &PodRecord) -> Result<(), AdmissionError> {
    let mut reusable = Reusable::new();
    for container in pod.spec.in_order() {
        let affinity = shared.with(|manager| align(manager, pod, container, &reusable))?;
        admit_container(shared, pod, container, affinity, &reusable).await?;
        shared.with(|manager| {
            let held = manager.held.container(&pod.uid, &container.name);
            for (resource, allocation) in held.into_iter().flatten() {
                let free = reusable.entry(resource.clone()).or_default();
                for id in allocation.ids.keys() {
                    // What an init container held, the next may have; what another holds stays with it.
                    if container.kind == Kind::Init {
                        free.insert(id.clone());
                    } else {
                        free.remove(id);
                    }
                }
            }
        });
    }
    Ok(())
}

/// What the scheduler checks before a pod comes to the node.
fn schedule(manager: &Manager, spec: &PodSpec) -> Result<(), AdmissionError> {
    if manager.pods.contains_key(&spec.name) {
        return Err(AdmissionError::Name { name: spec.name.clone(), exists: true });
    }
    let view = manager.view();
    for (resource, requested) in spec.requests() {
        let free = without(manager, &resource, &manager.allocated(&resource)).len();
        if requested > free {
            let Capacity { capacity, allocatable } = view.capacity(&resource).unwrap_or_default();
            return Err(AdmissionError::Insufficient { resource, requested, free, allocatable, capacity });
        }
    }
    Ok(())
}

/// The healthy devices of a resource that are not among these.
fn without(manager: &Manager, resource: &str, taken: &BTreeSet<String>) -> BTreeSet<String> {
    manager.healthy(resource).into_iter().flatten().filter(|id| !taken.contains(*id)).cloned().collect()
}

/// Asks the Topology Manager for the NUMA nodes of a container's devices; none where any will do.
fn align(
    manager: &mut Manager,
    pod: &PodRecord,
    container: &ContainerSpec,
    reusable: &Reusable,
) -> Result<Option<Nodes>, AdmissionError> {
    if manager.policy() == TopologyPolicy::None {
        return Ok(None);
    }
    manager.update_allocated();
    let none = BTreeSet::new();
    let wanted = container.limits.iter().filter(|(_, count)| **count > 0);
    let hints = wanted.map(|(resource, count)| {
        let list = manager.list(resource)?;
        if let Some(held) = manager.held.ids_of(&pod.uid, &container.name, resource) {
            return topology::hints(list, &held, &none, *count);
        }
        let free = without(manager, resource, &manager.held.in_use(resource));
        topology::hints(list, &free, reusable.get(resource).unwrap_or(&none), *count)
    });
    let hints: Vec<_> = hints.collect();
    topology::merge(manager.policy(), &hints).map(|hint| hint.nodes).ok_or(AdmissionError::Topology)
}

async fn admit_container(
    shared: &Arc<Shared>,
    pod: &PodRecord,
    container: &ContainerSpec,
    affinity: Option<Nodes>,
    reusable: &Reusable,
) -> Result<(), AdmissionError> {
    let mut allocated = false;
    for (resource, &count) in container.limits.iter().filter(|(_, count)| **count > 0) {
        let needs = shared.with(|manager| {
            manager.update_allocated();
            needs_devices(manager, shared.settings.version, pod, container, resource)
        });
        if !needs.map_err(|reason| AdmissionError::Kubelet { reason })? {
            continue;
        }
        let none = BTreeSet::new();
        let reuse = reusable.get(resource).unwrap_or(&none);
        let ids = pick(shared, resource, count, affinity, reuse).await?;
        let allocation = allocate(shared, resource, ids).await?;
        shared.change(|manager| manager.held.insert(&pod.uid, &container.name, resource, allocation));
        allocated = true;
    }
    if allocated {
        shared.change_on_disk(|_| ());
    }
    Ok(())
}

/// Whether a container has to be given devices; false if it has its own already.
fn needs_devices(
    manager: &Manager,
    version: u32,
    pod: &PodRecord,
    container: &ContainerSpec,
    resource: &str,
) -> Result<bool, String> {
    if !manager.is_device_resource(resource) {
        return Ok(false);
    }
    let runs = pod.started && container.kind != Kind::Init && (!pod.restarted || version >= TRUSTS_RESTARTED);
    if !manager.sources_ready && runs {
        return Ok(false);
    }
    let Some(healthy) = manager.healthy(resource) else {
        return Err(format!("cannot allocate unregistered device {resource}"));
    };
    if healthy.is_empty() {
        return Err(format!("no healthy devices present; cannot allocate unhealthy devices {resource}"));
    }
    let held = manager.held.ids_of(&pod.uid, &container.name, resource);
    if held.as_ref().is_some_and(|held| !held.is_subset(healthy)) {
        return Err(format!(
            "previously allocated devices are no longer healthy; cannot allocate unhealthy devices {resource}"
        ));
    }
    Ok(held.is_none())
}

/// Chooses `count` devices: first those of the pod's init containers, then the ones on the right NUMA nodes; of these
/// the ones that the plugin prefers, then any.
async fn pick(
    shared: &Arc<Shared>,
    resource: &str,
    count: usize,
    affinity: Option<Nodes>,
    reuse: &BTreeSet<String>,
) -> Result<Vec<String>, AdmissionError> {
    let (mut chosen, mut free, aligned, endpoint) = shared.with(|manager| {
        let mut chosen = manager.shuffle(reuse);
        chosen.truncate(count);
        let free = without(manager, resource, &manager.held.in_use(resource));
        let free = manager.shuffle(&free);
        let list = manager.list(resource);
        let nodes = |id: &String| list.and_then(|list| list.get(id)).and_then(topology::nodes_of);
        let is_aligned = |id: &&String| nodes(id).is_some_and(|nodes| nodes & affinity.unwrap_or(0) != 0);
        let aligned: Vec<String> = free.iter().filter(is_aligned).cloned().collect();
        (chosen, free, aligned, endpoint(manager, resource))
    });
    let needed = count - chosen.len();
    if needed == 0 {
        return Ok(chosen);
    }
    if free.len() < needed {
        let available = free.len();
        return Err(AdmissionError::Kubelet {
            reason: format!(
                "requested number of devices unavailable for {resource}. Requested: {needed}, Available: {available}"
            ),
        });
    }
    if needed < aligned.len() {
        free = aligned;
    } else {
        chosen.extend(aligned);
    }
    if chosen.len() == count {
        return Ok(chosen);
    }
    let mut preferred = Vec::new();
    let offered = shared.with(|manager| manager.options(resource));
    if offered.is_some_and(|options| options.get_preferred_allocation_available) {
        let available = free.iter().chain(&chosen).cloned().collect::<BTreeSet<_>>();
        let available = shared.with(|manager| manager.shuffle(&available));
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
    let takes_cdi = shared.settings.version >= TAKES_CDI;
    let cdi_devices = if takes_cdi { response.cdi_devices } else { Vec::new() };
    let response = api::ContainerAllocateResponse { cdi_devices, ..response };
    Ok(shared.change(|manager| {
        manager.dereference(resource, &ids);
        let ids = ids.into_iter().map(|id| (id.clone(), manager.numa(resource, &id))).collect();
        Allocation { ids, response }
    }))
}

/// Before each start of a container, also of one that starts again, if the plugin wants to be told.
async fn pre_start(
    shared: &Arc<Shared>,
    pod: &PodRecord,
    container: &ContainerSpec,
) -> Result<(), AdmissionError> {
    let held =
        shared.with(|manager| manager.held.container(&pod.uid, &container.name).cloned().unwrap_or_default());
    for (resource, allocation) in held {
        let endpoint = shared.with(|manager| {
            if !manager.endpoints.contains_key(&resource) {
                let what = "endpoint not found in cache for a registered resource";
                return Err(AdmissionError::Kubelet { reason: format!("{what}: {resource}") });
            }
            let required = manager.options(&resource).is_some_and(|options| options.pre_start_required);
            required.then(|| endpoint(manager, &resource)).transpose()
        })?;
        let Some(mut endpoint) = endpoint else { continue };
        shared.with(|manager| manager.calls(&resource).pre_start += 1);
        let devices_ids = allocation.ids.into_keys().collect();
        let call = endpoint.plugin.pre_start_container(api::PreStartContainerRequest { devices_ids });
        bounded(PRE_START_LIMIT, &resource, "PreStartContainer", call).await?;
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
