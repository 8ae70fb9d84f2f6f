//! The tables of `docs/metrics.md`, made from the table of metrics; a test compares them.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::table::*;

impl Kind {
    /// What comes after the name of a sample.
    fn suffix(self) -> &'static str {
        match self {
            Self::Counter => "_total",
            Self::Info => "_info",
            Self::Gauge | Self::Histogram => "",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "gauge, always 1",
        }
    }
}

impl Metric {
    /// Whether every Prometheus client has it under this name.
    fn is_of_process(&self) -> bool {
        PROCESS.iter().any(|metric| std::ptr::eq(*metric, self))
    }

    /// The name that a query has.
    pub(crate) fn full_name(&self) -> String {
        let prefix = if self.is_of_process() { String::new() } else { format!("{PREFIX}_") };
        format!("{prefix}{}{}", self.name, self.kind.suffix())
    }
}

const PROCESS: &[&Metric] = &[&CPU, &RESIDENT, &VIRTUAL, &START, &OPEN_FDS, &THREADS];

/// All of them, as the page in `docs` groups them.
pub(crate) const GROUPS: &[(&str, &[&Metric])] = &[
    ("Resources", &[&CAPACITY, &ALLOCATABLE, &ALLOCATED, &REGISTERED, &DEVICES, &WITHHELD]),
    (
        "Devices and the pods that hold them",
        &[&DEVICE_INFO, &DEVICE_MEMORY, &DEVICE_HEALTHY, &DEVICE_HOLDER, &POD_RESOURCES_UP],
    ),
    (
        "GPUs and their health",
        &[
            &GPU_INFO,
            &GPU_USABLE,
            &RECOVERY_RULE,
            &RECOVERY_ACTION,
            &EVENTS_HEARD,
            &EVENT_ATTRIBUTION,
            &XIDS,
            &HEALTH_EVENTS,
        ],
    ),
    (
        "The kubelet",
        &[
            &ALLOCATIONS,
            &ALLOCATION_ERRORS,
            &ALLOCATION_DURATION,
            &PREFERRED_ALLOCATIONS,
            &REGISTRATIONS,
            &REGISTRATION_ERRORS,
            &KUBELET_RESTARTS,
        ],
    ),
    (
        "The driver",
        &[&DRIVER_UP, &DRIVER_INFO, &ON_HOLD, &NVML_CALLS, &NVML_SECONDS, &NVML_HANGING, &NVML_STALLED],
    ),
    (
        "The program",
        &[
            &BUILD,
            &STRATEGY,
            &CONFIG_RELOADS,
            &CONFIG_GOOD,
            &CONFIG_WARNINGS,
            &CPU,
            &RESIDENT,
            &VIRTUAL,
            &START,
            &OPEN_FDS,
            &THREADS,
        ],
    ),
];

/// All of them.
pub(crate) fn all() -> impl Iterator<Item = &'static Metric> {
    GROUPS.iter().flat_map(|(_, metrics)| metrics.iter().copied())
}

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");

/// What stands in the page between these two lines is made from the table.
const MARKS: [&str; 2] = ["<!-- made from src/metrics/table.rs -->\n", "<!-- end of it -->\n"];

fn tables() -> String {
    let mut page = String::new();
    for (heading, metrics) in GROUPS {
        write!(page, "\n### {heading}\n\n| metric | kind | labels | meaning |\n|---|---|---|---|\n").unwrap();
        for metric in *metrics {
            let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let values =
                if metric.values.is_empty() { String::new() } else { format!("; {}", metric.values) };
            let (name, kind, labels) = (metric.full_name(), metric.kind.word(), labels.join(", "));
            writeln!(page, "| `{name}` | {kind} | {labels} | {}{values} |", metric.help).unwrap();
        }
    }
    page + "\n"
}

/// The page with other tables in it.
fn with(page: &str, tables: &str) -> String {
    let (before, rest) = page.split_once(MARKS[0]).unwrap();
    let (_, after) = rest.split_once(MARKS[1]).unwrap();
    [before, MARKS[0], tables, MARKS[1], after].concat()
}

#[test]
fn the_tables_in_docs_are_made_from_this_one() {
    let page = std::fs::read_to_string(FILE).unwrap();
    assert!(page == with(&page, &tables()), "run: cargo test --lib rewrite_the_metrics_page -- --ignored");
}

#[test]
#[ignore = "it writes docs/metrics.md"]
fn rewrite_the_metrics_page() {
    let page = std::fs::read_to_string(FILE).unwrap();
    std::fs::write(FILE, with(&page, &tables())).unwrap();
}

#[test]
fn names_follow_the_rules_of_prometheus() {
    let mut seen = BTreeSet::new();
    for metric in all() {
        let name = metric.full_name();
        assert!(seen.insert(name.clone()), "{name} twice");
        let words = metric.labels.iter().copied().chain([name.as_str()]);
        for word in words {
            assert!(word.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{word}");
        }
        assert!(!metric.name.ends_with("_total") && !metric.name.ends_with("_info"), "{name}");
        assert!(!metric.help.ends_with('.') && !metric.help.is_empty(), "{name}");
    }
}
