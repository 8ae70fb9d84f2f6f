//! What of a Kubernetes object matters here: its containers and what they ask for.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::quantity::Quantity;

/// Any object. Whatever is not read here is not looked at, so that one file can hold a whole application.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Document {
    kind: Option<String>,
    metadata: Option<Metadata>,
    spec: Option<Spec>,
    /// Of a `List`.
    items: Option<Vec<Document>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    generate_name: Option<String>,
}

/// A Pod's `spec`, or that of something with a Pod's template in it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
    template: Option<Template>,
    /// Of a `CronJob`.
    job_template: Option<Template>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Template {
    spec: Option<Box<Spec>>,
}

/// A container in a manifest.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Container {
    /// Its name.
    pub name: String,
    /// `Always` makes an init container a sidecar.
    pub restart_policy: Option<String>,
    /// What it asks for.
    pub resources: Option<Resources>,
}

/// `resources`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// At most.
    pub limits: Option<BTreeMap<String, Quantity>>,
    /// At least.
    pub requests: Option<BTreeMap<String, Quantity>>,
}

/// A Pod, or the template of one.
#[derive(Debug, Clone, Default)]
pub struct PodSpec {
    /// `Pod train` or `Deployment web`.
    pub name: String,
    /// They run one after the other, before the others; sidecars go on.
    pub init_containers: Vec<Container>,
    /// They run side by side.
    pub containers: Vec<Container>,
}

impl Document {
    /// What it is.
    pub fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or("something without a kind")
    }

    fn name(&self) -> String {
        let metadata = self.metadata.clone().unwrap_or_default();
        let name = metadata.name.or_else(|| metadata.generate_name.map(|name| name + "…"));
        format!("{} {}", self.kind.as_deref().unwrap_or("Pod"), name.as_deref().unwrap_or("without a name"))
    }
}

/// All Pods and templates in the order of the file. Not the kind but the shape tells them, so that other makers of
/// Pods than Kubernetes' own are understood where they are built alike.
pub fn pods(documents: &[Document]) -> Vec<PodSpec> {
    let mut pods = Vec::new();
    for document in documents {
        if let Some(items) = &document.items {
            pods.extend(self::pods(items));
        }
        if let Some((init_containers, containers)) = document.spec.as_ref().and_then(containers) {
            pods.push(PodSpec { name: document.name(), init_containers, containers });
        }
    }
    pods
}

fn containers(spec: &Spec) -> Option<(Vec<Container>, Vec<Container>)> {
    if let Some(containers) = &spec.containers {
        return Some((spec.init_containers.clone().unwrap_or_default(), containers.clone()));
    }
    let templates = [&spec.template, &spec.job_template].into_iter().flatten();
    templates.filter_map(|template| template.spec.as_deref()).find_map(containers)
}
