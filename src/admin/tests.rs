use std::collections::BTreeMap;
use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::*;
use crate::nvml;
use crate::resource::MigStrategy;
use crate::supervisor::Pulse;

/// A generous bound for what takes no time.
const BOUND: Duration = Duration::from_mins(1);

fn snapshot(pulse: mpsc::Sender<Pulse>) -> Snapshot {
    Snapshot {
        inventory: None,
        no_driver: None,
        no_answer: None,
        on_hold: true,
        strategy: MigStrategy::None,
        resources: BTreeMap::new(),
        offered: Vec::new(),
        withheld: Vec::new(),
        warnings: Vec::new(),
        recovery: BTreeMap::new(),
        driver_root: PathBuf::new(),
        held_unknown: None,
        pod_resources_socket: PathBuf::new(),
        driver: Arc::new(nvml::Status::default()),
        pulse,
    }
}

async fn ask(address: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    stream
}

async fn answer(mut stream: TcpStream) -> String {
    let mut text = String::new();
    timeout(BOUND, stream.read_to_string(&mut text)).await.expect("no answer").unwrap();
    text
}

#[tokio::test]
async fn a_probe_that_is_being_answered_is_not_ended_for_the_sake_of_others() {
    let (pulse, mut pulses) = mpsc::channel(4);
    let (_show, shown) = watch::channel(Some(Arc::new(snapshot(pulse))));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(serve_on(listener, Metrics::new(), shown));
    let probe = ask(address, "/livez").await;
    let asker = timeout(BOUND, pulses.recv()).await.expect("the supervisor is not asked").unwrap();
    let mut crowd = Vec::new();
    for _ in 0..100 {
        crowd.push(TcpStream::connect(address).await.unwrap());
    }
    // By its answer the crowd has been accepted.
    assert!(answer(ask(address, "/readyz").await).await.starts_with("HTTP/1.1 200"));
    asker.send(()).ok();
    let answer = answer(probe).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok\n"), "{answer:?}");
    server.abort();
}
