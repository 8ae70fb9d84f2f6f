//! What happens, counted; what is, is read from a [`Snapshot`](crate::supervisor::Snapshot) at scrape time.
//!
//! Prometheus' rules hold: names with units, labels with few values.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric as Registrable, Registry};

#[cfg(test)]
pub(crate) mod reference;
pub(crate) mod table;

use self::table::Metric;
use crate::health::{EventKind, HealthEvent};
use crate::resource::ResourceName;

/// Upper bounds in seconds. An `Allocate` takes well below a millisecond, or up to 2 s where it waits for a look at the
/// driver.
const BUCKETS: [f64; 10] = [0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25, 1.0, 2.5];

/// What one larger than this is called: Xids are small numbers, and a label must not have any number of values.
const LARGEST_XID: u64 = 999;

/// All counters of the program. Clones count into the same.
#[derive(Debug, Clone)]
pub struct Metrics {
    started: SystemTime,
    reloads: Family<[(&'static str, &'static str); 1], Counter>,
    last_reload_successful: Gauge,
    allocations: Family<ResultLabels, Counter>,
    allocation_errors: Family<ReasonLabels, Counter>,
    allocation_duration: Family<ResourceLabel, Histogram, fn() -> Histogram>,
    preferred_allocations: Family<ResourceLabel, Counter>,
    registrations: Family<ReasonLabels, Counter>,
    registration_errors: Family<ResourceLabel, Counter>,
    kubelet_restarts: Counter,
    xids: Family<XidLabels, Counter>,
    health_events: Family<[(&'static str, &'static str); 1], Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabel {
    resource: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    resource: Arc<str>,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    resource: Arc<str>,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct XidLabels {
    gpu_uuid: Arc<str>,
    xid: Arc<str>,
    counted: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Nothing has happened, and the configuration that was loaded at start was good.
    pub fn new() -> Self {
        let metrics = Self {
            started: SystemTime::now(),
            reloads: Family::default(),
            last_reload_successful: Gauge::default(),
            allocations: Family::default(),
            allocation_errors: Family::default(),
            allocation_duration: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            preferred_allocations: Family::default(),
            registrations: Family::default(),
            registration_errors: Family::default(),
            kubelet_restarts: Counter::default(),
            xids: Family::default(),
            health_events: Family::default(),
        };
        metrics.last_reload_successful.set(1);
        // A counter that begins at its first event hides that event from rates.
        for result in ["success", "error"] {
            drop(metrics.reloads.get_or_create(&[("result", result)]));
        }
        for kind in EVERY_KIND {
            drop(metrics.health_events.get_or_create(&[("kind", kind.word())]));
        }
        metrics
    }

    /// When the counters began.
    pub(crate) fn started(&self) -> SystemTime {
        self.started
    }

    /// The configuration was read again; it was good, or the last good one stays.
    pub fn count_reload(&self, good: bool) {
        let result = if good { "success" } else { "error" };
        self.reloads.get_or_create(&[("result", result)]).inc();
        self.last_reload_successful.set(good.into());
    }

    /// A resource is served from now on: its counters begin at 0.
    pub(crate) fn begin(&self, resource: &ResourceName) {
        let resource = Arc::<str>::from(resource.as_str());
        for result in ["success", "error"] {
            drop(self.allocations.get_or_create(&ResultLabels { resource: Arc::clone(&resource), result }));
        }
        let label = ResourceLabel { resource };
        drop(self.allocation_duration.get_or_create(&label));
        drop(self.preferred_allocations.get_or_create(&label));
        drop(self.registration_errors.get_or_create(&label));
    }

    /// An `Allocate` was answered; `error`: one word for why it was refused.
    pub(crate) fn count_allocation(
        &self,
        resource: &ResourceName,
        took: Duration,
        error: Option<&'static str>,
    ) {
        let resource = Arc::<str>::from(resource.as_str());
        let result = if error.is_none() { "success" } else { "error" };
        let labels = ResultLabels { resource: Arc::clone(&resource), result };
        self.allocations.get_or_create(&labels).inc();
        if let Some(reason) = error {
            let labels = ReasonLabels { resource: Arc::clone(&resource), reason };
            self.allocation_errors.get_or_create(&labels).inc();
        }
        self.allocation_duration.get_or_create(&ResourceLabel { resource }).observe(took.as_secs_f64());
    }

    /// A `GetPreferredAllocation` was answered.
    pub(crate) fn count_preferred_allocation(&self, resource: &ResourceName) {
        self.preferred_allocations.get_or_create(&label(resource)).inc();
    }

    /// A resource was registered; one word for why that was needed.
    pub(crate) fn count_registration(&self, resource: &ResourceName, reason: &'static str) {
        let labels = ReasonLabels { resource: resource.as_str().into(), reason };
        self.registrations.get_or_create(&labels).inc();
    }

    /// A resource could not be registered.
    pub(crate) fn count_registration_error(&self, resource: &ResourceName) {
        self.registration_errors.get_or_create(&label(resource)).inc();
    }

    /// The kubelet has made a new socket.
    pub(crate) fn count_kubelet_restart(&self) {
        self.kubelet_restarts.inc();
    }

    /// The driver reported something; whether it makes devices sick.
    pub fn count_event(&self, event: &HealthEvent, counted: bool) {
        self.health_events.get_or_create(&[("kind", event.kind.word())]).inc();
        if let EventKind::Xid(number) = event.kind {
            let xid = if number > LARGEST_XID { "other".into() } else { number.to_string().into() };
            let counted = if counted { "true" } else { "false" };
            let labels = XidLabels { gpu_uuid: event.gpu_uuid.as_str().into(), xid, counted };
            self.xids.get_or_create(&labels).inc();
        }
    }

    /// Registers everything in a registry that has the prefix.
    pub(crate) fn register(&self, registry: &mut Registry) {
        fn add(registry: &mut Registry, metric: &Metric, family: impl Registrable) {
            registry.register(metric.name, metric.help, family);
        }
        add(registry, &table::ALLOCATIONS, self.allocations.clone());
        add(registry, &table::ALLOCATION_ERRORS, self.allocation_errors.clone());
        add(registry, &table::ALLOCATION_DURATION, self.allocation_duration.clone());
        add(registry, &table::PREFERRED_ALLOCATIONS, self.preferred_allocations.clone());
        add(registry, &table::REGISTRATIONS, self.registrations.clone());
        add(registry, &table::REGISTRATION_ERRORS, self.registration_errors.clone());
        add(registry, &table::KUBELET_RESTARTS, self.kubelet_restarts.clone());
        add(registry, &table::XIDS, self.xids.clone());
        add(registry, &table::HEALTH_EVENTS, self.health_events.clone());
        add(registry, &table::CONFIG_RELOADS, self.reloads.clone());
        add(registry, &table::CONFIG_GOOD, self.last_reload_successful.clone());
    }
}

const EVERY_KIND: [EventKind; 6] = [
    EventKind::Xid(0),
    EventKind::DoubleBitEcc,
    EventKind::FatalPoison,
    EventKind::GpuUnavailable,
    EventKind::RecoveryAction,
    EventKind::MigConfigChange,
];

fn label(resource: &ResourceName) -> ResourceLabel {
    ResourceLabel { resource: resource.as_str().into() }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    fn has(metrics: &Metrics, line: &str) {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(text.lines().any(|other| other == line), "{line} in\n{text}");
    }

    #[test]
    fn reloads_are_counted_by_result() {
        let metrics = Metrics::new();
        has(&metrics, "config_last_reload_successful 1");
        has(&metrics, "config_reloads_total{result=\"error\"} 0");
        metrics.count_reload(false);
        has(&metrics, "config_last_reload_successful 0");
        has(&metrics, "config_reloads_total{result=\"error\"} 1");
        metrics.count_reload(true);
        has(&metrics, "config_last_reload_successful 1");
        has(&metrics, "config_reloads_total{result=\"success\"} 1");
    }

    #[test]
    fn events_are_counted_by_kind_and_xids_by_number() {
        let metrics = Metrics::new();
        let event = |kind| HealthEvent {
            gpu_uuid: "GPU-a".to_owned(),
            gpu_instance: Some(1),
            compute_instance: None,
            kind,
            at: SystemTime::now(),
        };
        metrics.count_event(&event(EventKind::Xid(94)), true);
        metrics.count_event(&event(EventKind::Xid(94)), true);
        metrics.count_event(&event(EventKind::Xid(13)), false);
        (1000..2000).for_each(|number| metrics.count_event(&event(EventKind::Xid(number)), true));
        metrics.count_event(&event(EventKind::DoubleBitEcc), true);
        has(&metrics, "xids_total{gpu_uuid=\"GPU-a\",xid=\"94\",counted=\"true\"} 2");
        has(&metrics, "xids_total{gpu_uuid=\"GPU-a\",xid=\"13\",counted=\"false\"} 1");
        has(&metrics, "xids_total{gpu_uuid=\"GPU-a\",xid=\"other\",counted=\"true\"} 1000");
        has(&metrics, "health_events_total{kind=\"xid\"} 1003");
        has(&metrics, "health_events_total{kind=\"double_bit_ecc\"} 1");
        has(&metrics, "health_events_total{kind=\"gpu_unavailable\"} 0");
    }

    #[test]
    fn allocations_are_counted_by_resource_and_result() {
        let metrics = Metrics::new();
        let gpu = ResourceName::gpu();
        metrics.begin(&gpu);
        has(&metrics, "allocations_total{resource=\"nvidia.com/gpu\",result=\"error\"} 0");
        metrics.count_allocation(&gpu, Duration::from_micros(300), None);
        metrics.count_allocation(&gpu, Duration::from_millis(2), Some("unknown"));
        has(&metrics, "allocations_total{resource=\"nvidia.com/gpu\",result=\"success\"} 1");
        has(&metrics, "allocation_errors_total{resource=\"nvidia.com/gpu\",reason=\"unknown\"} 1");
        has(&metrics, "allocation_duration_seconds_bucket{le=\"0.0005\",resource=\"nvidia.com/gpu\"} 1");
        has(&metrics, "allocation_duration_seconds_count{resource=\"nvidia.com/gpu\"} 2");
    }
}
