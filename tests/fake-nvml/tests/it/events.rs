//! Events: told while running, to those who asked.

use std::{
    sync::mpsc::channel,
    time::{Duration, Instant},
};

use fake_nvml::{Description, DriverState, Event, EventType, Fault, Node};

use crate::{call, client::Client, node};

const XID: u64 = 8;
const MIG_CONFIG_CHANGE: u64 = 0x100;
const TIMEOUT: u32 = 10;
const NONE: u32 = u32::MAX;

#[test]
fn events_come_with_their_instance_and_only_after_registration() {
    let (_folder, node) = node(&Description::h100s(2).with_mig(0, &["3g.40gb"]));
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    node.send(&Event::xid(31)).unwrap();
    let set = client.listen(&[gpu], XID);
    // Of another GPU, and of another type.
    node.send(&Event::xid(13).on_gpu(1)).unwrap();
    node.send(&Event::mig_config_change()).unwrap();
    node.send(&Event::xid(79).on_gpu(0)).unwrap();
    node.send(&Event::xid(43).on_gpu_instance(1)).unwrap();
    node.send(&Event::xid(94).on_instance(1, 0)).unwrap();
    let seen: Vec<_> = (0..3)
        .map(|_| client.wait(set, 500).unwrap())
        .map(|event| {
            assert_eq!(event.device, gpu);
            (event.eventData, event.gpuInstanceId, event.computeInstanceId)
        })
        .collect();
    assert_eq!(seen, [(79, NONE, NONE), (43, 1, NONE), (94, 1, 0)]);
    assert_eq!(client.wait(set, 0).err(), Some(TIMEOUT));
    assert_eq!(call!(client, nvmlEventSetFree(set.0)), Ok(()));
    assert_eq!(call!(client, nvmlEventSetFree(set.0)), Err(2));
}

#[test]
fn a_waiting_client_hears_of_an_event_at_once() {
    let (_folder, node) = node(&Description::h100s(1));
    let client = Client::of(&node);
    let set = client.listen(&[client.gpu(0).unwrap()], MIG_CONFIG_CHANGE);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let event = client.wait(set, 10_000).unwrap();
            (event.eventType, Instant::now())
        });
        until_waiting(&node);
        let started = Instant::now();
        node.send(&Event::mig_config_change()).unwrap();
        let (kind, heard) = waiting.join().unwrap();
        assert_eq!(kind, MIG_CONFIG_CHANGE);
        let late = heard.saturating_duration_since(started);
        assert!(late < Duration::from_millis(500), "heard after {late:?}");
    });
}

/// Returns when a client called the wait, which it may not yet be in.
fn until_waiting(node: &Node) {
    while !node.counters().unwrap().contains_key("nvmlEventSetWait_v2") {
        std::thread::yield_now();
    }
}

#[test]
fn a_fault_ends_a_wait_under_way() {
    let (_folder, node) = node(&Description::h100s(2));
    let client = Client::of(&node);
    let set = client.listen(&[client.gpu(1).unwrap()], XID);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.wait(set, 10_000).err());
        until_waiting(&node);
        node.update(|d| d.faults.push(Fault::error("nvmlEventSetWait_v2", "GPU_IS_LOST").on_gpu(1))).unwrap();
        assert_eq!(waiting.join().unwrap(), Some(15));
    });
}

#[test]
fn mig_devices_and_unknown_types_cannot_be_listened_to() {
    let (_folder, node) = node(&Description::of("tesla-t4", 1).and("a30-24gb", 1).with_mig(1, &["4g.24gb"]));
    let client = Client::of(&node);
    let set = client.listen(&[], 0);
    let (t4, a30) = (client.gpu(0).unwrap(), client.gpu(1).unwrap());
    let mig = client.mig(a30, 0).unwrap();
    assert_eq!(call!(client, nvmlDeviceRegisterEvents(mig, XID, set.0)), Err(3));
    assert_eq!(call!(client, nvmlDeviceRegisterEvents(t4, MIG_CONFIG_CHANGE, set.0)), Err(3));
    let mut types = 0;
    assert_eq!(call!(client, nvmlDeviceGetSupportedEventTypes(a30, &raw mut types)), Ok(()));
    assert_eq!(types & (XID | MIG_CONFIG_CHANGE), XID | MIG_CONFIG_CHANGE);
}

#[test]
fn a_gpu_offers_the_events_that_it_is_said_to() {
    let mut description = Description::h100s(2);
    description.gpu(0).events = Some(vec![EventType::Xid, EventType::FatalPoison]);
    description.gpu(1).events = Some(Vec::new());
    let (_folder, node) = node(&description);
    let client = Client::of(&node);
    let supported = |gpu| {
        let mut types = 9;
        call!(client, nvmlDeviceGetSupportedEventTypes(gpu, &raw mut types)).map(|()| types)
    };
    let (two, no_events) = (client.gpu(0).unwrap(), client.gpu(1).unwrap());
    assert_eq!((supported(two), supported(no_events)), (Ok(0x2008), Ok(0)));
    let set = client.listen(&[two], XID);
    assert_eq!(call!(client, nvmlDeviceRegisterEvents(two, MIG_CONFIG_CHANGE, set.0)), Err(3));
    assert_eq!(call!(client, nvmlDeviceRegisterEvents(no_events, XID, set.0)), Err(3));
}

#[test]
fn a_wait_can_hang_until_its_fault_is_taken_out() {
    let (_folder, node) = node(&Description::h100s(2));
    let client = Client::of(&node);
    let set = client.listen(&[client.gpu(1).unwrap()], XID);
    let hang = |gpu| Fault::delay("nvmlEventSetWait_v2", 600_000).on_gpu(gpu);
    node.update(|d| d.faults = vec![hang(0)]).unwrap();
    assert_eq!(client.wait(set, 1).err(), Some(TIMEOUT), "the set does not listen to that GPU");
    node.update(|d| d.faults = vec![hang(1)]).unwrap();
    node.reset_counters().unwrap();
    std::thread::scope(|scope| {
        let (sender, answer) = channel();
        let client = &client;
        scope.spawn(move || sender.send(client.wait(set, 1).err()).unwrap());
        until_waiting(&node);
        assert!(answer.recv_timeout(Duration::from_millis(100)).is_err());
        node.update(|d| d.faults.clear()).unwrap();
        assert_eq!(answer.recv_timeout(Duration::from_secs(30)), Ok(Some(TIMEOUT)));
    });
}

#[test]
fn a_set_can_be_given_back_when_the_driver_has_gone() {
    let (_folder, node) = node(&Description::h100s(1));
    let client = Client::of(&node);
    let set = client.listen(&[client.gpu(0).unwrap()], XID);
    node.update(|d| d.driver = DriverState::NotLoaded).unwrap();
    assert_eq!(client.wait(set, 0).err(), Some(9));
    assert_eq!(call!(client, nvmlEventSetFree(set.0)), Ok(()));
    node.update(|d| d.driver = DriverState::Loaded).unwrap();
    assert_eq!(call!(client, nvmlEventSetFree(set.0)), Err(2), "it is gone");
}
