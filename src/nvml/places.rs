//! Where things are on this node: the roots, the PCI address, the NUMA node.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Where to look. All roots are as this process sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Where the driver's libraries are found: `--driver-root-ctr-path`.
    pub driver_root: PathBuf,
    /// The folder that has `dev/nvidia0` in it; by default the driver root when it has a `dev`, else `/`.
    pub dev_root: Option<PathBuf>,
    /// By default the driver root's `proc` when NVIDIA's files are in it, else `/proc`.
    pub proc_root: Option<PathBuf>,
    /// By default the driver root's `sys` when it lists PCI devices, else `/sys`.
    pub sys_root: Option<PathBuf>,
}

impl Paths {
    /// Everything below one root, or at the usual places where that root has no such folder.
    pub fn below(driver_root: impl Into<PathBuf>) -> Self {
        Self { driver_root: driver_root.into(), dev_root: None, proc_root: None, sys_root: None }
    }

    /// The folder that has `dev/nvidia0` in it, as it is now.
    pub fn dev_root(&self) -> PathBuf {
        let own = || self.driver_root.join("dev").is_dir().then(|| self.driver_root.clone());
        self.dev_root.clone().or_else(own).unwrap_or_else(|| PathBuf::from("/"))
    }

    /// The roots as they are now: a driver that is installed later brings its folders with it.
    pub(super) fn roots(&self) -> Roots {
        let in_root = |name: &str| self.driver_root.join(name);
        let proc = self.proc_root.clone().unwrap_or_else(|| {
            let own = in_root("proc");
            let has_driver = own.join("driver/nvidia").is_dir() || own.join("driver/nvidia-caps").is_dir();
            if has_driver { own } else { PathBuf::from("/proc") }
        });
        let sys = self.sys_root.clone().unwrap_or_else(|| {
            let own = in_root("sys");
            let has_devices = fs::read_dir(own.join(PCI_DEVICES)).is_ok_and(|mut all| all.next().is_some());
            if has_devices { own } else { PathBuf::from("/sys") }
        });
        Roots { dev: self.dev_root(), proc, sys }
    }
}

const PCI_DEVICES: &str = "bus/pci/devices";

/// The roots that hold for one look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Roots {
    /// Has `dev/nvidia0` in it.
    pub(super) dev: PathBuf,
    /// Has `driver/nvidia` in it.
    pub(super) proc: PathBuf,
    /// Has `bus/pci/devices` in it.
    pub(super) sys: PathBuf,
}

impl Roots {
    /// The NUMA node of the PCI device, or `None` where sysfs says -1 or nothing.
    pub(super) fn numa_node(&self, pci_bus_id: &str) -> Option<u32> {
        let file = self.sys.join(PCI_DEVICES).join(pci_bus_id).join("numa_node");
        fs::read_to_string(file).ok()?.trim().parse().ok()
    }
}

/// A PCI address as sysfs spells it: NVML writes the domain with eight digits and in capitals, sysfs with
/// as few as it needs but at least four, and in small letters.
pub(super) fn sysfs_address(nvml: &str) -> String {
    let lower = nvml.trim().to_ascii_lowercase();
    match lower.split_once(':') {
        Some((domain, rest)) => match u32::from_str_radix(domain, 16) {
            Ok(domain) => format!("{domain:04x}:{rest}"),
            Err(_) => lower,
        },
        None => lower,
    }
}

/// The file that `path` leads to for a process whose root folder is `root`: absolute links start at `root`
/// again and `..` does not leave it, as in a chroot. So the driver's files are found in a root that is
/// mounted somewhere else.
pub(crate) fn resolve_in_root(root: &Path, path: &Path) -> io::Result<PathBuf> {
    // As many links as the kernel follows.
    let mut links_left = 40;
    let mut todo: Vec<OsString> = reversed(path);
    let mut done = PathBuf::new();
    while let Some(name) = todo.pop() {
        if name == ".." {
            done.pop();
            continue;
        }
        let here = root.join(&done).join(&name);
        if !fs::symlink_metadata(&here)?.file_type().is_symlink() {
            done.push(name);
            continue;
        }
        if links_left == 0 {
            return Err(io::Error::other("too many links"));
        }
        links_left -= 1;
        let target = fs::read_link(&here)?;
        if target.is_absolute() {
            done = PathBuf::new();
        }
        todo.append(&mut reversed(&target));
    }
    Ok(root.join(done))
}

/// The names in `path`, last one first; the root and `.` fall away.
fn reversed(path: &Path) -> Vec<OsString> {
    let mut names: Vec<OsString> = path
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
        })
        .collect();
    names.reverse();
    names
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn pci_addresses_are_spelt_as_in_sysfs() {
        assert_eq!(sysfs_address("00000000:18:00.0"), "0000:18:00.0");
        assert_eq!(sysfs_address("00000009:0A:00.0"), "0009:0a:00.0");
        assert_eq!(sysfs_address("00010000:C1:00.0"), "10000:c1:00.0");
        assert_eq!(sysfs_address("odd"), "odd");
    }

    #[test]
    fn numa_nodes_are_numbers_or_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots { dev: "/".into(), proc: "/proc".into(), sys: dir.path().to_owned() };
        for (id, text) in [("0000:18:00.0", "1\n"), ("0000:19:00.0", "-1\n")] {
            let device = dir.path().join(PCI_DEVICES).join(id);
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("numa_node"), text).unwrap();
        }
        assert_eq!(roots.numa_node("0000:18:00.0"), Some(1));
        assert_eq!(roots.numa_node("0000:19:00.0"), None);
        assert_eq!(roots.numa_node("0000:1a:00.0"), None);
    }

    #[test]
    fn roots_are_the_drivers_own_only_where_it_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path());
        let system = Roots { dev: "/".into(), proc: "/proc".into(), sys: "/sys".into() };
        assert_eq!(paths.roots(), system);
        // A container's root has an empty proc and sys: they say nothing of this node.
        for folder in ["proc", "sys/bus/pci/devices"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        assert_eq!(paths.roots(), system);
        for folder in ["dev", "proc/driver/nvidia-caps", "sys/bus/pci/devices/0000:18:00.0"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let own =
            Roots { dev: dir.path().into(), proc: dir.path().join("proc"), sys: dir.path().join("sys") };
        assert_eq!(paths.roots(), own);
    }

    #[test]
    fn links_are_followed_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("usr/lib64")).unwrap();
        fs::create_dir_all(root.join("store")).unwrap();
        fs::write(root.join("store/libnvidia-ml.so.580.1"), "").unwrap();
        symlink("usr/lib64", root.join("lib64")).unwrap();
        symlink("/store/libnvidia-ml.so.580.1", root.join("usr/lib64/libnvidia-ml.so.1")).unwrap();
        symlink("../../../../store/libnvidia-ml.so.580.1", root.join("usr/lib64/up")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let target = root.join("store/libnvidia-ml.so.580.1");
        assert_eq!(resolve_in_root(root, Path::new("/lib64/libnvidia-ml.so.1")).unwrap(), target);
        assert_eq!(resolve_in_root(root, Path::new("lib64/up")).unwrap(), target);
        assert!(resolve_in_root(root, Path::new("/loop")).is_err());
        assert!(resolve_in_root(root, Path::new("/lib/libnvidia-ml.so.1")).is_err());
    }
}
