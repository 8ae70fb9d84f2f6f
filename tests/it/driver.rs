//! Drivers that are late, leave, refuse, fail or hang.

use std::fs;
use std::time::{Duration, Instant};

use fake_nvml::{Description, DriverState, Fault};
use tokio::time::sleep;

use crate::rig::{GPU, Rig, mig, wait_until};

fn description() -> Description {
    Description::h100s(3).with_mig(0, &["1g.10gb"; 2])
}

#[tokio::test]
async fn no_driver_at_start_ends_the_plugin_with_a_sentence() {
    let mut late = description();
    late.driver = DriverState::NotLoaded;
    let mut rig = Rig::start(&late, &[]).await;
    assert_eq!(rig.plugin.exit().await.code(), Some(1));
    rig.plugin.wait_for_log(&["ERROR", "DRIVER_NOT_LOADED", "--fail-on-init-error=false"]).await;
}

#[tokio::test]
async fn a_library_that_is_not_there_is_told_with_every_place() {
    let mut rig = Rig::start(&description(), &["--driver-root-ctr-path=/nonexistent"]).await;
    assert_eq!(rig.plugin.exit().await.code(), Some(1));
    rig.plugin
        .wait_for_log(&[
            "libnvidia-ml.so.1",
            "/nonexistent/usr/lib64",
            "/nonexistent/usr/lib/x86_64-linux-gnu",
        ])
        .await;
}

#[tokio::test]
async fn a_driver_that_comes_late_is_found() {
    let mut late = description();
    late.driver = DriverState::NotLoaded;
    let mut rig = Rig::start(&late, &["--mig-strategy=mixed", "--fail-on-init-error=false"]).await;
    rig.plugin.wait_for_log(&["no driver"]).await;
    assert!(rig.plugin.is_running());
    rig.node.update(|node| node.driver = DriverState::Loaded).unwrap();
    rig.wait_for_counts(&[(GPU, 2), (&mig("1g.10gb"), 2)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn a_driver_that_can_be_opened_and_not_read_is_tried_less_and_less_often() {
    let faulty = description().with_faults([Fault::error("nvmlDeviceGetCount_v2", "UNKNOWN")]);
    let rig = Rig::start(&faulty, &["--mig-strategy=mixed", "--fail-on-init-error=false"]).await;
    let opened = || rig.node.counters().unwrap().get("nvmlInit_v2").copied().unwrap_or(0);
    wait_until(|| opened() >= 1, "the library to be opened").await;
    let start = Instant::now();
    wait_until(|| opened() >= 4, "three more attempts").await;
    assert!(start.elapsed() >= Duration::from_secs(5), "1, 2 and 4 s, but {:?}", start.elapsed());
    rig.node.update(|node| node.faults.clear()).unwrap();
    rig.plugin.signal("HUP");
    rig.wait_for_counts(&[(GPU, 2), (&mig("1g.10gb"), 2)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn a_library_that_comes_late_is_found() {
    let mut rig = Rig::start(&description(), &["--driver-root-ctr-path=/nonexistent"]).await;
    rig.plugin.exit().await;
    let root = rig.dir.path().join("late");
    let flags = [
        "--mig-strategy=mixed",
        "--fail-on-init-error=false",
        "--driver-root-ctr-path",
        root.to_str().unwrap(),
    ];
    rig.plugin = rig.second_plugin(&flags);
    rig.plugin.wait_for_log(&["no driver"]).await;
    fs::rename(rig.node.root(), &root).unwrap();
    rig.wait_for_counts(&[(GPU, 2), (&mig("1g.10gb"), 2)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn a_driver_that_goes_away_leaves_its_devices_unhealthy_until_it_is_back() {
    let rig = Rig::mixed(&description()).await;
    rig.wait_for_counts(&[(GPU, 2), (&mig("1g.10gb"), 2)]).await;
    rig.node.update(|node| node.driver = DriverState::NotLoaded).unwrap();
    for resource in [GPU, &mig("1g.10gb")] {
        rig.kubelet.wait_for_capacity(resource, 2, 0).await.unwrap();
    }
    rig.plugin.wait_for_log(&["unhealthy", "no driver"]).await;
    rig.node.update(|node| node.driver = DriverState::Loaded).unwrap();
    rig.wait_for_counts(&[(GPU, 2), (&mig("1g.10gb"), 2)]).await;
    rig.plugin.wait_for_log(&["healthy again"]).await;
    assert_eq!(rig.kubelet.view().registrations_of(GPU), 1);
    rig.finish().await;
}

#[tokio::test]
async fn a_lost_gpu_is_unhealthy_and_the_others_are_not() {
    let rig = Rig::mixed(&description()).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(GPU, 2), (&resource, 2)]).await;
    rig.node.update(|node| node.faults.push(Fault::error("*", "GPU_IS_LOST").on_gpu(0))).unwrap();
    rig.kubelet.wait_for_capacity(&resource, 2, 0).await.unwrap();
    rig.plugin.wait_for_log(&["unhealthy", "GPU_IS_LOST"]).await;
    assert_eq!(rig.kubelet.lists(GPU).len(), 1);
    rig.node.update(|node| node.faults.clear()).unwrap();
    rig.wait_for_counts(&[(GPU, 2), (&resource, 2)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn a_gpu_that_is_unreadable_from_the_start_costs_only_itself() {
    let faulty = description().with_faults([Fault::error("*", "UNKNOWN").on_gpu(1)]);
    let rig = Rig::mixed(&faulty).await;
    rig.wait_for_counts(&[(GPU, 1), (&mig("1g.10gb"), 2)]).await;
    rig.plugin.wait_for_log(&["WARN", "gpu=1", "UNKNOWN"]).await;
    rig.finish().await;
}

#[tokio::test]
async fn a_slice_that_is_unreadable_costs_only_itself() {
    let faulty = description().with_faults([Fault::error("nvmlDeviceGetUUID", "UNKNOWN").on_mig(0, 1)]);
    let rig = Rig::mixed(&faulty).await;
    rig.wait_for_counts(&[(GPU, 2), (&mig("1g.10gb"), 1)]).await;
    rig.node.update(|node| node.faults.clear()).unwrap();
    rig.wait_for_counts(&[(GPU, 2), (&mig("1g.10gb"), 2)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn a_plugin_without_privileges_offers_the_same() {
    let mut plain = description();
    plain.unprivileged = true;
    let rig = Rig::mixed(&plain).await;
    rig.wait_for_counts(&[(GPU, 2), (&mig("1g.10gb"), 2)]).await;
    rig.node.update(|node| node.set_mig(0, &["2g.20gb"; 2])).unwrap();
    rig.wait_for_counts(&[(GPU, 2), (&mig("2g.20gb"), 2)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn a_call_that_hangs_stops_neither_the_kubelet_nor_the_end() {
    let rig = Rig::mixed(&description()).await;
    rig.wait_for_counts(&[(GPU, 2), (&mig("1g.10gb"), 2)]).await;
    rig.node.update(|node| node.faults.push(Fault::delay("nvmlDeviceGetUUID", 600_000))).unwrap();
    sleep(Duration::from_millis(600)).await;
    let uuid = rig.node.gpus().unwrap()[1].uuid.clone();
    rig.kubelet.allocate_ids(GPU, &[&uuid]).await.unwrap();
    rig.kubelet.restart().await.unwrap();
    rig.wait_for_counts(&[(GPU, 2), (&mig("1g.10gb"), 2)]).await;
    rig.finish().await;
}
