//! A driver in trouble: lost GPUs, calls that hang, events that fail, another version, somebody who needs it alone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fake_nvml::{AfterReset, Description, Event, Fault, Lost, RecoveryAction};
use tokio::time::sleep;

use crate::rig::{GPU, LIMIT, Plugin, Rig, mig, wait_until};

fn description() -> Description {
    Description::h100s(3).with_mig(0, &["1g.10gb"; 2]).with_mig(1, &["1g.10gb"; 2])
}

fn calls(rig: &Rig, name: &str) -> u64 {
    rig.node.counters().unwrap().get(name).copied().unwrap_or(0)
}

#[tokio::test]
async fn a_gpu_that_is_lost_under_load_costs_no_allocation_elsewhere() {
    let rig = Rig::mixed(&description()).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(GPU, 1), (&resource, 4)]).await;
    let gpus = rig.node.gpus().unwrap();
    let [lost, other] = [&gpus[0], &gpus[1]].map(|gpu| gpu.mig[0].uuid.clone());
    let done = AtomicBool::new(false);
    let load = async {
        let mut served = 0;
        while !done.load(Ordering::Relaxed) {
            rig.kubelet.allocate_ids(&resource, &[&other]).await.expect("a GPU that is well");
            served += 1;
        }
        served
    };
    let trouble = async {
        rig.node.update(|node| node.faults.push(Fault::error("*", "GPU_IS_LOST").on_gpu(0))).unwrap();
        rig.kubelet.wait_for_capacity(&resource, 4, 2).await.unwrap();
        let error = rig.kubelet.allocate_ids(&resource, &[&lost]).await.unwrap_err();
        assert!(error.message().contains("GPU is lost"), "{error:?}");
        rig.node.update(|node| node.faults.clear()).unwrap();
        rig.kubelet.wait_for_capacity(&resource, 4, 4).await.unwrap();
        done.store(true, Ordering::Relaxed);
    };
    let (served, ()) = tokio::join!(load, trouble);
    assert!(served > 0);
    for list in rig.kubelet.lists(&resource) {
        assert!(list.devices[&other].healthy, "a device of another GPU flickered");
    }
    rig.finish().await;
}

#[tokio::test]
async fn a_gpu_whose_calls_hang_costs_only_itself() {
    let rig = Rig::mixed(&description()).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(GPU, 1), (&resource, 4)]).await;
    rig.node.update(|node| node.faults.push(Fault::delay("nvmlDeviceGetUUID", 12_000).on_gpu(0))).unwrap();
    rig.kubelet.wait_for_capacity(&resource, 4, 2).await.unwrap();
    rig.plugin.wait_for_log(&["unhealthy", "does not answer"]).await;
    // The others are still looked at.
    rig.node.update(|node| node.set_mig(1, &["2g.20gb"; 2])).unwrap();
    rig.kubelet.wait_for_capacity(&mig("2g.20gb"), 2, 2).await.unwrap();
    rig.node.update(|node| node.faults.clear()).unwrap();
    rig.wait_for_counts(&[(GPU, 1), (&resource, 2), (&mig("2g.20gb"), 2)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn waiting_for_events_may_fail_without_harm() {
    let faulty = description().with_faults([Fault::error("nvmlEventSetWait_v2", "UNKNOWN")]);
    let rig = Rig::mixed(&faulty).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(GPU, 1), (&resource, 4)]).await;
    wait_until(|| calls(&rig, "nvmlEventSetWait_v2") >= 3, "some attempts").await;
    let before = calls(&rig, "nvmlEventSetWait_v2");
    sleep(Duration::from_secs(2)).await;
    let attempts = calls(&rig, "nvmlEventSetWait_v2") - before;
    assert!(attempts <= 20, "{attempts} attempts in 2 s are a busy loop");
    let counters = rig.node.counters().unwrap();
    let kept = counters["nvmlEventSetCreate"] - counters["nvmlEventSetFree"];
    assert!(kept <= 1, "{kept} sets were not freed");
    assert_eq!(rig.kubelet.lists(&resource).len(), 1, "nothing is known against a device");
    rig.node.update(|node| node.faults.clear()).unwrap();
    let gpu = &rig.node.gpus().unwrap()[1];
    // An event is lost while there is no set, so it is sent until one is heard.
    let start = Instant::now();
    while !rig.kubelet.devices(&resource).values().any(|device| !device.healthy) {
        assert!(start.elapsed() < LIMIT, "no event is heard");
        rig.node.send(&Event::xid(94).on_gpu(1).on_instance(gpu.mig[0].gi, 0)).unwrap();
        sleep(Duration::from_millis(50)).await;
    }
    rig.wait_for_counts(&[(GPU, 1), (&resource, 4)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn a_gpu_that_has_no_events_does_not_keep_others_from_theirs() {
    let faulty =
        description().with_faults([Fault::error("nvmlDeviceRegisterEvents", "NOT_SUPPORTED").on_gpu(0)]);
    let rig = Rig::mixed(&faulty).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(GPU, 1), (&resource, 4)]).await;
    wait_until(|| calls(&rig, "nvmlEventSetWait_v2") > 0, "the plugin to listen for events").await;
    let gpu = rig.node.gpus().unwrap().remove(1);
    rig.node.send(&Event::xid(94).on_gpu(1).on_instance(gpu.mig[1].gi, 0)).unwrap();
    rig.kubelet.wait_for_devices(&resource, |devices| !devices[&gpu.mig[1].uuid].healthy).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn another_version_of_the_driver_is_taken_up_by_the_same_process() {
    let rig = Rig::mixed(&description()).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(GPU, 1), (&resource, 4)]).await;
    let pid = rig.plugin.pid();
    rig.node.upgrade_driver("590.48.01").unwrap();
    rig.kubelet.wait_for_capacity(&resource, 4, 0).await.unwrap();
    rig.plugin.wait_for_log(&["opened NVML", "590.48.01"]).await;
    rig.wait_for_counts(&[(GPU, 1), (&resource, 4)]).await;
    assert_eq!(rig.plugin.pid(), pid);
    rig.finish().await;
}

#[tokio::test]
async fn a_library_that_cannot_be_unloaded_is_left_behind_by_a_new_image_of_the_same_process() {
    let mut rig = Rig::mixed(&description()).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(GPU, 1), (&resource, 4)]).await;
    rig.plugin.signal("TERM");
    rig.plugin.exit().await;
    let library = rig.node.library();
    let flags = ["--mig-strategy=mixed"];
    rig.plugin = Plugin::spawn_preloaded(rig.dir.path(), rig.node.root(), &library, &flags);
    rig.wait_for_counts(&[(GPU, 1), (&resource, 4)]).await;
    let pid = rig.plugin.pid();
    rig.node.upgrade_driver("590.48.01").unwrap();
    rig.plugin.wait_for_log(&["loading this program anew", "libnvidia-ml.so.1"]).await;
    rig.plugin.wait_for_log(&["found", "590.48.01"]).await;
    rig.wait_for_counts(&[(GPU, 1), (&resource, 4)]).await;
    assert_eq!(rig.plugin.pid(), pid);
    rig.finish().await;
}

#[tokio::test]
async fn the_driver_is_left_alone_between_two_signals() {
    let rig = Rig::mixed(&description()).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(GPU, 1), (&resource, 4)]).await;
    rig.plugin.signal("USR1");
    rig.kubelet.wait_for_capacity(&resource, 4, 0).await.unwrap();
    rig.kubelet.wait_for_capacity(GPU, 1, 0).await.unwrap();
    rig.plugin.wait_for_log(&["on hold", "NVML is shut down"]).await;
    let uuid = rig.node.gpus().unwrap()[1].mig[0].uuid.clone();
    let error = rig.kubelet.allocate_ids(&resource, &[&uuid]).await.unwrap_err();
    assert!(error.message().contains("SIGUSR2"), "{error:?}");
    assert_eq!(calls(&rig, "nvmlInit_v2"), calls(&rig, "nvmlShutdown"), "NVML is shut down");
    // What mig-parted does meanwhile; nobody looks.
    rig.node.reset_counters().unwrap();
    rig.node.update(|node| node.set_mig(0, &["3g.40gb"; 2])).unwrap();
    rig.plugin.signal("HUP");
    rig.plugin.wait_for_log(&["SIGHUP"]).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(rig.node.counters().unwrap().values().sum::<u64>(), 0, "{:?}", rig.node.counters());
    rig.plugin.signal("USR2");
    rig.wait_for_counts(&[(GPU, 1), (&resource, 2), (&mig("3g.40gb"), 2)]).await;
    rig.finish().await;
}

/// A node of which GPU 0 is lost and GPU 1 asks for a reset, and a plugin that lets go of such GPUs after `time`.
async fn needing_resets(time: &str) -> Rig {
    let mut description = description();
    description.instances_after_reset = AfterReset::Restored;
    let flag = format!("--lost-gpu-release-after={time}");
    let rig = Rig::start(&description, &["--mig-strategy=mixed", &flag]).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(GPU, 1), (&resource, 4)]).await;
    rig.node
        .update(|node| {
            node.gpu(0).lost = Lost::IsLost;
            node.gpu(1).recovery_action = RecoveryAction::Reset;
        })
        .unwrap();
    rig.kubelet.wait_for_capacity(&resource, 4, 0).await.unwrap();
    rig
}

#[tokio::test]
async fn gpus_that_need_a_reset_are_let_go_of_and_taken_up_when_somebody_says_so() {
    let rig = needing_resets("5s").await;
    for gpu in [0, 1] {
        let refused = rig.node.reset(Some(gpu)).unwrap_err().to_string();
        assert!(refused.contains(&rig.plugin.pid().to_string()), "{refused}");
    }
    let uuids: Vec<_> = rig.node.gpus().unwrap().into_iter().map(|gpu| gpu.uuid).collect();
    for gpu in [0, 1] {
        rig.plugin.wait_for_log(&["closing NVML and opening it again without", &uuids[gpu]]).await;
        let index = u32::try_from(gpu).unwrap();
        wait_until(|| rig.node.reset(Some(index)).is_ok(), "a GPU that nobody has open").await;
    }
    rig.plugin.wait_for_log(&["NVML was opened again", "events of that time were not heard"]).await;
    // The other GPU was offered all the time, and is listened to.
    assert_eq!(rig.kubelet.lists(GPU).len(), 1);
    let resource = mig("1g.10gb");
    assert_eq!(rig.kubelet.capacity(&resource).unwrap().allocatable, 0, "they are not asked for yet");
    rig.plugin.signal("USR2");
    rig.wait_for_counts(&[(GPU, 1), (&resource, 4)]).await;
    rig.node.send(&Event::xid(79).on_gpu(2)).unwrap();
    rig.kubelet.wait_for_capacity(GPU, 1, 0).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn gpus_that_were_let_go_of_are_asked_again_after_a_while() {
    let rig = needing_resets("300ms").await;
    for gpu in [0, 1] {
        wait_until(|| rig.node.reset(Some(gpu)).is_ok(), "a GPU that nobody has open").await;
    }
    rig.wait_for_counts(&[(GPU, 1), (&mig("1g.10gb"), 4)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn a_lost_gpu_makes_nobody_deaf_to_the_others() {
    // With the first a look-up of any GPU by UUID fails too.
    let fault = Fault::error("*", "GPU_IS_LOST").on_gpu(0);
    for (lost, faults) in
        [(Lost::No, vec![fault]), (Lost::IsLost, Vec::new()), (Lost::UnknownHandles, Vec::new())]
    {
        let mut description = description().with_faults(faults);
        description.gpu(0).lost = lost;
        let rig = Rig::mixed(&description).await;
        rig.wait_for_counts(&[(GPU, 1), (&mig("1g.10gb"), 2)]).await;
        let uuid = rig.node.gpus().unwrap()[2].uuid.clone();
        rig.plugin.wait_for_log(&["listening for events", &uuid]).await;
        rig.node.send(&Event::xid(79).on_gpu(2)).unwrap();
        rig.kubelet.wait_for_capacity(GPU, 1, 0).await.unwrap();
        rig.plugin.wait_for_log(&["unhealthy", &uuid, "Xid 79"]).await;
        rig.finish().await;
    }
}
