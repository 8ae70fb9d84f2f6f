//! Finding and opening the driver's library.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use super::error::{CallError, DriverError};
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
pub(super) fn open(driver_root: &Path) -> Result<(Nvml, PathBuf), DriverError> {
    let mut tried = Vec::with_capacity(FOLDERS.len());
    let mut opened: Vec<PathBuf> = Vec::new();
    let mut unusable = None;
    for folder in FOLDERS {
        let place = driver_root.join(folder);
        let found = resolve_in_root(driver_root, &Path::new(folder).join(NAME));
        tried.push(place.display().to_string());
        // Folders are often links to each other.
        let Some(file) = found.ok().filter(|file| file.is_file() && !opened.contains(file)) else { continue };
        match init(file.as_os_str(), &file) {
            Err(DriverError::Unusable { library, reason }) => {
                unusable.get_or_insert(DriverError::Unusable { library, reason });
                opened.push(file);
            }
            result => return result.map(|nvml| (nvml, file)),
        }
    }
    match init(OsStr::new(NAME), Path::new(NAME)) {
        Err(DriverError::Unusable { reason, .. }) => {
            Err(unusable.unwrap_or(DriverError::NotFound { library: NAME, tried, loader: reason }))
        }
        result => result.map(|nvml| (nvml, loaded_file().unwrap_or_else(|| PathBuf::from(NAME)))),
    }
}

fn init(path: &OsStr, library: &Path) -> Result<Nvml, DriverError> {
    let unusable = |reason: String| DriverError::Unusable { library: library.to_owned(), reason };
    let nvml = Nvml::builder().lib_path(path).init().map_err(|error| match error {
        NvmlError::LibloadingError(error) => unusable(error.to_string()),
        NvmlError::FailedToLoadSymbol(words) => unusable(format!("it is not NVML: {words}")),
        error => DriverError::from_call(library.to_owned(), CallError::from_wrapper("nvmlInit_v2", error)),
    })?;
    if nvml.lib().nvmlShutdown.is_err() {
        // Dropping it would call nvmlShutdown, and panic.
        std::mem::forget(nvml);
        return Err(unusable("it is not NVML: it has no nvmlShutdown".to_owned()));
    }
    Ok(nvml)
}

/// Which file the loader took, from the list of what is mapped into this process.
fn loaded_file() -> Option<PathBuf> {
    mapped_library(&fs::read_to_string("/proc/self/maps").ok()?)
}

fn mapped_library(maps: &str) -> Option<PathBuf> {
    maps.lines()
        .filter_map(|line| line.find('/').map(|start| &line[start..]))
        .find(|path| path.rsplit('/').next().is_some_and(|file| file.starts_with("libnvidia-ml.so")))
        .map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_root_names_every_place_that_was_tried() {
        let dir = tempfile::tempdir().unwrap();
        // On a machine with a driver the loader finds that one.
        let Err(DriverError::NotFound { tried, .. }) = open(dir.path()) else { return };
        assert_eq!(tried.len(), FOLDERS.len());
        assert_eq!(tried[0], dir.path().join("usr/lib64").display().to_string());
    }

    #[test]
    fn a_file_that_is_no_library_is_named_with_the_loaders_words() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("usr/lib64")).unwrap();
        let file = dir.path().join("usr/lib64").join(NAME);
        fs::write(&file, "not a library at all, but long enough for a header to be read from it").unwrap();
        let Err(DriverError::Unusable { library, reason }) = open(dir.path()) else { return };
        assert_eq!(library, file);
        assert!(!reason.is_empty());
    }

    #[test]
    fn the_loaders_choice_is_read_from_the_process_map() {
        let maps = "7f00-7f01 r-xp 00000000 fd:00 12  /usr/lib/x86_64-linux-gnu/libc.so.6\n\
                    7f02-7f03 r-xp 00000000 fd:00 13  /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05\n\
                    7f04-7f05 rw-p 00000000 00:00 0\n";
        let expected = PathBuf::from("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05");
        assert_eq!(mapped_library(maps), Some(expected));
        assert_eq!(mapped_library("7f04-7f05 rw-p 00000000 00:00 0\n"), None);
    }
}
