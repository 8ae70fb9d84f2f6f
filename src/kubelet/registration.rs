//! `v1beta1.Registration`: telling the kubelet where a resource is served.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::transport::Endpoint;

use super::api::deviceplugin as wire;
use super::plugin::options;
use crate::resource::ResourceName;

/// The one version of the API there is (`pkg/apis/deviceplugin/v1beta1/constants.go`).
const VERSION: &str = "v1beta1";

const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// The kubelet takes up to 10 s to dial us before it answers.
const REGISTER_LIMIT: Duration = Duration::from_secs(15);

/// A registration did not come about.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegisterError {
    #[error("cannot connect to the kubelet at {}: {}", socket.display(), chain(source))]
    Connect { socket: PathBuf, source: tonic::transport::Error },
    #[error("the kubelet at {} did not answer within {limit:?}", socket.display())]
    NoAnswer { socket: PathBuf, limit: Duration },
    #[error("the kubelet refused: {} ({:?})", source.message(), source.code())]
    Refused { source: Box<tonic::Status> },
}

/// Registers `resource`, which has to be served already on the socket called `endpoint` in the same folder: the
/// kubelet calls it before it answers.
pub(super) async fn register(
    kubelet_socket: &Path,
    resource: &ResourceName,
    endpoint: &str,
) -> Result<(), RegisterError> {
    // tonic's own limits end with an answer's beginning.
    let limit = CONNECT_LIMIT + REGISTER_LIMIT;
    timeout(limit, ask(kubelet_socket, resource, endpoint))
        .await
        .unwrap_or_else(|_| Err(RegisterError::NoAnswer { socket: kubelet_socket.to_owned(), limit }))
}

/// Whether the kubelet accepts connections; one that ended may leave its socket's file behind.
pub(super) async fn is_alive(kubelet_socket: &Path) -> bool {
    matches!(timeout(CONNECT_LIMIT, UnixStream::connect(kubelet_socket)).await, Ok(Ok(_)))
}

async fn ask(kubelet_socket: &Path, resource: &ResourceName, endpoint: &str) -> Result<(), RegisterError> {
    let connect_error = |source| RegisterError::Connect { socket: kubelet_socket.to_owned(), source };
    let channel = Endpoint::from_shared(format!("unix:{}", kubelet_socket.display()))
        .map_err(connect_error)?
        .connect_timeout(CONNECT_LIMIT)
        .timeout(REGISTER_LIMIT)
        .connect()
        .await
        .map_err(connect_error)?;
    let request = wire::RegisterRequest {
        version: VERSION.to_owned(),
        endpoint: endpoint.to_owned(),
        resource_name: resource.to_string(),
        options: Some(options()),
    };
    let answer = wire::registration_client::RegistrationClient::new(channel).register(request).await;
    answer.map(drop).map_err(|status| RegisterError::Refused { source: Box::new(status) })
}

/// tonic's own text is only "transport error"; what happened is further down.
fn chain(error: &tonic::transport::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = error.to_string();
        source = error.source();
    }
    text
}
