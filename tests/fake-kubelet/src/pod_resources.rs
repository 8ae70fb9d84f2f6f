//! The podresources API: who holds which device.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tonic::{Request, Response, Status};

use crate::api::podresources::pod_resources_lister_server::PodResourcesLister;
use crate::api::podresources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerDevices, ContainerResources,
    GetPodResourcesRequest, GetPodResourcesResponse, ListPodResourcesRequest, ListPodResourcesResponse,
    NumaNode, PodResources, TopologyInfo,
};
use crate::pod::{Kind, Phase, PodRecord};
use crate::pod_devices::PodDevices;
use crate::shared::Shared;

/// The kubelet's limit on this API: so many queries per second …
const QUERIES_PER_SECOND: f64 = 100.0;
/// … and so many at once.
const BURST: f64 = 10.0;

/// From this minor version on, `List` leaves out pods that have ended.
const LISTS_ACTIVE_PODS: u32 = 34;
/// From this one on, it names sidecars.
const LISTS_SIDECARS: u32 = 29;
/// From this one on, `Get` is there without being asked for.
const HAS_GET: u32 = 34;

/// The service, for one life of the kubelet.
#[derive(Debug)]
pub(crate) struct PodResourcesService {
    shared: Arc<Shared>,
    bucket: Mutex<(f64, Instant)>,
}

impl PodResourcesService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, bucket: Mutex::new((BURST, Instant::now())) }
    }

    fn admit(&self) -> Result<(), Status> {
        self.shared.with(|manager| manager.history.pod_resources_calls += 1);
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let filled = bucket.0 + now.duration_since(bucket.1).as_secs_f64() * QUERIES_PER_SECOND;
        *bucket = (filled.min(BURST), now);
        if bucket.0 < 1.0 {
            return Err(Status::resource_exhausted("rejected by rate limit"));
        }
        bucket.0 -= 1.0;
        Ok(())
    }
}

#[tonic::async_trait]
impl PodResourcesLister for PodResourcesService {
    async fn list(
        &self,
        _request: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        self.admit()?;
        let version = self.shared.settings.version;
        let pod_resources = self.shared.change(|manager| {
            manager.update_allocated();
            let known = manager.pods.values().filter(|pod| pod.known);
            let listed = known.filter(|pod| pod.phase == Phase::Active || version < LISTS_ACTIVE_PODS);
            listed.map(|pod| pod_resources(pod, &manager.held, version)).collect::<Vec<_>>()
        });
        Ok(Response::new(ListPodResourcesResponse { pod_resources }))
    }

    async fn get_allocatable_resources(
        &self,
        _request: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        self.admit()?;
        let view = self.shared.view();
        let devices = view.resources.iter().flat_map(|(resource, seen)| {
            let healthy = seen.devices.values().filter(|device| device.healthy);
            healthy.map(|device| container_devices(resource, &device.id, device.numa))
        });
        Ok(Response::new(AllocatableResourcesResponse {
            devices: devices.collect(),
            ..AllocatableResourcesResponse::default()
        }))
    }

    async fn get(
        &self,
        request: Request<GetPodResourcesRequest>,
    ) -> Result<Response<GetPodResourcesResponse>, Status> {
        self.admit()?;
        let version = self.shared.settings.version;
        if version < HAS_GET {
            return Err(Status::unknown("PodResources API Get method disabled"));
        }
        let GetPodResourcesRequest { pod_name, pod_namespace } = request.into_inner();
        let found = self.shared.with(|manager| {
            let named =
                manager.pods.get(&pod_name).filter(|pod| pod.known && pod.spec.namespace == pod_namespace);
            named.map(|pod| pod_resources(pod, &manager.held, version))
        });
        let missing = || Status::unknown(format!("pod {pod_name} in namespace {pod_namespace} not found"));
        let pod_resources = Some(found.ok_or_else(missing)?);
        Ok(Response::new(GetPodResourcesResponse { pod_resources }))
    }
}

/// What the pod's containers hold: without its ordinary init containers, whose devices nobody is told of.
fn pod_resources(pod: &PodRecord, devices: &PodDevices, version: u32) -> PodResources {
    let named = pod.spec.in_order().filter(|container| match container.kind {
        Kind::Init => false,
        Kind::Sidecar => version >= LISTS_SIDECARS,
        Kind::Main => true,
    });
    let containers = named.map(|container| {
        let held = devices.container(&pod.uid, &container.name).into_iter().flatten();
        let devices = held.flat_map(|(resource, allocation)| {
            allocation.ids.iter().map(|(id, numa)| container_devices(resource, id, *numa))
        });
        ContainerResources {
            name: container.name.clone(),
            devices: devices.collect(),
            ..ContainerResources::default()
        }
    });
    PodResources {
        name: pod.spec.name.clone(),
        namespace: pod.spec.namespace.clone(),
        containers: containers.collect(),
    }
}

/// The kubelet sends one entry per device, not one per resource.
fn container_devices(resource: &str, id: &str, numa: Option<i64>) -> ContainerDevices {
    ContainerDevices {
        resource_name: resource.to_owned(),
        device_ids: vec![id.to_owned()],
        topology: numa.map(|id| TopologyInfo { nodes: vec![NumaNode { id }] }),
    }
}
