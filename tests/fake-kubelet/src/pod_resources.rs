//! The podresources API: who holds which device.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tonic::{Request, Response, Status};

use crate::api::podresources::pod_resources_lister_server::PodResourcesLister;
use crate::api::podresources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerDevices, ContainerResources,
    GetPodResourcesRequest, GetPodResourcesResponse, ListPodResourcesRequest, ListPodResourcesResponse,
    NumaNode, PodResources, TopologyInfo,
};
use crate::pod::PodRecord;
use crate::shared::Shared;

/// The kubelet's limit on this API: so many queries per second …
const QUERIES_PER_SECOND: f64 = 100.0;
/// … and so many at once.
const BURST: f64 = 10.0;

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
        let pod_resources = self.shared.with(|manager| {
            manager.pods.iter().map(|(name, record)| pod_resources(name, record)).collect::<Vec<_>>()
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
        let GetPodResourcesRequest { pod_name, pod_namespace } = request.into_inner();
        let found = self.shared.with(|manager| {
            let record = manager.pods.get(&pod_name).filter(|record| record.namespace == pod_namespace);
            record.map(|record| pod_resources(&pod_name, record))
        });
        let missing = || Status::unknown(format!("pod {pod_name} in namespace {pod_namespace} not found"));
        let pod_resources = Some(found.ok_or_else(missing)?);
        Ok(Response::new(GetPodResourcesResponse { pod_resources }))
    }
}

fn pod_resources(name: &str, record: &PodRecord) -> PodResources {
    let containers = record.containers.iter().map(|(container, held)| {
        let ids: BTreeMap<_, _> =
            held.iter().map(|(resource, allocation)| (resource, &allocation.ids)).collect();
        let devices = ids
            .into_iter()
            .flat_map(|(resource, ids)| ids.iter().map(|(id, numa)| container_devices(resource, id, *numa)));
        ContainerResources {
            name: container.clone(),
            devices: devices.collect(),
            ..ContainerResources::default()
        }
    });
    PodResources {
        name: name.to_owned(),
        namespace: record.namespace.clone(),
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
