//! Devices that pods hold and that have gone: what the kubelet looks up in the lists has to be there.

use std::time::Duration;

use fake_kubelet::PodSpec;
use fake_nvml::Description;

use crate::rig::{Rig, mig, wait_until};

/// A node of two slices, one of which the pod `holder` holds although it has gone.
async fn held_and_gone(holder: PodSpec) -> (Rig, String) {
    let resource = mig("1g.10gb");
    let mut description = Description::h100s(1).with_mig(0, &["1g.10gb"; 2]);
    description.gpu(0).numa = Some(1);
    let rig = Rig::start(&description, &["--mig-strategy=mixed", "--removal-grace=0"]).await;
    rig.wait_for_counts(&[(&resource, 2)]).await;
    let held = rig.kubelet.run_pod(holder).await.unwrap().ids(&resource)[0].clone();
    let position = rig.node.gpus().unwrap()[0].mig.iter().position(|slice| slice.uuid == held).unwrap();
    rig.node.update(|node| drop(node.gpu(0).layout.remove(position))).unwrap();
    rig.kubelet.wait_for_devices(&resource, |devices| !devices[&held].healthy).await.unwrap();
    (rig, held)
}

fn holder() -> PodSpec {
    PodSpec::new("holder").container("main").limit(mig("1g.10gb"), 1)
}

/// Podresources is asked several times more, and the kubelet writes its checkpoint in between.
async fn looks(rig: &Rig) {
    let (asked, written) = (rig.kubelet.pod_resources_calls(), rig.kubelet.checkpoint_writes());
    let looked =
        || rig.kubelet.pod_resources_calls() > asked + 2 && rig.kubelet.checkpoint_writes() > written;
    wait_until(looked, "looks at what pods hold").await;
}

/// The device that a pod holds is in every list from the `from`th on, where it was.
fn assert_listed(rig: &Rig, held: &str, from: usize) {
    let lists = &rig.kubelet.lists(&mig("1g.10gb"))[from..];
    assert!(!lists.is_empty());
    for list in lists {
        let device = list.devices.get(held).unwrap_or_else(|| panic!("{held} is missing: {list:?}"));
        assert!(!device.healthy && device.numa == Some(1), "{device:?}");
    }
}

/// The pod goes, and then the device.
async fn released(rig: Rig, held: &str) {
    rig.kubelet.delete_pod("holder");
    rig.kubelet.wait_for_devices(&mig("1g.10gb"), |devices| !devices.contains_key(held)).await.unwrap();
    assert_eq!(rig.kubelet.failed_pods(), Vec::<String>::new());
    rig.finish().await;
}

#[tokio::test]
async fn what_an_init_container_holds_stays_listed_though_podresources_does_not_name_it() {
    let resource = mig("1g.10gb");
    let pod = PodSpec::new("holder").init_container("init").limit(&resource, 1).container("main");
    let (rig, held) = held_and_gone(pod).await;
    let from = rig.kubelet.lists(&resource).len() - 1;
    looks(&rig).await;
    assert_listed(&rig, &held, from);
    released(rig, &held).await;
}

#[tokio::test]
async fn a_kubelet_that_does_not_know_its_pods_yet_frees_nothing() {
    let resource = mig("1g.10gb");
    let (rig, held) = held_and_gone(holder()).await;
    let from = rig.kubelet.lists(&resource).len();
    rig.kubelet.api_pods_after(None);
    rig.kubelet.restart().await.unwrap();
    rig.kubelet.wait_for(|view| view.serves(&resource), "the slices").await.unwrap();
    looks(&rig).await;
    assert_listed(&rig, &held, from);
    rig.kubelet.api_pods_after(Some(Duration::ZERO));
    looks(&rig).await;
    assert_listed(&rig, &held, from);
    released(rig, &held).await;
}

#[tokio::test]
async fn the_first_lists_have_what_the_checkpoint_says_while_there_was_no_kubelet() {
    let resource = mig("1g.10gb");
    let (mut rig, held) = held_and_gone(holder()).await;
    let from = rig.kubelet.lists(&resource).len();
    rig.kubelet.stop().await.unwrap();
    rig.plugin.kill().await;
    rig.plugin = rig.second_plugin(&["--mig-strategy=mixed", "--removal-grace=0"]);
    rig.plugin.wait_for_log(&["list changed", &resource, "devices=2"]).await;
    rig.kubelet.api_pods_after(None);
    rig.kubelet.restart().await.unwrap();
    rig.kubelet.wait_for(|view| view.serves(&resource), "the slices").await.unwrap();
    looks(&rig).await;
    assert_listed(&rig, &held, from);
    rig.kubelet.api_pods_after(Some(Duration::ZERO));
    released(rig, &held).await;
}

#[tokio::test]
async fn without_podresources_a_device_leaves_by_the_checkpoint() {
    let resource = mig("1g.10gb");
    let description = Description::h100s(1).with_mig(0, &["1g.10gb"; 3]);
    let flags =
        ["--mig-strategy=mixed", "--removal-grace=0", "--pod-resources-socket=/nonexistent/kubelet.sock"];
    let rig = Rig::start(&description, &flags).await;
    rig.wait_for_counts(&[(&resource, 3)]).await;
    let held = rig.kubelet.run_pod(holder()).await.unwrap().ids(&resource)[0].clone();
    rig.node.update(|node| node.set_mig::<&str>(0, &[])).unwrap();
    rig.kubelet.wait_for_capacity(&resource, 1, 0).await.unwrap();
    rig.plugin.wait_for_log(&["WARN", "only the kubelet's checkpoint says what pods hold"]).await;
    assert!(rig.kubelet.devices(&resource).contains_key(&held));
    rig.finish().await;
}
