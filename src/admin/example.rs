//! A node with everything on it that a page or a scrape can show, for tests and for the picture in the README.

use crate::devices::state::{
    Attribution, DeviceState, DriverState, GpuState, Holder, NodeState, PluginState, ReasonState,
    RecoveryRule, ResourceState, WithheldState,
};
use crate::fixtures::{gpu, mig_gpu, mixed, node};
use crate::inventory::{EventRight, Gpu, Inventory, MigMode, Placement, Trouble};
use crate::resource::Device;

/// Eight H100s: mixed layouts, a sick slice, a lost GPU, slices that pods hold, an empty GPU in MIG mode, a GPU with a
/// half-made instance, a plain GPU.
pub(super) fn rich() -> NodeState {
    let mut gpus = vec![
        placed(0, &[("3g.40gb", 0, 4), ("2g.20gb", 4, 2), ("1g.10gb", 6, 1), ("1g.10gb", 7, 1)]),
        placed(
            1,
            &[
                ("1g.10gb", 0, 1),
                ("1g.10gb", 1, 1),
                ("1g.10gb", 2, 1),
                ("1g.10gb", 3, 1),
                ("1g.10gb", 4, 1),
                ("1g.10gb", 5, 1),
                ("1g.10gb", 6, 1),
            ],
        ),
        placed(2, &[("3g.40gb", 0, 4), ("3g.40gb", 4, 4)]),
        placed(3, &[("2g.20gb", 0, 2), ("2g.20gb", 2, 2), ("3g.40gb", 4, 4)]),
        placed(4, &[("7g.80gb", 0, 8)]),
        placed(5, &[]),
        placed(6, &[("1c.3g.40gb", 4, 4), ("2c.3g.40gb", 4, 4)]),
        gpu(7),
    ];
    for gpu in &mut gpus {
        gpu.uuid = format!("GPU-5e1f5a3c-1d2b-4a6e-9c3f-{:012}", gpu.index);
        for device in &mut gpu.mig_devices {
            let (gi, ci) = (device.gpu_instance, device.compute_instance);
            device.uuid = format!("MIG-0b7c2d1e-6a5f-5b3c-8d9e-{:06}{gi:03}{ci:03}", gpu.index);
        }
    }
    gpus[3].problem = Some(Trouble::lost("nvmlDeviceGetHandleByIndex_v2: GPU_IS_LOST"));
    gpus[6].empty_gpu_instances = vec![2];
    let mut inventory = node(gpus);
    "580.95.05".clone_into(&mut inventory.driver_version);
    inventory.cuda_version = Some("13.0".to_owned());
    inventory.sees_instances = Some(true);
    inventory.event_right = Some(EventRight::Admin);
    let mut plugin = plugin(&inventory);
    let xid = "Xid 94 (contained memory error) at 2026-03-09T14:02:51Z";
    sicken(&mut plugin, "0:1", "xid", xid);
    hold(&mut plugin, "0:0", "ml-research", "train-llama-0");
    for (index, pod) in [("1:0", "notebook-anna"), ("1:1", "notebook-ben"), ("1:2", "notebook-chidi")] {
        hold(&mut plugin, index, "jupyter", pod);
    }
    hold(&mut plugin, "1:5", "jupyter", "notebook-with-a-name-that-is-far-too-long-to-fit");
    hold(&mut plugin, "2:0", "ml-research", "eval-suite-7f9c6d5b4-x2v9k");
    hold(&mut plugin, "3:2", "inference", "triton-56d8f7c9b-q4zrt");
    hold(&mut plugin, "4:0", "inference", "vllm-large-0");
    hold(&mut plugin, "6:1", "ci", "gpu-tests-4711");
    hold(&mut plugin, "7", "ml-research", "train-sdxl-worker-0");
    NodeState { inventory, plugin: Some(plugin) }
}

/// A GPU in MIG mode with these profiles in these places.
fn placed(index: u32, slices: &[(&str, u32, u32)]) -> Gpu {
    let profiles: Vec<_> = slices.iter().map(|(profile, _, _)| *profile).collect();
    let mut gpu = mig_gpu(index, &profiles);
    let mut before: Option<(Placement, u32, u32)> = None;
    for (device, (_, start, size)) in gpu.mig_devices.iter_mut().zip(slices) {
        let place = Placement { start: *start, size: *size };
        // What lies in the same place is in the same GPU instance.
        if let Some((same, gi, ci)) = before.filter(|(before, _, _)| *before == place) {
            device.gpu_instance = gi;
            device.compute_instance = ci + 1;
            before = Some((same, gi, ci + 1));
        } else {
            before = Some((place, device.gpu_instance, 0));
        }
        device.placement = Some(place);
    }
    gpu.mig_mode = Some(MigMode { current: true, pending: true });
    gpu
}

/// What a plugin with strategy mixed says of it.
pub(super) fn plugin(inventory: &Inventory) -> PluginState {
    let set = mixed(inventory);
    let resource = |(name, devices): (&crate::resource::ResourceName, &Vec<Device>)| ResourceState {
        name: name.to_string(),
        registered: true,
        not_registered: None,
        devices: devices.iter().map(device).collect(),
    };
    PluginState {
        version: "0.1.0".to_owned(),
        driver_root: "/driver-root".into(),
        driver: DriverState::Present,
        no_driver: None,
        no_answer: None,
        on_hold: false,
        strategy: "mixed".to_owned(),
        event_attribution: Some(Attribution::Instance),
        gpus: inventory
            .gpus
            .iter()
            .map(|gpu| GpuState {
                uuid: gpu.uuid.clone(),
                recovery: RecoveryRule::RecoveryAction,
                not_watched: None,
            })
            .collect(),
        resources: set.resources.iter().map(resource).collect(),
        withheld: set
            .withheld
            .iter()
            .map(|one| WithheldState {
                index: one.index.clone(),
                uuid: one.id.to_string(),
                reason: one.reason.clone(),
            })
            .collect(),
        warnings: Vec::new(),
        holders_unknown: None,
    }
}

fn device(device: &Device) -> DeviceState {
    let reason = |reason: &crate::resource::Reason| ReasonState {
        word: reason.word().to_owned(),
        text: reason.to_string(),
    };
    DeviceState {
        id: device.id.to_string(),
        uuid: device.uuid.clone(),
        index: device.index(),
        profile: device.mig.as_ref().map(|mig| mig.profile.to_string()),
        healthy: device.is_healthy(),
        reasons: device.reasons.iter().map(reason).collect(),
        held_by: Vec::new(),
    }
}

fn find<'a>(plugin: &'a mut PluginState, index: &str) -> &'a mut DeviceState {
    let mut all = plugin.resources.iter_mut().flat_map(|resource| &mut resource.devices);
    all.find(|device| device.index == index).unwrap()
}

/// Something stands against this device.
pub(super) fn sicken(plugin: &mut PluginState, index: &str, word: &str, text: &str) {
    let device = find(plugin, index);
    device.healthy = false;
    device.reasons.push(ReasonState { word: word.to_owned(), text: text.to_owned() });
}

/// A pod holds this device.
pub(super) fn hold(plugin: &mut PluginState, index: &str, namespace: &str, pod: &str) {
    let holder =
        Holder { namespace: namespace.to_owned(), pod: pod.to_owned(), container: "main".to_owned() };
    find(plugin, index).held_by.push(holder);
}
