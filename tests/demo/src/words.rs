//! Node, resources and answers in words.

use std::collections::{BTreeMap, BTreeSet};

use fake_kubelet::{Capacity, Container};
use fake_nvml::{Description, GpuState};

use crate::screen::Screen;

/// The node of the story: all that can be seen at once in eight GPUs.
pub(crate) fn eight_h100s() -> Description {
    Description::h100s(8)
        .with_mig(0, &["1g.10gb"; 7])
        .with_mig(1, &["2g.20gb", "2g.20gb", "2g.20gb", "1g.10gb"])
        .with_mig(2, &["3g.40gb", "3g.40gb"])
        .with_mig(3, &["4g.40gb", "2g.20gb", "1g.10gb"])
        .with_mig(4, &["7g.80gb"])
        .with_mig::<&str>(5, &[])
}

/// What GPU 4 of that node becomes.
pub(crate) const NEW_LAYOUT: [&str; 3] = ["3g.40gb", "2g.20gb", "1g.10gb"];

/// One line for each GPU, or for some in a row that look the same.
pub(crate) fn gpus(gpus: &[GpuState]) -> Vec<String> {
    let same = |a: &GpuState, b: &GpuState| (&a.name, layout(a)) == (&b.name, layout(b));
    let rows = gpus.chunk_by(same).filter_map(|row| {
        let (first, last) = (row.first()?, row.last()?);
        let indices = if row.len() == 1 {
            format!("GPU {}", first.index)
        } else {
            format!("GPU {}–{}", first.index, last.index)
        };
        Some(format!("{indices:<9} {:<24} {}", first.name, layout(first)))
    });
    rows.collect()
}

/// `3 × 2g.20gb, 1 × 1g.10gb`.
pub(crate) fn layout(gpu: &GpuState) -> String {
    if !gpu.mig_mode {
        return "MIG off: one whole GPU".to_owned();
    }
    if gpu.mig.is_empty() {
        return "MIG on, no devices".to_owned();
    }
    let of_a_kind = gpu.mig.chunk_by(|a, b| a.profile == b.profile);
    let parts = of_a_kind.filter_map(|row| Some(format!("{} × {}", row.len(), row.first()?.profile)));
    parts.collect::<Vec<_>>().join(", ")
}

/// What the plugin should offer of a node: its MIG devices and its whole GPUs.
pub(crate) fn offers(gpus: &[GpuState]) -> usize {
    gpus.iter().map(|gpu| if gpu.mig_mode { gpu.mig.len() } else { 1 }).sum()
}

/// The resources as a table; with what they were before, the changes are marked.
pub(crate) fn table(
    screen: Screen,
    now: &BTreeMap<String, Capacity>,
    before: Option<&BTreeMap<String, Capacity>>,
) -> Vec<String> {
    let names: BTreeSet<&String> = now.keys().chain(before.into_iter().flat_map(BTreeMap::keys)).collect();
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    let head = format!("{:<width$}  {:>11}  {:>8}", "resource", "allocatable", "capacity");
    let mut lines = vec![screen.faint(&head)];
    for name in names {
        let seen = now.get(name).copied().unwrap_or_default();
        let line = format!("{name:<width$}  {:>11}  {:>8}", seen.allocatable, seen.capacity);
        let was = before.map_or(seen, |before| before.get(name).copied().unwrap_or_default());
        lines.push(if was == seen {
            line
        } else {
            format!(
                "{}  {}",
                screen.strong(&line),
                screen.faint(&format!("was {} of {}", was.allocatable, was.capacity))
            )
        });
    }
    lines
}

/// Where a device ID lies on the node.
pub(crate) fn place(gpus: &[GpuState], id: &str) -> String {
    let of_gpu = |gpu: &GpuState| (gpu.uuid == id).then(|| format!("GPU {}, {}", gpu.index, gpu.name));
    let of_mig = |gpu: &GpuState| {
        let mig = gpu.mig.iter().find(|mig| mig.uuid == id)?;
        let (start, end) = (mig.placement.start, mig.placement.start + mig.placement.size - 1);
        Some(format!(
            "{} on GPU {}, GPU instance {}, memory slices {start}–{end}",
            mig.profile, gpu.index, mig.gi
        ))
    };
    gpus.iter().find_map(|gpu| of_gpu(gpu).or_else(|| of_mig(gpu))).unwrap_or_else(|| "unknown".to_owned())
}

/// The index of the GPU that a device ID lies on.
pub(crate) fn gpu_of(gpus: &[GpuState], id: &str) -> Option<u32> {
    let gpu = gpus.iter().find(|gpu| gpu.uuid == id || gpu.mig.iter().any(|mig| mig.uuid == id))?;
    Some(gpu.index)
}

/// An answer to `Allocate`, line by line.
pub(crate) fn answer(screen: Screen, container: &Container) -> Vec<String> {
    let mut parts: Vec<(&str, String)> = Vec::new();
    parts.extend(container.envs.iter().map(|(name, value)| ("environment", format!("{name}={value}"))));
    parts.extend(container.devices.iter().map(|device| {
        let inside = if device.container_path == device.host_path {
            String::new()
        } else {
            format!(" → {}", device.container_path)
        };
        ("device node", format!("{}{inside} {}", device.host_path, screen.faint(&device.permissions)))
    }));
    parts.extend(container.mounts.iter().map(|mount| {
        let mode = if mount.read_only { "ro" } else { "rw" };
        ("mount", format!("{} → {} {}", mount.host_path, mount.container_path, screen.faint(mode)))
    }));
    parts
        .extend(container.annotations.iter().map(|(name, value)| ("annotation", format!("{name}: {value}"))));
    parts.extend(container.cdi_devices.iter().map(|name| ("CDI device", name.clone())));
    parts.into_iter().map(|(kind, text)| format!("{} {text}", screen.faint(&format!("{kind:<12}")))).collect()
}
