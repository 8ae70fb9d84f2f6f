//! The smallest device plugin that can misbehave.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fake_kubelet::api;
use fake_kubelet::api::device_plugin_server::{DevicePlugin, DevicePluginServer};
use fake_kubelet::api::registration_client::RegistrationClient;
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};

/// A device in a list; `x:bad` is an unhealthy one, `x@1` is on NUMA node 1.
pub(crate) fn device(text: &str) -> api::Device {
    let (text, health) = match text.strip_suffix(":bad") {
        Some(text) => (text, api::UNHEALTHY),
        None => (text, api::HEALTHY),
    };
    let (id, node) = match text.split_once('@') {
        Some((id, node)) => (id, Some(node.parse().unwrap())),
        None => (text, None),
    };
    let topology = node.map(|id| api::TopologyInfo { nodes: vec![api::NumaNode { id }] });
    api::Device { id: id.to_owned(), health: health.to_owned(), topology }
}

/// One server, on one socket.
pub(crate) struct TestPlugin {
    pub(crate) resource: String,
    pub(crate) name: String,
    folder: PathBuf,
    state: Arc<State>,
    serving: CancellationToken,
}

struct State {
    list: watch::Sender<Vec<api::Device>>,
    streams: Mutex<CancellationToken>,
    /// Open connections from kubelets.
    connections: AtomicUsize,
    options: api::DevicePluginOptions,
    /// What `GetPreferredAllocation` answers.
    preferred: Mutex<Result<Vec<String>, Status>>,
    asked: Mutex<Vec<api::ContainerPreferredAllocationRequest>>,
    allocated: Mutex<Vec<Vec<String>>>,
    /// Sent as the new list in the middle of an `Allocate`.
    during_allocate: Mutex<Option<Vec<api::Device>>>,
}

impl TestPlugin {
    /// Serves on `<folder>/<name>`, without registering.
    pub(crate) fn serve(folder: &Path, name: &str, resource: &str, devices: &[&str]) -> Self {
        let options = api::DevicePluginOptions::default();
        Self::serve_with(folder, name, resource, devices, options)
    }

    pub(crate) fn serve_with(
        folder: &Path,
        name: &str,
        resource: &str,
        devices: &[&str],
        options: api::DevicePluginOptions,
    ) -> Self {
        let state = Arc::new(State {
            list: watch::Sender::new(devices.iter().map(|text| device(text)).collect()),
            streams: Mutex::default(),
            connections: AtomicUsize::new(0),
            options,
            preferred: Mutex::new(Ok(Vec::new())),
            asked: Mutex::default(),
            allocated: Mutex::default(),
            during_allocate: Mutex::default(),
        });
        let serving = CancellationToken::new();
        let listener = UnixListener::bind(folder.join(name)).unwrap();
        let counted = Arc::clone(&state);
        let connections = UnixListenerStream::new(listener).map(move |accepted| {
            let (inner, outer) = tokio::io::duplex(1 << 16);
            let counted = Arc::clone(&counted);
            counted.connections.fetch_add(1, Ordering::SeqCst);
            let (mut accepted, mut outer) = (accepted?, outer);
            tokio::spawn(async move {
                // Ends when the kubelet has closed its end.
                tokio::io::copy_bidirectional(&mut accepted, &mut outer).await.ok();
                counted.connections.fetch_sub(1, Ordering::SeqCst);
            });
            Ok::<_, std::io::Error>(inner)
        });
        let server = Server::builder()
            .add_service(DevicePluginServer::new(Service(Arc::clone(&state))))
            .serve_with_incoming(connections);
        tokio::spawn(serving.clone().run_until_cancelled_owned(server));
        Self {
            resource: resource.to_owned(),
            name: name.to_owned(),
            folder: folder.to_owned(),
            state,
            serving,
        }
    }

    pub(crate) async fn register(&self) -> Result<(), Status> {
        register(&self.folder, api::VERSION, &self.name, &self.resource).await
    }

    pub(crate) fn send(&self, devices: &[&str]) {
        self.state.list.send_replace(devices.iter().map(|text| device(text)).collect());
    }

    /// Ends the streams that are open now, in good order.
    pub(crate) fn end_streams(&self) {
        std::mem::take(&mut *self.state.streams.lock().unwrap()).cancel();
    }

    pub(crate) fn open_streams(&self) -> usize {
        self.state.list.receiver_count()
    }

    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn send_during_allocate(&self, devices: &[&str]) {
        let devices = devices.iter().map(|text| device(text)).collect();
        *self.state.during_allocate.lock().unwrap() = Some(devices);
    }

    pub(crate) fn prefer(&self, answer: Result<Vec<String>, Status>) {
        *self.state.preferred.lock().unwrap() = answer;
    }

    pub(crate) fn asked(&self) -> Vec<api::ContainerPreferredAllocationRequest> {
        self.state.asked.lock().unwrap().clone()
    }

    pub(crate) fn allocated(&self) -> Vec<Vec<String>> {
        self.state.allocated.lock().unwrap().clone()
    }
}

impl Drop for TestPlugin {
    fn drop(&mut self) {
        self.end_streams();
        self.serving.cancel();
    }
}

/// A bare `Register`, of whatever kind.
pub(crate) async fn register(
    folder: &Path,
    version: &str,
    endpoint: &str,
    resource: &str,
) -> Result<(), Status> {
    let socket = folder.join("kubelet.sock");
    let connector = tower::service_fn(move |_uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let request = api::RegisterRequest {
        version: version.to_owned(),
        endpoint: endpoint.to_owned(),
        resource_name: resource.to_owned(),
        options: None,
    };
    RegistrationClient::new(channel).register(request).await.map(drop)
}

struct Service(Arc<State>);

#[tonic::async_trait]
impl DevicePlugin for Service {
    async fn get_device_plugin_options(
        &self,
        _request: Request<api::Empty>,
    ) -> Result<Response<api::DevicePluginOptions>, Status> {
        Ok(Response::new(self.0.options))
    }

    type ListAndWatchStream = ReceiverStream<Result<api::ListAndWatchResponse, Status>>;

    async fn list_and_watch(
        &self,
        _request: Request<api::Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let end = self.0.streams.lock().unwrap().clone();
        let mut lists = self.0.list.subscribe();
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let devices = lists.borrow_and_update().clone();
                if sender.send(Ok(api::ListAndWatchResponse { devices })).await.is_err() {
                    return;
                }
                tokio::select! {
                    changed = lists.changed() => if changed.is_err() { return },
                    () = end.cancelled() => return,
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<api::PreferredAllocationRequest>,
    ) -> Result<Response<api::PreferredAllocationResponse>, Status> {
        self.0.asked.lock().unwrap().extend(request.into_inner().container_requests);
        let device_i_ds = self.0.preferred.lock().unwrap().clone()?;
        let container_responses = vec![api::ContainerPreferredAllocationResponse { device_i_ds }];
        Ok(Response::new(api::PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<api::AllocateRequest>,
    ) -> Result<Response<api::AllocateResponse>, Status> {
        let mut container_responses = Vec::new();
        for container in request.into_inner().container_requests {
            self.0.allocated.lock().unwrap().push(container.devices_ids.clone());
            if container.devices_ids.iter().any(|id| id == "refuse") {
                return Err(Status::failed_precondition("device refuse is gone"));
            }
            let devices = container.devices_ids.iter().map(|id| {
                let path = format!("/dev/{id}");
                api::DeviceSpec {
                    container_path: path.clone(),
                    host_path: path,
                    permissions: "rw".to_owned(),
                }
            });
            let devices = devices.collect();
            let visible = ("VISIBLE".to_owned(), container.devices_ids.join(","));
            container_responses.push(api::ContainerAllocateResponse {
                envs: [visible].into(),
                devices,
                ..api::ContainerAllocateResponse::default()
            });
        }
        let list = self.0.during_allocate.lock().unwrap().take();
        if let Some(list) = list {
            self.0.list.send_replace(list);
            // Long enough for the kubelet to read it before the answer.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(Response::new(api::AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        _request: Request<api::PreStartContainerRequest>,
    ) -> Result<Response<api::PreStartContainerResponse>, Status> {
        Ok(Response::new(api::PreStartContainerResponse {}))
    }
}
