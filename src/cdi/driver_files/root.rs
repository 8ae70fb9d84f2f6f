//! A root folder that is mounted somewhere else, looked into as if it were `/`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::nvml::resolve_in_root;

/// The driver root by its two names.
pub(super) struct Root<'a> {
    /// As this process sees it.
    pub(super) here: &'a Path,
    /// On the host.
    pub(super) host: &'a Path,
}

/// A file below the root.
pub(super) struct Found {
    /// The file itself, as this process sees it.
    pub(super) here: PathBuf,
    /// The file itself, on the host: the host would follow a link to somewhere else.
    pub(super) host: PathBuf,
    /// By the name that it was looked for, in a folder without links.
    pub(super) container: PathBuf,
}

impl Root<'_> {
    /// The file at `path`, if it is there, whether or not over links.
    pub(super) fn file(&self, path: &Path) -> Option<Found> {
        let folder = self.folder(path.parent()?)?;
        let path = folder.join(path.file_name()?);
        let real = self.resolve(&path)?;
        let here = self.here.join(&real);
        // Names that are not UTF-8 could not be written down.
        let is_there = real.to_str().is_some() && fs::metadata(&here).is_ok();
        is_there.then(|| Found { here, host: self.host.join(&real), container: Path::new("/").join(path) })
    }

    /// The folder at `path` without links, relative to the root, if it is there.
    pub(super) fn folder(&self, path: &Path) -> Option<PathBuf> {
        let folder = self.resolve(path)?;
        self.here.join(&folder).is_dir().then_some(folder)
    }

    /// The names in a folder in their order; none where it cannot be read.
    pub(super) fn names(&self, folder: &Path) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.here.join(folder)) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok().map(|entry| entry.file_name()));
        let mut names: Vec<String> = names.filter_map(|name: OsString| name.into_string().ok()).collect();
        names.sort_unstable();
        names
    }

    /// What the link at `path` says; `None` where there is no link.
    pub(super) fn link(&self, path: &Path) -> Option<String> {
        fs::read_link(self.here.join(path)).ok()?.into_os_string().into_string().ok()
    }

    /// Follows links as in a chroot. The result is relative to the root.
    fn resolve(&self, path: &Path) -> Option<PathBuf> {
        let real = resolve_in_root(self.here, path).ok()?;
        real.strip_prefix(self.here).ok().map(Path::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root { here: dir.path(), host: Path::new("/run/driver") };
        fs::create_dir_all(dir.path().join("usr/lib64")).unwrap();
        fs::create_dir_all(dir.path().join("store")).unwrap();
        fs::write(dir.path().join("store/libcuda"), "").unwrap();
        symlink("usr/lib64", dir.path().join("lib64")).unwrap();
        symlink("/store/libcuda", dir.path().join("usr/lib64/absolute")).unwrap();
        symlink("../../../../store/libcuda", dir.path().join("usr/lib64/up")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        for name in ["absolute", "up"] {
            let found = root.file(&Path::new("lib64").join(name)).unwrap();
            assert_eq!(found.here, dir.path().join("store/libcuda"));
            assert_eq!(found.host, Path::new("/run/driver/store/libcuda"));
            assert_eq!(found.container, Path::new("/usr/lib64").join(name));
        }
        assert!(root.file(Path::new("loop")).is_none());
        assert!(root.file(Path::new("lib64/gone")).is_none());
        assert_eq!(root.folder(Path::new("/lib64")), Some("usr/lib64".into()));
        assert_eq!(root.folder(Path::new("")), Some(PathBuf::new()));
        assert_eq!(root.folder(Path::new("store/libcuda")), None);
    }

    #[test]
    fn names_have_an_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b", "c", "a"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let root = Root { here: dir.path(), host: Path::new("/") };
        assert_eq!(root.names(Path::new("")), ["a", "b", "c"]);
        assert_eq!(root.names(Path::new("gone")), [""; 0]);
    }
}
