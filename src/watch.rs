//! Being told when something in a folder changes.
//!
//! notify is silent when a watched folder is replaced, or when a link leads elsewhere. So watches are renewed when a
//! folder's identity changes, and whoever waits is let go after a while to look all the same.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::timeout;
use tracing::{debug, warn};

/// What tells a folder from one that was made later in its place. Its time changes with its content and so does
/// not count.
type FolderId = Option<(u64, u64)>;

/// inotify watches on some folders.
pub(crate) struct FolderWatch {
    /// Which folders these are, for logs.
    what: &'static str,
    /// How long a change that no event told can stay unnoticed.
    net: Duration,
    changed: Arc<Notify>,
    watched: Vec<(PathBuf, FolderId)>,
    watcher: Option<RecommendedWatcher>,
    warned: bool,
}

impl FolderWatch {
    pub(crate) fn new(what: &'static str, net: Duration) -> Self {
        Self {
            what,
            net,
            changed: Arc::new(Notify::new()),
            watched: Vec::new(),
            watcher: None,
            warned: false,
        }
    }

    /// Watches `folders`, which exist, from now on; does nothing where that is so already.
    pub(crate) fn renew(&mut self, folders: impl IntoIterator<Item = PathBuf>) {
        let wanted: Vec<_> = folders.into_iter().map(|path| (path.clone(), identity(&path))).collect();
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
                    warn!(%error, folder = self.what, every = ?self.net, "cannot watch a folder; looking at \
                          intervals instead (is fs.inotify.max_user_instances used up?)");
                }
            }
        }
    }

    /// Returns when something may have changed: an event told so, or no event came for long.
    pub(crate) async fn changed(&self) {
        if timeout(self.net, self.changed.notified()).await.is_err() {
            debug!(folder = self.what, "no event; looking all the same");
        }
    }
}

fn identity(path: &Path) -> FolderId {
    std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

fn watcher(folders: &[(PathBuf, FolderId)], changed: &Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let changed = Arc::clone(changed);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own look is an access: reacting to it would never end.
        if !matches!(&event, Ok(event) if matches!(event.kind, EventKind::Access(_))) {
            changed.notify_one();
        }
    })?;
    for (folder, _) in folders {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}
