//! `resources.gpus` and `resources.mig`: under which name a product or a profile is offered; and `--withhold`.

use super::policy::{DeviceRef, OfferPolicy, Pattern, Selector};
use super::sharing::is_meant;
use super::{Device, InvalidResourceName, Reason, ResourceName, ResourceSet};
use crate::inventory::{Inventory, Profile};

/// The name of a whole GPU: the first pattern that matches its product name, else `nvidia.com/gpu`.
pub(super) fn gpu_name(policy: &OfferPolicy, product: &str) -> ResourceName {
    first_match(&policy.gpus, product).unwrap_or_else(ResourceName::gpu)
}

/// The name of a slice under the strategy mixed: the first pattern that matches its profile, else
/// `nvidia.com/mig-<profile>`.
pub(super) fn mig_name(policy: &OfferPolicy, profile: &Profile) -> Result<ResourceName, InvalidResourceName> {
    first_match(&policy.mig, profile.as_str()).map_or_else(|| ResourceName::mig(profile), Ok)
}

/// The name of a slice under the strategy single: the first pattern that matches, else `nvidia.com/gpu`.
pub(super) fn single_name(policy: &OfferPolicy, profile: &Profile) -> ResourceName {
    first_match(&policy.mig, profile.as_str()).unwrap_or_else(ResourceName::gpu)
}

fn first_match(patterns: &[Pattern], text: &str) -> Option<ResourceName> {
    patterns.iter().find(|pattern| pattern.matches(text)).map(|pattern| pattern.name.clone())
}

/// Tells which patterns match nothing on this node, so that a typing error does not go unnoticed.
pub(super) fn warn_of_idle_patterns(set: &mut ResourceSet, policy: &OfferPolicy, inventory: &Inventory) {
    let products: Vec<_> = inventory.gpus.iter().map(|gpu| gpu.name.as_str()).collect();
    let profiles: Vec<_> =
        inventory.gpus.iter().flat_map(|gpu| &gpu.mig_devices).map(|mig| mig.profile.as_str()).collect();
    for (key, patterns, texts) in
        [("resources.gpus", &policy.gpus, products), ("resources.mig", &policy.mig, profiles)]
    {
        for pattern in patterns.iter().filter(|pattern| !texts.iter().any(|text| pattern.matches(text))) {
            set.warnings
                .push(format!("{key}: the pattern {:?} matches nothing on this node", pattern.pattern));
        }
    }
}

/// Marks the devices that the configuration takes out of use. They stay listed: the capacity is there, and
/// what pods hold of it goes on.
pub(super) fn withhold(set: &mut ResourceSet, selectors: &[Selector]) {
    for selector in selectors {
        let mut found = false;
        for device in set.resources.values_mut().flatten().filter(|device| is_selected(device, selector)) {
            found = true;
            device.reasons.push(Reason::WithheldByConfig(selector.to_string()));
        }
        if !found {
            set.warnings.push(format!("withhold: {selector} is no device that this node offers"));
        }
    }
}

fn is_selected(device: &Device, selector: &Selector) -> bool {
    match selector {
        Selector::Profile(profile) => device.mig.as_ref().is_some_and(|mig| mig.profile == *profile),
        // A GPU stands for its slices too.
        Selector::Device(DeviceRef::Gpu(gpu)) => device.gpu_index == *gpu,
        Selector::Device(DeviceRef::Uuid(uuid)) => device.uuid == *uuid || device.gpu_uuid == *uuid,
        Selector::Device(name @ DeviceRef::Mig(..)) => is_meant(device, name),
    }
}

#[cfg(test)]
mod tests;
