//! Start, stop, restart, and what is left after each.

use std::os::unix::net::UnixListener as StdListener;
use std::time::Duration;

use fake_kubelet::{FakeKubelet, PodSpec};

use crate::plugin::TestPlugin;
use crate::{RESOURCE, folder};

#[tokio::test]
async fn a_start_deletes_every_socket_and_nothing_else() {
    let folder = folder();
    let foreign = folder.path().join("foreign.sock");
    let _listening = StdListener::bind(&foreign).unwrap();
    let stale = folder.path().join("kubelet.sock");
    drop(StdListener::bind(&stale).unwrap());
    std::fs::write(folder.path().join("notes"), "").unwrap();
    std::fs::create_dir(folder.path().join("sub")).unwrap();

    let kubelet = FakeKubelet::start(folder.path()).await.unwrap();
    assert!(!foreign.exists());
    assert!(kubelet.socket().exists());
    assert!(folder.path().join("notes").exists() && folder.path().join("sub").exists());

    kubelet.stop().await.unwrap();
    assert!(!kubelet.socket().exists());
    kubelet.restart().await.unwrap();
    kubelet.kill().await.unwrap();
    assert!(kubelet.socket().exists(), "a crash leaves the file");
    kubelet.restart().await.unwrap();
    drop(kubelet);
    assert!(!stale.exists());
}

#[tokio::test]
async fn a_restart_keeps_pods_and_forgets_devices() {
    let folder = folder();
    let kubelet = FakeKubelet::start(folder.path()).await.unwrap();
    let plugin = TestPlugin::serve(folder.path(), "p.sock", RESOURCE, &["a", "b"]);
    plugin.register().await.unwrap();
    kubelet.wait_for_resource(RESOURCE).await.unwrap();
    let pod = kubelet.run_pod(PodSpec::new("one").container("c").limit(RESOURCE, 1)).await.unwrap();

    kubelet.restart().await.unwrap();
    assert!(!folder.path().join("p.sock").exists());
    let view = kubelet.view();
    assert_eq!(view.capacity(RESOURCE), Some(fake_kubelet::Capacity::default()));
    assert!(!view.serves(RESOURCE));
    assert_eq!(kubelet.restart_container(&pod).await.unwrap(), pod);
    assert_eq!(kubelet.calls().allocate, 1);

    let plugin = TestPlugin::serve(folder.path(), "q.sock", RESOURCE, &["a", "b"]);
    plugin.register().await.unwrap();
    kubelet.wait_for_capacity(RESOURCE, 2, 2).await.unwrap();
    assert_eq!(kubelet.registrations().iter().map(|r| r.life).collect::<Vec<_>>(), [1, 2]);
    let other = kubelet.run_pod(PodSpec::new("two").limit(RESOURCE, 1)).await.unwrap();
    assert_ne!(other.ids(RESOURCE), pod.ids(RESOURCE));
    kubelet.assert_no_crash();
}

#[tokio::test]
async fn a_stop_ends_the_plugins_streams() {
    let folder = folder();
    let kubelet = FakeKubelet::start(folder.path()).await.unwrap();
    let plugin = TestPlugin::serve(folder.path(), "p.sock", RESOURCE, &["a"]);
    plugin.register().await.unwrap();
    kubelet.wait_for_resource(RESOURCE).await.unwrap();
    assert_eq!(plugin.open_streams(), 1);
    kubelet.stop().await.unwrap();
    crate::until(|| plugin.open_streams() == 0).await;
    plugin.register().await.unwrap_err();
    assert!(!kubelet.view().running);
}

#[tokio::test]
async fn a_drop_ends_the_plugins_streams() {
    let folder = folder();
    let kubelet = FakeKubelet::start(folder.path()).await.unwrap();
    let plugin = TestPlugin::serve(folder.path(), "p.sock", RESOURCE, &["a"]);
    plugin.register().await.unwrap();
    kubelet.wait_for_resource(RESOURCE).await.unwrap();
    drop(kubelet);
    crate::until(|| plugin.open_streams() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubelets_in_one_process_are_independent() {
    let (here, there) = (folder(), folder());
    let first = FakeKubelet::start(here.path()).await.unwrap();
    let second = FakeKubelet::start(there.path()).await.unwrap();
    let plugin = TestPlugin::serve(here.path(), "p.sock", RESOURCE, &["a"]);
    plugin.register().await.unwrap();
    first.wait_for_resource(RESOURCE).await.unwrap();
    assert!(second.resources().is_empty());
    second.restart().await.unwrap();
    drop(second);
    first.allocate_ids(RESOURCE, &["a"]).await.unwrap();
}

#[tokio::test]
async fn a_resource_without_a_plugin_is_forgotten() {
    let folder = folder();
    let builder = FakeKubelet::builder(folder.path()).forget_after(Duration::from_millis(200));
    let kubelet = builder.start().await.unwrap();
    let plugin = TestPlugin::serve(folder.path(), "p.sock", RESOURCE, &["a"]);
    plugin.register().await.unwrap();
    kubelet.wait_for_resource(RESOURCE).await.unwrap();
    drop(plugin);
    kubelet.wait_for_capacity(RESOURCE, 1, 0).await.unwrap();
    kubelet.wait_until_forgotten(RESOURCE).await.unwrap();
}
