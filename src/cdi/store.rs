//! Files that a container runtime reads while we write them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long another process may take from making its temporary file to renaming it.
const STALE: Duration = Duration::from_mins(1);

/// Of temporary files.
const SUFFIX: &str = ".tmp";

/// A file could not be replaced.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct StoreError {
    action: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    source: io::Error,
}

/// Makes `contents` the file `folder/name`, and says whether it was something else before. Whoever reads it
/// meanwhile reads the old file or the new one.
pub(super) fn replace(folder: &Path, name: &str, contents: &[u8]) -> Result<bool, StoreError> {
    let path = folder.join(name);
    let error = |action, path: &Path| {
        let path = path.to_owned();
        move |source| StoreError { action, path, source }
    };
    if fs::read(&path).is_ok_and(|found| found == contents) {
        return Ok(false);
    }
    fs::create_dir_all(folder).map_err(error("make the folder", folder))?;
    sweep(folder, name, SystemTime::now());
    // In the same folder, not only for the rename: runtimes watch it and read it again when a file in it
    // gets another name, which a file that comes from elsewhere would not cause. No runtime takes a file for
    // a specification that does not end in .json or .yaml.
    let temporary = folder.join(temporary_name(name));
    let written = write(&temporary, contents).map_err(error("write", &temporary));
    let renamed = written.and_then(|()| fs::rename(&temporary, &path).map_err(error("replace", &path)));
    if renamed.is_err() {
        let _already_failing = fs::remove_file(&temporary);
    }
    renamed?;
    // The rename has happened; at worst the folder forgets it in a power failure, with all of /run.
    let _best_effort = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(true)
}

fn write(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(contents)?;
    // Whatever the umask: a runtime need not run as the user that we are.
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.sync_all()
}

/// Two plugins can write at once while one replaces the other, each as process 1 of its container.
fn temporary_name(name: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!(".{name}.{}-{}{SUFFIX}", std::process::id(), now.as_nanos())
}

/// Removes what an earlier process left behind when it was killed between writing and renaming.
fn sweep(folder: &Path, name: &str, now: SystemTime) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let prefix = format!(".{name}.");
    for entry in entries.flatten() {
        let file_name = entry.file_name();
        let ours = file_name.to_str().and_then(|name| name.strip_prefix(&prefix)?.strip_suffix(SUFFIX));
        let age = entry.metadata().and_then(|file| file.modified()).ok();
        let age = age.and_then(|changed| now.duration_since(changed).ok());
        if ours.is_some() && age.is_some_and(|age| age >= STALE) {
            let _best_effort = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run/cdi");
        assert!(replace(&folder, "a.json", b"one").unwrap());
        assert!(!replace(&folder, "a.json", b"one").unwrap());
        assert!(replace(&folder, "a.json", b"two").unwrap());
        assert_eq!(fs::read(folder.join("a.json")).unwrap(), b"two");
        let mode = fs::metadata(folder.join("a.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        assert_eq!(names(&folder), ["a.json"]);
    }

    #[test]
    fn a_file_that_was_removed_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        assert!(replace(dir.path(), "a.json", b"one").unwrap());
        fs::remove_file(dir.path().join("a.json")).unwrap();
        assert!(replace(dir.path(), "a.json", b"one").unwrap());
    }

    #[test]
    fn what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".a.json.1-5.tmp", ".b.json.1-5.tmp", ".a.json.tmp", "a.json.1-5.tmp"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert!(replace(dir.path(), "a.json", b"one").unwrap());
        assert_eq!(names(dir.path()).len(), 5);
        sweep(dir.path(), "a.json", SystemTime::now() + STALE);
        assert_eq!(names(dir.path()), [".a.json.tmp", ".b.json.1-5.tmp", "a.json", "a.json.1-5.tmp"]);
    }

    #[test]
    fn errors_name_the_path() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let folder = dir.path().join("file/cdi");
        let error = replace(&folder, "a.json", b"one").unwrap_err();
        assert_eq!(error.to_string(), format!("cannot make the folder {}", folder.display()));
        fs::create_dir_all(dir.path().join("cdi/a.json")).unwrap();
        let error = replace(&dir.path().join("cdi"), "a.json", b"one").unwrap_err();
        assert_eq!(error.to_string(), format!("cannot replace {}", dir.path().join("cdi/a.json").display()));
        assert_eq!(names(&dir.path().join("cdi")), ["a.json"]);
    }
}
