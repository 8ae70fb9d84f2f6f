//! A GPU is given out either as a whole or as slices, and nothing twice.

use super::*;
use crate::fixtures::gpu;
use crate::inventory::{HiddenSlice, Inventory, Problem, Trouble};
use crate::resource::policy::{DeviceSelection, OfferPolicy, SharedResource, TimeSlicing};
use crate::resource::{MigStrategy, resolve};

fn offer(inventory: &Inventory, strategy: MigStrategy) -> ResourceSet {
    resolve(inventory, &OfferPolicy { strategy, ..OfferPolicy::default() })
}

/// `nvidia.com/gpu` in replicas, under that name or another.
fn shared(strategy: MigStrategy, replicas: u32, rename: Option<&str>) -> OfferPolicy {
    let resource = SharedResource {
        name: ResourceName::gpu(),
        rename: rename.map(|name| name.parse().unwrap()),
        devices: DeviceSelection::All,
        replicas,
    };
    let time_slicing = TimeSlicing { resources: vec![resource], ..TimeSlicing::default() };
    OfferPolicy { strategy, time_slicing, ..OfferPolicy::default() }
}

fn step(ledger: &Ledger, wanted: &ResourceSet, inventory: &Inventory, leave: bool) -> Ledger {
    ledger.step(wanted, Some(inventory), |_, _| leave, |_| leave)
}

/// IDs with the reasons of those that are not healthy.
fn reasons(ledger: &Ledger, name: &ResourceName) -> Vec<(String, String)> {
    let list = ledger.lists().get(name).into_iter().flatten();
    list.map(|device| (device.id.to_string(), device.reasons_text())).collect()
}

fn held(id: &str) -> DeviceId {
    DeviceId(id.to_owned())
}

const DROPPED: &str = "no longer offered under this name since the configuration or the layout changed";

#[test]
fn slices_wait_until_their_gpu_has_left_as_a_whole() {
    let inventory = node([mig_gpu(0, &["1g.10gb"]), mig_gpu(1, &["1g.10gb"])]);
    let old = step(&Ledger::default(), &offer(&inventory, MigStrategy::None), &inventory, false);
    let target = offer(&inventory, MigStrategy::Mixed);
    let both = step(&old, &target, &inventory, false);
    let dropped = |id: &str| (id.to_owned(), DROPPED.to_owned());
    assert_eq!(reasons(&both, &ResourceName::gpu()), [dropped("GPU-0"), dropped("GPU-1")]);
    let waits = |gpu: u32| {
        let why = "its GPU may still be in use as a whole";
        (format!("MIG-{gpu}-7-0"), format!("{why}: waits until GPU-{gpu} has left nvidia.com/gpu"))
    };
    assert_eq!(reasons(&both, &name("1g.10gb")), [waits(0), waits(1)]);
    // GPU 0 is held; the other has no reason to wait for it.
    let one = both.step(&target, Some(&inventory), |_, id| id.as_str() == "GPU-1", |_| true);
    assert_eq!(reasons(&one, &name("1g.10gb")), [waits(0), ("MIG-1-7-0".to_owned(), String::new())]);
    let after = step(&one, &target, &inventory, true);
    assert_eq!(after.lists()[&name("1g.10gb")], target.resources[&name("1g.10gb")]);
}

#[test]
fn the_whole_gpu_waits_until_its_last_slice_has_left() {
    let inventory = node([mig_gpu(0, &["1g.10gb", "2g.20gb"])]);
    let mut ledger = step(&Ledger::default(), &offer(&inventory, MigStrategy::Mixed), &inventory, false);
    let target = offer(&inventory, MigStrategy::None);
    let waits = |id: &str, name: &ResourceName| {
        let why = format!("a slice of it may still be in use: waits until {id} has left {name}");
        vec![("GPU-0".to_owned(), why)]
    };
    ledger = step(&ledger, &target, &inventory, false);
    assert_eq!(reasons(&ledger, &ResourceName::gpu()), waits("MIG-0-7-0", &name("1g.10gb")));
    ledger = ledger.step(&target, Some(&inventory), |_, id| id.as_str() == "MIG-0-7-0", |_| false);
    assert_eq!(reasons(&ledger, &ResourceName::gpu()), waits("MIG-0-8-0", &name("2g.20gb")));
    ledger = step(&ledger, &target, &inventory, true);
    assert_eq!(ledger.lists()[&ResourceName::gpu()], target.resources[&ResourceName::gpu()]);
}

#[test]
fn what_pods_hold_from_before_a_start_blocks_too() {
    let inventory = node([mig_gpu(0, &["1g.10gb"])]);
    let slices = offer(&inventory, MigStrategy::Mixed);
    let mut ledger = Ledger::default();
    ledger.keep_held([(ResourceName::gpu(), held("GPU-0"), Some(3))], &slices);
    let first = step(&ledger, &slices, &inventory, false);
    let whole = &first.lists()[&ResourceName::gpu()][0];
    assert_eq!((whole.index(), whole.numa_node), ("0".to_owned(), Some(3)), "as it was handed out");
    assert!(!first.lists()[&name("1g.10gb")][0].is_healthy());
    assert!(step(&first, &slices, &inventory, true).lists()[&name("1g.10gb")][0].is_healthy());

    // The reverse, and under one name.
    for (resource, target) in [
        (name("1g.10gb"), offer(&inventory, MigStrategy::None)),
        (ResourceName::gpu(), offer(&inventory, MigStrategy::None)),
    ] {
        let mut ledger = Ledger::default();
        ledger.keep_held([(resource, held("MIG-0-7-0"), None)], &target);
        let first = step(&ledger, &target, &inventory, false);
        let whole = |ledger: &Ledger| {
            let list = &ledger.lists()[&ResourceName::gpu()];
            list.iter().find(|device| device.id.as_str() == "GPU-0").unwrap().is_healthy()
        };
        assert!(!whole(&first) && whole(&step(&first, &target, &inventory, true)));
    }
}

#[test]
fn a_gpu_that_could_be_read_only_later_blocks_from_then_on() {
    let (nothing, inventory) = (node([]), node([mig_gpu(0, &["1g.10gb"])]));
    let mut ledger = Ledger::default();
    ledger.keep_held([(ResourceName::gpu(), held("GPU-0"), None)], &mixed(&nothing));
    ledger = step(&ledger, &mixed(&nothing), &nothing, false);
    assert_eq!(reasons(&ledger, &ResourceName::gpu())[0].1, "the driver no longer has this device");
    ledger = step(&ledger, &mixed(&inventory), &inventory, false);
    assert!(!ledger.lists()[&name("1g.10gb")][0].is_healthy());
}

#[test]
fn a_held_slice_that_is_not_seen_blocks_each_gpu_that_it_may_be_on() {
    let slice = HiddenSlice { gpu_instance: 7, compute_instance: 0, settled: true };
    let hidden = node([Gpu { hidden: vec![slice], ..mig_gpu(0, &[]) }, mig_gpu(1, &[])]);
    let reason = Trouble::unreadable("unknown error");
    let problem = Problem { gpu: 0, mig_device: Some(0), uuid: None, reason, left_out: true };
    let unread = Inventory { problems: vec![problem], ..node([mig_gpu(0, &[]), mig_gpu(1, &[])]) };
    for inventory in [hidden, unread] {
        let target = offer(&inventory, MigStrategy::None);
        let slice = held("MIG-0-7-0");
        let why = "a slice of it may still be in use: waits until MIG-0-7-0 has left ";
        let expected =
            |name: &str| [("GPU-0".to_owned(), format!("{why}{name}")), ("GPU-1".to_owned(), String::new())];
        let mut ledger = Ledger::default();
        ledger.keep_held([(name("1g.10gb"), slice.clone(), None)], &target);
        ledger = step(&ledger, &target, &inventory, false);
        assert_eq!(reasons(&ledger, &ResourceName::gpu()), expected("nvidia.com/mig-1g.10gb"));
        ledger = step(&ledger, &target, &inventory, true);
        assert!(ledger.lists()[&ResourceName::gpu()].iter().all(Device::is_healthy));
        ledger.note_elsewhere([("example.com/slice".to_owned(), slice)]);
        ledger = step(&ledger, &target, &inventory, true);
        assert_eq!(reasons(&ledger, &ResourceName::gpu()), expected("example.com/slice"));
    }
}

#[test]
fn a_gone_slice_still_blocks_its_gpu_as_a_whole_and_not_its_neighbours() {
    let inventory = node([mig_gpu(0, &["1g.10gb", "2g.20gb"])]);
    let ledger = step(&Ledger::default(), &mixed(&inventory), &inventory, false);
    let smaller = node([mig_gpu(0, &["1g.10gb"])]);
    let ledger = step(&ledger, &mixed(&smaller), &smaller, false);
    assert!(ledger.lists()[&name("1g.10gb")][0].is_healthy());
    // MIG mode is switched off while a pod holds the slice that has gone.
    let plain = node([gpu(0)]);
    let ledger = ledger.step(&mixed(&plain), Some(&plain), |_, id| id.as_str() == "MIG-0-7-0", |_| true);
    let ledger = ledger.step(&mixed(&plain), Some(&plain), |_, id| id.as_str() == "MIG-0-7-0", |_| true);
    let why = "a slice of it may still be in use: waits until MIG-0-8-0 has left nvidia.com/mig-2g.20gb";
    assert_eq!(reasons(&ledger, &ResourceName::gpu()), [("GPU-0".to_owned(), why.to_owned())]);
}

#[test]
fn replicas_and_their_whole_wait_for_each_other() {
    let inventory = node([gpu(0)]);
    let whole = offer(&inventory, MigStrategy::None);
    for rename in [None, Some("nvidia.com/gpu.shared")] {
        let replicas = resolve(&inventory, &shared(MigStrategy::None, 2, rename));
        for (from, to) in [(&whole, &replicas), (&replicas, &whole)] {
            let old = step(&Ledger::default(), from, &inventory, false);
            let both = step(&old, to, &inventory, false);
            let mut all = both.lists().values().flatten();
            assert!(all.all(|device| !device.is_healthy()), "{both:?}");
            let after = step(&both, to, &inventory, true);
            assert!(after.lists().values().flatten().all(Device::is_healthy), "{after:?}");
        }
    }
}

#[test]
fn replicas_that_become_more_or_fewer_do_not_wait_for_each_other() {
    let inventory = node([gpu(0)]);
    let replicas = |count| resolve(&inventory, &shared(MigStrategy::None, count, None));
    let four = step(&Ledger::default(), &replicas(4), &inventory, false);
    let two = step(&four, &replicas(2), &inventory, false);
    let healthy = |ledger: &Ledger| {
        ledger.lists()[&ResourceName::gpu()].iter().map(Device::is_healthy).collect::<Vec<_>>()
    };
    assert_eq!(healthy(&two), [true, true, false, false]);
    assert_eq!(healthy(&step(&two, &replicas(6), &inventory, false)), [true; 6]);
}

#[test]
fn what_pods_hold_under_names_that_are_not_served_blocks_without_being_listed() {
    let inventory = node([mig_gpu(0, &["1g.10gb"]), gpu(1)]);
    let target = mixed(&inventory);
    let mut ledger = Ledger::default();
    ledger.note_elsewhere([("example.com/whole".to_owned(), held("GPU-0"))]);
    let first = step(&ledger, &target, &inventory, true);
    assert_eq!(first.lists().len(), 2);
    assert!(first.awaited_elsewhere().count() == 1 && first.lists()[&ResourceName::gpu()][0].is_healthy());
    let why = "its GPU may still be in use as a whole: waits until GPU-0 has left example.com/whole";
    assert_eq!(reasons(&first, &name("1g.10gb"))[0].1, why);
    let mut free = first;
    free.note_elsewhere([]);
    assert_eq!(step(&free, &target, &inventory, true).lists(), &target.resources);
}

/// What happens to a node with two GPUs.
#[derive(Debug, Clone)]
enum Happening {
    /// GPU 0 or 1 gets these slices, or is no longer in MIG mode.
    Layout(usize, Option<Vec<&'static str>>),
    /// Another configuration.
    Policy(OfferPolicy),
    /// A pod takes the healthy device of this number, counted over all lists.
    Pod(usize),
    /// A pod ends.
    End(usize),
    /// The plugin starts again.
    Restart,
}

fn happenings() -> impl Strategy<Value = Happening> {
    let profile = prop::sample::select(vec!["1g.10gb", "2g.20gb"]);
    let layout = prop::option::weighted(0.8, prop::collection::vec(profile, 0..3));
    let strategy = prop::sample::select(vec![MigStrategy::None, MigStrategy::Single, MigStrategy::Mixed]);
    let name = prop::sample::select(vec![None, Some("nvidia.com/gpu.shared"), Some("example.com/gpu")]);
    let policy = (strategy, 1..4_u32, name).prop_map(|(strategy, replicas, name)| match replicas {
        1 => OfferPolicy { strategy, ..OfferPolicy::default() },
        _ => shared(strategy, replicas, name),
    });
    prop_oneof![
        3 => (0..2_usize, layout).prop_map(|(gpu, layout)| Happening::Layout(gpu, layout)),
        3 => policy.prop_map(Happening::Policy),
        6 => any::<usize>().prop_map(Happening::Pod),
        3 => any::<usize>().prop_map(Happening::End),
        1 => Just(Happening::Restart),
    ]
}

/// Whether the GPU is used as a whole by one and in slices by the other, or a device by both in two ways.
fn collide((name, one): &(ResourceName, Device), (other, two): &(ResourceName, Device)) -> bool {
    if one.uuid == two.uuid {
        return !(name == other && one.replica.is_some() && two.replica.is_some());
    }
    one.gpu_uuid == two.gpu_uuid && one.is_whole_gpu() != two.is_whole_gpu()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn no_gpu_is_ever_used_in_two_ways(happenings in prop::collection::vec(happenings(), 1..40)) {
        let mut inventory = node([mig_gpu(0, &["1g.10gb"]), gpu(1)]);
        let mut policy = OfferPolicy::default();
        let mut ledger = Ledger::default();
        let mut pods: Vec<(ResourceName, Device)> = Vec::new();
        for happening in happenings {
            match happening {
                // Slices that pods use cannot be destroyed, and no mode is changed under them.
                Happening::Layout(at, _) if pods.iter().any(|(_, d)| d.gpu_index as usize == at) => {}
                Happening::Layout(at, layout) => {
                    let index = u32::try_from(at).unwrap();
                    inventory.gpus[at] = layout.map_or_else(|| gpu(index), |profiles| mig_gpu(index, &profiles));
                }
                Happening::Policy(next) => policy = next,
                Happening::Pod(number) => {
                    let all = ledger.lists().iter().flat_map(|(name, list)| {
                        list.iter().map(move |device| (name.clone(), device.clone()))
                    });
                    let has = |name: &ResourceName, id: &DeviceId| {
                        pods.iter().any(|(other, device)| other == name && device.id == *id)
                    };
                    let free: Vec<_> =
                        all.filter(|(name, device)| device.is_healthy() && !has(name, &device.id)).collect();
                    if !free.is_empty() {
                        pods.push(free[number % free.len()].clone());
                    }
                }
                Happening::End(number) if !pods.is_empty() => drop(pods.remove(number % pods.len())),
                Happening::End(_) => {}
                Happening::Restart => ledger = Ledger::default(),
            }
            for (number, one) in pods.iter().enumerate() {
                for two in &pods[number + 1..] {
                    prop_assert!(!collide(one, two), "{} and {} are used at once", one.1.id, two.1.id);
                }
            }
            let target = resolve(&inventory, &policy);
            let may_offer = |name: &ResourceName| policy.may_offer(name) || ledger.lists().contains_key(name);
            let (ours, others): (Vec<_>, Vec<_>) = pods.iter().partition(|(name, _)| may_offer(name));
            let ours = ours.into_iter().map(|(name, device)| (name.clone(), device.id.clone(), device.numa_node));
            ledger.keep_held(ours.collect::<Vec<_>>(), &target);
            ledger.note_elsewhere(others.iter().map(|(name, device)| (name.to_string(), device.id.clone())));
            let is_held = |name: &ResourceName, id: &DeviceId| {
                pods.iter().any(|(other, device)| other == name && device.id == *id)
            };
            for _ in 0..2 {
                ledger = ledger.step(&target, Some(&inventory), |name, id| !is_held(name, id), |_| true);
            }
            for (name, device) in &pods {
                let listed = ledger.lists().get(name).map(|list| list.iter().find(|other| other.id == device.id));
                if let Some(listed) = listed {
                    prop_assert!(listed.is_some_and(|listed| listed.numa_node == device.numa_node));
                }
            }
            if pods.is_empty() {
                ledger = ledger.step(&target, Some(&inventory), |_, _| true, |_| true);
                prop_assert_eq!(ledger.lists(), &target.resources);
            }
        }
    }
}
