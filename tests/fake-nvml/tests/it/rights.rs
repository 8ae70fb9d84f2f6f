//! What clients may do, and what they are shown and told of what they may not.

use std::{
    ffi::CString,
    fs::{self, File},
    process::Command,
};

use fake_nvml::{
    Description, Event, Fault, Instance, Node, Right, Rights, UnopenableSlices, UnprivilegedEvents,
    UuidLookup,
};
use nvml_wrapper_sys::bindings::nvmlDevice_t;

use crate::{
    call,
    client::{Answer, Client, filled},
    node,
};

const INVALID_ARGUMENT: u32 = 2;
const NO_PERMISSION: Answer<()> = Err(4);
const NOT_FOUND: u32 = 6;
const TIMEOUT: u32 = 10;
const GPU_IS_LOST: u32 = 15;
const XID: u64 = 8;
const NONE: u32 = u32::MAX;

const ALL: [Right; 3] = [Right::Admin, Right::Config, Right::Monitor];

fn split() -> Description {
    Description::h100s(1).with_mig(0, &["3g.40gb", "1g.10gb"])
}

/// What each kind of question is answered: whole GPU's memory, its processes, its instances, one of them, a new MIG
/// mode, a new compute mode.
fn answers(client: &Client, gpu: nvmlDevice_t) -> [Answer<()>; 6] {
    let (mut count, mut handle, mut handles) = (8, std::ptr::null_mut(), [std::ptr::null_mut(); 8]);
    [
        filled(|place| call!(client, nvmlDeviceGetMemoryInfo(gpu, place))).map(drop),
        call!(client, nvmlDeviceGetComputeRunningProcesses_v3(gpu, &raw mut count, std::ptr::null_mut())),
        call!(client, nvmlDeviceGetGpuInstances(gpu, 19, handles.as_mut_ptr(), &raw mut count)),
        call!(client, nvmlDeviceGetGpuInstanceById(gpu, 1, &raw mut handle)),
        call!(client, nvmlDeviceSetMigMode(gpu, 1, &raw mut count)),
        call!(client, nvmlDeviceSetComputeMode(gpu, 0)),
    ]
}

#[test]
fn each_right_allows_what_is_its_own_and_no_more() {
    let no = NO_PERMISSION;
    for (rights, allowed) in [
        (&ALL[..], [Ok(()); 6]),
        (&[Right::Admin], [no, no, Ok(()), Ok(()), Ok(()), Ok(())]),
        (&[Right::Config], [no, no, Ok(()), Ok(()), no, no]),
        (&[Right::Monitor], [Ok(()), Ok(()), no, no, no, no]),
        (&[], [no; 6]),
    ] {
        let (_folder, node) = node(&split().with_rights(rights));
        let client = Client::of(&node);
        let gpu = client.gpu(0).unwrap();
        assert_eq!(answers(&client, gpu), allowed, "{rights:?}");
        let bar1 = filled(|place| call!(client, nvmlDeviceGetBAR1MemoryInfo(gpu, place))).map(drop);
        assert_eq!(bar1, allowed[0], "{rights:?}");
        // Which slices there are is no secret, and a slice's memory is its own.
        let migs = client.migs(gpu);
        assert_eq!(migs.len(), 2);
        assert!(filled(|place| call!(client, nvmlDeviceGetMemoryInfo(migs[0], place))).is_ok());
        // Without an instance, a GPU in MIG mode is as any other.
        node.update(|d| d.gpu(0).layout.clear()).unwrap();
        assert_eq!(answers(&client, gpu)[..2], [Ok(()); 2], "{rights:?}");
    }
}

#[test]
fn the_old_key_means_no_right_and_no_node() {
    let mut description = split();
    description.unprivileged = true;
    let state = description.resolve().unwrap();
    assert_eq!((state.rights, state.openable), (Rights::Held(Vec::new()), Some(Vec::new())));
    let (_folder, node) = node(&description);
    let client = Client::of(&node);
    assert_eq!(answers(&client, client.gpu(0).unwrap()), [NO_PERMISSION; 6]);
}

#[test]
fn instances_are_made_and_destroyed_by_who_may_configure() {
    for (rights, expected) in
        [(&[Right::Config][..], Ok(())), (&[Right::Admin], Ok(())), (&[Right::Monitor], Err(4))]
    {
        let half_made = [Instance::new("3g.40gb").compute(&[])];
        let (_folder, node) = node(&Description::h100s(1).with_mig(0, &half_made));
        let client = Client::of(&node);
        let gpu = client.gpu(0).unwrap();
        let (mut instance, mut new, mut compute) =
            (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
        call!(client, nvmlDeviceGetGpuInstanceById(gpu, 1, &raw mut instance)).unwrap();
        node.update(|d| d.rights = Rights::Held(rights.to_vec())).unwrap();
        assert_eq!(call!(client, nvmlDeviceCreateGpuInstance(gpu, 19, &raw mut new)), expected, "{rights:?}");
        let made = call!(client, nvmlGpuInstanceCreateComputeInstance(instance, 2, &raw mut compute));
        assert_eq!(made, expected, "{rights:?}");
        if expected.is_ok() {
            assert_eq!(call!(client, nvmlComputeInstanceDestroy(compute)), Ok(()));
        }
        assert_eq!(call!(client, nvmlGpuInstanceDestroy(instance)), expected, "{rights:?}");
    }
}

#[test]
fn events_of_split_gpus_come_to_admin_and_monitor_alone() {
    for (rights, hears) in
        [(&[Right::Admin][..], true), (&[Right::Monitor], true), (&[Right::Config], false), (&[], false)]
    {
        let description = Description::h100s(2).with_mig(0, &["3g.40gb"]).with_rights(rights);
        let (_folder, node) = node(&description);
        let client = Client::of(&node);
        let gpus = [client.gpu(0).unwrap(), client.gpu(1).unwrap()];
        // Registering is nobody's privilege.
        let set = client.listen(&gpus, XID | 0x8000);
        for event in [Event::xid(94).on_instance(1, 0), Event::xid(79), Event::other(0x8000, 0)] {
            node.send(&event).unwrap();
        }
        if hears {
            let event = client.wait(set, 500).unwrap();
            assert_eq!((event.eventData, event.gpuInstanceId, event.computeInstanceId), (94, 1, 0));
            assert_eq!(client.wait(set, 500).unwrap().eventData, 79);
            assert_eq!(client.wait(set, 500).unwrap().eventType, 0x8000);
        }
        assert_eq!(client.wait(set, 0).err(), Some(TIMEOUT), "{rights:?}");
        // Without an instance, also in MIG mode, everybody hears.
        node.send(&Event::xid(31).on_gpu(1)).unwrap();
        assert_eq!(client.wait(set, 500).unwrap().device, gpus[1]);
        node.update(|d| d.gpu(0).layout.clear()).unwrap();
        node.send(&Event::xid(32)).unwrap();
        assert_eq!(client.wait(set, 500).unwrap().eventData, 32, "{rights:?}");
    }
}

#[test]
fn as_nvml_h_promises_it_events_come_to_all_without_their_instance() {
    let mut description = split().with_rights(&[]);
    description.unprivileged_events = UnprivilegedEvents::AsDocumented;
    let (_folder, node) = node(&description);
    let client = Client::of(&node);
    let set = client.listen(&[client.gpu(0).unwrap()], XID);
    node.send(&Event::xid(94).on_instance(1, 0)).unwrap();
    let event = client.wait(set, 500).unwrap();
    assert_eq!((event.eventData, event.gpuInstanceId, event.computeInstanceId), (94, NONE, NONE));
}

#[test]
fn what_is_heard_depends_on_the_rights_at_the_start() {
    let (_folder, node) = node(&split());
    let client = Client::of(&node);
    let set = client.listen(&[client.gpu(0).unwrap()], XID);
    node.update(|d| d.rights = Rights::Held(Vec::new())).unwrap();
    node.send(&Event::xid(31)).unwrap();
    assert_eq!(client.wait(set, 500).unwrap().eventData, 31);
    call!(client, nvmlShutdown()).unwrap();
    call!(client, nvmlInit_v2()).unwrap();
    node.send(&Event::xid(32)).unwrap();
    assert_eq!(client.wait(set, 0).err(), Some(TIMEOUT));
}

/// A node where the nodes of the first slice can be opened, and those of the second cannot.
fn half_open(unopenable: UnopenableSlices, rights: &[Right]) -> Description {
    let mut description = split().with_rights(rights);
    let first = description.resolve().unwrap().gpus[0].mig[0].clone();
    description.openable = Some(vec![first.gi_minor, first.ci_minor]);
    description.unopenable_slices = unopenable;
    description
}

#[test]
fn a_slice_that_cannot_be_opened_is_shown_unreadable_or_hidden() {
    for (unopenable, rights, shown, read) in [
        (UnopenableSlices::Listed, &[][..], true, true),
        (UnopenableSlices::Unreadable, &[Right::Admin], true, false),
        (UnopenableSlices::Unreadable, &[Right::Monitor], true, true),
        (UnopenableSlices::Hidden, &ALL, false, false),
    ] {
        let (_folder, node) = node(&half_open(unopenable, rights));
        let client = Client::of(&node);
        let gpu = client.gpu(0).unwrap();
        assert!(client.uuid(client.mig(gpu, 0).unwrap()).is_ok());
        let Ok(second) = client.mig(gpu, 1) else {
            assert!(!shown, "{unopenable:?}");
            continue;
        };
        assert!(shown && client.ids(second).is_ok());
        let attributes = filled(|place| call!(client, nvmlDeviceGetAttributes_v2(second, place))).map(drop);
        let memory = filled(|place| call!(client, nvmlDeviceGetMemoryInfo(second, place))).map(drop);
        let expected = if read { Ok(()) } else { NO_PERMISSION };
        let answers = [client.uuid(second).map(drop), client.name(second).map(drop), attributes, memory];
        assert_eq!(answers, [expected; 4], "{unopenable:?} {rights:?}");
    }
    // With one node of the two it cannot be used.
    let mut description = half_open(UnopenableSlices::Hidden, &ALL);
    description.openable.as_mut().unwrap().pop();
    let (_folder, node) = node(&description);
    let client = Client::of(&node);
    assert_eq!(client.migs(client.gpu(0).unwrap()), []);
}

#[test]
fn a_hidden_slice_has_its_files_and_is_not_listed() {
    let (_folder, node) = node(&split());
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    let (first, uuid) = (client.mig(gpu, 0).unwrap(), node.gpus().unwrap()[0].mig[0].uuid.clone());
    node.update(|d| d.gpu(0).layout[0].hidden = true).unwrap();
    assert_eq!(client.mig(gpu, 0), Err(NOT_FOUND));
    assert_eq!(client.migs(gpu).len(), 1);
    assert_eq!(client.uuid(first), Err(INVALID_ARGUMENT));
    assert_eq!(by_uuid(&client, &uuid), Err(NOT_FOUND));
    let folder = node.root().join("proc/driver/nvidia/capabilities/gpu0/mig/gi1");
    assert!(folder.join("access").is_file() && folder.join("ci0/access").is_file());
    // Who may list instances is shown all of them.
    let mut instance = std::ptr::null_mut();
    assert_eq!(call!(client, nvmlDeviceGetGpuInstanceById(gpu, 1, &raw mut instance)), Ok(()));
    node.update(|d| d.gpu(0).layout[0].hidden = false).unwrap();
    assert_eq!(client.uuid(first), Ok(uuid), "it is the same as before");
}

fn by_uuid(client: &Client, uuid: &str) -> Answer<nvmlDevice_t> {
    let uuid = CString::new(uuid).unwrap();
    let mut device = std::ptr::null_mut();
    call!(client, nvmlDeviceGetHandleByUUID(uuid.as_ptr(), &raw mut device)).map(|()| device)
}

#[test]
fn a_look_up_by_uuid_fails_while_any_gpu_is_lost() {
    for (lookup, expected) in [(UuidLookup::AnyGpu, Err(GPU_IS_LOST)), (UuidLookup::OwnGpu, Ok(()))] {
        let mut description = Description::h100s(3).with_mig(0, &["3g.40gb"]);
        description.uuid_lookup = lookup;
        let (_folder, node) = node(&description);
        let client = Client::of(&node);
        let gpu = node.gpus().unwrap()[0].clone();
        let found = || [&gpu.uuid, &gpu.mig[0].uuid].map(|uuid| by_uuid(&client, uuid).map(drop));
        assert_eq!(found(), [Ok(()); 2]);
        node.update(|d| d.faults = vec![Fault::error("*", "GPU_IS_LOST").on_gpu(2)]).unwrap();
        assert_eq!(found(), [expected; 2], "{lookup:?}");
        assert!(client.gpu(0).is_ok(), "by index only the GPU itself is asked");
        // Another fault is no loss.
        node.update(|d| d.faults = vec![Fault::error("*", "UNKNOWN").on_gpu(2)]).unwrap();
        assert_eq!(found(), [Ok(()); 2]);
    }
}

#[test]
fn the_files_say_what_the_client_may() {
    let (_folder, node) = node(&split());
    for rights in [&ALL[..], &[], &[Right::Monitor], &[Right::Admin], &[Right::Config]] {
        node.update(|d| d.rights = Rights::Held(rights.to_vec())).unwrap();
        let opens =
            |minor| File::open(node.root().join(format!("dev/nvidia-caps/nvidia-cap{minor}"))).is_ok();
        assert_eq!(opens(1), rights.contains(&Right::Config), "{rights:?}");
        assert_eq!(opens(2), rights.contains(&Right::Monitor), "{rights:?}");
        let status = fs::read_to_string(node.root().join("proc/self/status")).unwrap();
        let set = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
        let admin = u64::from_str_radix(set, 16).unwrap() >> 21 & 1 == 1;
        assert_eq!(admin, rights.contains(&Right::Admin), "{rights:?}");
    }
}

#[test]
fn a_process_can_be_taken_at_its_own_rights() {
    let (_folder, node) = node(&split());
    node.update(|d| d.rights = Rights::OfProcess).unwrap();
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let set = own.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    assert!(fs::read_to_string(node.root().join("proc/self/status")).unwrap().contains(set));
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    // Both nodes are there, and so mig/config and mig/monitor.
    assert_eq!(answers(&client, gpu)[..4], [Ok(()); 4]);
    fs::remove_file(node.root().join("dev/nvidia-caps/nvidia-cap2")).unwrap();
    assert_eq!(answers(&client, gpu)[..2], [NO_PERMISSION; 2]);
    node.update(|d| d.rights = Rights::default()).unwrap();
    assert!(node.root().join("proc/self/uid_map").is_file());
    assert!(!node.root().join("proc/self").is_symlink());
}

const NODE: &str = "RIGHTS_TEST_NODE";

/// Plays the process that the next test starts.
#[test]
fn process_with_rights_of_its_own() {
    let Some(root) = std::env::var_os(NODE) else { return };
    let client = Client::loaded(&Node::open(root).unwrap());
    let started = call!(client, nvmlInit_v2());
    let answers = started.map(|()| answers(&client, client.gpu(0).unwrap()));
    #[expect(clippy::print_stdout, reason = "the parent reads it")]
    {
        print!("{answers:?}");
    }
}

#[test]
fn a_process_can_have_rights_of_its_own() {
    let (_folder, node) = node(&split());
    let no = NO_PERMISSION;
    for (rights, expected) in [
        ("monitor", Ok([Ok(()), Ok(()), no, no, no, no])),
        ("admin,config", Ok([no, no, Ok(()), Ok(()), Ok(()), Ok(())])),
        ("", Ok([no; 6])),
        ("moniter", Err(INVALID_ARGUMENT)),
    ] {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "rights::process_with_rights_of_its_own", "--nocapture"])
            .env(NODE, node.root())
            .env("FAKE_NVML_RIGHTS", rights)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(said.contains(&format!("{expected:?}")), "{rights:?}: {said}");
    }
    assert!(
        node.error().unwrap().unwrap().contains("\"moniter\" is no right; allowed: admin, config, monitor")
    );
}

#[test]
fn keys_about_rights_go_both_ways_and_are_checked() {
    for yaml in [
        "rights: []\ngpus: []",
        "rights: [config, monitor]\nopenable: [3, 4322]\nunopenableSlices: hidden\ngpus: []",
        "rights: process\nunprivilegedEvents: asDocumented\nuuidLookup: ownGpu\ngpus: []",
        "unprivileged: true\ngpus: [{ model: a30-24gb, mig: true, layout: [{ profile: 1g.6gb, hidden: true }] }]",
    ] {
        let description = Description::parse(yaml).unwrap();
        assert_eq!(Description::parse(&description.to_yaml().unwrap()).unwrap(), description, "{yaml}");
    }
    let refused = |yaml: &str| Description::parse(yaml).unwrap_err().to_string();
    for (yaml, said) in [
        ("rights: [root]\n", "expected one of admin, config, monitor"),
        ("rights: root\n", "a list of admin, config and monitor, or the word process"),
        ("openable: [2]\n", "openable: 2 is no instance's capability minor; allowed: 3 to 4322"),
        ("unprivileged: true\nrights: [admin]\n", "leave out rights and openable"),
        ("unopenableSlices: seen\n", "expected one of listed, unreadable, hidden"),
    ] {
        let found = refused(yaml);
        assert!(found.contains(said), "{said:?} is not in:\n{found}");
    }
}
