//! What the driver tells by itself: changes of instances, and errors of whole GPUs.

use std::fs;

use fake_nvml::{Description, Incident, Instance, MigConfigChange, Node, RecoveryAction};
use nvml_wrapper_sys::bindings as sys;

use crate::{
    call,
    client::{Client, Set, filled},
    node,
};

const XID: u64 = 8;
const MIG_CONFIG_CHANGE: u64 = 0x100;
const RECOVERY_ACTION: u64 = 0x8000;
const NOT_SUPPORTED: u32 = 3;
const GPU_IS_LOST: u32 = 15;
const NONE: u32 = u32::MAX;

/// Type, data and IDs of all events that wait.
fn heard(client: &Client, set: Set) -> Vec<(u64, u64, u32, u32)> {
    let next = || client.wait(set, 0).ok();
    std::iter::from_fn(next)
        .map(|event| (event.eventType, event.eventData, event.gpuInstanceId, event.computeInstanceId))
        .collect()
}

/// A client that listens to GPU 0.
fn listener(node: &Node) -> (Client, Set) {
    let client = Client::of(node);
    let set = client.listen(&[client.gpu(0).unwrap()], XID | MIG_CONFIG_CHANGE | RECOVERY_ACTION);
    (client, set)
}

#[test]
fn each_instance_that_an_edit_makes_or_destroys_is_told_of() {
    let (_folder, node) = node(&Description::h100s(2).with_mig_mode(0, true));
    let (client, set) = listener(&node);
    let changes = |change: &dyn Fn(&mut Description)| {
        node.update(change).unwrap();
        let heard = heard(&client, set);
        assert!(heard.iter().all(|event| *event == (MIG_CONFIG_CHANGE, 0, NONE, NONE)), "{heard:?}");
        heard.len()
    };
    assert_eq!(changes(&|d| d.set_mig(0, &["1g.10gb"; 7])), 14, "a GPU instance and a compute instance each");
    assert_eq!(changes(&|d| d.gpu(0).recovery_action = RecoveryAction::Reset), 0);
    assert_eq!(changes(&|d| d.set_mig(1, &["1g.10gb"; 7])), 0, "of another GPU");
    assert_eq!(changes(&|d| drop(d.gpu(0).layout.pop())), 2);
    assert_eq!(changes(&|d| d.gpu(0).layout[0] = Instance::new("1g.10gb+me").at(0)), 4, "one for another");
    assert_eq!(changes(&|d| d.set_mig(0, &[Instance::new("3g.40gb").compute(&[1, 2])])), 15);
    assert_eq!(changes(&|d| d.gpu(0).layout[0].compute = Some(Vec::new())), 2);
    assert_eq!(changes(&|d| d.set_mig_mode(0, false)), 0, "a change of the mode");
    assert_eq!(changes(&|d| d.set_mig(0, &["7g.80gb"])), 2, "what is made after it");
    node.update_untold(|d| d.gpu(0).layout.clear()).unwrap();
    node.update_untold(|d| d.set_mig(0, &["7g.80gb"])).unwrap();
    assert_eq!(heard(&client, set), [], "a reset, and instances that are brought back");
}

#[test]
fn an_edit_by_hand_and_calls_are_told_of_too() {
    let (_folder, node) = node(&Description::h100s(1).with_mig_mode(0, true));
    let (client, set) = listener(&node);
    let yaml = "gpus: [{ model: h100-80gb-sxm5, mig: true, layout: [3g.40gb] }]\n";
    fs::write(node.description_file(), yaml).unwrap();
    assert_eq!(heard(&client, set).len(), 2);
    let gpu = client.gpu(0).unwrap();
    let (mut instance, mut compute) = (std::ptr::null_mut(), std::ptr::null_mut());
    let told = |answer: Result<(), u32>| {
        answer.unwrap();
        heard(&client, set).len()
    };
    assert_eq!(told(call!(client, nvmlDeviceCreateGpuInstance(gpu, 19, &raw mut instance))), 1);
    assert_eq!(told(call!(client, nvmlGpuInstanceCreateComputeInstance(instance, 0, &raw mut compute))), 1);
    assert_eq!(told(call!(client, nvmlComputeInstanceDestroy(compute))), 1);
    assert_eq!(told(call!(client, nvmlGpuInstanceDestroy(instance))), 1);
}

#[test]
fn changes_can_be_told_of_only_when_they_are_sent() {
    let mut description = Description::h100s(1).with_mig_mode(0, true);
    description.mig_config_change = MigConfigChange::WhenTold;
    let (_folder, node) = node(&description);
    let (client, set) = listener(&node);
    node.update(|d| d.set_mig(0, &["1g.10gb"; 7])).unwrap();
    assert_eq!(heard(&client, set), []);
    node.send(&fake_nvml::Event::mig_config_change()).unwrap();
    assert_eq!(heard(&client, set), [(MIG_CONFIG_CHANGE, 0, NONE, NONE)]);
}

#[test]
fn without_rights_only_the_end_of_the_last_instance_is_heard() {
    let (_folder, node) = node(&Description::h100s(1).with_mig(0, &["1g.10gb"; 3]).with_rights(&[]));
    let (client, set) = listener(&node);
    node.update(|d| drop(d.gpu(0).layout.pop())).unwrap();
    assert_eq!(heard(&client, set).len(), 0);
    node.update(|d| d.gpu(0).layout.clear()).unwrap();
    assert_eq!(heard(&client, set).len(), 1);
    node.update(|d| d.set_mig(0, &["1g.10gb"])).unwrap();
    assert_eq!(heard(&client, set).len(), 0);
    node.update(|d| d.set_mig(0, &["3g.40gb"])).unwrap();
    assert_eq!(heard(&client, set).len(), 1, "between the one and the other");
}

#[test]
fn a_change_of_the_configuration_may_be_registered_with_mig_off_or_not() {
    for (needs_mig, expected) in [(false, Ok(())), (true, Err(NOT_SUPPORTED))] {
        let mut description = Description::h100s(2).with_mig_mode(1, true);
        description.mig_event_needs_mig = needs_mig;
        let (_folder, node) = node(&description);
        let client = Client::of(&node);
        let (off, on) = (client.gpu(0).unwrap(), client.gpu(1).unwrap());
        let set = client.listen(&[off, on], XID);
        let register = |gpu| call!(client, nvmlDeviceRegisterEvents(gpu, XID | MIG_CONFIG_CHANGE, set.0));
        assert_eq!((register(off), register(on)), (expected, Ok(())));
        node.update(|d| d.set_mig_mode(0, true)).unwrap();
        assert_eq!(register(off), Ok(()));
    }
}

fn recovery_action(client: &Client, gpu: u32) -> Result<u32, u32> {
    let gpu = client.gpu(gpu)?;
    let value = filled(|place: *mut sys::nvmlFieldValue_t| {
        // SAFETY: the place is a zeroed struct of that type.
        unsafe { (*place).fieldId = 230 };
        call!(client, nvmlDeviceGetFieldValues(gpu, 1, place))
    })?;
    // SAFETY: every bit pattern is an unsigned int.
    Ok(unsafe { value.value.uiVal })
}

#[test]
fn errors_of_whole_gpus_are_told_once_for_each_channel_as_of_instance_0() {
    for (incident, xid, after) in [
        (Incident::lost(), 79, Err(GPU_IS_LOST)),
        (Incident::gsp_crash(), 120, Ok(RecoveryAction::Reset as u32)),
        (Incident::gsp_fatal(), 94, Ok(RecoveryAction::Reset as u32)),
    ] {
        let (_folder, node) = node(&Description::of("b200-180gb", 2).with_mig_mode(0, true));
        let (client, set) = listener(&node);
        node.strike(&incident.channels(3)).unwrap();
        let mut expected = vec![(XID, xid, 0, 0); 3];
        if after.is_ok() {
            expected.push((RECOVERY_ACTION, 0, NONE, NONE));
        }
        assert_eq!(heard(&client, set), expected, "{incident:?}");
        assert_eq!((recovery_action(&client, 0), recovery_action(&client, 1)), (after, Ok(0)));
    }
}

#[test]
fn an_error_of_a_whole_gpu_can_come_without_ids_and_without_any_event() {
    let (_folder, node) = node(&Description::h100s(1));
    let (client, set) = listener(&node);
    node.strike(&Incident::gsp_crash().without_ids()).unwrap();
    assert_eq!(heard(&client, set)[0], (XID, 120, NONE, NONE));
    node.strike(&Incident::lost().channels(0)).unwrap();
    assert_eq!(heard(&client, set), []);
    assert_eq!(client.gpu(0), Err(GPU_IS_LOST));
    let refused = |incident: Incident| node.strike(&incident).unwrap_err().to_string();
    assert!(refused(Incident::gsp_fatal()).contains("only Blackwell does"));
    assert!(refused(Incident::lost().on_gpu(1)).contains("gpu 1 is none of the 1 GPUs"));
}

#[test]
fn every_gpu_shows_what_the_node_needs_unless_it_needs_more() {
    let mut description = Description::h100s(2);
    description.gpu(1).recovery_action = RecoveryAction::DrainAndReset;
    let (_folder, node) = node(&description);
    let client = Client::of(&node);
    let actions = || [0, 1].map(|gpu| recovery_action(&client, gpu).unwrap());
    assert_eq!(actions(), [0, 4]);
    for (of_node, expected) in [(RecoveryAction::Reboot, [2, 2]), (RecoveryAction::RecoverImex, [5, 4])] {
        node.update(|d| d.recovery_action = of_node).unwrap();
        assert_eq!(actions(), expected);
    }
    call!(client, nvmlShutdown()).unwrap();
    node.reboot().unwrap();
    call!(client, nvmlInit_v2()).unwrap();
    assert_eq!(actions(), [0, 0], "that was what it needed");
    let refused = node.update(|d| d.recovery_action = RecoveryAction::Reset).unwrap_err().to_string();
    assert!(refused.contains("the node's can be none, reboot or recoverImex"), "{refused}");
}

#[test]
fn keys_about_events_go_both_ways() {
    let yaml = "migConfigChange: whenTold\nmigEventNeedsMig: true\nrecoveryAction: reboot\ngpus: []";
    let description = Description::parse(yaml).unwrap();
    assert_eq!(Description::parse(&description.to_yaml().unwrap()).unwrap(), description);
    assert_eq!(description.mig_config_change, MigConfigChange::WhenTold);
    let refused = Description::parse("migConfigChange: never\n").unwrap_err().to_string();
    assert!(refused.contains("expected one of onChange, whenTold"), "{refused}");
}
