//! The page at `/`: the node as a picture. HTML and SVG in one piece, with no script and nothing from elsewhere.

use std::fmt::Write;

mod gpu;
mod html;
mod layout;
mod tables;
#[cfg(test)]
mod tests;

use self::html::{Text, count};
use crate::devices::state::{Attribution, DriverState, NodeState, PluginState};
use crate::health::NOT_HEARD;
use crate::inventory::Inventory;

const STYLE: &str = include_str!("style.css");

/// What a browser is told besides: nothing may be loaded, sent or framed.
pub(super) const SECURITY_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// How often the page comes anew, in seconds.
const REFRESH: u32 = 10;

/// The page about the node called `name`, as it is at `time`. `state`: `None` before anything is known.
pub(super) fn page(name: &str, time: &str, state: Option<&NodeState>) -> String {
    let mut page = String::with_capacity(64 << 10);
    write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"refresh\" content=\"{REFRESH}\">\n\
         <title>{} · mig-device-plugin</title>\n<style>\n{STYLE}</style></head>\n<body>\n\
         <svg width=\"0\" height=\"0\" aria-hidden=\"true\" class=\"defs\"><defs><pattern id=\"hatch\" width=\"7\" height=\"7\" \
         patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\"><path class=\"hatch\" d=\"M0 0V7\"/></pattern>\
         </defs></svg>\n<header class=\"top\"><h1>{}</h1>",
        Text(name),
        Text(name)
    )
    .ok();
    match state.and_then(|state| state.plugin.as_ref().map(|plugin| (state, plugin))) {
        None => page.push_str("</header>\n<main><p class=\"banner\">Nothing is known yet.</p></main>\n"),
        Some((state, plugin)) => {
            body(&mut page, state, plugin);
        }
    }
    write!(
        page,
        "<footer><p>mig-device-plugin {} · {} · comes anew every {REFRESH} s · <a href=\"/devices\">JSON</a> · \
         <a href=\"/metrics\">metrics</a> · <a href=\"/readyz\">readiness</a></p></footer>\n</body></html>\n",
        env!("CARGO_PKG_VERSION"),
        Text(time)
    )
    .ok();
    page
}

fn body(page: &mut String, state: &NodeState, plugin: &PluginState) {
    let inventory = &state.inventory;
    write!(page, "<p>{}</p></header>\n<main>\n", Text(&headline(inventory, plugin))).ok();
    banners(page, plugin);
    numbers(page, plugin);
    if !inventory.gpus.is_empty() {
        page.push_str("<section class=\"gpus\"><h2>GPUs</h2>\n");
        legend(page);
        inventory.gpus.iter().for_each(|gpu| gpu::section(page, gpu, plugin));
        page.push_str("</section>\n");
    }
    tables::resources(page, plugin);
    tables::withheld(page, plugin);
    tables::problems(page, state);
    tables::devices(page, plugin);
    page.push_str("</main>\n");
}

fn headline(inventory: &Inventory, plugin: &PluginState) -> String {
    let slices = inventory.gpus.iter().map(|gpu| gpu.mig_devices.len()).sum();
    let mut words = vec![format!("strategy {}", plugin.strategy)];
    if !inventory.driver_version.is_empty() {
        words.push(format!("driver {}", inventory.driver_version));
        words.extend(inventory.cuda_version.as_ref().map(|cuda| format!("CUDA {cuda}")));
        words.push(count(inventory.gpus.len(), "GPU"));
        words.push(count(slices, "MIG device"));
    }
    words.extend(plugin.event_attribution.map(|attribution| match attribution {
        Attribution::Instance => "errors are known per MIG device".to_owned(),
        Attribution::None => "no errors are heard on GPUs with slices".to_owned(),
    }));
    words.join(" · ")
}

/// What concerns the node as a whole.
fn banners(page: &mut String, plugin: &PluginState) {
    let mut banner = |class: &str, word: &str, text: &str| {
        writeln!(page, "<p class=\"banner {class}\"><b>{}</b> {}</p>", Text(word), Text(text)).ok();
    };
    if plugin.on_hold {
        banner(
            "warn",
            "On hold.",
            "SIGUSR1 was sent: the driver is left alone and nothing is offered until SIGUSR2.",
        );
    }
    if let Some(why) = &plugin.no_driver {
        banner("bad", "No driver.", why);
    }
    if let Some(what) = &plugin.no_answer {
        banner("bad", "The driver hangs:", what);
    }
    if plugin.driver == DriverState::Unknown {
        banner("warn", "Not known yet.", "The driver has not answered so far.");
    }
    if plugin.driver == DriverState::Present && plugin.resources.is_empty() {
        banner("warn", "Nothing is offered.", "This node has no device that the strategy offers.");
    }
    if plugin.event_attribution == Some(Attribution::None) {
        banner("warn", "No errors are heard on GPUs with slices:", &format!("{NOT_HEARD}."));
    }
    plugin.warnings.iter().for_each(|warning| banner("warn", "Configuration:", warning));
}

/// The node in four numbers.
fn numbers(page: &mut String, plugin: &PluginState) {
    let sum = |number: fn(&crate::devices::state::ResourceState) -> usize| {
        plugin.resources.iter().map(number).sum::<usize>()
    };
    let capacity = sum(|resource| resource.devices.len());
    let sick = capacity - sum(crate::devices::state::ResourceState::allocatable);
    let known = plugin.holders_unknown.is_none();
    let if_known = |number: usize| if known { number.to_string() } else { "?".to_owned() };
    let ill = if sick > 0 { "ill" } else { "" };
    page.push_str("<dl class=\"numbers\">");
    for (word, number, class) in [
        ("devices", capacity.to_string(), ""),
        ("allocated", if_known(sum(crate::devices::state::ResourceState::allocated)), ""),
        ("free", if_known(sum(crate::devices::state::ResourceState::free)), ""),
        ("unhealthy", sick.to_string(), ill),
    ] {
        write!(page, "<div class=\"{class}\"><dt>{word}</dt><dd>{number}</dd></div>").ok();
    }
    page.push_str("</dl>\n");
}

fn legend(page: &mut String) {
    page.push_str("<ul class=\"legend\" aria-hidden=\"true\">");
    for (class, word) in [
        ("free", "free"),
        ("held", "held by a pod"),
        ("sick", "unhealthy"),
        ("withheld", "not offered"),
        ("nothing", "unused memory"),
    ] {
        let mark = "<rect class=\"mark\" x=\"1\" y=\"1\" width=\"99%\" height=\"5\" rx=\"2\"/>";
        write!(
            page,
            "<li><svg class=\"key {class}\" width=\"22\" height=\"14\"><rect class=\"box\" x=\"1\" y=\"1\" width=\"99%\" \
             height=\"12\" rx=\"3\"/>{}</svg> {word}</li>",
            if class == "sick" { mark } else { "" }
        )
        .ok();
    }
    page.push_str("</ul>\n");
}
