//! The room as a whole: on a folder that stands for a node, and against a recording.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;
use crate::fixtures::{gpu, mig_gpu, node, present};

mod recording;

pub(super) const VERSION: &str = "570.124.06";

pub(super) fn options() -> CdiOptions {
    CdiOptions {
        spec_dir: "/var/run/cdi".into(),
        host_driver_root: "/run/nvidia/driver".into(),
        host_dev_root: "/run/nvidia/driver".into(),
        hook: None,
        disabled_hooks: BTreeSet::new(),
        without_sockets: false,
        imex_channels: BTreeSet::new(),
        features: BTreeSet::new(),
    }
}

/// Those of the recordings.
pub(super) fn majors() -> Majors {
    Majors { gpu: Some(195), uvm: Some(511), caps: Some(236), imex: Some(234) }
}

/// A folder that stands for a node's driver root, with a folder for specifications beside it.
pub(super) struct Host {
    dir: TempDir,
}

impl Host {
    pub(super) fn new() -> Self {
        let host = Self { dir: tempfile::tempdir().unwrap() };
        host.file("proc/devices", "195 nvidia\n511 nvidia-uvm\n236 nvidia-caps\n");
        for library in ["libcuda", "libnvidia-ml"] {
            host.file(&format!("usr/lib/x86_64-linux-gnu/{library}.so.{VERSION}"), "");
        }
        host.file("usr/bin/nvidia-smi", "");
        fs::set_permissions(host.root().join("usr/bin/nvidia-smi"), fs::Permissions::from_mode(0o755))
            .unwrap();
        fs::create_dir(host.root().join("dev")).unwrap();
        host
    }

    pub(super) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub(super) fn file(&self, path: &str, text: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(super) fn spec_dir(&self) -> PathBuf {
        self.dir.path().join("cdi")
    }

    pub(super) fn options(&self) -> CdiOptions {
        CdiOptions { spec_dir: self.spec_dir(), hook: Some("/opt/nvidia-cdi-hook".into()), ..options() }
    }

    pub(super) fn cdi(&self, options: CdiOptions) -> Cdi {
        Cdi::new(options, Paths::below(self.root()))
    }

    pub(super) fn spec(&self) -> spec::Spec {
        let text = fs::read(self.spec_dir().join("k8s.device-plugin.nvidia.com-gpu.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }
}

/// A node with these GPUs, the driver of [`Host`], and all control nodes.
pub(super) fn inventory(gpus: impl IntoIterator<Item = crate::inventory::Gpu>) -> Inventory {
    Inventory {
        driver_version: VERSION.to_owned(),
        control_nodes: crate::inventory::CONTROL_NODES.map(present).into(),
        ..node(gpus)
    }
}

#[test]
fn the_file_follows_the_slices() {
    let host = Host::new();
    let mut cdi = host.cdi(host.options());
    let seven = inventory([mig_gpu(0, &["1g.10gb"; 7])]);
    let three = inventory([mig_gpu(0, &["2g.20gb"; 3])]);
    let written = CdiUpdate { written: true, ..CdiUpdate::default() };
    assert_eq!(cdi.update(&seven).unwrap(), written);
    assert_eq!(cdi.update(&seven).unwrap(), CdiUpdate::default());
    assert_eq!(host.spec().devices.len(), 1 + 2 + 2 * 7);
    assert_eq!(cdi.update(&three).unwrap(), written);
    assert_eq!(host.spec().devices.len(), 1 + 2 + 2 * 3);
    assert_eq!(host.cdi(host.options()).update(&three).unwrap(), CdiUpdate::default());
}

#[test]
fn a_node_without_devices_keeps_what_it_had() {
    let host = Host::new();
    let mut cdi = host.cdi(host.options());
    assert_eq!(cdi.update(&inventory([])).unwrap(), CdiUpdate::default());
    assert!(!host.spec_dir().exists());
    cdi.update(&inventory([gpu(0)])).unwrap();
    assert_eq!(cdi.update(&inventory([])).unwrap(), CdiUpdate::default());
    assert_eq!(host.spec().devices.len(), 3);
}

#[test]
fn the_drivers_files_are_looked_for_again_when_a_folder_changes() {
    let host = Host::new();
    let mut cdi = host.cdi(host.options());
    let inventory = inventory([gpu(0)]);
    cdi.update(&inventory).unwrap();
    let before = host.spec().container_edits.mounts.len();
    host.file("run/nvidia-persistenced/socket", "");
    assert!(cdi.update(&inventory).unwrap().written);
    assert_eq!(host.spec().container_edits.mounts.len(), before + 1);
    let mut without = host.cdi(CdiOptions { without_sockets: true, ..host.options() });
    assert!(without.update(&inventory).unwrap().written);
    assert_eq!(host.spec().container_edits.mounts.len(), before);
}

#[test]
fn a_driver_of_another_version_brings_its_own_libraries_or_none() {
    let host = Host::new();
    let mut cdi = host.cdi(host.options());
    let mut inventory = inventory([gpu(0)]);
    assert!(!cdi.update(&inventory).unwrap().without_libraries);
    inventory.driver_version = "580.1".to_owned();
    assert!(cdi.update(&inventory).unwrap().without_libraries);
    host.file("usr/lib64/libcuda.so.580.1", "");
    assert!(!cdi.update(&inventory).unwrap().without_libraries);
    let mounts = host.spec().container_edits.mounts;
    assert!(mounts.iter().any(|mount| mount.container_path == Path::new("/usr/lib64/libcuda.so.580.1")));
}

#[test]
fn a_missing_hook_program_is_said_unless_nobody_wants_one() {
    let host = Host::new();
    let without = CdiOptions { hook: None, ..host.options() };
    assert!(host.cdi(without.clone()).update(&inventory([gpu(0)])).unwrap().hook_missing.is_some());
    let unwanted = CdiOptions { disabled_hooks: ["all".to_owned()].into(), ..without };
    assert_eq!(host.cdi(unwanted).update(&inventory([gpu(0)])).unwrap().hook_missing, None);
}

#[test]
fn imex_channels_have_a_file_of_their_own() {
    let host = Host::new();
    host.file("dev/nvidia-caps-imex-channels/channel0", "");
    let wanted = CdiOptions { imex_channels: [0, 1].into(), ..host.options() };
    let update = host.cdi(wanted).update(&inventory([gpu(0)])).unwrap();
    let missing: Vec<_> = update.incomplete.iter().map(|incomplete| incomplete.id.as_str()).collect();
    assert_eq!(missing, ["channel1"]);
    let file = host.spec_dir().join("k8s.device-plugin.nvidia.com-imex-channel.json");
    let spec: spec::Spec = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    assert_eq!(spec.kind, cdi_name::kind(cdi_name::IMEX_CHANNEL));
    assert_eq!(spec.devices[0].name, "0");
}

/// Any character device stands for another: it is `/dev/null`, 1:3.
fn node_on(host: &Host, path: &str) {
    let path = host.root().join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/null", path).unwrap();
}

#[test]
fn drivers_beside_the_gpus_have_files_of_their_own() {
    let host = Host::new();
    let wanted = CdiOptions { features: Feature::ALL.into(), ..host.options() };
    let mut cdi = host.cdi(wanted);
    host.file("dev/nvidia-fs-no-node", "");
    host.file("etc/cufile.json", "{}");
    let update = cdi.update(&inventory([gpu(0)])).unwrap();
    assert_eq!(update.absent, Feature::ALL);
    let file = |class: &str| host.spec_dir().join(format!("k8s.device-plugin.nvidia.com-{class}.json"));
    assert!(!file("gds").exists());
    for node in
        ["gdrdrv", "nvidia-fs1", "nvidia-fs0", "infiniband/uverbs0", "infiniband/rdma_cm", "infiniband/umad0"]
    {
        node_on(&host, &format!("dev/{node}"));
    }
    let update = cdi.update(&inventory([gpu(0)])).unwrap();
    assert!(update.absent.is_empty() && update.written);
    let edits = |class: &str| {
        let spec: spec::Spec = serde_json::from_slice(&fs::read(file(class)).unwrap()).unwrap();
        assert_eq!(spec.kind, format!("k8s.device-plugin.nvidia.com/{class}"));
        let [all] = &spec.devices[..] else { panic!("{spec:?}") };
        assert_eq!(all.name, "all");
        let nodes = all.container_edits.device_nodes.iter();
        assert!(
            nodes.clone().all(|node| node.major.zip(node.minor) == Some((1, 3)) && node.permissions == "rw")
        );
        let nodes: Vec<_> = nodes.map(|node| node.path.display().to_string()).collect();
        let mounts = all.container_edits.mounts.iter().map(|mount| mount.host_path.display().to_string());
        (nodes, mounts.collect::<Vec<_>>())
    };
    let nothing: Vec<String> = Vec::new();
    assert_eq!(edits("gdrcopy"), (vec!["/dev/gdrdrv".to_owned()], nothing.clone()));
    let gds = vec!["/dev/nvidia-fs0".to_owned(), "/dev/nvidia-fs1".to_owned()];
    assert_eq!(edits("gds"), (gds, vec!["/run/nvidia/driver/etc/cufile.json".to_owned()]));
    let mofed = vec!["/dev/infiniband/rdma_cm".to_owned(), "/dev/infiniband/uverbs0".to_owned()];
    assert_eq!(edits("mofed"), (mofed, nothing));
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let host = Host::new();
    fs::write(host.spec_dir(), "").unwrap();
    let error = host.cdi(host.options()).update(&inventory([gpu(0)])).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot make the folder {}", host.spec_dir().display()));
}
