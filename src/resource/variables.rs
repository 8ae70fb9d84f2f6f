//! `--variable-per-resource`: a variable for each resource, so that two resources in one container do not hide each
//! other. It does so only while no two names lead to the same variable.

use std::collections::BTreeSet;

use super::policy::{DeviceSelection, OfferPolicy};
use super::sharing::SHARED;
use super::{MigStrategy, ResourceName};
use crate::inventory::Profile;

/// The variable by which the NVIDIA container runtime and CUDA know what a container may see.
pub const VISIBLE_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";

/// `NVIDIA_VISIBLE_DEVICES_MIG_2G_20GB` for `nvidia.com/mig-2g.20gb`.
pub fn variable_of(resource: &str) -> String {
    let short = resource.rsplit('/').next().unwrap_or(resource);
    // NVML's word for the attribute `-me`, which must not look like `+me`.
    let without = short.strip_suffix("-me").filter(|profile| profile.ends_with("gb"));
    let short = without.map_or_else(|| short.to_owned(), |profile| format!("{profile}.no.me"));
    let suffix = short.replace(|c: char| !c.is_ascii_alphanumeric(), "_").to_ascii_uppercase();
    format!("{VISIBLE_DEVICES}_{suffix}")
}

/// Pairs of names that a node may offer under this policy and that lead to the same variable.
pub fn clashes(policy: &OfferPolicy) -> Vec<(ResourceName, ResourceName)> {
    let (names, renamed) = names(policy);
    let mut clashes = Vec::new();
    for (n, name) in names.iter().enumerate() {
        let variable = variable_of(name.as_str());
        let later = names.iter().skip(n + 1);
        let same = later.filter(|other| variable_of(other.as_str()) == variable).cloned();
        let by_default = default_name(policy, &variable)
            .filter(|default| !names.contains(default) && !renamed.contains(default));
        clashes.extend(same.chain(by_default).map(|other| (name.clone(), other)));
    }
    clashes
}

/// The names that the policy gives, besides those that profiles have by default, and the names that no device keeps.
fn names(policy: &OfferPolicy) -> (BTreeSet<ResourceName>, BTreeSet<ResourceName>) {
    let mut names: BTreeSet<_> = policy.gpus.iter().map(|pattern| pattern.name.clone()).collect();
    if policy.strategy != MigStrategy::None {
        names.extend(policy.mig.iter().map(|pattern| pattern.name.clone()));
    }
    let all_gpus_have_another = policy.gpus.iter().any(|pattern| pattern.pattern == "*");
    let all_slices_have_another = policy.mig.iter().any(|pattern| pattern.pattern == "*");
    if !all_gpus_have_another || policy.strategy == MigStrategy::Single && !all_slices_have_another {
        names.insert(ResourceName::gpu());
    }
    let mut renamed = BTreeSet::new();
    for shared in &policy.time_slicing.resources {
        let by_default = policy.time_slicing.rename_by_default.then(|| format!("{}{SHARED}", shared.name));
        let new = shared.rename.clone().or_else(|| by_default?.parse().ok());
        let Some(new) = new.filter(|new| *new != shared.name) else {
            names.insert(shared.name.clone());
            continue;
        };
        names.insert(new);
        if shared.devices == DeviceSelection::All {
            names.remove(&shared.name);
            renamed.insert(shared.name.clone());
        } else {
            names.insert(shared.name.clone());
        }
    }
    (names, renamed)
}

/// The name that a profile has by default whose variable is this one, if there can be such a profile.
fn default_name(policy: &OfferPolicy, variable: &str) -> Option<ResourceName> {
    if policy.strategy != MigStrategy::Mixed {
        return None;
    }
    let suffix = variable.strip_prefix(VISIBLE_DEVICES)?.strip_prefix("_MIG_")?.to_ascii_lowercase();
    let parts: Vec<&str> = suffix.split('_').collect();
    let memory = parts.iter().position(|part| part.ends_with("gb"))?;
    let (sizes, attribute) = parts.split_at(memory + 1);
    let attribute = match attribute {
        [] => String::new(),
        ["no", "me"] => "-me".to_owned(),
        words => format!("+{}", words.join(".")),
    };
    let profile: Profile = format!("{}{attribute}", sizes.join(".")).parse().ok()?;
    profile.gpu_slices()?;
    if policy.mig.iter().any(|pattern| pattern.matches(profile.as_str())) {
        return None;
    }
    ResourceName::mig(&profile).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::policy::{Pattern, SharedResource, TimeSlicing};

    fn mixed(mig: &[(&str, &str)]) -> OfferPolicy {
        let pattern = |(pattern, name): &(&str, &str)| Pattern {
            pattern: (*pattern).to_owned(),
            name: name.parse().unwrap(),
        };
        let strategy = MigStrategy::Mixed;
        OfferPolicy { strategy, mig: mig.iter().map(pattern).collect(), ..OfferPolicy::default() }
    }

    fn told(policy: &OfferPolicy) -> Vec<String> {
        clashes(policy).iter().map(|(a, b)| format!("{a} {b}")).collect()
    }

    #[test]
    fn every_profile_has_a_variable_of_its_own() {
        let names = ["1g.24gb", "1g.24gb+me", "1g.24gb-me", "1g.24gb+me.all", "1g.24gb+gfx", "1c.1g.24gb"];
        let variable = |name: &&str| variable_of(ResourceName::mig(&name.parse().unwrap()).unwrap().as_str());
        let variables: BTreeSet<_> = names.iter().map(variable).collect();
        assert_eq!(variables.len(), names.len(), "{variables:?}");
        assert!(variables.contains("NVIDIA_VISIBLE_DEVICES_MIG_1G_24GB_NO_ME"));
    }

    #[test]
    fn names_that_differ_in_what_a_variable_cannot_say_clash() {
        let policy =
            mixed(&[("1g.*", "a.com/small-one"), ("2g.*", "b.com/small.one"), ("3g.*", "b.com/large")]);
        assert_eq!(told(&policy), ["a.com/small-one b.com/small.one"]);
        assert_eq!(told(&mixed(&[("1g.*", "a.com/gpu")])), ["a.com/gpu nvidia.com/gpu"]);
        assert_eq!(told(&mixed(&[("1g.*", "a.com/small"), ("2g.*", "a.com/small")])), [""; 0]);
        assert_eq!(told(&OfferPolicy::default()), [""; 0]);
    }

    #[test]
    fn a_name_clashes_with_the_one_that_a_profile_has_by_default() {
        let name = "a.com/mig-2g-20gb.me";
        let policy = mixed(&[("1g.*", name)]);
        assert_eq!(told(&policy), [format!("{name} nvidia.com/mig-2g.20gb.me")]);
        assert_eq!(told(&mixed(&[("2g.*", name)])), [""; 0], "that profile has this name");
        let single = OfferPolicy { strategy: MigStrategy::Single, ..policy };
        assert_eq!(told(&single), [""; 0], "no profile has its own name");
        assert_eq!(told(&mixed(&[("1g.*", "a.com/mig-two")])), [""; 0]);
    }

    #[test]
    fn a_name_that_no_device_keeps_clashes_with_nothing() {
        let rename = |devices| SharedResource {
            name: ResourceName::gpu(),
            rename: Some("a.com/gpu".parse().unwrap()),
            devices,
            replicas: 2,
        };
        let policy = |devices| OfferPolicy {
            time_slicing: TimeSlicing { resources: vec![rename(devices)], ..TimeSlicing::default() },
            ..OfferPolicy::default()
        };
        assert_eq!(told(&policy(DeviceSelection::All)), [""; 0]);
        assert_eq!(told(&policy(DeviceSelection::Count(1))), ["a.com/gpu nvidia.com/gpu"]);
    }
}
