//! What is heard, seen and said under each right that the plugin may have or lack: the table of `docs/health.md`.

use std::process::Command;

use fake_nvml::{Description, Event, Right, UnprivilegedEvents};

use crate::health::{slices, started, wait_for_sick};
use crate::http::ANYWHERE;
use crate::rig::{GPU, Rig, mig, wait_until};

const XID: u64 = 94;

/// GPU 0 has slices, GPU 1 none.
fn node(rights: &[Right]) -> Description {
    Description::h100s(2).with_mig(0, &["1g.10gb"; 3]).with_rights(rights)
}

async fn start(description: &Description) -> Rig {
    let rig = started(description, &["--health-recovery=off", ANYWHERE]).await;
    rig.wait_for_counts(&[(GPU, 1), (&mig("1g.10gb"), 3)]).await;
    rig
}

fn error(rig: &Rig) -> String {
    let (uuid, gi, ci) = slices(rig, 0).remove(1);
    rig.node.send(&Event::xid(XID).on_instance(gi, ci)).unwrap();
    uuid
}

/// What is said of events, wherever it is.
async fn says(rig: &Rig, heard: bool) {
    let log =
        if heard { "attributed to single MIG devices" } else { "no errors are heard on GPUs with slices" };
    rig.plugin.wait_for_log(&[if heard { "INFO" } else { "WARN" }, log]).await;
    assert_eq!(rig.plugin.log().contains("no errors are heard on GPUs with slices"), !heard);
    let metrics = rig.plugin.get("/metrics").await.body;
    let attribution = if heard { "instance" } else { "none" };
    for line in [
        format!("gpu_events_heard{{gpu=\"0\"}} {}", u8::from(heard)),
        "gpu_events_heard{gpu=\"1\"} 1".to_owned(),
        format!("event_attribution{{gpu=\"0\",attribution=\"{attribution}\"}} 1"),
        "event_attribution{gpu=\"1\",attribution=\"unknown\"} 1".to_owned(),
    ] {
        assert!(metrics.contains(&format!("mig_device_plugin_{line}\n")), "{line} in\n{metrics}");
    }
    let page = rig.plugin.get("/").await.body;
    assert_eq!(page.contains("No errors are heard on GPUs with slices:"), !heard, "{page}");
    assert_eq!(page.contains("No errors of it are heard: "), !heard, "{page}");
    let json: serde_json::Value = serde_json::from_str(&rig.plugin.get("/devices").await.body).unwrap();
    assert_eq!(json["plugin"]["eventAttribution"], attribution);
    let address = format!("--http-address={}", rig.plugin.address().await);
    let mut command = Command::new(env!("CARGO_BIN_EXE_mig-device-plugin"));
    command.arg("devices").arg("--driver-root-ctr-path").arg(rig.node.root()).arg(address);
    let table = command.output().unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("as the running plugin"), "{table}");
    assert_eq!(table.contains("no errors of GPU 0 are heard: "), !heard, "{table}");
    for probe in ["/readyz", "/livez"] {
        assert_eq!(rig.plugin.get(probe).await.status, 200, "{probe}");
    }
}

#[tokio::test]
async fn admin_or_monitor_hears_of_slices_and_only_admin_or_config_sees_where_they_lie() {
    for (rights, seen) in [(vec![Right::Admin], true), (vec![Right::Monitor], false)] {
        let rig = start(&node(&rights)).await;
        says(&rig, true).await;
        let uuid = error(&rig);
        wait_for_sick(&rig, &mig("1g.10gb"), &[&uuid]).await;
        assert_eq!(rig.plugin.log().contains("where MIG devices lie"), !seen);
        rig.finish().await;
    }
}

#[tokio::test]
async fn without_admin_and_monitor_nothing_is_heard_of_slices_but_what_a_look_shows_is_seen() {
    for (rights, seen) in [(vec![Right::Config], true), (vec![], false)] {
        let rig = start(&node(&rights)).await;
        says(&rig, false).await;
        assert_eq!(rig.plugin.log().contains("where MIG devices lie"), !seen);
        error(&rig);
        // A GPU without instances is everybody's, and its event comes later.
        rig.node.send(&Event::xid(XID).on_gpu(1)).unwrap();
        rig.kubelet.wait_for_capacity(GPU, 1, 0).await.unwrap();
        assert!(rig.kubelet.devices(&mig("1g.10gb")).values().all(|device| device.healthy));
        // What the GPU needs, and another layout, take a look and no right.
        rig.node.update(|node| node.set_mig(0, &["2g.20gb"])).unwrap();
        rig.kubelet.wait_for_capacity(&mig("2g.20gb"), 1, 1).await.unwrap();
        rig.node.update(|node| node.gpu(0).recovery_action = fake_nvml::RecoveryAction::Reset).unwrap();
        rig.kubelet.wait_for_capacity(&mig("2g.20gb"), 1, 0).await.unwrap();
        rig.finish().await;
    }
}

#[tokio::test]
async fn a_driver_that_keeps_the_promise_of_its_header_is_heard_by_gpu() {
    let mut documented = node(&[]);
    documented.unprivileged_events = UnprivilegedEvents::AsDocumented;
    let rig = start(&documented).await;
    error(&rig);
    let all: Vec<_> = slices(&rig, 0).into_iter().map(|(uuid, ..)| uuid).collect();
    wait_for_sick(&rig, &mig("1g.10gb"), &all.iter().collect::<Vec<_>>()).await;
    rig.finish().await;
}

#[tokio::test]
async fn a_plugin_that_nobody_told_of_slices_says_nothing_of_them() {
    let rig = Rig::start(&Description::h100s(1).with_rights(&[]), &["--mig-strategy=mixed", ANYWHERE]).await;
    rig.wait_for_counts(&[(GPU, 1)]).await;
    assert!(!rig.plugin.log().contains("are heard"));
    rig.node.update(|node| node.set_mig(0, &["1g.10gb"])).unwrap();
    rig.wait_for_counts(&[(&mig("1g.10gb"), 1)]).await;
    let said = || rig.plugin.log().contains("no errors are heard on GPUs with slices");
    wait_until(said, "the first slice to be spoken of").await;
    rig.finish().await;
}
