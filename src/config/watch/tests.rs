use std::fs;
use std::os::unix::fs::symlink;

use tokio::time::timeout;

use super::*;

/// Longer than any net, so that a slow machine does not fail a test.
const LIMIT: Duration = Duration::from_secs(30);

fn start(path: &Path) -> watch::Receiver<u64> {
    watch(Seen::new(path, bytes(path).ok().as_deref()))
}

async fn wait(counts: &mut watch::Receiver<u64>, count: u64, what: &str) {
    let found = timeout(LIMIT, counts.wait_for(|now| *now == count)).await;
    assert!(matches!(found, Ok(Ok(_))), "waited in vain for: {what}");
}

/// A `ConfigMap`'s volume: a folder of data, a link to it, and a link to the file in it.
fn config_map(root: &Path, revision: &str, text: &str) {
    fs::create_dir(root.join(revision)).unwrap();
    fs::write(root.join(revision).join("config.yaml"), text).unwrap();
    symlink(revision, root.join("..data_tmp")).unwrap();
    fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    if !root.join("config.yaml").is_symlink() {
        symlink("..data/config.yaml", root.join("config.yaml")).unwrap();
    }
}

#[tokio::test]
async fn a_config_map_that_is_swapped_is_seen() {
    let root = tempfile::tempdir().unwrap();
    config_map(root.path(), "..1", "version: v1\n");
    let mut counts = start(&root.path().join("config.yaml"));
    config_map(root.path(), "..2", "version: v1\nflags: {}\n");
    fs::remove_dir_all(root.path().join("..1")).unwrap();
    wait(&mut counts, 1, "the second revision").await;
    config_map(root.path(), "..3", "version: v1\n");
    fs::remove_dir_all(root.path().join("..2")).unwrap();
    wait(&mut counts, 2, "the third revision").await;
}

#[tokio::test]
async fn an_editors_rename_and_a_file_in_a_linked_folder_are_seen() {
    let root = tempfile::tempdir().unwrap();
    let (real, linked) = (root.path().join("real"), root.path().join("linked"));
    fs::create_dir(&real).unwrap();
    symlink("real", &linked).unwrap();
    fs::write(real.join("config.yaml"), "a").unwrap();
    let mut counts = start(&linked.join("config.yaml"));
    fs::write(real.join("config.yaml~"), "b").unwrap();
    fs::rename(real.join("config.yaml~"), real.join("config.yaml")).unwrap();
    wait(&mut counts, 1, "the rename").await;
    fs::create_dir(root.path().join("other")).unwrap();
    fs::write(root.path().join("other/config.yaml"), "c").unwrap();
    fs::remove_file(&linked).unwrap();
    symlink("other", &linked).unwrap();
    wait(&mut counts, 2, "another folder").await;
}

#[tokio::test]
async fn a_file_that_goes_and_comes_back_as_it_was_is_no_change() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("config.yaml");
    fs::write(&path, "a").unwrap();
    let mut counts = start(&path);
    fs::remove_file(&path).unwrap();
    sleep(Duration::from_millis(200)).await;
    fs::write(&path, "a").unwrap();
    sleep(Duration::from_millis(400)).await;
    assert_eq!(*counts.borrow(), 0);
    fs::write(&path, "b").unwrap();
    wait(&mut counts, 1, "another content").await;
}

#[tokio::test]
async fn what_changed_before_the_watch_began_is_seen() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("config.yaml");
    fs::write(&path, "new").unwrap();
    let mut counts = watch(Seen::new(&path, Some(b"old")));
    wait(&mut counts, 1, "the new content").await;
}
