//! What pods get, and what they are refused.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use fake_kubelet::{AdmissionError, PodSpec};
use fake_nvml::{Description, Fault, Nodes, Topology};
use tokio::time::{sleep, timeout};
use tonic::Code;

use crate::rig::{GPU, LIMIT, Rig, mig, wait_until};

fn pod(name: &str, resource: &str, count: usize) -> PodSpec {
    PodSpec::new(name).container("main").limit(resource, count)
}

#[tokio::test]
async fn a_pod_gets_its_slices_variable_and_nodes_and_no_others() {
    let description = Description::h100s(2).with_mig(1, &["3g.40gb", "2g.20gb", "1g.10gb"]);
    let rig = Rig::mixed(&description).await;
    let resource = mig("2g.20gb");
    rig.kubelet.wait_for_resource(&resource).await.unwrap();
    let pod = rig.kubelet.run_pod(pod("training", &resource, 1)).await.unwrap();
    let gpu = &rig.node.gpus().unwrap()[1];
    let slice = gpu.mig.iter().find(|slice| slice.profile == "2g.20gb").unwrap();
    let container = &pod.containers["main"];
    assert_eq!(container.envs.len(), 1);
    assert_eq!(container.envs["NVIDIA_VISIBLE_DEVICES"], slice.uuid);
    let expected = [
        format!("/dev/nvidia{}", gpu.minor),
        format!("/dev/nvidia-caps/nvidia-cap{}", slice.gi_minor),
        format!("/dev/nvidia-caps/nvidia-cap{}", slice.ci_minor),
        "/dev/nvidiactl".to_owned(),
        "/dev/nvidia-uvm".to_owned(),
        "/dev/nvidia-uvm-tools".to_owned(),
        "/dev/nvidia-modeset".to_owned(),
    ];
    let nodes: BTreeSet<_> = container.devices.iter().map(|node| node.container_path.clone()).collect();
    assert_eq!(nodes, BTreeSet::from(expected));
    assert_eq!(container.devices.len(), 7, "a node twice");
    assert!(container.devices.iter().all(|node| node.permissions == "rw"));
    assert!(container.devices.iter().all(|node| node.host_path == node.container_path));
    rig.finish().await;
}

#[tokio::test]
async fn every_slice_of_a_full_node_goes_to_one_pod() {
    let mut description = Description::h100s(8);
    for gpu in 0..8 {
        description.set_mig(gpu, &["1g.10gb"; 7]);
    }
    let rig = Rig::mixed(&description).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(&resource, 56)]).await;
    let mut seen = BTreeSet::new();
    for n in 0..56 {
        let pod = rig.kubelet.run_pod(pod(&format!("pod-{n}"), &resource, 1)).await.unwrap();
        assert!(seen.insert(pod.containers["main"].envs["NVIDIA_VISIBLE_DEVICES"].clone()));
    }
    let refused = rig.kubelet.run_pod(pod("one-more", &resource, 1)).await;
    assert!(matches!(refused, Err(AdmissionError::Insufficient { .. })), "{refused:?}");
    rig.kubelet.delete_pod("pod-7");
    rig.kubelet.run_pod(pod("one-more", &resource, 1)).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn slices_of_one_pod_lie_on_as_few_gpus_as_can_be() {
    let description = Description::h100s(2).with_mig(0, &["1g.10gb"; 7]).with_mig(1, &["1g.10gb"; 7]);
    let rig = Rig::mixed(&description).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(&resource, 14)]).await;
    let gpus = rig.node.gpus().unwrap();
    let on_first =
        |ids: &[String]| ids.iter().filter(|id| gpus[0].mig.iter().any(|s| s.uuid == **id)).count();
    let three = rig.kubelet.run_pod(pod("three", &resource, 3)).await.unwrap();
    assert_eq!(on_first(&three.ids(&resource)), 3);
    let two = rig.kubelet.run_pod(pod("two", &resource, 2)).await.unwrap();
    assert_eq!(on_first(&two.ids(&resource)), 2, "the fuller GPU comes first");
    let five = rig.kubelet.run_pod(pod("five", &resource, 5)).await.unwrap();
    assert_eq!(on_first(&five.ids(&resource)), 0, "one GPU is better than two");
    rig.finish().await;
}

#[tokio::test]
async fn the_answer_to_several_ids_has_the_plugins_order_and_each_once() {
    let rig = Rig::mixed(&Description::h100s(1).with_mig(0, &["1g.10gb"; 3])).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(&resource, 3)]).await;
    let uuids: Vec<_> = rig.node.gpus().unwrap()[0].mig.iter().map(|slice| slice.uuid.clone()).collect();
    let asked = [&uuids[2], &uuids[0], &uuids[2]];
    let answer = rig.kubelet.allocate_ids(&resource, &asked).await.unwrap();
    assert_eq!(answer.envs["NVIDIA_VISIBLE_DEVICES"], format!("{},{}", uuids[0], uuids[2]));
    assert_eq!(answer.devices.len(), 4 + 1 + 4);
    let many = vec![vec![uuids[0].clone()], vec![uuids[1].clone()]];
    let answers = rig.kubelet.allocate_many(&resource, many).await.unwrap().container_responses;
    let variables: Vec<_> = answers.iter().map(|answer| &answer.envs["NVIDIA_VISIBLE_DEVICES"]).collect();
    assert_eq!(variables, [&uuids[0], &uuids[1]]);
    rig.finish().await;
}

#[tokio::test]
async fn what_cannot_be_given_is_refused_with_the_id_and_the_reason() {
    let rig = Rig::mixed(&Description::h100s(1).with_mig(0, &["1g.10gb"; 2])).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(&resource, 2)]).await;
    let refused = rig.kubelet.allocate_ids(&resource, &["MIG-unknown"]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.message(), format!("unknown device: MIG-unknown is not one of {resource}"));
    let refused = rig.kubelet.allocate_ids::<&str>(&resource, &[]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    rig.finish().await;
}

#[tokio::test]
async fn an_unhealthy_device_is_refused() {
    let rig = Rig::mixed(&Description::h100s(2)).await;
    rig.wait_for_counts(&[(GPU, 2)]).await;
    let lost = rig.node.gpus().unwrap()[1].uuid.clone();
    rig.node.update(|node| node.faults.push(Fault::error("*", "GPU_IS_LOST").on_gpu(1))).unwrap();
    rig.kubelet.wait_for_devices(GPU, |devices| !devices[&lost].healthy).await.unwrap();
    let refused = rig.kubelet.allocate_ids(GPU, &[&lost]).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains(&lost), "{refused}");
    assert!(refused.message().contains("GPU_IS_LOST"), "{refused}");
    rig.finish().await;
}

#[tokio::test]
async fn a_slice_whose_capability_file_has_gone_is_refused_and_the_list_corrected() {
    let description = Description::h100s(1).with_mig(0, &["1g.10gb"; 2]);
    // Only the refused call makes the plugin look again.
    let mut rig = Rig::start(&description, &["--mig-strategy=mixed", "--rescan-interval=0"]).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(&resource, 2)]).await;
    let gone = rig.node.gpus().unwrap()[0].mig[1].uuid.clone();
    rig.node.update(|node| drop(node.gpu(0).layout.remove(1))).unwrap();
    let refused = rig.kubelet.allocate_ids(&resource, &[&gone]).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains(&gone) && refused.message().contains("access"), "{refused}");
    rig.wait_for_counts(&[(&resource, 1)]).await;
    assert!(rig.plugin.is_running());
    rig.finish().await;
}

#[tokio::test]
async fn device_nodes_are_named_as_configured() {
    let description = Description::h100s(1).with_mig(0, &["1g.10gb"; 2]);
    let resource = mig("1g.10gb");

    let rig = Rig::start(&description, &["--mig-strategy=mixed", "--pass-device-specs=false"]).await;
    rig.wait_for_counts(&[(&resource, 2)]).await;
    let answer = rig.kubelet.run_pod(pod("a", &resource, 1)).await.unwrap();
    assert!(answer.containers["main"].devices.is_empty());
    rig.finish().await;

    let flags = ["--mig-strategy=mixed", "--nvidia-driver-root=/run/nvidia/driver"];
    let rig = Rig::start(&description, &flags).await;
    rig.wait_for_counts(&[(&resource, 2)]).await;
    let answer = rig.kubelet.run_pod(pod("a", &resource, 1)).await.unwrap();
    for node in &answer.containers["main"].devices {
        let container_path = Path::new(&node.container_path).strip_prefix("/").unwrap();
        assert_eq!(Path::new(&node.host_path), Path::new("/run/nvidia/driver").join(container_path));
    }
    rig.finish().await;
}

#[tokio::test]
async fn a_missing_capability_node_matters_where_nodes_are_required() {
    // Otherwise the library would make it again.
    let description =
        Description { nodes: Nodes::ByHand, ..Description::h100s(1).with_mig(0, &["1g.10gb"; 2]) };
    let resource = mig("1g.10gb");
    let rig = Rig::start(&description, &["--mig-strategy=mixed", "--pass-device-specs=true"]).await;
    rig.wait_for_counts(&[(&resource, 2)]).await;
    let slice = rig.node.gpus().unwrap()[0].mig[0].clone();
    let node = rig.node.root().join(format!("dev/nvidia-caps/nvidia-cap{}", slice.ci_minor));
    std::fs::remove_file(&node).unwrap();
    rig.kubelet.wait_for_devices(&resource, |devices| !devices[&slice.uuid].healthy).await.unwrap();
    rig.plugin.wait_for_log(&["unhealthy", "missing device node", &slice.uuid]).await;
    std::fs::write(&node, "").unwrap();
    rig.wait_for_counts(&[(&resource, 2)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn nodes_that_are_not_there_are_left_out_by_default() {
    let rig = Rig::mixed(&Description::h100s(1).with_mig(0, &["1g.10gb"])).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(&resource, 1)]).await;
    std::fs::remove_file(rig.node.root().join("dev/nvidia-modeset")).unwrap();
    let answer = rig.kubelet.run_pod(pod("a", &resource, 1)).await.unwrap();
    let nodes = &answer.containers["main"].devices;
    assert_eq!(nodes.len(), 6);
    assert!(nodes.iter().all(|node| !node.container_path.contains("modeset")));
    rig.finish().await;
}

#[tokio::test]
async fn a_container_that_restarts_finds_what_it_had() {
    let rig = Rig::mixed(&Description::h100s(1).with_mig(0, &["1g.10gb"; 2])).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(&resource, 2)]).await;
    let first = rig.kubelet.run_pod(pod("a", &resource, 1)).await.unwrap();
    let calls = rig.kubelet.calls().allocate;
    assert_eq!(rig.kubelet.restart_container("a").await.unwrap(), first);
    assert_eq!(rig.kubelet.calls().allocate, calls);
    rig.finish().await;
}

#[tokio::test]
async fn preferred_allocation_never_fails() {
    let rig = Rig::mixed(&Description::h100s(1).with_mig(0, &["1g.10gb"; 2])).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(&resource, 2)]).await;
    let uuids: Vec<_> = rig.node.gpus().unwrap()[0].mig.iter().map(|slice| slice.uuid.clone()).collect();
    let ask = async |available: &[&str], must: &[&str], size| {
        rig.kubelet.preferred(&resource, available, must, size).await.unwrap()
    };
    assert_eq!(ask(&[], &[], 3).await, Vec::<String>::new());
    assert_eq!(ask(&["MIG-x"], &[], 1).await, Vec::<String>::new());
    assert_eq!(ask(&[&uuids[0]], &["MIG-x"], 0).await, Vec::<String>::new());
    assert_eq!(ask(&[&uuids[1], &uuids[0]], &[&uuids[1]], 2).await, [uuids[1].clone(), uuids[0].clone()]);
    // All five calls are there.
    assert!(rig.kubelet.options(&resource).await.unwrap().get_preferred_allocation_available);
    rig.kubelet.pre_start_container(&resource, &[&uuids[0]]).await.unwrap();
    wait_until(|| rig.plugin.log().contains("PreStartContainer"), "a debug line per call").await;
    rig.finish().await;
}

#[tokio::test]
async fn a_kernel_that_gives_files_of_proc_a_new_time_with_every_look_costs_no_allocation() {
    let mut description = Description::h100s(1).with_mig(0, &["1g.10gb"]);
    description.proc_times_move = true;
    let rig = Rig::mixed(&description).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(&resource, 1)]).await;
    rig.plugin.wait_for_log(&["WARN", "before 4.17"]).await;
    rig.kubelet.run_pod(pod("training", &resource, 1)).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn gpus_that_are_linked_are_preferred_together() {
    // Neither the order nor the NUMA nodes say that 0 and 5 belong together.
    let description = Description::h100s(8).with_topology(Topology::default().nvlinks(0, 5, 12));
    let rig = Rig::start(&description, &[]).await;
    rig.wait_for_counts(&[(GPU, 8)]).await;
    let ids: Vec<_> = rig.node.gpus().unwrap().into_iter().map(|gpu| gpu.uuid).collect();
    let linked = BTreeSet::from([ids[0].clone(), ids[5].clone()]);
    // They are asked after the first list.
    let preferred = async {
        loop {
            let chosen = rig.kubelet.preferred(GPU, &ids, &[], 2).await.unwrap();
            assert_eq!(chosen.len(), 2);
            if chosen.into_iter().collect::<BTreeSet<_>>() == linked {
                break;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, preferred).await.expect("the linked GPUs are not preferred");
    rig.finish().await;
}
