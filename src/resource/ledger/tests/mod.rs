use proptest::prelude::*;

use super::*;
use crate::fixtures::{mig_gpu, mixed, node};
use crate::inventory::Gpu;

mod exclusive;

fn wanted(gpus: impl IntoIterator<Item = Gpu>) -> ResourceSet {
    mixed(&node(gpus))
}

fn name(profile: &str) -> ResourceName {
    ResourceName::mig(&profile.parse().unwrap()).unwrap()
}

/// IDs with whether they are healthy.
fn list(ledger: &Ledger, profile: &str) -> Option<Vec<(String, bool)>> {
    let list = ledger.lists().get(&name(profile))?;
    Some(list.iter().map(|device| (device.id.to_string(), device.is_healthy())).collect())
}

/// A step in which nothing may leave or stop.
fn hold(ledger: &Ledger, wanted: &ResourceSet) -> Ledger {
    ledger.step(wanted, None, |_, _| false, |_| false)
}

/// A step in which everything may.
fn let_go(ledger: &Ledger, wanted: &ResourceSet) -> Ledger {
    ledger.step(wanted, None, |_, _| true, |_| true)
}

#[test]
fn a_device_leaves_in_two_steps() {
    let old = hold(&Ledger::default(), &wanted([mig_gpu(0, &["1g.10gb", "1g.10gb"])]));
    let target = wanted([mig_gpu(0, &["1g.10gb"])]);
    let first = let_go(&old, &target);
    let marked = vec![("MIG-0-7-0".to_owned(), true), ("MIG-0-8-0".to_owned(), false)];
    assert_eq!(list(&first, "1g.10gb"), Some(marked.clone()));
    assert_eq!(list(&hold(&first, &target), "1g.10gb"), Some(marked));
    assert_eq!(list(&let_go(&first, &target), "1g.10gb"), Some(vec![("MIG-0-7-0".to_owned(), true)]));
}

#[test]
fn a_device_that_comes_back_in_time_never_left() {
    let both = wanted([mig_gpu(0, &["1g.10gb", "1g.10gb"])]);
    let old = hold(&Ledger::default(), &both);
    let marked = hold(&old, &wanted([mig_gpu(0, &["1g.10gb"])]));
    assert_eq!(hold(&marked, &both), old);
}

#[test]
fn another_device_under_a_known_id_waits_until_the_old_one_has_left() {
    let old = hold(&Ledger::default(), &wanted([mig_gpu(0, &["1g.10gb"])]));
    let target = wanted([mig_gpu(0, &["1g.20gb"])]);
    let marked = hold(&old, &target);
    assert_eq!(list(&marked, "1g.10gb"), Some(vec![("MIG-0-7-0".to_owned(), false)]));
    assert_eq!(list(&marked, "1g.20gb"), Some(vec![("MIG-0-7-0".to_owned(), false)]));
    let after = let_go(&marked, &target);
    assert_eq!(list(&after, "1g.10gb"), Some(vec![]));
    assert_eq!(list(&after, "1g.20gb"), Some(vec![("MIG-0-7-0".to_owned(), true)]));
}

#[test]
fn another_device_under_a_known_id_and_name_waits_too() {
    let old = hold(&Ledger::default(), &wanted([mig_gpu(0, &["1g.10gb"])]));
    let mut moved = mig_gpu(0, &["1g.10gb"]);
    moved.mig_devices[0].placement = Some(crate::inventory::Placement { start: 5, size: 1 });
    let target = wanted([moved]);
    let marked = let_go(&old, &target);
    assert_eq!(list(&marked, "1g.10gb"), Some(vec![("MIG-0-7-0".to_owned(), false)]));
    let after = let_go(&marked, &target);
    assert_eq!(list(&after, "1g.10gb"), Some(vec![("MIG-0-7-0".to_owned(), true)]));
    assert_eq!(after.lists()[&name("1g.10gb")], target.resources[&name("1g.10gb")]);
}

#[test]
fn what_is_not_known_this_time_does_not_make_another_device() {
    let old = hold(&Ledger::default(), &wanted([mig_gpu(0, &["1g.10gb"])]));
    let mut vague = mig_gpu(0, &["1g.10gb"]);
    vague.mig_devices[0].placement = None;
    vague.mig_devices[0].profile_id = None;
    assert_eq!(list(&hold(&old, &wanted([vague])), "1g.10gb"), Some(vec![("MIG-0-7-0".to_owned(), true)]));
}

#[test]
fn a_resource_ends_with_an_empty_list_before_its_server() {
    let old = hold(&Ledger::default(), &wanted([mig_gpu(0, &["1g.10gb"])]));
    let target = wanted([mig_gpu(0, &[])]);
    let marked = let_go(&old, &target);
    let empty = let_go(&marked, &target);
    assert_eq!(marked.diff(&empty), [Change::Update(name("1g.10gb"), vec![])]);
    assert_eq!(empty.empty().collect::<Vec<_>>(), [&name("1g.10gb")]);
    assert_eq!(hold(&empty, &target), empty);
    let stopped = let_go(&empty, &target);
    assert_eq!(empty.diff(&stopped), [Change::Stop(name("1g.10gb"))]);
    assert_eq!(stopped, Ledger::default());
}

#[test]
fn nothing_is_sent_when_nothing_changed() {
    let target = wanted([mig_gpu(0, &["1g.10gb", "2g.20gb"])]);
    let old = hold(&Ledger::default(), &target);
    assert_eq!(old.diff(&let_go(&old, &target)), []);
}

#[test]
fn other_gpus_are_not_touched_by_a_repartition() {
    let old = hold(&Ledger::default(), &wanted([mig_gpu(0, &["1g.10gb"; 7]), mig_gpu(1, &["1g.10gb"; 2])]));
    let target = wanted([mig_gpu(0, &["2g.20gb"; 3]), mig_gpu(1, &["1g.10gb"; 2])]);
    let mut ledger = old;
    for _ in 0..4 {
        ledger = let_go(&ledger, &target);
        let others: Vec<_> = ledger.lists()[&name("1g.10gb")].iter().filter(|d| d.gpu_index == 1).collect();
        assert_eq!(others.len(), 2);
        assert!(others.iter().all(|device| device.is_healthy()));
    }
    assert_eq!(list(&ledger, "2g.20gb").unwrap().len(), 3);
}

/// Carries changes out on plain lists, as the supervisor does on servers.
fn carry_out(lists: &mut BTreeMap<ResourceName, Vec<Device>>, changes: Vec<Change>) {
    for change in changes {
        match change {
            Change::Start(name, list) => assert!(lists.insert(name, list).is_none()),
            Change::Update(name, list) => assert!(lists.insert(name, list).is_some()),
            Change::Stop(name) => assert_eq!(lists.remove(&name), Some(vec![])),
        }
    }
}

fn layout() -> impl Strategy<Value = Vec<Vec<&'static str>>> {
    let profile = prop::sample::select(vec!["1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb"]);
    prop::collection::vec(prop::collection::vec(profile, 0..5), 2)
}

proptest! {
    #[test]
    fn differences_lead_from_each_state_to_the_next(
        layouts in prop::collection::vec((layout(), any::<bool>(), any::<bool>()), 1..12),
    ) {
        let mut ledger = Ledger::default();
        let mut served = BTreeMap::new();
        for (layout, leave, stop) in layouts {
            let target = wanted(layout.iter().zip(0..).map(|(profiles, index)| mig_gpu(index, profiles)));
            let next = ledger.step(&target, None, |_, _| leave, |_| stop);
            carry_out(&mut served, ledger.diff(&next));
            prop_assert_eq!(&served, next.lists());

            let mut ids = HashSet::new();
            let all = next.lists().iter().flat_map(|(name, list)| list.iter().map(move |device| (name, device)));
            let is_new = |(name, device): (_, &Device)| ids.insert((name, device.id.clone()));
            prop_assert!(all.clone().all(is_new), "an ID twice in one list");
            let mut healthy = HashSet::new();
            let mut usable = all.map(|(_, device)| device).filter(|device| device.is_healthy());
            prop_assert!(usable.all(|device| healthy.insert(&device.uuid)), "a device twice");
            for (name, old) in ledger.lists() {
                for device in old {
                    let still = next.lists().get(name).into_iter().flatten().find(|other| other.id == device.id);
                    match still {
                        None => prop_assert!(is_leaving(device) && leave, "left without being marked"),
                        Some(other) if !other.is_same(device) => prop_assert!(is_leaving(device), "changed identity"),
                        Some(_) => {}
                    }
                }
            }
            ledger = next;
        }
    }

    #[test]
    fn every_layout_is_reached_in_the_end(from in layout(), to in layout()) {
        let set = |layout: &[Vec<&str>]| {
            wanted(layout.iter().zip(0..).map(|(profiles, index)| mig_gpu(index, profiles)))
        };
        let target = set(&to);
        let mut ledger = hold(&Ledger::default(), &set(&from));
        for _ in 0..4 {
            ledger = let_go(&ledger, &target);
        }
        prop_assert_eq!(ledger.lists(), &target.resources);
    }
}

#[test]
fn what_pods_hold_is_listed_until_it_may_leave_though_the_driver_has_it_not() {
    let target = wanted([mig_gpu(0, &["1g.10gb"])]);
    let mut ledger = Ledger::default();
    let held = [("1g.10gb", "MIG-0-7-0"), ("1g.10gb", "MIG-old"), ("2g.20gb", "MIG-older::3")];
    ledger.keep_held(held.map(|(profile, id)| (name(profile), DeviceId(id.to_owned()), None)), &target);
    let first = hold(&ledger, &target);
    let expected = vec![("MIG-0-7-0".to_owned(), true), ("MIG-old".to_owned(), false)];
    assert_eq!(list(&first, "1g.10gb"), Some(expected));
    assert_eq!(list(&first, "2g.20gb"), Some(vec![("MIG-older::3".to_owned(), false)]));
    assert_eq!(hold(&first, &target), first);
    let after = let_go(&let_go(&first, &target), &target);
    assert_eq!(list(&after, "1g.10gb"), Some(vec![("MIG-0-7-0".to_owned(), true)]));
    assert_eq!(list(&after, "2g.20gb"), None);
}

#[test]
fn a_held_device_whose_gpu_could_not_be_read_at_first_is_itself_again_later() {
    let mut ledger = Ledger::default();
    ledger.keep_held([(name("1g.10gb"), DeviceId("MIG-0-7-0".to_owned()), None)], &ResourceSet::default());
    let later = hold(&ledger, &wanted([mig_gpu(0, &["1g.10gb"])]));
    assert_eq!(list(&later, "1g.10gb"), Some(vec![("MIG-0-7-0".to_owned(), true)]));
}
