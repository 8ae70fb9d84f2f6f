//! Answers about Pods for people.

use super::{ContainerView, PodAnswer, PodAnswers, Verdict};
use crate::explain::DeviceView;
use crate::explain::render::{Format, RenderError, for_programs};
use crate::explain::text::{table, wrap};

/// The text for `answers`, ending in a line break.
pub fn render(answers: &PodAnswers, format: Format) -> Result<String, RenderError> {
    match format {
        Format::Text | Format::Pods => Ok(for_people(answers)),
        Format::Json | Format::Yaml => for_programs(answers, format),
    }
}

fn for_people(answers: &PodAnswers) -> String {
    let mut blocks: Vec<Vec<String>> = answers.pods.iter().flat_map(pod).collect();
    let each = if answers.pods.len() > 1 { "Each Pod is judged by itself, on" } else { "Judged on" };
    blocks.push(wrap(
        "",
        &format!(
            "{each} a node where nothing is in use: what other pods hold is not considered, nor are CPU, memory, \
             taints and the like."
        ),
    ));
    blocks.iter().map(|block| block.join("\n") + "\n").collect::<Vec<_>>().join("\n")
}

fn pod(answer: &PodAnswer) -> Vec<Vec<String>> {
    let asks: Vec<String> = answer.asks.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let asks = if asks.is_empty() { "no GPU and no MIG device".to_owned() } else { asks.join(", ") };
    let mut head = wrap("", &format!("{} asks for {asks}", answer.name));
    head.extend(answer.mistakes.iter().flat_map(|mistake| wrap("  ! ", &format!("invalid: {mistake}"))));
    if !answer.not_judged.is_empty() {
        head.extend(wrap(
            "  ",
            &format!("not of this plugin, so not judged: {}", answer.not_judged.join(", ")),
        ));
    }
    std::iter::once(head).chain(answer.strategies.iter().map(verdict)).collect()
}

fn verdict(verdict: &Verdict) -> Vec<String> {
    let set = if verdict.configured { " (configured)" } else { "" };
    let room = match verdict.room {
        None => String::new(),
        Some(1) => ", once on an empty node".to_owned(),
        Some(room) => format!(", {room} times on an empty node"),
    };
    let fits = if verdict.fits { format!("fits{room}") } else { "does not fit".to_owned() };
    let mut lines = vec![format!("{}{set}: {fits}", verdict.strategy)];
    lines.extend(verdict.obstacles.iter().flat_map(|obstacle| wrap("  ", &obstacle.to_string())));
    lines.extend(verdict.containers.iter().flat_map(container));
    lines.extend(verdict.warnings.iter().flat_map(|warning| wrap("  ! ", warning)));
    lines
}

fn container(view: &ContainerView) -> Vec<String> {
    let mut lines = wrap("  ", &format!("container {}: {} {}", view.name, view.devices.len(), view.resource));
    let row = |device: &DeviceView| {
        let index = device.mig_device.map_or_else(|| format!("GPU {}", device.gpu), |_| device.index.clone());
        vec![index, device.profile.clone().unwrap_or_default(), device.id.clone()]
    };
    let rows: Vec<Vec<String>> = view.devices.iter().map(row).collect();
    lines.extend(table(&rows, |_| false).iter().map(|line| format!("    {line}")));
    for (variable, value) in &view.environment {
        lines.extend(wrap(&format!("    {variable}="), value));
    }
    let nodes: Vec<String> = view.nodes.iter().map(|node| node.display().to_string()).collect();
    if !nodes.is_empty() {
        lines.extend(wrap("    ", &nodes.join(" ")));
    }
    if !view.cdi_devices.is_empty() {
        lines.extend(wrap("    CDI ", &view.cdi_devices.join(" ")));
    }
    lines
}
