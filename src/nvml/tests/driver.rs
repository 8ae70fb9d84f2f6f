//! A session whose driver comes, goes, or is replaced.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nvml_wrapper::Nvml;

use super::*;

/// Keeps the library loaded. A thread that has called it would do so too as long as it lives, for the fake has data of
/// its own in each thread; that one has ended.
fn pin(library: &Path) -> Nvml {
    let library = library.to_owned();
    let open = move || Nvml::builder().lib_path(OsStr::new(&library)).init().unwrap();
    std::thread::spawn(open).join().unwrap()
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
    let mut listener = Listener::listening(&fake).await;
    listener.session.rescan();
    let before = listener.inventory().await;
    fake.update(|d| d.driver = DriverState::NotLoaded);
    assert!(matches!(listener.no_driver().await, DriverError::NotLoaded { .. }), "the wait for events ends");
    wait_until(|| fake.node.clients().unwrap() == 0, "the end of NVML").await;
    let tried = fake.count("nvmlInit_v2");
    wait_until(|| fake.count("nvmlInit_v2") > tried, "another attempt").await;
    listener.expect_silence(Duration::from_millis(100)).await;
    fake.update(|d| d.driver = DriverState::Loaded);
    listener.session.rescan();
    let mut after = listener.inventory().await;
    // The capability files are new.
    for (old, new) in before.gpus[0].mig_devices.iter().zip(&mut after.gpus[0].mig_devices) {
        assert!(old.is_same(new) && old.access_stamp != new.access_stamp);
        new.access_stamp = old.access_stamp;
    }
    assert_eq!(after, before);
}

#[tokio::test]
async fn another_version_of_the_driver_is_opened_anew() {
    let fake = Fake::new(&one_h100(&["7g.80gb"]));
    let mut listener = Listener::listening(&fake).await;
    fake.node.upgrade_driver("590.44.01").unwrap();
    assert!(matches!(listener.no_driver().await, DriverError::VersionMismatch { .. }));
    // Unloaded, or under the same path again.
    let found = listener.inventory_where(|found| found.driver_version == "590.44.01").await;
    assert_eq!(profiles(&found, 0), ["7g.80gb"]);
    wait_until(|| listener.session.status().watched().len() == 1, "events").await;
}

#[tokio::test]
async fn a_library_that_stays_in_the_process_is_told_where_another_file_has_its_place() {
    let fake = Fake::new(&one_h100(&["7g.80gb"]));
    let library = fake.node.library();
    // Somebody else in this process keeps it.
    let pin = pin(&library);
    let mut listener = Listener::listening(&fake).await;
    fake.node.upgrade_driver("590.44.01").unwrap();
    assert!(matches!(listener.no_driver().await, DriverError::VersionMismatch { .. }));
    assert_eq!(listener.next().await, Report::StaleLibrary(library));
    // Once, though it is tried again.
    let tried = fake.count("nvmlInit_v2");
    listener.session.rescan();
    wait_until(|| fake.count("nvmlInit_v2") > tried, "another attempt").await;
    listener.expect_silence(Duration::from_millis(100)).await;
    std::thread::spawn(move || drop(pin)).join().unwrap();
    listener.session.rescan();
    listener.inventory_where(|found| found.driver_version == "590.44.01").await;
}

#[tokio::test]
async fn a_library_whose_name_has_its_version_is_opened_beside_the_one_that_stays() {
    let fake = Fake::new(&one_h100(&["7g.80gb"]));
    let link = fake.node.library();
    let versioned = |version: &str| link.with_file_name(format!("libnvidia-ml.so.{version}"));
    let old = versioned("580.95.05");
    fs::rename(&link, &old).unwrap();
    symlink(old.file_name().unwrap(), &link).unwrap();
    let pin = pin(&old);
    let mut listener = Listener::listening(&fake).await;
    // The upgrade puts a file in the link's place.
    fake.node.upgrade_driver("590.44.01").unwrap();
    fs::remove_file(&old).unwrap();
    fs::rename(&link, versioned("590.44.01")).unwrap();
    symlink(versioned("590.44.01").file_name().unwrap(), &link).unwrap();
    let found = listener.inventory_where(|found| found.driver_version == "590.44.01").await;
    assert_eq!(found.library, versioned("590.44.01"));
    drop(pin);
}

#[tokio::test]
async fn a_mismatch_that_another_process_would_have_too_is_no_stale_library() {
    let fake = Fake::new(&one_h100(&["7g.80gb"]));
    let mut listener = Listener::listening(&fake).await;
    fake.update(|d| d.driver = DriverState::VersionMismatch);
    assert!(matches!(listener.no_driver().await, DriverError::VersionMismatch { .. }));
    let tried = fake.count("nvmlInit_v2");
    wait_until(|| fake.count("nvmlInit_v2") > tried, "another attempt").await;
    listener.expect_silence(Duration::from_millis(300)).await;
    fake.update(|d| d.driver = DriverState::Loaded);
    listener.session.rescan();
    listener.inventory().await;
}
