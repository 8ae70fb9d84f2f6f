//! Devices that fall sick, and get well again.

use std::collections::BTreeSet;
use std::time::Duration;

use fake_kubelet::PodSpec;
use fake_nvml::{Description, DriverState, Event, Fault, Instance, RecoveryAction};
use tokio::time::sleep;

use crate::rig::{GPU, Rig, mig, wait_until};

/// `Contained memory error`: one that counts and is a single slice's.
const XID: u64 = 94;

fn seven() -> Description {
    Description::h100s(2).with_mig(0, &["1g.10gb"; 7])
}

/// The UUIDs of GPU `gpu`'s slices, with their instance IDs.
pub(crate) fn slices(rig: &Rig, gpu: usize) -> Vec<(String, u32, u32)> {
    let gpus = rig.node.gpus().unwrap();
    gpus[gpu].mig.iter().map(|slice| (slice.uuid.clone(), slice.gi, slice.ci)).collect()
}

/// The devices of `resource` that are listed as unhealthy, by UUID.
fn sick(rig: &Rig, resource: &str) -> BTreeSet<String> {
    let devices = rig.kubelet.devices(resource);
    let sick = devices.into_iter().filter(|(_, device)| !device.healthy);
    sick.map(|(id, _)| id.split("::").next().unwrap_or_default().to_owned()).collect()
}

pub(crate) async fn wait_for_sick(rig: &Rig, resource: &str, uuids: &[&String]) {
    let wanted: BTreeSet<String> = uuids.iter().map(|uuid| (*uuid).clone()).collect();
    wait_until(|| sick(rig, resource) == wanted, &format!("{wanted:?} of {resource} to be sick")).await;
}

pub(crate) fn needs(rig: &Rig, gpu: usize, action: RecoveryAction) {
    rig.node.update(|node| node.gpu(gpu).recovery_action = action).unwrap();
}

/// Waits until the plugin listens for events; earlier ones are lost, as with a real driver.
async fn listening(rig: &Rig) {
    let registered = || rig.node.counters().unwrap().get("nvmlEventSetWait_v2").copied().unwrap_or(0) > 0;
    wait_until(registered, "the plugin to listen for events").await;
}

pub(crate) async fn started(description: &Description, flags: &[&str]) -> Rig {
    let flags: Vec<_> = ["--mig-strategy=mixed"].iter().chain(flags).copied().collect();
    let rig = Rig::start(description, &flags).await;
    let resource = mig("1g.10gb");
    rig.kubelet.wait_for(|view| view.serves(&resource), "the slices").await.unwrap();
    listening(&rig).await;
    rig
}

#[tokio::test]
async fn each_of_seven_slices_falls_sick_alone_and_gets_well() {
    let rig = started(&seven(), &[]).await;
    let resource = mig("1g.10gb");
    for (uuid, gi, ci) in slices(&rig, 0) {
        rig.node.send(&Event::xid(XID).on_instance(gi, ci)).unwrap();
        wait_for_sick(&rig, &resource, &[&uuid]).await;
        rig.plugin.wait_for_log(&["WARN", "sick", &uuid, "Xid 94"]).await;
        wait_for_sick(&rig, &resource, &[]).await;
        rig.plugin.wait_for_log(&["well again", &uuid]).await;
    }
    assert_eq!(rig.kubelet.lists(GPU).len(), 1, "the other GPU's list had no reason to be sent again");
    rig.finish().await;
}

#[tokio::test]
async fn an_event_on_a_gpu_instance_hits_all_that_is_in_it() {
    let layout = [Instance::new("3g.40gb").compute(&[1, 2]), Instance::new("1g.10gb")];
    let rig = started(&Description::h100s(1).with_mig(0, &layout), &[]).await;
    rig.wait_for_counts(&[(&mig("1c.3g.40gb"), 1), (&mig("1g.10gb"), 1), (&mig("2c.3g.40gb"), 1)]).await;
    needs(&rig, 0, RecoveryAction::None);
    let gi = rig.node.gpus().unwrap()[0].instances[0].gi;
    rig.node.send(&Event::xid(XID).on_gpu_instance(gi)).unwrap();
    for resource in [mig("1c.3g.40gb"), mig("2c.3g.40gb")] {
        rig.kubelet.wait_for_capacity(&resource, 1, 0).await.unwrap();
    }
    assert_eq!(rig.kubelet.lists(&mig("1g.10gb")).len(), 1, "a slice beside it flickered");
    rig.wait_for_counts(&[(&mig("1c.3g.40gb"), 1), (&mig("1g.10gb"), 1), (&mig("2c.3g.40gb"), 1)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn an_event_on_a_gpu_hits_all_of_it_with_all_replicas_and_no_other_gpu() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    let sharing = "sharing: {timeSlicing: {resources: [{name: nvidia.com/mig-1g.10gb, replicas: 3}]}}";
    std::fs::write(&file, format!("version: v1\n{sharing}\n")).unwrap();
    let description = Description::h100s(2).with_mig(0, &["1g.10gb"; 7]).with_mig(1, &["1g.10gb"; 2]);
    let flag = format!("--config-file={}", file.display());
    let rig = started(&description, &[&flag]).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(&resource, 27)]).await;
    rig.node.send(&Event::xid(XID)).unwrap();
    rig.kubelet.wait_for_capacity(&resource, 27, 6).await.unwrap();
    let on_gpu_0: BTreeSet<_> = slices(&rig, 0).into_iter().map(|(uuid, ..)| uuid).collect();
    assert_eq!(sick(&rig, &resource), on_gpu_0);
    rig.wait_for_counts(&[(&resource, 27)]).await;
    let (uuid, gi, ci) = slices(&rig, 1).remove(1);
    rig.node.send(&Event::xid(XID).on_gpu(1).on_instance(gi, ci)).unwrap();
    rig.kubelet.wait_for_capacity(&resource, 27, 24).await.unwrap();
    assert_eq!(sick(&rig, &resource), [uuid].into());
    rig.finish().await;
}

#[tokio::test]
async fn a_slice_stays_sick_while_its_gpu_needs_something_though_it_answers() {
    let rig = started(&seven(), &[]).await;
    let resource = mig("1g.10gb");
    let all = slices(&rig, 0);
    let (uuid, gi, ci) = &all[3];
    needs(&rig, 0, RecoveryAction::Reset);
    rig.node.send(&Event::xid(XID).on_instance(*gi, *ci)).unwrap();
    // What the GPU needs concerns all of its slices.
    wait_for_sick(&rig, &resource, &all.iter().map(|(uuid, ..)| uuid).collect::<Vec<_>>()).await;
    rig.plugin.wait_for_log(&["the driver asks for a reset of the GPU"]).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(sick(&rig, &resource).len(), 7, "three quiet periods and five looks later");
    let error = rig.kubelet.allocate_ids(&resource, &[uuid]).await.unwrap_err();
    assert!(error.message().contains("Xid 94"), "{error:?}");
    needs(&rig, 0, RecoveryAction::None);
    wait_for_sick(&rig, &resource, &[]).await;
    rig.finish().await;
}

#[tokio::test]
async fn a_driver_that_does_not_tell_heals_by_a_new_instance_alone() {
    let old = seven().with_faults([Fault::error("nvmlDeviceGetFieldValues", "NOT_SUPPORTED")]);
    let rig = started(&old, &[]).await;
    let resource = mig("1g.10gb");
    rig.plugin.wait_for_log(&["GPU 0, 1: ", "reset"]).await;
    let (uuid, gi, ci) = slices(&rig, 0).remove(6);
    rig.node.send(&Event::xid(XID).on_instance(gi, ci)).unwrap();
    wait_for_sick(&rig, &resource, &[&uuid]).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(sick(&rig, &resource), [uuid.clone()].into());
    let instance = rig.node.description().unwrap().gpus[0].layout[6].clone();
    rig.node.update(|node| drop(node.gpu(0).layout.remove(6))).unwrap();
    rig.kubelet.wait_for_devices(&resource, |devices| !devices.contains_key(&uuid)).await.unwrap();
    rig.node.update(|node| node.gpu(0).layout.push(instance)).unwrap();
    rig.wait_for_counts(&[(GPU, 1), (&resource, 7)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn without_recovery_a_sick_device_stays_sick() {
    let rig = started(&seven(), &["--health-recovery=off"]).await;
    let resource = mig("1g.10gb");
    let (uuid, gi, ci) = slices(&rig, 0).remove(0);
    rig.node.send(&Event::xid(XID).on_instance(gi, ci)).unwrap();
    wait_for_sick(&rig, &resource, &[&uuid]).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(sick(&rig, &resource), [uuid].into());
    rig.finish().await;
}

#[tokio::test]
async fn errors_of_applications_are_ignored_unless_somebody_asks_for_them() {
    let rig = started(&seven(), &["--enable-healthchecks=31", "--disable-healthchecks=94"]).await;
    let resource = mig("1g.10gb");
    let all = slices(&rig, 0);
    for (xid, (_, gi, ci)) in [13, 43, 45, 68, 109, 94].into_iter().zip(&all) {
        rig.node.send(&Event::xid(xid).on_instance(*gi, *ci)).unwrap();
    }
    let (uuid, gi, ci) = &all[6];
    rig.node.send(&Event::xid(31).on_instance(*gi, *ci)).unwrap();
    wait_for_sick(&rig, &resource, &[uuid]).await;
    rig.wait_for_counts(&[(GPU, 1), (&resource, 7)]).await;
    let ever = rig.kubelet.lists(&resource).into_iter().flat_map(|list| list.devices.into_values());
    let ever: BTreeSet<_> = ever.filter(|device| !device.healthy).map(|device| device.id).collect();
    assert_eq!(ever, [uuid.clone()].into());
    rig.finish().await;
}

#[tokio::test]
async fn an_error_that_comes_while_the_kubelet_is_away_is_in_its_first_list() {
    let rig = started(&seven(), &["--health-recovery=off"]).await;
    let resource = mig("1g.10gb");
    let (uuid, gi, ci) = slices(&rig, 0).remove(2);
    rig.kubelet.stop().await.unwrap();
    rig.node.send(&Event::xid(XID).on_instance(gi, ci)).unwrap();
    rig.plugin.wait_for_log(&["sick", &uuid]).await;
    rig.kubelet.restart().await.unwrap();
    rig.kubelet.wait_for(|view| view.serves(&resource), "the slices").await.unwrap();
    let life = |list: &fake_kubelet::DeviceList| list.devices.get(&uuid).map(|device| device.healthy);
    assert_eq!(rig.kubelet.lists(&resource).last().and_then(life), Some(false));
    rig.finish().await;
}

#[tokio::test]
async fn nothing_but_the_driver_makes_a_sick_device_well() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    let content = |interval| {
        format!("version: v1\nflags: {{plugin: {{rescanInterval: {interval}, removalGrace: 1s}}}}\n")
    };
    std::fs::write(&file, content("200ms")).unwrap();
    let flag = format!("--config-file={}", file.display());
    let rig =
        Rig::start_plain(&seven(), &["--mig-strategy=mixed", "--health-recovery-quiet=1h", &flag]).await;
    let resource = mig("1g.10gb");
    rig.kubelet.wait_for(|view| view.serves(&resource), "the slices").await.unwrap();
    listening(&rig).await;
    let (uuid, gi, ci) = slices(&rig, 0).remove(4);
    rig.node.send(&Event::xid(XID).on_instance(gi, ci)).unwrap();
    wait_for_sick(&rig, &resource, &[&uuid]).await;
    let since = rig.kubelet.lists(&resource).len();
    rig.kubelet.restart().await.unwrap();
    rig.kubelet.wait_for_registrations(&resource, 2).await.unwrap();
    wait_for_sick(&rig, &resource, &[&uuid]).await;
    // A change that is taken while all goes on, and one that starts all parts over.
    std::fs::write(&file, content("200ms").replace("removalGrace: 1s", "removalGrace: 2s")).unwrap();
    rig.plugin.wait_for_log(&["configuration loaded again"]).await;
    std::fs::write(&file, content("100ms")).unwrap();
    rig.plugin.wait_for_log(&["starting over"]).await;
    rig.kubelet.wait_for_registrations(&resource, 3).await.unwrap();
    rig.plugin.signal("HUP");
    sleep(Duration::from_millis(500)).await;
    wait_for_sick(&rig, &resource, &[&uuid]).await;
    for list in &rig.kubelet.lists(&resource)[since..] {
        assert!(!list.devices[&uuid].healthy, "it was healthy for a moment");
        assert_eq!(list.devices.len(), 7);
    }
    rig.finish().await;
}

#[tokio::test]
async fn ten_thousand_errors_in_a_second_are_few_lists_and_no_memory() {
    let rig = started(&seven(), &["--health-recovery=off"]).await;
    let resource = mig("1g.10gb");
    let all = slices(&rig, 0);
    let before = (rig.plugin.resident_kib(), rig.kubelet.lists(&resource).len());
    // The last slice stays as it is, and the others fall sick for Xids of which each has many.
    for n in 0..10_000_u64 {
        let slice = usize::try_from(n % 6).unwrap();
        let (_, gi, ci) = &all[slice];
        rig.node.send(&Event::xid(69 + n / 2_000).on_instance(*gi, *ci)).unwrap();
    }
    let first_six: Vec<_> = all[..6].iter().map(|(uuid, ..)| uuid).collect();
    wait_for_sick(&rig, &resource, &first_six).await;
    // An event that comes after them all has been seen when it shows.
    rig.node.send(&Event::xid(XID).on_instance(all[6].1, all[6].2)).unwrap();
    wait_for_sick(&rig, &resource, &all.iter().map(|(uuid, ..)| uuid).collect::<Vec<_>>()).await;
    let lists = rig.kubelet.lists(&resource).len() - before.1;
    assert!(lists <= 8, "{lists} lists");
    let grown = rig.plugin.resident_kib().saturating_sub(before.0);
    assert!(grown < 2_048, "{grown} KiB more");
    assert!(rig.plugin.log().lines().filter(|line| line.contains("sick")).count() < 200);
    rig.finish().await;
}

#[tokio::test]
async fn a_running_pod_keeps_its_sick_slice_and_no_other_gets_it() {
    let rig = started(&Description::h100s(1).with_mig(0, &["1g.10gb"; 2]), &["--health-recovery=off"]).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(&resource, 2)]).await;
    let pod = |name: &str| PodSpec::new(name).container("main").limit(&resource, 1);
    let held = rig.kubelet.run_pod(pod("first")).await.unwrap().ids(&resource).remove(0);
    let (uuid, gi, ci) = slices(&rig, 0).into_iter().find(|(uuid, ..)| *uuid == held).unwrap();
    rig.node.send(&Event::xid(XID).on_instance(gi, ci)).unwrap();
    wait_for_sick(&rig, &resource, &[&uuid]).await;
    assert!(rig.kubelet.pods().contains_key("first"));
    let second = rig.kubelet.run_pod(pod("second")).await.unwrap().ids(&resource);
    assert_ne!(second, [held]);
    rig.kubelet.delete_pod("first");
    assert!(rig.kubelet.run_pod(pod("third")).await.is_err(), "only the sick slice is free");
    rig.finish().await;
}

#[tokio::test]
async fn a_gpu_that_cannot_be_read_now_and_then_is_two_lists() {
    let rig = started(&seven(), &["--health-recovery-quiet=1h"]).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(GPU, 1), (&resource, 7)]).await;
    let looks = || rig.node.counters().unwrap().get("nvmlDeviceGetCount_v2").copied().unwrap_or(0);
    for _ in 0..10 {
        for faults in [vec![Fault::error("nvmlDeviceGetMigMode", "UNKNOWN").on_gpu(0)], Vec::new()] {
            rig.node.update(|node| node.faults = faults).unwrap();
            let before = looks();
            wait_until(|| looks() > before + 1, "a look that sees it").await;
        }
    }
    let lists = rig.kubelet.lists(&resource);
    assert_eq!(lists.len(), 2, "it went to and fro");
    assert!(lists[1].devices.values().all(|device| !device.healthy));
    rig.finish().await;
}

#[tokio::test]
async fn a_library_of_another_version_is_no_reset_and_another_driver_is_one() {
    let old = seven().with_faults([Fault::error("nvmlDeviceGetFieldValues", "NOT_SUPPORTED")]);
    let rig = started(&old, &[]).await;
    let resource = mig("1g.10gb");
    let (uuid, gi, ci) = slices(&rig, 0).remove(6);
    rig.node.send(&Event::xid(XID).on_instance(gi, ci)).unwrap();
    wait_for_sick(&rig, &resource, &[&uuid]).await;
    rig.node.update(|node| node.driver = DriverState::VersionMismatch).unwrap();
    rig.plugin.wait_for_log(&["no driver", "of different versions"]).await;
    rig.kubelet.wait_for_capacity(&resource, 7, 0).await.unwrap();
    rig.node.update(|node| node.driver = DriverState::Loaded).unwrap();
    wait_for_sick(&rig, &resource, &[&uuid]).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(sick(&rig, &resource), [uuid].into(), "three quiet periods and five looks later");
    // The driver is replaced while it is left alone, so that nothing fails.
    rig.plugin.signal("USR1");
    rig.plugin.wait_for_log(&["NVML is shut down"]).await;
    rig.node.upgrade_driver("590.48.01").unwrap();
    rig.plugin.signal("USR2");
    rig.plugin.wait_for_log(&["another kernel driver"]).await;
    rig.wait_for_counts(&[(GPU, 1), (&resource, 7)]).await;
    rig.finish().await;
}
