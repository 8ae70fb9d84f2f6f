//! The fake itself: how it starts, stops, and starts again.

use std::future::Future;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::UnixListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;

use crate::api::podresources::pod_resources_lister_server::PodResourcesListerServer;
use crate::api::registration_server::RegistrationServer;
use crate::pod_resources::PodResourcesService;
use crate::registration::RegistrationService;
use crate::severable::Severable;
use crate::shared::{Settings, Shared};
use crate::topology::TopologyPolicy;
use crate::{checkpoint, readmission};

/// The name of the kubelet's sockets, in both folders.
const SOCKET: &str = "kubelet.sock";

/// The longest path that a Unix socket can have.
const MAX_SOCKET_PATH: usize = 107;

/// How long an end of life may take. Everything in it is cut, not asked.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A kubelet, as far as a device plugin can tell.
///
/// It lives until it is dropped; then its sockets and connections are gone. Several can live in one process.
#[derive(Debug)]
pub struct FakeKubelet {
    pub(crate) shared: Arc<Shared>,
    life: Mutex<Option<Life>>,
    /// Starts and stops wait for each other.
    changing: tokio::sync::Mutex<()>,
}

/// What exists between a start and a stop.
#[derive(Debug)]
struct Life {
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Why the fake can't do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KubeletError {
    /// A file operation failed.
    #[error("can't {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The path is longer than a Unix socket's may be.
    #[error("{path} is longer than the {MAX_SOCKET_PATH} bytes of a Unix socket's path")]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// What was waited for didn't happen.
    #[error("waited {limit:?} for {what}; {view}")]
    Timeout {
        /// How long.
        limit: Duration,
        /// For what.
        what: String,
        /// What was there instead.
        view: Box<crate::View>,
    },
    /// The kubelet's tasks didn't end.
    #[error("the kubelet's tasks didn't end within {STOP_LIMIT:?}")]
    Stuck,
}

/// Settings of a [`FakeKubelet`], each with a default that is the real kubelet's.
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    settings: Settings,
}

impl FakeKubelet {
    /// Starts a kubelet with the defaults: deletes every socket in the folder, then serves `kubelet.sock` in it.
    pub async fn start(plugin_dir: impl AsRef<Path>) -> Result<Self, KubeletError> {
        Self::builder(plugin_dir).start().await
    }

    /// A kubelet with other settings.
    pub fn builder(plugin_dir: impl AsRef<Path>) -> Builder {
        Builder {
            settings: Settings {
                folder: plugin_dir.as_ref().to_owned(),
                pod_resources: None,
                emulate_race: true,
                policy: TopologyPolicy::None,
                version: 36,
                api_pods_after: Some(Duration::from_secs(1)),
                dial_limit: Duration::from_secs(10),
                call_limit: Duration::from_mins(1),
                wait_limit: Duration::from_secs(20),
                forget_after: Duration::from_mins(5),
                slow_reader: None,
            },
        }
    }

    /// The folder of the sockets.
    pub fn plugin_dir(&self) -> &Path {
        &self.shared.settings.folder
    }

    /// The socket that plugins register at.
    pub fn socket(&self) -> PathBuf {
        self.shared.settings.folder.join(SOCKET)
    }

    /// The podresources socket, if one is served.
    pub fn pod_resources_socket(&self) -> Option<&Path> {
        self.shared.settings.pod_resources.as_deref()
    }

    /// Ends the kubelet in good order: connections are closed, `kubelet.sock` is removed.
    ///
    /// Pods go on running. The plugins' sockets stay; only the next start deletes them.
    pub async fn stop(&self) -> Result<(), KubeletError> {
        let _changing = self.changing.lock().await;
        self.end().await?;
        self.remove_sockets();
        Ok(())
    }

    /// Ends the kubelet as a crash does: connections break, and `kubelet.sock` stays, with nobody behind it.
    pub async fn kill(&self) -> Result<(), KubeletError> {
        let _changing = self.changing.lock().await;
        self.end().await
    }

    /// Stops the kubelet if it runs, and starts it again.
    ///
    /// Every socket in the folder is deleted, and all is forgotten but the checkpoint: the pods' devices and answers, and
    /// the names of the resources, with no devices until their plugins have registered again. The pods go on running,
    /// and are admitted again: static ones at once, the API server's [later](Self::api_pods_after).
    pub async fn restart(&self) -> Result<(), KubeletError> {
        let _changing = self.changing.lock().await;
        self.end().await?;
        self.begin().await
    }

    /// From now on the API server's pods are there so long after a start; `None`: they never are, as without an API
    /// server. Zero delivers them at once to a kubelet that waits for them.
    pub fn api_pods_after(&self, pause: Option<Duration>) {
        self.shared.api_pods_after.send_replace(pause);
    }

    /// Disconnects the current client of a resource while the kubelet stays up. False if there is none.
    pub fn drop_stream(&self, resource: &str) -> bool {
        self.shared.change(|manager| {
            let Some(client) = manager.clients.remove(resource) else { return false };
            client.close();
            manager.plugin_disconnected(resource, Instant::now());
            true
        })
    }

    /// In the kubelet's order: podresources, the checkpoint, the sockets of others, its own, then the pods.
    async fn begin(&self) -> Result<(), KubeletError> {
        let Settings { folder, pod_resources, .. } = &self.shared.settings;
        create_folder(folder)?;
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();

        if let Some(socket) = pod_resources {
            socket.parent().map_or(Ok(()), create_folder)?;
            remove_if_there(socket)?;
            let connections = incoming(bind(socket)?, &stop);
            let service = PodResourcesListerServer::new(PodResourcesService::new(Arc::clone(&self.shared)));
            let server = Server::builder().add_service(service);
            spawn_server(&tasks, &stop, server.serve_with_incoming(connections));
        }

        let checkpoint = checkpoint::read(folder);
        self.shared.change(|manager| {
            let read = checkpoint.unwrap_or_else(|error| {
                // The kubelet logs this and goes on without.
                manager.history.complaints.push(format!("reading the checkpoint: {error}"));
                None
            });
            manager.start(Instant::now(), read.unwrap_or_default());
        });

        delete_sockets(folder).await?;
        let listener = bind(&folder.join(SOCKET))?;
        let service = RegistrationService {
            shared: Arc::clone(&self.shared),
            stop: stop.clone(),
            tasks: tasks.clone(),
        };
        let connections = incoming(listener, &stop);
        let server = Server::builder().add_service(RegistrationServer::new(service));
        spawn_server(&tasks, &stop, server.serve_with_incoming(connections));

        let shared = Arc::clone(&self.shared);
        let stopped = stop.clone();
        tasks.spawn(async move { stopped.run_until_cancelled_owned(readmission::run(&shared)).await });
        *self.life.lock().unwrap_or_else(PoisonError::into_inner) = Some(Life { stop, tasks });
        Ok(())
    }

    async fn end(&self) -> Result<(), KubeletError> {
        let Some(tasks) = self.cut() else { return Ok(()) };
        tokio::time::timeout(STOP_LIMIT, tasks.wait()).await.map_err(|_elapsed| KubeletError::Stuck)
    }

    /// Cuts everything at once, without waiting for the tasks to notice.
    fn cut(&self) -> Option<TaskTracker> {
        let life = self.life.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        life.stop.cancel();
        life.tasks.close();
        self.shared.change(|manager| manager.stop(Instant::now()));
        Some(life.tasks)
    }

    fn remove_sockets(&self) {
        // Best effort: the folder may be gone already, with the test's other files.
        std::fs::remove_file(self.socket()).ok();
        if let Some(socket) = self.pod_resources_socket() {
            std::fs::remove_file(socket).ok();
        }
    }
}

impl Drop for FakeKubelet {
    fn drop(&mut self) {
        if self.cut().is_some() {
            self.remove_sockets();
        }
    }
}

impl Builder {
    /// Serves the podresources API too, at this socket, or at `kubelet.sock` in this folder.
    pub fn pod_resources(mut self, path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        let is_socket = path.extension().is_some_and(|extension| extension == "sock");
        self.settings.pod_resources = Some(if is_socket { path.to_owned() } else { path.join(SOCKET) });
        self
    }

    /// Whether the end of an old stream disconnects the newest client, as in kubelets up to 1.36. On by default.
    pub fn emulate_reregistration_race(mut self, yes: bool) -> Self {
        self.settings.emulate_race = yes;
        self
    }

    /// The policy of the Topology Manager. With any but `none` it looks up the devices of running pods.
    pub fn topology_policy(mut self, policy: TopologyPolicy) -> Self {
        self.settings.policy = policy;
        self
    }

    /// The kubelet's version: `36` is the newest patch release of Kubernetes 1.36, which is the default.
    pub fn version(mut self, minor: u32) -> Self {
        self.settings.version = minor;
        self
    }

    /// How long after a restart the API server's pods are there (1 s); `None`: until they are
    /// [delivered](FakeKubelet::api_pods_after).
    pub fn api_pods_after(mut self, pause: Option<Duration>) -> Self {
        self.settings.api_pods_after = pause;
        self
    }

    /// How long a plugin may take to be there while its `Register` waits (10 s).
    pub fn dial_limit(mut self, limit: Duration) -> Self {
        self.settings.dial_limit = limit;
        self
    }

    /// How long `Allocate` and `GetPreferredAllocation` may take (60 s; the kubelet sets no limit).
    pub fn call_limit(mut self, limit: Duration) -> Self {
        self.settings.call_limit = limit;
        self
    }

    /// How long the `wait_for…` methods wait (20 s).
    pub fn wait_limit(mut self, limit: Duration) -> Self {
        self.settings.wait_limit = limit;
        self
    }

    /// After how long the resource of a stopped endpoint is forgotten (5 min).
    pub fn forget_after(mut self, grace: Duration) -> Self {
        self.settings.forget_after = grace;
        self
    }

    /// Takes this long over every list that it reads.
    pub fn slow_reader(mut self, pause: Duration) -> Self {
        self.settings.slow_reader = Some(pause);
        self
    }

    /// Starts the kubelet.
    pub async fn start(self) -> Result<FakeKubelet, KubeletError> {
        let kubelet = FakeKubelet {
            shared: Shared::new(self.settings),
            life: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
        };
        kubelet.begin().await?;
        Ok(kubelet)
    }
}

fn spawn_server(
    tasks: &TaskTracker,
    stop: &CancellationToken,
    serving: impl Future<Output = Result<(), tonic::transport::Error>> + Send + 'static,
) {
    let stop = stop.clone();
    tasks.spawn(async move { stop.run_until_cancelled_owned(serving).await });
}

/// The connections of a listener; all break when the kubelet stops.
fn incoming(
    listener: UnixListener,
    stop: &CancellationToken,
) -> impl tokio_stream::Stream<Item = std::io::Result<Severable>> + Send + 'static {
    let stop = stop.clone();
    UnixListenerStream::new(listener)
        .map(move |accepted| accepted.map(|stream| Severable::new(stream, stop.clone())))
}

fn bind(socket: &Path) -> Result<UnixListener, KubeletError> {
    if socket.as_os_str().len() > MAX_SOCKET_PATH {
        return Err(KubeletError::PathTooLong { path: socket.to_owned() });
    }
    UnixListener::bind(socket).map_err(failed("bind", socket))
}

fn create_folder(folder: &Path) -> Result<(), KubeletError> {
    std::fs::create_dir_all(folder).map_err(failed("create", folder))
}

/// Deletes every socket in the folder, whoever's it is; other files stay.
async fn delete_sockets(folder: &Path) -> Result<(), KubeletError> {
    let mut entries = tokio::fs::read_dir(folder).await.map_err(failed("read", folder))?;
    while let Some(entry) = entries.next_entry().await.map_err(failed("read", folder))? {
        if entry.file_type().await.is_ok_and(|kind| kind.is_socket()) {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<(), KubeletError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> KubeletError {
    let path = path.to_owned();
    move |source| KubeletError::Io { action, path, source }
}
