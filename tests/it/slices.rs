//! Slices that NVML does not show as `/proc` does, and slices whose nodes are not there.

use fake_kubelet::PodSpec;
use fake_nvml::{Description, Event, Fault, Nodes, UnopenableSlices};

use crate::rig::{Rig, mig, wait_until};

fn looks(rig: &Rig) -> u64 {
    rig.node.counters().unwrap().get("nvmlDeviceGetCount_v2").copied().unwrap_or(0)
}

/// Waits until a look that began after this has ended.
async fn look(rig: &Rig) {
    let before = looks(rig);
    wait_until(|| looks(rig) > before + 1, "a look").await;
}

/// Lets NVML list no slice to a client that cannot open its nodes, as all clients from now on.
fn hide(rig: &Rig) {
    rig.node
        .update(|node| {
            node.openable = Some(Vec::new());
            node.unopenable_slices = UnopenableSlices::Hidden;
        })
        .unwrap();
}

#[tokio::test]
async fn slices_that_nvml_hides_are_unreadable_and_not_gone() {
    // A driver that does not tell what a GPU needs, so that a reset would end what stands against its slices.
    let old = Fault::error("nvmlDeviceGetFieldValues", "NOT_SUPPORTED");
    let rig = Rig::start(
        &Description::h100s(1).with_mig(0, &["1g.10gb"; 3]).with_faults([old]),
        &["--mig-strategy=mixed", "--removal-grace=0s"],
    )
    .await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(&resource, 3)]).await;
    rig.plugin.wait_for_log(&["listening for events"]).await;
    look(&rig).await;
    let sick = rig.node.gpus().unwrap()[0].mig[0].clone();
    rig.node.send(&Event::xid(94).on_instance(sick.gi, sick.ci)).unwrap();
    rig.kubelet.wait_for_capacity(&resource, 3, 2).await.unwrap();
    hide(&rig);
    rig.kubelet.wait_for_capacity(&resource, 3, 0).await.unwrap();
    rig.plugin.wait_for_log(&["WARN", "are hidden from this process: no access to mig/monitor?"]).await;
    rig.plugin.wait_for_log(&["unhealthy", &sick.uuid, "hidden from this process"]).await;
    look(&rig).await;
    look(&rig).await;
    let lists = rig.kubelet.lists(&resource);
    assert!(lists.iter().all(|list| list.devices.len() == 3), "a slice left the list");
    let log = rig.plugin.log();
    let warnings = log.lines().filter(|line| line.contains("incomplete") && line.contains("hidden"));
    assert_eq!(warnings.count(), 1, "it is said once");
    assert!(!log.contains("no longer has this device"));
    rig.node.update(|node| node.unopenable_slices = UnopenableSlices::Listed).unwrap();
    rig.kubelet.wait_for_capacity(&resource, 3, 2).await.unwrap();
    look(&rig).await;
    look(&rig).await;
    let devices = rig.kubelet.devices(&resource);
    assert!(!devices[&sick.uuid].healthy, "no reset was seen");
    rig.finish().await;
}

#[tokio::test]
async fn a_hidden_slice_that_is_destroyed_leaves_the_list() {
    let rig = Rig::start(
        &Description::h100s(1).with_mig(0, &["1g.10gb"; 2]),
        &["--mig-strategy=mixed", "--removal-grace=0s"],
    )
    .await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(&resource, 2)]).await;
    hide(&rig);
    rig.kubelet.wait_for_capacity(&resource, 2, 0).await.unwrap();
    let gone = rig.node.gpus().unwrap()[0].mig[1].uuid.clone();
    rig.node.update(|node| drop(node.gpu(0).layout.pop())).unwrap();
    rig.kubelet.wait_for_devices(&resource, |devices| !devices.contains_key(&gone)).await.unwrap();
    assert_eq!(rig.kubelet.devices(&resource).len(), 1);
    rig.finish().await;
}

#[tokio::test]
async fn a_slice_that_is_made_or_destroyed_slowly_is_not_taken_for_a_hidden_one() {
    let mut description = Description::h100s(1).with_mig(0, &["1g.10gb"]);
    description.file_gap_ms = 1_500;
    let rig = Rig::start(&description, &["--mig-strategy=mixed", "--removal-grace=0s"]).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(&resource, 1)]).await;
    rig.node.update(|node| node.gpu(0).layout.push("1g.10gb".into())).unwrap();
    rig.wait_for_counts(&[(&resource, 2)]).await;
    let gone = rig.node.gpus().unwrap()[0].mig[1].uuid.clone();
    rig.node.update(|node| drop(node.gpu(0).layout.pop())).unwrap();
    // While NVML still lists it.
    rig.plugin.wait_for_log(&["unhealthy", &gone, "its capability file has gone"]).await;
    rig.wait_for_counts(&[(&resource, 1)]).await;
    assert!(!rig.plugin.log().contains("hidden from this process"));
    rig.finish().await;
}

#[tokio::test]
async fn a_slice_without_its_nodes_is_unhealthy_with_the_command_that_makes_them() {
    let mut description = Description::h100s(1).with_mig(0, &["1g.10gb"]);
    description.nodes = Nodes::ByHand;
    let rig = Rig::mixed(&description).await;
    let (small, large) = (mig("1g.10gb"), mig("3g.40gb"));
    rig.wait_for_counts(&[(&small, 1)]).await;
    rig.node.update(|node| node.gpu(0).layout.push("3g.40gb".into())).unwrap();
    rig.kubelet.wait_for_capacity(&large, 1, 0).await.unwrap();
    let slice = rig.node.gpus().unwrap()[0].mig.iter().find(|mig| mig.profile == "3g.40gb").unwrap().clone();
    let folder = format!("/proc/driver/nvidia/capabilities/gpu0/mig/gi{}", slice.gi);
    let command = format!("nvidia-modprobe -f {folder}/access -f {folder}/ci{}/access", slice.ci);
    let node = format!("/dev/nvidia-caps/nvidia-cap{}", slice.ci_minor);
    rig.plugin.wait_for_log(&["unhealthy", &slice.uuid, &node, &command]).await;
    let error = rig.kubelet.allocate_ids(&large, &[&slice.uuid]).await.unwrap_err();
    assert!(error.message().contains(&command), "{error:?}");
    rig.node.make_nodes().unwrap();
    rig.wait_for_counts(&[(&small, 1), (&large, 1)]).await;
    rig.kubelet.run_pod(PodSpec::new("pod").container("main").limit(&large, 1)).await.unwrap();
    rig.finish().await;
}
