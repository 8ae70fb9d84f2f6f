use proptest::prelude::*;

use super::layout::{Block, State, drawing};
use super::*;
use crate::admin::example::{hold, plugin, rich, sicken};
use crate::devices::state::{ResourceState, WithheldState};
use crate::fixtures::{gpu, mig_gpu, node};
use crate::inventory::Placement;

fn shown(state: &NodeState) -> String {
    page("node-1", "2026-03-09T14:05:00Z", Some(state))
}

fn of(inventory: Inventory) -> NodeState {
    let plugin = plugin(&inventory);
    NodeState { inventory, plugin: Some(plugin) }
}

/// Start, width and state of each block, in eighths of the row.
fn eighths(blocks: &[Block]) -> Vec<(f64, f64, State)> {
    blocks.iter().map(|block| (8.0 * block.start, 8.0 * block.width, block.state)).collect()
}

#[test]
#[ignore = "it writes a page to the file that PAGE names, for a browser"]
fn write_an_example() {
    let file = std::env::var_os("PAGE").expect("PAGE names no file");
    std::fs::write(file, page("gpu-node-17", "2026-03-09T14:05:00Z", Some(&rich()))).unwrap();
}

#[test]
fn instances_are_drawn_where_they_lie() {
    let state = rich();
    let drawn = |n: usize| drawing(&state.inventory.gpus[n], state.plugin.as_ref().unwrap());
    assert_eq!(
        eighths(&drawn(0).blocks),
        [(0.0, 4.0, State::Held), (4.0, 2.0, State::Sick), (6.0, 1.0, State::Free), (7.0, 1.0, State::Free)]
    );
    assert_eq!(
        drawn(1).blocks.last().map(|block| (block.name.as_str(), block.state)),
        Some(("unused", State::Nothing))
    );
    assert!(drawn(3).blocks.iter().all(|block| block.state == State::Sick), "a lost GPU");
    assert_eq!(drawn(5).blocks[0].name, "MIG is on and nothing is in it");
    let shared = drawn(6);
    assert_eq!(shared.blocks.len(), 3);
    assert_eq!(
        (shared.blocks[1].name.as_str(), shared.blocks[2].name.as_str()),
        ("1c.3g.40gb", "2c.3g.40gb")
    );
    assert!((shared.blocks[2].width - 2.0 * shared.blocks[1].width).abs() < 1e-9);
    assert!(shared.notes[0].contains("GPU instance 2 has no compute instance"));
    assert_eq!((drawn(7).blocks[0].name.as_str(), drawn(7).slices), ("whole GPU", None));
}

#[test]
fn instances_whose_place_is_not_known_are_drawn_beside_each_other() {
    for place in [None, Some(Placement { start: 0, size: 2 })] {
        let mut gpu = mig_gpu(0, &["1g.10gb", "3g.40gb"]);
        gpu.mig_devices.iter_mut().for_each(|device| device.placement = place);
        let inventory = node([gpu]);
        let drawing = drawing(&inventory.gpus[0], &plugin(&inventory));
        assert_eq!(eighths(&drawing.blocks), [(0.0, 2.0, State::Free), (2.0, 6.0, State::Free)]);
        assert!(drawing.slices.is_none() && drawing.notes[0].contains("is not known"));
    }
}

#[test]
fn a_device_that_is_not_offered_says_so() {
    let mut state = of(node([mig_gpu(0, &["1g.10gb"])]));
    let plugin = state.plugin.as_mut().unwrap();
    plugin.resources.clear();
    let (index, uuid, reason) = ("0:0".to_owned(), "MIG-0-7-0".to_owned(), "the strategy cannot".to_owned());
    plugin.withheld.push(WithheldState { index, uuid, reason });
    let drawing = drawing(&state.inventory.gpus[0], plugin);
    assert_eq!(drawing.blocks[0].state, State::NotOffered);
    assert!(drawing.blocks[0].title.contains("the strategy cannot"));
    let page = shown(&state);
    assert!(page.contains("Nothing is offered.") && page.contains("<h2>Withheld</h2>"), "{page}");
}

#[test]
fn reasons_pods_and_totals_are_told() {
    let page = shown(&rich());
    for words in [
        "0:1: Xid 94 (contained memory error)",
        "all 3 MIG devices: lost: nvmlDeviceGetHandleByIndex_v2: GPU_IS_LOST",
        "ml-research/train-llama-0 (main)",
        "driver 580.95.05",
        "nvidia.com/mig-2g.20gb",
        "errors are known per MIG device",
    ] {
        assert!(page.contains(words), "{words}");
    }
    assert!(page.contains("<dt>unhealthy</dt><dd>4</dd>"), "{page}");
}

#[test]
fn a_node_without_a_driver_or_on_hold_says_so_first() {
    let mut state = rich();
    let plugin = state.plugin.as_mut().unwrap();
    plugin.no_driver = Some("libnvidia-ml.so.1 is in none of these places".to_owned());
    plugin.driver = DriverState::Absent;
    plugin.on_hold = true;
    plugin.warnings.push("a pattern fits nothing".to_owned());
    plugin.holders_unknown = Some("nobody is there".to_owned());
    let page = shown(&state);
    for words in [
        "No driver.",
        "in none of these places",
        "On hold.",
        "a pattern fits nothing",
        "is not known: nobody is there",
    ] {
        assert!(page.contains(words), "{words}");
    }
    assert!(super::page("n", "t", None).contains("Nothing is known yet"));
}

#[test]
fn the_page_loads_nothing_and_runs_nothing() {
    let page = shown(&rich());
    for word in ["<script", " src=", "@import", "url(http", "href=\"http", " onload", "javascript:"] {
        assert!(!page.contains(word), "{word}");
    }
    assert!(page.contains("http-equiv=\"refresh\" content=\"10\""));
}

/// A node whose every text is `name`.
fn named(name: &str) -> NodeState {
    let text = || name.to_owned();
    let mut whole = gpu(1);
    whole.name = text();
    whole.uuid = format!("{name}1");
    whole.pci_bus_id = format!("x{name}");
    let mut inventory = node([mig_gpu(0, &["1g.10gb", "2g.20gb"]), whole]);
    inventory.driver_version = format!("x{name}");
    inventory.cuda_version = Some(text());
    inventory.problems.push(crate::inventory::Problem {
        gpu: 9,
        mig_device: None,
        uuid: None,
        reason: crate::inventory::Trouble::unreadable(name),
        left_out: true,
    });
    let mut plugin = plugin(&inventory);
    hold(&mut plugin, "0:0", name, name);
    sicken(&mut plugin, "0:1", name, name);
    plugin.no_driver = Some(text());
    plugin.warnings.push(text());
    plugin.holders_unknown = Some(text());
    plugin.gpus[0].not_watched = Some(text());
    plugin.strategy = text();
    plugin.withheld.push(WithheldState { index: text(), uuid: text(), reason: text() });
    plugin.resources.push(ResourceState {
        name: text(),
        registered: false,
        not_registered: Some(text()),
        devices: Vec::new(),
    });
    NodeState { inventory, plugin: Some(plugin) }
}

/// How often each character stands there that means something to HTML.
fn markup(page: &str) -> [usize; 4] {
    ['<', '>', '"', '\''].map(|c| page.matches(c).count())
}

proptest! {
    #[test]
    fn no_name_becomes_markup(name in "[<>&\"'a-z/=!\\-\u{0}-\u{1f}\u{202e}]{1,40}") {
        let hostile = page(&name, &name, Some(&named(&name)));
        let harmless = page("x", "x", Some(&named("x")));
        prop_assert_eq!(markup(&hostile), markup(&harmless));
        prop_assert!(!hostile.contains(|c: char| c.is_control() && c != '\n'));
    }
}

/// The relative luminance of `#rrggbb` (WCAG 2).
fn luminance(colour: &str) -> f64 {
    let part = |at: usize| {
        let value = f64::from(u8::from_str_radix(&colour[at..at + 2], 16).unwrap()) / 255.0;
        if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
    };
    0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5)
}

#[test]
fn text_can_be_read_in_both_colour_schemes() {
    let schemes: Vec<_> =
        STYLE.split(":root {").skip(1).map(|rest| rest.split('}').next().unwrap()).collect();
    assert_eq!(schemes.len(), 2, "light and dark");
    for scheme in schemes {
        let colour = |name: &str| {
            let value = scheme.split(&format!("--{name}: ")).nth(1).unwrap();
            luminance(value.split(';').next().unwrap())
        };
        for (text, ground) in [
            ("ink", "back"),
            ("ink", "card"),
            ("ink", "free"),
            ("ink", "warn"),
            ("soft", "back"),
            ("soft", "card"),
            ("soft", "free"),
            ("held-ink", "held"),
            ("sick-ink", "sick"),
            ("sick-ink", "card"),
            ("card", "sick-line"),
            ("link", "back"),
        ] {
            let (a, b) = (colour(text), colour(ground));
            let ratio = (a.max(b) + 0.05) / (a.min(b) + 0.05);
            assert!(ratio >= 4.5, "{text} on {ground}: {ratio:.2}");
        }
    }
}
