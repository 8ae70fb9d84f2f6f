//! Which capability file was seen, so that a later one under the same name is not taken for it.
//!
//! The kernel gives an entry of procfs the time at which its name was first looked up, and a new one when it has
//! dropped the name from its cache in between. A descriptor that is held on the file without opening it (`O_PATH`) keeps
//! the name in the cache, and blocks no removal. Kernels before 4.17 drop the name after each look, and take a name that
//! is held for the file that had it, also when that is gone: there the time says nothing, and nothing is held.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};

use super::calls::lock;
use crate::inventory::FileStamp;

/// Two looks that are so far apart have two times, where each look has its own: the kernel's clock for files moves in
/// steps of up to 10 ms.
const APART: Duration = Duration::from_millis(20);

/// Which file is at this path now; `None` where there is none.
pub(crate) fn file_stamp(path: &Path) -> Option<FileStamp> {
    let found = path.symlink_metadata().ok()?;
    let changed_ns = i128::from(found.ctime()) * 1_000_000_000 + i128::from(found.ctime_nsec());
    Some(FileStamp { device: found.dev(), inode: found.ino(), changed_ns: Some(changed_ns) })
}

/// Looks at an entry that stays while the driver is loaded, to find out whether its time moves by that.
#[derive(Debug)]
pub(super) struct TimeCheck {
    file: PathBuf,
    last: Option<Instant>,
    stamps: Vec<FileStamp>,
}

impl TimeCheck {
    pub(super) fn new(file: PathBuf) -> Self {
        Self { file, last: None, stamps: Vec::new() }
    }

    /// Looks once more, [`APART`] from the last time; whether the file is there.
    pub(super) fn look(&mut self) -> bool {
        while let Some(left) = self.last.and_then(|last| APART.checked_sub(last.elapsed())) {
            park_timeout(left);
        }
        let stamp = file_stamp(&self.file);
        self.last = Some(Instant::now());
        self.stamps.extend(stamp);
        stamp.is_some()
    }

    /// Whether the time moves with every look, once that is known.
    pub(super) fn answer(&self) -> Option<bool> {
        times_move(&self.stamps)
    }
}

/// What looks at one entry, one after the other, say of its time: that it stays, that it moves with every look, or not
/// enough. One that moved once may have been dropped from the kernel's cache just then.
fn times_move(stamps: &[FileStamp]) -> Option<bool> {
    let moved = |pair: &[FileStamp]| match pair {
        [a, b] => (a.device, a.inode) == (b.device, b.inode) && a.changed_ns != b.changed_ns,
        _ => false,
    };
    let mut pairs = stamps.windows(2);
    if pairs.any(|pair| !moved(pair)) { Some(false) } else { (stamps.len() > 2).then_some(true) }
}

/// The stamps of capability files.
#[derive(Debug, Default)]
pub(super) struct Stamps {
    times_move: bool,
    held: Mutex<BTreeMap<PathBuf, Held>>,
}

/// A file that is kept in the kernel's cache, and so keeps its time.
#[derive(Debug)]
struct Held {
    stamp: FileStamp,
    _descriptor: OwnedFd,
}

impl Stamps {
    /// With `times_move`, times are left out.
    pub(super) fn new(times_move: bool) -> Self {
        Self { times_move, held: Mutex::default() }
    }

    /// Which file is at this path, from now on until [`Stamps::retain`] drops it; `None` where there is none.
    pub(super) fn of(&self, path: &Path) -> Option<FileStamp> {
        let stamp = file_stamp(path)?;
        if self.times_move {
            return Some(FileStamp { changed_ns: None, ..stamp });
        }
        let mut held = lock(&self.held);
        if held.get(path).is_some_and(|held| held.stamp == stamp) {
            return Some(stamp);
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(descriptor) = open(path, flags, Mode::empty()) else { return Some(stamp) };
        // As it is now that it is held.
        let stamp = file_stamp(path)?;
        held.insert(path.to_owned(), Held { stamp, _descriptor: descriptor });
        Some(stamp)
    }

    /// Holds no other files below `folder` than these.
    pub(super) fn retain(&self, folder: &Path, files: &BTreeSet<&Path>) {
        lock(&self.held).retain(|path, _| !path.starts_with(folder) || files.contains(path.as_path()));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn stamp(inode: u64, changed_ns: i128) -> FileStamp {
        FileStamp { device: 5, inode, changed_ns: Some(changed_ns) }
    }

    #[test]
    fn times_move_when_each_of_three_looks_has_its_own() {
        assert_eq!(times_move(&[]), None);
        assert_eq!(times_move(&[stamp(1, 7)]), None);
        assert_eq!(times_move(&[stamp(1, 7), stamp(1, 8)]), None);
        assert_eq!(times_move(&[stamp(1, 7), stamp(1, 8), stamp(1, 9)]), Some(true));
        assert_eq!(times_move(&[stamp(1, 7), stamp(1, 7)]), Some(false));
        // Dropped from the cache once, or another file.
        assert_eq!(times_move(&[stamp(1, 7), stamp(1, 8), stamp(1, 8)]), Some(false));
        assert_eq!(times_move(&[stamp(1, 7), stamp(2, 8)]), Some(false));
    }

    #[test]
    fn a_check_looks_at_the_file_and_lets_time_pass_in_between() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("version");
        let mut check = TimeCheck::new(file.clone());
        assert!(!check.look());
        fs::write(&file, "").unwrap();
        let began = Instant::now();
        assert!(check.look() && check.look());
        assert!(began.elapsed() >= APART);
        assert_eq!(check.answer(), Some(false));
    }

    #[test]
    fn files_are_held_until_they_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("gpu0/access");
        fs::create_dir(dir.path().join("gpu0")).unwrap();
        let stamps = Stamps::new(false);
        assert_eq!(stamps.of(&file), None);
        fs::write(&file, "").unwrap();
        let first = stamps.of(&file);
        assert_eq!((first, stamps.of(&file)), (file_stamp(&file), first));
        // Its inode is not used again while it is held.
        fs::remove_file(&file).unwrap();
        assert_eq!(stamps.of(&file), None);
        fs::write(&file, "").unwrap();
        assert_ne!(file_stamp(&file).unwrap().inode, first.unwrap().inode);
        assert_eq!(stamps.of(&file), file_stamp(&file));
        stamps.retain(&dir.path().join("gpu1"), &BTreeSet::new());
        assert_eq!(lock(&stamps.held).len(), 1, "that was about another GPU");
        stamps.retain(&dir.path().join("gpu0"), &BTreeSet::from([file.as_path()]));
        assert_eq!(lock(&stamps.held).len(), 1);
        stamps.retain(&dir.path().join("gpu0"), &BTreeSet::new());
        assert_eq!(lock(&stamps.held).len(), 0);
    }

    #[test]
    fn where_times_move_they_are_left_out_and_nothing_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("access");
        fs::write(&file, "").unwrap();
        let stamps = Stamps::new(true);
        let seen = stamps.of(&file).unwrap();
        assert_eq!((seen.changed_ns, lock(&stamps.held).len()), (None, 0));
        assert!(seen.may_be(&file_stamp(&file).unwrap()));
    }
}
