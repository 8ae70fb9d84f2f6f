//! What is in the kubelet's plugin folder: its own socket, and ours.
//!
//! The kubelet empties the folder and makes its socket anew whenever it starts, so a new `kubelet.sock` is how a
//! restart shows. The folder itself may not exist yet, be a link, or be replaced as a whole, so its parent is watched
//! too.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tracing::info;

use super::socket::is_ours;
use crate::metrics::Metrics;
use crate::watch::FolderWatch;

/// How long a change that no event told can stay unnoticed.
const NET: Duration = Duration::from_secs(2);

/// The folder at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FolderState {
    /// The kubelet's socket, if there is one.
    pub kubelet: Option<FileId>,
    /// The names of this program's sockets, other instances' among them.
    pub sockets: BTreeSet<String>,
}

/// Tells a file from one that was made later under the same name. Inode numbers are reused, so the time of its
/// last modification, which for a socket is that of its making, belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
    modified: (i64, i64),
}

impl FileId {
    fn of(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().map(|meta| Self::from(&meta))
    }
}

#[cfg(test)]
impl FileId {
    /// One of many files, for tests without any.
    pub(crate) fn number(inode: u64) -> Self {
        Self { device: 0, inode, modified: (0, 0) }
    }
}

impl From<&Metadata> for FileId {
    fn from(meta: &Metadata) -> Self {
        Self { device: meta.dev(), inode: meta.ino(), modified: (meta.mtime(), meta.mtime_nsec()) }
    }
}

/// Follows the folder of `kubelet_socket` for as long as somebody listens.
pub fn watch_folder(kubelet_socket: PathBuf, metrics: Metrics) -> watch::Receiver<FolderState> {
    let (sender, receiver) = watch::channel(look(&kubelet_socket));
    tokio::spawn(async move {
        tokio::select! {
            () = sender.closed() => {}
            () = follow(&kubelet_socket, &sender, &metrics) => {}
        }
    });
    receiver
}

async fn follow(kubelet_socket: &Path, sender: &watch::Sender<FolderState>, metrics: &Metrics) {
    if sender.borrow().kubelet.is_none() {
        info!(socket = %kubelet_socket.display(), "waiting for the kubelet's socket");
    }
    let mut last = sender.borrow().kubelet;
    let mut watches = FolderWatch::new("the plugin folder", NET);
    loop {
        watches.renew(nearest(kubelet_socket));
        let state = look(kubelet_socket);
        // A kubelet that stops may leave its socket or take it along.
        if let Some(kubelet) = state.kubelet
            && last.replace(kubelet).is_some_and(|last| last != kubelet)
        {
            metrics.count_kubelet_restart();
        }
        sender.send_if_modified(|old| {
            match (old.kubelet, state.kubelet) {
                (Some(_), None) => info!("the kubelet's socket has gone"),
                (None, Some(_)) => info!("the kubelet's socket is there"),
                (Some(old), Some(new)) if old != new => info!("the kubelet has made a new socket"),
                _ => {}
            }
            let changed = *old != state;
            *old = state;
            changed
        });
        watches.changed().await;
    }
}

fn look(kubelet_socket: &Path) -> FolderState {
    let entries = kubelet_socket.parent().and_then(|folder| std::fs::read_dir(folder).ok());
    let names =
        entries.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    FolderState { kubelet: FileId::of(kubelet_socket), sockets: names.filter(|name| is_ours(name)).collect() }
}

/// The folder and its parent, or the nearest two ancestors that exist.
fn nearest(kubelet_socket: &Path) -> Vec<PathBuf> {
    let folder = kubelet_socket.parent().unwrap_or_else(|| Path::new("/"));
    folder.ancestors().filter(|path| path.is_dir()).take(2).map(Path::to_owned).collect()
}

#[cfg(test)]
mod tests;
