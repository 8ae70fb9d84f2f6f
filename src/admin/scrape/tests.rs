use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::admin::example::rich;
use crate::health::{EventKind, HealthEvent};
use crate::inventory::EventRight;
use crate::metrics::reference;
use crate::resource::ResourceName;

/// Metrics in which everything has been counted once.
fn counted() -> Metrics {
    let metrics = Metrics::new();
    let gpu = ResourceName::gpu();
    metrics.begin(&gpu);
    metrics.count_allocation(&gpu, Duration::from_millis(1), Some("unknown"));
    metrics.count_registration(&gpu, "start");
    metrics.count_event(
        &HealthEvent {
            gpu_uuid: "GPU-a".to_owned(),
            gpu_instance: None,
            compute_instance: None,
            kind: EventKind::Xid(79),
            at: std::time::SystemTime::now(),
        },
        true,
    );
    metrics
}

fn scraped(format: Format) -> String {
    text(&counted(), Some((&Status::default(), &rich())), format)
}

/// The series of each metric: its sample's name, and its labels.
fn series(text: &str) -> Vec<(String, Vec<String>)> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let parse = |line: &str| {
        let (name, rest) = line.split_once(['{', ' ']).unwrap();
        let labels = rest.rsplit_once('}').map_or("", |(labels, _)| labels);
        let names =
            labels.split("\",").filter_map(|label| label.split_once('=')).map(|(name, _)| name.to_owned());
        (name.to_owned(), names.collect())
    };
    samples.map(parse).collect()
}

#[test]
fn every_metric_that_is_written_is_in_the_table_and_has_its_labels() {
    let table: BTreeMap<_, _> = reference::all().map(|metric| (metric.full_name(), metric.labels)).collect();
    let mut seen = BTreeSet::new();
    for (name, labels) in series(&scraped(Format::Classic)) {
        let parts = ["_bucket", "_sum", "_count"].iter();
        let name = parts.fold(name.as_str(), |name, part| name.strip_suffix(part).unwrap_or(name)).to_owned();
        let Some(known) = table.get(&name) else { panic!("{name} is not in the table") };
        let labels: BTreeSet<_> = labels.iter().map(String::as_str).filter(|label| *label != "le").collect();
        assert_eq!(labels, known.iter().copied().collect(), "{name}");
        seen.insert(name);
    }
    // These have no series before a driver was asked.
    let silent = ["mig_device_plugin_nvml_calls_total", "mig_device_plugin_nvml_call_seconds_total"];
    let missing: Vec<_> = table.keys().filter(|name| !seen.contains(*name)).collect();
    assert_eq!(missing, {
        let mut silent = silent.to_vec();
        silent.sort_unstable();
        silent
    });
}

#[test]
fn no_series_is_told_twice_and_each_is_described() {
    for format in [Format::OpenMetrics, Format::Classic] {
        let text = scraped(format);
        let mut seen = BTreeSet::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
            assert!(seen.insert(series), "{series} twice");
        }
        let described = text.lines().filter(|line| line.starts_with("# TYPE ")).count();
        assert_eq!(described, text.lines().filter(|line| line.starts_with("# HELP ")).count());
    }
    assert!(scraped(Format::OpenMetrics).ends_with("# EOF\n"));
    assert!(!scraped(Format::Classic).contains("# EOF"));
}

#[test]
fn values_are_those_of_the_node() {
    let text = scraped(Format::Classic);
    for line in [
        "mig_device_plugin_capacity{resource=\"nvidia.com/mig-2g.20gb\"} 3",
        "mig_device_plugin_allocatable{resource=\"nvidia.com/mig-2g.20gb\"} 0",
        "mig_device_plugin_allocated{resource=\"nvidia.com/mig-1g.10gb\"} 4",
        "mig_device_plugin_registered{resource=\"nvidia.com/gpu\"} 1",
        "mig_device_plugin_devices{resource=\"nvidia.com/mig-2g.20gb\",gpu=\"0\",profile=\"2g.20gb\",health=\"unhealthy\",reason=\"xid\"} 1",
        "mig_device_plugin_devices{resource=\"nvidia.com/mig-2g.20gb\",gpu=\"3\",profile=\"2g.20gb\",health=\"unhealthy\",reason=\"lost\"} 2",
        "mig_device_plugin_devices{resource=\"nvidia.com/gpu\",gpu=\"7\",profile=\"\",health=\"healthy\",reason=\"\"} 1",
        "mig_device_plugin_driver_info{version=\"580.95.05\",cuda=\"13.0\"} 1",
        "mig_device_plugin_gpu_usable{gpu=\"3\"} 0",
        "mig_device_plugin_recovery_rule{gpu=\"0\",rule=\"recovery_action\"} 1",
        "mig_device_plugin_event_attribution{gpu=\"0\",attribution=\"instance\"} 1",
        "mig_device_plugin_event_attribution{gpu=\"7\",attribution=\"unknown\"} 1",
        "mig_device_plugin_gpu_events_heard{gpu=\"0\"} 1",
        "mig_device_plugin_recovery_action{gpu=\"0\",action=\"none\"} 1",
        "mig_device_plugin_pod_resources_up 1",
        "mig_device_plugin_driver_up 1",
        "mig_device_plugin_on_hold 0",
    ] {
        assert!(text.lines().any(|other| other == line), "{line} in\n{text}");
    }
    for part in [
        "index=\"6:1\",gpu=\"6\",gpu_uuid=\"GPU-5e1f5a3c-1d2b-4a6e-9c3f-000000000006\",profile=\"2c.3g.40gb\",gi=\"7\",ci=\"1\"",
        "holder_namespace=\"jupyter\",holder_pod=\"notebook-anna\",holder_container=\"main\",namespace=\"jupyter\",pod=\"notebook-anna\",container=\"main\"} 1",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

#[test]
fn of_which_gpus_errors_are_heard_depends_on_the_right_and_their_instances() {
    for (right, cut, attribution) in [
        (Some(EventRight::Monitor), Some(1), "instance"),
        (Some(EventRight::Nothing), Some(0), "none"),
        (None, None, "unknown"),
    ] {
        let mut state = rich();
        state.inventory.event_right = right;
        let text = text(&Metrics::new(), Some((&Status::default(), &state)), Format::Classic);
        let heard = |gpu: u32| {
            let start = format!("mig_device_plugin_gpu_events_heard{{gpu=\"{gpu}\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&start)).map(|value| value.parse::<u8>().unwrap())
        };
        assert_eq!((heard(0), heard(7)), (cut, Some(1)), "{right:?}");
        for (gpu, word) in [(0, attribution), (7, "unknown")] {
            let line = format!("event_attribution{{gpu=\"{gpu}\",attribution=\"{word}\"}} 1");
            assert!(text.contains(&line), "{right:?}: {line}");
        }
    }
}

#[test]
fn what_is_not_known_has_no_series() {
    let mut state = rich();
    state.plugin.as_mut().unwrap().holders_unknown = Some("nobody is there".to_owned());
    let text = text(&Metrics::new(), Some((&Status::default(), &state)), Format::Classic);
    assert!(
        !text.contains("mig_device_plugin_allocated")
            && text.contains("mig_device_plugin_pod_resources_up 0")
    );
    let early = super::text(&Metrics::new(), None, Format::Classic);
    assert!(early.contains("mig_device_plugin_build_info") && !early.contains("mig_device_plugin_driver_up"));
}

/// What labels are made of is bounded by the node: GPUs, slices, resources, and words of this program.
#[test]
fn the_number_of_series_is_that_of_devices_and_not_of_events() {
    let (metrics, state) = (counted(), rich());
    let lines = || text(&metrics, Some((&Status::default(), &state)), Format::Classic).lines().count();
    let before = lines();
    let gpu = ResourceName::gpu();
    for n in 0..1000 {
        metrics.count_allocation(&gpu, Duration::from_micros(n), Some("unknown"));
        metrics.count_registration(&gpu, "start");
        metrics.count_preferred_allocation(&gpu);
    }
    assert_eq!(lines(), before);
}

#[test]
fn whoever_asks_for_open_metrics_gets_them() {
    let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
    for other in ["", "*/*", "text/plain"] {
        assert_eq!(Format::accepted(other), Format::Classic);
    }
}
