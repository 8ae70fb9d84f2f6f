//! The old stream's end, and whom it disconnects.

use std::time::{Duration, Instant};

use fake_kubelet::{Capacity, FakeKubelet};

use crate::plugin::TestPlugin;
use crate::{RESOURCE, folder, until};

#[tokio::test]
async fn registering_before_the_old_stream_has_ended_loses_the_resource() {
    let folder = folder();
    let kubelet = FakeKubelet::start(folder.path()).await.unwrap();
    let old = TestPlugin::serve(folder.path(), "old.sock", RESOURCE, &["a"]);
    old.register().await.unwrap();
    kubelet.wait_for_resource(RESOURCE).await.unwrap();
    let new = TestPlugin::serve(folder.path(), "new.sock", RESOURCE, &["a", "b"]);
    new.register().await.unwrap();
    kubelet.wait_for_capacity(RESOURCE, 2, 2).await.unwrap();

    old.end_streams();
    kubelet.wait_for_capacity(RESOURCE, 2, 0).await.unwrap();
    assert!(!kubelet.view().serves(RESOURCE));
    let error = kubelet.allocate_ids(RESOURCE, &["a"]).await.unwrap_err();
    assert!(error.message().contains("has been stopped"), "{error}");
    // The wrong connection was closed.
    until(|| new.connections() == 0).await;
    assert_eq!(old.connections(), 1);

    // Only a third registration brings it back: nothing is left to race with.
    let third = TestPlugin::serve(folder.path(), "third.sock", RESOURCE, &["a", "b"]);
    third.register().await.unwrap();
    kubelet.wait_for_capacity(RESOURCE, 2, 2).await.unwrap();
    kubelet.allocate_ids(RESOURCE, &["a"]).await.unwrap();
}

#[tokio::test]
async fn a_newer_instance_that_ends_first_stops_the_endpoint() {
    let folder = folder();
    let builder = FakeKubelet::builder(folder.path()).forget_after(Duration::from_millis(300));
    let kubelet = builder.start().await.unwrap();
    let old = TestPlugin::serve(folder.path(), "old.sock", RESOURCE, &["a"]);
    old.register().await.unwrap();
    kubelet.wait_for_resource(RESOURCE).await.unwrap();
    let new = TestPlugin::serve(folder.path(), "new.sock", RESOURCE, &["a", "b"]);
    new.register().await.unwrap();
    kubelet.wait_for_capacity(RESOURCE, 2, 2).await.unwrap();

    drop(new);
    kubelet.wait_for_capacity(RESOURCE, 2, 0).await.unwrap();
    // The old stream is still read, and its devices count; but the endpoint stays stopped.
    old.send(&["a", "c", "d"]);
    kubelet.wait_for_capacity(RESOURCE, 3, 3).await.unwrap();
    kubelet.allocate_ids(RESOURCE, &["a"]).await.unwrap_err();
    kubelet.wait_until_forgotten(RESOURCE).await.unwrap();
}

#[tokio::test]
async fn without_the_race_the_new_client_stays() {
    let folder = folder();
    let builder = FakeKubelet::builder(folder.path()).emulate_reregistration_race(false);
    let kubelet = builder.start().await.unwrap();
    let old = TestPlugin::serve(folder.path(), "old.sock", RESOURCE, &["a"]);
    old.register().await.unwrap();
    kubelet.wait_for_resource(RESOURCE).await.unwrap();
    let new = TestPlugin::serve(folder.path(), "new.sock", RESOURCE, &["a", "b"]);
    new.register().await.unwrap();
    kubelet.wait_for_capacity(RESOURCE, 2, 2).await.unwrap();
    drop(old);
    new.send(&["a", "b", "c"]);
    kubelet.wait_for_capacity(RESOURCE, 3, 3).await.unwrap();
    assert!(kubelet.view().serves(RESOURCE));
}

#[tokio::test]
async fn a_stream_that_ended_first_can_be_replaced() {
    let folder = folder();
    let kubelet = FakeKubelet::start(folder.path()).await.unwrap();
    let old = TestPlugin::serve(folder.path(), "old.sock", RESOURCE, &["a"]);
    old.register().await.unwrap();
    kubelet.wait_for_resource(RESOURCE).await.unwrap();
    old.end_streams();
    let ended = Instant::now();
    until(|| old.connections() == 0).await;
    assert!(ended.elapsed() < Duration::from_secs(1), "the kubelet closes the connection at once");
    kubelet.wait_for_capacity(RESOURCE, 1, 0).await.unwrap();
    let new = TestPlugin::serve(folder.path(), "new.sock", RESOURCE, &["a"]);
    new.register().await.unwrap();
    kubelet.wait_for_capacity(RESOURCE, 1, 1).await.unwrap();
    drop(old);
    kubelet.allocate_ids(RESOURCE, &["a"]).await.unwrap();
    assert_eq!(kubelet.capacity(RESOURCE), Some(Capacity { capacity: 1, allocatable: 1 }));
}

#[tokio::test]
async fn a_dropped_stream_leaves_the_kubelet_up() {
    let folder = folder();
    let kubelet = FakeKubelet::start(folder.path()).await.unwrap();
    let plugin = TestPlugin::serve(folder.path(), "p.sock", RESOURCE, &["a"]);
    plugin.register().await.unwrap();
    kubelet.wait_for_resource(RESOURCE).await.unwrap();
    assert!(kubelet.drop_stream(RESOURCE));
    assert!(!kubelet.drop_stream(RESOURCE));
    kubelet.wait_for_capacity(RESOURCE, 1, 0).await.unwrap();
    plugin.register().await.unwrap();
    kubelet.wait_for_capacity(RESOURCE, 1, 1).await.unwrap();
}
