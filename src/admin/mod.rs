//! What can be seen of this program from outside, over HTTP: read only, and little of it.
//!
//! ```text
//!  supervisor ── Snapshot ──► state ──┬──► /devices           JSON
//!  kubelet ─── podresources ──────────┤    /                  a page
//!  Metrics (counters) ────────────────┴──► /metrics           Prometheus
//!  supervisor ◄── Pulse ── probes ───────► /livez, /readyz
//! ```
//!
//! Nobody who looks makes the supervisor wait, and nothing here changes anything.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};

pub(crate) mod client;
mod connections;
#[cfg(test)]
mod example;
mod holders;
mod page;
mod probes;
mod scrape;
mod state;
#[cfg(test)]
mod tests;

use self::connections::{Connections, Ticket};
use self::holders::Asker;
use self::probes::{Readiness, Silence, alive};
use crate::devices::state::NodeState;
use crate::metrics::Metrics;
use crate::supervisor::Snapshot;

/// How long a client may take over its request, and with the answer.
const READ_LIMIT: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(20);

/// The first and the longest wait between two attempts to listen.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

const PATHS: &str = "there is\n\
    /         the node as a picture\n\
    /devices  the same as JSON\n\
    /metrics  for Prometheus\n\
    /livez    whether this program goes on\n\
    /readyz   whether every resource is registered with the kubelet\n";

/// What the supervisor shows.
pub(crate) type Shown = watch::Receiver<Option<Arc<Snapshot>>>;

/// Answers at `address` for as long as the program runs. An address that cannot be had costs nothing else: devices are
/// served, and it is tried again.
pub(crate) async fn serve(address: SocketAddr, metrics: Metrics, shown: Shown) {
    serve_on(listen(address).await, metrics, shown).await;
}

async fn serve_on(listener: TcpListener, metrics: Metrics, shown: Shown) {
    if let Ok(address) = listener.local_addr() {
        info!(%address, "serving metrics, probes and a page over HTTP");
    }
    let window = Arc::new(Window {
        metrics,
        shown,
        silence: Silence::default(),
        asker: Asker::default(),
        name: node_name(),
    });
    let connections = Arc::new(Connections::default());
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Most likely no file descriptors are left; they may be in a moment.
                warn!(%error, "cannot accept a connection over HTTP");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let window = Arc::clone(&window);
        connections.open(|ticket| talk(stream, window, ticket));
        // A crowd that waits to be accepted must not end a connection whose request is there to be read.
        yield_now().await;
    }
}

async fn listen(address: SocketAddr) -> TcpListener {
    let mut wait = BACKOFF.0;
    loop {
        match bind(address).await {
            Ok(listener) => return listener,
            Err(error) => {
                error!(
                    %address, %error,
                    "--http-address: cannot listen there, so there are no metrics, probes and page; trying on"
                );
                sleep(wait).await;
                wait = (wait * 2).min(BACKOFF.1);
            }
        }
    }
}

/// Binds `address`; all of IPv4 where all addresses are meant and the machine has no IPv6.
async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    const NO_SUCH_FAMILY: i32 = 97;
    match TcpListener::bind(address).await {
        Err(error)
            if error.raw_os_error() == Some(NO_SUCH_FAMILY)
                && address.is_ipv6()
                && address.ip().is_unspecified() =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}

/// One request and its answer.
async fn talk(stream: TcpStream, window: Arc<Window>, ticket: Ticket) {
    let service = service_fn(|request: Request<Incoming>| {
        let window = Arc::clone(&window);
        if matches!(request.uri().path(), "/livez" | "/readyz") {
            ticket.is_probe();
        }
        async move { Ok::<_, Infallible>(window.answer(&request).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(READ_LIMIT).keep_alive(false);
    match timeout(LIMIT, server.serve_connection(TokioIo::new(stream), service)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a connection over HTTP ended early"),
        Err(_) => debug!("a connection over HTTP took too long"),
    }
}

/// What this pod's node is called, as far as it can be known from here.
fn node_name() -> String {
    let given = std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty());
    let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    given.or_else(host).map_or_else(|| "this node".to_owned(), |name| name.trim().to_owned())
}

/// All that answers are made of.
struct Window {
    metrics: Metrics,
    shown: Shown,
    silence: Silence,
    asker: Asker,
    name: String,
}

type Answer = (StatusCode, &'static str, String);

const PLAIN: &str = "text/plain; charset=utf-8";

impl Window {
    async fn answer(&self, request: &Request<Incoming>) -> Response<String> {
        let path = request.uri().path();
        let known = matches!(path, "/" | "/devices" | "/metrics" | "/livez" | "/readyz");
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let (status, content, body) = match path {
            _ if !known => (StatusCode::NOT_FOUND, PLAIN, PATHS.to_owned()),
            _ if !reads => (
                StatusCode::METHOD_NOT_ALLOWED,
                PLAIN,
                "GET and HEAD only: nothing can be changed here\n".to_owned(),
            ),
            "/livez" => self.livez().await,
            "/readyz" => self.readyz(),
            "/devices" => self.devices().await,
            "/metrics" => self.scrape(request).await,
            _ => self.page().await,
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let mut add = |name: HeaderName, value| {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        };
        add(CONTENT_TYPE, content);
        add(CACHE_CONTROL, "no-store");
        add(X_CONTENT_TYPE_OPTIONS, "nosniff");
        add(REFERRER_POLICY, "no-referrer");
        add(CONTENT_SECURITY_POLICY, page::SECURITY_POLICY);
        if status == StatusCode::METHOD_NOT_ALLOWED {
            add(ALLOW, "GET, HEAD");
        }
        response
    }

    fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.shown.borrow().clone()
    }

    /// The latest snapshot, and what is told of it.
    async fn look(&self) -> Option<(Arc<Snapshot>, NodeState)> {
        let snapshot = self.snapshot()?;
        let holders = self.asker.ask(&snapshot.pod_resources_socket).await;
        let state = state::of(&snapshot, &holders);
        Some((snapshot, state))
    }

    async fn livez(&self) -> Answer {
        let verdict = match self.snapshot() {
            // It has only just been started.
            None => alive(None),
            Some(snapshot) => alive(self.silence.listen(&snapshot.pulse).await),
        };
        match verdict {
            Ok(text) => (StatusCode::OK, PLAIN, text.to_owned()),
            Err(text) => (StatusCode::SERVICE_UNAVAILABLE, PLAIN, text),
        }
    }

    fn readyz(&self) -> Answer {
        match Readiness::of(self.snapshot().as_deref()).told() {
            Ok(text) => (StatusCode::OK, PLAIN, text),
            Err(text) => (StatusCode::SERVICE_UNAVAILABLE, PLAIN, text),
        }
    }

    async fn devices(&self) -> Answer {
        let Some((_, state)) = self.look().await else {
            return (StatusCode::SERVICE_UNAVAILABLE, PLAIN, "nothing is known yet\n".to_owned());
        };
        match serde_json::to_string_pretty(&state) {
            Ok(text) => (StatusCode::OK, "application/json", text + "\n"),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{error}\n")),
        }
    }

    async fn scrape(&self, request: &Request<Incoming>) -> Answer {
        let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
        let format = scrape::Format::accepted(accept.unwrap_or_default());
        let seen = self.look().await;
        let seen = seen.as_ref().map(|(snapshot, state)| (&*snapshot.driver, state));
        (StatusCode::OK, format.content_type(), scrape::text(&self.metrics, seen, format))
    }

    async fn page(&self) -> Answer {
        let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let seen = self.look().await;
        let state = seen.as_ref().map(|(_, state)| state);
        (StatusCode::OK, "text/html; charset=utf-8", page::page(&self.name, &time, state))
    }
}
