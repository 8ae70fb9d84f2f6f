//! Errors and needs of whole GPUs and of the node, as a real driver tells of them in MIG mode.

use fake_nvml::{Description, Event, RecoveryAction};

use crate::health::{needs, slices, started, wait_for_sick};
use crate::rig::{GPU, Rig, mig};

fn two_cut_gpus() -> Description {
    Description::h100s(3).with_mig(0, &["1g.10gb"; 3]).with_mig(1, &["1g.10gb"; 2])
}

/// The UUIDs of GPU `gpu`'s slices.
fn uuids(rig: &Rig, gpu: usize) -> Vec<String> {
    slices(rig, gpu).into_iter().map(|(uuid, ..)| uuid).collect()
}

fn lines(rig: &Rig, words: &[&str]) -> usize {
    rig.plugin.log().lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

#[tokio::test]
async fn a_fatal_error_that_names_instance_0_once_per_channel_hits_all_of_the_gpu() {
    let rig = started(&two_cut_gpus(), &["--health-recovery=off"]).await;
    let resource = mig("1g.10gb");
    let mut all = Vec::new();
    // 79 and 120 are about the GPU whatever they name, and 94 since there is no such instance.
    for (gpu, xid) in [(0, 79), (1, 94)] {
        for _channel in 0..20 {
            rig.node.send(&Event::xid(xid).on_gpu(gpu).on_instance(0, 0)).unwrap();
        }
        all.extend(uuids(&rig, gpu as usize));
        wait_for_sick(&rig, &resource, &all.iter().collect::<Vec<_>>()).await;
        let xid = format!("Xid {xid}");
        rig.plugin.wait_for_log(&["WARN", "sick", &xid, &format!("GPU {gpu} ")]).await;
        assert_eq!(lines(&rig, &["\"sick\"", &xid]) + lines(&rig, &[" sick ", &xid]), 1, "once");
    }
    rig.plugin.wait_for_log(&["an event named an instance that does not exist", "whole GPU's"]).await;
    assert!(rig.kubelet.devices(GPU).values().all(|device| device.healthy), "another GPU");
    rig.finish().await;
}

#[tokio::test]
async fn an_error_of_an_instance_that_has_just_gone_hits_nobody() {
    let rig = started(&two_cut_gpus(), &["--health-recovery=off"]).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(GPU, 1), (&resource, 5)]).await;
    let (uuid, gi, ci) = slices(&rig, 0).remove(1);
    rig.node.update(|node| drop(node.gpu(0).layout.remove(1))).unwrap();
    rig.kubelet.wait_for_devices(&resource, |devices| !devices.contains_key(&uuid)).await.unwrap();
    rig.node.send(&Event::xid(94).on_instance(gi, ci)).unwrap();
    rig.plugin.wait_for_log(&["WARN", "Xid 94", "has gone; nothing follows"]).await;
    assert!(rig.kubelet.devices(&resource).values().all(|device| device.healthy));
    rig.finish().await;
}

#[tokio::test]
async fn a_reboot_that_every_gpu_shows_is_said_once_and_stops_all_of_the_node() {
    let rig = started(&two_cut_gpus(), &[]).await;
    let resource = mig("1g.10gb");
    rig.node
        .update(|node| node.gpus.iter_mut().for_each(|gpu| gpu.recovery_action = RecoveryAction::Reboot))
        .unwrap();
    rig.kubelet.wait_for_capacity(&resource, 5, 0).await.unwrap();
    rig.kubelet.wait_for_capacity(GPU, 1, 0).await.unwrap();
    rig.plugin.wait_for_log(&["WARN", "the node with GPU 0 (", "GPU 2 (", "a reboot of the node"]).await;
    let told =
        rig.plugin.log().lines().filter(|line| line.contains("sick") && line.contains("reboot")).count();
    assert_eq!(told, 1);
    for gpu in 0..3 {
        needs(&rig, gpu, RecoveryAction::None);
    }
    rig.wait_for_counts(&[(GPU, 1), (&resource, 5)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn what_does_not_concern_slices_is_a_warning_and_changes_no_list() {
    let rig = started(&two_cut_gpus(), &[]).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(GPU, 1), (&resource, 5)]).await;
    needs(&rig, 0, RecoveryAction::DrainP2p);
    rig.plugin.wait_for_log(&["WARN", "GPU 0 (", "an end of its peer-to-peer traffic"]).await;
    for gpu in 0..3 {
        needs(&rig, gpu, RecoveryAction::RecoverImex);
    }
    rig.plugin.wait_for_log(&["WARN", "a recovery of the node's IMEX domain"]).await;
    // A GPU without MIG has peer-to-peer traffic.
    needs(&rig, 2, RecoveryAction::DrainP2p);
    rig.kubelet.wait_for_capacity(GPU, 1, 0).await.unwrap();
    assert_eq!(rig.kubelet.lists(&resource).len(), 1);
    assert_eq!(lines(&rig, &["a recovery of the node's IMEX domain"]), 1);
    rig.finish().await;
}
