//! Finding and opening the driver's library.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use nvml_wrapper::Nvml;

use super::calls::Caller;
use super::error::DriverError;
use super::mapped;
use super::places::resolve_in_root;

const NAME: &str = "libnvidia-ml.so.1";

/// Folders below the driver root, the likelier first. Several distributions are in it because the root can
/// be that of the host, of a driver container, or of a folder that only has the driver in it.
const FOLDERS: [&str; 18] = [
    "usr/lib64",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "lib64",
    "lib/x86_64-linux-gnu",
    "lib/aarch64-linux-gnu",
    "usr/lib",
    "usr/lib/nvidia",
    "usr/lib64-nvidia",
    // Talos.
    "usr/local/glibc/usr/lib",
    // GKE, inside and outside of its install folder.
    "usr/local/nvidia/lib64",
    "home/kubernetes/bin/nvidia/lib64",
    "opt/nvidia/lib64",
    // NixOS.
    "run/opengl-driver/lib",
    // A driver container, seen from the host's root.
    "run/nvidia/driver/usr/lib64",
    "run/nvidia/driver/usr/lib/x86_64-linux-gnu",
    "run/nvidia/driver/usr/lib/aarch64-linux-gnu",
    // The root is the folder itself.
    "",
];

/// Opens the first library that loads, below `driver_root` or where the loader looks, and initialises NVML.
/// The path is that of the file itself, not of a link to it: a file of another version then has another
/// path, and the loader cannot mistake it for one that is still loaded.
pub(super) fn open(driver_root: &Path, calls: &Caller) -> Result<(Nvml, PathBuf), DriverError> {
    let mut tried = Vec::with_capacity(FOLDERS.len());
    let mut opened: Vec<PathBuf> = Vec::new();
    let mut unusable = None;
    for folder in FOLDERS {
        let place = driver_root.join(folder);
        let found = resolve_in_root(driver_root, &Path::new(folder).join(NAME));
        tried.push(place.display().to_string());
        // Folders are often links to each other.
        let Some(file) = found.ok().filter(|file| file.is_file() && !opened.contains(file)) else { continue };
        match init(file.as_os_str(), &file, calls) {
            Err(DriverError::Unusable { library, reason }) => {
                unusable.get_or_insert(DriverError::Unusable { library, reason });
                opened.push(file);
            }
            result => return result.map(|nvml| (nvml, file)),
        }
    }
    match init(OsStr::new(NAME), Path::new(NAME), calls) {
        Err(DriverError::Unusable { reason, .. }) => {
            Err(unusable.unwrap_or(DriverError::NotFound { library: NAME, tried, loader: reason }))
        }
        result => result.map(|nvml| (nvml, mapped::file().unwrap_or_else(|| PathBuf::from(NAME)))),
    }
}

fn init(path: &OsStr, library: &Path, calls: &Caller) -> Result<Nvml, DriverError> {
    let unusable = |reason: String| DriverError::Unusable { library: library.to_owned(), reason };
    let opened = calls.ask("nvmlInit_v2", || Nvml::builder().lib_path(path).init());
    let nvml = opened.map_err(|call| match call.is_no_nvml() {
        Some(words) => unusable(words),
        None => DriverError::from_call(library.to_owned(), call),
    })?;
    if nvml.lib().nvmlShutdown.is_err() {
        // Dropping it would call nvmlShutdown, and panic.
        std::mem::forget(nvml);
        return Err(unusable("it is not NVML: it has no nvmlShutdown".to_owned()));
    }
    Ok(nvml)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn an_empty_root_names_every_place_that_was_tried() {
        let dir = tempfile::tempdir().unwrap();
        // On a machine with a driver the loader finds that one.
        let Err(DriverError::NotFound { tried, .. }) = open(dir.path(), &Caller::default()) else { return };
        assert_eq!(tried.len(), FOLDERS.len());
        assert_eq!(tried[0], dir.path().join("usr/lib64").display().to_string());
    }

    #[test]
    fn a_file_that_is_no_library_is_named_with_the_loaders_words() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("usr/lib64")).unwrap();
        let file = dir.path().join("usr/lib64").join(NAME);
        fs::write(&file, "not a library at all, but long enough for a header to be read from it").unwrap();
        let Err(DriverError::Unusable { library, reason }) = open(dir.path(), &Caller::default()) else {
            return;
        };
        assert_eq!(library, file);
        assert!(!reason.is_empty());
    }
}
