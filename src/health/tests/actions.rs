//! What the driver says that a GPU, or the node, needs.

use super::*;
use crate::inventory::RecoveryAction;

fn asking(actions: [RecoveryAction; 2]) -> Inventory {
    let mut inventory = two_gpus();
    for (gpu, action) in inventory.gpus.iter_mut().zip(actions) {
        gpu.recovery_action = Some(action);
    }
    inventory
}

use RecoveryAction::{DrainAndReset, DrainP2p, None as Nothing, Other, Reboot, RecoverImex, Reset};

#[test]
fn what_one_gpu_needs_concerns_that_gpu() {
    for action in [Reset, DrainAndReset, Other(9)] {
        let (mut health, inventory) = (Health::default(), asking([action, Nothing]));
        let findings = looks(&mut health, &inventory, 1);
        assert_eq!(findings.sick.len(), 1);
        assert_eq!(findings.sick[0].what, "GPU 0 (GPU-0) and its 3 MIG devices");
        assert_eq!(sick(&health, &inventory), ["0:0", "0:1", "0:2"]);
        assert_eq!(cautions(&inventory), [""; 0]);
    }
}

#[test]
fn a_reboot_is_said_once_for_the_node_and_concerns_all_of_it() {
    let (mut health, inventory) = (Health::default(), asking([Reboot, Reboot]));
    let findings = looks(&mut health, &inventory, 1);
    assert_eq!(findings.sick.len(), 1, "{findings:?}");
    assert_eq!(findings.sick[0].what, "the node with GPU 0 (GPU-0), GPU 1 (GPU-1) and all their MIG devices");
    assert_eq!(findings.sick[0].reason, Reason::RecoveryAction(Reboot));
    assert_eq!(sick(&health, &inventory).len(), 6);
    assert_eq!(reasons(&health, &inventory, 1, 2), ["the driver asks for a reboot of the node"]);
    assert_eq!(looks(&mut health, &inventory, 2), Findings::default());
    // A GPU that could not be read when the others were is no news of the node.
    let (mut health, one) =
        (Health::default(), with_trouble(&inventory, 1, Trouble::unreadable("it does not say")));
    assert_eq!(
        looks(&mut health, &one, 1).sick[0].what,
        "the node with GPU 0 (GPU-0) and all its MIG devices"
    );
    assert_eq!(looks(&mut health, &inventory, 2), Findings::default());
    assert_eq!(sick(&health, &inventory).len(), 6);
}

#[test]
fn a_reboot_that_was_asked_for_before_is_said_again() {
    let (mut health, inventory) = (Health::default(), asking([Reboot, Reboot]));
    looks(&mut health, &inventory, 1);
    assert_eq!(looks(&mut health, &two_gpus(), 100).recovered.len(), 2);
    assert_eq!(looks(&mut health, &inventory, 200).sick.len(), 1);
}

#[test]
fn what_does_not_concern_slices_is_a_caution_and_keeps_none_from_recovering() {
    for action in [DrainP2p, RecoverImex] {
        let (mut health, inventory) = (Health::default(), asking([action, action]));
        assert_eq!(looks(&mut health, &inventory, 1), Findings::default());
        assert_eq!(sick(&health, &inventory), [""; 0]);
        takes(&mut health, &xid(0, Some(7), 94, 5), &inventory, 5);
        assert_eq!(looks(&mut health, &inventory, 15).recovered.len(), 1, "{action}");
    }
    assert_eq!(
        cautions(&asking([DrainP2p, RecoverImex])),
        [
            "GPU 0 (GPU-0): the driver asks for an end of its peer-to-peer traffic, which MIG devices do not have",
            "the driver asks for a recovery of the node's IMEX domain, without which GPUs can be used",
        ]
    );
    assert_eq!(cautions(&asking([RecoverImex, RecoverImex])).len(), 1, "once for the node");
    assert_eq!(cautions(&two_gpus()), [""; 0]);
}

#[test]
fn peer_to_peer_traffic_concerns_a_gpu_that_is_not_cut_into_slices() {
    let mut inventory = node([gpu(0), gpu(1)]);
    inventory.gpus[0].recovery_action = Some(DrainP2p);
    inventory.gpus[1].recovery_action = Some(RecoverImex);
    let mut health = Health::default();
    assert_eq!(looks(&mut health, &inventory, 1).sick.len(), 1);
    let of = |gpu: usize| health.reasons_of(&device(&inventory.gpus[gpu], None));
    assert_eq!((of(0), of(1)), (vec![Reason::RecoveryAction(DrainP2p)], Vec::new()));
    assert_eq!(cautions(&inventory).len(), 1);
}

#[test]
fn a_gpu_that_cannot_be_read_says_nothing_of_what_is_needed() {
    let inventory = with_trouble(&asking([RecoverImex, Nothing]), 0, Trouble::unreadable("it does not say"));
    assert_eq!(cautions(&inventory), [""; 0]);
}
