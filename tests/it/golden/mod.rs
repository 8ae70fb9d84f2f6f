//! The answers of NVIDIA's plugin v0.20.0, recorded on the same nodes, against ours.

use std::collections::{BTreeMap, BTreeSet};

use fake_kubelet::api::ContainerAllocateResponse;
use fake_nvml::{Description, Instance};
use serde_json::Value;

use crate::rig::Rig;

/// One recording: the node, the flags, and what was answered.
struct Recording {
    layout: &'static str,
    flags: &'static [&'static str],
    text: &'static str,
}

/// The node of that name in `nodes.json`, with the recorded UUIDs.
fn node(layout: &str) -> Description {
    let nodes: Value = serde_json::from_str(include_str!("data/nodes.json")).unwrap();
    let gpus = nodes[layout].as_array().unwrap();
    let mut description = Description::h100s(gpus.len());
    for (index, recorded) in gpus.iter().enumerate() {
        let gpu = description.gpu(index);
        gpu.uuid = recorded["uuid"].as_str().map(str::to_owned);
        gpu.pci = recorded["pci"].as_str().map(str::to_owned);
        gpu.minor = recorded["minor"].as_u64().map(|minor| u32::try_from(minor).unwrap());
        gpu.numa = recorded["numa"].as_i64().map(|numa| i32::try_from(numa).unwrap());
        if recorded["mig_mode"].as_bool().unwrap() {
            let slices = recorded["mig_devices"].as_array().unwrap();
            let layout: Vec<_> = slices.iter().map(instance).collect();
            description.set_mig(index, &layout);
        }
    }
    description
}

fn instance(recorded: &Value) -> Instance {
    let gi = recorded["gpu_instance"].as_u64().unwrap();
    Instance::new(recorded["profile"].as_str().unwrap())
        .gi(u32::try_from(gi).unwrap())
        .uuid(recorded["uuid"].as_str().unwrap())
}

/// The NUMA node in a recorded device; protobuf leaves out a zero.
fn numa(device: &Value) -> Option<i64> {
    let node = device["topology"]["nodes"].get(0)?;
    Some(node["ID"].as_str().map_or(0, |id| id.parse().unwrap()))
}

fn ids(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

async fn compare(recording: Recording) {
    let recorded: Value = serde_json::from_str(recording.text).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut flags: Vec<String> = recording.flags.iter().map(|flag| (*flag).to_owned()).collect();
    flags.push(format!("--cdi-spec-dir={}", dir.path().join("cdi").display()));
    if let Some(config) = recorded["config_file"].as_str() {
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, config).unwrap();
        flags.push(format!("--config-file={}", file.display()));
    }
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let rig = Rig::start(&node(recording.layout), &flags).await;
    let lists = recorded["list_and_watch_first"].as_object().unwrap();
    let counts: BTreeMap<_, _> =
        lists.iter().map(|(name, list)| (name.as_str(), list["devices"].as_array().unwrap().len())).collect();
    rig.wait_for_counts(&counts.into_iter().collect::<Vec<_>>()).await;

    let registered: BTreeSet<_> = rig.kubelet.registrations().into_iter().map(|r| r.resource).collect();
    let requests = recorded["register_requests"].as_array().unwrap();
    let expected: BTreeSet<_> =
        requests.iter().map(|request| request["resource_name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(registered, expected);
    for (name, list) in lists {
        let ours = rig.kubelet.devices(name);
        for device in list["devices"].as_array().unwrap() {
            let our = &ours[device["ID"].as_str().unwrap()];
            assert!(our.healthy);
            assert_eq!(our.numa, numa(device));
        }
    }
    let calls = recorded["calls"].as_object().into_iter().flatten();
    for (resource, calls) in calls {
        for (what, call) in calls.as_object().unwrap() {
            if what.starts_with("allocate") {
                compare_allocate(&rig, resource, what, call).await;
            }
        }
    }
    rig.finish().await;
}

async fn compare_allocate(rig: &Rig, resource: &str, what: &str, call: &Value) {
    let request: Vec<_> = call["request"].as_array().unwrap().iter().map(ids).collect();
    let answer = rig.kubelet.allocate_many(resource, request).await;
    if what == "allocate_empty_ids" || call["response"]["grpc_error"].is_string() {
        // Theirs answers an empty list with an empty variable; we refuse it (docs/differences.md).
        assert!(answer.is_err(), "{what} of {resource}");
        return;
    }
    let empty = Vec::new();
    let recorded = call["response"]["container_responses"].as_array().unwrap_or(&empty);
    let answer = answer.unwrap().container_responses;
    assert_eq!(answer.len(), recorded.len(), "{what} of {resource}");
    for (ours, theirs) in answer.iter().zip(recorded) {
        let variables: BTreeMap<_, _> = ours.envs.iter().map(|(k, v)| (k.as_str(), sorted(v))).collect();
        let envs = theirs["envs"].as_object().into_iter().flatten();
        let expected: BTreeMap<_, _> = envs.map(|(k, v)| (k.as_str(), sorted(v.as_str().unwrap()))).collect();
        assert_eq!(variables, expected, "{what} of {resource}");
        let nodes: BTreeSet<_> = ours
            .devices
            .iter()
            .map(|node| [&*node.container_path, &*node.host_path, &*node.permissions])
            .collect();
        assert_eq!(nodes.len(), ours.devices.len(), "a node twice in {what} of {resource}");
        let devices = theirs["devices"].as_array().unwrap_or(&empty);
        let expected: BTreeSet<_> = devices
            .iter()
            .map(|node| ["container_path", "host_path", "permissions"].map(|key| node[key].as_str().unwrap()))
            .collect();
        assert_eq!(nodes, expected, "{what} of {resource}");
        compare_the_rest(ours, theirs, &format!("{what} of {resource}"));
    }
}

fn compare_the_rest(ours: &ContainerAllocateResponse, theirs: &Value, what: &str) {
    let empty = Vec::new();
    let list = |key: &str| theirs[key].as_array().unwrap_or(&empty).iter();
    let mounts: BTreeSet<_> = ours.mounts.iter().map(|m| (&*m.host_path, &*m.container_path)).collect();
    let expected: BTreeSet<_> = list("mounts")
        .map(|mount| (mount["host_path"].as_str().unwrap(), mount["container_path"].as_str().unwrap()))
        .collect();
    assert_eq!(mounts, expected, "{what}");
    let names: BTreeSet<_> = ours.cdi_devices.iter().map(|device| device.name.as_str()).collect();
    let expected: BTreeSet<_> = list("cdi_devices").map(|device| device["name"].as_str().unwrap()).collect();
    assert_eq!(names, expected, "{what}");
    // The end of the key differs from call to call in theirs.
    let stem = |key: &str| key.rsplit_once('_').unwrap().0.to_owned();
    let annotations: BTreeMap<_, _> = ours.annotations.iter().map(|(k, v)| (stem(k), sorted(v))).collect();
    let recorded = theirs["annotations"].as_object().into_iter().flatten();
    let expected: BTreeMap<_, _> = recorded.map(|(k, v)| (stem(k), sorted(v.as_str().unwrap()))).collect();
    assert_eq!(annotations, expected, "{what}");
}

/// Theirs keeps the request's order, ours is the plugin's.
fn sorted(ids: &str) -> Vec<&str> {
    let mut ids: Vec<_> = ids.split(',').collect();
    ids.sort_unstable();
    ids
}

#[tokio::test]
async fn strategy_none_without_mig() {
    compare(Recording {
        layout: "nomig",
        flags: &["--mig-strategy=none", "--pass-device-specs=false"],
        text: include_str!("data/strategy-none__nomig.json"),
    })
    .await;
}

#[tokio::test]
async fn strategy_single_with_seven_slices_everywhere() {
    compare(Recording {
        layout: "all7x1g",
        flags: &["--mig-strategy=single", "--pass-device-specs=false"],
        text: include_str!("data/strategy-single__all7x1g.json"),
    })
    .await;
}

#[tokio::test]
async fn strategy_mixed_on_a_mixed_node() {
    compare(Recording {
        layout: "mixedlayout",
        flags: &["--mig-strategy=mixed", "--pass-device-specs=false"],
        text: include_str!("data/strategy-mixed__mixedlayout.json"),
    })
    .await;
}

#[tokio::test]
async fn device_nodes_on_a_mixed_node() {
    compare(Recording {
        layout: "mixedlayout",
        flags: &["--mig-strategy=mixed", "--pass-device-specs=true"],
        text: include_str!("data/dls-envvar__pds-true__id-uuid__mixed-mixedlayout.json"),
    })
    .await;
}

#[tokio::test]
async fn mounts_instead_of_the_variable() {
    compare(Recording {
        layout: "mixedlayout",
        flags: &["--mig-strategy=mixed", "--pass-device-specs=false", "--device-list-strategy=volume-mounts"],
        text: include_str!("data/dls-volume-mounts__pds-false__id-uuid__mixed-mixedlayout.json"),
    })
    .await;
}

#[tokio::test]
async fn cdi_names_in_an_annotation() {
    compare(Recording {
        layout: "mixedlayout",
        flags: &[
            "--mig-strategy=mixed",
            "--pass-device-specs=false",
            "--device-list-strategy=cdi-annotations",
        ],
        text: include_str!("data/dls-cdi-annotations__pds-false__id-uuid__mixed-mixedlayout.json"),
    })
    .await;
}

#[tokio::test]
async fn cdi_names_in_their_own_field() {
    compare(Recording {
        layout: "all7x1g",
        flags: &["--mig-strategy=single", "--pass-device-specs=false", "--device-list-strategy=cdi-cri"],
        text: include_str!("data/dls-cdi-cri__pds-false__id-uuid__single-all7x1g.json"),
    })
    .await;
}

#[tokio::test]
async fn indices_instead_of_uuids() {
    compare(Recording {
        layout: "mixedlayout",
        flags: &["--mig-strategy=mixed", "--pass-device-specs=false", "--device-id-strategy=index"],
        text: include_str!("data/dls-envvar__pds-false__id-index__mixed-mixedlayout.json"),
    })
    .await;
}

#[tokio::test]
async fn three_replicas_of_each_slice() {
    compare(Recording {
        layout: "mixedlayout",
        flags: &["--mig-strategy=mixed", "--pass-device-specs=false"],
        text: include_str!("data/timeslicing-mig__mixed-mixedlayout.json"),
    })
    .await;
}
