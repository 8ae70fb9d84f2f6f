//! What NVIDIA's plugin wrote for the same node, against what we write.

use serde_json::Value;

use super::super::build::build;
use super::super::driver_files::Search;
use super::super::spec::Spec;
use super::*;
use crate::fixtures::mig_device;
use crate::inventory::{Gpu, MigMode};

const NODES: &str = include_str!("../../../tests/it/golden/data/nodes.json");

/// The recorded node as an inventory.
fn recorded_node(layout: &str) -> Inventory {
    let nodes: Value = serde_json::from_str(NODES).unwrap();
    let number = |value: &Value| u32::try_from(value.as_u64().unwrap()).unwrap();
    let gpus = nodes[layout].as_array().unwrap().iter().zip(0..).map(|(recorded, index)| {
        let minor = number(&recorded["minor"]);
        let on = recorded["mig_mode"].as_bool().unwrap();
        let slices = recorded["mig_devices"].as_array().unwrap().iter().zip(0..).map(|(slice, n)| {
            let mut device = mig_device(minor, n, slice["profile"].as_str().unwrap());
            device.uuid = slice["uuid"].as_str().unwrap().to_owned();
            let cap = 3 + 135 * minor + 9 * number(&slice["gpu_instance"]);
            device.gpu_instance_node = Some(present(format!("/dev/nvidia-caps/nvidia-cap{cap}")));
            device.compute_instance_node = Some(present(format!("/dev/nvidia-caps/nvidia-cap{}", cap + 1)));
            device
        });
        Gpu {
            uuid: recorded["uuid"].as_str().unwrap().to_owned(),
            minor,
            node: present(format!("/dev/nvidia{minor}")),
            mig_mode: Some(MigMode { current: on, pending: on }),
            mig_devices: slices.collect(),
            ..gpu(index)
        }
    });
    inventory(gpus)
}

/// Our file for that node, with the same driver root and hook program as the recording had.
fn ours(layout: &str) -> Spec {
    let host = Host::new();
    let options = CdiOptions { host_driver_root: "/".into(), host_dev_root: "/".into(), ..options() };
    let search = Search {
        driver_root: host.root(),
        host_driver_root: "/".into(),
        version: VERSION.to_owned(),
        library: host.root().join(format!("usr/lib/x86_64-linux-gnu/libnvidia-ml.so.{VERSION}")),
        hook: Some("/usr/bin/nvidia-ctk".into()),
    };
    build(&recorded_node(layout), &search.find(), &majors(), &options).spec.unwrap()
}

/// A zero is left out of the recordings.
fn node_facts(nodes: &Value) -> Vec<(String, String, u64, u64, u64)> {
    let text = |node: &Value, field: &str| node[field].as_str().unwrap().to_owned();
    let number = |node: &Value, field: &str| node[field].as_u64().unwrap_or_default();
    let facts = nodes.as_array().unwrap().iter().map(|node| {
        let mode = number(node, "fileMode");
        (text(node, "path"), text(node, "hostPath"), number(node, "major"), number(node, "minor"), mode)
    });
    let mut facts: Vec<_> = facts.collect();
    facts.sort();
    facts
}

fn compare(layout: &str, recorded: &str) {
    let recorded: Value = serde_json::from_str(recorded).unwrap();
    let ours = serde_json::to_value(ours(layout)).unwrap();
    assert_eq!(ours["kind"], recorded["kind"]);
    assert_eq!(ours["cdiVersion"], recorded["cdiVersion"]);
    for device in recorded["devices"].as_array().unwrap() {
        let ours = ours["devices"].as_array().unwrap().iter().find(|our| our["name"] == device["name"]);
        let edits = &ours.unwrap()["containerEdits"];
        let nodes = &device["containerEdits"]["deviceNodes"];
        assert_eq!(node_facts(&edits["deviceNodes"]), node_facts(nodes), "{}", device["name"]);
    }
    let (ours, theirs) = (&ours["containerEdits"], &recorded["containerEdits"]);
    assert_eq!(node_facts(&ours["deviceNodes"]), node_facts(&theirs["deviceNodes"]));
    assert_eq!(ours["env"], theirs["env"]);
    assert_eq!(ours["mounts"], theirs["mounts"]);
    // Toolkits older than the plugin do not know this one, and would fail every container for it.
    let known =
        |hook: &&Value| !hook["args"].as_array().unwrap().contains(&"update-application-profile".into());
    let theirs: Vec<&Value> = theirs["hooks"].as_array().unwrap().iter().filter(known).collect();
    assert_eq!(ours["hooks"].as_array().unwrap().iter().collect::<Vec<_>>(), theirs);
}

#[test]
fn slices_and_gpus_are_described_as_nvidias_plugin_does() {
    compare("mixedlayout", include_str!("../testdata/nvidia-mixed.json"));
}

#[test]
fn a_node_with_nothing_but_slices_is_described_as_nvidias_plugin_does() {
    compare("all7x1g", include_str!("../testdata/nvidia-single.json"));
}
