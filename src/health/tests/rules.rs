//! What is hit, and when it is well again.

use super::*;
use crate::fixtures::mig_device;
use crate::inventory::{MigMode, Problem, RecoveryAction};

fn recovered(findings: &Findings) -> Vec<&str> {
    findings.recovered.iter().map(|recovered| recovered.what.as_str()).collect()
}

fn with_action(inventory: &Inventory, gpu: usize, action: RecoveryAction) -> Inventory {
    let mut inventory = inventory.clone();
    inventory.gpus[gpu].recovery_action = Some(action);
    inventory
}

// What is hit.

#[test]
fn an_event_with_both_instances_hits_that_slice() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    let outcome = health.take_event(&xid(1, Some(8), 94, 3), &inventory, &HealthPolicy::default(), at(3));
    assert_eq!(
        outcome,
        Outcome::Sick(Sickness {
            what: "MIG device 1:1 (MIG-1-8-0)".to_owned(),
            reason: Reason::Event(EventKind::Xid(94), clock(3)),
            news: true,
        })
    );
    assert_eq!(sick(&health, &inventory), ["1:1"]);
    assert_eq!(
        reasons(&health, &inventory, 1, 1),
        ["Xid 94 (Contained memory error) at 1970-01-01T00:00:03Z"]
    );
}

#[test]
fn an_event_with_a_gpu_instance_only_hits_all_its_compute_instances() {
    let mut inventory = two_gpus();
    let second = MigDevice {
        index: 3,
        uuid: "MIG-0-9-1".to_owned(),
        compute_instance: 1,
        ..mig_device(0, 2, "1c.2g.20gb")
    };
    inventory.gpus[0].mig_devices.push(second);
    let mut health = Health::default();
    let event = HealthEvent { compute_instance: None, ..xid(0, Some(9), 94, 1) };
    let Outcome::Sick(sickness) = health.take_event(&event, &inventory, &HealthPolicy::default(), at(1))
    else {
        panic!("it counts")
    };
    assert_eq!(sickness.what, "MIG device 0:2 (MIG-0-9-0), MIG device 0:3 (MIG-0-9-1)");
    assert_eq!(sick(&health, &inventory), ["0:2", "0:3"]);
    // And with both, only the one.
    let mut health = Health::default();
    takes(&mut health, &HealthEvent { compute_instance: Some(1), ..event }, &inventory, 1);
    assert_eq!(sick(&health, &inventory), ["0:3"]);
}

#[test]
fn an_event_without_instances_hits_the_gpu_and_every_slice_that_it_has_or_gets() {
    let (mut health, mut inventory) = (Health::default(), two_gpus());
    let event = event(0, None, EventKind::GpuUnavailable, 1);
    let Outcome::Sick(sickness) = health.take_event(&event, &inventory, &HealthPolicy::default(), at(1))
    else {
        panic!("it counts")
    };
    assert_eq!(sickness.what, "GPU 0 (GPU-0) and its 3 MIG devices");
    assert_eq!(sick(&health, &inventory), ["0:0", "0:1", "0:2"]);
    assert_eq!(health.reasons_of(&device(&inventory.gpus[0], None)).len(), 1);
    assert_eq!(health.reasons_of(&device(&inventory.gpus[1], None)), []);
    inventory.gpus[0].mig_devices.push(mig_device(0, 5, "1g.10gb"));
    looks(&mut health, &inventory, 2);
    assert_eq!(sick(&health, &inventory), ["0:0", "0:1", "0:2", "0:5"]);
}

#[test]
fn a_whole_gpu_is_sick_for_its_slices_but_a_slice_is_not_for_its_neighbour() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    takes(&mut health, &xid(0, None, 48, 1), &inventory, 1);
    takes(&mut health, &xid(0, Some(7), 94, 2), &inventory, 2);
    takes(&mut health, &xid(0, Some(8), 94, 2), &inventory, 2);
    let of = |mig: Option<usize>| {
        let gpu = &inventory.gpus[0];
        health.reasons_of(&device(gpu, mig.map(|mig| &gpu.mig_devices[mig])))
    };
    let (whole, own) =
        (Reason::Event(EventKind::Xid(48), clock(1)), Reason::Event(EventKind::Xid(94), clock(2)));
    assert_eq!(of(None), [whole.clone(), own.clone()]);
    assert_eq!(of(Some(0)), [whole.clone(), own]);
    assert_eq!(of(Some(2)), [whole]);
}

#[test]
fn an_event_about_an_unknown_instance_marks_nothing_before_the_next_look() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    let policy = HealthPolicy::default();
    for (gpu, instance) in [(0, 10), (1, 11), (7, 7)] {
        let event = xid(gpu, Some(instance), 94, 5);
        assert_eq!(health.take_event(&event, &inventory, &policy, at(5)), Outcome::LookAgain);
    }
    assert_eq!(sick(&health, &inventory), [""; 0]);
    // A look that began before the events cannot tell.
    assert_eq!(looks(&mut health, &inventory, 4), Findings::default());
    let mut later = inventory.clone();
    later.gpus[0].mig_devices.push(mig_device(0, 3, "1g.10gb"));
    let findings = looks(&mut health, &later, 30);
    assert_eq!(sick(&health, &later), ["0:3", "1:0", "1:1", "1:2"]);
    assert_eq!(findings.sick[0].what, "MIG device 0:3 (MIG-0-10-0)");
    assert_eq!(findings.sick[1].what, "GPU 1 (GPU-1) and its 3 MIG devices");
    assert_eq!(findings.of_gpu, [xid(1, Some(11), 94, 5)]);
    assert_eq!(findings.unplaced, [xid(7, Some(7), 94, 5)]);
    // The look that first shows it is no evidence that it is well.
    assert_eq!(next(&health, 30), Some(QUIET));
    assert_eq!(recovered(&looks(&mut health, &later, 40)), ["MIG device 0:3 (MIG-0-10-0)", "GPU 1 (GPU-1)"]);
}

#[test]
fn an_event_about_an_instance_of_a_gpu_that_cannot_be_read_waits_until_it_can() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    let unreadable = with_trouble(&inventory, 0, Trouble::unreadable("it does not say"));
    takes(&mut health, &xid(0, Some(10), 94, 5), &inventory, 5);
    assert_eq!(looks(&mut health, &unreadable, 10).of_gpu, []);
    assert_eq!(looks(&mut health, &inventory, 20).of_gpu.len(), 1);
}

#[test]
fn changes_ask_for_a_look_and_what_does_not_count_is_ignored() {
    let (mut health, inventory, policy) = (Health::default(), two_gpus(), HealthPolicy::default());
    for kind in [EventKind::MigConfigChange, EventKind::RecoveryAction] {
        let outcome = health.take_event(&event(0, None, kind, 1), &inventory, &policy, at(1));
        assert_eq!(outcome, Outcome::LookAgain);
    }
    let outcome = health.take_event(&xid(0, Some(7), 13, 1), &inventory, &policy, at(1));
    assert_eq!(outcome, Outcome::Ignored);
    assert_eq!(health, Health::default());
}

#[test]
fn the_same_uuid_with_another_identity_is_another_slice() {
    let (mut health, mut inventory) = (Health::default(), two_gpus());
    takes(&mut health, &xid(0, Some(7), 94, 1), &inventory, 1);
    let other = mig_device(0, 0, "2g.20gb");
    assert_eq!(other.uuid, inventory.gpus[0].mig_devices[0].uuid);
    looks(&mut health, &inventory, 2);
    inventory.gpus[0].mig_devices[0] = other;
    assert_eq!(sick(&health, &inventory), [""; 0]);
    assert_eq!(looks(&mut health, &inventory, 3), Findings::default());
    assert_eq!(health.size(), 0);
}

#[test]
fn an_event_that_came_after_the_last_look_at_a_slice_is_put_on_the_one_that_has_its_ids_now() {
    let (mut health, old) = (Health::default(), two_gpus());
    let mut new = old.clone();
    new.gpus[0].mig_devices[0] = mig_device(0, 0, "2g.20gb");
    looks(&mut health, &old, 3);
    takes(&mut health, &xid(0, Some(7), 94, 5), &old, 5);
    takes(&mut health, &xid(0, Some(8), 94, 5), &old, 5);
    let findings = looks(&mut health, &new, 6);
    assert_eq!(findings.sick.len(), 1);
    assert_eq!(findings.sick[0].what, "MIG device 0:0 (MIG-0-7-0)");
    assert_eq!(findings.sick[0].reason, Reason::Event(EventKind::Xid(94), clock(5)));
    assert_eq!(sick(&health, &new), ["0:0", "0:1"]);
    // A look that began after it has seen that slice, so it is about no later one.
    assert_eq!(looks(&mut health, &old, 7), Findings::default());
    assert_eq!(sick(&health, &old), ["0:1"]);
    // One that began before it has not.
    takes(&mut health, &xid(0, Some(7), 64, 9), &old, 9);
    looks(&mut health, &old, 8);
    assert_eq!(looks(&mut health, &new, 10).sick.len(), 1);
    assert_eq!(sick(&health, &new), ["0:0", "0:1"]);
}

#[test]
fn an_event_about_a_slice_that_was_gone_by_the_next_look_is_told_to_concern_nothing() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    looks(&mut health, &inventory, 3);
    let event = HealthEvent { compute_instance: None, ..xid(0, Some(7), 94, 5) };
    takes(&mut health, &event, &inventory, 5);
    let mut without = inventory.clone();
    without.gpus[0].mig_devices.remove(0);
    assert_eq!(looks(&mut health, &without, 6).unplaced, [xid(0, Some(7), 94, 5)]);
    looks(&mut health, &inventory, 7);
    assert_eq!(health.size(), 0);
    // Nothing that comes after the driver was loaded anew is meant.
    takes(&mut health, &event, &inventory, 8);
    health.driver_gone(true);
    assert_eq!(looks(&mut health, &without, 9), Findings::default());
}

// A driver that tells what the GPU needs.

#[test]
fn a_slice_recovers_by_a_look_that_began_after_the_quiet_period() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    takes(&mut health, &xid(0, Some(7), 94, 100), &inventory, 100);
    assert_eq!(next(&health, 104), Some(6));
    for began in [90, 100, 109] {
        assert_eq!(looks(&mut health, &inventory, began), Findings::default());
        assert_eq!(sick(&health, &inventory), ["0:0"]);
    }
    assert_eq!(next(&health, 500), Some(0), "time alone does nothing");
    let findings = looks(&mut health, &inventory, 110);
    assert_eq!(recovered(&findings), ["MIG device 0:0 (MIG-0-7-0)"]);
    assert_eq!(findings.recovered[0].reasons, [Reason::Event(EventKind::Xid(94), clock(100))]);
    assert_eq!(sick(&health, &inventory), [""; 0]);
    assert_eq!(next(&health, 110), None);
}

#[test]
fn a_repeated_event_begins_the_quiet_period_anew_and_leaves_the_reason_as_it_is() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    takes(&mut health, &xid(0, Some(7), 94, 100), &inventory, 100);
    let before = reasons(&health, &inventory, 0, 0);
    assert_eq!(takes(&mut health, &xid(0, Some(7), 94, 105), &inventory, 105), Some(false));
    assert_eq!(reasons(&health, &inventory, 0, 0), before);
    assert!(looks(&mut health, &inventory, 114).recovered.is_empty());
    assert_eq!(looks(&mut health, &inventory, 115).recovered.len(), 1);
}

#[test]
fn a_gpu_that_needs_something_is_sick_until_it_needs_nothing() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    let needs = |action| with_action(&inventory, 0, action);
    let findings = looks(&mut health, &needs(RecoveryAction::DrainAndReset), 10);
    assert_eq!(findings.sick[0].what, "GPU 0 (GPU-0) and its 3 MIG devices");
    assert_eq!(findings.sick[0].reason, Reason::RecoveryAction(RecoveryAction::DrainAndReset));
    assert_eq!(sick(&health, &inventory), ["0:0", "0:1", "0:2"]);
    assert_eq!(looks(&mut health, &needs(RecoveryAction::DrainAndReset), 50), Findings::default());
    assert_eq!(next(&health, 50), None, "the driver tells when that changes");
    assert_eq!(looks(&mut health, &needs(RecoveryAction::Reset), 60).sick.len(), 1);
    assert_eq!(reasons(&health, &inventory, 0, 1), ["the driver asks for a reset of the GPU"]);
    assert!(looks(&mut health, &inventory, 69).recovered.is_empty());
    assert_eq!(next(&health, 69), Some(1));
    assert_eq!(recovered(&looks(&mut health, &inventory, 70)), ["GPU 0 (GPU-0)"]);
    assert_eq!(sick(&health, &inventory), [""; 0]);
}

#[test]
fn while_the_gpu_needs_something_no_slice_of_it_recovers() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    let policy =
        HealthPolicy { checks: Checks::new(&[Check::All], &[Check::Xid(94)], true), ..Default::default() };
    health.take_event(&xid(0, Some(7), 94, 1), &inventory, &policy, at(1));
    let needs = with_action(&inventory, 0, RecoveryAction::Reset);
    // With everything but one Xid disabled, the need itself makes nothing sick.
    assert_eq!(health.take_inventory(&needs, &policy, at(60)), Findings::default());
    assert_eq!(sick(&health, &inventory), ["0:0"]);
    assert_eq!(health.take_inventory(&inventory, &policy, at(90)).recovered.len(), 1);
}

#[test]
fn a_lost_gpu_is_sick_until_it_is_back_and_was_quiet_whatever_the_checks_are() {
    let off = HealthPolicy { checks: Checks::new(&[Check::All], &[], true), ..HealthPolicy::default() };
    for (inventory, policy) in
        [(two_gpus(), HealthPolicy::default()), (two_gpus(), off.clone()), (two_gpus_of_an_old_driver(), off)]
    {
        let mut health = Health::default();
        let lost = with_trouble(&inventory, 1, Trouble::lost("GPU is lost"));
        let findings = health.take_inventory(&lost, &policy, at(10));
        assert_eq!(findings.sick[0].reason, Reason::Lost("GPU is lost".to_owned()));
        assert_eq!(health.take_inventory(&lost, &policy, at(40)), Findings::default());
        assert_eq!(sick(&health, &inventory), ["1:0", "1:1", "1:2"]);
        assert_eq!(health.next_look(&policy, at(40)), None);
        assert_eq!(health.take_inventory(&inventory, &policy, at(49)), Findings::default());
        assert_eq!(reasons(&health, &inventory, 1, 0), ["lost: GPU is lost"]);
        assert_eq!(recovered(&health.take_inventory(&inventory, &policy, at(50))), ["GPU 1 (GPU-1)"]);
        assert_eq!(sick(&health, &inventory), [""; 0]);
    }
}

#[test]
fn what_cannot_be_read_stays_sick_and_is_not_looked_at_again_and_again() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    takes(&mut health, &xid(0, Some(7), 94, 1), &inventory, 1);
    let unreadable = with_trouble(&inventory, 0, Trouble::unreadable("it does not say"));
    assert_eq!(looks(&mut health, &unreadable, 60).recovered, []);
    assert_eq!(next(&health, 60), None);
    assert_eq!(sick(&health, &inventory), ["0:0", "0:1", "0:2"]);
    let mut slice_unreadable = inventory.clone();
    slice_unreadable.gpus[0].mig_devices[0].problem = Some(Trouble::unreadable("it does not say"));
    assert_eq!(recovered(&looks(&mut health, &slice_unreadable, 70)), ["GPU 0 (GPU-0)"]);
    assert_eq!(next(&health, 70), None);
    assert_eq!(sick(&health, &inventory), ["0:0"]);
    assert_eq!(looks(&mut health, &inventory, 71).recovered, []);
    assert_eq!(next(&health, 71), Some(9));
    assert_eq!(looks(&mut health, &inventory, 80).recovered.len(), 1);
}

#[test]
fn an_unreadable_gpu_says_nothing_about_what_it_needed_before() {
    let mut health = Health::default();
    let needs = with_action(&two_gpus(), 0, RecoveryAction::Reset);
    looks(&mut health, &with_trouble(&needs, 0, Trouble::unreadable("it does not say")), 1);
    assert_eq!(reasons(&health, &needs, 0, 0), ["cannot be read: it does not say"]);
}

// Slices and GPUs that go.

#[test]
fn a_slice_made_anew_is_well_but_not_while_something_stands_against_its_gpu() {
    for inventory in [two_gpus(), two_gpus_of_an_old_driver()] {
        let mut health = Health::default();
        takes(&mut health, &xid(0, Some(7), 94, 1), &inventory, 1);
        takes(&mut health, &xid(1, Some(7), 94, 1), &inventory, 1);
        takes(&mut health, &xid(1, None, 48, 1), &inventory, 1);
        let mut without = inventory.clone();
        without.gpus[0].mig_devices.remove(0);
        without.gpus[1].mig_devices.remove(0);
        looks(&mut health, &inventory, 2);
        assert_eq!(looks(&mut health, &without, 3), Findings::default());
        looks(&mut health, &inventory, 4);
        assert_eq!(sick(&health, &inventory), ["1:0", "1:1", "1:2"]);
        assert_eq!(reasons(&health, &inventory, 1, 0).len(), 1);
    }
}

#[test]
fn a_slice_that_is_only_left_out_is_not_taken_for_gone() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    takes(&mut health, &xid(0, Some(7), 94, 1), &inventory, 1);
    takes(&mut health, &xid(1, None, 48, 1), &inventory, 1);
    let left_out = |gpu, mig_device| Problem {
        uuid: None,
        gpu,
        mig_device,
        reason: Trouble::unreadable("it does not say"),
        left_out: true,
    };
    // Neither look knows of an earlier one, as after the driver came back.
    let mut without = inventory.clone();
    without.gpus[0].mig_devices.remove(0);
    without.problems = vec![left_out(0, Some(0))];
    looks(&mut health, &without, 5);
    assert_eq!(sick(&health, &inventory), ["0:0", "1:0", "1:1", "1:2"]);
    let mut without = two_gpus_of_an_old_driver();
    without.gpus.remove(1);
    without.problems = vec![left_out(1, None)];
    looks(&mut health, &without, 6);
    looks(&mut health, &two_gpus_of_an_old_driver(), 60);
    assert_eq!(sick(&health, &inventory), ["0:0", "1:0", "1:1", "1:2"]);
}

// A driver that does not tell.

#[test]
fn with_an_old_driver_time_and_looks_alone_make_nothing_well() {
    let (mut health, inventory) = (Health::default(), two_gpus_of_an_old_driver());
    takes(&mut health, &xid(0, Some(7), 94, 1), &inventory, 1);
    takes(&mut health, &xid(1, None, 48, 1), &inventory, 1);
    for began in [60, 6000, 600_000] {
        assert_eq!(looks(&mut health, &inventory, began), Findings::default());
        assert_eq!(next(&health, began), None);
    }
    assert_eq!(sick(&health, &inventory), ["0:0", "1:0", "1:1", "1:2"]);
    // Once the driver tells, its word counts.
    let findings = looks(&mut health, &two_gpus(), 600_001);
    assert_eq!(recovered(&findings), ["MIG device 0:0 (MIG-0-7-0)", "GPU 1 (GPU-1)"]);
}

#[test]
fn with_an_old_driver_each_sign_of_a_reset_makes_well_and_only_if_it_came_after_the_illness() {
    let inventory = two_gpus_of_an_old_driver();
    let mut absent = inventory.clone();
    absent.gpus.remove(0);
    let mut empty = inventory.clone();
    empty.gpus[0].mig_devices.clear();
    let lost = with_trouble(&inventory, 0, Trouble::lost("GPU is lost"));
    for (sign, is_reset) in [(&absent, true), (&empty, true), (&lost, true), (&inventory, false)] {
        let mut health = Health::default();
        // Before the illness, it says nothing.
        looks(&mut health, sign, 1);
        looks(&mut health, &inventory, 2);
        looks(&mut health, &inventory, 60);
        takes(&mut health, &xid(0, None, 48, 100), &inventory, 100);
        // Nor does a look that began before it.
        looks(&mut health, sign, 99);
        looks(&mut health, &inventory, 400);
        assert_eq!(sick(&health, &inventory), ["0:0", "0:1", "0:2"]);
        takes(&mut health, &xid(0, Some(8), 94, 500), &inventory, 500);
        takes(&mut health, &xid(0, None, 48, 500), &inventory, 500);
        looks(&mut health, sign, 501);
        looks(&mut health, &inventory, 2000);
        assert_eq!(sick(&health, &inventory).is_empty(), is_reset, "{:?}", sign.gpus[0].problem);
    }
}

#[test]
fn with_an_old_driver_a_reload_of_the_driver_makes_well_after_the_quiet_period() {
    let (mut health, inventory) = (Health::default(), two_gpus_of_an_old_driver());
    takes(&mut health, &xid(0, Some(7), 94, 1), &inventory, 1);
    health.driver_gone(true);
    assert_eq!(sick(&health, &inventory), ["0:0"]);
    assert_eq!(next(&health, 2), None);
    assert_eq!(looks(&mut health, &inventory, 5), Findings::default());
    assert_eq!(next(&health, 5), Some(6));
    takes(&mut health, &xid(0, Some(8), 94, 6), &inventory, 6);
    assert_eq!(recovered(&looks(&mut health, &inventory, 100)), ["MIG device 0:0 (MIG-0-7-0)"]);
    assert_eq!(sick(&health, &inventory), ["0:1"]);
}

#[test]
fn with_an_old_driver_a_driver_that_only_failed_to_answer_is_no_sign_of_a_reset() {
    let (mut health, inventory) = (Health::default(), two_gpus_of_an_old_driver());
    takes(&mut health, &xid(0, Some(7), 94, 1), &inventory, 1);
    takes(&mut health, &xid(1, None, 48, 1), &inventory, 1);
    takes(&mut health, &xid(1, Some(10), 94, 1), &inventory, 1);
    health.driver_gone(false);
    assert_eq!(next(&health, 5000), None);
    // What names an instance that nobody knows is still to be placed.
    let findings = looks(&mut health, &inventory, 5000);
    assert_eq!((findings.of_gpu.len(), findings.forgotten), (1, 0));
    assert_eq!(findings.recovered, []);
    assert_eq!(sick(&health, &inventory), ["0:0", "1:0", "1:1", "1:2"]);
    assert_eq!(next(&health, 5000), None);
}

#[test]
fn an_empty_mig_gpu_is_no_sign_of_a_reset_where_it_was_empty_before() {
    let mut inventory = node([Gpu { recovery_action: None, ..mig_gpu(0, &[]) }]);
    let mut health = Health::default();
    takes(&mut health, &xid(0, None, 48, 1), &inventory, 1);
    looks(&mut health, &inventory, 60);
    assert_eq!(health.reasons_of(&device(&inventory.gpus[0], None)).len(), 1);
    // Nor is one that was taken out of MIG mode, or that still has an instance.
    inventory.gpus[0].mig_devices = vec![mig_device(0, 0, "1g.10gb")];
    looks(&mut health, &inventory, 61);
    inventory.gpus[0].mig_devices.clear();
    inventory.gpus[0].empty_gpu_instances = vec![7];
    looks(&mut health, &inventory, 62);
    inventory.gpus[0].mig_mode = Some(MigMode { current: false, pending: false });
    inventory.gpus[0].empty_gpu_instances.clear();
    looks(&mut health, &inventory, 63);
    assert_eq!(health.reasons_of(&device(&inventory.gpus[0], None)).len(), 1);
}

#[test]
fn events_about_unknown_instances_are_counted_when_the_driver_goes() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    takes(&mut health, &xid(0, Some(10), 94, 1), &inventory, 1);
    health.driver_gone(true);
    let findings = looks(&mut health, &inventory, 2);
    assert_eq!((findings.unplaced.len(), findings.forgotten), (0, 1));
}

// The policy.

#[test]
fn without_recovery_nothing_gets_well_but_a_slice_made_anew_is_another() {
    for inventory in [two_gpus(), two_gpus_of_an_old_driver()] {
        let off = HealthPolicy { recovery: Recovery::Off, ..HealthPolicy::default() };
        let mut health = Health::default();
        health.take_event(&xid(0, Some(7), 94, 1), &inventory, &off, at(1));
        health.take_event(&xid(0, Some(8), 94, 1), &inventory, &off, at(1));
        health.take_event(&xid(1, None, 48, 1), &inventory, &off, at(1));
        health.driver_gone(true);
        assert_eq!(health.next_look(&off, at(500)), None);
        let mut without = inventory.clone();
        without.gpus[0].mig_devices.remove(0);
        health.take_inventory(&without, &off, at(7000));
        assert_eq!(health.take_inventory(&inventory, &off, at(8000)), Findings::default());
        assert_eq!(sick(&health, &inventory), ["0:1", "1:0", "1:1", "1:2"]);
        // Switched on again, the rules hold.
        looks(&mut health, &inventory, 8001);
        assert_eq!(sick(&health, &inventory), [""; 0]);
    }
}

#[test]
fn another_policy_makes_nothing_well_by_itself() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    takes(&mut health, &xid(0, Some(7), 94, 1), &inventory, 1);
    let needs = with_action(&inventory, 1, RecoveryAction::Reset);
    looks(&mut health, &needs, 2);
    let nothing = HealthPolicy { checks: Checks::new(&[Check::All], &[], false), ..HealthPolicy::default() };
    assert_eq!(health.take_event(&xid(0, Some(7), 94, 3), &inventory, &nothing, at(3)), Outcome::Ignored);
    health.take_inventory(&needs, &nothing, at(5));
    assert_eq!(sick(&health, &inventory), ["0:0", "1:0", "1:1", "1:2"]);
    // It recovers as it would have.
    health.take_inventory(&inventory, &nothing, at(12));
    assert_eq!(sick(&health, &inventory), [""; 0]);
}
