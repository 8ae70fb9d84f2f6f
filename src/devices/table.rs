//! The inventory for people.

use std::collections::BTreeMap;
use std::path::Path;

use super::drawing;
use super::state::{NodeState, PluginState};
use crate::health::caution;
use crate::inventory::{DeviceNode, Gpu, Inventory, MigDevice, MigMode, Problem};

/// How much of each MIG device to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Columns {
    /// What fits in 100 columns.
    Narrow,
    /// NUMA node and device nodes too.
    Wide,
}

pub(super) fn render(node: &NodeState, columns: Columns) -> String {
    let NodeState { inventory, plugin } = node;
    let mut lines = vec![headline(inventory)];
    if columns == Columns::Wide {
        let nodes = words(&inventory.control_nodes, |node| node.path.display().to_string());
        lines.push(format!("Control nodes: {}", if nodes.is_empty() { "none" } else { &nodes }));
    }
    if inventory.gpus.is_empty() {
        lines.push(String::new());
        lines.push("No GPU could be read.".to_owned());
    }
    for gpu in &inventory.gpus {
        lines.push(String::new());
        let unread = inventory
            .problems
            .iter()
            .any(|problem| problem.gpu == gpu.index && problem.mig_device.is_some() && problem.left_out);
        lines.extend(gpu_lines(gpu, plugin.as_ref(), unread, columns));
    }
    let problems = problems(inventory);
    if !problems.is_empty() {
        lines.push(String::new());
        lines.push("Problems".to_owned());
        lines.extend(problems);
    }
    if let Some(plugin) = plugin {
        lines.extend(of_plugin(inventory, plugin));
    }
    lines.join("\n") + "\n"
}

/// What holds for the node as a whole.
fn of_plugin(inventory: &Inventory, plugin: &PluginState) -> Vec<String> {
    let mut lines = vec![String::new(), format!("Health as the running plugin {} sees it", plugin.version)];
    if plugin.on_hold {
        lines.push(
            "  on hold: SIGUSR1 was sent, and SIGUSR2 goes on; the devices are those of before".to_owned(),
        );
    }
    lines.extend(plugin.no_answer.as_ref().map(|what| format!("  {what}")));
    // Most often all GPUs have the same reason.
    let mut unheard = BTreeMap::<&str, Vec<String>>::new();
    for (gpu, why) in plugin.gpus.iter().filter_map(|gpu| Some((gpu, gpu.not_watched.as_deref()?))) {
        let known = inventory.gpus.iter().find(|known| known.uuid == gpu.uuid);
        unheard.entry(why).or_default().extend(known.map(|known| known.index.to_string()));
    }
    let unheard = unheard.iter().map(|(why, gpus)| (gpus.join(", "), why));
    lines.extend(unheard.map(|(gpus, why)| format!("  no errors of GPU {gpus} are heard: {why}")));
    lines.extend(
        plugin.holders_unknown.as_ref().map(|why| format!("  which pods hold devices is not known: {why}")),
    );
    lines
}

fn headline(inventory: &Inventory) -> String {
    let cuda = inventory.cuda_version.as_ref().map(|cuda| format!(", CUDA {cuda}")).unwrap_or_default();
    format!("Driver {}{cuda}, {}", inventory.driver_version, inventory.library.display())
}

fn gpu_lines(gpu: &Gpu, plugin: Option<&PluginState>, unread: bool, columns: Columns) -> Vec<String> {
    let mut lines = vec![format!("GPU {}: {}, {}", gpu.index, gpu.name, mode(gpu.mig_mode)), facts(gpu)];
    if let Some(health) = plugin.and_then(|plugin| plugin.health(&gpu.uuid)) {
        let holders = plugin.map(|plugin| holders(plugin, &gpu.uuid)).filter(|holders| holders != "-");
        let held = holders.map(|holders| format!(", held by {holders}")).unwrap_or_default();
        lines.push(format!("  Health: {health}{held}"));
    }
    lines.extend(caution(gpu).map(|caution| format!("  Note: {caution}")));
    if !gpu.mig_devices.is_empty() {
        lines.push(String::new());
        lines.extend(device_table(gpu, plugin, columns));
    } else if gpu.mig_enabled() {
        let known = if gpu.hidden.is_empty() { "no MIG devices" } else { "no MIG devices that NVML lists" };
        lines.push(format!("  {known}"));
    }
    let drawing = drawing::lines(gpu, unread);
    if !drawing.is_empty() {
        lines.push(String::new());
        lines.extend(drawing);
    }
    for gi in &gpu.empty_gpu_instances {
        lines.push(format!("  GPU instance {gi} has no compute instance: nothing can run on it"));
    }
    lines
}

fn mode(mode: Option<MigMode>) -> &'static str {
    match mode {
        None => "no MIG",
        Some(MigMode { current: true, pending: true }) => "MIG on",
        Some(MigMode { current: true, pending: false }) => "MIG on, off after the next reset",
        Some(MigMode { current: false, pending: true }) => "MIG off, on after the next reset",
        Some(MigMode { current: false, pending: false }) => "MIG off",
    }
}

fn facts(gpu: &Gpu) -> String {
    let mut facts = vec![gpu.uuid.clone()];
    if !gpu.pci_bus_id.is_empty() {
        facts.push(format!("PCI {}", gpu.pci_bus_id));
    }
    facts.extend(gpu.numa_node.map(|node| format!("NUMA {node}")));
    facts.push(gpu.node.path.display().to_string());
    facts.extend(gpu.memory_mib.map(|memory| format!("{memory} MiB")));
    format!("  {}", facts.join("  "))
}

/// A column: its heading, whether it is a number, and what a MIG device has in it.
struct Column {
    heading: &'static str,
    right: bool,
    cells: Vec<String>,
}

fn device_table(gpu: &Gpu, plugin: Option<&PluginState>, columns: Columns) -> Vec<String> {
    let column = |heading, right, cell: &dyn Fn(&MigDevice) -> String| Column {
        heading,
        right,
        cells: gpu.mig_devices.iter().map(cell).collect(),
    };
    let mut table = vec![
        column("INDEX", false, &|device| format!("{}:{}", gpu.index, device.index)),
        column("PROFILE", false, &|device| device.profile.to_string()),
        column("GI", true, &|device| device.gpu_instance.to_string()),
        column("CI", true, &|device| device.compute_instance.to_string()),
        column("PLACEMENT", false, &|device| {
            device.placement.map_or_else(|| "?".to_owned(), |place| place.to_string())
        }),
        column("MiB", true, &|device| device.memory_mib.to_string()),
        column("SMs", true, &|device| device.sm_count.to_string()),
        column("UUID", false, &|device| device.uuid.clone()),
    ];
    if columns == Columns::Wide {
        let numa = gpu.numa_node.map_or_else(|| "-".to_owned(), |node| node.to_string());
        table.push(column("NUMA", true, &|_| numa.clone()));
        table.push(column("NODES", false, &|device| nodes(gpu, device)));
        table.extend(plugin.map(|plugin| column("HELD BY", false, &|device| holders(plugin, &device.uuid))));
    }
    let health = |plugin: &PluginState, device: &MigDevice| {
        plugin.health(&device.uuid).unwrap_or_else(|| "not offered".to_owned())
    };
    table.extend(plugin.map(|plugin| column("HEALTH", false, &|device| health(plugin, device))));
    align(&table, gpu.mig_devices.len())
}

/// The containers that hold it: `default/training`, or `-`.
fn holders(plugin: &PluginState, uuid: &str) -> String {
    let all = plugin.devices(uuid).flat_map(|(_, device)| &device.held_by);
    let names = words(&all.collect::<Vec<_>>(), |holder| format!("{}/{}", holder.namespace, holder.pod));
    if names.is_empty() { "-".to_owned() } else { names }
}

/// The device nodes of a MIG device: `/dev/nvidia0, nvidia-cap66, nvidia-cap67 (missing)`.
fn nodes(gpu: &Gpu, device: &MigDevice) -> String {
    let capability = |node: &Option<DeviceNode>| {
        node.as_ref().map_or_else(|| "?".to_owned(), |node| marked(node, file_name(&node.path)))
    };
    let parent = marked(&gpu.node, gpu.node.path.display().to_string());
    [parent, capability(&device.gpu_instance_node), capability(&device.compute_instance_node)].join(", ")
}

fn marked(node: &DeviceNode, name: String) -> String {
    if node.exists { name } else { name + " (missing)" }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Columns two apart, each as wide as its widest cell.
fn align(table: &[Column], rows: usize) -> Vec<String> {
    let widths: Vec<usize> = table
        .iter()
        .map(|column| {
            column.cells.iter().map(String::len).chain([column.heading.len()]).max().unwrap_or_default()
        })
        .collect();
    let line = |cell: &dyn Fn(&Column) -> String| {
        let cells: Vec<String> = table
            .iter()
            .zip(&widths)
            .map(|(column, width)| {
                let text = cell(column);
                if column.right { format!("{text:>width$}") } else { format!("{text:<width$}") }
            })
            .collect();
        format!("  {}", cells.join("  ").trim_end())
    };
    let heading = line(&|column| column.heading.to_owned());
    let body = (0..rows).map(|row| line(&|column| column.cells.get(row).cloned().unwrap_or_default()));
    std::iter::once(heading).chain(body).collect()
}

/// Everything that is not as it should be: what could not be read, and nodes that are not there.
fn problems(inventory: &Inventory) -> Vec<String> {
    let mut lines: Vec<String> = inventory.problems.iter().map(unread).collect();
    for gpu in &inventory.gpus {
        let subject = format!("GPU {}", gpu.index);
        lines.extend(gpu.problem.as_ref().map(|reason| format!("  {subject}, unusable: {reason}")));
        if !gpu.node.exists {
            lines.push(missing(&subject, &gpu.node));
        }
        for device in &gpu.mig_devices {
            let subject = format!("MIG device {}:{}", gpu.index, device.index);
            lines.extend(device.problem.as_ref().map(|reason| format!("  {subject}, unusable: {reason}")));
            let nodes = [&device.gpu_instance_node, &device.compute_instance_node];
            let absent = nodes.into_iter().flatten().filter(|node| !node.exists);
            lines.extend(absent.map(|node| missing(&subject, node)));
        }
    }
    lines
}

fn unread(problem: &Problem) -> String {
    let effect = if problem.left_out { "left out" } else { "incomplete" };
    format!("  {}, {effect}: {}", problem.subject(), problem.reason)
}

fn missing(subject: &str, node: &DeviceNode) -> String {
    format!("  {subject}: {} does not exist", node.path.display())
}

fn words<T>(items: &[T], word: impl Fn(&T) -> String) -> String {
    items.iter().map(word).collect::<Vec<_>>().join(", ")
}
