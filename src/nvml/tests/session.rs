//! A session: when it looks, and what it says.

use super::*;

#[tokio::test]
async fn every_look_is_reported_and_begins_after_it_was_asked_for() {
    let fake = Fake::new(&one_h100(&["1g.10gb"]));
    let mut listener = Listener::listening(&fake).await;
    listener.expect_silence(Duration::from_millis(200)).await;
    let asked = Instant::now();
    listener.session.rescan();
    match listener.next().await {
        Report::Inventory { inventory, began } => {
            assert_eq!(profiles(&inventory, 0), ["1g.10gb"]);
            assert!(began >= asked);
        }
        report => panic!("{report:?}"),
    }
    fake.update(|d| d.set_mig(0, &["3g.40gb", "3g.40gb"]));
    for _ in 0..1000 {
        listener.session.rescan();
    }
    assert_eq!(profiles(&listener.inventory().await, 0), ["3g.40gb", "3g.40gb"]);
    let mut more = 0;
    while timeout(Duration::from_millis(300), listener.reports.recv()).await.is_ok() {
        more += 1;
    }
    assert!(more <= 20, "{more} looks for a burst");
}

#[tokio::test]
async fn a_request_during_a_look_leads_to_another_look() {
    let fake = Fake::new(&one_h100(&["1g.10gb"]));
    let mut listener = Listener::listening(&fake).await;
    fake.update(|d| d.faults = vec![Fault::delay("nvmlDeviceGetMigMode", 60_000)]);
    let before = fake.count("nvmlDeviceGetMigMode");
    listener.session.rescan();
    wait_until(|| fake.count("nvmlDeviceGetMigMode") > before, "the look").await;
    let asked = Instant::now();
    listener.session.rescan();
    fake.update(|d| d.faults.clear());
    let mut began = Vec::new();
    while began.last().is_none_or(|began| *began < asked) {
        let Report::Inventory { began: at, .. } = listener.next().await else { continue };
        began.push(at);
    }
    assert_eq!(began.len(), 2);
}

#[tokio::test]
async fn changes_are_seen_without_being_asked_when_there_is_an_interval() {
    let fake = Fake::new(&one_h100(&["1g.10gb"]));
    let mut listener = Listener::new(fake.paths(), Some(Duration::from_millis(20)));
    assert_eq!(profiles(&listener.inventory().await, 0), ["1g.10gb"]);
    fake.update(|d| d.set_mig(0, &["7g.80gb"]));
    listener.inventory_where(|found| profiles(found, 0) == ["7g.80gb"]).await;
    fake.update(|d| d.set_mig_mode(0, false));
    listener.inventory_where(|found| !found.gpus[0].mig_enabled()).await;
    fake.update(|d| d.set_mig(0, &["1g.10gb"]));
    listener.inventory_where(|found| profiles(found, 0) == ["1g.10gb"]).await;
}

#[tokio::test]
async fn calls_are_counted_by_function_and_answer() {
    let description = one_h100(&["1g.10gb"]);
    let refused = Fault::error("nvmlDeviceGetAttributes_v2", "NOT_SUPPORTED").on_mig(0, 0);
    let fake = Fake::new(&description.with_faults([refused]));
    let listener = Listener::listening(&fake).await;
    let calls: std::collections::BTreeMap<_, _> = listener.session.status().calls().into_iter().collect();
    assert_eq!(calls["nvmlInit_v2"].ok, 1);
    assert_eq!(calls["nvmlDeviceGetCount_v2"].ok, 2);
    assert_eq!(calls["nvmlDeviceGetAttributes_v2"].ok, 0);
    assert_eq!(calls["nvmlDeviceGetAttributes_v2"].errors["NOT_SUPPORTED"], 2);
    let told = fake.node.counters().unwrap();
    for (call, count) in told.iter().filter(|(call, _)| call.starts_with("nvmlDevice")) {
        let ours = &calls[call.as_str()];
        assert_eq!(ours.ok + ours.errors.values().sum::<u64>(), *count, "{call}");
    }
    assert_eq!(listener.session.status().stalled_for(), None);
    assert_eq!(listener.session.status().hanging(), 0);
}

#[tokio::test]
async fn on_hold_nvml_is_shut_down_and_nothing_is_called() {
    let fake = Fake::new(&one_h100(&["1g.10gb"]));
    let mut listener = Listener::new(fake.paths(), Some(Duration::from_millis(20)));
    listener.inventory().await;
    wait_until(|| fake.count("nvmlEventSetWait_v2") > 0, "a wait for events").await;
    assert_eq!(fake.node.clients().unwrap(), 1);
    listener.session.hold();
    listener.pick(|report| (report == Report::OnHold { closed: true }).then_some(())).await;
    assert_eq!(fake.node.clients().unwrap(), 0);
    assert_eq!(fake.count("nvmlEventSetFree"), 1);
    let calls = fake.calls();
    listener.session.rescan();
    fake.update(|d| d.set_mig(0, &["7g.80gb"]));
    listener.expect_silence(Duration::from_millis(700)).await;
    assert_eq!(fake.calls(), calls);
    listener.session.hold();
    assert_eq!(listener.next().await, Report::OnHold { closed: true }, "said again to who asks again");
    listener.session.resume();
    assert_eq!(profiles(&listener.inventory().await, 0), ["7g.80gb"]);
    assert_eq!(fake.node.clients().unwrap(), 1);
    wait_until(|| listener.session.status().watched().len() == 1, "events").await;
}

#[tokio::test]
async fn a_session_that_is_dropped_ends_its_threads() {
    let fake = Fake::new(&one_h100(&["7g.80gb"]));
    let Listener { session, mut reports } = Listener::new(fake.paths(), None);
    timeout(LIMIT, reports.recv()).await.unwrap().unwrap();
    drop(session);
    // The threads held the only senders.
    while timeout(LIMIT, reports.recv()).await.unwrap().is_some() {}
    assert_eq!((fake.count("nvmlShutdown"), fake.node.clients().unwrap()), (1, 0));
}

#[tokio::test]
async fn a_session_whose_reports_nobody_takes_ends_too() {
    let fake = Fake::new(&one_h100(&["7g.80gb"]));
    let mut listener = Listener::listening(&fake).await;
    listener.reports.close();
    fake.node.send(&Event::xid(31)).unwrap();
    wait_until(|| fake.node.clients().unwrap() == 0, "the end of NVML").await;
}

#[tokio::test]
async fn an_opening_that_fails_leaves_no_thread_behind() {
    let fake = Fake::new(&one_h100(&["7g.80gb"]));
    fake.update(|d| d.driver = DriverState::NotLoaded);
    let mut listener = Listener::new(fake.paths(), None);
    listener.no_driver().await;
    tokio::time::sleep(PATIENCE.answer + Duration::from_secs(1)).await;
    assert_eq!(listener.session.status().hanging(), 0);
}
