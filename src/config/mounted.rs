//! Whether the folder that is mounted as the driver root is the one that `--nvidia-driver-root` names.
//!
//! Answers to the kubelet name device nodes and files by their paths on the host, and this process looks for them where
//! the root is mounted. Whoever changes the mount in a manifest and not the variable gets devices that are healthy, and
//! containers that cannot start. Only the host's own root can be recognised, by the kubelet's folder in it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::nvml::resolve_in_root;

/// Where every kubelet has its folder for device plugins, whatever its `--root-dir` is (`NewManagerImpl`).
const PLUGIN_FOLDER: &str = "/var/lib/kubelet/device-plugins";

/// A sentence where the two differ. `plugin_folder` is the kubelet's folder and `mounted` the driver root, as this process
/// sees them; `named` is the driver root on the host.
pub(super) fn other_root(plugin_folder: &Path, mounted: &Path, named: &Path) -> Option<String> {
    if mounted == named || !mounted.is_dir() {
        return None;
    }
    let identity = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let own = identity(plugin_folder)?;
    let below = resolve_in_root(mounted, Path::new(PLUGIN_FOLDER)).ok();
    let is_host = below.and_then(|path| identity(&path)) == Some(own);
    let mount = match (named == Path::new("/"), is_host) {
        (true, false) => "is not the host's /",
        (false, true) => "is the host's /",
        _ => return None,
    };
    Some(format!(
        "--nvidia-driver-root (NVIDIA_DRIVER_ROOT) is {}, and what is mounted at {} (--driver-root-ctr-path) {mount}: \
         containers get device nodes and files by their paths below the former, so they may not start; let both be the \
         driver's root",
        named.display(),
        mounted.display()
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn warns(plugin_folder: &Path, mounted: &Path, named: &str) -> bool {
        other_root(plugin_folder, mounted, Path::new(named)).is_some()
    }

    #[test]
    fn a_mount_that_is_not_the_root_it_is_said_to_be_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (host, driver) = (dir.path().join("host"), dir.path().join("host/run/nvidia/driver"));
        let folder = host.join("var/lib/kubelet/device-plugins");
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir_all(&driver).unwrap();
        // The kubelet's folder is the same one by another path, as in a container.
        let here = dir.path().join("here");
        symlink(&folder, &here).unwrap();
        assert!(!warns(&here, &host, "/"));
        assert!(warns(&here, &driver, "/"), "the hostPath alone was changed");
        assert!(!warns(&here, &driver, "/run/nvidia/driver"));
        assert!(warns(&here, &host, "/run/nvidia/driver"), "the variable alone was changed");
        let text = other_root(&here, &driver, Path::new("/")).unwrap();
        assert!(
            text.starts_with("--nvidia-driver-root (NVIDIA_DRIVER_ROOT) is /, and what is mounted at"),
            "{text}"
        );
    }

    #[test]
    fn links_on_the_host_lead_where_they_lead_there() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("data/kubelet/device-plugins")).unwrap();
        fs::create_dir_all(dir.path().join("var/lib")).unwrap();
        symlink("/data/kubelet", dir.path().join("var/lib/kubelet")).unwrap();
        assert!(!warns(&dir.path().join("data/kubelet/device-plugins"), dir.path(), "/"));
    }

    #[test]
    fn where_nothing_is_mounted_or_nothing_can_be_seen_nothing_is_said() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!warns(dir.path(), &dir.path().join("none"), "/"));
        assert!(!warns(&dir.path().join("none"), dir.path(), "/"));
        assert!(!warns(dir.path(), Path::new("/"), "/"), "on the host itself");
        assert!(!warns(dir.path(), dir.path(), dir.path().to_str().unwrap()), "mounted where it is");
    }
}
