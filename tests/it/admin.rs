//! What can be seen of the plugin over HTTP.

use std::net::TcpListener;

use fake_kubelet::PodSpec;
use fake_nvml::{Description, DriverState, Fault};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::http::{ANYWHERE, Answer};
use crate::rig::{GPU, Rig, mig};

fn description() -> Description {
    Description::h100s(3).with_mig(0, &["2g.20gb", "2g.20gb"])
}

async fn start(description: &Description) -> Rig {
    Rig::start(description, &["--mig-strategy=mixed", ANYWHERE]).await
}

async fn ready(rig: &Rig) {
    rig.wait_for_counts(&[(GPU, 2), (&mig("2g.20gb"), 2)]).await;
    rig.plugin.wait_for("/readyz", |answer| answer.status == 200, "readiness").await;
}

#[tokio::test]
async fn every_route_can_be_read_and_nothing_can_be_written() {
    let rig = start(&description()).await;
    ready(&rig).await;
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/devices", "application/json"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
        ("/livez", "text/plain; charset=utf-8"),
        ("/readyz", "text/plain; charset=utf-8"),
        ("/readyz?verbose", "text/plain; charset=utf-8"),
    ] {
        let answer = rig.plugin.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert!(answer.head.contains(&format!("content-type: {kind}")), "{path}: {answer:?}");
        assert!(answer.head.contains("content-security-policy: default-src 'none'"), "{path}: {answer:?}");
        assert!(!answer.body.is_empty());
        let head = rig.plugin.request("HEAD", path, "").await;
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let refused = rig.plugin.request(method, path, "").await;
            assert_eq!(refused.status, 405, "{method} {path}");
            assert!(refused.head.contains("allow: get, head"), "{refused:?}");
        }
    }
    let lost = rig.plugin.get("/metric").await;
    assert_eq!(lost.status, 404);
    for path in ["/metrics", "/livez", "/readyz", "/devices"] {
        assert!(lost.body.contains(path), "{lost:?}");
    }
    rig.finish().await;
}

#[tokio::test]
async fn it_is_ready_while_every_resource_is_registered() {
    let mut rig = start(&description()).await;
    ready(&rig).await;
    let told = rig.plugin.get("/readyz").await.body;
    assert!(told.contains("nvidia.com/gpu: registered, 2 devices"), "{told}");
    rig.kubelet.stop().await.unwrap();
    let missing = |answer: &Answer| {
        answer.status == 503 && answer.body.contains("nvidia.com/mig-2g.20gb: not registered: ")
    };
    rig.plugin.wait_for("/readyz", missing, "a missing kubelet to show").await;
    assert_eq!(
        rig.plugin.get("/livez").await.status,
        200,
        "a kubelet that is away is no reason to start again"
    );
    rig.kubelet.restart().await.unwrap();
    ready(&rig).await;
    assert!(rig.plugin.is_running());
    rig.finish().await;
}

#[tokio::test]
async fn a_node_without_a_driver_is_alive_and_ready_and_says_why() {
    let mut late = description();
    late.driver = DriverState::NotLoaded;
    let rig = Rig::start(&late, &["--mig-strategy=mixed", "--fail-on-init-error=false", ANYWHERE]).await;
    let told = rig.plugin.wait_for("/readyz", |answer| answer.status == 200, "readiness").await.body;
    assert!(told.contains("DRIVER_NOT_LOADED") && told.contains("nothing to register"), "{told}");
    assert_eq!(rig.plugin.get("/livez").await.status, 200);
    assert!(rig.plugin.get("/").await.body.contains("No driver."));
    let metrics = rig.plugin.get("/metrics").await.body;
    assert!(metrics.contains("mig_device_plugin_driver_up 0\n"), "{metrics}");
    rig.node.update(|node| node.driver = DriverState::Loaded).unwrap();
    ready(&rig).await;
    let metrics = rig.plugin.get("/metrics").await.body;
    assert!(metrics.contains("mig_device_plugin_driver_up 1\n"), "{metrics}");
    rig.finish().await;
}

#[tokio::test]
async fn devices_are_told_with_their_health_and_who_holds_them() {
    let rig = start(&description()).await;
    ready(&rig).await;
    rig.kubelet.run_pod(PodSpec::new("training").container("main").limit(mig("2g.20gb"), 1)).await.unwrap();
    // The kubelet is asked every 10 s at most, and was asked already.
    let held = |answer: &Answer| answer.body.contains("\"pod\": \"training\"");
    let answer = rig.plugin.wait_for("/devices", held, "the pod to show").await;
    let json: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(json["gpus"].as_array().unwrap().len(), 3);
    assert_eq!(json["plugin"]["driver"], "present");
    assert_eq!(json["plugin"]["strategy"], "mixed");
    assert_eq!(json["plugin"]["onHold"], false);
    let resources = json["plugin"]["resources"].as_array().unwrap();
    let slices = resources.iter().find(|resource| resource["name"] == mig("2g.20gb")).unwrap();
    let held: Vec<_> = slices["devices"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["heldBy"] != serde_json::json!([]))
        .collect();
    assert_eq!(held.len(), 1);
    assert_eq!(held[0]["healthy"], true);
    assert_eq!(held[0]["heldBy"][0]["container"], "main");
    let page = rig.plugin.get("/").await.body;
    assert!(page.contains("training") && page.contains("2g.20gb"), "{page}");
    let metrics = rig.plugin.get("/metrics").await.body;
    assert!(metrics.contains("pod=\"training\",container=\"main\"} 1"), "{metrics}");
    assert!(metrics.contains(
        "mig_device_plugin_allocations_total{resource=\"nvidia.com/mig-2g.20gb\",result=\"success\"} 1"
    ));
    rig.finish().await;
}

#[tokio::test]
async fn a_sick_gpu_shows_everywhere_and_the_program_stays_alive() {
    let rig = start(&description()).await;
    ready(&rig).await;
    rig.node.update(|node| node.faults.push(Fault::error("*", "GPU_IS_LOST").on_gpu(0))).unwrap();
    rig.kubelet.wait_for_capacity(&mig("2g.20gb"), 2, 0).await.unwrap();
    let json: Value = serde_json::from_str(&rig.plugin.get("/devices").await.body).unwrap();
    let resources = json["plugin"]["resources"].as_array().unwrap();
    let slices = resources.iter().find(|resource| resource["name"] == mig("2g.20gb")).unwrap();
    assert_eq!(slices["devices"][0]["healthy"], false);
    assert!(slices["devices"][0]["reasons"][0]["text"].as_str().unwrap().contains("GPU_IS_LOST"), "{slices}");
    let metrics = rig.plugin.get("/metrics").await.body;
    let line = "mig_device_plugin_devices{resource=\"nvidia.com/mig-2g.20gb\",gpu=\"0\",profile=\"2g.20gb\",health=\"unhealthy\"";
    assert!(metrics.lines().any(|other| other.starts_with(line) && other.ends_with(" 2")), "{metrics}");
    assert!(
        metrics.contains("mig_device_plugin_allocatable{resource=\"nvidia.com/mig-2g.20gb\"} 0\n"),
        "{metrics}"
    );
    assert!(rig.plugin.get("/").await.body.contains("GPU_IS_LOST"));
    assert_eq!(rig.plugin.get("/livez").await.status, 200);
    assert_eq!(rig.plugin.get("/readyz").await.status, 200);
    rig.node.update(|node| node.faults.clear()).unwrap();
    rig.wait_for_counts(&[(GPU, 2), (&mig("2g.20gb"), 2)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn registrations_and_restarts_of_the_kubelet_are_counted() {
    let rig = start(&description()).await;
    ready(&rig).await;
    rig.kubelet.restart().await.unwrap();
    ready(&rig).await;
    let restarted = |answer: &Answer| {
        answer
            .body
            .contains("registrations_total{resource=\"nvidia.com/gpu\",reason=\"kubelet_restarted\"} 1\n")
            && answer.body.contains("mig_device_plugin_kubelet_restarts_total 1\n")
    };
    let metrics = rig.plugin.wait_for("/metrics", restarted, "the restart to be counted").await.body;
    assert!(
        metrics.contains("registrations_total{resource=\"nvidia.com/gpu\",reason=\"start\"} 1\n"),
        "{metrics}"
    );
    rig.finish().await;
}

#[tokio::test]
async fn clients_that_sit_on_their_connections_keep_nobody_out() {
    let rig = start(&description()).await;
    ready(&rig).await;
    let address = rig.plugin.address().await;
    let mut idle = Vec::new();
    for n in 0..200 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if n % 2 == 0 {
            // Some begin a request and never end it.
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost:").await.unwrap();
        }
        idle.push(stream);
        if n % 20 == 0 {
            assert_eq!(rig.plugin.get("/livez").await.status, 200, "after {n}");
        }
    }
    assert_eq!(rig.plugin.get("/livez").await.status, 200);
    let fds = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("process_open_fds ")).unwrap().to_owned();
        line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()
    };
    assert!(fds(&rig.plugin.get("/metrics").await.body) < 100, "connections are kept within a limit");
    drop(idle);
    let storm = (0..500).map(|_| rig.plugin.get("/readyz"));
    for answer in storm {
        assert_eq!(answer.await.status, 200);
    }
    rig.finish().await;
}

#[tokio::test]
async fn an_address_that_is_taken_costs_no_device_and_is_tried_again() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let flag = format!("--http-address={}", taken.local_addr().unwrap());
    let rig = Rig::start(&description(), &["--mig-strategy=mixed", &flag]).await;
    rig.wait_for_counts(&[(GPU, 2), (&mig("2g.20gb"), 2)]).await;
    rig.plugin.wait_for_log(&["ERROR", "--http-address", "in use"]).await;
    drop(taken);
    ready(&rig).await;
    rig.finish().await;
}

#[tokio::test]
async fn an_empty_address_means_that_nothing_listens() {
    let rig = Rig::start(&description(), &["--mig-strategy=mixed", "--http-address="]).await;
    rig.wait_for_counts(&[(GPU, 2), (&mig("2g.20gb"), 2)]).await;
    assert!(!rig.plugin.log().contains("over HTTP"));
    rig.finish().await;
}

/// The command as somebody runs it beside the plugin.
async fn devices(rig: &Rig, address: &str, more: &[&str]) -> std::process::Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_mig-device-plugin"));
    command.arg("devices").arg("--driver-root-ctr-path").arg(rig.node.root());
    command.arg(format!("--http-address={address}")).args(more).output().await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn the_command_devices_shows_the_health_that_the_plugin_sees() {
    let rig = start(&description()).await;
    ready(&rig).await;
    let address = rig.plugin.address().await.to_string();
    let table = text(&devices(&rig, &address, &[]).await.stdout);
    assert!(table.contains("HEALTH") && table.contains("healthy"), "{table}");
    rig.node.update(|node| node.faults.push(Fault::error("*", "GPU_IS_LOST").on_gpu(0))).unwrap();
    rig.kubelet.wait_for_capacity(&mig("2g.20gb"), 2, 0).await.unwrap();
    let output = devices(&rig, &address, &[]).await;
    let table = text(&output.stdout);
    assert!(output.status.success() && table.contains("GPU_IS_LOST"), "{table}");
    for format in ["json", "yaml"] {
        let told = text(&devices(&rig, &address, &["-o", format]).await.stdout);
        assert!(told.contains("healthy") && told.contains("reasons"), "{told}");
    }
    rig.node.update(|node| node.faults.clear()).unwrap();
    rig.wait_for_counts(&[(GPU, 2), (&mig("2g.20gb"), 2)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn the_command_devices_asks_the_driver_where_no_plugin_answers() {
    let rig = Rig::mixed(&description()).await;
    rig.wait_for_counts(&[(GPU, 2), (&mig("2g.20gb"), 2)]).await;
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let uuid = rig.node.gpus().unwrap()[0].mig[0].uuid.clone();
    for address in [silent.local_addr().unwrap(), free] {
        let output = devices(&rig, &address.to_string(), &[]).await;
        assert!(output.status.success(), "{output:?}");
        let (table, told) = (text(&output.stdout), text(&output.stderr));
        assert!(table.contains(&uuid) && !table.contains("HEALTH"), "{table}");
        assert!(told.contains("no running plugin answers") && told.contains(&address.to_string()), "{told}");
    }
    let quiet = devices(&rig, "", &[]).await;
    assert_eq!((quiet.status.success(), text(&quiet.stderr).as_str()), (true, ""));
    rig.finish().await;
}

#[tokio::test]
async fn the_command_devices_does_not_take_another_nodes_plugin_for_this_ones() {
    let rig = start(&description()).await;
    ready(&rig).await;
    let address = rig.plugin.address().await.to_string();
    let other = Rig::mixed(&Description::h100s(1)).await;
    let output = devices(&other, &address, &[]).await;
    assert!(text(&output.stderr).contains("another driver root"), "{output:?}");
    assert!(!text(&output.stdout).contains("HEALTH"));
    other.wait_for_counts(&[(GPU, 1)]).await;
    other.finish().await;
    rig.finish().await;
}

/// Takes more than half a minute: that is how long `/livez` has patience with tasks of our own.
#[tokio::test]
async fn a_driver_that_lets_everything_wait_is_no_reason_to_start_again() {
    let rig = start(&description()).await;
    ready(&rig).await;
    rig.node.update(|node| node.faults.push(Fault::delay("nvmlDeviceGetCount_v2", 600_000))).unwrap();
    let stalled = |answer: &Answer| {
        let mut lines = answer.body.lines();
        let time = lines.find_map(|line| line.strip_prefix("mig_device_plugin_nvml_stalled_seconds "));
        time.is_some_and(|time| time.parse::<f64>().unwrap() > 31.0)
    };
    rig.plugin.wait_for("/metrics", stalled, "a long stall").await;
    assert_eq!(rig.plugin.get("/livez").await.status, 200);
    let told = rig.plugin.get("/readyz").await;
    assert!(told.status == 200 && told.body.contains("the driver does not answer"), "{told:?}");
    rig.wait_for_counts(&[(GPU, 2), (&mig("2g.20gb"), 2)]).await;
    rig.finish().await;
}

/// Input for `deploy/prometheus/check`: the node has had a pod, a refused allocation and a lost GPU.
#[tokio::test]
#[ignore = "it writes a scrape to the file that SCRAPE names"]
async fn write_a_scrape() {
    let file = std::env::var_os("SCRAPE").expect("SCRAPE names no file");
    let rig = start(&description()).await;
    ready(&rig).await;
    rig.kubelet.run_pod(PodSpec::new("training").container("main").limit(mig("2g.20gb"), 1)).await.unwrap();
    rig.kubelet.allocate_ids(GPU, &["nobody"]).await.unwrap_err();
    rig.node.update(|node| node.faults.push(Fault::error("*", "GPU_IS_LOST").on_gpu(2))).unwrap();
    rig.kubelet.wait_for_capacity(GPU, 2, 1).await.unwrap();
    let held = |answer: &Answer| answer.body.contains("training");
    std::fs::write(file, rig.plugin.wait_for("/metrics", held, "the pod to show").await.body).unwrap();
    rig.finish().await;
}
