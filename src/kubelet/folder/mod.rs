//! What is in the kubelet's plugin folder: its own socket, and ours.
//!
//! The kubelet empties the folder and makes its socket anew whenever it starts, so a new `kubelet.sock` is how a
//! restart shows. The folder itself may not exist yet, be a link, or be replaced as a whole. notify is silent on
//! some of that, so the parent is watched too, watches are renewed when a folder's identity changes, and a
//! slow look is the net.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::socket::is_ours;

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
        let meta = std::fs::metadata(path).ok()?;
        Some(Self { device: meta.dev(), inode: meta.ino(), modified: (meta.mtime(), meta.mtime_nsec()) })
    }

    /// A folder's time changes with its content, so only its place counts.
    fn of_folder(path: &Path) -> Option<(u64, u64)> {
        std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
    }
}

/// Follows the folder of `kubelet_socket` for as long as somebody listens.
pub fn watch_folder(kubelet_socket: PathBuf) -> watch::Receiver<FolderState> {
    let (sender, receiver) = watch::channel(look(&kubelet_socket));
    tokio::spawn(async move {
        tokio::select! {
            () = sender.closed() => {}
            () = follow(&kubelet_socket, &sender) => {}
        }
    });
    receiver
}

async fn follow(kubelet_socket: &Path, sender: &watch::Sender<FolderState>) {
    if sender.borrow().kubelet.is_none() {
        info!(socket = %kubelet_socket.display(), "waiting for the kubelet's socket");
    }
    let mut watches = Watches::new(kubelet_socket);
    loop {
        watches.renew();
        let state = look(kubelet_socket);
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
        // A time-out is the net: look again all the same.
        if timeout(NET, watches.changed.notified()).await.is_err() {
            debug!("no event from the plugin folder; looking all the same");
        }
    }
}

fn look(kubelet_socket: &Path) -> FolderState {
    let entries = kubelet_socket.parent().and_then(|folder| std::fs::read_dir(folder).ok());
    let names =
        entries.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    FolderState { kubelet: FileId::of(kubelet_socket), sockets: names.filter(|name| is_ours(name)).collect() }
}

/// inotify watches on the folder and on its parent, or on the nearest ancestor that exists.
struct Watches {
    folder: PathBuf,
    changed: Arc<Notify>,
    watched: Vec<(PathBuf, Option<(u64, u64)>)>,
    watcher: Option<RecommendedWatcher>,
    warned: bool,
}

impl Watches {
    fn new(kubelet_socket: &Path) -> Self {
        Self {
            folder: kubelet_socket.parent().unwrap_or_else(|| Path::new("/")).to_owned(),
            changed: Arc::new(Notify::new()),
            watched: Vec::new(),
            watcher: None,
            warned: false,
        }
    }

    /// Watches anew when what stands at the watched paths is not what stood there.
    fn renew(&mut self) {
        let existing = self.folder.ancestors().filter(|path| path.is_dir()).take(2);
        let wanted: Vec<_> = existing.map(|path| (path.to_owned(), FileId::of_folder(path))).collect();
        if self.watcher.is_some() && self.watched == wanted {
            return;
        }
        match watcher(&wanted, &self.changed) {
            Ok(watcher) => {
                self.watcher = Some(watcher);
                self.watched = wanted;
                self.warned = false;
            }
            Err(error) => {
                self.watcher = None;
                if !std::mem::replace(&mut self.warned, true) {
                    warn!(%error, folder = %self.folder.display(), every = ?NET, "cannot watch the plugin folder; \
                          looking at intervals instead (is fs.inotify.max_user_instances used up?)");
                }
            }
        }
    }
}

fn watcher(
    folders: &[(PathBuf, Option<(u64, u64)>)],
    changed: &Arc<Notify>,
) -> notify::Result<RecommendedWatcher> {
    let changed = Arc::clone(changed);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own listing of the folder is an access: reacting to it would never end.
        if !matches!(&event, Ok(event) if matches!(event.kind, EventKind::Access(_))) {
            changed.notify_one();
        }
    })?;
    for (folder, _) in folders {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

#[cfg(test)]
mod tests;
