//! Which library of the driver's is mapped into this process, by `/proc/self/maps`.
//!
//! `dlclose` does not always unload: a library with destructors for a thread's own data stays while that thread lives,
//! and one can ask to stay. To open its path again then gives the old code, whatever file is there by now.

use std::fs;
use std::path::{Path, PathBuf};

use super::file_stamp;
use crate::inventory::FileStamp;

/// What the kernel puts behind the path of a mapped file that is no longer there.
const DELETED: &str = " (deleted)";

/// The first file that is mapped, whether it is still there or not.
pub(super) fn file() -> Option<PathBuf> {
    let maps = maps();
    let found = libraries(&maps).next()?;
    Some(PathBuf::from(found.path))
}

/// A library file as it was when it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Opened {
    path: PathBuf,
    stamp: Option<FileStamp>,
}

impl Opened {
    /// The file at this path.
    pub(super) fn now(library: &Path) -> Self {
        Self { path: library.to_owned(), stamp: file_stamp(library) }
    }

    /// Whether its code is still in this process.
    pub(super) fn is_mapped(&self) -> bool {
        libraries(&maps()).any(|found| self.is(&found))
    }

    /// Whether its code is still in this process although the file at `library` is another one.
    pub(super) fn is_in_the_way_of(&self, library: &Path) -> bool {
        let same = |a: FileStamp, b: FileStamp| (a.device, a.inode) == (b.device, b.inode);
        let replaced = self.stamp.zip(file_stamp(library)).is_some_and(|(then, now)| !same(then, now));
        libraries(&maps()).any(|found| self.is(&found) && (replaced || found.deleted))
    }

    /// By path, or by inode where a mount has taken the path away. Device numbers are no help: those of the map and
    /// those of `stat` differ on overlays.
    fn is(&self, found: &Mapped<'_>) -> bool {
        Path::new(found.path) == self.path || self.stamp.is_some_and(|stamp| stamp.inode == found.inode)
    }
}

/// A line of the map.
#[derive(Debug, PartialEq, Eq)]
struct Mapped<'a> {
    inode: u64,
    path: &'a str,
    deleted: bool,
}

fn maps() -> String {
    // Without it nothing can be said, and nothing is taken for stale.
    fs::read_to_string("/proc/self/maps").unwrap_or_default()
}

fn libraries(maps: &str) -> impl Iterator<Item = Mapped<'_>> {
    let parse = |line| {
        let (head, path) = str::split_at_checked(line, line.find('/')?)?;
        let inode = head.split_whitespace().nth(4)?.parse().ok()?;
        let file = path.rsplit('/').next()?;
        let (path, deleted) = path.strip_suffix(DELETED).map_or((path, false), |path| (path, true));
        file.starts_with("libnvidia-ml.so").then_some(Mapped { inode, path, deleted })
    };
    maps.lines().filter_map(parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_the_process_map() {
        let maps = "7f00-7f01 r-xp 00000000 fd:00 12  /usr/lib/x86_64-linux-gnu/libc.so.6\n\
                    7f02-7f03 r-xp 00000000 fd:00 13  /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05\n\
                    7f03-7f04 r-xp 00000000 fd:00 14  /opt/lib/libnvidia-ml.so.1 (deleted)\n\
                    7f04-7f05 rw-p 00000000 00:00 0\n";
        let path = "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05";
        let expected = [
            Mapped { inode: 13, path, deleted: false },
            Mapped { inode: 14, path: "/opt/lib/libnvidia-ml.so.1", deleted: true },
        ];
        assert_eq!(libraries(maps).collect::<Vec<_>>(), expected);
        assert_eq!(libraries("7f04-7f05 rw-p 00000000 00:00 0\n").count(), 0);
    }
}
