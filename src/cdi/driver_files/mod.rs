//! The driver's files below the driver root, as they go into a container.
//!
//! They are recognised by the driver's version at the end of their names, so a library that a later driver
//! brings is found too. Their place in a container is the one that they have below the driver root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

mod hook;
mod root;

use hook::HOOK_FOLDERS;
use root::Root;

/// Folders of libraries, the likelier first. Folders of one package manager after the other, since the root
/// can be that of the host, of a driver container, or of a folder that only has the driver in it.
const LIBRARY_FOLDERS: [&str; 18] = [
    "usr/lib64",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/nvidia/current",
    "usr/lib/aarch64-linux-gnu/nvidia/current",
    "lib64",
    "lib/x86_64-linux-gnu",
    "lib/aarch64-linux-gnu",
    "usr/lib",
    "usr/lib/nvidia",
    "usr/lib64-nvidia",
    "usr/local/glibc/usr/lib",
    "usr/local/nvidia/lib64",
    "home/kubernetes/bin/nvidia/lib64",
    "opt/nvidia/lib64",
    "run/opengl-driver/lib",
    "lib",
    "",
];

/// Folders of programs.
const TOOL_FOLDERS: [&str; 10] = [
    "usr/bin",
    "usr/sbin",
    "usr/local/bin",
    "bin",
    "sbin",
    "usr/local/nvidia/bin",
    "home/kubernetes/bin/nvidia/bin",
    "opt/nvidia/bin",
    "opt/bin",
    "run/current-system/sw/bin",
];

/// The driver's programs.
const TOOLS: [&str; 7] = [
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
    "nvidia-imex",
    "nvidia-imex-ctl",
];

const FIRMWARE_FOLDERS: [&str; 3] = ["lib/firmware/updates", "lib/firmware", "usr/lib/firmware"];

/// A daemon's socket lies in a folder of its own, which comes and goes with it.
const SOCKET_FOLDERS: [&str; 4] = [
    "run/nvidia-persistenced",
    "var/run/nvidia-persistenced",
    "run/nvidia-fabricmanager",
    "var/run/nvidia-fabricmanager",
];

/// Below `run` or `var/run`.
const SOCKETS: [&str; 2] = ["nvidia-persistenced/socket", "nvidia-fabricmanager/socket"];

const CONFIGS: [&str; 2] = ["etc/OpenCL/vendors/nvidia.icd", "usr/share/OpenCL/vendors/nvidia.icd"];

/// Legacy compiler library, whose version is not the driver's.
const NVVM70: &str = "libnvidia-nvvm70.so.";

/// Names by which programs load a library, whether or not this node has links for them: a driver that was
/// unpacked rather than installed has none, and `ldconfig` does not make those that end in `.so`.
const KNOWN_LINKS: [(&str, &str, &str); 10] = [
    ("libcuda.so.", "", "libcuda.so.1"),
    ("libcuda.so.", "libcuda.so.1", "libcuda.so"),
    ("libnvidia-ml.so.", "", "libnvidia-ml.so.1"),
    ("libnvidia-ptxjitcompiler.so.", "", "libnvidia-ptxjitcompiler.so.1"),
    ("libnvidia-nvvm.so.", "", "libnvidia-nvvm.so.4"),
    ("libcudadebugger.so.", "", "libcudadebugger.so.1"),
    ("libnvidia-opencl.so.", "", "libnvidia-opencl.so.1"),
    ("libnvidia-cfg.so.", "", "libnvidia-cfg.so.1"),
    ("libnvidia-opticalflow.so.", "", "libnvidia-opticalflow.so.1"),
    ("libnvidia-opticalflow.so.", "libnvidia-opticalflow.so.1", "libnvidia-opticalflow.so"),
];

/// What was found, in a fixed order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DriverFiles {
    /// `lib….so.<driver version>`.
    pub libraries: Vec<File>,
    /// Other names for them.
    pub links: Vec<Link>,
    /// Programs.
    pub tools: Vec<File>,
    /// `gsp….bin`.
    pub firmware: Vec<File>,
    /// Settings that libraries read.
    pub configs: Vec<File>,
    /// Sockets of the driver's daemons.
    pub sockets: Vec<File>,
    /// The hook program, on the host.
    pub hook: Option<PathBuf>,
    /// Why there is none, or why containers will not start with the one that was named. A clause for people.
    pub hook_missing: Option<String>,
}

/// A file of the host and its place in a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct File {
    /// On the host; no link.
    pub host: PathBuf,
    /// In a container.
    pub container: PathBuf,
}

/// A link to a library.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// What the link says.
    pub target: String,
    /// The link, in a container.
    pub path: PathBuf,
    /// The file it leads to, on the host.
    pub host: PathBuf,
}

/// Where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    /// The driver root as this process sees it.
    pub driver_root: PathBuf,
    /// The same on the host.
    pub host_driver_root: PathBuf,
    /// The driver's version.
    pub version: String,
    /// The NVML that was loaded. The driver's other libraries lie beside it.
    pub library: PathBuf,
    /// The hook program on the host, where it is named. It is taken even where it cannot be seen, since it need not lie
    /// below the driver root and then cannot be looked for.
    pub hook: Option<PathBuf>,
}

/// The folders that were looked into and when they were last changed. As long as this is the same, so is
/// what is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint(Vec<Option<SystemTime>>);

impl Search {
    /// A look at the folders alone: some forty calls.
    pub fn fingerprint(&self) -> Fingerprint {
        let firmware =
            FIRMWARE_FOLDERS.iter().map(|folder| Path::new(folder).join("nvidia").join(&self.version));
        let sockets = SOCKET_FOLDERS.iter().map(PathBuf::from);
        let fixed = ["etc/OpenCL/vendors", "usr/share/OpenCL/vendors"].map(PathBuf::from);
        let tools = TOOL_FOLDERS.iter().chain(&HOOK_FOLDERS).map(PathBuf::from);
        let named =
            self.hook.iter().filter_map(|hook| hook.parent()?.strip_prefix("/").ok().map(Path::to_owned));
        let all = self.library_folders().into_iter().chain(tools).chain(named);
        let all = all.chain(firmware).chain(sockets).chain(fixed);
        let changed = |folder: PathBuf| fs::metadata(self.driver_root.join(folder)).ok()?.modified().ok();
        Fingerprint(all.map(changed).collect())
    }

    /// Reads the folders.
    pub fn find(&self) -> DriverFiles {
        let root = Root { here: &self.driver_root, host: &self.host_driver_root };
        let libraries = self.libraries(&root);
        let (hook, hook_missing) = self.hook(&root);
        DriverFiles {
            links: self.links(&root, &libraries),
            libraries: libraries.into_iter().map(|library| library.file).collect(),
            tools: TOOLS.iter().filter_map(|tool| first(&root, &TOOL_FOLDERS, tool, is_program)).collect(),
            firmware: self.firmware(&root),
            configs: CONFIGS
                .iter()
                .filter_map(|path| first(&root, &[""], path, Path::is_file))
                .take(1)
                .collect(),
            sockets: SOCKETS
                .iter()
                .filter_map(|path| first(&root, &["run", "var/run"], path, is_socket))
                .collect(),
            hook,
            hook_missing,
        }
    }

    /// NVML's own folder comes first: what lies there is of the right architecture.
    fn library_folders(&self) -> Vec<PathBuf> {
        let own = self.library.parent().and_then(|folder| folder.strip_prefix(&self.driver_root).ok());
        own.into_iter().map(Path::to_owned).chain(LIBRARY_FOLDERS.iter().map(PathBuf::from)).collect()
    }

    fn libraries(&self, root: &Root<'_>) -> Vec<Library> {
        let suffix = format!(".so.{}", self.version);
        let is_library =
            |name: &str| name.starts_with("lib") && (name.ends_with(&suffix) || name.starts_with(NVVM70));
        let mut found: BTreeMap<String, Library> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for folder in self.library_folders() {
            let Some(folder) = root.folder(&folder).filter(|folder| seen.insert(folder.clone())) else {
                continue;
            };
            for name in root.names(&folder).into_iter().filter(|name| is_library(name)) {
                let Some(file) = root.file(&folder.join(&name)).filter(|file| file.here.is_file()) else {
                    continue;
                };
                // The first folder wins: a second copy is of another architecture, or the same file.
                found.entry(name).or_insert_with(|| Library {
                    folder: folder.clone(),
                    here: file.here,
                    file: File { host: file.host, container: file.container },
                });
            }
        }
        found.into_values().collect()
    }

    /// The links that the node has, and those that programs need where it has none.
    fn links(&self, root: &Root<'_>, libraries: &[Library]) -> Vec<Link> {
        let mut found: BTreeMap<PathBuf, Link> = BTreeMap::new();
        // Also of folders that have nothing else of the driver: Debian keeps its files in one, and its links to
        // them in another.
        let folders: BTreeSet<PathBuf> =
            self.library_folders().iter().filter_map(|folder| root.folder(folder)).collect();
        for folder in &folders {
            let names = root.names(folder).into_iter();
            for name in names.filter(|name| name.starts_with("lib") && name.contains(".so")) {
                let path = folder.join(&name);
                let Some(target) = root.link(&path) else { continue };
                let Some(file) = root.file(&path) else { continue };
                let Some(library) = libraries.iter().find(|library| library.here == file.here) else {
                    continue;
                };
                let path = Path::new("/").join(&path);
                if path == library.file.container {
                    continue;
                }
                // A link by way of another folder would lead nowhere in the container.
                let beside = library.folder == *folder;
                let target = Some(target).filter(|target| beside && !target.contains('/'));
                let target = target.unwrap_or_else(|| library.file.container.display().to_string());
                found.insert(path.clone(), Link { target, path, host: library.file.host.clone() });
            }
        }
        for library in libraries {
            let name = library.file.container.file_name().map(|name| name.to_string_lossy().into_owned());
            let Some(name) = name else { continue };
            for (_, target, link) in KNOWN_LINKS.iter().filter(|(stem, _, _)| name.starts_with(stem)) {
                let path = Path::new("/").join(&library.folder).join(link);
                let target = if target.is_empty() { name.clone() } else { (*target).to_owned() };
                let link = Link { target, path: path.clone(), host: library.file.host.clone() };
                found.entry(path).or_insert(link);
            }
        }
        found.into_values().collect()
    }

    fn firmware(&self, root: &Root<'_>) -> Vec<File> {
        let folders =
            FIRMWARE_FOLDERS.iter().map(|folder| Path::new(folder).join("nvidia").join(&self.version));
        let mut found: BTreeMap<String, File> = BTreeMap::new();
        for folder in folders {
            for name in root.names(&folder) {
                let wanted =
                    name.starts_with("gsp") && Path::new(&name).extension().is_some_and(|e| e == "bin");
                let Some(file) =
                    Some(folder.join(&name)).filter(|_| wanted).and_then(|path| root.file(&path))
                else {
                    continue;
                };
                // Where the kernel looks for it, also where `/lib` is a link.
                let container = Path::new("/lib/firmware/nvidia").join(&self.version).join(&name);
                found.entry(name).or_insert(File { host: file.host, container });
            }
        }
        found.into_values().collect()
    }
}

/// A library while it is looked for.
struct Library {
    /// Below the root, without links.
    folder: PathBuf,
    /// As this process sees it.
    here: PathBuf,
    file: File,
}

/// `name` in the first of the folders that has one that will do.
fn first(root: &Root<'_>, folders: &[&str], name: &str, will_do: impl Fn(&Path) -> bool) -> Option<File> {
    let found = folders
        .iter()
        .find_map(|folder| root.file(&Path::new(folder).join(name)).filter(|file| will_do(&file.here)))?;
    Some(File { host: found.host, container: found.container })
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// Whatever stands there that is no folder: tests have no daemons.
fn is_socket(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| !file.is_dir())
}

#[cfg(test)]
mod tests;
