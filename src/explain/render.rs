//! An [`Explanation`] for people and for programs.

use serde::Serialize;

use super::text::{devices, table, wrap};
use super::{Explanation, GpuView, StrategyView, Warning, WithheldView};
use crate::resource::MigStrategy;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people, at most 100 columns wide where names allow
    #[default]
    Text,
    /// Everything, for programs
    Json,
    /// Everything, for programs and people
    Yaml,
    /// A ready Pod for each resource of the one strategy, to be applied
    Pods,
}

/// An answer could not be written down.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// As JSON.
    #[error("the explanation cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    /// As YAML.
    #[error("the explanation cannot be written as YAML")]
    Yaml(#[from] serde_saphyr::SerializeError),
}

/// The text for `explanation`, ending in a line break unless it is empty.
pub fn render(explanation: &Explanation, format: Format) -> Result<String, RenderError> {
    match format {
        Format::Text => Ok(for_people(explanation)),
        Format::Pods => Ok(pods(explanation)),
        Format::Json | Format::Yaml => for_programs(explanation, format),
    }
}

/// JSON, or else YAML.
pub(super) fn for_programs(value: &impl Serialize, format: Format) -> Result<String, RenderError> {
    if format == Format::Json {
        Ok(serde_json::to_string_pretty(value)? + "\n")
    } else {
        Ok(serde_saphyr::to_string(value)?)
    }
}

/// The strategy that is meant where only one can be: the one that is set, or else the only one.
fn chosen(explanation: &Explanation) -> Option<&StrategyView> {
    let strategies = &explanation.strategies;
    if strategies.len() == 1 { strategies.first() } else { strategies.iter().find(|view| view.configured) }
}

fn pods(explanation: &Explanation) -> String {
    let resources = chosen(explanation).into_iter().flat_map(|view| &view.resources);
    resources.map(|resource| resource.pod.as_str()).collect::<Vec<_>>().join("---\n")
}

fn for_people(explanation: &Explanation) -> String {
    let mut blocks = vec![headline(explanation)];
    if explanation.gpus.is_empty() {
        blocks.push(vec!["No GPU could be read.".to_owned()]);
    } else {
        blocks.push(gpus(&explanation.gpus));
        if explanation.strategies.len() > 1 {
            blocks.push(side_by_side(&explanation.strategies));
        }
        blocks.extend(explanation.strategies.iter().map(strategy));
    }
    if !explanation.warnings.is_empty() {
        let mut block = vec!["Whatever the strategy".to_owned()];
        block.extend(warnings(&explanation.warnings));
        blocks.push(block);
    }
    blocks.extend(example(explanation));
    blocks.iter().map(|block| block.join("\n") + "\n").collect::<Vec<_>>().join("\n")
}

fn headline(explanation: &Explanation) -> Vec<String> {
    let cuda = explanation.cuda_version.as_ref().map(|cuda| format!(", CUDA {cuda}")).unwrap_or_default();
    vec![format!("Driver {}{cuda}", explanation.driver_version)]
}

/// GPUs that are alike in a line together.
fn gpus(gpus: &[GpuView]) -> Vec<String> {
    let alike = |one: &GpuView, next: &GpuView| {
        one.name == next.name && one.mig_enabled == next.mig_enabled && one.slices == next.slices
    };
    let mut rows = vec![["GPU", "NAME", "MIG", "SLICES"].map(str::to_owned).to_vec()];
    for group in gpus.chunk_by(alike) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
        let index = if group.len() == 1 {
            first.index.to_string()
        } else {
            format!("{}-{}", first.index, last.index)
        };
        let mode = match first.mig_enabled {
            None => "-",
            Some(true) => "on",
            Some(false) => "off",
        };
        rows.push(vec![index, first.name.clone(), mode.to_owned(), slices(first)]);
    }
    let lines = table(&rows, |_| false);
    // Where many profiles are on one GPU, its line is broken in the last column.
    let indent = lines.first().and_then(|heading| heading.find("SLICES")).unwrap_or_default();
    lines
        .iter()
        .flat_map(|line| match (line.char_indices().nth(indent), line.chars().count() > 100) {
            (Some((at, _)), true) => wrap(&line[..at], &line[at..]),
            _ => vec![line.clone()],
        })
        .collect()
}

fn slices(gpu: &GpuView) -> String {
    if gpu.slices.is_empty() {
        return "-".to_owned();
    }
    gpu.slices.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Which strategy offers how many of what.
fn side_by_side(strategies: &[StrategyView]) -> Vec<String> {
    let mut names: Vec<&str> =
        strategies.iter().flat_map(|view| &view.resources).map(|resource| resource.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let heading = strategies.iter().map(|view| marked(view).to_uppercase());
    let mut rows = vec![std::iter::once("RESOURCE".to_owned()).chain(heading).collect::<Vec<_>>()];
    for name in names {
        let cell = |view: &StrategyView| {
            let resource = view.resources.iter().find(|resource| resource.name == name);
            resource
                .map_or_else(|| "-".to_owned(), |resource| amount(resource.capacity, resource.allocatable))
        };
        rows.push(std::iter::once(name.to_owned()).chain(strategies.iter().map(cell)).collect());
    }
    if strategies.iter().any(|view| !view.withheld.is_empty()) {
        let cell = |view: &StrategyView| match view.withheld.len() {
            0 => "-".to_owned(),
            count => count.to_string(),
        };
        rows.push(std::iter::once("withheld".to_owned()).chain(strategies.iter().map(cell)).collect());
    }
    table(&rows, |column| column > 0)
}

fn marked(view: &StrategyView) -> String {
    if view.configured { format!("{} (configured)", view.strategy) } else { view.strategy.to_string() }
}

/// `7`, or `6 of 7` where one cannot be handed out.
fn amount(capacity: usize, allocatable: usize) -> String {
    if capacity == allocatable { capacity.to_string() } else { format!("{allocatable} of {capacity}") }
}

fn strategy(view: &StrategyView) -> Vec<String> {
    let meaning = match view.strategy {
        MigStrategy::None => "every GPU as a whole, whatever its MIG mode",
        MigStrategy::Single => "slices of one profile under the name for GPUs",
        MigStrategy::Mixed => "slices by profile, other GPUs as a whole",
    };
    let mut lines = vec![format!("{}: {meaning}", marked(view))];
    if view.resources.is_empty() {
        lines.push("  offers nothing".to_owned());
    }
    let name_width = view.resources.iter().map(|resource| resource.name.len()).max().unwrap_or_default();
    let amounts = || view.resources.iter().map(|resource| amount(resource.capacity, resource.allocatable));
    let amount_width = amounts().map(|amount| amount.len()).max().unwrap_or_default();
    for (resource, amount) in view.resources.iter().zip(amounts()) {
        let first = format!("  {:<name_width$}  {amount:>amount_width$}  ", resource.name);
        lines.extend(wrap(&first, &devices(&resource.devices)));
    }
    for resource in &view.resources {
        let sick = resource.devices.iter().filter_map(|device| Some((device, device.unhealthy.as_ref()?)));
        let sick: Vec<_> = sick.map(|(device, why)| (device.index.clone(), why.clone())).collect();
        lines.extend(with_reasons("unhealthy", &sick));
    }
    let withheld = |device: &'_ WithheldView| (device.index.clone(), device.reason.clone());
    let withheld: Vec<_> = view.withheld.iter().map(withheld).collect();
    lines.extend(with_reasons("withheld", &withheld));
    lines.extend(warnings(&view.warnings));
    lines
}

/// Devices that share a reason, each reason once.
fn with_reasons(what: &str, devices: &[(String, String)]) -> Vec<String> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for (index, reason) in devices {
        match groups.iter_mut().find(|(known, _)| known == reason) {
            Some((_, indices)) if indices.last() == Some(&index.as_str()) => {}
            Some((_, indices)) => indices.push(index),
            None => groups.push((reason, vec![index])),
        }
    }
    groups
        .iter()
        .flat_map(|(reason, indices)| wrap(&format!("  {what} {}: ", indices.join(" ")), reason))
        .collect()
}

/// Warnings that say the same of several GPUs or slices, once.
pub(super) fn warnings(warnings: &[Warning]) -> Vec<String> {
    let mut groups: Vec<(Option<&str>, String, Vec<String>)> = Vec::new();
    for warning in warnings {
        let (kind, index) = warning.subject().unzip();
        let statement = warning.statement();
        let known = groups.iter_mut().find(|group| (group.0, &group.1) == (kind, &statement));
        match known {
            Some((_, _, indices)) => indices.extend(index),
            None => groups.push((kind, statement, index.into_iter().collect())),
        }
    }
    let line = |(kind, statement, indices): &(Option<&str>, String, Vec<String>)| match kind {
        None => wrap("  ! ", statement),
        Some(kind) => wrap("  ! ", &format!("{kind} {}: {statement}", indices.join(" "))),
    };
    groups.iter().flat_map(line).collect()
}

/// One Pod that is ready to be run, with how to get the others.
fn example(explanation: &Explanation) -> Option<Vec<String>> {
    let view = chosen(explanation)?;
    // Slices rather than whole GPUs where there are both: that is what is asked about here.
    let resource = view.resources.iter().max_by_key(|resource| {
        (resource.devices.iter().any(|device| device.profile.is_some()), resource.capacity)
    })?;
    let others = if view.resources.len() > 1 { " (-o pods prints one for each resource)" } else { "" };
    let mut lines = vec![format!("A Pod for {}{others}", resource.name)];
    lines.extend(resource.pod.lines().map(|line| format!("  {line}")));
    Some(lines)
}
