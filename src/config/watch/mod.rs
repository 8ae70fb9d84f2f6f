//! Follows the config file.
//!
//! A `ConfigMap` is mounted as a folder in which the file is a link to `..data/<file>`, and `..data` is a link that is
//! swapped; editors write a new file and rename it; both are silent on the file itself. So the folders are watched in
//! which a link on the way can change, and only the content counts.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use super::file::bytes;
use crate::watch::FolderWatch;

/// How long a change that no event told can stay unnoticed.
const NET: Duration = Duration::from_secs(5);

/// A file that somebody is writing is let alone until it has been the same for so long.
const SETTLED: Duration = Duration::from_millis(50);

/// A file that never settles is read all the same after so many looks.
const LOOKS: u32 = 20;

/// Links on the way to the file; the kernel follows not many more.
const LINKS: usize = 16;

/// A file, and the content that was seen in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    path: PathBuf,
    content: Option<u64>,
}

impl Seen {
    pub(super) fn new(path: &Path, bytes: Option<&[u8]>) -> Self {
        Self { path: path.to_owned(), content: bytes.map(hash) }
    }
}

/// Tells when the config file has changed.
#[derive(Debug)]
pub struct Changes(Option<watch::Receiver<u64>>);

impl Changes {
    pub(super) fn new(seen: Option<Seen>) -> Self {
        Self(seen.map(watch))
    }

    /// Returns when the file's content has become another one since the last time; never where there is no file. A
    /// file that has gone, or cannot be read, is as it was.
    pub async fn next(&mut self) {
        let changed = match &mut self.0 {
            Some(counts) => counts.changed().await.is_ok(),
            None => false,
        };
        if !changed {
            std::future::pending::<()>().await;
        }
    }
}

/// Follows the file for as long as somebody listens: counts each time its content has become another one than
/// before, beginning with what was `seen`.
fn watch(seen: Seen) -> watch::Receiver<u64> {
    let (sender, receiver) = watch::channel(0);
    tokio::spawn(async move {
        tokio::select! {
            () = sender.closed() => {}
            () = follow(seen, &sender) => {}
        }
    });
    receiver
}

async fn follow(Seen { path, content: mut known }: Seen, sender: &watch::Sender<u64>) {
    let mut watches = FolderWatch::new("the config file's folder", NET);
    let mut gone = false;
    loop {
        watches.renew(places(&path));
        match settled(&path).await {
            Some(content) => {
                if std::mem::take(&mut gone) {
                    info!(file = %path.display(), "the config file is back");
                }
                if known.replace(content) != Some(content) {
                    sender.send_modify(|count| *count += 1);
                }
            }
            None if !std::mem::replace(&mut gone, true) => {
                warn!(file = %path.display(), "the config file cannot be read; the last good configuration stays");
            }
            None => {}
        }
        watches.changed().await;
    }
}

/// The content, once it has stopped changing.
async fn settled(path: &Path) -> Option<u64> {
    let look = || bytes(path).ok().map(|bytes| hash(&bytes));
    let mut content = look();
    for _ in 0..LOOKS {
        sleep(SETTLED).await;
        let again = look();
        if again == content {
            break;
        }
        content = again;
    }
    content
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// The folders in which a change can mean another content: that of the file and of each link on the way to it, and,
/// since a folder can be replaced, the one above the first.
fn places(path: &Path) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = Vec::new();
    let mut add = |folder: Option<&Path>| {
        let folder = folder.map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
        if let Some(folder) =
            folder.filter(|folder| folder.is_dir() && !places.iter().any(|place| place == folder))
        {
            places.push(folder.to_owned());
        }
    };
    add(path.parent());
    add(path.parent().and_then(Path::parent));
    let mut link = path.to_owned();
    for _ in 0..LINKS {
        let Ok(target) = link.read_link() else { break };
        link = link.parent().map(|folder| folder.join(&target)).unwrap_or(target);
        add(link.parent());
    }
    if let Ok(file) = path.canonicalize() {
        add(file.parent());
    }
    places
}

#[cfg(test)]
mod tests;
