//! The CDI specification that the plugin keeps, as a container runtime would read it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use fake_kubelet::Device;
use fake_nvml::Description;
use serde_json::Value;

use crate::rig::{GPU, Rig, mig, wait_until};

const FILE: &str = "k8s.device-plugin.nvidia.com-gpu.json";

fn names(folder: &Path) -> BTreeSet<String> {
    let spec: Value = serde_json::from_slice(&fs::read(folder.join(FILE)).unwrap()).unwrap();
    let devices = spec["devices"].as_array().unwrap();
    devices.iter().map(|device| device["name"].as_str().unwrap().to_owned()).collect()
}

async fn start(folder: &Path, description: &Description, more: &[&str]) -> Rig {
    let dir = format!("--cdi-spec-dir={}", folder.display());
    let flags = ["--mig-strategy=mixed", "--device-list-strategy=cdi-cri", &dir];
    Rig::start(description, &[&flags, more].concat()).await
}

#[tokio::test]
async fn every_device_is_described_before_the_kubelet_hears_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("cdi");
    let rig = start(&folder, &Description::h100s(2).with_mig(0, &["1g.10gb"; 2]), &[]).await;
    rig.wait_for_counts(&[(GPU, 1), (&mig("1g.10gb"), 2)]).await;
    let described = |rig: &Rig| {
        let names = names(&folder);
        for resource in rig.kubelet.resources().into_keys() {
            for (id, device) in rig.kubelet.devices(&resource) {
                assert!(!device.healthy || names.contains(&id), "{id} is offered and not described");
            }
        }
    };
    described(&rig);
    assert!(names(&folder).contains("all") && names(&folder).contains("0:1"));
    rig.node.update(|node| node.set_mig(0, &["2g.20gb"; 3])).unwrap();
    rig.kubelet.wait_for_resource(&mig("2g.20gb")).await.unwrap();
    // The lists of two resources reach the kubelet in no certain order.
    let all_sick = |devices: &BTreeMap<String, Device>| devices.values().all(|device| !device.healthy);
    rig.kubelet.wait_for_devices(&mig("1g.10gb"), all_sick).await.unwrap();
    described(&rig);
    rig.wait_for_counts(&[(GPU, 1), (&mig("2g.20gb"), 3)]).await;
    let uuid = rig.node.gpus().unwrap()[0].mig[2].uuid.clone();
    let answer = rig.kubelet.allocate_ids(&mig("2g.20gb"), &[&uuid]).await.unwrap();
    let given: Vec<_> = answer.cdi_devices.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(given, [format!("k8s.device-plugin.nvidia.com/gpu={uuid}")]);
    rig.finish().await;
    assert!(folder.join(FILE).exists(), "a container that restarts resolves its names again");
}

#[tokio::test]
async fn a_device_that_cannot_be_described_is_not_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    // A file stands where the folder would have to be.
    let folder = dir.path().join("cdi");
    fs::write(&folder, "").unwrap();
    let rig = start(&folder, &Description::h100s(1), &[]).await;
    rig.kubelet.wait_for_capacity(GPU, 1, 0).await.unwrap();
    rig.plugin.wait_for_log(&["unhealthy", "cdi"]).await;
    fs::remove_file(&folder).unwrap();
    rig.wait_for_counts(&[(GPU, 1)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn no_specification_is_written_where_nobody_asked_for_one() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("cdi");
    let rig = Rig::start(&Description::h100s(1), &[&format!("--cdi-spec-dir={}", folder.display())]).await;
    rig.wait_for_counts(&[(GPU, 1)]).await;
    rig.finish().await;
    assert!(!folder.exists());
}

#[tokio::test]
async fn withheld_devices_stay_listed_and_are_not_handed_out() {
    let description = Description::h100s(2).with_mig(0, &["1g.10gb"; 2]);
    let rig = Rig::start(&description, &["--mig-strategy=mixed", "--withhold=0:1,1"]).await;
    rig.kubelet.wait_for_capacity(&mig("1g.10gb"), 2, 1).await.unwrap();
    rig.kubelet.wait_for_capacity(GPU, 1, 0).await.unwrap();
    let withheld = rig.node.gpus().unwrap()[0].mig[1].uuid.clone();
    let refused = rig.kubelet.allocate_ids(&mig("1g.10gb"), &[&withheld]).await.unwrap_err();
    assert!(refused.message().contains("withheld by the configuration: 0:1"), "{refused}");
    rig.finish().await;
}

#[tokio::test]
async fn drivers_beside_the_gpus_are_named_where_the_node_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("cdi");
    let description = Description::h100s(1);
    let rig = start(&folder, &description, &["--gds-enabled", "--mofed-enabled"]).await;
    rig.wait_for_counts(&[(GPU, 1)]).await;
    rig.plugin.wait_for_log(&["--gds-enabled", "no device node"]).await;
    let id = rig.kubelet.devices(GPU).into_keys().next().unwrap();
    let given = async || {
        let answer = rig.kubelet.allocate_ids(GPU, &[&id]).await.unwrap();
        let names = answer.cdi_devices.into_iter().map(|device| device.name);
        names.filter(|name| name.ends_with("=all")).collect::<Vec<_>>()
    };
    assert_eq!(given().await, Vec::<String>::new(), "a runtime would refuse the container");
    // Any character device stands for another.
    std::os::unix::fs::symlink("/dev/null", rig.node.root().join("dev/nvidia-fs0")).unwrap();
    let file = folder.join("k8s.device-plugin.nvidia.com-gds.json");
    wait_until(|| file.exists(), "the specification").await;
    assert_eq!(given().await, ["k8s.device-plugin.nvidia.com/gds=all"]);
    rig.finish().await;
}
