//! The quiet period, and what is remembered for how long.

use super::*;
use crate::health::record::{FORGIVEN_AFTER, MAX_KINDS};
use crate::health::waiting::MAX_WAITING;

/// Lets MIG device 0:0 fall sick at `seconds` and gives how long it was until it recovered, by asking when to look.
fn illness(health: &mut Health, inventory: &Inventory, seconds: u64) -> u64 {
    assert_eq!(takes(health, &xid(0, Some(7), 94, seconds), inventory, seconds), Some(true));
    let quiet = next(health, seconds).unwrap();
    assert!(looks(health, inventory, seconds + quiet - 1).recovered.is_empty());
    assert_eq!(looks(health, inventory, seconds + quiet).recovered.len(), 1);
    assert!(sick(health, inventory).is_empty());
    quiet
}

#[test]
fn each_relapse_doubles_the_quiet_period_up_to_ten_minutes() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    let mut now = 100;
    for expected in [10, 20, 40, 80, 160, 320, 600, 600, 600] {
        let quiet = illness(&mut health, &inventory, now);
        assert_eq!(quiet, expected);
        now += quiet + 30;
    }
    // A neighbour has its own count.
    takes(&mut health, &xid(0, Some(8), 94, now), &inventory, now);
    assert_eq!(next(&health, now), Some(QUIET));
}

#[test]
fn a_gpu_or_slice_that_cannot_be_read_now_and_then_is_damped_as_a_lost_one_is() {
    let trouble = |kind| Trouble { kind, text: "it does not say".to_owned() };
    for kind in [TroubleKind::Unreadable, TroubleKind::NoAnswer, TroubleKind::Lost] {
        // An old driver's GPU needs a reset for an error, but not for an answer that did not come.
        for well in [two_gpus(), two_gpus_of_an_old_driver()] {
            let gpu = with_trouble(&well, 0, trouble(kind));
            let mut slice = well.clone();
            slice.gpus[0].mig_devices[1].problem = Some(trouble(kind));
            for (bad, which) in [(gpu, vec!["0:0", "0:1", "0:2"]), (slice, vec!["0:1"])] {
                let mut health = Health::default();
                let mut now = 100;
                for quiet in [10, 20, 40] {
                    assert_eq!(looks(&mut health, &bad, now).sick.len(), 1, "{kind:?}");
                    assert_eq!(looks(&mut health, &bad, now + 1).sick, [], "it is no news any more");
                    now += 1;
                    assert_eq!(looks(&mut health, &well, now + quiet - 1).recovered, []);
                    assert_eq!(sick(&health, &well), which);
                    assert_eq!(next(&health, now), Some(quiet));
                    assert_eq!(looks(&mut health, &well, now + quiet).recovered.len(), 1);
                    assert_eq!(sick(&health, &well), [""; 0]);
                    now += quiet + 30;
                }
            }
        }
    }
}

#[test]
fn what_could_not_be_read_takes_nothing_from_an_error() {
    let well = two_gpus_of_an_old_driver();
    let bad = with_trouble(&well, 0, Trouble::unreadable("it does not say"));
    let mut health = Health::default();
    takes(&mut health, &xid(0, None, 48, 1), &well, 1);
    looks(&mut health, &bad, 2);
    assert_eq!(looks(&mut health, &well, 5000).recovered, []);
    assert_eq!(sick(&health, &well), ["0:0", "0:1", "0:2"], "the GPU was not reset");
}

#[test]
fn without_recovery_what_could_not_be_read_is_unhealthy_only_while_that_lasts() {
    let off = HealthPolicy { recovery: Recovery::Off, ..HealthPolicy::default() };
    let well = two_gpus();
    let bad = with_trouble(&well, 0, Trouble::unreadable("it does not say"));
    let mut health = Health::default();
    health.take_inventory(&bad, &off, at(1));
    health.take_inventory(&well, &off, at(2));
    assert_eq!(sick(&health, &well), [""; 0]);
}

#[test]
fn after_an_hour_well_it_starts_over_and_nothing_is_remembered() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    let hour = FORGIVEN_AFTER.as_secs();
    assert_eq!(illness(&mut health, &inventory, 0), 10);
    // Well since 10: a second less than an hour is a relapse, an hour is not.
    assert_eq!(illness(&mut health, &inventory, 10 + hour - 1), 20);
    let well = 10 + hour - 1 + 20;
    assert_eq!(illness(&mut health, &inventory, well + hour), 10);
    let well = well + hour + 10;
    assert_eq!(health.size(), 1);
    looks(&mut health, &inventory, well + hour - 1);
    assert_eq!(health.size(), 1);
    looks(&mut health, &inventory, well + hour);
    assert_eq!(health.size(), 0);
}

#[test]
fn a_quiet_period_longer_than_the_cap_is_not_cut() {
    let quiet = Duration::from_hours(1);
    let policy = HealthPolicy { recovery: Recovery::Auto { quiet }, ..HealthPolicy::default() };
    let (mut health, inventory) = (Health::default(), two_gpus());
    for now in [0, 3700] {
        health.take_event(&xid(0, Some(7), 94, now), &inventory, &policy, at(now));
        assert_eq!(health.next_look(&policy, at(now)), Some(quiet));
        assert_eq!(health.take_inventory(&inventory, &policy, at(now + 3600)).recovered.len(), 1);
    }
}

#[test]
fn without_a_quiet_period_a_look_that_began_after_the_event_is_enough() {
    let policy =
        HealthPolicy { recovery: Recovery::Auto { quiet: Duration::ZERO }, ..HealthPolicy::default() };
    let (mut health, inventory) = (Health::default(), two_gpus());
    health.take_event(&xid(0, Some(7), 94, 5), &inventory, &policy, at(5));
    assert_eq!(health.next_look(&policy, at(5)), Some(Duration::ZERO));
    assert!(health.take_inventory(&inventory, &policy, at(5)).recovered.is_empty());
    assert_eq!(health.take_inventory(&inventory, &policy, at(6)).recovered.len(), 1);
}

#[test]
fn a_storm_of_one_xid_changes_nothing_but_when_it_is_over() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    assert_eq!(takes(&mut health, &xid(0, None, 95, 1), &inventory, 1), Some(true));
    let before: Vec<_> = slices(&inventory).iter().map(|device| health.reasons_of(device)).collect();
    for n in 0..10_000 {
        assert_eq!(
            takes(&mut health, &xid(0, None, 95, 2 + n / 1000), &inventory, 2 + n / 1000),
            Some(false)
        );
    }
    let after: Vec<_> = slices(&inventory).iter().map(|device| health.reasons_of(device)).collect();
    assert_eq!(before, after);
    assert_eq!(health.size(), 1);
    assert_eq!(next(&health, 11), Some(QUIET));
}

#[test]
fn of_a_storm_of_many_xids_the_first_kinds_are_kept_and_the_rest_only_counts_as_evidence() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    let news: Vec<_> =
        (1000..11_000).filter_map(|n| takes(&mut health, &xid(0, Some(7), n, 1), &inventory, n)).collect();
    assert_eq!(news.len(), 10_000);
    assert_eq!(news.iter().filter(|news| **news).count(), MAX_KINDS);
    let reasons = reasons(&health, &inventory, 0, 0);
    assert_eq!(reasons.len(), MAX_KINDS);
    assert!(reasons[0].starts_with("Xid 1000 at "), "{reasons:?}");
    assert_eq!(next(&health, 10_999), Some(QUIET));
    assert_eq!(health.size(), 1);
}

#[test]
fn of_events_about_unknown_instances_the_newest_are_kept_and_the_others_counted() {
    let (mut health, inventory) = (Health::default(), two_gpus());
    for n in 0..10_000 {
        takes(&mut health, &xid(0, Some(100), 94, n), &inventory, n);
    }
    assert_eq!(health.size(), 1);
    for n in 0..100 {
        takes(&mut health, &xid(0, Some(200 + n), 94, 1), &inventory, 1);
    }
    assert_eq!(health.size(), MAX_WAITING);
    let findings = looks(&mut health, &inventory, 20_000);
    assert_eq!((findings.of_gpu.len(), findings.forgotten), (MAX_WAITING, 101 - MAX_WAITING));
    assert_eq!(findings.of_gpu.last().unwrap().gpu_instance, Some(299));
    assert_eq!(findings.sick.len(), 1, "all of them are one reason");
    assert_eq!(looks(&mut health, &inventory, 20_001), Findings::default());
    assert_eq!(health.size(), 1, "the GPU");
}
