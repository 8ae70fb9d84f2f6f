//! Through `container-device-interface`: it reads and checks the file, and puts devices into a container's
//! OCI specification.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use container_device_interface::cache::new_cache;
use container_device_interface::spec::read_spec;
use container_device_interface::spec_dirs::with_spec_dirs;
use fake_nvml::{Description, Node};
use mig_device_plugin::cdi::{Cdi, CdiOptions};
use mig_device_plugin::nvml::{Paths, discover};
use mig_device_plugin::resource::cdi_name::{GPU, qualified};
use mig_device_plugin::resource::policy::Feature;
use serde_json::Value;
use tempfile::TempDir;

/// A fake node with everything that can be in a file: slices, a whole GPU, driver files, hooks, a socket, a channel.
struct Host {
    dir: TempDir,
    node: Node,
}

impl Host {
    fn written() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let description = Description::h100s(2).with_mig(0, &["1g.10gb", "2g.20gb"]);
        let version = description.driver_version.clone();
        let node = Node::create(dir.path().join("node"), &description).unwrap();
        let library = format!("usr/lib/x86_64-linux-gnu/libcuda.so.{version}");
        for file in [&*library, "run/nvidia-persistenced/socket", "dev/nvidia-caps-imex-channels/channel0"] {
            let file = node.root().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        // Any character device stands for another.
        symlink("/dev/null", node.root().join("dev/nvidia-fs0")).unwrap();
        let host = Self { dir, node };
        host.write();
        host
    }

    fn write(&self) {
        let options = CdiOptions {
            spec_dir: self.spec_dir(),
            host_driver_root: "/".into(),
            host_dev_root: "/".into(),
            hook: Some(PathBuf::from("/usr/bin/nvidia-ctk")),
            disabled_hooks: [].into(),
            without_sockets: false,
            imex_channels: [0].into(),
            features: [Feature::Gds].into(),
        };
        let paths = Paths::below(self.node.root());
        let inventory = discover(&paths).unwrap();
        assert!(Cdi::new(options, paths).update(&inventory).unwrap().written);
    }

    fn spec_dir(&self) -> PathBuf {
        self.dir.path().join("cdi")
    }

    /// The UUID of a slice of the first GPU, and its own nodes.
    fn slice(&self, index: usize) -> (String, [String; 3]) {
        let gpu = &self.node.gpus().unwrap()[0];
        let slice = &gpu.mig[index];
        let cap = |minor| format!("/dev/nvidia-caps/nvidia-cap{minor}");
        (slice.uuid.clone(), [format!("/dev/nvidia{}", gpu.minor), cap(slice.gi_minor), cap(slice.ci_minor)])
    }
}

/// What a container that asks for `names` is started with.
fn injected(folder: &Path, names: &[String]) -> Result<Value, String> {
    let cache = new_cache(vec![with_spec_dirs(&[folder.to_str().unwrap()])]);
    #[expect(clippy::default_trait_access, reason = "the type's crate is not one of ours")]
    let mut container = Default::default();
    let injected = cache.lock().unwrap().inject_devices(Some(&mut container), names.to_vec());
    injected.map_err(|error| error.to_string())?;
    Ok(serde_json::to_value(&container).unwrap())
}

fn strings(list: &Value, field: &str) -> Vec<String> {
    let text = |item: &Value| item[field].as_str().unwrap().to_owned();
    list.as_array().unwrap().iter().map(text).collect()
}

#[test]
fn every_file_is_valid() {
    let host = Host::written();
    for (file, devices) in [("gpu", 9), ("imex-channel", 1), ("gds", 1)] {
        let path = host.spec_dir().join(format!("k8s.device-plugin.nvidia.com-{file}.json"));
        let spec = read_spec(&path, 0).unwrap();
        assert_eq!(spec.get_vendor(), "k8s.device-plugin.nvidia.com");
        assert_eq!(spec.get_class(), file);
        assert_eq!(spec.get_devices().len(), devices);
    }
}

#[test]
fn a_slice_is_injected_though_no_node_of_it_is_on_this_machine() {
    let host = Host::written();
    let (uuid, own) = host.slice(1);
    for node in &own {
        fs::remove_file(host.node.root().join(node.trim_start_matches('/'))).unwrap();
    }
    let container = injected(&host.spec_dir(), &[qualified(GPU, &uuid)]).unwrap();
    let nodes = strings(&container["linux"]["devices"], "path");
    assert!(own.iter().all(|node| nodes.contains(node)), "{nodes:?}");
    assert_eq!(nodes.len(), 4 + own.len());
    let rules = container["linux"]["resources"]["devices"].as_array().unwrap();
    let ours = rules.iter().filter(|rule| rule["allow"] == true && rule["access"] == "rw");
    assert_eq!(ours.count(), 4 + own.len());
    let variables = container["process"]["env"].as_array().unwrap();
    assert!(variables.contains(&"NVIDIA_VISIBLE_DEVICES=void".into()));
    let mounts = strings(&container["mounts"], "destination");
    assert!(mounts.iter().any(|mount| mount.contains("libcuda.so")), "{mounts:?}");
    assert_eq!(strings(&container["hooks"]["createContainer"], "path").len(), 4);
}

#[test]
fn two_slices_of_a_gpu_add_up() {
    let host = Host::written();
    let container = injected(&host.spec_dir(), &[qualified(GPU, "0:0"), qualified(GPU, "0:1")]).unwrap();
    let nodes = strings(&container["linux"]["devices"], "path");
    assert_eq!(nodes.iter().filter(|node| *node == "/dev/nvidia0").count(), 1);
    assert_eq!(nodes.iter().filter(|node| node.contains("nvidia-caps/")).count(), 4);
}

#[test]
fn a_slice_that_has_gone_is_not_resolved() {
    let host = Host::written();
    let (uuid, _) = host.slice(1);
    host.node.update(|node| drop(node.gpu(0).layout.remove(1))).unwrap();
    host.write();
    let error = injected(&host.spec_dir(), &[qualified(GPU, &uuid)]).unwrap_err();
    assert_eq!(error, format!("unresolvable CDI devices k8s.device-plugin.nvidia.com/gpu={uuid}"));
}
