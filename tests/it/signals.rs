//! SIGTERM, SIGINT, SIGHUP.

use fake_nvml::Description;

use crate::rig::{GPU, Rig, mig};

#[tokio::test]
async fn the_plugin_ends_when_told_to_and_removes_its_sockets() {
    for signal in ["TERM", "INT"] {
        let mut rig = Rig::start(&Description::h100s(2), &[]).await;
        rig.wait_for_counts(&[(GPU, 2)]).await;
        assert_eq!(rig.sockets().len(), 1);
        rig.plugin.signal(signal);
        assert_eq!(rig.plugin.exit().await.code(), Some(0));
        assert_eq!(rig.sockets(), Vec::<String>::new());
        // The kubelet sees the stream end: nothing can be allocated any more.
        rig.kubelet.wait_for_capacity(GPU, 2, 0).await.unwrap();
    }
}

#[tokio::test]
async fn the_plugin_ends_while_it_waits_for_a_kubelet() {
    let mut rig = Rig::start(&Description::h100s(1), &[]).await;
    rig.wait_for_counts(&[(GPU, 1)]).await;
    rig.kubelet.stop().await.unwrap();
    rig.plugin.signal("TERM");
    assert_eq!(rig.plugin.exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_hang_up_makes_it_look_at_once() {
    let description = Description::h100s(1).with_mig(0, &["1g.10gb"]);
    let rig = Rig::start(&description, &["--mig-strategy=mixed", "--rescan-interval=0"]).await;
    rig.wait_for_counts(&[(&mig("1g.10gb"), 1)]).await;
    rig.node.update(|node| node.set_mig(0, &["2g.20gb"])).unwrap();
    rig.plugin.signal("HUP");
    rig.wait_for_counts(&[(&mig("2g.20gb"), 1)]).await;
    rig.finish().await;
}
