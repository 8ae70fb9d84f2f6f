//! Calls that do not come back, or not soon.

use super::*;

/// Long past the end of the test.
const FOR_EVER: u64 = 600_000;

#[tokio::test]
async fn a_gpu_that_hangs_is_left_out_until_it_answers() {
    let fake = Fake::new(&Description::h100s(3).with_mig(2, &["7g.80gb"]));
    let mut listener = Listener::listening(&fake).await;
    listener.session.rescan();
    let before = listener.inventory().await;
    let status = listener.session.status();
    fake.update(|d| d.faults = vec![Fault::delay("nvmlDeviceGetMigMode", FOR_EVER).on_gpu(1)]);
    listener.session.rescan();
    let found = listener.inventory().await;
    assert_eq!([&found.gpus[0], &found.gpus[1]], [&before.gpus[0], &before.gpus[2]]);
    assert_eq!(reasons(&found), ["GPU 1: nvmlDeviceGetMigMode does not come back"]);
    let problem = &found.problems[0];
    assert_eq!((problem.left_out, problem.reason.kind), (true, TroubleKind::NoAnswer));
    assert_eq!(problem.uuid.as_ref(), Some(&before.gpus[1].uuid));
    assert_eq!((status.hanging(), status.stalled_for()), (1, None));
    // It is not asked again, and so nobody waits for it again.
    let asked = fake.count("nvmlDeviceGetMigMode");
    for _ in 0..3 {
        listener.session.rescan();
        let again = listener.inventory().await;
        assert_eq!((&again.gpus, &again.problems), (&found.gpus, &found.problems));
    }
    assert_eq!(fake.count("nvmlDeviceGetMigMode"), asked + 6);
    // Events of the others are still heard.
    fake.node.send(&Event::xid(79).on_gpu(2)).unwrap();
    assert_eq!(listener.event().await.gpu_uuid, before.gpus[2].uuid);
    fake.update(|d| d.faults.clear());
    assert_eq!(listener.inventory_where(|found| found.problems.is_empty()).await, before);
    assert_eq!(status.hanging(), 0);
}

#[tokio::test]
async fn the_last_gpu_and_two_at_once_may_hang() {
    let fake = Fake::new(&Description::h100s(3));
    let hang = |gpu| Fault::delay("nvmlDeviceGetUUID", FOR_EVER).on_gpu(gpu);
    fake.update(|d| d.faults = vec![hang(0), hang(2)]);
    let mut listener = Listener::new(fake.paths(), None);
    let found = listener.inventory().await;
    assert_eq!(found.gpus.iter().map(|gpu| gpu.index).collect::<Vec<_>>(), [1]);
    assert_eq!(found.problems.len(), 2);
    assert_eq!(listener.session.status().hanging(), 2);
    fake.update(|d| d.faults.clear());
    listener.inventory_where(|found| found.gpus.len() == 3).await;
}

#[tokio::test]
async fn a_call_about_the_driver_that_hangs_is_told_once_and_waited_for() {
    let fake = Fake::new(&one_h100(&["1g.10gb"]));
    let mut listener = Listener::listening(&fake).await;
    let status = listener.session.status();
    fake.update(|d| d.faults = vec![Fault::delay("nvmlDeviceGetCount_v2", FOR_EVER)]);
    listener.session.rescan();
    assert_eq!(listener.no_driver().await, DriverError::NoAnswer { call: "nvmlDeviceGetCount_v2" });
    let stalled = status.stalled_for().unwrap();
    assert!(stalled >= PATIENCE.answer, "{stalled:?}");
    listener.session.rescan();
    listener.expect_silence(Duration::from_secs(1)).await;
    assert!(status.stalled_for().unwrap() > stalled);
    fake.update(|d| d.faults.clear());
    listener.inventory().await;
    wait_until(|| status.stalled_for().is_none(), "rest").await;
}

#[tokio::test]
async fn an_opening_that_hangs_stalls_the_session_and_can_be_held() {
    let fake = Fake::new(&one_h100(&["1g.10gb"]));
    fake.update(|d| d.faults = vec![Fault::delay("nvmlInit_v2", FOR_EVER)]);
    let mut listener = Listener::new(fake.paths(), None);
    let status = listener.session.status();
    wait_until(|| status.stalled_for().is_some_and(|time| time > Duration::from_secs(1)), "a stall").await;
    listener.session.hold();
    assert_eq!(listener.next().await, Report::OnHold { closed: false });
    assert_eq!((status.hanging(), status.stalled_for()), (1, None));
    // What comes of it late is closed.
    fake.update(|d| d.faults.clear());
    assert_eq!(listener.next().await, Report::OnHold { closed: true });
    assert_eq!(status.hanging(), 0);
    assert_eq!(fake.node.clients().unwrap(), 0);
    listener.session.resume();
    listener.inventory().await;
}

#[tokio::test]
async fn an_opening_that_takes_long_is_told_and_waited_for() {
    let fake = Fake::new(&one_h100(&["1g.10gb"]));
    fake.update(|d| d.faults = vec![Fault::delay("nvmlInit_v2", FOR_EVER)]);
    let mut listener = Listener::new(fake.paths(), None);
    assert_eq!(listener.no_driver().await, DriverError::NoAnswer { call: "nvmlInit_v2" });
    assert!(listener.session.status().stalled_for().unwrap() >= PATIENCE.opening);
    fake.update(|d| d.faults.clear());
    listener.inventory().await;
    assert_eq!(fake.count("nvmlInit_v2"), 1);
}

#[tokio::test]
async fn a_registration_that_hangs_stops_no_events_of_others() {
    let fake = Fake::new(&Description::h100s(2));
    fake.update(|d| d.faults = vec![Fault::delay("nvmlDeviceRegisterEvents", FOR_EVER).on_gpu(0)]);
    let mut listener = Listener::new(fake.paths(), None);
    let found = listener.inventory().await;
    let status = listener.session.status();
    let is_watched =
        |gpu: usize| matches!(status.watched().get(&found.gpus[gpu].uuid), Some(Watched::Events(_)));
    wait_until(|| is_watched(1), "events of the other").await;
    assert!(!is_watched(0));
    assert_eq!(status.hanging(), 1);
    fake.node.send(&Event::xid(79).on_gpu(1)).unwrap();
    assert_eq!(listener.event().await.gpu_uuid, found.gpus[1].uuid);
    fake.update(|d| d.faults.clear());
    wait_until(|| is_watched(0) && status.hanging() == 0, "events of the one that hung").await;
}

#[tokio::test]
async fn a_wait_that_hangs_is_left_behind_and_another_one_begun() {
    let fake = Fake::new(&Description::h100s(1));
    let mut listener = Listener::listening(&fake).await;
    let status = listener.session.status();
    fake.update(|d| d.faults = vec![Fault::delay("nvmlEventSetWait_v2", FOR_EVER)]);
    wait_until(|| status.hanging() == 1, "the thread to be left behind").await;
    // The second one hangs as well, and stays.
    wait_until(|| fake.count("nvmlEventSetCreate") == 2, "another thread").await;
    tokio::time::sleep(PATIENCE.answer * 2).await;
    assert_eq!((status.hanging(), fake.count("nvmlEventSetCreate")), (1, 2));
    fake.update(|d| d.faults.clear());
    wait_until(|| status.hanging() == 0, "its return").await;
    listener.hears(&fake).await;
    assert_eq!(
        fake.count("nvmlEventSetFree") + 1,
        fake.count("nvmlEventSetCreate"),
        "each set is given back"
    );
}

#[tokio::test]
async fn a_hold_does_not_wait_for_a_gpu_that_hangs() {
    let fake = Fake::new(&Description::h100s(2));
    fake.update(|d| d.faults = vec![Fault::delay("nvmlDeviceGetUUID", FOR_EVER).on_gpu(0)]);
    let mut listener = Listener::new(fake.paths(), None);
    listener.inventory().await;
    listener.session.hold();
    listener.pick(|report| (report == Report::OnHold { closed: false }).then_some(())).await;
    assert_eq!(fake.node.clients().unwrap(), 1, "the thread that hangs keeps NVML open");
    fake.update(|d| d.faults.clear());
    assert_eq!(listener.next().await, Report::OnHold { closed: true });
    assert_eq!(fake.node.clients().unwrap(), 0);
    listener.session.resume();
    listener.inventory_where(|found| found.gpus.len() == 2).await;
}

#[tokio::test]
async fn a_gpu_that_answers_too_late_again_and_again_lets_no_look_wait() {
    let fake = Fake::new(&Description::h100s(3));
    let mut listener = Listener::listening(&fake).await;
    let status = listener.session.status();
    let late = u64::try_from(PATIENCE.answer.as_millis()).unwrap() * 3 / 2;
    fake.update(|d| d.faults = vec![Fault::delay("nvmlDeviceGetUUID", late).on_gpu(0)]);
    listener.session.rescan();
    listener.inventory_where(|found| found.gpus.len() == 2).await;
    wait_until(|| status.hanging() == 0, "the late answer").await;
    let asked = fake.count("nvmlDeviceGetUUID");
    let start = Instant::now();
    let mut looks = 0;
    while start.elapsed() < PATIENCE.answer * 4 {
        listener.session.rescan();
        let Report::Inventory { inventory, began } = listener.next().await else { continue };
        assert!(began.elapsed() < PATIENCE.answer, "a look waited for it: {:?}", began.elapsed());
        assert_eq!(inventory.gpus.len(), 2);
        looks += 1;
    }
    assert!(fake.count("nvmlDeviceGetUUID") > asked + 2 * looks, "it was asked again");
    fake.update(|d| d.faults.clear());
    listener.inventory_where(|found| found.gpus.len() == 3).await;
    assert_eq!(status.hanging(), 0);
}

#[tokio::test]
async fn a_gpu_that_the_first_look_starts_may_take_its_time() {
    let fake = Fake::new(&Description::h100s(2));
    let slow = u64::try_from((PATIENCE.answer + PATIENCE.opening).as_millis()).unwrap() / 2;
    fake.update(|d| d.faults = vec![Fault::delay("nvmlDeviceGetHandleByIndex_v2", slow).on_gpu(0)]);
    let mut listener = Listener::new(fake.paths(), None);
    let found = listener.inventory().await;
    assert_eq!((found.gpus.len(), reasons(&found)), (2, Vec::new()));
}
