//! What can be counted, by Prometheus' rules: names with units, labels with few values.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// All metrics of the program. Clones count into the same.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    reloads: Family<ReloadLabels, Counter>,
    last_reload_successful: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    result: ReloadResult,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the label's value is the variant's name")]
enum ReloadResult {
    success,
    error,
}

impl Metrics {
    /// Nothing has been reloaded, and what was loaded at start was good.
    pub fn new() -> Self {
        let metrics = Self::default();
        metrics.last_reload_successful.set(1);
        for result in [ReloadResult::success, ReloadResult::error] {
            drop(metrics.reloads.get_or_create(&ReloadLabels { result }));
        }
        metrics
    }

    /// The configuration was read again; it was good, or the last good one stays.
    pub fn count_reload(&self, good: bool) {
        let result = if good { ReloadResult::success } else { ReloadResult::error };
        self.reloads.get_or_create(&ReloadLabels { result }).inc();
        self.last_reload_successful.set(good.into());
    }

    /// Everything in the text format of `OpenMetrics`.
    pub fn text(&self) -> String {
        let mut registry = Registry::with_prefix("mig_device_plugin");
        registry.register("build", "This program", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        registry.register(
            "config_reloads",
            "Times that the configuration was read again",
            self.reloads.clone(),
        );
        registry.register(
            "config_last_reload_successful",
            "Whether the configuration in force is the one that was read last (1), or an older one (0)",
            self.last_reload_successful.clone(),
        );
        let mut text = String::new();
        // Writing to a string does not fail.
        encode(&mut text, &registry).unwrap_or_default();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reloads_are_counted_by_result() {
        let metrics = Metrics::new();
        let has =
            |line: &str| assert!(metrics.text().lines().any(|other| other == line), "{}", metrics.text());
        has("mig_device_plugin_config_last_reload_successful 1");
        has("mig_device_plugin_config_reloads_total{result=\"error\"} 0");
        metrics.count_reload(false);
        has("mig_device_plugin_config_last_reload_successful 0");
        has("mig_device_plugin_config_reloads_total{result=\"error\"} 1");
        metrics.count_reload(true);
        has("mig_device_plugin_config_last_reload_successful 1");
        has("mig_device_plugin_config_reloads_total{result=\"success\"} 1");
    }
}
