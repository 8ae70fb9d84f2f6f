//! One gRPC server on one socket: bind, serve, end the streams, finish the calls, unlink.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use super::Context;
use super::api::deviceplugin::device_plugin_server::DevicePluginServer;
use super::offer::Offer;
use super::plugin::Plugin;
use crate::throttle::Throttle;

/// Connections that one server accepts at a time. The kubelet dials once per registration, before anybody else can
/// know the socket's name, so whoever comes later cannot crowd it out.
const MAX_CONNECTIONS: usize = 16;

/// How long calls in flight may take to finish when the server ends.
const FINISH: Duration = Duration::from_millis(500);

/// The socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {}", path.display())]
pub(super) struct BindError {
    path: PathBuf,
    source: io::Error,
}

/// A server that is up.
#[derive(Debug)]
pub(super) struct Server {
    path: PathBuf,
    streams: watch::Receiver<usize>,
    calls: Arc<AtomicU64>,
    accepted: Arc<AtomicU64>,
    connections: TaskTracker,
    /// Ends the streams, and leaves it to the clients to close their connections.
    closing: CancellationToken,
    /// Ends the connections.
    ending: CancellationToken,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Server {
    /// Binds `path` and serves `offer` on it. Once this returns, the kubelet can connect.
    pub(super) fn start(path: PathBuf, offer: Arc<Offer>, context: &Context) -> Result<Self, BindError> {
        let listener = match UnixListener::bind(&path) {
            Ok(listener) => listener,
            Err(source) => return Err(BindError { path, source }),
        };
        let streams = watch::Sender::new(0);
        let calls = Arc::new(AtomicU64::new(0));
        let accepted = Arc::new(AtomicU64::new(0));
        let connections = TaskTracker::new();
        let (closing, ending) = (CancellationToken::new(), CancellationToken::new());
        let plugin = Plugin {
            offer,
            streams: streams.clone(),
            calls: Arc::clone(&calls),
            closing: closing.clone(),
            events: context.events.clone(),
            metrics: context.metrics.clone(),
        };
        let (sender, incoming) = mpsc::channel(1);
        let door = Door {
            listener,
            allowed_uids: context.allowed_uids.clone(),
            connections: connections.clone(),
            accepted: Arc::clone(&accepted),
        };
        // Ends when the server below has gone and with it the channel.
        tokio::spawn(door.accept(sender));
        let serving = tonic::transport::Server::builder()
            .add_service(DevicePluginServer::new(plugin))
            .serve_with_incoming_shutdown(ReceiverStream::new(incoming), ending.clone().cancelled_owned());
        let task = tokio::spawn(serving);
        let streams = streams.subscribe();
        Ok(Self { path, streams, calls, accepted, connections, closing, ending, task })
    }

    /// How many `ListAndWatch` streams are open, and a signal when that changes.
    pub(super) fn streams(&self) -> watch::Receiver<usize> {
        self.streams.clone()
    }

    /// Whether somebody connected and could not make a single call.
    pub(super) fn refused_a_client(&self) -> bool {
        self.accepted.load(Ordering::Relaxed) > 0 && self.calls.load(Ordering::Relaxed) == 0
    }

    /// Whether the socket's file is still where it was made.
    pub(super) fn is_reachable(&self) -> bool {
        self.path.exists()
    }

    /// Ends the streams, removes the socket, waits until every client has closed its connection or `patience`
    /// is over, and finishes the calls in flight.
    pub(super) async fn close(mut self, patience: Duration) {
        self.closing.cancel();
        self.remove_socket();
        self.connections.close();
        if timeout(patience, self.connections.wait()).await.is_err() {
            debug!(socket = %self.path.display(), "clients keep their connections open");
        }
        self.ending.cancel();
        match timeout(FINISH, &mut self.task).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => {
                warn!(socket = %self.path.display(), %error, "the server ended with an error");
            }
            Ok(Err(error)) => warn!(socket = %self.path.display(), %error, "the server's task failed"),
            Err(_) => debug!(socket = %self.path.display(), "calls in flight were cut off"),
        }
    }

    fn remove_socket(&self) {
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(socket = %self.path.display(), %error, "cannot remove our socket");
        }
    }
}

impl Drop for Server {
    /// A server that nobody closes, because its endpoint was stopped on the way, leaves nothing behind either.
    fn drop(&mut self) {
        self.closing.cancel();
        self.ending.cancel();
        self.task.abort();
        self.remove_socket();
    }
}

/// Lets allowed users in, as many connections at a time as are allowed.
struct Door {
    listener: UnixListener,
    allowed_uids: HashSet<u32>,
    connections: TaskTracker,
    accepted: Arc<AtomicU64>,
}

impl Door {
    async fn accept(self, incoming: mpsc::Sender<io::Result<Connection>>) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        // Whoever may reach the socket may connect as often as it likes.
        let (mut lines, mut refused) = (Throttle::default(), 0_u64);
        loop {
            let stream = tokio::select! {
                () = incoming.closed() => return,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Most likely no file descriptors are left; they may be in a moment.
                        if lines.ready() {
                            warn!(%error, "cannot accept a connection");
                        }
                        sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let uid = stream.peer_cred().map(|peer| peer.uid());
            let is_allowed = uid.as_ref().is_ok_and(|uid| self.allowed_uids.contains(uid));
            let permit = Arc::clone(&permits).try_acquire_owned().ok().filter(|_| is_allowed);
            let Some(permit) = permit else {
                refused += 1;
                if lines.ready() {
                    let since_last_line = std::mem::take(&mut refused);
                    if is_allowed {
                        warn!(
                            since_last_line,
                            limit = MAX_CONNECTIONS,
                            "refused a connection: too many are open"
                        );
                    } else {
                        warn!(
                            since_last_line,
                            ?uid,
                            "refused a connection: only root, our own user and --allowed-uid may connect"
                        );
                    }
                }
                continue;
            };
            self.accepted.fetch_add(1, Ordering::Relaxed);
            let connection = Connection { stream, _permit: permit, _open: self.connections.token() };
            if incoming.send(Ok(connection)).await.is_err() {
                return;
            }
        }
    }
}

/// A client's connection; counted until it is dropped.
#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    _permit: OwnedSemaphorePermit,
    _open: TaskTrackerToken,
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
