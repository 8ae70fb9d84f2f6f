//! Configurations as a node may meet them.

use std::time::Duration;

use super::node::{GPUS, gpu_uuid};
use super::random::Random;
use crate::fixtures::rules;
use crate::health::{HealthPolicy, Recovery};
use crate::resource::policy::{
    DeviceRef, DeviceSelection, OfferPolicy, Pattern, Selector, SharedResource, TimeSlicing,
};
use crate::resource::{MigStrategy, ResourceName};
use crate::supervisor::{Policy, Reload};

/// How long a device stays unhealthy after the last error, for the first time.
pub(super) const QUIET: Duration = Duration::from_secs(1);

fn name(text: &str) -> ResourceName {
    text.parse().unwrap()
}

/// Any configuration.
pub(super) fn any(random: &mut Random) -> Reload {
    let strategies = [MigStrategy::None, MigStrategy::Single, MigStrategy::Mixed, MigStrategy::Mixed];
    let pattern = |pattern: &str, to: &str| Pattern { pattern: pattern.to_owned(), name: name(to) };
    let mut offer =
        OfferPolicy { strategy: random.pick(&strategies).unwrap_or_default(), ..OfferPolicy::default() };
    if random.percent(15) {
        offer.gpus = vec![pattern("*H100*", "nvidia.com/h100")];
    }
    if random.percent(15) {
        offer.mig = vec![pattern("1g.10gb", "nvidia.com/mig-small")];
    }
    if random.percent(15) {
        let gpu = u32::try_from(random.below(GPUS as usize)).unwrap_or(0);
        offer.withhold = vec![Selector::Device(DeviceRef::Uuid(gpu_uuid(gpu)))];
    }
    if random.percent(30) {
        let shared = ["nvidia.com/gpu", "nvidia.com/mig-1g.10gb"][random.below(2)];
        let devices = if random.percent(30) { DeviceSelection::Count(1) } else { DeviceSelection::All };
        let rename = random.percent(30).then(|| name("nvidia.com/gpu-turns"));
        offer.time_slicing = TimeSlicing {
            rename_by_default: random.percent(50),
            fail_requests_greater_than_one: false,
            resources: vec![SharedResource { name: name(shared), rename, devices, replicas: 2 }],
        };
    }
    Reload {
        policy: Policy {
            offer,
            health: HealthPolicy { recovery: Recovery::Auto { quiet: QUIET }, ..HealthPolicy::default() },
            removal_grace: Duration::from_secs(5),
            pod_resources_socket: "/nonexistent".into(),
            fail_on_init_error: false,
        },
        rules: rules(),
    }
}
