//! Metrics over HTTP: read only, and little of it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::metrics::Metrics;
use crate::supervisor::Snapshot;

/// What `prometheus-client` writes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Scrapers are few; whoever opens more waits.
const MAX_CONNECTIONS: usize = 16;

/// How long a client may take over its request.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// Answers on `listener` for as long as the program runs.
pub(crate) async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    _shown: watch::Receiver<Option<Arc<Snapshot>>>,
) {
    if let Ok(address) = listener.local_addr() {
        info!(%address, "serving metrics");
    }
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Most likely no file descriptors are left; they may be in a moment.
                warn!(%error, "cannot accept a connection for metrics");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let metrics = metrics.clone();
        // Bounded by the limit on a request, and by one request per connection.
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(|request| {
                let answer = answer(&request, &metrics);
                async { Ok::<_, Infallible>(answer) }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(READ_LIMIT).keep_alive(false);
            if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
                debug!(%error, "a connection for metrics ended early");
            }
        });
    }
}

/// Binds `address`.
pub(crate) async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

fn answer(request: &Request<Incoming>, metrics: &Metrics) -> Response<String> {
    let (status, header, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            (StatusCode::OK, (CONTENT_TYPE, OPEN_METRICS), metrics.text())
        }
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, (ALLOW, "GET, HEAD"), String::new()),
        _ => (StatusCode::NOT_FOUND, (CONTENT_TYPE, "text/plain"), "there is /metrics\n".to_owned()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header.0, hyper::header::HeaderValue::from_static(header.1));
    response
}
