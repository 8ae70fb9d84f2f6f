//! The tables below the picture.

use std::fmt::Write;

use super::html::Text;
use crate::devices::state::{DeviceState, NodeState, PluginState, ResourceState};

/// A table with a heading; nothing where it has no rows. Headings that begin with `#` are over numbers.
fn table(page: &mut String, title: &str, headings: &[&str], rows: &[Vec<String>]) {
    if rows.is_empty() {
        return;
    }
    write!(page, "<section class=\"table\"><h2>{}</h2><div class=\"scroll\"><table><thead><tr>", Text(title))
        .ok();
    let number = |heading: &str| heading.starts_with('#');
    for heading in headings {
        let class = if number(heading) { " class=\"n\"" } else { "" };
        write!(page, "<th scope=\"col\"{class}>{}</th>", Text(heading.trim_start_matches('#'))).ok();
    }
    page.push_str("</tr></thead><tbody>\n");
    for row in rows {
        page.push_str("<tr>");
        for (n, (cell, heading)) in row.iter().zip(headings).enumerate() {
            let class = if number(heading) { " class=\"n\"" } else { "" };
            let (open, close) = if n == 0 { ("th scope=\"row\"", "th") } else { ("td", "td") };
            write!(page, "<{open}{class}>{}</{close}>", Text(cell)).ok();
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div></section>\n");
}

/// What pods can ask for.
pub(super) fn resources(page: &mut String, plugin: &PluginState) {
    let known = plugin.holders_unknown.is_none();
    let number = |number: usize| if known { number.to_string() } else { "?".to_owned() };
    let row = |resource: &ResourceState| {
        vec![
            resource.name.clone(),
            resource.devices.len().to_string(),
            resource.allocatable().to_string(),
            number(resource.allocated()),
            number(resource.free()),
            match &resource.not_registered {
                None => "yes".to_owned(),
                Some(why) => format!("no: {why}"),
            },
        ]
    };
    let rows: Vec<_> = plugin.resources.iter().map(row).collect();
    let headings = ["Resource", "#Capacity", "#Allocatable", "#Allocated", "#Free", "Registered"];
    table(page, "Resources", &headings, &rows);
    if let Some(why) = plugin.holders_unknown.as_ref().filter(|_| !rows.is_empty()) {
        writeln!(page, "<p class=\"note\">Which pods hold devices is not known: {}</p>", Text(why)).ok();
    }
}

/// What exists and is not offered.
pub(super) fn withheld(page: &mut String, plugin: &PluginState) {
    let rows =
        plugin.withheld.iter().map(|one| vec![one.index.clone(), one.reason.clone(), one.uuid.clone()]);
    table(page, "Withheld", &["Device", "Why", "UUID"], &rows.collect::<Vec<_>>());
}

/// Everything that is offered.
pub(super) fn devices(page: &mut String, plugin: &PluginState) {
    let all =
        plugin.resources.iter().flat_map(|resource| resource.devices.iter().map(move |one| (resource, one)));
    let row = |(resource, device): (&ResourceState, &DeviceState)| {
        let reasons: Vec<_> = device.reasons.iter().map(|reason| reason.text.clone()).collect();
        let holders: Vec<_> = device
            .held_by
            .iter()
            .map(|holder| format!("{}/{} ({})", holder.namespace, holder.pod, holder.container))
            .collect();
        vec![
            device.index.clone(),
            resource.name.clone(),
            if device.healthy { "healthy".to_owned() } else { reasons.join("; ") },
            holders.join(", "),
            device.id.clone(),
        ]
    };
    let mut rows: Vec<_> = all.map(row).collect();
    rows.sort_by_key(|row| {
        let number = |text: &str| text.parse::<u32>().unwrap_or(u32::MAX);
        let (gpu, slice) = row[0].split_once(':').unwrap_or((&row[0], "0"));
        (number(gpu), number(slice))
    });
    table(page, "Devices", &["Device", "Resource", "Health", "Held by", "ID"], &rows);
}

/// What could not be read.
pub(super) fn problems(page: &mut String, state: &NodeState) {
    let row = |problem: &crate::inventory::Problem| {
        let effect = if problem.left_out { "left out" } else { "incomplete" };
        vec![problem.subject(), effect.to_owned(), problem.reason.to_string()]
    };
    let rows: Vec<_> = state.inventory.problems.iter().map(row).collect();
    table(page, "What could not be read", &["What", "Effect", "Why"], &rows);
}
