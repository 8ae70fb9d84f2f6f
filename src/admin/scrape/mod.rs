//! `/metrics`: what was counted, what is, and what the kernel says of this process.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text::encode};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

mod classic;
mod process;
mod rows;

use crate::devices::state::NodeState;
use crate::metrics::Metrics;
use crate::metrics::table::{Kind, Metric, PREFIX};
use crate::nvml::Status;

/// How metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// What Prometheus asks for.
    OpenMetrics,
    /// What everybody reads.
    Classic,
}

impl Format {
    /// By the request's header `Accept`.
    pub(super) fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Classic }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Everything. `seen`: how the driver gets on, and what is told of the node; `None` before it first does.
pub(super) fn text(metrics: &Metrics, seen: Option<(&Status, &NodeState)>, format: Format) -> String {
    let mut registry = Registry::default();
    let ours = registry.sub_registry_with_prefix(PREFIX);
    metrics.register(ours);
    ours.register_collector(Box::new(Collected(rows::program())));
    if let Some((driver, state)) = seen {
        ours.register_collector(Box::new(Collected(rows::node(driver, state))));
    }
    registry.register_collector(Box::new(Collected(process::read(metrics.started()))));
    let mut text = String::new();
    // Writing to a string does not fail.
    encode(&mut text, &registry).unwrap_or_default();
    match format {
        Format::OpenMetrics => text,
        Format::Classic => classic::from_open_metrics(&text),
    }
}

/// A metric and its samples of this moment.
#[derive(Debug)]
struct Samples {
    metric: &'static Metric,
    rows: Vec<Row>,
}

/// The labels' values, in the order of their names, and the sample's.
type Row = (Vec<String>, Value);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Value {
    Whole(u64),
    Real(f64),
}

impl Value {
    fn encode(self, kind: MetricType, encoder: &mut MetricEncoder<'_>) -> Result<(), Error> {
        match (kind, self) {
            (MetricType::Counter, Self::Whole(value)) => {
                encoder.encode_counter::<NoLabelSet, _, f64>(&value, None)
            }
            (MetricType::Counter, Self::Real(value)) => {
                encoder.encode_counter::<NoLabelSet, _, f64>(&value, None)
            }
            (_, Self::Whole(value)) => encoder.encode_gauge(&value),
            (_, Self::Real(value)) => encoder.encode_gauge(&value),
        }
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(value.into())
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Whole(value as u64)
    }
}

impl Samples {
    /// One sample without labels.
    fn single(metric: &'static Metric, value: impl Into<Value>) -> Self {
        Self { metric, rows: vec![(Vec::new(), value.into())] }
    }

    /// One sample that is all labels.
    fn info(metric: &'static Metric, labels: Vec<String>) -> Self {
        Self { metric, rows: vec![(labels, Value::Whole(1))] }
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let Metric { name, kind, labels, help, .. } = self.metric;
        let kind = match kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Info => MetricType::Info,
            // Only what was counted has these, and it encodes itself.
            Kind::Histogram => return Err(Error),
        };
        let mut encoder = encoder.encode_descriptor(name, &format!("{help}."), None, kind)?;
        for (values, value) in &self.rows {
            let labels: Vec<_> = labels.iter().copied().zip(values.iter().map(String::as_str)).collect();
            if let MetricType::Info = kind {
                encoder.encode_info(&labels)?;
                continue;
            }
            if labels.is_empty() {
                value.encode(kind, &mut encoder)?;
            } else {
                value.encode(kind, &mut encoder.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// Samples that are there already when the registry asks for them.
#[derive(Debug)]
struct Collected(Vec<Samples>);

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        // A metric without samples says nothing.
        self.0
            .iter()
            .filter(|samples| !samples.rows.is_empty())
            .try_for_each(|samples| samples.encode(&mut encoder))
    }
}

#[cfg(test)]
mod tests;
