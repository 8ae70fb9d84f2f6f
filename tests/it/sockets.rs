//! Who may talk to our sockets, and how much.

use std::time::Instant;

use fake_kubelet::api::device_plugin_client::DevicePluginClient;
use fake_kubelet::api::{AllocateRequest, ContainerAllocateRequest, Empty};
use fake_nvml::{Description, Event};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::rig::{GPU, LIMIT, Rig, wait_until};

async fn connect(rig: &Rig) -> Result<DevicePluginClient<Channel>, tonic::transport::Error> {
    let socket = rig.plugin_folder().join(&rig.kubelet.registrations()[0].endpoint);
    let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap();
    Ok(DevicePluginClient::new(endpoint.connect().await?))
}

#[tokio::test]
async fn a_foreign_stream_that_comes_and_goes_does_not_matter() {
    let rig = Rig::start(&Description::h100s(1), &[]).await;
    rig.wait_for_counts(&[(GPU, 1)]).await;
    for _ in 0..20 {
        let mut stream = connect(&rig).await.unwrap().list_and_watch(Empty {}).await.unwrap().into_inner();
        assert_eq!(stream.message().await.unwrap().unwrap().devices.len(), 1);
    }
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(rig.kubelet.view().registrations_of(GPU), 1);
    rig.finish().await;
}

#[tokio::test]
async fn two_streams_get_the_same_lists() {
    let rig = Rig::mixed(&Description::h100s(2)).await;
    rig.wait_for_counts(&[(GPU, 2)]).await;
    let mut stream = connect(&rig).await.unwrap().list_and_watch(Empty {}).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().devices.len(), 2);
    rig.node.update(|node| node.set_mig::<&str>(0, &[])).unwrap();
    rig.wait_for_counts(&[(GPU, 1)]).await;
    let marked = stream.message().await.unwrap().unwrap().devices;
    assert_eq!(marked.iter().filter(|device| device.health == "Unhealthy").count(), 1);
    // The second list is sent again before the device may leave.
    while stream.message().await.unwrap().unwrap().devices.len() > 1 {}
    rig.finish().await;
}

#[tokio::test]
async fn two_streams_hear_of_an_error() {
    let rig = Rig::start(&Description::h100s(2), &["--health-recovery=off"]).await;
    rig.wait_for_counts(&[(GPU, 2)]).await;
    let mut stream = connect(&rig).await.unwrap().list_and_watch(Empty {}).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().devices.len(), 2);
    let listens = || rig.node.counters().unwrap().get("nvmlEventSetWait_v2").copied().unwrap_or(0) > 0;
    wait_until(listens, "the plugin to listen for events").await;
    rig.node.send(&Event::xid(79).on_gpu(1)).unwrap();
    rig.kubelet.wait_for_capacity(GPU, 2, 1).await.unwrap();
    let sick = stream.message().await.unwrap().unwrap().devices;
    assert_eq!(sick.iter().filter(|device| device.health == "Unhealthy").count(), 1);
    rig.finish().await;
}

#[tokio::test]
async fn a_client_that_hogs_connections_and_streams_does_not_starve_the_kubelet() {
    let rig = Rig::start(&Description::h100s(1), &[]).await;
    rig.wait_for_counts(&[(GPU, 1)]).await;
    let socket = rig.plugin_folder().join(&rig.kubelet.registrations()[0].endpoint);
    let mut client = connect(&rig).await.unwrap();
    let mut streams = Vec::new();
    let refused = loop {
        match client.list_and_watch(Empty {}).await {
            Ok(stream) => streams.push(stream),
            Err(status) => break status,
        }
        assert!(streams.len() < 100, "streams are not capped");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let mut idle = Vec::new();
    for _ in 0..50 {
        idle.push(UnixStream::connect(&socket).await.unwrap());
    }
    rig.plugin.wait_for_log(&["refused a connection", "too many"]).await;
    let uuid = rig.node.gpus().unwrap()[0].uuid.clone();
    // On the kubelet's connection, and on the hog's own beside its idle streams.
    rig.kubelet.allocate_ids(GPU, &[&uuid]).await.unwrap();
    let request = ContainerAllocateRequest { devices_ids: vec![uuid] };
    client.allocate(AllocateRequest { container_requests: vec![request] }).await.unwrap();
    drop((streams, idle, client));
    // What was taken is given back.
    let again = async {
        loop {
            if let Ok(mut client) = connect(&rig).await
                && client.list_and_watch(Empty {}).await.is_ok()
            {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, again).await.expect("the cap is not given back");
    rig.finish().await;
}

/// Needs root, to become somebody else; where it is not there, the rule is tested by the unit tests alone.
#[tokio::test]
async fn connections_that_are_refused_cost_few_lines() {
    let rig = Rig::mixed(&Description::h100s(1)).await;
    rig.wait_for_counts(&[(GPU, 1)]).await;
    let socket = rig.plugin_folder().join(&rig.sockets()[0]);
    let start = Instant::now();
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(UnixStream::connect(&socket).await.unwrap());
    }
    // The last of them is refused before one that is made after it.
    let mut last = idle.pop().unwrap();
    let ended = timeout(LIMIT, last.read(&mut [0])).await.expect("it is still open");
    assert!(!matches!(ended, Ok(1..)), "{ended:?}");
    let lines = rig.plugin.log().lines().filter(|line| line.contains("refused a connection")).count();
    let seconds = usize::try_from(start.elapsed().as_secs()).unwrap();
    assert!((1..=seconds + 2).contains(&lines), "{lines} lines in {seconds} s");
    rig.finish().await;
}

#[tokio::test]
async fn a_process_of_another_user_is_refused_unless_it_is_named() {
    let is_root =
        std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0);
    if !is_root {
        eprintln!("not root: nobody else to connect as");
        return;
    }
    for (flags, allowed) in [(&[][..], false), (&["--allowed-uid=65534"][..], true)] {
        let rig = Rig::start(&Description::h100s(1), flags).await;
        rig.wait_for_counts(&[(GPU, 1)]).await;
        let socket = rig.plugin_folder().join(&rig.kubelet.registrations()[0].endpoint);
        open_up(rig.dir.path(), &socket);
        // Connects, and waits for what comes: the server's HTTP/2 preface, or the end.
        let script = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); \
                      s.settimeout(20); s.sendall(b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n\\0\\0\\0\\4\\0\\0\\0\\0\\0'); \
                      sys.exit(0 if s.recv(1) else 1)";
        let mut command = tokio::process::Command::new("python3");
        let Ok(output) = command.arg("-c").arg(script).arg(&socket).uid(65534).output().await else {
            eprintln!("no python3 to connect with");
            return;
        };
        assert_eq!(output.status.success(), allowed, "{output:?}");
        if !allowed {
            rig.plugin.wait_for_log(&["refused a connection", "65534"]).await;
        }
        rig.finish().await;
    }
}

/// Lets other users as far as the socket, so that it is the plugin that refuses them.
fn open_up(dir: &std::path::Path, socket: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    for path in [dir, socket.parent().unwrap(), socket] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
}
