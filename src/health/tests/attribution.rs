//! Which part of a GPU an event is about.

use super::*;
use crate::fixtures::mig_device;
use crate::inventory::HiddenSlice;

/// An Xid as the driver sends it where it attributes it to nothing: GPU instance 0, compute instance 0.
fn zero(gpu: u32, number: u64, seconds: u64) -> HealthEvent {
    xid(gpu, Some(0), number, seconds)
}

/// What was found to be unhealthy, e.g. `GPU 0 (GPU-0) and its 3 MIG devices`.
fn found(findings: &Findings) -> Vec<&str> {
    findings.sick.iter().map(|sickness| sickness.what.as_str()).collect()
}

#[test]
fn xids_of_the_whole_gpu_are_about_it_whatever_instance_they_name() {
    let inventory = two_gpus();
    for number in [48, 79, 95, 120] {
        for instance in [None, Some(0), Some(7), Some(12)] {
            let mut health = Health::default();
            let event = xid(0, instance, number, 1);
            let outcome = health.take_event(&event, &inventory, &HealthPolicy::default(), at(1));
            let Outcome::Sick(sickness) = outcome else { panic!("{number} {instance:?}: {outcome:?}") };
            assert_eq!(sickness.what, "GPU 0 (GPU-0) and its 3 MIG devices");
            assert_eq!(sick(&health, &inventory), ["0:0", "0:1", "0:2"]);
        }
    }
}

#[test]
fn an_xid_that_comes_once_per_channel_is_one_reason() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    let news: Vec<_> = (0..40).map(|_| takes(&mut health, &zero(0, 79, 1), &inventory, 1).unwrap()).collect();
    assert!(news[0] && news[1..].iter().all(|news| !news));
    for _ in 0..40 {
        takes(&mut health, &zero(1, 94, 1), &inventory, 1);
    }
    let findings = looks(&mut health, &inventory, 2);
    assert_eq!(found(&findings), ["GPU 1 (GPU-1) and its 3 MIG devices"]);
    assert_eq!(findings.of_gpu, [zero(1, 94, 1)]);
}

#[test]
fn a_storm_about_no_instance_is_about_the_gpu_while_it_lasts() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    // The last event always came after the look began.
    for second in 1..5 {
        takes(&mut health, &zero(0, 94, second), &inventory, second);
        let findings = looks(&mut health, &inventory, second);
        assert_eq!(sick(&health, &inventory).is_empty(), second == 1, "{findings:?}");
    }
}

#[test]
fn a_contained_error_with_zeros_is_about_the_instance_with_these_ids_or_else_the_gpu() {
    let mut whole = two_gpus();
    whole.gpus[0].mig_devices = vec![MigDevice { gpu_instance: 0, ..mig_device(0, 0, "7g.80gb") }];
    let mut health = Health::default();
    assert_eq!(takes(&mut health, &zero(0, 94, 1), &whole, 1), Some(true));
    assert_eq!(sick(&health, &whole), ["0:0"]);
    assert_eq!(health.reasons_of(&device(&whole.gpus[1], None)), []);

    let (mut health, inventory) = (Health::default(), two_gpus());
    looks(&mut health, &inventory, 1);
    assert_eq!(takes(&mut health, &zero(0, 94, 5), &inventory, 5), None, "after a look");
    assert_eq!(sick(&health, &inventory), [""; 0]);
    assert_eq!(looks(&mut health, &inventory, 4), Findings::default(), "one that began before cannot tell");
    let findings = looks(&mut health, &inventory, 6);
    assert_eq!(found(&findings), ["GPU 0 (GPU-0) and its 3 MIG devices"]);
    assert_eq!((findings.of_gpu, findings.unplaced), (vec![zero(0, 94, 5)], Vec::new()));
    assert_eq!(sick(&health, &inventory), ["0:0", "0:1", "0:2"]);
    // The look that said so is no evidence that all is well.
    assert_eq!(next(&health, 6), Some(QUIET));
    assert_eq!(looks(&mut health, &inventory, 16).recovered.len(), 1);
}

#[test]
fn an_event_about_an_instance_that_was_made_a_moment_ago_is_that_instances() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    looks(&mut health, &inventory, 1);
    takes(&mut health, &xid(0, Some(10), 94, 5), &inventory, 5);
    let mut later = inventory.clone();
    later.gpus[0].mig_devices.push(mig_device(0, 3, "1g.10gb"));
    assert_eq!(found(&looks(&mut health, &later, 6)), ["MIG device 0:3 (MIG-0-10-0)"]);
    assert_eq!(sick(&health, &later), ["0:3"]);
}

#[test]
fn an_event_about_an_instance_that_has_just_gone_is_nobodys() {
    let inventory = two_gpus();
    let mut without = inventory.clone();
    without.gpus[0].mig_devices.remove(0);
    // The event comes before the look that misses the instance, a little after it, and much later.
    for (heard, nobodys) in [(5, true), (8, true), (66, true), (67, false)] {
        for compute_instance in [Some(0), None] {
            let mut health = Health::default();
            looks(&mut health, &inventory, 3);
            let event = HealthEvent { compute_instance, ..xid(0, Some(7), 94, heard) };
            if heard < 7 {
                takes(&mut health, &event, &inventory, heard);
            }
            let mut findings = looks(&mut health, &without, 7);
            if heard >= 7 {
                assert_eq!(takes(&mut health, &event, &without, heard), None);
                findings = looks(&mut health, &without, heard + 1);
            }
            assert_eq!(findings.unplaced.is_empty(), !nobodys, "{heard} {compute_instance:?}");
            assert_eq!(sick(&health, &without).is_empty(), nobodys, "{heard} {compute_instance:?}");
        }
    }
}

#[test]
fn how_long_ago_an_instance_went_counts_from_the_look_that_missed_it() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    let mut without = inventory.clone();
    without.gpus[0].mig_devices.remove(0);
    looks(&mut health, &inventory, 3);
    // Nobody looked for long.
    takes(&mut health, &xid(0, Some(7), 94, 9000), &inventory, 9000);
    assert_eq!(looks(&mut health, &without, 9001).unplaced.len(), 1);
    // A look that cannot read the GPU misses nothing.
    let unreadable = with_trouble(&inventory, 1, Trouble::unreadable("it does not say"));
    looks(&mut health, &unreadable, 9002);
    let mut other = without.clone();
    other.gpus[1].mig_devices.remove(0);
    takes(&mut health, &xid(1, Some(7), 94, 9100), &unreadable, 9100);
    assert_eq!(looks(&mut health, &other, 9101).unplaced.len(), 1);
    assert_eq!(sick(&health, &other), [""; 0]);
}

#[test]
fn of_like_events_the_last_says_whether_the_instance_had_just_gone() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    let mut without = inventory.clone();
    without.gpus[0].mig_devices.remove(0);
    looks(&mut health, &inventory, 1);
    looks(&mut health, &without, 2);
    let unreadable = with_trouble(&without, 0, Trouble::unreadable("it does not say"));
    for heard in [3, 200] {
        takes(&mut health, &xid(0, Some(7), 94, heard), &without, heard);
        looks(&mut health, &unreadable, heard + 1);
    }
    assert_eq!(looks(&mut health, &without, 202).of_gpu.len(), 1);
}

#[test]
fn an_event_about_a_gpu_instance_without_compute_instances_hits_nothing() {
    let (mut health, mut inventory) = (Health::default(), two_gpus());
    inventory.gpus[0].empty_gpu_instances = vec![11];
    takes(&mut health, &xid(0, Some(11), 94, 1), &inventory, 1);
    let findings = looks(&mut health, &inventory, 2);
    assert_eq!((findings.unplaced.len(), findings.sick.len()), (1, 0));
}

#[test]
fn an_event_about_a_slice_that_nvml_does_not_list_waits_while_it_may_be_one_that_is_being_made() {
    let (mut health, mut inventory) = (Health::default(), two_gpus());
    let hidden = |settled| vec![HiddenSlice { gpu_instance: 10, compute_instance: 0, settled }];
    inventory.gpus[0].hidden = hidden(false);
    takes(&mut health, &xid(0, Some(10), 94, 1), &inventory, 1);
    assert_eq!(looks(&mut health, &inventory, 2), Findings::default());
    let mut made = inventory.clone();
    made.gpus[0].hidden.clear();
    made.gpus[0].mig_devices.push(mig_device(0, 3, "1g.10gb"));
    assert_eq!(found(&looks(&mut health.clone(), &made, 3)), ["MIG device 0:3 (MIG-0-10-0)"]);
    inventory.gpus[0].hidden = hidden(true);
    let findings = looks(&mut health, &inventory, 4);
    assert_eq!((findings.unplaced.len(), findings.sick.len()), (1, 0), "it is nobody's device");
}

#[test]
fn an_event_about_a_gpu_that_is_not_there_hits_nothing() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    for event in [xid(7, None, 79, 1), zero(7, 94, 1)] {
        takes(&mut health, &event, &inventory, 1);
    }
    assert_eq!(looks(&mut health, &inventory, 2).unplaced.len(), 2);
    assert_eq!(sick(&health, &inventory), [""; 0]);
}
