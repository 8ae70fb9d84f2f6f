//! What is at this moment, as samples: made anew for each scrape, so that nothing that has gone is told of.

use std::collections::BTreeMap;

use super::{Row, Samples, Value};
use crate::devices::state::{DriverState, GpuState, NodeState, PluginState, RecoveryRule, ResourceState};
use crate::health::{has_instances, is_heard};
use crate::inventory::{Gpu, Inventory, MigMode, RecoveryAction};
use crate::metrics::table;
use crate::nvml::Status;

/// What never changes.
pub(super) fn program() -> Vec<Samples> {
    vec![Samples::info(&table::BUILD, vec![env!("CARGO_PKG_VERSION").to_owned()])]
}

/// What is known of the node.
pub(super) fn node(status: &Status, state: &NodeState) -> Vec<Samples> {
    let mut samples = driver(status);
    if let Some(plugin) = &state.plugin {
        samples.extend(resources(plugin));
        samples.extend(of_program(plugin));
        samples.extend(gpus(&state.inventory, plugin));
        samples.extend(devices(&state.inventory, plugin));
    }
    let Inventory { driver_version, cuda_version, .. } = &state.inventory;
    if !driver_version.is_empty() {
        let labels = vec![driver_version.clone(), cuda_version.clone().unwrap_or_default()];
        samples.push(Samples::info(&table::DRIVER_INFO, labels));
    }
    samples
}

fn one() -> Value {
    Value::Whole(1)
}

fn of_program(plugin: &PluginState) -> Vec<Samples> {
    vec![
        Samples::info(&table::STRATEGY, vec![plugin.strategy.clone()]),
        Samples::single(&table::DRIVER_UP, plugin.driver == DriverState::Present),
        Samples::single(&table::ON_HOLD, plugin.on_hold),
        Samples::single(&table::CONFIG_WARNINGS, plugin.warnings.len()),
        Samples::single(&table::WITHHELD, plugin.withheld.len()),
        Samples::single(&table::POD_RESOURCES_UP, plugin.holders_unknown.is_none()),
    ]
}

fn resources(plugin: &PluginState) -> Vec<Samples> {
    let each = |metric, value: &dyn Fn(&ResourceState) -> Value| {
        let row = |resource: &ResourceState| (vec![resource.name.clone()], value(resource));
        Samples { metric, rows: plugin.resources.iter().map(row).collect() }
    };
    let mut samples = vec![
        each(&table::CAPACITY, &|resource| resource.devices.len().into()),
        each(&table::ALLOCATABLE, &|resource| resource.allocatable().into()),
        each(&table::REGISTERED, &|resource| resource.registered.into()),
        Samples { metric: &table::DEVICES, rows: counts(plugin) },
    ];
    if plugin.holders_unknown.is_none() {
        samples.push(each(&table::ALLOCATED, &|resource| resource.allocated().into()));
    }
    samples
}

/// Devices by what they have in common.
fn counts(plugin: &PluginState) -> Vec<Row> {
    let mut counts = BTreeMap::<Vec<String>, u64>::new();
    for resource in &plugin.resources {
        for device in &resource.devices {
            let gpu = device.index.split(':').next().unwrap_or_default();
            let health = if device.healthy { "healthy" } else { "unhealthy" };
            let reason = device.reasons.first().map(|reason| reason.word.clone());
            let labels = vec![
                resource.name.clone(),
                gpu.to_owned(),
                device.profile.clone().unwrap_or_default(),
                health.to_owned(),
                reason.unwrap_or_default(),
            ];
            *counts.entry(labels).or_default() += 1;
        }
    }
    counts.into_iter().map(|(labels, count)| (labels, Value::Whole(count))).collect()
}

fn gpus(inventory: &Inventory, plugin: &PluginState) -> Vec<Samples> {
    let each = |metric, row: &dyn Fn(&Gpu) -> Row| Samples {
        metric,
        rows: inventory.gpus.iter().map(row).collect(),
    };
    let state = |gpu: &Gpu| plugin.gpus.iter().find(|state| state.uuid == gpu.uuid);
    let heard = |gpu: &Gpu| {
        let listened = state(gpu).is_none_or(|state| state.not_watched.is_none());
        let heard = if listened { is_heard(gpu, inventory)? } else { false };
        Some((vec![gpu.index.to_string()], heard.into()))
    };
    let needs = |gpu: &Gpu| {
        let action = gpu.recovery_action.filter(|_| gpu.problem.is_none())?;
        Some((vec![gpu.index.to_string(), self::action(action).to_owned()], one()))
    };
    vec![
        each(&table::GPU_INFO, &|gpu| {
            let (index, mig) = (gpu.index.to_string(), mig(gpu.mig_mode).to_owned());
            (vec![index, gpu.uuid.clone(), gpu.name.clone(), gpu.pci_bus_id.clone(), mig], one())
        }),
        each(&table::GPU_USABLE, &|gpu| (vec![gpu.index.to_string()], gpu.problem.is_none().into())),
        each(&table::RECOVERY_RULE, &|gpu| {
            let rule = state(gpu).map_or("off", |state| rule(state.recovery));
            (vec![gpu.index.to_string(), rule.to_owned()], one())
        }),
        each(&table::EVENT_ATTRIBUTION, &|gpu| {
            let attribution =
                attribution(state(gpu), is_heard(gpu, inventory), has_instances(gpu, inventory));
            (vec![gpu.index.to_string(), attribution.to_owned()], one())
        }),
        Samples { metric: &table::EVENTS_HEARD, rows: inventory.gpus.iter().filter_map(heard).collect() },
        Samples { metric: &table::RECOVERY_ACTION, rows: inventory.gpus.iter().filter_map(needs).collect() },
    ]
}

fn mig(mode: Option<MigMode>) -> &'static str {
    match mode {
        None => "unsupported",
        Some(MigMode { current: true, .. }) => "on",
        Some(MigMode { current: false, .. }) => "off",
    }
}

fn rule(rule: RecoveryRule) -> &'static str {
    match rule {
        RecoveryRule::Off => "off",
        RecoveryRule::RecoveryAction => "recovery_action",
        RecoveryRule::Reset => "reset",
    }
}

fn attribution(gpu: Option<&GpuState>, heard: Option<bool>, has_instances: bool) -> &'static str {
    match (gpu, heard) {
        (Some(GpuState { not_watched: Some(_), .. }), _) | (_, Some(false)) => "none",
        (_, Some(true)) if has_instances => "instance",
        (_, Some(true) | None) => "unknown",
    }
}

fn action(action: RecoveryAction) -> &'static str {
    match action {
        RecoveryAction::None => "none",
        RecoveryAction::Reset => "reset",
        RecoveryAction::Reboot => "reboot",
        RecoveryAction::DrainP2p => "drain_p2p",
        RecoveryAction::DrainAndReset => "drain_and_reset",
        RecoveryAction::RecoverImex => "recover_imex",
        RecoveryAction::Other(_) => "other",
    }
}

/// MIG devices, and GPUs that are not in MIG mode.
fn devices(inventory: &Inventory, plugin: &PluginState) -> Vec<Samples> {
    const MIB: u64 = 1 << 20;
    let empty = |metric| Samples { metric, rows: Vec::new() };
    let mut info = empty(&table::DEVICE_INFO);
    let mut memory = empty(&table::DEVICE_MEMORY);
    let mut healthy = empty(&table::DEVICE_HEALTHY);
    let mut add = |gpu: &Gpu, uuid: &str, index: String, mig: [String; 3], mib: Option<u64>| {
        let offered = plugin.devices(uuid).next();
        let resource = offered.map(|(resource, _)| resource.name.clone()).unwrap_or_default();
        let [profile, gi, ci] = mig;
        let uuid = uuid.to_owned();
        let labels =
            vec![uuid.clone(), index, gpu.index.to_string(), gpu.uuid.clone(), profile, gi, ci, resource];
        info.rows.push((labels, one()));
        memory.rows.extend(mib.map(|mib| (vec![uuid.clone()], Value::Whole(mib * MIB))));
        healthy.rows.extend(offered.map(|(_, device)| (vec![uuid], device.healthy.into())));
    };
    for gpu in &inventory.gpus {
        if !gpu.mig_enabled() || plugin.devices(&gpu.uuid).next().is_some() {
            add(gpu, &gpu.uuid, gpu.index.to_string(), Default::default(), gpu.memory_mib);
        }
        for mig in &gpu.mig_devices {
            let words =
                [mig.profile.to_string(), mig.gpu_instance.to_string(), mig.compute_instance.to_string()];
            add(gpu, &mig.uuid, format!("{}:{}", gpu.index, mig.index), words, Some(mig.memory_mib));
        }
    }
    vec![info, memory, healthy, Samples { metric: &table::DEVICE_HOLDER, rows: holders(plugin) }]
}

fn holders(plugin: &PluginState) -> Vec<Row> {
    let devices = plugin.resources.iter().flat_map(|resource| &resource.devices);
    let mut rows: Vec<_> = devices
        .flat_map(|device| {
            device.held_by.iter().map(|holder| {
                let names = [&holder.namespace, &holder.pod, &holder.container];
                // The second time by the old names of the labels.
                std::iter::once(&device.uuid).chain(names).chain(names).cloned().collect::<Vec<_>>()
            })
        })
        .collect();
    // A container may hold several replicas of one device.
    rows.sort();
    rows.dedup();
    rows.into_iter().map(|labels| (labels, one())).collect()
}

fn driver(status: &Status) -> Vec<Samples> {
    let calls = status.calls();
    let results = calls.iter().flat_map(|(call, count)| {
        let ok = (vec![(*call).to_owned(), "ok".to_owned()], Value::Whole(count.ok));
        let error = |(code, count): (&&str, &u64)| {
            (vec![(*call).to_owned(), (*code).to_owned()], Value::Whole(*count))
        };
        std::iter::once(ok).chain(count.errors.iter().map(error))
    });
    let seconds = calls.iter().map(|(call, count)| (vec![(*call).to_owned()], Value::Real(count.seconds)));
    let stalled = status.stalled_for().unwrap_or_default().as_secs_f64();
    vec![
        Samples { metric: &table::NVML_CALLS, rows: results.collect() },
        Samples { metric: &table::NVML_SECONDS, rows: seconds.collect() },
        Samples::single(&table::NVML_HANGING, status.hanging()),
        Samples::single(&table::NVML_STALLED, Value::Real(stalled)),
    ]
}
