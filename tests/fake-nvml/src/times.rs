//! When the folders of a tree were changed.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::SystemTime,
};

/// When folders were changed. A real `/proc` does not tell by them what came or went.
pub(crate) struct Times(Vec<(PathBuf, SystemTime)>);

impl Times {
    /// Of this folder and all below it, now.
    pub(crate) fn of(folder: &Path) -> Self {
        let mut times = Vec::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            let modified = fs::metadata(&folder).and_then(|found| found.modified());
            let below = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
            folders.extend(below.filter(|path| path.is_dir()));
            times.extend(modified.ok().map(|time| (folder, time)));
        }
        Self(times)
    }

    /// Sets them back, of those folders that are still there.
    pub(crate) fn restore(self) {
        for (folder, time) in self.0 {
            // One that is gone needs none.
            let _restored = File::open(folder).and_then(|folder| folder.set_modified(time));
        }
    }
}

/// Every file below a folder.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}
