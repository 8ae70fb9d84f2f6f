//! A connection from the kubelet to one plugin socket.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::api::device_plugin_client::DevicePluginClient;
use crate::severable::Severable;

/// The back-off of the kubelet's gRPC library: a plugin that isn't there at the first try waits a second.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The client of one registration. It outlives its connection.
#[derive(Debug)]
pub(crate) struct Client {
    /// Tells registrations apart; grows.
    pub(crate) id: u64,
    pub(crate) resource: String,
    pub(crate) endpoint: String,
    connection: Mutex<Option<Connection>>,
}

/// A live connection, and the means to cut it.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) plugin: DevicePluginClient<Channel>,
    pub(crate) cut: CancellationToken,
}

impl Client {
    pub(crate) fn new(id: u64, resource: String, endpoint: String) -> Self {
        Self { id, resource, endpoint, connection: Mutex::default() }
    }

    pub(crate) fn set_connection(&self, connection: Connection) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
    }

    /// Closes the connection, if there is one; calls in flight fail.
    pub(crate) fn close(&self) {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(connection) = connection {
            connection.cut.cancel();
        }
    }
}

/// Connects to a plugin's socket, trying again until `limit` has passed, as the kubelet's gRPC library does.
pub(crate) async fn dial(
    socket: &Path,
    limit: Duration,
    cut: CancellationToken,
) -> Result<Connection, DialError> {
    let failed = |reason| DialError { socket: socket.display().to_string(), reason };
    let mut last = None;
    let tried = tokio::time::timeout(limit, async {
        let mut pause = FIRST_RETRY;
        loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => return stream,
                Err(error) => last = Some(error.to_string()),
            }
            tokio::time::sleep(pause).await;
            pause = pause.mul_f64(1.6);
        }
    });
    let stream = tokio::select! {
        tried = tried => match tried {
            Ok(stream) => stream,
            Err(_elapsed) => return Err(failed(last.unwrap_or_else(|| "context deadline exceeded".to_owned()))),
        },
        () = cut.cancelled() => return Err(failed("the kubelet stops".to_owned())),
    };

    let mut stream = Some(TokioIo::new(Severable::new(stream, cut.clone())));
    let connector = tower::service_fn(move |_uri| {
        // One connection per registration: once it has ended, it isn't made again.
        let taken = stream.take().ok_or_else(|| std::io::Error::other("the client connection is closing"));
        async move { taken }
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .map_err(|error| failed(error.to_string()))?;
    Ok(Connection { plugin: DevicePluginClient::new(channel), cut })
}

/// The plugin's socket could not be reached.
#[derive(Debug, thiserror::Error)]
#[error("failed to dial device plugin at {socket}: {reason}")]
pub(crate) struct DialError {
    socket: String,
    reason: String,
}
