//! Whether Pods could run on a node, and what they would get: `explain --pod`.
//!
//! A Pod is judged by itself, on a node where nothing is in use. CPU, memory, taints and whatever else decides
//! where a Pod runs is not looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

use self::demand::{Amounts, Step};
use self::manifest::PodSpec;
use super::{DeviceView, STRATEGIES, in_words, with_strategy};
use crate::inventory::Inventory;
use crate::resource::allocate::Rules;
use crate::resource::policy::OfferPolicy;
use crate::resource::{MigStrategy, ResourceSet, resolve};

mod assign;
mod demand;
pub mod manifest;
pub mod quantity;
mod render;
mod suggest;

#[cfg(test)]
mod tests;

pub use render::render;

/// What can be said of the Pods of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodAnswers {
    /// One for each, in the order of the file.
    pub pods: Vec<PodAnswer>,
}

/// What can be said of one Pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodAnswer {
    /// `Pod train` or `Deployment web`.
    pub name: String,
    /// What it asks for as a whole, as the scheduler counts it.
    pub asks: BTreeMap<String, u64>,
    /// What the API server would refuse, or count as nothing.
    pub mistakes: Vec<String>,
    /// What it asks for and other plugins offer, which is not judged here.
    pub not_judged: Vec<String>,
    /// None, single and mixed, or those of them that were asked for.
    pub strategies: Vec<Verdict>,
}

/// Whether it could run under one strategy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// Which.
    #[serde(serialize_with = "in_words")]
    pub strategy: MigStrategy,
    /// Whether it is the one that is set.
    pub configured: bool,
    /// Whether an empty node could run it.
    pub fits: bool,
    /// How many such Pods an empty node has devices for; `None` where it asks for none.
    pub room: Option<u64>,
    /// Why it could not run.
    pub obstacles: Vec<Obstacle>,
    /// What its containers would get, where it could run: one entry for each container and resource.
    pub containers: Vec<ContainerView>,
    /// What is worth knowing before it runs.
    pub warnings: Vec<String>,
}

/// What a container gets of one resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerView {
    /// The container's name.
    pub name: String,
    /// The resource's name.
    pub resource: String,
    /// Which of its devices.
    pub devices: Vec<DeviceView>,
    /// Environment variables.
    pub environment: Vec<(String, String)>,
    /// Device nodes.
    pub nodes: Vec<PathBuf>,
    /// CDI names.
    pub cdi_devices: Vec<String>,
}

/// Why a Pod could not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// Nothing is offered under this name.
    NotOffered {
        /// The name.
        resource: String,
        /// The offered name that is nearest to it.
        did_you_mean: Option<String>,
        /// Strategies that do offer it.
        offered_under: Vec<MigStrategy>,
    },
    /// There are not as many.
    TooFew {
        /// The name.
        resource: String,
        /// How many it asks for.
        wanted: u64,
        /// How many there are.
        capacity: u64,
        /// How many of them can be handed out.
        allocatable: u64,
    },
    /// The plugin would refuse the container.
    Refused {
        /// The resource's name.
        resource: String,
        /// The container's name.
        container: String,
        /// What it would say.
        reason: String,
    },
}

impl Obstacle {
    /// A word that stays the same from version to version.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotOffered { .. } => "not-offered",
            Self::TooFew { .. } => "too-few",
            Self::Refused { .. } => "refused",
        }
    }

    /// The resource that it is about.
    pub fn resource(&self) -> &str {
        match self {
            Self::NotOffered { resource, .. }
            | Self::TooFew { resource, .. }
            | Self::Refused { resource, .. } => resource,
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOffered { resource, did_you_mean, offered_under } => {
                write!(f, "{resource} is not offered here")?;
                if let Some(nearest) = did_you_mean {
                    write!(f, "; did you mean {nearest}?")?;
                }
                let strategies: Vec<_> = offered_under.iter().map(ToString::to_string).collect();
                match strategies.len() {
                    0 => Ok(()),
                    1 => write!(f, "; the strategy {} offers it", strategies.join("")),
                    _ => write!(f, "; the strategies {} offer it", strategies.join(" and ")),
                }
            }
            Self::TooFew { resource, wanted, capacity, allocatable } => {
                write!(f, "{wanted} {resource} wanted, {capacity} there")?;
                if allocatable < capacity { write!(f, ", {allocatable} of them healthy") } else { Ok(()) }
            }
            Self::Refused { container, reason, .. } => {
                write!(f, "container {container} would be refused: {reason}")
            }
        }
    }
}

impl Serialize for Obstacle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Wire<'a> {
            code: &'static str,
            resource: &'a str,
            message: String,
        }
        let wire = Wire { code: self.code(), resource: self.resource(), message: self.to_string() };
        wire.serialize(serializer)
    }
}

/// Judges each of `pods` under each strategy. Offers and answers are made as `policy`, but for its strategy, and
/// `rules` say.
pub fn judge(inventory: &Inventory, policy: &OfferPolicy, rules: &Rules, pods: &[PodSpec]) -> PodAnswers {
    let offers = STRATEGIES.map(|strategy| (strategy, resolve(inventory, &with_strategy(policy, strategy))));
    let judgement = Judgement { inventory, configured: policy.strategy, rules, offers: &offers };
    PodAnswers { pods: pods.iter().map(|pod| judgement.of(pod)).collect() }
}

impl PodAnswers {
    /// The same with nothing but `strategy`.
    #[must_use]
    pub fn only(mut self, strategy: MigStrategy) -> Self {
        for pod in &mut self.pods {
            pod.strategies.retain(|verdict| verdict.strategy == strategy);
        }
        self
    }

    /// The Pods that could not run under `strategy`.
    pub fn misfits(&self, strategy: MigStrategy) -> Vec<&str> {
        let fits = |pod: &&PodAnswer| {
            pod.strategies.iter().any(|verdict| verdict.strategy == strategy && verdict.fits)
        };
        self.pods.iter().filter(|pod| !fits(pod)).map(|pod| pod.name.as_str()).collect()
    }
}

struct Judgement<'a> {
    inventory: &'a Inventory,
    configured: MigStrategy,
    rules: &'a Rules,
    offers: &'a [(MigStrategy, ResourceSet)],
}

impl Judgement<'_> {
    fn of(&self, pod: &PodSpec) -> PodAnswer {
        let (steps, mistakes) = demand::steps(pod);
        let asks = demand::effective(&steps);
        let (ours, others): (Amounts, Amounts) =
            asks.clone().into_iter().partition(|(name, _)| self.is_ours(name));
        let verdicts = self.offers.iter().map(|(strategy, set)| Verdict {
            strategy: *strategy,
            configured: *strategy == self.configured,
            ..self.verdict(set, &steps, &ours, mistakes.is_empty())
        });
        PodAnswer {
            name: pod.name.clone(),
            strategies: verdicts.collect(),
            asks,
            mistakes,
            not_judged: others.into_keys().collect(),
        }
    }

    /// Other plugins' resources are none of our business, but what looks like a slip of the pen is.
    fn is_ours(&self, name: &str) -> bool {
        let mut offered = self.offers.iter().flat_map(|(_, set)| set.resources.keys());
        name.starts_with("nvidia.com/gpu")
            || name.starts_with("nvidia.com/mig-")
            || offered.any(|known| suggest::nearest(name, std::iter::once(known.as_str())).is_some())
    }

    fn verdict(&self, set: &ResourceSet, steps: &[Step], ours: &Amounts, valid: bool) -> Verdict {
        let mut verdict = Verdict {
            strategy: MigStrategy::None,
            configured: false,
            fits: valid,
            room: None,
            obstacles: Vec::new(),
            containers: Vec::new(),
            warnings: Vec::new(),
        };
        let supply = supply(set);
        verdict.obstacles =
            ours.iter().filter_map(|(name, &wanted)| self.obstacle(&supply, name, wanted)).collect();
        if verdict.obstacles.is_empty() && valid {
            match assign::assign(self.inventory, set, self.rules, steps) {
                Ok(containers) => {
                    verdict.warnings = warnings(self.inventory, &containers);
                    verdict.containers = containers;
                    let rooms = ours
                        .iter()
                        .filter_map(|(name, wanted)| supply.get(name.as_str())?.1.checked_div(*wanted));
                    verdict.room = rooms.min();
                }
                Err(obstacle) => verdict.obstacles.push(obstacle),
            }
        }
        verdict.fits = valid && verdict.obstacles.is_empty();
        verdict
    }

    fn obstacle(&self, supply: &BTreeMap<&str, (u64, u64)>, name: &str, wanted: u64) -> Option<Obstacle> {
        let resource = name.to_owned();
        let Some(&(capacity, allocatable)) = supply.get(name) else {
            let elsewhere =
                self.offers.iter().filter(|(_, set)| set.resources.keys().any(|key| key.as_str() == name));
            return Some(Obstacle::NotOffered {
                resource,
                did_you_mean: suggest::nearest(name, supply.keys().copied()).map(str::to_owned),
                offered_under: elsewhere.map(|(strategy, _)| *strategy).collect(),
            });
        };
        (wanted > allocatable).then_some(Obstacle::TooFew { resource, wanted, capacity, allocatable })
    }
}

/// How many there are, and how many can be handed out, by name.
fn supply(set: &ResourceSet) -> BTreeMap<&str, (u64, u64)> {
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let counts = set.resources.iter().map(|(name, devices)| {
        let healthy = devices.iter().filter(|device| device.is_healthy()).count();
        (name.as_str(), (count(devices.len()), count(healthy)))
    });
    counts.collect()
}

/// What the kubelet and CUDA make of several slices in one container, and of a GPU in MIG mode.
fn warnings(inventory: &Inventory, containers: &[ContainerView]) -> Vec<String> {
    let mut warnings = Vec::new();
    // All entries of a container stand together.
    for entries in containers.chunk_by(|one, next| one.name == next.name) {
        let Some(first) = entries.first() else { continue };
        let mut values: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
        for entry in entries {
            for (variable, value) in &entry.environment {
                let (known, resource) = values.entry(variable).or_insert((value, &entry.resource));
                if known != value {
                    warnings.push(format!(
                        "container {}: {resource} and {} both set {variable}, and the kubelet keeps one of them: \
                         which, cannot be told beforehand",
                        first.name, entry.resource
                    ));
                }
            }
        }
        let whole =
            entries.iter().flat_map(|entry| &entry.devices).filter(|device| device.mig_device.is_none());
        let in_mig_mode = |index| inventory.gpus.iter().any(|gpu| gpu.index == index && gpu.mig_enabled());
        for device in whole.filter(|device| in_mig_mode(device.gpu)) {
            warnings.push(format!(
                "container {}: GPU {} is in MIG mode, so no CUDA program can use it as a whole",
                first.name, device.gpu
            ));
        }
        let slices =
            entries.iter().flat_map(|entry| &entry.devices).filter(|device| device.profile.is_some());
        let slices: BTreeSet<&str> = slices.map(|device| device.index.as_str()).collect();
        if slices.len() > 1 {
            warnings.push(format!(
                "container {}: a CUDA program uses one MIG device, and this container gets {}",
                first.name,
                slices.len()
            ));
        }
    }
    warnings
}
