//! Configuration that changes while everything runs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fake_nvml::Description;
use tokio::time::sleep;
use tonic::Code;

use crate::rig::{GPU, Rig, mig};

/// A folder as the kubelet mounts a ConfigMap: the file is a link through `..data`, which is swapped as a whole.
pub(crate) struct Mount {
    folder: PathBuf,
    version: u32,
}

impl Mount {
    pub(crate) fn new(folder: &Path, content: &str) -> Self {
        fs::create_dir_all(folder).unwrap();
        let mut mount = Self { folder: folder.to_owned(), version: 0 };
        mount.write(content);
        symlink("..data/config.yaml", mount.file()).unwrap();
        mount
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.join("config.yaml")
    }

    pub(crate) fn write(&mut self, content: &str) {
        let old = format!("..version-{}", self.version);
        self.version += 1;
        let new = format!("..version-{}", self.version);
        fs::create_dir(self.folder.join(&new)).unwrap();
        fs::write(self.folder.join(&new).join("config.yaml"), content).unwrap();
        let link = self.folder.join("..data_tmp");
        symlink(&new, &link).unwrap();
        fs::rename(&link, self.folder.join("..data")).unwrap();
        drop(fs::remove_dir_all(self.folder.join(old)));
    }
}

pub(crate) fn strategy(name: &str) -> String {
    format!("version: v1\nflags:\n  migStrategy: {name}\n")
}

async fn start(content: &str, more: &[&str]) -> (tempfile::TempDir, Mount, Rig) {
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount::new(&dir.path().join("config"), content);
    let description = Description::h100s(2).with_mig(0, &["1g.10gb"; 7]).with_mig(1, &["1g.10gb"; 7]);
    let file = format!("--config-file={}", mount.file().display());
    let rig = Rig::start(&description, &[&[&*file], more].concat()).await;
    (dir, mount, rig)
}

#[tokio::test]
async fn a_valid_change_is_applied_as_a_difference() {
    let (_dir, mut mount, mut rig) = start(&strategy("mixed"), &[]).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(&resource, 14)]).await;
    mount.write(&format!("{}  plugin:\n    passDeviceSpecs: false\n", strategy("mixed")));
    rig.plugin.wait_for_log(&["configuration loaded again"]).await;
    let uuid = rig.node.gpus().unwrap()[0].mig[0].uuid.clone();
    let answer = rig.kubelet.allocate_ids(&resource, &[&uuid]).await.unwrap();
    assert!(answer.devices.is_empty(), "the new rule counts for the next answer");
    assert_eq!(rig.kubelet.lists(&resource).len(), 1, "nothing about the list has changed");
    mount.write(&strategy("single"));
    rig.wait_for_counts(&[(GPU, 14)]).await;
    assert!(rig.plugin.is_running());
    rig.finish().await;
}

#[tokio::test]
async fn a_broken_change_keeps_the_last_good_configuration() {
    let (_dir, mut mount, rig) = start(&strategy("mixed"), &[]).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(&resource, 14)]).await;
    mount.write("version: v1\nflags:\n  migStrategy: mixd\n  failOnInitEror: true\n");
    rig.plugin.wait_for_log(&["ERROR", "config.yaml:3", "migStrategy", "mixed"]).await;
    rig.plugin.wait_for_log(&["ERROR", "config.yaml:4", "failOnInitEror"]).await;
    sleep(Duration::from_millis(300)).await;
    rig.wait_for_counts(&[(&resource, 14)]).await;
    assert_eq!(rig.kubelet.lists(&resource).len(), 1);
    mount.write(&strategy("none"));
    rig.wait_for_counts(&[(GPU, 2)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn a_broken_change_shows_in_a_metric() {
    let (_dir, mut mount, rig) = start(&strategy("mixed"), &[crate::http::ANYWHERE]).await;
    rig.wait_for_counts(&[(&mig("1g.10gb"), 14)]).await;
    let answer = rig.plugin.request("GET", "/metrics", "Accept: application/openmetrics-text\r\n").await;
    assert!(answer.status == 200 && answer.head.contains("application/openmetrics-text"), "{answer:?}");
    let answer = answer.body;
    assert!(answer.contains("mig_device_plugin_config_last_reload_successful 1"), "{answer}");
    mount.write("version: v2");
    rig.plugin.wait_for_log(&["going on with the last good one"]).await;
    let answer = rig.plugin.get("/metrics").await.body;
    assert!(answer.contains("mig_device_plugin_config_last_reload_successful 0"), "{answer}");
    assert!(answer.contains("mig_device_plugin_config_reloads_total{result=\"error\"} 1"), "{answer}");
    mount.write(&strategy("single"));
    rig.wait_for_counts(&[(GPU, 14)]).await;
    let answer = rig.plugin.get("/metrics").await.body;
    assert!(answer.contains("mig_device_plugin_config_last_reload_successful 1"), "{answer}");
    rig.finish().await;
}

#[tokio::test]
async fn a_flag_still_wins_over_a_changed_file() {
    let (_dir, mut mount, rig) = start(&strategy("none"), &["--mig-strategy=mixed"]).await;
    rig.wait_for_counts(&[(&mig("1g.10gb"), 14)]).await;
    mount.write(&strategy("single"));
    rig.plugin.wait_for_log(&["configuration loaded again"]).await;
    sleep(Duration::from_millis(300)).await;
    rig.wait_for_counts(&[(&mig("1g.10gb"), 14)]).await;
    rig.finish().await;
}

/// A hundred calls a second while the strategy goes back and forth: no registration is lost, and each call is answered
/// rightly or refused with a reason.
#[tokio::test]
async fn strategies_change_under_load() {
    let (_dir, mut mount, rig) = start(&strategy("mixed"), &["--removal-grace=100ms"]).await;
    let slices = mig("1g.10gb");
    rig.wait_for_counts(&[(&slices, 14)]).await;
    let uuids: Vec<_> =
        rig.node.gpus().unwrap().into_iter().flat_map(|gpu| gpu.mig).map(|slice| slice.uuid).collect();
    let done = AtomicBool::new(false);
    let change = async {
        for _ in 0..20 {
            mount.write(&strategy("single"));
            rig.wait_for_counts(&[(GPU, 14)]).await;
            sleep(Duration::from_millis(100)).await;
            mount.write(&strategy("mixed"));
            rig.wait_for_counts(&[(&slices, 14)]).await;
            sleep(Duration::from_millis(100)).await;
        }
        done.store(true, Ordering::Relaxed);
    };
    let load = async {
        let (mut given, mut refused) = (0, 0);
        for n in 0.. {
            if done.load(Ordering::Relaxed) {
                break;
            }
            let resource = if n % 2 == 0 { GPU } else { &slices };
            let uuid = &uuids[n % uuids.len()];
            match rig.kubelet.allocate_ids(resource, &[uuid]).await {
                Ok(answer) => {
                    assert_eq!(&answer.envs["NVIDIA_VISIBLE_DEVICES"], uuid);
                    given += 1;
                }
                Err(status) => {
                    // Refused by the plugin with its reason, or nobody serves the resource at the moment.
                    let told = [Code::InvalidArgument, Code::FailedPrecondition].contains(&status.code());
                    assert!(!told || status.message().contains(uuid.as_str()), "{status}");
                    refused += 1;
                }
            }
            sleep(Duration::from_millis(10)).await;
        }
        (given, refused)
    };
    let ((), (given, refused)) = tokio::join!(change, load);
    assert!(given > 100 && refused > 0, "{given} given, {refused} refused");
    rig.finish().await;
}

#[tokio::test]
async fn a_change_that_starts_all_parts_over_does_not_end_the_plugin_while_the_driver_is_away() {
    let content = |interval: &str| {
        format!("{}  plugin:\n    removalGrace: 1s\n    cdiSpecDir: {interval}\n", strategy("mixed"))
    };
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let cdi = "--device-list-strategy=cdi-cri";
    let (_dir, mut mount, mut rig) = start(&content(a.to_str().unwrap()), &[cdi]).await;
    rig.wait_for_counts(&[(&mig("1g.10gb"), 14)]).await;
    rig.node.update(|node| node.driver = fake_nvml::DriverState::NotLoaded).unwrap();
    rig.plugin.wait_for_log(&["no driver"]).await;
    mount.write(&content(b.to_str().unwrap()));
    rig.plugin.wait_for_log(&["starting over"]).await;
    sleep(Duration::from_millis(500)).await;
    assert!(rig.plugin.is_running());
    rig.node.update(|node| node.driver = fake_nvml::DriverState::Loaded).unwrap();
    rig.wait_for_counts(&[(&mig("1g.10gb"), 14)]).await;
    assert!(b.join("k8s.device-plugin.nvidia.com-gpu.json").exists());
    rig.finish().await;
}
