//! Layouts that change while everything runs.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fake_kubelet::{AdmissionError, PodSpec};
use fake_nvml::{Description, Event, Instance};
use tokio::time::sleep;

use crate::rig::{GPU, Rig, mig, wait_until};

fn pod(name: &str, resource: &str) -> PodSpec {
    PodSpec::new(name).container("main").limit(resource, 1)
}

#[tokio::test]
async fn a_repartition_is_followed_and_other_gpus_never_flicker() {
    let description = Description::h100s(3).with_mig(0, &["1g.10gb"; 7]).with_mig(1, &["1g.10gb"; 2]);
    let rig = Rig::mixed(&description).await;
    rig.wait_for_counts(&[(GPU, 1), (&mig("1g.10gb"), 9)]).await;
    let untouched: Vec<_> = rig.node.gpus().unwrap()[1].mig.iter().map(|slice| slice.uuid.clone()).collect();
    rig.node.update(|node| node.set_mig(0, &["2g.20gb"; 3])).unwrap();
    rig.wait_for_counts(&[(GPU, 1), (&mig("1g.10gb"), 2), (&mig("2g.20gb"), 3)]).await;
    for list in rig.kubelet.lists(&mig("1g.10gb")) {
        for uuid in &untouched {
            assert!(list.devices[uuid].healthy, "an untouched slice flickered");
        }
    }
    assert_eq!(rig.kubelet.lists(GPU).len(), 1, "the whole GPU's list had no reason to be sent again");
    assert_eq!(rig.kubelet.view().registrations_of(&mig("1g.10gb")), 1);
    rig.finish().await;
}

#[tokio::test]
async fn a_slice_that_has_gone_is_unhealthy_before_it_is_left_out() {
    let rig = Rig::mixed(&Description::h100s(1).with_mig(0, &["1g.10gb"; 3])).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(&resource, 3)]).await;
    let gone = rig.node.gpus().unwrap()[0].mig[2].uuid.clone();
    rig.node.update(|node| drop(node.gpu(0).layout.remove(2))).unwrap();
    rig.wait_for_counts(&[(&resource, 2)]).await;
    let lists = rig.kubelet.lists(&resource);
    let mut states: Vec<_> =
        lists.iter().map(|list| list.devices.get(&gone).map(|device| device.healthy)).collect();
    // The second is sent again, for the checkpoint that the kubelet writes then.
    states.dedup();
    assert_eq!(states, [Some(true), Some(false), None]);
    rig.finish().await;
}

/// A node of two slices, one of which the pod `holder` holds although it has gone.
async fn held_and_gone(resource: &str) -> (Rig, String) {
    let description = Description::h100s(1).with_mig(0, &["1g.10gb"; 2]);
    let rig = Rig::start(&description, &["--mig-strategy=mixed", "--removal-grace=0"]).await;
    rig.wait_for_counts(&[(resource, 2)]).await;
    let held = rig.kubelet.run_pod(pod("holder", resource)).await.unwrap().ids(resource)[0].clone();
    let position = rig.node.gpus().unwrap()[0].mig.iter().position(|slice| slice.uuid == held).unwrap();
    rig.node.update(|node| drop(node.gpu(0).layout.remove(position))).unwrap();
    rig.kubelet.wait_for_devices(resource, |devices| !devices[&held].healthy).await.unwrap();
    (rig, held)
}

#[tokio::test]
async fn a_slice_that_a_pod_holds_stays_listed_until_it_is_released() {
    let resource = mig("1g.10gb");
    let (rig, held) = held_and_gone(&resource).await;
    let asked = rig.kubelet.pod_resources_calls();
    wait_until(|| rig.kubelet.pod_resources_calls() > asked, "another look at what pods hold").await;
    assert!(rig.kubelet.devices(&resource).contains_key(&held));
    rig.kubelet.delete_pod("holder");
    rig.kubelet.wait_for_devices(&resource, |devices| !devices.contains_key(&held)).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_kubelet_that_is_away_does_not_make_us_forget_what_its_pods_hold() {
    let resource = mig("1g.10gb");
    let (rig, held) = held_and_gone(&resource).await;
    // Away for longer than an answer is good for.
    rig.kubelet.stop().await.unwrap();
    sleep(Duration::from_secs(6)).await;
    rig.kubelet.restart().await.unwrap();
    rig.kubelet.wait_for_capacity(&resource, 2, 1).await.unwrap();
    assert!(rig.kubelet.devices(&resource).contains_key(&held));
    rig.kubelet.delete_pod("holder");
    rig.kubelet.wait_for_devices(&resource, |devices| !devices.contains_key(&held)).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_neighbour_that_goes_costs_no_list() {
    let rig = Rig::mixed(&Description::h100s(1).with_mig(0, &["3g.40gb", "1g.10gb"])).await;
    rig.wait_for_counts(&[(&mig("1g.10gb"), 1), (&mig("3g.40gb"), 1)]).await;
    // The other slice's MIG index moves, which the kubelet is never told.
    rig.node.update(|node| drop(node.gpu(0).layout.remove(0))).unwrap();
    rig.wait_for_counts(&[(&mig("1g.10gb"), 1)]).await;
    assert_eq!(rig.kubelet.lists(&mig("1g.10gb")).len(), 1);
    rig.finish().await;
}

#[tokio::test]
async fn a_resource_that_comes_back_just_after_it_ended_waits_for_the_kubelet() {
    let rig = Rig::mixed(&Description::h100s(1).with_mig(0, &["1g.10gb"])).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(&resource, 1)]).await;
    rig.node.update(|node| node.set_mig::<&str>(0, &[])).unwrap();
    rig.plugin.wait_for_log(&["no longer served", &resource]).await;
    let ended = std::time::Instant::now();
    rig.node.update(|node| node.set_mig(0, &["1g.10gb"])).unwrap();
    rig.kubelet.wait_for_registrations(&resource, 2).await.unwrap();
    // The kubelet's clean-up after the old stream would take a registration down that comes before it has closed its
    // connection, or just after that.
    assert!(ended.elapsed() >= Duration::from_millis(100), "registered again after {:?}", ended.elapsed());
    rig.wait_for_counts(&[(&resource, 1)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn a_resource_without_devices_ends_and_comes_back() {
    let rig = Rig::mixed(&Description::h100s(2).with_mig(0, &["1g.10gb"; 2])).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(GPU, 1), (&resource, 2)]).await;
    rig.node.update(|node| node.set_mig::<&str>(0, &[])).unwrap();
    rig.plugin.wait_for_log(&["no longer served", &resource]).await;
    assert!(rig.kubelet.lists(&resource).last().unwrap().devices.is_empty());
    wait_until(|| rig.sockets().len() == 1, "one socket").await;
    rig.node.update(|node| node.set_mig(0, &["1g.10gb"; 2])).unwrap();
    rig.wait_for_counts(&[(GPU, 1), (&resource, 2)]).await;
    assert_eq!(rig.kubelet.lists(GPU).len(), 1);
    rig.finish().await;
}

#[tokio::test]
async fn mig_mode_is_switched_under_us() {
    let rig = Rig::mixed(&Description::h100s(2)).await;
    rig.wait_for_counts(&[(GPU, 2)]).await;
    rig.node.update(|node| node.set_mig(0, &["3g.40gb", "3g.40gb"])).unwrap();
    rig.wait_for_counts(&[(GPU, 1), (&mig("3g.40gb"), 2)]).await;
    rig.node.update(|node| node.set_mig_mode(0, false)).unwrap();
    rig.wait_for_counts(&[(GPU, 2)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn the_same_uuid_with_another_profile_is_another_device() {
    let small = [Instance::new("1g.10gb").gi(9).at(0)];
    let large = [Instance::new("1g.20gb").gi(9).at(0)];
    let rig = Rig::mixed(&Description::h100s(1).with_mig(0, &small)).await;
    rig.wait_for_counts(&[(&mig("1g.10gb"), 1)]).await;
    let uuid = rig.node.gpus().unwrap()[0].mig[0].uuid.clone();
    rig.node.update(|node| node.set_mig(0, &large)).unwrap();
    assert_eq!(rig.node.gpus().unwrap()[0].mig[0].uuid, uuid);
    rig.wait_for_counts(&[(&mig("1g.20gb"), 1)]).await;
    let left = rig.kubelet.lists(&mig("1g.10gb")).last().unwrap().at;
    let lists = rig.kubelet.lists(&mig("1g.20gb"));
    let came = lists.iter().find(|list| list.devices[&uuid].healthy).unwrap().at;
    assert!(left < came, "the old device has to leave before the new one is given out");
    rig.finish().await;
}

#[tokio::test]
async fn a_burst_of_changes_costs_few_lists() {
    let rig = Rig::mixed(&Description::h100s(2).with_mig(0, &["1g.10gb"; 4])).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(GPU, 1), (&resource, 4)]).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(rig.kubelet.lists(&resource).len(), 1, "nothing changed, so nothing is to be sent");
    for _ in 0..40 {
        rig.plugin.signal("HUP");
    }
    rig.plugin.wait_for_log(&["SIGHUP"]).await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(rig.kubelet.lists(&resource).len(), 1);
    rig.finish().await;
}

/// Pods come and go while slices do: no answer may name a slice that was not there when it was given, and the
/// kubelet must never find that a device vanished while it was being allocated.
#[tokio::test]
async fn allocations_while_slices_come_and_go() {
    let description = Description::h100s(2).with_mig(0, &["1g.10gb"; 7]).with_mig(1, &["1g.10gb"; 7]);
    let mut rig = Rig::mixed(&description).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(&resource, 14)]).await;
    let done = AtomicBool::new(false);
    let change = async {
        for round in 0..12 {
            let layout: &[&str] = if round % 2 == 0 { &["3g.40gb", "1g.10gb"] } else { &["1g.10gb"; 7] };
            rig.node.update(|node| node.set_mig(0, layout)).unwrap();
            sleep(Duration::from_millis(700)).await;
        }
        done.store(true, Ordering::Relaxed);
    };
    let load = async {
        let (mut given, mut refused) = (0, 0);
        let mut n = 0;
        while !done.load(Ordering::Relaxed) {
            n += 1;
            let name = format!("pod-{n}");
            let there = uuids(&rig);
            match rig.kubelet.run_pod(pod(&name, &resource)).await {
                Ok(pod) => {
                    given += 1;
                    let now = uuids(&rig);
                    for id in pod.ids(&resource) {
                        assert!(
                            there.contains(&id) || now.contains(&id),
                            "{id} was there neither before nor after"
                        );
                    }
                }
                Err(AdmissionError::Insufficient { .. }) => {}
                Err(error) => {
                    refused += 1;
                    let status = error.status().expect("refused by the plugin");
                    assert!(status.message().contains("MIG-"), "{status}");
                }
            }
            rig.kubelet.delete_pod(&name);
            sleep(Duration::from_millis(2)).await;
        }
        (given, refused)
    };
    let ((), (given, _)) = tokio::join!(change, load);
    assert!(given > 100, "only {given} pods ran");
    rig.wait_for_counts(&[(&resource, 14)]).await;
    assert!(rig.plugin.is_running());
    rig.finish().await;
}

fn uuids(rig: &Rig) -> BTreeSet<String> {
    let gpus = rig.node.gpus().unwrap();
    gpus.into_iter().flat_map(|gpu| gpu.mig).map(|slice| slice.uuid).collect()
}

#[tokio::test]
async fn a_change_that_the_driver_tells_of_is_followed_without_a_scan() {
    let description = Description::h100s(1).with_mig(0, &["1g.10gb"; 2]);
    let rig = Rig::start(&description, &["--mig-strategy=mixed", "--rescan-interval=0"]).await;
    rig.wait_for_counts(&[(&mig("1g.10gb"), 2)]).await;
    let listens = || rig.node.counters().unwrap().get("nvmlEventSetWait_v2").copied().unwrap_or(0) > 0;
    wait_until(listens, "the plugin to listen for events").await;
    rig.node.update(|node| node.set_mig(0, &["2g.20gb"])).unwrap();
    rig.node.send(&Event::mig_config_change()).unwrap();
    rig.wait_for_counts(&[(&mig("2g.20gb"), 1)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn a_slice_that_went_while_the_plugin_was_away_is_listed_until_its_pod_releases_it() {
    let (mut rig, held) = held_and_gone(&mig("1g.10gb")).await;
    let resource = mig("1g.10gb");
    rig.plugin.kill().await;
    let killed = rig.kubelet.lists(&resource).len();
    rig.plugin = rig.second_plugin(&["--mig-strategy=mixed", "--removal-grace=0"]);
    rig.kubelet.wait_for_registrations(&resource, 2).await.unwrap();
    rig.kubelet.wait_for(|view| view.serves(&resource), "the slices").await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let lists = &rig.kubelet.lists(&resource)[killed..];
    assert!(!lists.is_empty() && lists.iter().all(|list| !list.devices[&held].healthy), "{lists:?}");
    // A Topology Manager looks at the devices of running pods, and crashes where one is missing.
    rig.kubelet.restart().await.unwrap();
    rig.kubelet.wait_for(|view| view.serves(&resource), "the slices").await.unwrap();
    rig.kubelet.delete_pod("holder");
    rig.kubelet.wait_for_devices(&resource, |devices| !devices.contains_key(&held)).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_strategy_that_changes_while_pods_run_hands_no_slice_out_twice() {
    let description = Description::h100s(1).with_mig(0, &["1g.10gb"; 2]);
    let mut rig = Rig::start(&description, &["--mig-strategy=single"]).await;
    rig.wait_for_counts(&[(GPU, 2)]).await;
    let held = rig.kubelet.run_pod(pod("holder", GPU)).await.unwrap().ids(GPU).remove(0);
    rig.plugin.signal("TERM");
    rig.plugin.exit().await;
    rig.plugin = rig.second_plugin(&["--mig-strategy=mixed"]);
    let resource = mig("1g.10gb");
    rig.kubelet.wait_for_capacity(&resource, 2, 1).await.unwrap();
    assert!(!rig.kubelet.devices(&resource)[&held].healthy);
    rig.kubelet.delete_pod("holder");
    rig.kubelet.wait_for_capacity(&resource, 2, 2).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_slice_that_was_made_anew_under_the_same_ids_is_not_handed_out_as_the_old_one() {
    let description = Description::h100s(1).with_mig(0, &["1g.10gb"; 2]);
    // Nothing is told and nothing is scanned: only the Allocate itself can notice.
    let rig = Rig::start(&description, &["--mig-strategy=mixed", "--rescan-interval=0"]).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(&resource, 2)]).await;
    let old = rig.node.gpus().unwrap()[0].mig[0].clone();
    let reused = Instance::new("1g.20gb").gi(old.gi).uuid(&old.uuid);
    rig.node.update(|node| node.gpu(0).layout[0] = reused).unwrap();
    let error = rig.kubelet.allocate_ids(&resource, &[&old.uuid]).await.unwrap_err();
    assert!(error.message().contains(&old.uuid), "{error:?}");
    rig.wait_for_counts(&[(&resource, 1), (&mig("1g.20gb"), 1)]).await;
    rig.finish().await;
}
