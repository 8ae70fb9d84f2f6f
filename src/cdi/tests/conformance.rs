//! Through `container-device-interface`: it reads and checks the file, and puts devices into a container's
//! OCI specification.

use std::path::PathBuf;

use container_device_interface::cache::new_cache;
use container_device_interface::spec::read_spec;
use container_device_interface::spec_dirs::with_spec_dirs;
use serde_json::Value;

use super::*;

/// A node with everything that can be in a file: slices, whole GPUs, driver files, hooks, a socket, a channel.
fn written() -> Host {
    let host = Host::new();
    host.file("run/nvidia-persistenced/socket", "");
    host.file("dev/nvidia-caps-imex-channels/channel0", "");
    let devices = "195 nvidia\n511 nvidia-uvm\n236 nvidia-caps\n234 nvidia-caps-imex-channels\n";
    host.file("proc/devices", devices);
    let hook = Some(PathBuf::from("/usr/bin/nvidia-ctk"));
    let options = CdiOptions { hook, imex_channels: [0].into(), ..host.options() };
    let gpus = [mig_gpu(0, &["1g.10gb", "2g.20gb"]), gpu(1)];
    assert!(host.cdi(options).update(&inventory(gpus)).unwrap().written);
    host
}

/// What a container that asks for `names` is started with.
fn injected(host: &Host, names: &[String]) -> Result<Value, String> {
    let folder = host.spec_dir();
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
    let host = written();
    for (file, devices) in [("gpu", 9), ("imex-channel", 1)] {
        let path = host.spec_dir().join(format!("k8s.device-plugin.nvidia.com-{file}.json"));
        let spec = read_spec(&path, 0).unwrap();
        assert_eq!(spec.get_vendor(), "k8s.device-plugin.nvidia.com");
        assert_eq!(spec.get_class(), file);
        assert_eq!(spec.get_devices().len(), devices);
    }
}

#[test]
fn a_slice_is_injected_though_no_node_of_it_is_on_this_machine() {
    let host = written();
    let container = injected(&host, &[qualified("MIG-0-8-0"), qualified_imex(0)]).unwrap();
    let nodes = strings(&container["linux"]["devices"], "path");
    let own = [
        "/dev/nvidia0",
        "/dev/nvidia-caps/nvidia-cap75",
        "/dev/nvidia-caps/nvidia-cap76",
        "/dev/nvidia-caps-imex-channels/channel0",
    ];
    assert!(own.iter().all(|node| nodes.iter().any(|found| found == node)), "{nodes:?}");
    assert_eq!(nodes.len(), 4 + own.len());
    let rules = container["linux"]["resources"]["devices"].as_array().unwrap();
    let ours = rules.iter().filter(|rule| rule["allow"] == true && rule["access"] == "rw");
    assert_eq!(ours.count(), 4 + own.len());
    let variables = container["process"]["env"].as_array().unwrap();
    assert!(variables.contains(&"NVIDIA_VISIBLE_DEVICES=void".into()));
    let mounts = strings(&container["mounts"], "destination");
    assert!(mounts.contains(&"/usr/bin/nvidia-smi".to_owned()));
    assert_eq!(strings(&container["hooks"]["createContainer"], "path").len(), 4);
}

#[test]
fn two_slices_of_a_gpu_add_up() {
    let host = written();
    let container = injected(&host, &[qualified("0:0"), qualified("0:1")]).unwrap();
    let nodes = strings(&container["linux"]["devices"], "path");
    assert_eq!(nodes.iter().filter(|node| *node == "/dev/nvidia0").count(), 1);
    assert_eq!(nodes.iter().filter(|node| node.contains("nvidia-caps/")).count(), 4);
}

#[test]
fn a_slice_that_has_gone_is_not_resolved() {
    let host = written();
    host.cdi(host.options()).update(&inventory([gpu(1)])).unwrap();
    let error = injected(&host, &[qualified("MIG-0-8-0")]).unwrap_err();
    assert_eq!(error, "unresolvable CDI devices k8s.device-plugin.nvidia.com/gpu=MIG-0-8-0");
}
