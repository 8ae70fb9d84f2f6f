//! One GPU on the page: what it is, its drawing, and what is wrong with it.

use std::fmt::Write;

use super::html::Text;
use super::layout::{Block, Drawing, State, drawing};
use crate::devices::state::{PluginState, RecoveryRule};
use crate::health::caution;
use crate::inventory::{Gpu, MigMode};

/// Heights in the drawing, in pixels.
const BLOCK: u32 = 62;

/// Blocks below this part of the row are too narrow on a phone for a profile in one line.
const NARROW: f64 = 0.2;

const SCALE: u32 = 16;

/// Writes the section for `gpu`.
pub(super) fn section(page: &mut String, gpu: &Gpu, plugin: &PluginState) {
    let drawing = drawing(gpu, plugin);
    let sick = gpu.problem.is_some() || drawing.blocks.iter().any(|block| block.state == State::Sick);
    let class = if sick { "gpu ill" } else { "gpu" };
    write!(page, "<section class=\"{class}\"><header><h3>GPU {}</h3>", gpu.index).ok();
    write!(page, "<p>{}</p><p class=\"facts\">{}</p>", Text(&gpu.name), Text(&facts(gpu))).ok();
    writeln!(page, "<p class=\"mode\">{}</p></header>", mode(gpu.mig_mode)).ok();
    draw(page, gpu, &drawing);
    let problems = problems(gpu, plugin);
    if !problems.is_empty() {
        page.push_str("<ul class=\"problems\">");
        for problem in &problems {
            write!(page, "<li><b aria-hidden=\"true\">!</b> {}</li>", Text(problem)).ok();
        }
        page.push_str("</ul>\n");
    }
    let more = |page: &mut String, note: &str| {
        writeln!(page, "<p class=\"note\">{}</p>", Text(note)).ok();
    };
    drawing.notes.iter().for_each(|note| more(page, note));
    if let Some(caution) = caution(gpu) {
        more(page, &format!("Note: {caution}"));
    }
    let state = plugin.gpus.iter().find(|state| state.uuid == gpu.uuid);
    if let Some(why) = state.and_then(|state| state.not_watched.as_ref()) {
        more(page, &format!("No errors of it are heard: {why}"));
    }
    if sick && let Some(state) = state {
        more(page, recovery(state.recovery));
    }
    page.push_str("</section>\n");
}

fn facts(gpu: &Gpu) -> String {
    let memory = gpu.memory_mib.map(|mib| format!("{} GiB", (mib + 512) / 1024));
    let numa = gpu.numa_node.map(|node| format!("NUMA {node}"));
    let pci = Some(gpu.pci_bus_id.clone()).filter(|pci| !pci.is_empty());
    let facts: Vec<_> = [memory, numa, pci].into_iter().flatten().collect();
    facts.join(" · ")
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

fn recovery(rule: RecoveryRule) -> &'static str {
    match rule {
        RecoveryRule::Off => "What is sick stays so until the plugin starts again.",
        RecoveryRule::RecoveryAction => {
            "What is sick gets well when the driver says that the GPU needs nothing, and all has been quiet."
        }
        RecoveryRule::Reset => {
            "What is sick gets well when the GPU was reset or the instance made anew, and all has been quiet."
        }
    }
}

/// What is wrong, with everything that it concerns in one line.
fn problems(gpu: &Gpu, plugin: &PluginState) -> Vec<String> {
    let uuids = std::iter::once(&gpu.uuid).chain(gpu.mig_devices.iter().map(|device| &device.uuid));
    let mut told: Vec<(String, Vec<String>)> = Vec::new();
    for uuid in uuids {
        let Some((_, device)) = plugin.devices(uuid).next() else { continue };
        for reason in &device.reasons {
            match told.iter_mut().find(|(text, _)| *text == reason.text) {
                Some((_, whom)) => whom.push(device.index.clone()),
                None => told.push((reason.text.clone(), vec![device.index.clone()])),
            }
        }
    }
    let all = gpu.mig_devices.len();
    let line = |(text, whom): (String, Vec<String>)| {
        let whom = if whom.len() > 1 && whom.len() == all {
            format!("all {all} MIG devices")
        } else {
            whom.join(", ")
        };
        format!("{whom}: {text}")
    };
    let unusable =
        gpu.problem.as_ref().filter(|_| told.is_empty()).map(|why| format!("GPU {}: {why}", gpu.index));
    told.into_iter().map(line).chain(unusable).collect()
}

/// Text keeps its size at any width of the page, so places are given as parts of it and nothing is scaled.
fn draw(page: &mut String, gpu: &Gpu, drawing: &Drawing) {
    let height = if drawing.slices.is_some() { BLOCK + SCALE } else { BLOCK };
    let index = gpu.index;
    write!(
        page,
        "<svg class=\"row\" role=\"img\" width=\"100%\" height=\"{height}\" aria-labelledby=\"t{index} d{index}\">\
         <title id=\"t{index}\">GPU {index}</title><desc id=\"d{index}\">"
    )
    .ok();
    let titles: Vec<_> = drawing.blocks.iter().map(|block| block.title.as_str()).collect();
    writeln!(page, "{}</desc>", Text(&titles.join(". "))).ok();
    drawing.blocks.iter().for_each(|block| draw_block(page, block));
    if let Some(slices) = drawing.slices {
        for slice in 0..slices {
            let x = 100.0 * f64::from(slice) / f64::from(slices);
            write!(page, "<text class=\"tick\" x=\"{x:.3}%\" dx=\"3\" y=\"{}\">{slice}</text>", BLOCK + 12)
                .ok();
        }
    }
    page.push_str("</svg>\n");
}

fn draw_block(page: &mut String, block: &Block) {
    let Block { start, width, state, name, lines, title } = block;
    let (x, width, class) = (100.0 * start, 100.0 * width, state.class());
    // An inner svg cuts off what does not fit.
    write!(
        page,
        "<svg class=\"{class}\" x=\"{x:.3}%\" y=\"0\" width=\"{width:.3}%\" height=\"{BLOCK}\"><title>{}</title>\
         <rect class=\"box\" x=\"1\" y=\"1\" width=\"99%\" height=\"{}\" rx=\"5\"/>",
        Text(title),
        BLOCK - 2
    )
    .ok();
    if *state == State::Sick {
        page.push_str("<rect class=\"mark\" x=\"1\" y=\"1\" width=\"99%\" height=\"8\" rx=\"4\"/>");
    }
    let narrow = block.width < NARROW;
    let short = narrow.then(|| name.rsplit_once('.')).flatten();
    let wide = if short.is_some() || (narrow && *state == State::Nothing) { " wide" } else { "" };
    write!(
        page,
        "<svg class=\"in{wide}\" x=\"8\" width=\"88%\"><text class=\"name\" y=\"23\">{}</text>",
        Text(name)
    )
    .ok();
    for (line, y) in lines.iter().zip([38, 52]) {
        write!(page, "<text y=\"{y}\">{}</text>", Text(line)).ok();
    }
    page.push_str("</svg>");
    if let Some((compute, memory)) = short {
        let (compute, memory, word) = (Text(compute), Text(memory), Text(state.word()));
        write!(
            page,
            "<svg class=\"in slim\" x=\"5\" width=\"92%\"><text class=\"name\" y=\"23\">{compute}</text>\
             <text class=\"name\" y=\"37\">{memory}</text><text y=\"52\">{word}</text></svg>"
        )
        .ok();
    }
    page.push_str("</svg>\n");
}
