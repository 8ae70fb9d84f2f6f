//! What lies where on a GPU, and what there is to say of it: values in, values out.

use crate::devices::state::{DeviceState, Holder, PluginState, ReasonState};
use crate::inventory::{Gpu, MigDevice, Placement};

/// A row of blocks, from left to right.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Drawing {
    /// How many memory slices the row is wide; `None` where nothing has a place in it.
    pub(super) slices: Option<u32>,
    pub(super) blocks: Vec<Block>,
    /// What the blocks do not show.
    pub(super) notes: Vec<String>,
}

/// A stretch of the row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Block {
    /// Where it begins and how wide it is, of a row that is 1 wide.
    pub(super) start: f64,
    pub(super) width: f64,
    pub(super) state: State,
    /// What it is: a profile, or `whole GPU`.
    pub(super) name: String,
    /// Up to two lines more.
    pub(super) lines: Vec<String>,
    /// Everything, in sentences.
    pub(super) title: String,
}

/// How a block stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Offered, healthy, and nobody has it.
    Free,
    /// Offered and healthy; a pod has it.
    Held,
    /// Offered, and something stands against it.
    Sick,
    /// It exists, and is not offered.
    NotOffered,
    /// Nothing is there.
    Nothing,
}

impl State {
    /// What there is room for in the narrowest block.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Held => "held",
            Self::Sick => "sick",
            Self::NotOffered => "–",
            Self::Nothing => "",
        }
    }

    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Held => "held",
            Self::Sick => "sick",
            Self::NotOffered => "withheld",
            Self::Nothing => "nothing",
        }
    }
}

/// The drawing of `gpu`.
pub(super) fn drawing(gpu: &Gpu, plugin: &PluginState) -> Drawing {
    let whole = plugin.devices(&gpu.uuid).next().is_some();
    let mut notes: Vec<_> = gpu
        .empty_gpu_instances
        .iter()
        .map(|gi| format!("GPU instance {gi} has no compute instance: nothing can run on it."))
        .collect();
    if whole || !gpu.mig_enabled() {
        if gpu.mig_enabled() {
            notes.push("MIG is on, and the GPU is offered as a whole under this strategy.".to_owned());
        }
        let block = Told::of(plugin, &gpu.uuid, &gpu.index.to_string()).block("whole GPU", 0.0, 1.0);
        return Drawing { slices: None, blocks: vec![block], notes };
    }
    if gpu.mig_devices.is_empty() {
        let hidden = !gpu.instances_without_devices().is_empty();
        let name = if hidden { "no MIG device" } else { "MIG is on and nothing is in it" };
        return Drawing { slices: gpu.memory_slices, blocks: vec![nothing(name, 0.0, 1.0)], notes };
    }
    let placed: Option<Vec<_>> =
        gpu.mig_devices.iter().map(|device| Some((device.placement?, device))).collect();
    let row = placed.and_then(|mut placed| {
        placed.sort_by_key(|(place, device)| (*place, device.compute_instance));
        in_place(gpu, &placed, plugin)
    });
    if let Some((slices, blocks)) = row {
        return Drawing { slices: Some(slices), blocks, notes };
    }
    notes.push(
        "Where the instances lie is not known: they are drawn in the order of their numbers.".to_owned(),
    );
    Drawing { slices: None, blocks: side_by_side(gpu, plugin), notes }
}

/// Each GPU instance where it lies, with gaps between; `None` where they overlap.
fn in_place(
    gpu: &Gpu,
    placed: &[(Placement, &MigDevice)],
    plugin: &PluginState,
) -> Option<(u32, Vec<Block>)> {
    let end = placed.iter().map(|(place, _)| place.start.saturating_add(place.size)).max();
    let slices = gpu.memory_slices.max(end).filter(|slices| *slices > 0)?;
    let of_row = |number: u32| f64::from(number) / f64::from(slices);
    // A gap may be free, or belong to an instance that has no MIG device.
    let hidden: Vec<_> = gpu.instances_without_devices().iter().map(u32::to_string).collect();
    let gap = match hidden.as_slice() {
        [] => "unused".to_owned(),
        hidden => format!("unused, or GPU instance {}", hidden.join(", ")),
    };
    let mut blocks = Vec::new();
    let mut at = 0;
    for instance in placed.chunk_by(|(_, one), (_, next)| one.gpu_instance == next.gpu_instance) {
        let place = instance.first()?.0;
        if place.start < at {
            return None;
        }
        if place.start > at {
            blocks.push(nothing(&gap, of_row(at), of_row(place.start - at)));
        }
        blocks.extend(share(
            of_row(place.start),
            of_row(place.size),
            instance.iter().map(|(_, one)| *one),
            gpu,
            plugin,
        ));
        at = place.start.saturating_add(place.size);
    }
    if at < slices {
        blocks.push(nothing(&gap, of_row(at), of_row(slices - at)));
    }
    Some((slices, blocks))
}

fn side_by_side(gpu: &Gpu, plugin: &PluginState) -> Vec<Block> {
    share(0.0, 1.0, gpu.mig_devices.iter(), gpu, plugin)
}

/// The devices beside each other in this stretch, each as wide as its compute.
fn share<'a>(
    start: f64,
    width: f64,
    devices: impl Iterator<Item = &'a MigDevice> + Clone,
    gpu: &Gpu,
    plugin: &PluginState,
) -> Vec<Block> {
    let weight = |device: &MigDevice| f64::from(device.profile.compute_slices().unwrap_or(1).max(1));
    let all: f64 = devices.clone().map(weight).sum();
    let mut at = start;
    let block = |device: &MigDevice| {
        let width = width * weight(device) / all;
        let index = format!("{}:{}", gpu.index, device.index);
        let block = Told::of(plugin, &device.uuid, &index).block(device.profile.as_str(), at, width);
        at += width;
        block
    };
    devices.map(block).collect()
}

fn nothing(name: &str, start: f64, width: f64) -> Block {
    let (name, lines) = (name.to_owned(), Vec::new());
    Block { start, width, state: State::Nothing, title: name.clone(), name, lines }
}

/// What is told of one device.
struct Told<'a> {
    plugin: &'a PluginState,
    uuid: &'a str,
    index: &'a str,
    entries: Vec<&'a DeviceState>,
}

impl<'a> Told<'a> {
    fn of(plugin: &'a PluginState, uuid: &'a str, index: &'a str) -> Self {
        let entries = plugin.devices(uuid).map(|(_, device)| device).collect();
        Self { plugin, uuid, index, entries }
    }

    fn block(&self, name: &str, start: f64, width: f64) -> Block {
        let holders: Vec<&Holder> = self.entries.iter().flat_map(|entry| &entry.held_by).collect();
        let held = self.entries.iter().filter(|entry| !entry.held_by.is_empty()).count();
        let state = match self.entries.first() {
            None => State::NotOffered,
            Some(entry) if !entry.healthy => State::Sick,
            Some(_) if held > 0 => State::Held,
            Some(_) => State::Free,
        };
        let mut lines = Vec::new();
        match state {
            State::Sick => lines.extend(self.entries.first().map(|entry| words(entry))),
            State::NotOffered => lines.push("not offered".to_owned()),
            State::Free => lines.push("free".to_owned()),
            State::Held | State::Nothing => {}
        }
        if self.entries.len() > 1 {
            lines.push(format!("{held} of {} shares held", self.entries.len()));
        } else {
            lines.extend(holders.iter().take(1).map(|holder| holder.pod.clone()));
            lines.extend(holders.iter().take(1).map(|holder| holder.namespace.clone()));
        }
        lines.truncate(2);
        Block { start, width, state, name: name.to_owned(), lines, title: self.title(name, &holders) }
    }

    fn title(&self, name: &str, holders: &[&Holder]) -> String {
        let withheld = self.plugin.withheld.iter().find(|one| one.uuid == self.uuid);
        let health = match (self.plugin.health(self.uuid), withheld) {
            (Some(health), _) => health,
            (None, Some(withheld)) => format!("not offered: {}", withheld.reason),
            (None, None) => "not offered".to_owned(),
        };
        let mut parts = vec![format!("{} {name}: {health}", self.index)];
        let held_by =
            |holder: &&Holder| format!("held by {}/{} ({})", holder.namespace, holder.pod, holder.container);
        parts.extend(holders.iter().map(held_by));
        if holders.is_empty() && self.plugin.holders_unknown.is_none() && !self.entries.is_empty() {
            parts.push("no pod holds it".to_owned());
        }
        parts.push(self.uuid.to_owned());
        parts.join("; ")
    }
}

/// The reasons' words, as people say them.
fn words(device: &DeviceState) -> String {
    let word = |reason: &ReasonState| match reason.text.split_once(" (") {
        // The number says more than the word.
        Some((xid, _)) if reason.word == "xid" => xid.to_owned(),
        _ => reason.word.replace('_', " "),
    };
    device.reasons.iter().map(word).collect::<Vec<_>>().join(", ")
}
