//! Of which GPUs errors are heard.

use super::*;
use crate::inventory::{EventRight, HiddenSlice, Problem};

#[test]
fn a_gpu_is_heard_of_by_right_or_without_instances() {
    let mut inventory = node([
        mig_gpu(0, &["1g.10gb"]),
        mig_gpu(1, &[]),
        gpu(2),
        mig_gpu(3, &[]),
        mig_gpu(4, &[]),
        mig_gpu(5, &[]),
    ]);
    inventory.gpus[3].empty_gpu_instances = vec![9];
    let reason = Trouble::unreadable("it does not say");
    inventory.problems = vec![Problem { gpu: 4, mig_device: Some(0), uuid: None, reason, left_out: true }];
    inventory.gpus[5].hidden = vec![HiddenSlice { gpu_instance: 9, compute_instance: 0, settled: true }];
    let mut heard = |right| {
        inventory.event_right = right;
        inventory.gpus.iter().map(|gpu| is_heard(gpu, &inventory)).collect::<Vec<_>>()
    };
    let (yes, no) = (Some(true), Some(false));
    assert_eq!(heard(Some(EventRight::Nothing)), [no, yes, yes, no, no, no]);
    assert_eq!(heard(None), [None, yes, yes, None, None, None]);
    for right in [EventRight::Admin, EventRight::Monitor] {
        assert_eq!(heard(Some(right)), [yes; 6]);
    }
}
