//! Pods: which devices they get, what is asked and remembered, and when the kubelet would crash.

use std::path::Path;

use fake_kubelet::api::podresources as podres;
use fake_kubelet::api::podresources::pod_resources_lister_client::PodResourcesListerClient;
use fake_kubelet::{AdmissionError, FakeKubelet, PodSpec, TopologyPolicy, api};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::plugin::TestPlugin;
use crate::{RESOURCE, folder};

const PREFERS: api::DevicePluginOptions =
    api::DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true };

fn pod(name: &str, count: usize) -> PodSpec {
    PodSpec::new(name).container("c").limit(RESOURCE, count)
}

async fn with_plugin(folder: &Path, devices: &[&str]) -> (FakeKubelet, TestPlugin) {
    let kubelet = FakeKubelet::start(folder).await.unwrap();
    let plugin = TestPlugin::serve_with(folder, "p.sock", RESOURCE, devices, PREFERS);
    plugin.register().await.unwrap();
    kubelet.wait_for_resource(RESOURCE).await.unwrap();
    (kubelet, plugin)
}

#[tokio::test]
async fn a_pod_gets_what_the_plugin_answers() {
    let folder = folder();
    let (kubelet, plugin) = with_plugin(folder.path(), &["a", "b:bad", "c"]).await;
    plugin.prefer(Ok(vec!["c".to_owned()]));
    let first = kubelet.run_pod(pod("first", 1)).await.unwrap();
    assert_eq!(first["c"].allocated[RESOURCE], ["c"]);
    assert_eq!(first["c"].envs["VISIBLE"], "c");
    assert_eq!(first["c"].devices[0].host_path, "/dev/c");
    assert_eq!(plugin.allocated(), [["c"]]);
    let mut asked = plugin.asked().remove(0);
    asked.available_device_i_ds.sort();
    assert_eq!(asked.available_device_i_ds, ["a", "c"]);
    assert_eq!(asked.allocation_size, 1);

    // "c" is preferred still, but held: the kubelet takes what is free.
    let second = kubelet.run_pod(pod("second", 1)).await.unwrap();
    assert_eq!(second.ids(RESOURCE), ["a"]);
    let third = kubelet.run_pod(pod("third", 1)).await.unwrap_err();
    assert!(matches!(third, AdmissionError::Insufficient { free: 0, allocatable: 2, capacity: 3, .. }));
    assert!(third.to_string().starts_with("Insufficient nvidia.com/mig-2g.20gb"), "{third}");

    assert!(kubelet.delete_pod(&second));
    kubelet.run_pod(pod("third", 1)).await.unwrap();
    assert_eq!(kubelet.pods().into_keys().collect::<Vec<_>>(), ["first", "third"]);
    kubelet.assert_no_crash();
}

#[tokio::test]
async fn a_container_that_restarts_gets_the_old_answer() {
    let folder = folder();
    let (kubelet, plugin) = with_plugin(folder.path(), &["a", "b"]).await;
    let pod = kubelet.run_pod(pod("p", 2)).await.unwrap();
    assert_eq!(pod.ids(RESOURCE), ["a", "b"]);
    // Even with a device that has become unhealthy.
    plugin.send(&["a:bad", "b"]);
    kubelet.wait_for_capacity(RESOURCE, 2, 1).await.unwrap();
    assert_eq!(kubelet.restart_container("p").await.unwrap(), pod);
    assert_eq!(plugin.allocated().len(), 1);
    assert_eq!(kubelet.calls_for(RESOURCE).pre_start, 2);
}

#[tokio::test]
async fn a_refused_pod_holds_nothing() {
    let folder = folder();
    let (kubelet, plugin) = with_plugin(folder.path(), &["refuse"]).await;
    let error = kubelet.run_pod(pod("p", 1)).await.unwrap_err();
    assert_eq!(error.status().unwrap().code(), tonic::Code::FailedPrecondition);
    assert!(error.to_string().contains("UnexpectedAdmissionError"), "{error}");
    assert!(kubelet.pods().is_empty());

    plugin.prefer(Err(tonic::Status::internal("no advice")));
    let error = kubelet.run_pod(pod("p", 1)).await.unwrap_err();
    assert!(error.to_string().contains("GetPreferredAllocation"), "{error}");
    assert_eq!(kubelet.calls().allocate, 1);

    // A list that shrinks after the error is no crash: nothing was allocated.
    plugin.send(&[]);
    kubelet.wait_for_capacity(RESOURCE, 0, 0).await.unwrap();
    kubelet.assert_no_crash();
}

#[tokio::test]
async fn init_containers_pass_their_devices_on() {
    let folder = folder();
    let (kubelet, plugin) = with_plugin(folder.path(), &["a", "b", "c"]).await;
    let spec = PodSpec::new("p").init_container("i").limit(RESOURCE, 1).container("c").limit(RESOURCE, 2);
    let pod = kubelet.run_pod(spec).await.unwrap();
    let from_init = &pod["i"].allocated[RESOURCE];
    assert!(pod["c"].allocated[RESOURCE].contains(&from_init[0]));
    assert_eq!(pod.ids(RESOURCE).len(), 2);
    assert_eq!(&plugin.asked()[1].must_include_device_i_ds, from_init);
    assert_eq!(plugin.asked()[1].allocation_size, 2);
}

#[tokio::test]
async fn removing_a_device_during_its_allocate_crashes_the_kubelet() {
    let folder = folder();
    let (kubelet, plugin) = with_plugin(folder.path(), &["a"]).await;
    plugin.send_during_allocate(&[]);
    kubelet.run_pod(pod("p", 1)).await.unwrap();
    let crashes = kubelet.crashes();
    assert_eq!(crashes.len(), 1, "{crashes:?}");
    assert!(crashes[0].contains("a was just allocated"), "{crashes:?}");
}

#[tokio::test]
async fn marking_it_unhealthy_does_not() {
    let folder = folder();
    let (kubelet, plugin) = with_plugin(folder.path(), &["a"]).await;
    plugin.send_during_allocate(&["a:bad"]);
    kubelet.run_pod(pod("p", 1)).await.unwrap();
    kubelet.assert_no_crash();
}

/// After a restart a plugin sends `list`, while a pod still holds the device `a`.
async fn crashes_after_restart(policy: TopologyPolicy, list: &[&str]) -> Vec<String> {
    let folder = folder();
    let kubelet = FakeKubelet::builder(folder.path()).topology_policy(policy).start().await.unwrap();
    let plugin = TestPlugin::serve(folder.path(), "p.sock", RESOURCE, &["a@0"]);
    plugin.register().await.unwrap();
    kubelet.wait_for_resource(RESOURCE).await.unwrap();
    kubelet.run_pod(pod("p", 1)).await.unwrap();
    kubelet.restart().await.unwrap();
    let plugin = TestPlugin::serve(folder.path(), "q.sock", RESOURCE, list);
    plugin.register().await.unwrap();
    kubelet.wait_for_resource(RESOURCE).await.unwrap();
    kubelet.crashes()
}

#[tokio::test]
async fn a_held_device_that_is_missing_after_a_restart_crashes_the_kubelet() {
    assert_eq!(crashes_after_restart(TopologyPolicy::Restricted, &["b@0"]).await.len(), 1);
    assert!(crashes_after_restart(TopologyPolicy::Restricted, &["b@0", "a@0:bad"]).await.is_empty());
    assert!(
        crashes_after_restart(TopologyPolicy::Restricted, &["b"]).await.is_empty(),
        "no NUMA node, no look-up"
    );
    assert!(crashes_after_restart(TopologyPolicy::None, &["b@0"]).await.is_empty());
}

#[tokio::test]
async fn raw_calls_reach_the_plugin_and_change_nothing() {
    let folder = folder();
    let (kubelet, plugin) = with_plugin(folder.path(), &["a", "b"]).await;
    let answer = kubelet.allocate_ids(RESOURCE, &["a", "b"]).await.unwrap();
    assert_eq!(answer.envs["VISIBLE"], "a,b");
    let many = vec![vec!["a".to_owned()], vec!["b".to_owned()]];
    assert_eq!(kubelet.allocate_many(RESOURCE, many).await.unwrap().container_responses.len(), 2);
    plugin.prefer(Ok(vec!["b".to_owned()]));
    assert_eq!(kubelet.preferred(RESOURCE, &["a", "b"], &["a"], 1).await.unwrap(), ["b"]);
    assert_eq!(kubelet.options(RESOURCE).await.unwrap(), PREFERS);
    kubelet.pre_start_container(RESOURCE, &["a"]).await.unwrap();
    let unknown = kubelet.allocate_ids("nvidia.com/none", &["a"]).await.unwrap_err();
    assert!(unknown.message().contains("unknown Device Plugin"), "{unknown}");
    kubelet.run_pod(pod("p", 2)).await.unwrap();
}

#[tokio::test]
async fn podresources_tells_who_holds_what() {
    let folder = folder();
    let builder = FakeKubelet::builder(folder.path()).pod_resources(folder.path().join("pr"));
    let kubelet = builder.start().await.unwrap();
    let plugin = TestPlugin::serve(folder.path(), "p.sock", RESOURCE, &["a@1", "b:bad", "c"]);
    plugin.register().await.unwrap();
    kubelet.wait_for_resource(RESOURCE).await.unwrap();
    kubelet.run_pod(pod("p", 2).namespace("team")).await.unwrap();

    let mut client = lister(kubelet.pod_resources_socket().unwrap()).await;
    let listed = client.list(podres::ListPodResourcesRequest {}).await.unwrap().into_inner();
    let [listed] = listed.pod_resources.as_slice() else { unreachable!("one pod") };
    assert_eq!((listed.name.as_str(), listed.namespace.as_str()), ("p", "team"));
    let devices = &listed.containers[0].devices;
    assert_eq!(devices.iter().map(|d| d.device_ids.join("+")).collect::<Vec<_>>(), ["a", "c"]);
    assert_eq!(devices[0].topology.as_ref().unwrap().nodes[0].id, 1);

    let request = podres::AllocatableResourcesRequest {};
    let allocatable = client.get_allocatable_resources(request).await.unwrap().into_inner();
    assert_eq!(allocatable.devices.len(), 2);
    let request = podres::GetPodResourcesRequest { pod_name: "p".into(), pod_namespace: "other".into() };
    assert!(client.get(request).await.unwrap_err().message().contains("not found"));

    let mut at_once = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let mut client = client.clone();
        at_once.spawn(async move { client.list(podres::ListPodResourcesRequest {}).await.map(drop) });
    }
    let answers = at_once.join_all().await;
    let rejected = answers.iter().filter(|answer| {
        answer.as_ref().is_err_and(|status| status.code() == tonic::Code::ResourceExhausted)
    });
    assert!(rejected.count() > 0, "a hundred calls at once are too many");
    assert_eq!(kubelet.pod_resources_calls(), 103);
}

pub(crate) async fn lister(socket: &Path) -> PodResourcesListerClient<Channel> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    PodResourcesListerClient::new(endpoint.connect_with_connector(connector).await.unwrap())
}
