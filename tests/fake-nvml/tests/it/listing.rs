//! What a client finds: GPUs, MIG devices, their IDs and profiles.

use std::ffi::CString;

use fake_nvml::{Description, Instance, UnknownProfile};
use nvml_wrapper_sys::bindings as sys;

use crate::{
    call,
    client::{Client, filled},
    node,
};

const INVALID: u32 = 2;
const NOT_SUPPORTED: u32 = 3;
const NO_PERMISSION: u32 = 4;
const NOT_FOUND: u32 = 6;
const INSUFFICIENT_SIZE: u32 = 7;

#[test]
fn a_client_lists_gpus_and_mig_devices() {
    let (_folder, node) =
        node(&Description::h100s(2).with_mig(0, &["3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb"]));
    let client = Client::of(&node);
    let gpu = client.gpu(0).expect("GPU 0");
    assert_eq!(client.mig_mode(gpu), Ok((1, 1)));
    let migs = client.migs(gpu);
    let ids: Vec<_> = migs.iter().map(|mig| client.ids(*mig).expect("IDs")).collect();
    assert_eq!(ids, [(2, 0), (3, 0), (9, 0), (10, 0)]);
    assert_eq!(client.name(migs[0]).as_deref(), Ok("NVIDIA H100 80GB HBM3 MIG 3g.40gb"));
    let state = node.gpus().expect("the node's own view");
    for (mig, state) in migs.iter().zip(&state[0].mig) {
        assert_eq!(client.uuid(*mig).as_ref(), Ok(&state.uuid));
    }
    let other = client.gpu(1).expect("GPU 1");
    assert_eq!(client.mig_mode(other), Ok((0, 0)));
    assert!(client.migs(other).is_empty());
}

#[test]
fn a_mig_device_tells_its_parts_and_its_parent() {
    let (_folder, node) =
        node(&Description::h100s(1).with_mig(0, &[Instance::new("3g.40gb").compute(&[1, 2])]));
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    let migs = client.migs(gpu);
    assert_eq!(client.name(migs[1]).as_deref(), Ok("NVIDIA H100 80GB HBM3 MIG 2c.3g.40gb"));
    let mut parent = std::ptr::null_mut();
    call!(client, nvmlDeviceGetDeviceHandleFromMigDeviceHandle(migs[1], &raw mut parent)).unwrap();
    assert_eq!(parent, gpu);
    let attributes = filled(|place| call!(client, nvmlDeviceGetAttributes_v2(migs[1], place))).unwrap();
    assert_eq!((attributes.multiprocessorCount, attributes.memorySizeMB), (40, 40448));
    assert_eq!((attributes.gpuInstanceSliceCount, attributes.computeInstanceSliceCount), (3, 2));
    let refused = filled(|place: *mut sys::nvmlDeviceAttributes_t| {
        call!(client, nvmlDeviceGetAttributes_v2(gpu, place))
    });
    assert_eq!(refused.err(), Some(NOT_SUPPORTED));
    let memory = filled(|place| call!(client, nvmlDeviceGetMemoryInfo(migs[1], place))).unwrap();
    assert_eq!(memory.total, 40448 * 1024 * 1024);
    let memory = filled(|place| call!(client, nvmlDeviceGetMemoryInfo(gpu, place))).unwrap();
    assert_eq!(memory.total, 81559 * 1024 * 1024);
    let mut minor = 0;
    assert_eq!(call!(client, nvmlDeviceGetMinorNumber(migs[0], &raw mut minor)), Err(NOT_SUPPORTED));
    let mut is_mig = 0;
    call!(client, nvmlDeviceIsMigDeviceHandle(migs[0], &raw mut is_mig)).unwrap();
    assert_eq!(is_mig, 1);
}

/// The way to a live instance's profile and placement, which asks for instances by ID.
#[test]
fn instances_are_found_by_id_with_profile_and_placement() {
    let (_folder, node) = node(&Description::h100s(1).with_mig(0, &["4g.40gb", "3g.40gb"]));
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    let mut instance = std::ptr::null_mut();
    call!(client, nvmlDeviceGetGpuInstanceById(gpu, 2, &raw mut instance)).unwrap();
    let info = filled(|place| call!(client, nvmlGpuInstanceGetInfo(instance, place))).unwrap();
    assert_eq!((info.id, info.profileId, info.placement.start, info.placement.size), (2, 9, 4, 4));
    assert_eq!(info.device, gpu);
    let mut compute = std::ptr::null_mut();
    call!(client, nvmlGpuInstanceGetComputeInstanceById(instance, 0, &raw mut compute)).unwrap();
    let info = filled(|place| call!(client, nvmlComputeInstanceGetInfo_v2(compute, place))).unwrap();
    assert_eq!((info.id, info.profileId, info.placement.start, info.placement.size), (0, 2, 0, 3));
    assert_eq!(client.ids(info.device), Ok((2, 0)));
    assert_eq!(info.gpuInstance, instance);
    let missing = call!(client, nvmlDeviceGetGpuInstanceById(gpu, 5, &raw mut instance));
    assert_eq!(missing, Err(NOT_FOUND));
    let (mut instances, mut count) = ([std::ptr::null_mut(); 2], 0);
    call!(client, nvmlDeviceGetGpuInstances(gpu, 5, instances.as_mut_ptr(), &raw mut count)).unwrap();
    assert_eq!(count, 1);
    node.update(|d| d.unprivileged = true).unwrap();
    let refused = call!(client, nvmlDeviceGetGpuInstanceById(gpu, 2, &raw mut instance));
    assert_eq!(refused, Err(NO_PERMISSION));
    assert_eq!(client.migs(gpu).len(), 2);
}

#[test]
fn profiles_are_asked_by_index_and_answer_with_an_id() {
    let (_folder, node) = node(&Description::h100s(1).with_mig(0, &["7g.80gb"]));
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    let ask = |index| filled(|place| call!(client, nvmlDeviceGetGpuInstanceProfileInfo(gpu, index, place)));
    let answers: Vec<_> = (0..).map(ask).map(|answer| answer.map(|info| info.id)).take(20).collect();
    let known: Vec<u32> = answers.iter().filter_map(|answer| answer.ok()).collect();
    assert_eq!(known, [19, 14, 9, 5, 0, 20, 15]);
    assert_eq!(
        (answers[5], answers[18], answers[19]),
        (Err(NOT_SUPPORTED), Err(NOT_SUPPORTED), Err(INVALID))
    );
    let info = filled(|place: *mut sys::nvmlGpuInstanceProfileInfo_v2_t| {
        // SAFETY: the place is a zeroed struct of that type.
        unsafe { (*place).version = 0x0200_0098 };
        call!(client, nvmlDeviceGetGpuInstanceProfileInfoV(gpu, 2, place))
    })
    .unwrap();
    // SAFETY: the call wrote text with its zero.
    let name = unsafe { std::ffi::CStr::from_ptr(info.name.as_ptr()) };
    assert_eq!((info.id, info.multiprocessorCount, name), (9, 60, c"MIG 3g.40gb"));
    let v3 = || {
        filled(|place: *mut sys::nvmlGpuInstanceProfileInfo_v2_t| {
            // SAFETY: version 3's struct has the same size, 152 bytes.
            unsafe { (*place).version = 0x0300_0098 };
            call!(client, nvmlDeviceGetGpuInstanceProfileInfoV(gpu, 2, place))
        })
        .map(|info| info.id)
    };
    assert_eq!(v3(), Ok(9));
    node.update(|d| d.profile_info_versions = vec![1, 2]).unwrap();
    assert_eq!(v3(), Err(25));
    let mut places = [sys::nvmlGpuInstancePlacement_t { start: 9, size: 9 }; 7];
    let mut placements = |room: u32| {
        let mut count = room;
        let list = if room == 0 { std::ptr::null_mut() } else { places.as_mut_ptr() };
        call!(client, nvmlDeviceGetGpuInstancePossiblePlacements_v2(gpu, 9, list, &raw mut count))?;
        Ok::<_, u32>((count, places[0].size, places[1].start))
    };
    assert_eq!(placements(0), Ok((2, 9, 9)));
    assert_eq!(placements(1), Err(INSUFFICIENT_SIZE));
    assert_eq!(placements(2), Ok((2, 4, 4)));
}

#[test]
fn old_drivers_tell_profiles_only_with_mig_on() {
    let mut description = Description::a100s(1);
    description.driver_version = "535.104.05".to_owned();
    let (_folder, node) = node(&description);
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    let ask = || filled(|place| call!(client, nvmlDeviceGetGpuInstanceProfileInfo(gpu, 0, place)));
    assert_eq!(ask().err(), Some(NOT_SUPPORTED));
    node.update(|d| d.set_mig_mode(0, true)).unwrap();
    assert_eq!(ask().unwrap().id, 19);
}

#[test]
fn indices_can_have_holes_and_instances_can_lack_a_device() {
    let hidden = UnknownProfile { id: 99, g: 1, size: 1, memory_mib: 5120, sm: 12 };
    let layout = [
        Instance::new("3g.40gb").compute(&[]),
        Instance::new("1g.10gb").index(2),
        Instance::new("1g.7gb+new").unknown_profile(hidden).index(5),
    ];
    let (_folder, node) = node(&Description::h100s(1).with_mig(0, &layout));
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    let found: Vec<_> = (0..8).map(|index| client.mig(gpu, index).map(drop)).collect();
    let hole = Err(NOT_FOUND);
    assert_eq!(found, [hole, hole, Ok(()), hole, hole, Ok(()), hole, Err(INVALID)]);
    let new = client.mig(gpu, 5).unwrap();
    assert_eq!(client.name(new).as_deref(), Ok("NVIDIA H100 80GB HBM3 MIG 1g.7gb+new"));
    let (gi, _) = client.ids(new).unwrap();
    let mut instance = std::ptr::null_mut();
    call!(client, nvmlDeviceGetGpuInstanceById(gpu, gi, &raw mut instance)).unwrap();
    let info = filled(|place| call!(client, nvmlGpuInstanceGetInfo(instance, place))).unwrap();
    assert_eq!(info.profileId, 99);
    // The half-made one.
    call!(client, nvmlDeviceGetGpuInstanceById(gpu, 1, &raw mut instance)).unwrap();
    let mut compute = std::ptr::null_mut();
    let nothing = call!(client, nvmlGpuInstanceGetComputeInstanceById(instance, 0, &raw mut compute));
    assert_eq!(nothing, Err(NOT_FOUND));
}

#[test]
fn a_model_without_mig_says_so() {
    let (_folder, node) = node(&Description::of("tesla-t4", 1));
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    assert_eq!(client.mig_mode(gpu), Err(NOT_SUPPORTED));
    assert!(client.migs(gpu).is_empty());
    assert_eq!(client.mig(gpu, 0), Err(NOT_SUPPORTED));
}

#[test]
fn devices_are_found_by_uuid_and_address() {
    let (_folder, node) = node(&Description::h100s(2).with_mig(1, &["3g.40gb"]));
    let client = Client::of(&node);
    let gpu = client.gpu(1).unwrap();
    let mig = client.mig(gpu, 0).unwrap();
    let uuid = client.uuid(gpu).unwrap();
    let by_uuid = |uuid: &str| {
        let uuid = CString::new(uuid).unwrap();
        let mut device = std::ptr::null_mut();
        call!(client, nvmlDeviceGetHandleByUUID(uuid.as_ptr(), &raw mut device)).map(|()| device)
    };
    assert_eq!(by_uuid(&uuid), Ok(gpu));
    assert_eq!(by_uuid(&client.uuid(mig).unwrap()), Ok(mig));
    assert_eq!(by_uuid(&format!("MIG-{uuid}/2/0")), Ok(mig));
    assert_eq!(by_uuid("GPU-0"), Err(NOT_FOUND));
    let pci = filled(|place| call!(client, nvmlDeviceGetPciInfo_v3(gpu, place))).unwrap();
    assert_eq!((pci.domain, pci.bus, pci.device, pci.pciDeviceId), (0, 0x20, 0, 0x2330_10de));
    for address in [c"00000000:20:00.0", c"0000:20:00.0"] {
        let mut device = std::ptr::null_mut();
        let found = call!(client, nvmlDeviceGetHandleByPciBusId_v2(address.as_ptr(), &raw mut device));
        assert_eq!((found, device), (Ok(()), gpu));
    }
}

#[test]
fn bad_arguments_are_refused() {
    let (_folder, node) = node(&Description::h100s(1));
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    assert_eq!(call!(client, nvmlDeviceGetUUID(gpu, std::ptr::null_mut(), 96)), Err(INVALID));
    let mut short = [0; 8];
    assert_eq!(call!(client, nvmlDeviceGetUUID(gpu, short.as_mut_ptr(), 8)), Err(INSUFFICIENT_SIZE));
    assert_eq!(client.gpu(1), Err(INVALID));
    assert_eq!(call!(client, nvmlDeviceGetCount_v2(std::ptr::null_mut())), Err(INVALID));
    let memory =
        filled(|place: *mut sys::nvmlMemory_v2_t| call!(client, nvmlDeviceGetMemoryInfo_v2(gpu, place)));
    assert_eq!(memory.err(), Some(25));
}

#[test]
fn the_usual_wrapper_sees_the_node() {
    let (_folder, node) = node(&Description::h100s(1).with_mig(0, &["3g.40gb"]));
    let nvml = nvml_wrapper::Nvml::builder().lib_path(node.library().as_os_str()).init().unwrap();
    assert_eq!(nvml.sys_driver_version().unwrap(), "580.95.05");
    let gpu = nvml.device_by_index(0).unwrap();
    assert!(gpu.mig_mode().unwrap().current != 0);
    assert_eq!(gpu.memory_info().unwrap().total, 81559 * 1024 * 1024);
    let mig = gpu.mig_device_by_index(0).unwrap();
    assert_eq!(mig.uuid().unwrap(), node.gpus().unwrap()[0].mig[0].uuid);
}

#[test]
fn slices_have_the_engines_of_their_profile_and_generation() {
    let seen = |model: &str, layout: &[&str]| -> Vec<[u32; 5]> {
        let (_folder, node) = node(&Description::of(model, 1).with_mig(0, layout));
        let client = Client::of(&node);
        let migs = client.migs(client.gpu(0).unwrap());
        let of = |mig: &sys::nvmlDevice_t| {
            let found = filled(|place| call!(client, nvmlDeviceGetAttributes_v2(*mig, place))).unwrap();
            [
                found.sharedCopyEngineCount,
                found.sharedDecoderCount,
                found.sharedEncoderCount,
                found.sharedJpegCount,
                found.sharedOfaCount,
            ]
        };
        migs.iter().map(of).collect()
    };
    assert_eq!(seen("a100-40gb", &["3g.20gb", "1g.5gb+me"]), [[3, 2, 0, 0, 0], [1, 1, 0, 1, 1]]);
    assert_eq!(seen("h100-80gb-sxm5", &["4g.40gb", "1g.10gb"]), [[4, 4, 0, 4, 0], [1, 1, 0, 1, 0]]);
    assert_eq!(seen("h100-80gb-sxm5", &["7g.80gb"]), [[8, 7, 0, 7, 1]]);
    assert_eq!(seen("b200-180gb", &["2g.45gb"]), [[4, 2, 0, 2, 0]]);
    let media = ["1g.24gb+me.all", "1g.24gb-me"];
    assert_eq!(seen("rtx-pro-6000-blackwell-96gb", &media), [[1, 4, 4, 4, 1], [1, 0, 0, 0, 0]]);
}
