//! Drivers beside the GPU's: a specification each, with the one device `all`, as NVIDIA's plugin writes them.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::CdiOptions;
use super::build::{FILE_MODE, only_nodes, spec};
use super::driver_files::File;
use super::hooks::{FILE_OPTIONS, mount};
use super::spec::{ContainerEdits, Device, DeviceNode, Mount, Spec};
use crate::inventory::below;
use crate::nvml::Paths;
use crate::resource::cdi_name::ALL;
use crate::resource::policy::Feature;

/// The files that GPUDirect Storage reads besides its nodes: which file systems there are, and its own settings.
const GDS_FILES: [&str; 2] = ["etc/cufile.json", "run/udev"];

/// What a container gets of a driver; `None` where none of its device nodes is here.
pub(super) fn describe(feature: Feature, paths: &Paths, options: &CdiOptions) -> Option<Spec> {
    let dev_root = paths.dev_root();
    let (folder, is_its) = nodes_of(feature);
    let mut names: Vec<String> = fs::read_dir(below(&dev_root, Path::new(folder)))
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| is_its(name))
        .collect();
    names.sort_unstable();
    let nodes: Vec<_> =
        names.iter().filter_map(|name| node(Path::new(folder).join(name), &dev_root, options)).collect();
    if nodes.is_empty() {
        return None;
    }
    let mut edits = only_nodes(nodes);
    if feature == Feature::Gds {
        edits.mounts = GDS_FILES.iter().filter_map(|file| file_below_root(file, paths, options)).collect();
    }
    let device = Device { name: ALL.to_owned(), container_edits: edits };
    spec(feature.word(), vec![device], ContainerEdits::default())
}

/// The folder with a driver's nodes, and which of those in it are its.
fn nodes_of(feature: Feature) -> (&'static str, fn(&str) -> bool) {
    match feature {
        Feature::Gdrcopy => ("/dev", |name| name == "gdrdrv"),
        Feature::Gds => ("/dev", |name| name.starts_with("nvidia-fs")),
        Feature::Mofed => ("/dev/infiniband", |name| name.starts_with("uverbs") || name == "rdma_cm"),
    }
}

/// Its numbers are those that it has here: no file says which they are.
fn node(path: PathBuf, dev_root: &Path, options: &CdiOptions) -> Option<DeviceNode> {
    let found = fs::metadata(below(dev_root, &path)).ok()?;
    let number = found.rdev();
    found.file_type().is_char_device().then(|| DeviceNode {
        host_path: below(&options.host_dev_root, &path),
        path,
        device_type: Some('c'),
        major: Some(rustix::fs::major(number)),
        minor: Some(rustix::fs::minor(number)),
        file_mode: Some(FILE_MODE),
        permissions: "rw".to_owned(),
    })
}

fn file_below_root(file: &str, paths: &Paths, options: &CdiOptions) -> Option<Mount> {
    let file = Path::new(file);
    fs::metadata(paths.driver_root.join(file)).ok()?;
    let file = File { host: options.host_driver_root.join(file), container: Path::new("/").join(file) };
    Some(mount(&file, &FILE_OPTIONS))
}
