use super::*;
use crate::fixtures::{gpu, mig_device, mig_gpu, node};

fn left_out(gpu: u32, mig_device: Option<u32>) -> Problem {
    Problem { gpu, mig_device, uuid: None, reason: Trouble::unreadable("it does not answer"), left_out: true }
}

fn with_problems(mut inventory: Inventory, problems: Vec<Problem>) -> Inventory {
    inventory.problems = problems;
    inventory
}

#[test]
fn a_gpu_that_does_not_answer_is_kept_and_marked() {
    let before = node([mig_gpu(0, &["1g.10gb"]), mig_gpu(1, &["3g.40gb"]), gpu(2)]);
    let now = with_problems(node([mig_gpu(0, &["1g.10gb"]), gpu(2)]), vec![left_out(1, None)]);
    let kept = now.with_unreadable_from(&before);
    assert_eq!(kept.gpus.iter().map(|gpu| gpu.index).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(kept.gpus[1].problem, Some(Trouble::unreadable("it does not answer")));
    assert_eq!(kept.gpus[1].mig_devices, before.gpus[1].mig_devices);
    // And again, from what was kept: it stays until it answers.
    let now = with_problems(node([gpu(0), gpu(2)]), vec![left_out(1, None)]);
    assert_eq!(now.with_unreadable_from(&kept).gpus[1], kept.gpus[1]);
    let now = node([gpu(0), mig_gpu(1, &["3g.40gb"]), gpu(2)]);
    assert_eq!(now.clone().with_unreadable_from(&kept), now);
}

#[test]
fn a_mig_device_that_does_not_answer_is_kept_and_marked() {
    let before = node([mig_gpu(0, &["1g.10gb", "1g.10gb", "1g.10gb"])]);
    let mut now = with_problems(before.clone(), vec![left_out(0, Some(1))]);
    now.gpus[0].mig_devices.remove(1);
    let kept = now.with_unreadable_from(&before);
    let devices = &kept.gpus[0].mig_devices;
    assert_eq!(devices.iter().map(|device| device.index).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(devices[1].problem, Some(Trouble::unreadable("it does not answer")));
    assert!(devices[1].is_same(&before.gpus[0].mig_devices[1]));
}

#[test]
fn an_unreadable_mig_device_whose_index_moved_is_found_by_its_uuid() {
    let before = node([mig_gpu(0, &["1g.10gb", "2g.20gb", "3g.40gb"])]);
    let [first, second, third] = before.gpus[0].mig_devices.clone().try_into().unwrap();
    // The first has gone, so that the others moved up; what was the third does not answer.
    let mut now = before.clone();
    now.gpus[0].mig_devices = vec![MigDevice { index: 0, ..second.clone() }];
    let unknown = with_problems(now.clone(), vec![left_out(0, Some(1))]).with_unreadable_from(&before);
    assert_eq!(unknown.gpus, now.gpus, "what had the index is elsewhere");
    let problem = Problem { uuid: Some(third.uuid.clone()), ..left_out(0, Some(1)) };
    let kept = with_problems(now, vec![problem]).with_unreadable_from(&before);
    let devices = &kept.gpus[0].mig_devices;
    assert_eq!(devices.iter().map(|device| device.index).collect::<Vec<_>>(), [0, 1]);
    assert!(devices[1].is_same(&third) && devices[1].problem.is_some());
    assert!(devices.iter().all(|device| device.uuid != first.uuid));
}

#[test]
fn what_is_gone_or_only_incomplete_is_not_kept() {
    let before = node([mig_gpu(0, &["1g.10gb", "1g.10gb"]), gpu(1)]);
    let mut detail = left_out(1, None);
    detail.left_out = false;
    // Nothing was known of GPU 5.
    let now = with_problems(node([mig_gpu(0, &["1g.10gb"])]), vec![detail, left_out(5, None)]);
    assert_eq!(now.clone().with_unreadable_from(&before), now);
}

#[test]
fn the_index_is_no_part_of_what_a_device_is_but_the_profile_is() {
    let device = mig_device(0, 1, "1g.10gb");
    let moved = MigDevice { index: 0, ..device.clone() };
    assert!(device.is_same(&moved));
    let unasked = MigDevice { placement: None, profile_id: None, ..device.clone() };
    assert!(device.is_same(&unasked) && unasked.is_same(&device));
    let other = MigDevice { profile: "1g.20gb".parse().unwrap(), ..device.clone() };
    assert!(!device.is_same(&other));
    let elsewhere = MigDevice { placement: Some(Placement { start: 5, size: 1 }), ..device.clone() };
    assert!(!device.is_same(&elsewhere));
}

#[test]
fn a_slice_that_only_proc_shows_is_kept_where_it_was_known() {
    let before = node([mig_gpu(0, &["1g.10gb", "2g.20gb"])]);
    let hidden = |gpu_instance, settled| HiddenSlice { gpu_instance, compute_instance: 0, settled };
    let mut now = before.clone();
    let gone = now.gpus[0].mig_devices.remove(1);
    // One that was known, and one that nobody has seen.
    now.gpus[0].hidden = vec![hidden(gone.gpu_instance, true), hidden(11, true)];
    assert_eq!(now.gpus[0].instances_without_devices(), [gone.gpu_instance, 11]);
    let kept = now.clone().with_unreadable_from(&before);
    assert_eq!(kept.gpus[0].mig_devices[0], before.gpus[0].mig_devices[0]);
    let problem = kept.gpus[0].mig_devices[1].problem.as_ref().unwrap();
    assert_eq!(problem.text, "hidden from this process: no access to mig/monitor?");
    assert!(kept.gpus[0].mig_devices[1].is_same(&gone));
    assert_eq!(kept.gpus[0].instances_without_devices(), [11]);
    assert!(!kept.gpus[0].knows_what_is_hidden());
    // It stays as long as its file does, and no longer.
    assert_eq!(now.clone().with_unreadable_from(&kept), kept);
    now.gpus[0].hidden.clear();
    assert_eq!(now.clone().with_unreadable_from(&kept), now);
    assert!(now.gpus[0].knows_what_is_hidden());
    // What is listed again is as it is listed.
    let mut again = before.clone();
    again.gpus[0].hidden = vec![hidden(gone.gpu_instance, false)];
    assert_eq!(again.clone().with_unreadable_from(&kept), again);
}
