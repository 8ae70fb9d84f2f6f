//! What happens inside `Register`, and after it.

use std::time::{Duration, Instant};

use fake_kubelet::{Capacity, FakeKubelet, api};
use tokio::net::UnixListener;

use crate::plugin::{TestPlugin, register};
use crate::{RESOURCE, folder};

#[tokio::test]
async fn a_registered_plugin_is_listed() {
    let folder = folder();
    let kubelet = FakeKubelet::start(folder.path()).await.unwrap();
    let plugin = TestPlugin::serve(folder.path(), "p.sock", RESOURCE, &["a@1", "b:bad"]);
    plugin.register().await.unwrap();

    let numbers = kubelet.wait_for_resource(RESOURCE).await.unwrap();
    assert_eq!(numbers, Capacity { capacity: 2, allocatable: 1 });
    assert_eq!(kubelet.resources()[RESOURCE], numbers);
    let devices = kubelet.devices(RESOURCE);
    assert!(devices["a"].healthy && !devices["b"].healthy);
    assert_eq!((devices["a"].numa, devices["b"].numa), (Some(1), None));
    let registration = kubelet.registrations().remove(0);
    assert_eq!(registration.resource, RESOURCE);
    assert_eq!((registration.endpoint.as_str(), registration.version.as_str()), ("p.sock", "v1beta1"));

    plugin.send(&["a@1", "b", "c"]);
    kubelet.wait_for_capacity(RESOURCE, 3, 3).await.unwrap();
    plugin.send(&[]);
    kubelet.wait_for_capacity(RESOURCE, 0, 0).await.unwrap();
    assert_eq!(kubelet.lists(RESOURCE).len(), 3);
    assert_eq!(kubelet.calls().lists, 3);
    assert_eq!(kubelet.calls_for(RESOURCE).list_and_watch, 1);
    assert_eq!(kubelet.checkpoint_writes(), 3);
    assert!(folder.path().join("kubelet_internal_checkpoint").exists());
    assert!(kubelet.complaints().is_empty(), "{:?}", kubelet.complaints());
}

#[tokio::test]
async fn versions_and_names_are_checked_before_dialling() {
    let folder = folder();
    let kubelet = FakeKubelet::start(folder.path()).await.unwrap();
    let start = Instant::now();
    let version = register(folder.path(), "v1alpha", "p.sock", RESOURCE).await.unwrap_err();
    assert!(version.message().contains("is not supported by kubelet"), "{version}");
    for name in ["cpu", "kubernetes.io/gpu", "requests.nvidia.com/gpu"] {
        let status = register(folder.path(), api::VERSION, "p.sock", name).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unknown);
        assert!(status.message().contains("is invalid"), "{status}");
    }
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(kubelet.refusals().len(), 4);
    assert!(kubelet.registrations().is_empty());
}

#[tokio::test]
async fn register_waits_for_the_plugin_to_answer() {
    let folder = folder();
    let limit = Duration::from_millis(1500);
    let kubelet = FakeKubelet::builder(folder.path()).dial_limit(limit).start().await.unwrap();

    let status = register(folder.path(), api::VERSION, "nobody.sock", RESOURCE).await.unwrap_err();
    assert!(status.message().contains("failed to dial device plugin"), "{status}");

    // Bound but not served: it can be connected to, and never answers.
    let _bound = UnixListener::bind(folder.path().join("mute.sock")).unwrap();
    let start = Instant::now();
    let status = register(folder.path(), api::VERSION, "mute.sock", RESOURCE).await.unwrap_err();
    assert!(status.message().contains("deadline exceeded"), "{status}");
    assert!(start.elapsed() >= limit);
    assert!(kubelet.resources().is_empty());
    assert_eq!(kubelet.calls().list_and_watch, 0);
}

#[tokio::test]
async fn a_plugin_may_come_up_while_its_register_waits() {
    let folder = folder();
    let kubelet = FakeKubelet::start(folder.path()).await.unwrap();
    let early = register(folder.path(), api::VERSION, "late.sock", RESOURCE);
    let late = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        TestPlugin::serve(folder.path(), "late.sock", RESOURCE, &["a"])
    };
    let (registered, _plugin) = tokio::join!(early, late);
    registered.unwrap();
    kubelet.wait_for_resource(RESOURCE).await.unwrap();
}

#[tokio::test]
async fn a_poor_list_is_borne_and_noted() {
    let folder = folder();
    let kubelet = FakeKubelet::start(folder.path()).await.unwrap();
    let plugin = TestPlugin::serve(folder.path(), "p.sock", RESOURCE, &["a"]);
    plugin.register().await.unwrap();
    kubelet.wait_for_resource(RESOURCE).await.unwrap();
    plugin.send(&["a"]);
    kubelet.wait_for(|view| view.resources[RESOURCE].lists == 2, "a second list").await.unwrap();
    let long = "x".repeat(64);
    plugin.send(&["a", "a", &long]);
    kubelet.wait_for_capacity(RESOURCE, 2, 2).await.unwrap();
    let complaints = kubelet.complaints().join("\n");
    for part in ["changes nothing", "a is in the list twice", "has 64 characters"] {
        assert!(complaints.contains(part), "{complaints}");
    }
}

#[tokio::test]
async fn what_was_waited_for_is_in_the_error() {
    let folder = folder();
    let limit = Duration::from_millis(100);
    let kubelet = FakeKubelet::builder(folder.path()).wait_limit(limit).start().await.unwrap();
    let error = kubelet.wait_for_resource(RESOURCE).await.unwrap_err().to_string();
    assert!(error.contains("the resource nvidia.com/mig-2g.20gb"), "{error}");
    assert!(error.contains("no resources"), "{error}");
}

#[tokio::test]
async fn a_slow_reader_takes_its_time_over_every_list() {
    let folder = folder();
    let pause = Duration::from_millis(150);
    let kubelet = FakeKubelet::builder(folder.path()).slow_reader(pause).start().await.unwrap();
    let plugin = TestPlugin::serve(folder.path(), "p.sock", RESOURCE, &["a"]);
    let start = Instant::now();
    plugin.register().await.unwrap();
    kubelet.wait_for_resource(RESOURCE).await.unwrap();
    plugin.send(&["a", "b"]);
    kubelet.wait_for_capacity(RESOURCE, 2, 2).await.unwrap();
    assert!(start.elapsed() >= pause * 2);
}
