//! What the kubelet knows of the pods' devices: its checkpoint, what it says on podresources, and both after a restart.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use fake_kubelet::api::podresources as podres;
use fake_kubelet::{Builder, FakeKubelet, PodSpec, TopologyPolicy};
use serde_json::{Value, json};

use crate::admission::lister;
use crate::plugin::TestPlugin;
use crate::{RESOURCE, folder};

const FILE: &str = "kubelet_internal_checkpoint";

fn builder(folder: &Path) -> Builder {
    FakeKubelet::builder(folder).pod_resources(folder.join("pr")).api_pods_after(None)
}

async fn serve(kubelet: &FakeKubelet, name: &str, devices: &[&str]) -> TestPlugin {
    let plugin = TestPlugin::serve(kubelet.plugin_dir(), name, RESOURCE, devices);
    plugin.register().await.unwrap();
    kubelet.wait_for_resource(RESOURCE).await.unwrap();
    plugin
}

fn pod(name: &str) -> PodSpec {
    PodSpec::new(name).container("c").limit(RESOURCE, 1)
}

fn with_init(name: &str) -> PodSpec {
    PodSpec::new(name).init_container("i").limit(RESOURCE, 1).container("c")
}

fn checkpoint(kubelet: &FakeKubelet) -> Value {
    serde_json::from_slice(&std::fs::read(kubelet.plugin_dir().join(FILE)).unwrap()).unwrap()
}

/// The IDs in the checkpoint, sorted.
fn remembered(kubelet: &FakeKubelet) -> Vec<String> {
    let file = checkpoint(kubelet);
    let entries = file["Data"]["PodDeviceEntries"].as_array().cloned().unwrap_or_default();
    let by_node = entries.iter().flat_map(|entry| entry["DeviceIDs"].as_object().unwrap().values());
    let mut ids: Vec<_> =
        by_node.flat_map(|ids| ids.as_array().unwrap()).map(|id| id.as_str().unwrap().to_owned()).collect();
    ids.sort();
    ids
}

/// `pod/container: IDs` of each container that `List` names.
async fn listed(kubelet: &FakeKubelet) -> Vec<String> {
    let mut client = lister(kubelet.pod_resources_socket().unwrap()).await;
    let answer = client.list(podres::ListPodResourcesRequest {}).await.unwrap().into_inner();
    let containers = answer.pod_resources.into_iter().flat_map(|pod| {
        pod.containers.into_iter().map(move |container| {
            let ids: Vec<_> = container.devices.into_iter().flat_map(|devices| devices.device_ids).collect();
            format!("{}/{}: {}", pod.name, container.name, ids.join(","))
        })
    });
    containers.collect()
}

async fn settled(kubelet: &FakeKubelet) {
    kubelet.wait_for(|_| kubelet.is_settled(), "the API server's pods").await.unwrap();
}

#[tokio::test]
async fn the_checkpoint_has_the_kubelets_form() {
    let folder = folder();
    let kubelet = builder(folder.path()).start().await.unwrap();
    let _plugin = serve(&kubelet, "p.sock", &["a@1", "b"]).await;
    let path = folder.path().join(FILE);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let file = checkpoint(&kubelet);
    assert_eq!(
        file["Data"],
        json!({ "PodDeviceEntries": null, "RegisteredDevices": { RESOURCE: ["a", "b"] } })
    );
    assert!(file["Checksum"].is_u64());

    kubelet.run_pod(PodSpec::new("p").container("c").limit(RESOURCE, 2)).await.unwrap();
    let entry = &checkpoint(&kubelet)["Data"]["PodDeviceEntries"][0];
    assert_eq!(entry["DeviceIDs"], json!({ "-1": ["b"], "1": ["a"] }));
    assert_eq!((&entry["ContainerName"], &entry["ResourceName"]), (&json!("c"), &json!(RESOURCE)));
    assert_eq!(entry["PodUID"].as_str().unwrap().len(), 36);
    assert!(!entry["AllocResp"].as_str().unwrap().is_empty());
    let names: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().starts_with('.')), "{names:?}");
}

#[tokio::test]
async fn a_pod_that_ended_stays_in_the_checkpoint_until_somebody_asks_and_it_is_written_again() {
    let folder = folder();
    let kubelet = builder(folder.path()).start().await.unwrap();
    let plugin = serve(&kubelet, "p.sock", &["a", "b"]).await;
    kubelet.run_pod(pod("one")).await.unwrap();
    kubelet.run_pod(pod("two")).await.unwrap();
    assert!(kubelet.finish_pod("one"));
    assert!(kubelet.delete_pod("two"));

    plugin.send(&["a", "b", "c"]);
    kubelet.wait_for_capacity(RESOURCE, 3, 3).await.unwrap();
    assert_eq!(remembered(&kubelet), ["a", "b"], "nobody has asked");
    assert_eq!(listed(&kubelet).await, Vec::<String>::new());
    assert_eq!(remembered(&kubelet), ["a", "b"], "nothing has been written since");
    plugin.send(&["a", "b"]);
    kubelet.wait_for_capacity(RESOURCE, 2, 2).await.unwrap();
    assert_eq!(remembered(&kubelet), Vec::<String>::new());
    // An admission asks, too, and writes.
    kubelet.run_pod(pod("three")).await.unwrap();
    kubelet.finish_pod("three");
    kubelet.run_pod(pod("four")).await.unwrap();
    assert_eq!(remembered(&kubelet).len(), 1);
}

#[tokio::test]
async fn a_forgotten_resource_is_written_and_its_containers_cannot_start_again() {
    let folder = folder();
    let kubelet = builder(folder.path()).forget_after(Duration::from_millis(100)).start().await.unwrap();
    let plugin = serve(&kubelet, "p.sock", &["a"]).await;
    kubelet.run_pod(pod("p")).await.unwrap();
    drop(plugin);
    kubelet.wait_until_forgotten(RESOURCE).await.unwrap();
    assert_eq!(checkpoint(&kubelet)["Data"]["RegisteredDevices"], json!({}));
    assert_eq!(remembered(&kubelet), ["a"]);
    let error = kubelet.restart_container("p").await.unwrap_err();
    assert!(error.to_string().contains("endpoint not found in cache"), "{error}");
}

#[tokio::test]
async fn podresources_names_sidecars_and_no_init_containers() {
    let folder = folder();
    let spec = || with_init("p").limit(RESOURCE, 1).sidecar("s").limit(RESOURCE, 1);
    for (version, names) in [(28, vec!["p/c"]), (29, vec!["p/s", "p/c"])] {
        let kubelet = builder(folder.path()).version(version).start().await.unwrap();
        let _plugin = serve(&kubelet, "p.sock", &["a", "b"]).await;
        let pod = kubelet.run_pod(spec()).await.unwrap();
        assert_eq!(pod.ids(RESOURCE).len(), 2, "the container after it takes the init container's");
        let listed = listed(&kubelet).await;
        let containers: Vec<_> = listed.iter().filter_map(|line| line.split(':').next()).collect();
        assert_eq!(containers, names, "in 1.{version}");
        kubelet.finish_pod("p");
        assert_eq!(self::listed(&kubelet).await.len(), names.len(), "up to 1.33 those that ended, too");
    }
}

#[tokio::test]
async fn after_a_restart_podresources_answers_without_the_api_servers_pods() {
    let folder = folder();
    let kubelet = builder(folder.path()).start().await.unwrap();
    let _plugin = serve(&kubelet, "p.sock", &["a", "b", "c"]).await;
    kubelet.run_pod(pod("api")).await.unwrap();
    kubelet.run_pod(pod("static").static_pod()).await.unwrap();
    kubelet.restart().await.unwrap();
    let _plugin = serve(&kubelet, "q.sock", &["a", "b", "c"]).await;
    kubelet.wait_for(|view| view.serves(RESOURCE), "the plugin").await.unwrap();
    let names = listed(&kubelet).await;
    assert_eq!(names.len(), 1, "{names:?}");
    assert!(names[0].starts_with("static/c"), "{names:?}");
    // What nobody names stays remembered, also when it is written: the pods' sources are not ready.
    assert_eq!(remembered(&kubelet).len(), 2);

    kubelet.api_pods_after(Some(Duration::ZERO));
    settled(&kubelet).await;
    assert_eq!(listed(&kubelet).await.len(), 2);
    kubelet.assert_no_crash();
}

#[tokio::test]
async fn a_pod_that_ended_while_the_kubelet_was_away_is_dropped_once_sources_are_ready() {
    let folder = folder();
    let kubelet = builder(folder.path()).start().await.unwrap();
    let _plugin = serve(&kubelet, "p.sock", &["a", "b"]).await;
    kubelet.run_pod(pod("one")).await.unwrap();
    kubelet.run_pod(pod("two")).await.unwrap();
    kubelet.stop().await.unwrap();
    kubelet.delete_pod("one");
    kubelet.restart().await.unwrap();
    let plugin = serve(&kubelet, "q.sock", &["a", "b"]).await;
    listed(&kubelet).await;
    plugin.send(&["a", "b", "c"]);
    kubelet.wait_for_capacity(RESOURCE, 3, 3).await.unwrap();
    assert_eq!(remembered(&kubelet).len(), 2);
    kubelet.api_pods_after(Some(Duration::ZERO));
    settled(&kubelet).await;
    listed(&kubelet).await;
    plugin.send(&["a", "b"]);
    kubelet.wait_for_capacity(RESOURCE, 2, 2).await.unwrap();
    assert_eq!(remembered(&kubelet).len(), 1);
}

#[tokio::test]
async fn a_spoilt_checkpoint_is_not_used() {
    let folder = folder();
    let kubelet = builder(folder.path()).start().await.unwrap();
    let _plugin = serve(&kubelet, "p.sock", &["a"]).await;
    kubelet.run_pod(pod("p")).await.unwrap();
    kubelet.stop().await.unwrap();
    let text = std::fs::read_to_string(folder.path().join(FILE)).unwrap();
    std::fs::write(folder.path().join(FILE), text.replace("\"c\"", "\"d\"")).unwrap();
    kubelet.restart().await.unwrap();
    assert!(kubelet.view().resources.is_empty());
    assert!(kubelet.complaints()[0].contains("corrupted"), "{:?}", kubelet.complaints());
}

/// A kubelet with this policy is restarted under a pod; the plugin then sends this list before the pod is admitted.
async fn failed_after_restart(policy: TopologyPolicy, spec: PodSpec, list: &[&str]) -> Vec<String> {
    let folder = folder();
    let kubelet = builder(folder.path()).topology_policy(policy).start().await.unwrap();
    let _plugin = serve(&kubelet, "p.sock", &["a@0"]).await;
    kubelet.run_pod(spec).await.unwrap();
    kubelet.restart().await.unwrap();
    let _plugin = serve(&kubelet, "q.sock", list).await;
    kubelet.api_pods_after(Some(Duration::ZERO));
    settled(&kubelet).await;
    assert_eq!(kubelet.crashes(), Vec::<String>::new());
    kubelet.failed_pods()
}

#[tokio::test]
async fn a_held_device_without_its_numa_node_fails_the_running_pod() {
    let lists = ["b@0", "a:bad"];
    for policy in [TopologyPolicy::Restricted, TopologyPolicy::SingleNumaNode] {
        let failed = failed_after_restart(policy, pod("p"), &lists).await;
        assert!(failed[0].contains("TopologyAffinityError"), "{failed:?}");
        assert!(failed_after_restart(policy, pod("p"), &["b@0", "a@0:bad"]).await.is_empty());
        assert!(
            failed_after_restart(policy, pod("p"), &["b", "a:bad"]).await.is_empty(),
            "nobody has a node"
        );
    }
    assert!(failed_after_restart(TopologyPolicy::BestEffort, pod("p"), &lists).await.is_empty());
    assert!(failed_after_restart(TopologyPolicy::None, pod("p"), &lists).await.is_empty());
}

#[tokio::test]
async fn what_a_finished_init_container_had_must_be_healthy_when_its_pod_is_admitted_again() {
    let failed = failed_after_restart(TopologyPolicy::None, with_init("p"), &["b", "a:bad"]).await;
    assert!(failed[0].contains("previously allocated devices are no longer healthy"), "{failed:?}");
    assert!(failed_after_restart(TopologyPolicy::None, with_init("p"), &["a"]).await.is_empty());
    assert!(
        failed_after_restart(TopologyPolicy::None, pod("p"), &["b", "a:bad"]).await.is_empty(),
        "it runs"
    );
}

#[tokio::test]
async fn a_container_that_had_restarted_is_trusted_from_1_34_on() {
    let folder = folder();
    for (version, failures) in [(33, 1), (34, 0)] {
        let kubelet = builder(folder.path()).version(version).start().await.unwrap();
        let _plugin = serve(&kubelet, "p.sock", &["a"]).await;
        kubelet.run_pod(pod("p")).await.unwrap();
        kubelet.restart_container("p").await.unwrap();
        kubelet.restart().await.unwrap();
        kubelet.api_pods_after(Some(Duration::ZERO));
        settled(&kubelet).await;
        assert_eq!(kubelet.failed_pods().len(), failures, "in 1.{version}: {:?}", kubelet.failed_pods());
    }
}

#[tokio::test]
async fn a_device_that_an_init_container_had_may_not_leave_the_list_either() {
    let folder = folder();
    let kubelet = builder(folder.path()).topology_policy(TopologyPolicy::BestEffort).start().await.unwrap();
    let plugin = serve(&kubelet, "p.sock", &["a@0", "b@0"]).await;
    plugin.send(&["a@0"]);
    kubelet.wait_for_capacity(RESOURCE, 1, 1).await.unwrap();
    kubelet.run_pod(with_init("p")).await.unwrap();
    plugin.send(&["b@0"]);
    kubelet.wait_for_devices(RESOURCE, |devices| devices.contains_key("b")).await.unwrap();
    let crashes = kubelet.crashes();
    assert!(crashes.len() == 1 && crashes[0].contains("a is held by the running pod p"), "{crashes:?}");
}

#[tokio::test]
async fn devices_are_aligned_to_numa_nodes() {
    let folder = folder();
    let kubelet =
        builder(folder.path()).topology_policy(TopologyPolicy::SingleNumaNode).start().await.unwrap();
    let _plugin = serve(&kubelet, "p.sock", &["a@0", "b@1", "c@0", "d@1", "e@1"]).await;
    let pair = |name: &str, count| PodSpec::new(name).container("c").limit(RESOURCE, count);
    let pod = kubelet.run_pod(pair("two", 2)).await.unwrap();
    let ids = pod.ids(RESOURCE).join("");
    assert!(["ac", "bd", "be", "de"].contains(&ids.as_str()), "{ids}");
    kubelet.delete_pod("two");
    assert_eq!(kubelet.run_pod(pair("three", 3)).await.unwrap().ids(RESOURCE), ["b", "d", "e"]);
    kubelet.delete_pod("three");
    let error = kubelet.run_pod(pair("four", 4)).await.unwrap_err();
    assert!(error.to_string().contains("TopologyAffinityError"), "{error}");
}
