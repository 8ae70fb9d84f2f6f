//! The five calls of `v1beta1.DevicePlugin`, for one resource, answered from its [`Offer`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::debug;

use super::EndpointEvent;
use super::api::deviceplugin as wire;
use super::offer::{List, Offer};
use crate::metrics::Metrics;
use crate::resource::allocate::{AllocateError, Answer};
use crate::resource::{Device, DeviceId};

/// Streams that one server keeps open. The kubelet needs one, and has it first: each registration has a server of
/// its own.
const MAX_STREAMS: usize = 8;

/// The least time between two lists on one stream. The kubelet writes a file for each, so a burst of changes
/// goes out as its first and its last.
const COALESCE: Duration = Duration::from_millis(50);

/// How long an `Allocate` waits for a look at the driver, where one is needed.
const DOUBT_LIMIT: Duration = Duration::from_secs(2);

/// What the kubelet calls healthy and unhealthy (its `pkg/apis/deviceplugin/v1beta1/constants.go`).
const HEALTHY: &str = "Healthy";
const UNHEALTHY: &str = "Unhealthy";

#[derive(Debug, Clone)]
pub(super) struct Plugin {
    pub(super) offer: Arc<Offer>,
    /// How many `ListAndWatch` streams are open.
    pub(super) streams: watch::Sender<usize>,
    /// Calls of any kind that arrived, which a client that cannot speak to us never makes.
    pub(super) calls: Arc<AtomicU64>,
    /// Ends the streams.
    pub(super) closing: CancellationToken,
    pub(super) events: mpsc::Sender<EndpointEvent>,
    pub(super) metrics: Metrics,
}

pub(super) fn options() -> wire::DevicePluginOptions {
    wire::DevicePluginOptions { pre_start_required: false, get_preferred_allocation_available: true }
}

#[tonic::async_trait]
impl wire::device_plugin_server::DevicePlugin for Plugin {
    type ListAndWatchStream = ReceiverStream<Result<wire::ListAndWatchResponse, Status>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<wire::Empty>,
    ) -> Result<Response<wire::DevicePluginOptions>, Status> {
        self.count("GetDevicePluginOptions");
        Ok(Response::new(options()))
    }

    async fn list_and_watch(
        &self,
        _: Request<wire::Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        self.count("ListAndWatch");
        let Some(open) = OpenStream::new(&self.streams) else {
            return Err(Status::resource_exhausted(format!(
                "{MAX_STREAMS} ListAndWatch streams are open already"
            )));
        };
        let (sender, receiver) = mpsc::channel(1);
        let lists = self.offer.subscribe();
        let closing = self.closing.clone();
        // The task ends with the stream: `stream` waits on its receiver, and `closing` ends it with the server.
        tokio::spawn(async move {
            let _open = open;
            tokio::select! {
                () = closing.cancelled() => {}
                () = sender.closed() => {}
                () = send_lists(lists, &sender) => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<wire::PreferredAllocationRequest>,
    ) -> Result<Response<wire::PreferredAllocationResponse>, Status> {
        self.count("GetPreferredAllocation");
        self.metrics.count_preferred_allocation(self.offer.resource());
        let answer = |container: &wire::ContainerPreferredAllocationRequest| {
            let size = usize::try_from(container.allocation_size).unwrap_or(0);
            let available = &container.available_device_i_ds;
            let must_include = &container.must_include_device_i_ds;
            wire::ContainerPreferredAllocationResponse {
                device_i_ds: self.offer.preferred(available, must_include, size),
            }
        };
        let container_responses = request.get_ref().container_requests.iter().map(answer).collect();
        Ok(Response::new(wire::PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<wire::AllocateRequest>,
    ) -> Result<Response<wire::AllocateResponse>, Status> {
        self.count("Allocate");
        let requests = request.into_inner().container_requests;
        let containers: Vec<_> = requests.into_iter().map(|container| container.devices_ids).collect();
        let began = Instant::now();
        let answer = self.allocate_in_time(&containers).await;
        let error = answer.as_ref().err().map(AllocateError::word);
        self.metrics.count_allocation(self.offer.resource(), began.elapsed(), error);
        match answer {
            Ok(answers) => {
                debug!(resource = %self.offer.resource(), devices = ?containers, "allocated");
                let container_responses = answers.into_iter().map(to_wire).collect();
                Ok(Response::new(wire::AllocateResponse { container_responses }))
            }
            Err(error) => {
                debug!(resource = %self.offer.resource(), %error, "refused an Allocate");
                self.report_stale(&error);
                Err(error.into())
            }
        }
    }

    async fn pre_start_container(
        &self,
        _: Request<wire::PreStartContainerRequest>,
    ) -> Result<Response<wire::PreStartContainerResponse>, Status> {
        self.count("PreStartContainer");
        Ok(Response::new(wire::PreStartContainerResponse {}))
    }
}

impl Plugin {
    fn count(&self, call: &'static str) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        debug!(resource = %self.offer.resource(), call, "called");
    }

    /// Answers at once, but where a capability file raises a doubt whether a slice is the one that is listed: then the
    /// driver is looked at, and the next list decides.
    async fn allocate_in_time(&self, containers: &[Vec<String>]) -> Result<Vec<Answer>, AllocateError> {
        let mut lists = self.offer.subscribe_silently();
        let deadline = Instant::now() + DOUBT_LIMIT;
        loop {
            match self.offer.allocate(containers) {
                Err(error @ AllocateError::Changed { .. }) => {
                    self.report_stale(&error);
                    if !matches!(timeout_at(deadline, lists.changed()).await, Ok(Ok(()))) {
                        return Err(error);
                    }
                }
                decided => return decided,
            }
        }
    }

    fn report_stale(&self, error: &AllocateError) {
        if let AllocateError::Gone { id, .. }
        | AllocateError::Changed { id, .. }
        | AllocateError::NodeMissing { id, .. } = error
        {
            let resource = self.offer.resource().clone();
            let event = EndpointEvent::Stale { resource, device: id.clone() };
            if self.events.try_send(event).is_err() {
                debug!("the supervisor has enough to look at already");
            }
        }
    }
}

/// Sends the list as it is, then each change of it, and once more when that is asked for, until the other side has gone.
async fn send_lists(
    mut lists: watch::Receiver<List>,
    sender: &mpsc::Sender<Result<wire::ListAndWatchResponse, Status>>,
) {
    let mut last = None;
    loop {
        // Much of what we know of a device does not go over the wire, and may change unseen.
        let (devices, repeats) = {
            let now = lists.borrow_and_update();
            (now.devices.iter().map(device_to_wire).collect::<Vec<_>>(), now.repeats)
        };
        let next = (devices.clone(), repeats);
        if last.as_ref() != Some(&next) {
            last = Some(next);
            if sender.send(Ok(wire::ListAndWatchResponse { devices })).await.is_err() {
                return;
            }
            tokio::time::sleep(COALESCE).await;
        }
        if lists.changed().await.is_err() {
            return;
        }
    }
}

fn device_to_wire(device: &Device) -> wire::Device {
    let DeviceId(id) = device.id.clone();
    let health = if device.is_healthy() { HEALTHY } else { UNHEALTHY };
    let topology = device
        .numa_node
        .map(|node| wire::TopologyInfo { nodes: vec![wire::NumaNode { id: i64::from(node) }] });
    wire::Device { id, health: health.to_owned(), topology }
}

fn to_wire(answer: Answer) -> wire::ContainerAllocateResponse {
    let path = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
    wire::ContainerAllocateResponse {
        envs: answer.envs.into_iter().collect(),
        devices: answer
            .nodes
            .into_iter()
            .map(|node| wire::DeviceSpec {
                container_path: path(node.container_path),
                host_path: path(node.host_path),
                permissions: "rw".to_owned(),
            })
            .collect(),
        mounts: answer
            .mounts
            .into_iter()
            .map(|(host, container)| wire::Mount {
                container_path: path(container),
                host_path: path(host),
                read_only: false,
            })
            .collect(),
        annotations: answer.annotations.into_iter().collect(),
        cdi_devices: answer.cdi_devices.into_iter().map(|name| wire::CdiDevice { name }).collect(),
    }
}

impl From<AllocateError> for Status {
    fn from(error: AllocateError) -> Self {
        let text = error.to_string();
        match error {
            AllocateError::Empty { .. }
            | AllocateError::Unknown { .. }
            | AllocateError::SeveralReplicas { .. } => Self::invalid_argument(text),
            AllocateError::Unhealthy { .. }
            | AllocateError::Gone { .. }
            | AllocateError::Changed { .. }
            | AllocateError::ChannelMissing { .. }
            | AllocateError::NodeMissing { .. } => Self::failed_precondition(text),
        }
    }
}

/// Counts a stream for as long as it lives.
struct OpenStream(watch::Sender<usize>);

impl OpenStream {
    fn new(streams: &watch::Sender<usize>) -> Option<Self> {
        let counted = streams.send_if_modified(|open| {
            let free = *open < MAX_STREAMS;
            *open += usize::from(free);
            free
        });
        counted.then(|| Self(streams.clone()))
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}
