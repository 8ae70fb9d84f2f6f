//! A GPU is given out either as a whole or as slices: strategies and sharing that change while pods run.

use std::time::Instant;

use fake_kubelet::{AdmissionError, PodSpec};
use fake_nvml::Description;
use tempfile::TempDir;

use crate::reload::{Mount, strategy};
use crate::rig::{GPU, Rig, mig};

const REPLICAS: &str = "sharing:\n  timeSlicing:\n    resources:\n    - name: nvidia.com/gpu\n      rename: nvidia.com/gpu.shared\n      replicas: 2\n";

/// How the configuration changes.
#[derive(Clone, Copy)]
enum By {
    /// The file, while the plugin runs.
    File,
    /// Another start of the plugin, as after `helm upgrade`.
    Restart,
}

struct Change {
    rig: Rig,
    mount: Mount,
    _dir: TempDir,
}

impl Change {
    /// One GPU with two slices.
    async fn from(content: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mount = Mount::new(&dir.path().join("config"), content);
        let description = Description::h100s(1).with_mig(0, &["1g.10gb"; 2]);
        let rig = Rig::start(&description, &[&flag(&mount)]).await;
        Self { rig, mount, _dir: dir }
    }

    async fn to(&mut self, content: &str, by: By) {
        if let By::Restart = by {
            self.rig.plugin.signal("TERM");
            assert!(self.rig.plugin.exit().await.success());
        }
        self.mount.write(content);
        if let By::Restart = by {
            self.rig.plugin = self.rig.second_plugin(&[&flag(&self.mount)]);
        }
    }

    /// A pod holds a device of `old` from before `content` came; until it has gone, all `devices` of `new` are listed
    /// and none of them is healthy.
    async fn blocks(mut self, old: &str, content: &str, by: By, new: &str, devices: usize) {
        let rig = &self.rig;
        rig.kubelet.wait_for(|view| view.serves(old), old).await.unwrap();
        rig.kubelet.run_pod(pod("holder", old)).await.unwrap();
        let before = rig.kubelet.lists(new).len();
        self.to(content, by).await;
        let rig = &self.rig;
        let held = usize::from(old == new);
        rig.kubelet.wait_for_capacity(new, devices + held, 0).await.unwrap();
        let refused = rig.kubelet.run_pod(pod("second", new)).await;
        assert!(matches!(refused, Err(AdmissionError::Insufficient { free: 0, .. })), "{refused:?}");
        rig.plugin.wait_for_log(&["unhealthy", new, "may still be in use", "waits until"]).await;
        // It stays so for as long as the pod runs, also when the kubelet has been asked again.
        let asked = rig.kubelet.pod_resources_calls();
        crate::rig::wait_until(|| rig.kubelet.pod_resources_calls() > asked + 1, "more looks at pods").await;
        let ended = Instant::now();
        rig.kubelet.delete_pod("holder");
        rig.kubelet.wait_for_capacity(new, devices, devices).await.unwrap();
        for list in &rig.kubelet.lists(new)[before..] {
            let healthy = list.devices.values().any(|device| device.healthy);
            assert!(!healthy || list.at > ended, "given out while a pod held the other: {list:?}");
        }
        self.rig.finish().await;
    }
}

fn flag(mount: &Mount) -> String {
    format!("--config-file={}", mount.file().display())
}

fn pod(name: &str, resource: &str) -> PodSpec {
    PodSpec::new(name).container("main").limit(resource, 1)
}

#[tokio::test]
async fn slices_wait_for_the_whole_gpu_that_a_pod_holds() {
    let change = Change::from(&strategy("none")).await;
    change.blocks(GPU, &strategy("mixed"), By::File, &mig("1g.10gb"), 2).await;
}

#[tokio::test]
async fn slices_wait_for_the_whole_gpu_after_a_restart_too() {
    let change = Change::from(&strategy("none")).await;
    change.blocks(GPU, &strategy("mixed"), By::Restart, &mig("1g.10gb"), 2).await;
}

#[tokio::test]
async fn slices_wait_for_the_whole_gpu_under_one_name() {
    for by in [By::File, By::Restart] {
        Change::from(&strategy("none")).await.blocks(GPU, &strategy("single"), by, GPU, 2).await;
    }
}

#[tokio::test]
async fn the_whole_gpu_waits_for_a_slice_that_a_pod_holds() {
    let change = Change::from(&strategy("mixed")).await;
    change.blocks(&mig("1g.10gb"), &strategy("none"), By::File, GPU, 1).await;
}

#[tokio::test]
async fn the_whole_gpu_waits_for_a_slice_after_a_restart_too() {
    let change = Change::from(&strategy("mixed")).await;
    change.blocks(&mig("1g.10gb"), &strategy("none"), By::Restart, GPU, 1).await;
}

#[tokio::test]
async fn a_gpu_waits_for_its_replicas_and_they_for_it() {
    let (whole, shared) = (strategy("none"), strategy("none") + REPLICAS);
    for by in [By::File, By::Restart] {
        let change = Change::from(&whole).await;
        change.blocks(GPU, &shared, by, "nvidia.com/gpu.shared", 2).await;
        let change = Change::from(&shared).await;
        change.blocks("nvidia.com/gpu.shared", &whole, by, GPU, 1).await;
    }
}
