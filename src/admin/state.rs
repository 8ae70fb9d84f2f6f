//! From what the supervisor shows to what is told over HTTP: the one place that knows both.

use std::sync::Arc;

use super::holders::Holders;
use super::probes::no_answer;
use crate::devices::state::{
    Attribution, DeviceState, DriverState, GpuState, Holder, NodeState, PluginState, ReasonState,
    RecoveryRule, ResourceState, WithheldState,
};
use crate::health::{NOT_HEARD, Rule, has_instances, is_heard};
use crate::inventory::Inventory;
use crate::kubelet::Registration;
use crate::nvml::Watched;
use crate::resource::{Device, ResourceName};
use crate::supervisor::{Served, Snapshot};

/// All that can be told of the node.
pub(super) fn of(snapshot: &Snapshot, holders: &Holders) -> NodeState {
    let inventory = snapshot.inventory.as_deref();
    NodeState {
        inventory: inventory.cloned().unwrap_or_default(),
        plugin: Some(PluginState {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            driver_root: snapshot.driver_root.clone(),
            driver: driver(snapshot),
            no_driver: snapshot.no_driver.clone(),
            no_answer: snapshot.no_answer.as_ref().map(|why| no_answer(why)),
            on_hold: snapshot.on_hold,
            strategy: snapshot.strategy.to_string(),
            event_attribution: inventory.and_then(attribution),
            gpus: gpus(snapshot),
            resources: snapshot
                .resources
                .iter()
                .map(|(name, served)| resource(name, served, holders))
                .collect(),
            withheld: snapshot.withheld.iter().map(withheld).collect(),
            warnings: snapshot.warnings.iter().chain(&snapshot.held_unknown).cloned().collect(),
            holders_unknown: holders.unknown.clone(),
        }),
    }
}

fn driver(snapshot: &Snapshot) -> DriverState {
    match (&snapshot.no_driver, &snapshot.inventory) {
        (Some(_), _) => DriverState::Absent,
        (None, Some(_)) => DriverState::Present,
        (None, None) => DriverState::Unknown,
    }
}

fn attribution(inventory: &Inventory) -> Option<Attribution> {
    let mut cut = inventory.gpus.iter().filter(|gpu| has_instances(gpu, inventory));
    let heard = is_heard(cut.next()?, inventory)?;
    Some(if heard { Attribution::Instance } else { Attribution::None })
}

fn gpus(snapshot: &Snapshot) -> Vec<GpuState> {
    let watched = snapshot.driver.watched();
    let Some(inventory) = &snapshot.inventory else { return Vec::new() };
    let not_heard =
        |gpu: &crate::inventory::Gpu| (is_heard(gpu, inventory) == Some(false)).then(|| NOT_HEARD.to_owned());
    let state = |gpu: &crate::inventory::Gpu| GpuState {
        uuid: gpu.uuid.clone(),
        recovery: snapshot.recovery.get(&gpu.uuid).map_or(RecoveryRule::Off, |rule| (*rule).into()),
        not_watched: match watched.get(&gpu.uuid) {
            Some(Watched::Nothing(why)) => Some(why.clone()),
            Some(Watched::Events(_)) | None => not_heard(gpu),
        },
    };
    inventory.gpus.iter().map(state).collect()
}

impl From<Rule> for RecoveryRule {
    fn from(rule: Rule) -> Self {
        match rule {
            Rule::Off => Self::Off,
            Rule::ByRecoveryAction => Self::RecoveryAction,
            Rule::ByReset => Self::Reset,
        }
    }
}

fn resource(name: &ResourceName, served: &Served, holders: &Holders) -> ResourceState {
    let not_registered = match served.endpoint.registration() {
        Registration::Registered => None,
        Registration::Missing(why) => Some(why),
    };
    ResourceState {
        name: name.to_string(),
        registered: not_registered.is_none(),
        not_registered,
        devices: served.devices.iter().map(|device| self::device(name, device, holders)).collect(),
    }
}

fn device(resource: &ResourceName, device: &Device, holders: &Holders) -> DeviceState {
    let reason = |reason: &crate::resource::Reason| ReasonState {
        word: reason.word().to_owned(),
        text: reason.to_string(),
    };
    DeviceState {
        id: device.id.to_string(),
        uuid: device.uuid.clone(),
        index: device.index(),
        profile: device.mig.as_ref().map(|mig| mig.profile.to_string()),
        healthy: device.is_healthy(),
        reasons: device.reasons.iter().map(reason).collect(),
        held_by: held_by(resource, device, holders),
    }
}

fn held_by(resource: &ResourceName, device: &Device, holders: &Holders) -> Vec<Holder> {
    let holdings = Arc::clone(&holders.holdings);
    let its = holdings
        .iter()
        .filter(|holding| holding.device == device.id && holding.resource == resource.as_str());
    let holder = |holding: &crate::kubelet::Holding| Holder {
        namespace: holding.namespace.clone(),
        pod: holding.pod.clone(),
        container: holding.container.clone(),
    };
    its.map(holder).collect()
}

fn withheld(withheld: &crate::resource::Withheld) -> WithheldState {
    WithheldState {
        index: withheld.index.clone(),
        uuid: withheld.id.to_string(),
        reason: withheld.reason.clone(),
    }
}
