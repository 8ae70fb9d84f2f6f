//! A session: when it looks, and what it says.

use super::*;

#[tokio::test]
async fn a_change_is_seen_by_the_next_look_and_only_a_change_is_reported() {
    let fake = Fake::new(&one_h100(&["1g.10gb"]));
    let mut listener = Listener::new(fake.paths(), None);
    assert_eq!(profiles(&listener.inventory().await, 0), ["1g.10gb"]);
    let before = fake.calls();
    listener.session.rescan();
    let looked = async {
        while fake.calls() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), looked).await.expect("asked for a look, and there was none");
    listener.expect_silence(Duration::from_millis(100)).await;
    fake.update(|d| d.set_mig(0, &["3g.40gb", "3g.40gb"]));
    for _ in 0..100 {
        listener.session.rescan();
    }
    assert_eq!(profiles(&listener.inventory().await, 0), ["3g.40gb", "3g.40gb"]);
    listener.expect_silence(Duration::from_millis(200)).await;
}

#[tokio::test]
async fn changes_are_seen_without_being_asked_when_there_is_an_interval() {
    let fake = Fake::new(&one_h100(&["1g.10gb"]));
    let mut listener = Listener::new(fake.paths(), Some(Duration::from_millis(20)));
    assert_eq!(profiles(&listener.inventory().await, 0), ["1g.10gb"]);
    fake.update(|d| d.set_mig(0, &["7g.80gb"]));
    assert_eq!(profiles(&listener.inventory().await, 0), ["7g.80gb"]);
}

#[tokio::test]
async fn a_driver_that_comes_later_is_found_without_being_asked() {
    let folder = tempfile::tempdir().unwrap();
    let mut listener = Listener::new(Paths::below(folder.path()), None);
    assert!(matches!(listener.no_driver().await, DriverError::NotFound { .. }));
    let _node = Node::create(folder.path(), &one_h100(&["7g.80gb"])).unwrap();
    assert_eq!(profiles(&listener.inventory().await, 0), ["7g.80gb"]);
}

#[tokio::test]
async fn a_driver_that_goes_is_reported_once_and_found_again_on_request() {
    let fake = Fake::new(&one_h100(&["7g.80gb"]));
    let mut listener = Listener::new(fake.paths(), None);
    let before = listener.inventory().await;
    fake.update(|d| d.driver = DriverState::NotLoaded);
    listener.session.rescan();
    assert!(matches!(listener.no_driver().await, DriverError::NotLoaded { .. }));
    fake.update(|d| d.driver = DriverState::Loaded);
    listener.session.rescan();
    assert_eq!(listener.inventory().await, before);
}

#[tokio::test]
async fn a_session_that_is_dropped_ends_its_thread() {
    let fake = Fake::new(&one_h100(&["7g.80gb"]));
    let Listener { session, mut reports } = Listener::new(fake.paths(), None);
    timeout(Duration::from_secs(20), reports.recv()).await.unwrap().unwrap();
    drop(session);
    // The thread held the only sender.
    assert_eq!(timeout(Duration::from_secs(20), reports.recv()).await.unwrap(), None);
    assert_eq!(fake.node.counters().unwrap()["nvmlShutdown"], 1);
}
