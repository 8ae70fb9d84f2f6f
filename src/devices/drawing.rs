//! A GPU's memory slices in a row, and which GPU instance holds which.

use crate::inventory::{Gpu, MigDevice, Placement};

/// Characters of the row between its borders: two of indentation and one border keep it below 100.
const WIDTH: u32 = 96;

/// No slice is drawn wider than this.
const WIDEST_SLICE: u32 = 14;

/// Below this, a number and a border do not fit.
const NARROWEST_SLICE: u32 = 3;

/// The drawing, or a sentence where there is none to be made; nothing for a GPU that is not in MIG mode or
/// of which too little is known. `unread` says that some MIG device of it was left out of the inventory.
pub(super) fn lines(gpu: &Gpu, unread: bool) -> Vec<String> {
    if !gpu.mig_enabled() {
        return Vec::new();
    }
    let instances = instances(gpu);
    let unplaced: Vec<u32> = instances
        .iter()
        .filter(|instance| instance.placement.is_none())
        .map(|instance| instance.id)
        .collect();
    let mut lines = Vec::new();
    if unplaced.is_empty() || unplaced.len() < instances.len() {
        // A gap may be free, or belong to an instance whose place is unknown.
        let hidden: Vec<u32> = unplaced.iter().copied().chain(gpu.instances_without_devices()).collect();
        let hidden = match (hidden.is_empty(), unread) {
            (true, false) => None,
            (true, true) => Some("unread".to_owned()),
            (false, false) => Some(format!("GI {}", list(&hidden))),
            (false, true) => Some(format!("GI {}, unread", list(&hidden))),
        };
        lines.extend(row(gpu, &instances, hidden.as_deref()));
    }
    if !unplaced.is_empty() {
        lines.push(format!(
            "  Placement of GPU instance {}: unknown, the driver did not tell",
            list(&unplaced)
        ));
    }
    lines
}

struct Instance<'a> {
    id: u32,
    placement: Option<Placement>,
    devices: Vec<&'a MigDevice>,
}

/// The MIG devices by GPU instance. They are ordered by it already.
fn instances(gpu: &Gpu) -> Vec<Instance<'_>> {
    gpu.mig_devices
        .chunk_by(|one, next| one.gpu_instance == next.gpu_instance)
        .filter_map(|devices| {
            let first = devices.first()?;
            let devices = devices.iter().collect();
            Some(Instance { id: first.gpu_instance, placement: first.placement, devices })
        })
        .collect()
}

/// A stretch of memory slices and the two lines in it.
struct Stretch {
    slices: u32,
    upper: String,
    lower: String,
}

fn row(gpu: &Gpu, instances: &[Instance<'_>], hidden: Option<&str>) -> Vec<String> {
    let mut placed: Vec<(Placement, &Instance<'_>)> =
        instances.iter().filter_map(|instance| Some((instance.placement?, instance))).collect();
    placed.sort_by_key(|(placement, _)| *placement);
    let end = placed.iter().map(|(place, _)| place.start.saturating_add(place.size)).max();
    let slices = gpu.memory_slices.max(end).unwrap_or(0);
    let slice_width = WIDTH.checked_div(slices).map_or(0, |width| width.min(WIDEST_SLICE));
    if slice_width < NARROWEST_SLICE {
        return Vec::new();
    }

    let mut stretches = Vec::new();
    let mut at = 0;
    for (placement, instance) in placed {
        if placement.start < at {
            return vec!["  Memory slices: the driver's placements overlap, see the table".to_owned()];
        }
        stretches.extend(free(placement.start - at, hidden));
        stretches.push(Stretch {
            slices: placement.size,
            upper: profiles(&instance.devices),
            lower: ids(instance),
        });
        at = placement.start + placement.size;
    }
    stretches.extend(free(slices - at, hidden));
    draw(&stretches, slices, slice_width)
}

/// A gap, which may also be what is hidden.
fn free(slices: u32, hidden: Option<&str>) -> Option<Stretch> {
    let (upper, lower) = match hidden {
        None => ("free", ""),
        Some(hidden) => ("free or", hidden),
    };
    (slices > 0).then(|| Stretch { slices, upper: upper.to_owned(), lower: lower.to_owned() })
}

/// `3g.40gb`, or `1c.3g.40gb x3` where several compute instances share the GPU instance.
fn profiles(devices: &[&MigDevice]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for device in devices {
        let name = device.profile.as_str();
        match counts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
    }
    let words: Vec<String> = counts
        .iter()
        .map(|(name, count)| if *count == 1 { (*name).to_owned() } else { format!("{name} x{count}") })
        .collect();
    words.join(", ")
}

/// `GI 1`, and the compute instances where they are not the usual single one.
fn ids(instance: &Instance<'_>) -> String {
    let compute: Vec<u32> = instance.devices.iter().map(|device| device.compute_instance).collect();
    if compute == [0] {
        format!("GI {}", instance.id)
    } else {
        format!("GI {}, CI {}", instance.id, list(&compute))
    }
}

fn draw(stretches: &[Stretch], slices: u32, slice_width: u32) -> Vec<String> {
    let width_of = |stretch: &Stretch| (stretch.slices * slice_width) as usize - 1;
    let line = |left: &str, between: &str, right: &str, cell: &dyn Fn(&Stretch) -> String| {
        let cells: Vec<String> = stretches.iter().map(cell).collect();
        format!("  {left}{}{right}", cells.join(between))
    };
    let rule = |stretch: &Stretch| "─".repeat(width_of(stretch));
    let text = |text: &str, stretch: &Stretch| fit(&format!(" {text}"), width_of(stretch));
    let slice_width = slice_width as usize;
    let numbers: Vec<String> = (0..slices).map(|slice| format!("{slice:<slice_width$}")).collect();
    vec![
        "  Memory slices".to_owned(),
        format!("    {}", numbers.concat().trim_end()),
        line("┌", "┬", "┐", &rule),
        line("│", "│", "│", &|stretch| text(&stretch.upper, stretch)),
        line("│", "│", "│", &|stretch| text(&stretch.lower, stretch)),
        line("└", "┴", "┘", &rule),
    ]
}

/// `text` in exactly this many characters.
fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return format!("{text:<width$}");
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    kept + "…"
}

fn list(numbers: &[u32]) -> String {
    let words: Vec<String> = numbers.iter().map(u32::to_string).collect();
    words.join(" ")
}
