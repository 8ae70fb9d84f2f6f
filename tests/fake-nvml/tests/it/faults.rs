//! What goes wrong when told to, and the counters.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::{Duration, Instant},
};

use fake_nvml::{Description, DriverState, Fault, RecoveryAction};
use nvml_wrapper_sys::bindings as sys;

use crate::{
    call,
    client::{Client, filled},
    node,
};

#[test]
fn a_missing_or_unfit_driver_refuses_to_start() {
    let (_folder, node) = node(&Description::h100s(1));
    let client = Client::loaded(&node);
    assert_eq!(client.gpu(0), Err(1));
    assert_eq!(call!(client, nvmlShutdown()), Err(1));
    node.update(|d| d.driver = DriverState::NotLoaded).unwrap();
    assert_eq!(call!(client, nvmlInit_v2()), Err(9));
    node.update(|d| d.driver = DriverState::VersionMismatch).unwrap();
    assert_eq!(call!(client, nvmlInit_v2()), Err(18));
    node.update(|d| d.driver = DriverState::Loaded).unwrap();
    assert_eq!(call!(client, nvmlInit_v2()), Ok(()));
    assert_eq!(call!(client, nvmlInitWithFlags(0)), Ok(()));
    assert_eq!(call!(client, nvmlShutdown()), Ok(()));
    assert!(client.gpu(0).is_ok());
    node.update(|d| d.driver = DriverState::NotLoaded).unwrap();
    assert_eq!(client.gpu(0), Err(9));
    assert_eq!(call!(client, nvmlShutdown()), Ok(()));
    assert_eq!(client.gpu(0), Err(1));
}

#[test]
fn faults_hit_the_call_the_gpu_and_the_mig_device_that_they_name() {
    let description = Description::h100s(2).with_mig(0, &["3g.40gb", "3g.40gb"]).with_mig(1, &["7g.80gb"]);
    let (_folder, node) = node(&description);
    let client = Client::of(&node);
    let (first, second) = (client.gpu(0).unwrap(), client.gpu(1).unwrap());
    let migs = client.migs(first);
    node.update(|d| d.faults = vec![Fault::error("nvmlDeviceGetUUID", "UNKNOWN").on_mig(0, 1)]).unwrap();
    assert!(client.uuid(first).is_ok() && client.uuid(migs[0]).is_ok());
    assert_eq!(client.uuid(migs[1]), Err(999));
    assert!(client.ids(migs[1]).is_ok());
    node.update(|d| d.faults = vec![Fault::error("*", "NVML_ERROR_GPU_IS_LOST").on_gpu(0)]).unwrap();
    assert_eq!(client.gpu(0), Err(15));
    assert_eq!(client.uuid(migs[0]), Err(15));
    assert_eq!(client.mig_mode(first), Err(15));
    assert!(client.mig_mode(second).is_ok());
    node.update(|d| d.faults = vec![Fault::error("*", "NO_PERMISSION")]).unwrap();
    assert_eq!(client.uuid(second), Err(4));
    assert_eq!(call!(client, nvmlInit_v2()), Ok(()));
    node.update(|d| d.faults = vec![Fault::error("nvmlInit_v2", "UNKNOWN")]).unwrap();
    assert_eq!(call!(client, nvmlInit_v2()), Err(999));
    node.update(|d| d.faults.clear()).unwrap();
    assert!(client.uuid(migs[1]).is_ok());
}

#[test]
fn a_slow_call_holds_up_no_other() {
    let slow = Fault::delay("nvmlDeviceGetMigMode", 400).on_gpu(0);
    let (_folder, node) = node(&Description::h100s(2).with_faults([slow]));
    let client = Client::of(&node);
    let started = Instant::now();
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| client.mig_mode(client.gpu(0).unwrap()));
        while !node.counters().unwrap().contains_key("nvmlDeviceGetMigMode") {
            std::thread::yield_now();
        }
        assert!(client.uuid(client.gpu(1).unwrap()).is_ok());
        assert!(started.elapsed() < Duration::from_millis(400));
        assert_eq!(slow.join().unwrap(), Ok((0, 0)));
    });
    assert!(started.elapsed() >= Duration::from_millis(400));
}

/// Whether another thread's calls about another GPU go on while a call hangs. When they do not, they go on after it.
fn goes_on_beside(hang: Fault) -> bool {
    const LONG: Duration = Duration::from_mins(1);
    let (_folder, node) = node(&Description::h100s(2));
    let client = Client::of(&node);
    let (calls, done) = (AtomicU32::new(0), AtomicBool::new(false));
    let count = || calls.load(Ordering::Relaxed);
    let wait_for = |more: u32, time: Duration| {
        let (from, end) = (count(), Instant::now() + time);
        while count() < from + more && Instant::now() < end {
            std::thread::yield_now();
        }
        count() >= from + more
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert!(client.uuid(client.gpu(1).unwrap()).is_ok());
                calls.fetch_add(1, Ordering::Relaxed);
            }
        });
        let holds = hang.holds_library;
        node.update(|d| d.faults.push(hang)).unwrap();
        let stuck = scope.spawn(|| client.mig_mode(client.gpu(0).unwrap()));
        let begun = Instant::now();
        while !node.counters().unwrap().contains_key("nvmlDeviceGetMigMode") {
            assert!(begun.elapsed() < LONG);
            std::thread::yield_now();
        }
        // The call is counted before it takes the lock, so that some others may still pass.
        let went_on = if holds {
            while wait_for(1, Duration::from_millis(500)) && begun.elapsed() < LONG {}
            wait_for(1, Duration::from_millis(500))
        } else {
            wait_for(5, LONG)
        };
        assert!(!stuck.is_finished());
        node.update(|d| d.faults.clear()).unwrap();
        assert_eq!(stuck.join().unwrap(), Ok((0, 0)));
        assert!(wait_for(5, LONG));
        done.store(true, Ordering::Relaxed);
        went_on
    })
}

#[test]
fn a_call_that_hangs_can_hold_the_whole_library() {
    assert!(goes_on_beside(Fault::hang("nvmlDeviceGetMigMode").on_gpu(0)));
    assert!(!goes_on_beside(Fault::hang("nvmlDeviceGetMigMode").on_gpu(0).holding_library()));
}

#[test]
fn a_fault_needs_an_effect() {
    let reason = |fault: Fault| Description::h100s(1).with_faults([fault]).resolve().unwrap_err().to_string();
    let none = Fault { call: "*".to_owned(), ..Fault::default() };
    assert!(reason(none.clone()).contains("faults[0]: needs error, delayMs or hangs"));
    assert!(reason(none.holding_library()).contains("faults[0].holdsLibrary: needs delayMs or hangs"));
    assert!(reason(Fault::hang("*").after_ms(5)).contains("faults[0].hangs: has no end; leave out delayMs"));
    assert!(reason(Fault::hang("nvmlInti")).contains("did you mean \"nvmlInit\"?"));
}

#[test]
fn calls_are_counted_by_name_and_can_be_reset() {
    let (_folder, node) = node(&Description::h100s(1));
    let client = Client::of(&node);
    assert!(client.gpu(0).is_ok() && client.gpu(0).is_ok() && client.gpu(1).is_err());
    let counters = node.counters().unwrap();
    assert_eq!(counters["nvmlDeviceGetHandleByIndex_v2"], 3);
    assert_eq!(counters["nvmlInit_v2"], 1);
    assert_eq!(counters.len(), 2);
    node.reset_counters().unwrap();
    assert!(node.counters().unwrap().is_empty());
    assert!(client.gpu(0).is_ok());
    assert_eq!(node.counters().unwrap()["nvmlDeviceGetHandleByIndex_v2"], 1);
}

#[test]
fn fields_tell_the_recovery_action() {
    let mut description = Description::of("h100-80gb-sxm5", 1).and("tesla-t4", 1);
    description.gpu(0).recovery_action = RecoveryAction::DrainAndReset;
    let (_folder, node) = node(&description);
    let client = Client::of(&node);
    let ask = |gpu, field| {
        let value = filled(|place: *mut sys::nvmlFieldValue_t| {
            // SAFETY: the place is a zeroed struct of that type.
            unsafe { (*place).fieldId = field };
            call!(client, nvmlDeviceGetFieldValues(gpu, 1, place))
        })
        .unwrap();
        // SAFETY: every bit pattern is an unsigned int.
        (value.nvmlReturn, unsafe { value.value.uiVal })
    };
    let (h100, t4) = (client.gpu(0).unwrap(), client.gpu(1).unwrap());
    assert_eq!(ask(h100, 230), (0, 4));
    assert_eq!(ask(h100, 184), (0, 1));
    assert_eq!(ask(t4, 230).0, 3);
    assert_eq!(ask(h100, 1).0, 3);
}
