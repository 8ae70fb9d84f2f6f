//! A session that listens.

use fake_nvml::{EventType, MigConfigChange, UnprivilegedEvents};

use super::*;

fn uuids(fake: &Fake) -> Vec<String> {
    fake.node.gpus().unwrap().into_iter().map(|gpu| gpu.uuid).collect()
}

/// An event as one line.
fn words(event: &HealthEvent, uuids: &[String]) -> String {
    let gpu = uuids.iter().position(|uuid| *uuid == event.gpu_uuid).unwrap();
    let id = |id: Option<u32>| id.map_or_else(|| "-".to_owned(), |id| id.to_string());
    let kind = match event.kind {
        EventKind::Xid(xid) => format!("Xid {xid}"),
        kind => kind.to_string(),
    };
    format!("{gpu} {} {} {kind}", id(event.gpu_instance), id(event.compute_instance))
}

#[tokio::test]
async fn events_of_each_kind_come_with_what_they_are_about() {
    let fake = Fake::new(&Description::h100s(2).with_mig(1, &["3g.40gb", "1g.10gb"]));
    let mut listener = Listener::listening(&fake).await;
    let uuids = uuids(&fake);
    let on_1 = |event: Event| event.on_gpu(1);
    for (event, expected) in [
        (on_1(Event::xid(94)).on_instance(1, 0), "1 1 0 Xid 94"),
        (on_1(Event::xid(43)).on_gpu_instance(7), "1 7 - Xid 43"),
        (on_1(Event::xid(999)), "1 - - Xid 999"),
        (Event::xid(79), "0 - - Xid 79"),
        (Event::other(0x2, 0), "0 - - double-bit ECC error"),
        (Event::other(0x2000, 0), "0 - - fatal poison error"),
        (Event::other(0x4000, 0), "0 - - GPU unavailable"),
        (Event::other(0x8000, 1), "0 - - change of the recovery action"),
        // What stands where an Xid has its instances is something else.
        (on_1(Event::other(0x2, 0)).on_instance(7, 0), "1 - - double-bit ECC error"),
        (on_1(Event::other(0x2000, 0)).on_instance(7, 0), "1 - - fatal poison error"),
        (on_1(Event::other(0x4000, 0)).on_instance(1, 0), "1 - - GPU unavailable"),
        (on_1(Event::other(0x8000, 1)).on_gpu_instance(1), "1 - - change of the recovery action"),
        (Event::mig_config_change(), "0 - - change of the MIG configuration"),
    ] {
        fake.node.send(&event).unwrap();
        assert_eq!(words(&listener.event().await, &uuids), expected);
    }
    // Not asked for: single-bit errors, clocks.
    for kind in [0x1, 0x10] {
        fake.node.send(&Event::other(kind, 0)).unwrap();
    }
    fake.node.send(&Event::xid(31)).unwrap();
    assert_eq!(words(&listener.event().await, &uuids), "0 - - Xid 31");
}

#[tokio::test]
async fn without_rights_events_are_the_gpus_where_the_driver_tells_them_as_documented() {
    let mut description = one_h100(&["3g.40gb"]);
    description.unprivileged = true;
    description.unprivileged_events = UnprivilegedEvents::AsDocumented;
    let fake = Fake::new(&description);
    let mut listener = Listener::listening(&fake).await;
    fake.node.send(&Event::xid(94).on_instance(1, 0)).unwrap();
    assert_eq!(words(&listener.event().await, &uuids(&fake)), "0 - - Xid 94");
}

#[tokio::test]
async fn a_change_of_the_mig_configuration_is_looked_at_without_being_asked() {
    let mut description = one_h100(&["1g.10gb"]);
    description.mig_config_change = MigConfigChange::WhenTold;
    let fake = Fake::new(&description);
    let mut listener = Listener::listening(&fake).await;
    fake.update(|d| d.set_mig(0, &["3g.40gb"]));
    listener.expect_silence(Duration::from_millis(200)).await;
    fake.node.send(&Event::mig_config_change()).unwrap();
    let (mut event, mut look) = (false, false);
    while !event || !look {
        match listener.next().await {
            Report::Event(told) => event = told.kind == EventKind::MigConfigChange,
            Report::Inventory { inventory, .. } => look = profiles(&inventory, 0) == ["3g.40gb"],
            report => panic!("{report:?}"),
        }
    }
}

#[tokio::test]
async fn a_gpu_without_events_does_not_touch_the_others() {
    let mut description = Description::h100s(3);
    description.gpu(0).events = Some(Vec::new());
    description.gpu(2).events = Some(vec![EventType::Clock, EventType::Xid, EventType::MigConfigChange]);
    let refused = Fault::error("nvmlDeviceRegisterEvents", "NOT_SUPPORTED").on_gpu(1);
    let fake = Fake::new(&description.with_faults([refused]));
    let mut listener = Listener::listening(&fake).await;
    let uuids = uuids(&fake);
    let watched = listener.session.status().watched();
    assert!(matches!(&watched[&uuids[0]], Watched::Nothing(why) if why.contains("none of the events")));
    assert!(matches!(&watched[&uuids[1]], Watched::Nothing(why) if why.contains("NOT_SUPPORTED")));
    assert_eq!(watched[&uuids[2]], Watched::Events(vec!["xid", "mig_config_change"]));
    for gpu in 0..3 {
        fake.node.send(&Event::xid(79).on_gpu(gpu)).unwrap();
    }
    assert_eq!(words(&listener.event().await, &uuids), "2 - - Xid 79");
    // Not tried again and again.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(fake.count("nvmlDeviceRegisterEvents"), 3);
    assert_eq!(fake.count("nvmlEventSetCreate"), 1);
}

#[tokio::test]
async fn a_driver_without_events_is_asked_once() {
    let fake = Fake::new(&one_h100(&[]).with_faults([Fault::error("nvmlEventSetCreate", "NOT_SUPPORTED")]));
    let mut listener = Listener::new(fake.paths(), Some(Duration::from_millis(20)));
    listener.inventory().await;
    wait_until(|| !listener.session.status().watched().is_empty(), "what is known of events").await;
    for _ in 0..5 {
        listener.inventory().await;
    }
    assert_eq!(fake.count("nvmlEventSetCreate"), 1);
    assert!(matches!(listener.session.status().watched().values().next(), Some(Watched::Nothing(_))));
}

#[tokio::test]
async fn a_wait_that_fails_is_set_up_anew_less_and_less_often_and_looked_into() {
    let fake = Fake::new(&one_h100(&["1g.10gb"]));
    let mut listener = Listener::listening(&fake).await;
    for (code, sets) in [("UNKNOWN", 1), ("GPU_IS_LOST", 2)] {
        fake.update(|d| d.faults = vec![Fault::error("nvmlEventSetWait_v2", code)]);
        wait_until(|| fake.count("nvmlEventSetCreate") > sets + 2, "sets made anew").await;
        // 100, 200, 400, 800 ms and so on, so that these are few.
        let before = (fake.count("nvmlEventSetCreate"), fake.count("nvmlEventSetWait_v2"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let after = (fake.count("nvmlEventSetCreate"), fake.count("nvmlEventSetWait_v2"));
        assert!(after.0 - before.0 <= 6 && after.1 - before.1 <= 6, "{before:?} {after:?}");
        listener.inventory().await;
    }
    fake.update(|d| d.faults.clear());
    let made = fake.count("nvmlEventSetCreate");
    wait_until(|| fake.count("nvmlEventSetCreate") > made, "a set that works").await;
    listener.hears(&fake).await;
    assert_eq!(
        fake.count("nvmlEventSetFree") + 1,
        fake.count("nvmlEventSetCreate"),
        "each set is given back"
    );
}

#[tokio::test]
async fn a_wait_that_ends_at_once_is_no_busy_loop() {
    let fake = Fake::new(&one_h100(&[]).with_faults([Fault::error("nvmlEventSetWait_v2", "TIMEOUT")]));
    let _listener = Listener::listening(&fake).await;
    let before = fake.count("nvmlEventSetWait_v2");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let waits = fake.count("nvmlEventSetWait_v2") - before;
    assert!((1..=26).contains(&waits), "{waits}");
}

#[tokio::test]
async fn a_gpu_that_is_lost_at_registration_is_listened_to_when_it_is_back() {
    for call in ["nvmlDeviceRegisterEvents", "nvmlDeviceGetSupportedEventTypes", "*"] {
        let lost = Fault::error(call, "GPU_IS_LOST").on_gpu(0);
        let fake = Fake::new(&Description::h100s(2).with_faults([lost]));
        let mut listener = Listener::new(fake.paths(), Some(Duration::from_millis(50)));
        let uuids = uuids(&fake);
        let watched = |gpu: usize| listener.session.status().watched().get(&uuids[gpu]).cloned();
        wait_until(|| matches!(watched(1), Some(Watched::Events(_))), "events of the other").await;
        assert!(!matches!(watched(0), Some(Watched::Events(_))), "{call}");
        fake.update(|d| d.faults.clear());
        wait_until(|| matches!(watched(0), Some(Watched::Events(_))), "events of the one that is back").await;
        for gpu in 0..2 {
            fake.node.send(&Event::xid(79).on_gpu(gpu)).unwrap();
            assert_eq!(listener.event().await.gpu_uuid, uuids[gpu as usize]);
        }
        assert_eq!(fake.count("nvmlEventSetCreate"), 1, "the others are listened to all the time");
    }
}

#[tokio::test]
async fn a_gpu_that_goes_and_comes_back_is_registered_again() {
    let fake = Fake::new(&Description::h100s(2));
    let mut listener = Listener::listening(&fake).await;
    let uuids = uuids(&fake);
    let status = listener.session.status();
    let is_watched = |gpu: usize| matches!(status.watched().get(&uuids[gpu]), Some(Watched::Events(_)));
    fake.update(|d| d.faults = vec![Fault::error("*", "GPU_IS_LOST").on_gpu(0)]);
    listener.session.rescan();
    wait_until(|| !is_watched(0), "the look").await;
    // Nothing that happens to the other one is missed.
    let asked = fake.count("nvmlEventSetWait_v2");
    fake.node.send(&Event::xid(31).on_gpu(1)).unwrap();
    assert_eq!(listener.event().await.gpu_uuid, uuids[1]);
    wait_until(|| fake.count("nvmlEventSetWait_v2") > asked + 1, "the next wait").await;
    assert_eq!(fake.count("nvmlEventSetCreate"), 1);
    fake.update(|d| d.faults.clear());
    listener.session.rescan();
    wait_until(|| is_watched(0) && is_watched(1), "a set with it").await;
    assert_eq!(fake.count("nvmlEventSetCreate"), 2);
    fake.node.send(&Event::xid(79).on_gpu(0)).unwrap();
    assert_eq!(listener.event().await.gpu_uuid, uuids[0]);
}

#[tokio::test]
async fn no_event_of_a_storm_is_lost_and_looks_go_on() {
    const EVENTS: u64 = 10_000;
    let fake = Fake::new(&one_h100(&["1g.10gb"]));
    let mut listener = Listener::listening(&fake).await;
    for xid in 0..EVENTS {
        fake.node.send(&Event::xid(xid).on_instance(7, 0)).unwrap();
    }
    // Nobody takes anything: what waits is what the channel holds, and the rest stays with the driver.
    wait_until(|| listener.reports.len() == listener.reports.max_capacity(), "a full channel").await;
    let waits = fake.count("nvmlEventSetWait_v2");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(fake.count("nvmlEventSetWait_v2") <= waits + 1, "read on though nobody takes it");
    assert_eq!(listener.session.status().stalled_for(), None);
    for xid in 0..EVENTS {
        assert_eq!(listener.event().await.kind, EventKind::Xid(xid));
    }
    listener.session.rescan();
    listener.inventory().await;
}

#[tokio::test]
async fn a_lookup_by_uuid_that_fails_for_another_gpu_makes_nobody_deaf() {
    // What the driver answers while any GPU is lost.
    let fault = Fault::error("nvmlDeviceGetHandleByUUID", "GPU_IS_LOST");
    let fake = Fake::new(&Description::h100s(2).with_faults([fault]));
    let mut listener = Listener::listening(&fake).await;
    fake.node.send(&Event::xid(79).on_gpu(1)).unwrap();
    assert_eq!(listener.event().await.gpu_uuid, uuids(&fake)[1]);
}

#[tokio::test]
async fn changes_of_the_mig_configuration_are_asked_for_again_when_mig_mode_comes() {
    let mut description = Description::h100s(2);
    description.gpu(0).events = Some(vec![EventType::Xid]);
    let fake = Fake::new(&description);
    let mut listener = Listener::listening(&fake).await;
    let status = listener.session.status();
    let uuid = uuids(&fake).remove(0);
    assert_eq!(status.watched()[&uuid], Watched::Events(vec!["xid"]));
    fake.update(|d| {
        d.gpu(0).events = Some(vec![EventType::Xid, EventType::MigConfigChange]);
        d.set_mig_mode(0, true);
    });
    listener.session.rescan();
    let all = Watched::Events(vec!["xid", "mig_config_change"]);
    wait_until(|| status.watched()[&uuid] == all, "the registration").await;
    fake.node.send(&Event::mig_config_change()).unwrap();
    assert_eq!(listener.event().await.kind, EventKind::MigConfigChange);
    assert_eq!(fake.count("nvmlEventSetCreate"), 1, "nothing of the others was missed");
}

#[tokio::test]
async fn a_driver_that_refuses_changes_of_the_mig_configuration_takes_nothing_else_with_it() {
    let mut description = Description::h100s(2);
    description.mig_event_needs_mig = true;
    let fake = Fake::new(&description);
    let mut listener = Listener::listening(&fake).await;
    let status = listener.session.status();
    let uuid = uuids(&fake).remove(1);
    let tells_changes = || match &status.watched()[&uuid] {
        Watched::Events(kinds) => kinds.contains(&"mig_config_change"),
        Watched::Nothing(why) => panic!("{why}"),
    };
    assert!(!tells_changes());
    fake.node.send(&Event::xid(79).on_gpu(1)).unwrap();
    assert_eq!(listener.event().await.gpu_uuid, uuid);
    // Not tried again and again.
    let registrations = fake.count("nvmlDeviceRegisterEvents");
    listener.session.rescan();
    listener.inventory().await;
    assert_eq!(fake.count("nvmlDeviceRegisterEvents"), registrations);
    fake.update(|d| d.set_mig(1, &["1g.10gb"]));
    listener.session.rescan();
    wait_until(tells_changes, "the registration").await;
}
