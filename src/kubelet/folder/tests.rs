use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use tokio::time::timeout;

use super::*;

/// Longer than any net, so that a slow machine does not fail a test.
const LIMIT: Duration = Duration::from_secs(20);

async fn wait(states: &mut watch::Receiver<FolderState>, is: impl Fn(&FolderState) -> bool, what: &str) {
    let found = timeout(LIMIT, states.wait_for(|state| is(state))).await;
    assert!(matches!(found, Ok(Ok(_))), "waited in vain for: {what}");
}

/// Makes a socket's file; nobody listens on it any more.
fn socket(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
}

#[tokio::test]
async fn the_kubelets_socket_is_seen_to_come_go_and_be_replaced() {
    let root = tempfile::tempdir().unwrap();
    let kubelet = root.path().join("kubelet.sock");
    let mut states = watch_folder(kubelet.clone(), Metrics::new());
    assert_eq!(*states.borrow(), FolderState::default());
    socket(&kubelet);
    wait(&mut states, |state| state.kubelet.is_some(), "a socket").await;
    let first = states.borrow().kubelet;
    fs::remove_file(&kubelet).unwrap();
    socket(&kubelet);
    wait(&mut states, |state| state.kubelet.is_some() && state.kubelet != first, "another socket").await;
    fs::remove_file(&kubelet).unwrap();
    wait(&mut states, |state| state.kubelet.is_none(), "no socket").await;
}

#[tokio::test]
async fn only_our_own_sockets_are_listed() {
    let root = tempfile::tempdir().unwrap();
    let mut states = watch_folder(root.path().join("kubelet.sock"), Metrics::new());
    socket(&root.path().join("nvidia-gpu.sock"));
    socket(&root.path().join("migdp-gpu-00000000-x1.sock"));
    wait(&mut states, |state| !state.sockets.is_empty(), "our socket").await;
    assert_eq!(states.borrow().sockets, BTreeSet::from(["migdp-gpu-00000000-x1.sock".to_owned()]));
}

#[tokio::test]
async fn a_folder_may_come_later_and_be_replaced_as_a_whole() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("kubelet/device-plugins");
    let kubelet = folder.join("kubelet.sock");
    let mut states = watch_folder(kubelet.clone(), Metrics::new());
    fs::create_dir_all(&folder).unwrap();
    socket(&kubelet);
    wait(&mut states, |state| state.kubelet.is_some(), "a socket in a new folder").await;
    fs::rename(&folder, root.path().join("old")).unwrap();
    wait(&mut states, |state| state.kubelet.is_none(), "the folder is away").await;
    fs::create_dir_all(&folder).unwrap();
    wait(&mut states, |state| state.kubelet.is_none(), "an empty folder").await;
    socket(&kubelet);
    wait(&mut states, |state| state.kubelet.is_some(), "a socket in the folder's successor").await;
}

#[tokio::test]
async fn a_folder_may_be_a_link_that_is_swapped() {
    let root = tempfile::tempdir().unwrap();
    let (a, b, link) = (root.path().join("a"), root.path().join("b"), root.path().join("link"));
    for folder in [&a, &b] {
        fs::create_dir(folder).unwrap();
    }
    symlink(&a, &link).unwrap();
    let mut states = watch_folder(link.join("kubelet.sock"), Metrics::new());
    socket(&a.join("kubelet.sock"));
    wait(&mut states, |state| state.kubelet.is_some(), "a socket behind the link").await;
    let first = states.borrow().kubelet;
    let swapped = root.path().join("new");
    symlink(&b, &swapped).unwrap();
    fs::rename(&swapped, &link).unwrap();
    wait(&mut states, |state| state.kubelet.is_none(), "nothing behind the swapped link").await;
    socket(&b.join("kubelet.sock"));
    wait(&mut states, |state| state.kubelet.is_some() && state.kubelet != first, "a socket behind it").await;
}
