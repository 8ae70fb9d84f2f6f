//! What the kubelet goes through, and the plugin with it.

use std::fs;
use std::time::{Duration, Instant};

use fake_kubelet::{FakeKubelet, PodSpec};
use fake_nvml::{Description, Event, Node};

use crate::rig::{GPU, Plugin, Rig, kubelet, mig, wait_until};

fn two_gpus() -> Description {
    Description::h100s(2).with_mig(0, &["1g.10gb"; 2])
}

#[tokio::test]
async fn a_registration_is_what_the_kubelet_expects() {
    let rig = Rig::mixed(&two_gpus()).await;
    rig.wait_for_counts(&[(GPU, 1), (&mig("1g.10gb"), 2)]).await;
    let registrations = rig.kubelet.registrations();
    assert_eq!(registrations.len(), 2);
    for registration in &registrations {
        assert_eq!(registration.version, "v1beta1");
        assert!(rig.plugin_folder().join(&registration.endpoint).exists());
        assert!(registration.options.get_preferred_allocation_available);
        assert!(!registration.options.pre_start_required);
        assert_eq!(registration.requested_options, Some(registration.options));
    }
    rig.finish().await;
}

#[tokio::test]
async fn a_kubelet_that_restarts_gets_everything_again() {
    let rig = Rig::mixed(&two_gpus()).await;
    let counts = [(GPU, 1), (&*mig("1g.10gb"), 2)];
    rig.wait_for_counts(&counts).await;
    let pod = PodSpec::new("a").container("main").limit(mig("1g.10gb"), 1);
    rig.kubelet.run_pod(pod).await.unwrap();
    for life in 2..5 {
        rig.kubelet.restart().await.unwrap();
        for (resource, _) in counts {
            rig.kubelet.wait_for_registrations(resource, life).await.unwrap();
        }
        rig.wait_for_counts(&counts).await;
    }
    rig.finish().await;
}

#[tokio::test]
async fn a_kubelet_that_was_killed_gets_everything_again() {
    let rig = Rig::mixed(&two_gpus()).await;
    let counts = [(GPU, 1), (&*mig("1g.10gb"), 2)];
    rig.wait_for_counts(&counts).await;
    // Its socket's file stays behind, and nobody listens on it.
    rig.kubelet.kill().await.unwrap();
    rig.plugin.wait_for_log(&["not registered", "connect"]).await;
    rig.kubelet.restart().await.unwrap();
    rig.wait_for_counts(&counts).await;
    rig.finish().await;
}

#[tokio::test]
async fn a_kubelet_that_comes_late_is_served_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::create(dir.path().join("node"), &two_gpus()).unwrap();
    let mut plugin = Plugin::spawn(dir.path(), node.root(), &["--mig-strategy=mixed"]);
    plugin.wait_for_log(&["waiting for the kubelet's socket"]).await;
    plugin.wait_for_log(&["found", "driver"]).await;
    fs::create_dir(dir.path().join("device-plugins")).unwrap();
    let kubelet = kubelet(dir.path()).await;
    kubelet.wait_for_capacity(GPU, 1, 1).await.unwrap();
    kubelet.wait_for_capacity(&mig("1g.10gb"), 2, 2).await.unwrap();
    plugin.signal("TERM");
    assert!(plugin.exit().await.success());
    kubelet.assert_no_crash();
}

#[tokio::test]
async fn a_stream_that_the_kubelet_drops_is_replaced() {
    let rig = Rig::mixed(&two_gpus()).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(GPU, 1), (&resource, 2)]).await;
    for n in 2..5 {
        assert!(rig.kubelet.drop_stream(&resource));
        rig.kubelet.wait_for_registrations(&resource, n).await.unwrap();
        rig.wait_for_counts(&[(GPU, 1), (&resource, 2)]).await;
    }
    assert_eq!(rig.kubelet.view().registrations_of(GPU), 1, "the other resource had no reason");
    rig.finish().await;
}

#[tokio::test]
async fn a_socket_that_somebody_removes_is_replaced() {
    let rig = Rig::mixed(&two_gpus()).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(GPU, 1), (&resource, 2)]).await;
    for n in 2..4 {
        let registrations = rig.kubelet.registrations();
        let last = registrations.iter().rfind(|registration| registration.resource == resource).unwrap();
        fs::remove_file(rig.plugin_folder().join(&last.endpoint)).unwrap();
        let start = Instant::now();
        rig.kubelet.wait_for_registrations(&resource, n).await.unwrap();
        eprintln!("registered again after {:?}", start.elapsed());
        rig.wait_for_counts(&[(GPU, 1), (&resource, 2)]).await;
    }
    let endpoints: Vec<_> = rig.kubelet.registrations().into_iter().map(|r| r.endpoint).collect();
    let mut distinct = endpoints.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), endpoints.len(), "a socket's name was used twice");
    rig.finish().await;
}

#[tokio::test]
async fn a_folder_that_is_replaced_as_a_whole_is_followed() {
    let rig = Rig::mixed(&two_gpus()).await;
    rig.wait_for_counts(&[(GPU, 1), (&mig("1g.10gb"), 2)]).await;
    rig.kubelet.stop().await.unwrap();
    let folder = rig.plugin_folder();
    fs::rename(&folder, rig.dir.path().join("old")).unwrap();
    fs::create_dir(&folder).unwrap();
    let kubelet = FakeKubelet::start(&folder).await.unwrap();
    kubelet.wait_for_capacity(GPU, 1, 1).await.unwrap();
    kubelet.wait_for_capacity(&mig("1g.10gb"), 2, 2).await.unwrap();
    rig.finish().await;
    kubelet.assert_no_crash();
}

#[tokio::test]
async fn a_layout_change_meets_a_kubelet_restart() {
    let rig = Rig::mixed(&two_gpus()).await;
    rig.wait_for_counts(&[(GPU, 1), (&mig("1g.10gb"), 2)]).await;
    rig.kubelet.stop().await.unwrap();
    rig.node.update(|node| node.set_mig(0, &["3g.40gb", "2g.20gb"])).unwrap();
    rig.kubelet.restart().await.unwrap();
    rig.wait_for_counts(&[(GPU, 1), (&mig("2g.20gb"), 1), (&mig("3g.40gb"), 1)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn layouts_change_all_through_kubelet_restarts() {
    let rig = Rig::mixed(&two_gpus()).await;
    rig.wait_for_counts(&[(GPU, 1), (&mig("1g.10gb"), 2)]).await;
    let restarts = async {
        for _ in 0..4 {
            rig.kubelet.restart().await.unwrap();
            rig.kubelet.wait_for(|view| view.serves(GPU), "the whole GPU").await.unwrap();
        }
    };
    let changes = async {
        for round in 0..40 {
            let layout: &[&str] = if round % 2 == 0 { &["3g.40gb", "2g.20gb"] } else { &["1g.10gb"; 2] };
            rig.node.update(|node| node.set_mig(0, layout)).unwrap();
            rig.node.send(&Event::mig_config_change()).unwrap();
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    };
    tokio::join!(restarts, changes);
    rig.wait_for_counts(&[(GPU, 1), (&mig("1g.10gb"), 2)]).await;
    rig.finish().await;
}

#[tokio::test]
async fn a_second_instance_takes_over_and_hands_back() {
    let rig = Rig::mixed(&two_gpus()).await;
    let counts = [(GPU, 1), (&*mig("1g.10gb"), 2)];
    rig.wait_for_counts(&counts).await;
    let mut second = rig.second_plugin(&["--mig-strategy=mixed"]);
    rig.kubelet.wait_for_registrations(GPU, 2).await.unwrap();
    rig.kubelet.wait_for_registrations(&mig("1g.10gb"), 2).await.unwrap();
    rig.wait_for_counts(&counts).await;
    second.signal("TERM");
    assert!(second.exit().await.success());
    // The kubelet has stopped whichever endpoint was current; the first instance has to say that it is there.
    rig.wait_for_counts(&counts).await;
    wait_until(|| rig.sockets().len() == 2, "the sockets of the first instance alone").await;
    rig.wait_for_counts(&counts).await;
    rig.finish().await;
}

#[tokio::test]
async fn an_instance_that_crashed_leaves_nothing_that_lasts() {
    let mut rig = Rig::mixed(&two_gpus()).await;
    let counts = [(GPU, 1), (&*mig("1g.10gb"), 2)];
    rig.wait_for_counts(&counts).await;
    let foreign = rig.plugin_folder().join("nvidia-gpu.sock");
    drop(std::os::unix::net::UnixListener::bind(&foreign).unwrap());
    let old = rig.sockets();
    rig.plugin.kill().await;
    assert_eq!(rig.sockets(), old);
    rig.plugin = rig.second_plugin(&["--mig-strategy=mixed"]);
    rig.kubelet.wait_for_registrations(GPU, 2).await.unwrap();
    rig.wait_for_counts(&counts).await;
    wait_until(|| old.iter().all(|name| !rig.sockets().contains(name)), "the old sockets swept away").await;
    assert!(foreign.exists(), "another plugin's socket is not ours to remove");
    rig.finish().await;
}
