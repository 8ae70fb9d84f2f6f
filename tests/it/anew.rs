//! Parts that start over, and a plugin that starts into something that goes on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fake_kubelet::PodSpec;
use fake_nvml::{Description, DriverState, Fault};
use tokio::time::sleep;

use crate::rig::{GPU, Plugin, Rig, mig};

fn description() -> Description {
    Description::h100s(2).with_mig(0, &["1g.10gb"; 2])
}

/// A config file with something in it that is fixed while the parts run.
fn config(folder: &Path, rescan_interval: &str) -> PathBuf {
    let file = folder.join("config.yaml");
    let content = format!("version: v1\nflags: {{plugin: {{rescanInterval: {rescan_interval}}}}}\n");
    std::fs::write(&file, content).unwrap();
    file
}

/// A plugin that a change of the file makes start over.
async fn with_file(folder: &Path) -> Rig {
    let flag = format!("--config-file={}", config(folder, "200ms").display());
    let rig = Rig::start_plain(&description(), &["--mig-strategy=mixed", &flag]).await;
    rig.wait_for_counts(&[(GPU, 1), (&mig("1g.10gb"), 2)]).await;
    rig
}

/// Whether a list from this one on had a healthy device.
fn any_healthy(rig: &Rig, resource: &str, from: usize) -> bool {
    rig.kubelet.lists(resource)[from..].iter().any(|list| list.devices.values().any(|device| device.healthy))
}

#[tokio::test]
async fn parts_that_start_over_offer_nothing_before_the_driver_was_heard() {
    let folder = tempfile::tempdir().unwrap();
    let rig = with_file(folder.path()).await;
    rig.node
        .update(|node| {
            node.driver = DriverState::NotLoaded;
            node.faults.push(Fault::delay("nvmlInit_v2", 1_500));
        })
        .unwrap();
    rig.kubelet.wait_for_capacity(GPU, 1, 0).await.unwrap();
    let from = rig.kubelet.lists(GPU).len();
    config(folder.path(), "300ms");
    rig.plugin.wait_for_log(&["starting over"]).await;
    rig.kubelet.wait_for_registrations(GPU, 2).await.unwrap();
    rig.kubelet.wait_for(|view| view.serves(GPU), "the first list").await.unwrap();
    assert!(!any_healthy(&rig, GPU, from), "{:?}", rig.kubelet.lists(GPU));
    rig.node.update(|node| node.driver = DriverState::Loaded).unwrap();
    rig.wait_for_counts(&[(GPU, 1), (&mig("1g.10gb"), 2)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn parts_that_start_over_at_the_end_of_a_hold_offer_what_there_is_by_then() {
    let folder = tempfile::tempdir().unwrap();
    let rig = with_file(folder.path()).await;
    let resource = mig("1g.10gb");
    rig.plugin.signal("USR1");
    rig.plugin.wait_for_log(&["on hold"]).await;
    config(folder.path(), "300ms");
    rig.plugin.wait_for_log(&["it waits for SIGUSR2"]).await;
    rig.node
        .update(|node| {
            node.set_mig(0, &["3g.40gb"; 2]);
            node.set_mig(1, &["7g.80gb"]);
            node.faults.push(Fault::delay("nvmlInit_v2", 1_000));
        })
        .unwrap();
    let from = [GPU, &resource].map(|name| rig.kubelet.lists(name).len());
    rig.plugin.signal("USR2");
    rig.wait_for_counts(&[(&mig("3g.40gb"), 2), (&mig("7g.80gb"), 1)]).await;
    for (name, from) in [GPU, &resource].into_iter().zip(from) {
        assert!(!any_healthy(&rig, name, from), "what has gone was offered as {name}");
    }
    rig.finish().await;
}

#[tokio::test]
async fn a_new_image_waits_for_a_driver_that_is_still_being_replaced() {
    let mut rig = Rig::mixed(&description()).await;
    let counts = [(GPU, 1), (&*mig("1g.10gb"), 2)];
    rig.wait_for_counts(&counts).await;
    rig.plugin.signal("TERM");
    rig.plugin.exit().await;
    let library = rig.node.library();
    rig.plugin =
        Plugin::spawn_preloaded(rig.dir.path(), rig.node.root(), &library, &["--mig-strategy=mixed"]);
    rig.wait_for_counts(&counts).await;
    rig.node.update(|node| node.driver = DriverState::VersionMismatch).unwrap();
    rig.node.upgrade_driver("590.48.01").unwrap();
    rig.plugin.wait_for_log(&["loading this program anew"]).await;
    rig.plugin.wait_for_log(&["no driver", "LIB_RM_VERSION_MISMATCH"]).await;
    sleep(Duration::from_millis(500)).await;
    assert!(rig.plugin.is_running());
    rig.node.update(|node| node.driver = DriverState::Loaded).unwrap();
    rig.plugin.signal("HUP");
    rig.wait_for_counts(&counts).await;
    rig.finish().await;
}

#[tokio::test]
async fn what_other_plugins_have_handed_out_is_left_to_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    let shared = "{name: nvidia.com/gpu, replicas: 4, rename: volcano.sh/vgpu-number}";
    std::fs::write(&file, format!("version: v1\nsharing: {{timeSlicing: {{resources: [{shared}]}}}}\n"))
        .unwrap();
    // Played by a plugin of ours that gives its devices another name.
    let foreign = "volcano.sh/vgpu-number";
    let rig = Rig::start(&Description::h100s(2), &[&format!("--config-file={}", file.display())]).await;
    rig.kubelet.wait_for_capacity(foreign, 8, 8).await.unwrap();
    rig.kubelet.run_pod(PodSpec::new("theirs").container("main").limit(foreign, 1)).await.unwrap();
    let mut ours = rig.second_plugin(&["--mig-strategy=mixed"]);
    // It may be one of an earlier configuration, too: what is held is not given out a second time.
    rig.kubelet.wait_for_capacity(GPU, 2, 1).await.unwrap();
    ours.wait_for_log(&["unhealthy", "it may still be in use as something else", foreign]).await;
    assert_eq!(rig.kubelet.view().registrations_of(foreign), 1);
    assert_eq!(rig.kubelet.capacity(foreign).unwrap().allocatable, 8);
    rig.kubelet.delete_pod("theirs");
    // The GPU that their pod holds is not given out a second time.
    rig.kubelet.wait_for_capacity(GPU, 2, 1).await.unwrap();
    assert_eq!(rig.kubelet.view().registrations_of(foreign), 1);
    ours.signal("TERM");
    ours.exit().await;
    rig.finish().await;
}

#[tokio::test]
async fn a_plugin_that_starts_before_the_kubelet_knows_what_its_pods_hold() {
    let flags = ["--mig-strategy=mixed", "--removal-grace=0"];
    let mut rig = Rig::start(&description(), &flags).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(GPU, 1), (&resource, 2)]).await;
    let pod = PodSpec::new("holder").container("main").limit(&resource, 1);
    let held = rig.kubelet.run_pod(pod).await.unwrap().ids(&resource).remove(0);
    let position = rig.node.gpus().unwrap()[0].mig.iter().position(|slice| slice.uuid == held).unwrap();
    for how in ["stopped", "killed"] {
        if how == "stopped" {
            rig.node.update(|node| drop(node.gpu(0).layout.remove(position))).unwrap();
            rig.kubelet.wait_for_devices(&resource, |devices| !devices[&held].healthy).await.unwrap();
            rig.kubelet.stop().await.unwrap();
        } else {
            // Its socket's file stays behind.
            rig.kubelet.kill().await.unwrap();
        }
        rig.plugin.kill().await;
        rig.plugin = rig.second_plugin(&flags);
        rig.plugin.wait_for_log(&["found"]).await;
        let from = rig.kubelet.lists(&resource).len();
        rig.kubelet.restart().await.unwrap();
        rig.kubelet.wait_for(|view| view.serves(&resource), "the slices").await.unwrap();
        for list in &rig.kubelet.lists(&resource)[from..] {
            assert!(!list.devices[&held].healthy, "{how}: the pod's slice has gone");
        }
    }
    rig.finish().await;
}
