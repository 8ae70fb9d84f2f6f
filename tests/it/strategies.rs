//! Which resources a node offers, over strategies and layouts.

use fake_kubelet::PodSpec;
use fake_nvml::{Description, Instance};

use crate::rig::{GPU, Rig, mig};

/// Two H100s with these layouts; `None` is a GPU that is not in MIG mode.
fn node(layouts: &[Option<&[&str]>]) -> Description {
    let mut description = Description::h100s(layouts.len());
    for (index, layout) in layouts.iter().enumerate() {
        if let Some(layout) = layout {
            description.set_mig(index, layout);
        }
    }
    description
}

async fn offers(description: &Description, strategy: &str, counts: &[(&str, usize)], log: &[&str]) {
    let mut rig = Rig::start(description, &[&format!("--mig-strategy={strategy}")]).await;
    rig.wait_for_counts(counts).await;
    for words in log {
        rig.plugin.wait_for_log(&[words]).await;
    }
    assert!(rig.plugin.is_running());
    rig.finish().await;
}

const SEVEN: &[&str] = &["1g.10gb"; 7];
const VARIED: &[&str] = &["3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb"];

#[tokio::test]
async fn gpus_without_mig() {
    let description = node(&[None, None]);
    for strategy in ["none", "single", "mixed"] {
        offers(&description, strategy, &[(GPU, 2)], &[]).await;
    }
}

#[tokio::test]
async fn gpus_that_have_no_mig_at_all() {
    let description = Description::of("tesla-t4", 2);
    for strategy in ["none", "single", "mixed"] {
        offers(&description, strategy, &[(GPU, 2)], &[]).await;
    }
}

#[tokio::test]
async fn the_same_slices_everywhere() {
    let description = node(&[Some(SEVEN), Some(SEVEN)]);
    offers(&description, "none", &[(GPU, 2)], &[]).await;
    offers(&description, "single", &[(GPU, 14)], &[]).await;
    offers(&description, "mixed", &[(&mig("1g.10gb"), 14)], &[]).await;
}

#[tokio::test]
async fn different_slices() {
    let description = node(&[Some(SEVEN), Some(VARIED)]);
    offers(&description, "none", &[(GPU, 2)], &[]).await;
    offers(&description, "single", &[(GPU, 9)], &["withheld"]).await;
    let counts = [(&*mig("1g.10gb"), 9), (&*mig("2g.20gb"), 1), (&*mig("3g.40gb"), 1)];
    offers(&description, "mixed", &counts, &[]).await;
}

#[tokio::test]
async fn slices_and_whole_gpus() {
    let description = node(&[None, Some(VARIED)]);
    offers(&description, "none", &[(GPU, 2)], &[]).await;
    offers(&description, "single", &[(GPU, 2)], &["withheld"]).await;
    let counts = [(GPU, 1), (&*mig("1g.10gb"), 2), (&*mig("2g.20gb"), 1), (&*mig("3g.40gb"), 1)];
    offers(&description, "mixed", &counts, &[]).await;
}

#[tokio::test]
async fn a_gpu_in_mig_mode_without_a_slice() {
    let description = node(&[None, Some(&[])]);
    offers(&description, "none", &[(GPU, 2)], &[]).await;
    offers(&description, "single", &[], &["nothing to offer"]).await;
    offers(&description, "mixed", &[(GPU, 1)], &[]).await;
}

#[tokio::test]
async fn slices_with_media_engines_have_a_resource_of_their_own() {
    let description = node(&[Some(&["1g.10gb+me", "1g.20gb", "2g.20gb"])]);
    let counts = [(&*mig("1g.10gb+me"), 1), (&*mig("1g.20gb"), 1), (&*mig("2g.20gb"), 1)];
    offers(&description, "mixed", &counts, &[]).await;
}

#[tokio::test]
async fn compute_instances_smaller_than_their_gpu_instance() {
    let layout = [Instance::new("3g.40gb").compute(&[1, 2]), Instance::new("1g.10gb")];
    let description = Description::h100s(1).with_mig(0, &layout);
    let counts = [(&*mig("1c.3g.40gb"), 1), (&*mig("1g.10gb"), 1), (&*mig("2c.3g.40gb"), 1)];
    offers(&description, "mixed", &counts, &[]).await;
    offers(&description, "single", &[(GPU, 1)], &["withheld"]).await;
}

#[tokio::test]
async fn a_gpu_instance_that_is_half_made_offers_nothing() {
    let layout = [Instance::new("3g.40gb").compute(&[]), Instance::new("1g.10gb")];
    let description = Description::h100s(1).with_mig(0, &layout);
    offers(&description, "mixed", &[(&mig("1g.10gb"), 1)], &[]).await;
}

#[tokio::test]
async fn gpus_of_several_models() {
    let description =
        Description::h100s(1).and("a30-24gb", 1).with_mig(0, &["1g.10gb"; 2]).with_mig(1, &["1g.6gb"; 4]);
    offers(&description, "mixed", &[(&mig("1g.10gb"), 2), (&mig("1g.6gb"), 4)], &[]).await;
    offers(&description, "single", &[(GPU, 4)], &["withheld"]).await;
}

#[tokio::test]
async fn lists_have_numa_nodes_and_whole_uuids() {
    let mut description = Description::h100s(2).with_mig(0, &["1g.10gb"; 2]);
    description.gpu(0).numa = Some(1);
    description.gpu(1).numa = Some(-1);
    let rig = Rig::mixed(&description).await;
    rig.wait_for_counts(&[(GPU, 1), (&mig("1g.10gb"), 2)]).await;
    let gpus = rig.node.gpus().unwrap();
    let slices = rig.kubelet.devices(&mig("1g.10gb"));
    for slice in &gpus[0].mig {
        assert_eq!(slices[&slice.uuid].numa, Some(1));
    }
    assert_eq!(rig.kubelet.devices(GPU)[&gpus[1].uuid].numa, None);
    rig.finish().await;
}

#[tokio::test]
async fn what_is_shared_by_count_stays_what_pods_hold_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    let configure = |devices: &str| {
        let shared = format!("{{name: nvidia.com/gpu, rename: turns, replicas: 2, devices: {devices}}}");
        let text = format!("version: v1\nsharing: {{timeSlicing: {{resources: [{shared}]}}}}\n");
        std::fs::write(&file, text).unwrap();
    };
    configure("[1]");
    let flag = format!("--config-file={}", file.display());
    let mut rig = Rig::start(&Description::h100s(3), &[&flag]).await;
    let turns = "nvidia.com/turns";
    rig.wait_for_counts(&[(GPU, 2), (turns, 2)]).await;
    let pod = PodSpec::new("holder").container("main").limit(turns, 1);
    let held = rig.kubelet.run_pod(pod).await.unwrap().ids(turns).remove(0);
    rig.plugin.kill().await;
    let before = rig.kubelet.lists(turns).len();
    configure("1");
    rig.plugin = rig.second_plugin(&[&flag]);
    rig.kubelet.wait_for_registrations(turns, 2).await.unwrap();
    rig.wait_for_counts(&[(GPU, 2), (turns, 2)]).await;
    let lists = &rig.kubelet.lists(turns)[before..];
    assert!(!lists.is_empty() && lists.iter().all(|list| list.devices[&held].healthy), "{lists:?}");
    rig.finish().await;
}
