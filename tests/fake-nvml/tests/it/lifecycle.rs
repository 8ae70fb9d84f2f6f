//! Instances that a client makes and destroys.

use fake_nvml::{Description, Situation};
use nvml_wrapper_sys::bindings as sys;

use crate::{call, client::Client, node};

const IN_USE: u32 = 19;
const INSUFFICIENT_RESOURCES: u32 = 23;

#[test]
fn a_client_partitions_a_gpu_from_scratch() {
    let (_folder, node) = node(&Description::h100s(2));
    let client = Client::of(&node);
    let gpu = client.gpu(1).unwrap();
    let create = |profile| {
        let mut instance = std::ptr::null_mut();
        call!(client, nvmlDeviceCreateGpuInstance(gpu, profile, &raw mut instance)).map(|()| instance)
    };
    assert_eq!(create(9), Err(3), "MIG mode is off");
    let mut activation = 9;
    assert_eq!(call!(client, nvmlDeviceSetMigMode(gpu, 1, &raw mut activation)), Ok(()));
    assert_eq!((activation, client.mig_mode(gpu)), (0, Ok((1, 1))));
    let place = sys::nvmlGpuInstancePlacement_t { start: 4, size: 4 };
    let mut first = std::ptr::null_mut();
    let made =
        call!(client, nvmlDeviceCreateGpuInstanceWithPlacement(gpu, 9, &raw const place, &raw mut first));
    assert_eq!(made, Ok(()));
    // Half-made: no MIG device yet.
    assert!(client.migs(gpu).is_empty());
    let again =
        call!(client, nvmlDeviceCreateGpuInstanceWithPlacement(gpu, 9, &raw const place, &raw mut first));
    assert_eq!(again, Err(INSUFFICIENT_RESOURCES));
    let mut compute = std::ptr::null_mut();
    assert_eq!(call!(client, nvmlGpuInstanceCreateComputeInstance(first, 1, &raw mut compute)), Ok(()));
    let mut rest = std::ptr::null_mut();
    assert_eq!(call!(client, nvmlGpuInstanceCreateComputeInstance(first, 0, &raw mut rest)), Ok(()));
    let full = call!(client, nvmlGpuInstanceCreateComputeInstance(first, 0, &raw mut rest));
    assert_eq!(full, Err(INSUFFICIENT_RESOURCES));
    let second = create(14).unwrap();
    let migs = client.migs(gpu);
    let names: Vec<_> = migs.iter().map(|mig| client.name(*mig).unwrap()).collect();
    assert!(names[0].ends_with("MIG 2c.3g.40gb") && names[1].ends_with("MIG 1c.3g.40gb"), "{names:?}");
    assert_eq!(call!(client, nvmlGpuInstanceDestroy(first)), Err(IN_USE));
    assert_eq!(call!(client, nvmlComputeInstanceDestroy(compute)), Ok(()));
    assert_eq!(client.ids(migs[1]), Ok((1, 1)));
    assert_eq!(client.ids(migs[0]), Err(2));
    assert_eq!(call!(client, nvmlGpuInstanceDestroy(second)), Ok(()));
    assert_eq!(node.gpus().unwrap()[1].mig.len(), 1);
    node.update(|d| d.unprivileged = true).unwrap();
    assert_eq!(call!(client, nvmlDeviceSetMigMode(gpu, 0, &raw mut activation)), Err(4));
}

#[test]
fn an_instance_with_one_device_can_be_split_anew() {
    let (_folder, node) = node(&Description::a100s(1).with_mig(0, &["3g.20gb", "1g.5gb"]));
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    let mut instance = std::ptr::null_mut();
    call!(client, nvmlDeviceGetGpuInstanceById(gpu, 1, &raw mut instance)).unwrap();
    let mut compute = std::ptr::null_mut();
    call!(client, nvmlGpuInstanceGetComputeInstanceById(instance, 0, &raw mut compute)).unwrap();
    assert_eq!(call!(client, nvmlComputeInstanceDestroy(compute)), Ok(()));
    for _ in 0..3 {
        assert_eq!(
            call!(client, nvmlGpuInstanceCreateComputeInstance(instance, 0, &raw mut compute)),
            Ok(())
        );
    }
    assert_eq!(client.migs(gpu).len(), 4);
    let mut count = 9;
    call!(client, nvmlDeviceGetGpuInstanceRemainingCapacity(gpu, 19, &raw mut count)).unwrap();
    // Three compute slices are free, but beside 3g.20gb at 0 and 1g.5gb at 4 there are two placements.
    assert_eq!(count, 2);
}

#[test]
fn the_codes_of_these_situations_can_be_others() {
    let description = Description::h100s(1).and("tesla-t4", 1).with_mig(0, &["7g.80gb"]);
    let (_folder, node) = node(&description);
    let client = Client::of(&node);
    let (gpu, t4) = (client.gpu(0).unwrap(), client.gpu(1).unwrap());
    let place = sys::nvmlGpuInstancePlacement_t { start: 0, size: 1 };
    let codes = || {
        let mut instance = std::ptr::null_mut();
        let room = call!(client, nvmlDeviceCreateGpuInstance(gpu, 19, &raw mut instance));
        let taken = call!(
            client,
            nvmlDeviceCreateGpuInstanceWithPlacement(gpu, 19, &raw const place, &raw mut instance)
        );
        call!(client, nvmlDeviceGetGpuInstanceById(gpu, 0, &raw mut instance)).unwrap();
        let used = call!(client, nvmlGpuInstanceDestroy(instance));
        let past = client.mig(gpu, 7).map(drop);
        let without = client.mig_mode(t4).map(drop);
        [room, taken, used, past, without].map(|answer| answer.unwrap_err())
    };
    assert_eq!(codes(), [INSUFFICIENT_RESOURCES, INSUFFICIENT_RESOURCES, IN_USE, 2, 3]);
    let others = [
        (Situation::NoRoom, "UNKNOWN"),
        (Situation::PlacementTaken, "INVALID_ARGUMENT"),
        (Situation::InUse, "INVALID_STATE"),
        (Situation::PastLastMigDevice, "NOT_FOUND"),
        (Situation::WithoutMig, "INVALID_ARGUMENT"),
        (Situation::GoneHandle, "NOT_FOUND"),
    ];
    let others = others.map(|(situation, code)| (situation, code.to_owned()));
    let old = client.mig(gpu, 0).unwrap();
    node.update(|d| d.codes = others.into()).unwrap();
    assert_eq!(codes(), [999, 2, 29, 6, 2]);
    node.update(|d| d.set_mig(0, &[] as &[&str])).unwrap();
    assert_eq!((client.uuid(old), client.uuid(std::ptr::null_mut())), (Err(6), Err(2)));
    node.update(|d| d.codes.clear()).unwrap();
    assert_eq!(client.uuid(old), Err(2));
}

#[test]
fn codes_are_checked() {
    let reason = |yaml: &str| Description::parse(yaml).unwrap_err().to_string();
    let gpus = "gpus: [{ model: a30-24gb }]";
    let wrong = reason(&format!("codes: {{ noRoom: NOT_FOUNT }}\n{gpus}"));
    assert!(
        wrong.contains("codes: no code \"NOT_FOUNT\" for NoRoom; did you mean \"NOT_FOUND\"?"),
        "{wrong}"
    );
    assert!(reason(&format!("codes: {{ noroom: NOT_FOUND }}\n{gpus}")).contains("noRoom"));
    let good = Description::parse(&format!("codes: {{ noRoom: UNKNOWN }}\n{gpus}")).unwrap();
    assert_eq!(Description::parse(&good.to_yaml().unwrap()).unwrap(), good);
}
