//! Who uses a GPU, and what that stands in the way of; resets, reboots, slow starts and lost GPUs.

use std::time::{Duration, Instant};

use fake_nvml::{
    AfterReset, Description, EventType, Fault, Lost, MigOff, Node, NodeError, Process, RecoveryAction,
};
use nvml_wrapper_sys::bindings::{self as sys, nvmlDevice_t};

use crate::{
    call,
    client::{Answer, Client, filled, text},
    node,
};

const INSUFFICIENT_SIZE: u32 = 7;
const TIMEOUT: u32 = 10;
const GPU_IS_LOST: u32 = 15;
const IN_USE: u32 = 19;
const UNKNOWN: u32 = 999;

/// The code of the call, or what it says of the activation.
fn set_mode(client: &Client, gpu: nvmlDevice_t, on: u32) -> Answer<u32> {
    filled(|activation| call!(client, nvmlDeviceSetMigMode(gpu, on, activation)))
}

fn in_use(answer: Result<(), NodeError>) -> Vec<u32> {
    match answer {
        Err(NodeError::InUse { by, .. }) => by,
        other => panic!("not in use: {other:?}"),
    }
}

fn modes(node: &Node) -> Vec<(bool, usize)> {
    node.gpus().unwrap().iter().map(|gpu| (gpu.mig_mode, gpu.instances.len())).collect()
}

#[test]
fn mig_mode_goes_off_beside_instances_or_not() {
    let (_folder, node) = node(&Description::h100s(1).with_mig(0, &["1g.10gb"]));
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    assert_eq!(set_mode(&client, gpu, 0), Err(IN_USE));
    assert_eq!(modes(&node), [(true, 1)]);
    node.update(|d| d.mig_off_with_instances = MigOff::Destroys).unwrap();
    assert_eq!(set_mode(&client, gpu, 0), Ok(0));
    assert_eq!(modes(&node), [(false, 0)]);
}

#[test]
fn amperes_mode_waits_for_a_reset_while_another_client_has_the_gpu_open() {
    let (_folder, node) = node(&Description::a100s(2).and("h100-80gb-sxm5", 1));
    let client = Client::of(&node);
    let other = Client::another(&node);
    let (gpu, second, hopper) = (client.gpu(0).unwrap(), client.gpu(1).unwrap(), client.gpu(2).unwrap());
    assert!(other.gpu(0).is_ok() && other.gpu(2).is_ok());
    assert_eq!([set_mode(&client, gpu, 1), set_mode(&client, second, 1)], [Ok(IN_USE), Ok(0)]);
    assert_eq!(set_mode(&client, hopper, 1), Ok(0));
    assert_eq!(client.mig_mode(gpu), Ok((0, 1)));
    assert_eq!(modes(&node), [(false, 0), (true, 0), (true, 0)]);
    let me = std::process::id();
    assert_eq!(in_use(node.reset(Some(0))), [me]);
    call!(other, nvmlShutdown()).unwrap();
    call!(client, nvmlShutdown()).unwrap();
    assert_eq!(node.clients().unwrap(), 0);
    node.reset(Some(0)).unwrap();
    assert_eq!(modes(&node)[0], (true, 0));
}

#[test]
fn a_client_has_those_gpus_open_whose_handle_it_asked_for() {
    let (_folder, node) = node(&Description::h100s(2).with_mig(0, &["7g.80gb"]));
    let client = Client::of(&node);
    assert!(client.gpu(1).is_ok());
    let list = node.client_list().unwrap();
    let uuid = node.gpus().unwrap()[1].uuid.clone();
    assert_eq!((list.len(), list[0].pid), (1, std::process::id()));
    assert_eq!(list[0].gpus.iter().collect::<Vec<_>>(), [&uuid]);
    node.reset(Some(0)).unwrap();
    assert_eq!(in_use(node.reset(Some(1))), [std::process::id()]);
    assert_eq!(in_use(node.reset(None)), [std::process::id()]);
    // NVML closes none before its end, and opens none anew by itself.
    assert_eq!((call!(client, nvmlShutdown()), call!(client, nvmlInit_v2())), (Ok(()), Ok(())));
    assert!(node.client_list().unwrap()[0].gpus.is_empty());
    node.reset(None).unwrap();
}

#[test]
fn a_client_that_was_killed_is_none() {
    let (_folder, node) = node(&Description::h100s(1));
    let client = Client::of(&node);
    // What the file of a killed client is: there, and locked by nobody.
    std::fs::write(node.root().join("fake-nvml/clients/4194303-0"), "").unwrap();
    assert_eq!(node.client_list().unwrap().len(), 1);
    call!(client, nvmlShutdown()).unwrap();
    assert_eq!(node.clients().unwrap(), 0);
}

#[test]
fn a_reset_takes_instances_or_brings_them_back() {
    let mut description = Description::h100s(2).with_mig(0, &["7g.80gb"]).with_mig(1, &["1g.10gb"]);
    description.gpu(0).recovery_action = RecoveryAction::Reset;
    description.gpu(0).lost = Lost::IsLost;
    description.instances_after_reset = AfterReset::Restored;
    let (_folder, node) = node(&description);
    let before = node.gpus().unwrap()[0].mig.clone();
    node.reset(Some(0)).unwrap();
    assert_eq!(node.gpus().unwrap()[0].mig, before);
    let after = node.description().unwrap().gpus[0].clone();
    assert_eq!((after.recovery_action, after.lost), (RecoveryAction::None, Lost::No));
    node.update(|d| d.instances_after_reset = AfterReset::Gone).unwrap();
    node.reset(Some(0)).unwrap();
    assert_eq!(modes(&node), [(true, 0), (true, 1)]);
    assert!(node.reset(Some(2)).unwrap_err().to_string().contains("reset: gpu 2 is none of the 2 GPUs"));
}

#[test]
fn a_reboot_leaves_amperes_mode_alone_and_no_instance() {
    let mut description = Description::a100s(1).and("h100-80gb-sxm5", 1).with_mig(0, &["1g.5gb"]);
    description.set_mig(1, &["1g.10gb"]);
    description.gpu(1).recovery_action = RecoveryAction::Reboot;
    description.gpu(1).processes.push(Process::new(12));
    let (_folder, node) = node(&description);
    let client = Client::of(&node);
    assert_eq!(in_use(node.reboot()), [std::process::id()]);
    call!(client, nvmlShutdown()).unwrap();
    node.reboot().unwrap();
    assert_eq!(modes(&node), [(true, 0), (false, 0)]);
    assert_eq!(node.gpus().unwrap()[1].recovery_action, RecoveryAction::None);
    let nodes = node.root().join("dev/nvidia-caps");
    assert!(nodes.join("nvidia-cap2").exists() && !nodes.join("nvidia-cap66").exists());
    assert!(node.root().join("dev/nvidia1").exists());
}

#[test]
fn a_process_holds_its_instance_listed_or_not() {
    let (_folder, node) = node(&Description::h100s(1).with_mig(0, &["3g.40gb", "1g.10gb"]));
    node.update(|d| {
        let shown =
            Process { name: "train".to_owned(), ..Process::new(100).on_instance(1, 0).memory_mib(512) };
        d.gpu(0).processes = vec![shown, Process::new(200).on_instance(11, 0).unlisted()];
    })
    .unwrap();
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    let migs = client.migs(gpu);
    let pids = |device: nvmlDevice_t| -> Vec<(u32, u32, u32)> {
        let empty =
            sys::nvmlProcessInfo_t { pid: 0, usedGpuMemory: 0, gpuInstanceId: 0, computeInstanceId: 0 };
        let (mut list, mut count) = ([empty; 4], 4);
        call!(client, nvmlDeviceGetComputeRunningProcesses_v3(device, &raw mut count, list.as_mut_ptr()))
            .unwrap();
        let found = list[..count as usize].iter();
        found.map(|info| (info.pid, info.gpuInstanceId, info.computeInstanceId)).collect()
    };
    assert_eq!([pids(gpu), pids(migs[0]), pids(migs[1])], [vec![(100, 1, 0)], vec![(100, 1, 0)], vec![]]);
    let mut count = 0;
    let number =
        call!(client, nvmlDeviceGetComputeRunningProcesses_v3(gpu, &raw mut count, std::ptr::null_mut()));
    assert_eq!((number, count), (Err(INSUFFICIENT_SIZE), 1));
    let used = filled(|place| call!(client, nvmlDeviceGetMemoryInfo(migs[0], place))).unwrap().used;
    assert_eq!(used, 512 << 20);
    let bar1 =
        |device| filled(|place| call!(client, nvmlDeviceGetBAR1MemoryInfo(device, place))).unwrap().bar1Total;
    assert_eq!([bar1(gpu), bar1(migs[0]), bar1(migs[1])], [128 << 30, 64 << 30, 16 << 30]);
    let name = text(|buffer, length| call!(client, nvmlSystemGetProcessName(100, buffer, length)));
    assert_eq!(name.as_deref(), Ok("train"));
    for (gi, by) in [(1, "listed"), (11, "not listed")] {
        let mut instance = std::ptr::null_mut();
        call!(client, nvmlDeviceGetGpuInstanceById(gpu, gi, &raw mut instance)).unwrap();
        let mut compute = std::ptr::null_mut();
        call!(client, nvmlGpuInstanceGetComputeInstanceById(instance, 0, &raw mut compute)).unwrap();
        assert_eq!(call!(client, nvmlComputeInstanceDestroy(compute)), Err(IN_USE), "{by}");
    }
    call!(client, nvmlShutdown()).unwrap();
    assert_eq!(in_use(node.reset(Some(0))), [100, 200]);
    let gone = node.update(|d| d.set_mig(0, &["1g.10gb"])).unwrap_err().to_string();
    assert!(gone.contains("gpus[0].processes[0].gi: 1 is no GPU instance; there are [7]"), "{gone}");
}

#[test]
fn work_on_a_whole_gpu_stands_in_the_way_of_mig() {
    let mut description = Description::h100s(2).with_mig_mode(1, true);
    description.gpu(0).processes.push(Process::new(1));
    description.gpu(1).processes.push(Process::new(1));
    let (_folder, node) = node(&description);
    let client = Client::of(&node);
    assert_eq!(set_mode(&client, client.gpu(0).unwrap(), 1), Err(IN_USE));
    let mut instance = std::ptr::null_mut();
    let made = call!(client, nvmlDeviceCreateGpuInstance(client.gpu(1).unwrap(), 19, &raw mut instance));
    assert_eq!(made, Err(IN_USE));
}

#[test]
fn without_persistence_the_first_who_opens_a_gpu_waits() {
    const START: Duration = Duration::from_millis(500);
    let mut description = Description::h100s(1);
    description.gpu(0).start_ms = Some(500);
    let (_folder, node) = node(&description);
    let time = |client: &Client| {
        let begun = Instant::now();
        assert!(client.gpu(0).is_ok());
        begun.elapsed()
    };
    let client = Client::of(&node);
    assert!(time(&client) >= START);
    let mode: u32 =
        filled(|place| call!(client, nvmlDeviceGetPersistenceMode(client.gpu(0).unwrap(), place))).unwrap();
    assert_eq!(mode, 0);
    // As long as somebody has it open, nobody waits: not one start in so many looks.
    let other = Client::another(&node);
    let begun = Instant::now();
    for _ in 0..200 {
        assert!(client.gpu(0).is_ok() && other.gpu(0).is_ok());
    }
    assert!(begun.elapsed() < 200 * START);
    call!(client, nvmlShutdown()).unwrap();
    call!(other, nvmlShutdown()).unwrap();
    call!(client, nvmlInit_v2()).unwrap();
    assert!(time(&client) >= START);
}

#[test]
fn a_lost_gpu_answers_so_or_is_unknown_to_the_calls_that_give_handles() {
    let (_folder, node) = node(&Description::h100s(2));
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    node.update(|d| d.gpu(0).lost = Lost::IsLost).unwrap();
    assert_eq!((client.gpu(0), client.uuid(gpu)), (Err(GPU_IS_LOST), Err(GPU_IS_LOST)));
    node.update(|d| d.gpu(0).lost = Lost::UnknownHandles).unwrap();
    assert_eq!((client.gpu(0), client.uuid(gpu)), (Err(UNKNOWN), Err(GPU_IS_LOST)));
    assert!(client.gpu(1).is_ok());
    node.update(|d| d.gpu(0).lost = Lost::No).unwrap();
    assert!(client.gpu(0).is_ok());
}

#[test]
fn calls_that_time_out_end_with_an_unavailable_gpu() {
    let (_folder, node) = node(&Description::h100s(2));
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    let set = client.listen(&[gpu], EventType::GpuUnavailable as u64);
    node.update(|d| d.faults.push(Fault::gsp_timeouts(0, 10, 3))).unwrap();
    for _ in 0..2 {
        assert_eq!(client.uuid(gpu), Err(TIMEOUT));
    }
    assert_eq!(client.wait(set, 0).err(), Some(TIMEOUT));
    assert_eq!(client.uuid(gpu), Err(TIMEOUT));
    let event = client.wait(set, 60_000).unwrap();
    assert_eq!((event.eventType, event.eventData), (EventType::GpuUnavailable as u64, 0));
    // Once, however many calls follow.
    assert_eq!(client.uuid(gpu), Err(TIMEOUT));
    assert_eq!(client.wait(set, 0).err(), Some(TIMEOUT));
    let of_all = Fault { gpu: None, ..Fault::gsp_timeouts(0, 10, 3) };
    let reason = Description::h100s(1).with_faults([of_all]).resolve().unwrap_err().to_string();
    assert!(reason.contains("faults[0].unavailableAfter: needs gpu"), "{reason}");
}
