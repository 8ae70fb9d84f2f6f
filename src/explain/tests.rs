use super::*;
use crate::fixtures::{gpu, mig_gpu, node};
use crate::inventory::{Placement, Problem};
use crate::resource::policy::{DeviceSelection, SharedResource, TimeSlicing};

fn policy(strategy: MigStrategy) -> OfferPolicy {
    OfferPolicy { strategy, ..OfferPolicy::default() }
}

fn explained(inventory: &Inventory) -> Explanation {
    explain(inventory, &policy(MigStrategy::Mixed))
}

fn text(explanation: &Explanation) -> String {
    let text = render(explanation, Format::Text).unwrap();
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
    text
}

/// Name, capacity and devices in short, of each resource under `strategy`.
fn offers(explanation: &Explanation, strategy: MigStrategy) -> Vec<(&str, usize, String)> {
    let view = explanation.strategies.iter().find(|view| view.strategy == strategy).unwrap();
    let resources = view.resources.iter();
    resources
        .map(|resource| (resource.name.as_str(), resource.capacity, text::devices(&resource.devices)))
        .collect()
}

/// Codes of all warnings: those of none, single, mixed, and the node.
fn codes(inventory: &Inventory) -> [Vec<&'static str>; 4] {
    let explanation = explained(inventory);
    let codes = |warnings: &[Warning]| warnings.iter().map(Warning::code).collect();
    let [none, single, mixed] = &explanation.strategies[..] else { panic!("three strategies") };
    [codes(&none.warnings), codes(&single.warnings), codes(&mixed.warnings), codes(&explanation.warnings)]
}

fn warnings(inventory: &Inventory) -> Vec<String> {
    explained(inventory).warnings.iter().map(ToString::to_string).collect()
}

/// Slices fill the GPU, so that nothing is to be said about gaps.
fn full(mut gpu: Gpu) -> Gpu {
    gpu.memory_slices = u32::try_from(gpu.mig_devices.len()).ok();
    gpu
}

#[test]
fn a_node_is_shown_under_all_strategies() {
    let mut split = mig_gpu(0, &["3g.40gb", "1g.10gb", "1g.10gb", "1g.10gb+me"]);
    split.mig_devices[0].placement = Some(Placement { start: 4, size: 4 });
    split.mig_devices[3].placement = Some(Placement { start: 0, size: 1 });
    let inventory = Inventory {
        driver_version: "580.95.05".to_owned(),
        cuda_version: Some("13.0".to_owned()),
        ..node([split, gpu(1), gpu(2)])
    };
    assert_eq!(
        text(&explained(&inventory)),
        "Driver 580.95.05, CUDA 13.0

GPU  NAME                   MIG  SLICES
0    NVIDIA H100 80GB HBM3  on   3g.40gb, 1g.10gb x2, 1g.10gb+me
1-2  NVIDIA H100 80GB HBM3  off  -

RESOURCE                   NONE  SINGLE  MIXED (CONFIGURED)
nvidia.com/gpu                3       2                   2
nvidia.com/mig-1g.10gb        -       -                   2
nvidia.com/mig-1g.10gb.me     -       -                   1
nvidia.com/mig-3g.40gb        -       -                   1
withheld                      -       4                   -

none: every GPU as a whole, whatever its MIG mode
  nvidia.com/gpu  3  GPU 0-2
  ! GPU 0: MIG mode is on, so no CUDA program can use it as a whole, but as a whole is how it is
    offered: use single or mixed, or switch MIG mode off

single: slices of one profile under the name for GPUs
  nvidia.com/gpu  2  0:1-2
  withheld 0:0: the strategy single offers one profile, and on this node that is 1g.10gb, not
                3g.40gb: use the strategy mixed, or partition all GPUs alike
  withheld 0:3: the strategy single offers one profile, and on this node that is 1g.10gb, not
                1g.10gb+me: use the strategy mixed, or partition all GPUs alike
  withheld 1 2: the strategy single offers MIG devices only while a GPU is in MIG mode, and this GPU
                is not: use the strategy mixed, or switch MIG mode on for all GPUs or none
  ! slices have several profiles, and only 1g.10gb is offered, not 3g.40gb, 1g.10gb+me

mixed (configured): slices by profile, other GPUs as a whole
  nvidia.com/gpu             2  GPU 1-2
  nvidia.com/mig-1g.10gb     2  0:1-2
  nvidia.com/mig-1g.10gb.me  1  0:3
  nvidia.com/mig-3g.40gb     1  0:0

Whatever the strategy
  ! GPU 0: memory slice 3 of 0-7 is free: a slice more may fit

A Pod for nvidia.com/mig-1g.10gb (-o pods prints one for each resource)
  apiVersion: v1
  kind: Pod
  metadata:
    name: try-mig-1g-10gb
  spec:
    restartPolicy: Never
    # runtimeClassName: nvidia    # where that is not the node's default runtime
    containers:
    - name: look
      image: ubuntu:24.04
      command: [nvidia-smi, -L]
      resources:
        limits:
          nvidia.com/mig-1g.10gb: 1
"
    );
}

#[test]
fn one_strategy_is_shown_alone() {
    let inventory = node([full(mig_gpu(0, &["1g.10gb"; 7]))]);
    let only = explained(&inventory).only(MigStrategy::Single);
    let text = text(&only);
    assert!(text.contains("\nsingle: slices of one profile"), "{text}");
    for absent in ["RESOURCE", "none:", "mixed", "MIG mode is on"] {
        assert!(!text.contains(absent), "{absent} in {text}");
    }
    let pods = render(&only, Format::Pods).unwrap();
    assert!(pods.contains("nvidia.com/gpu: 1\n") && !pods.contains("---"), "{pods}");
}

#[test]
fn a_node_without_gpus_says_so() {
    let text = text(&explained(&Inventory { driver_version: "1".to_owned(), ..node([]) }));
    assert_eq!(text, "Driver 1\n\nNo GPU could be read.\n");
    assert_eq!(render(&explained(&node([])), Format::Pods).unwrap(), "");
}

#[test]
fn a_strategy_that_offers_nothing_says_so() {
    let inventory = node([mig_gpu(0, &[])]);
    let text = text(&explained(&inventory));
    assert!(
        text.contains("single: slices of one profile under the name for GPUs\n  offers nothing\n"),
        "{text}"
    );
    assert!(!text.contains("A Pod for"), "{text}");
    assert_eq!(codes(&inventory), [vec!["mig-on-under-none"], vec![], vec![], vec!["idle-gpu"]]);
}

#[test]
fn there_is_nothing_to_say_about_a_node_as_it_should_be() {
    let nothing: [Vec<&str>; 4] = [vec![], vec![], vec![], vec![]];
    assert_eq!(codes(&node([gpu(0), gpu(1)])), nothing);
    let mig = codes(&node([full(mig_gpu(0, &["1g.10gb"; 7])), full(mig_gpu(1, &["1g.10gb"; 7]))]));
    assert_eq!(mig, [vec!["mig-on-under-none"; 2], vec![], vec![], vec![]]);
}

#[test]
fn a_pending_mode_is_told_either_way() {
    let mut on = gpu(0);
    on.mig_mode = Some(MigMode { current: false, pending: true });
    let mut off = full(mig_gpu(1, &["1g.10gb"]));
    off.mig_mode = Some(MigMode { current: true, pending: false });
    assert_eq!(
        warnings(&node([on, off])),
        [
            "GPU 0: MIG mode will be on after the next GPU reset, and what is offered will change then",
            "GPU 1: MIG mode will be off after the next GPU reset, and what is offered will change then",
        ]
    );
}

#[test]
fn gaps_are_told_where_places_are_known() {
    let gaps = |gpu: &Gpu| warnings(&node([gpu.clone()]));
    let mut gpu = mig_gpu(0, &["1g.10gb", "2g.20gb"]);
    gpu.mig_devices[0].placement = Some(Placement { start: 1, size: 1 });
    gpu.mig_devices[1].placement = Some(Placement { start: 4, size: 2 });
    assert_eq!(
        gaps(&gpu),
        [
            "GPU 0: memory slice 0 of 0-7 is free: a slice more may fit",
            "GPU 0: memory slices 2-3 of 0-7 are free: more slices may fit",
            "GPU 0: memory slices 6-7 of 0-7 are free: more slices may fit",
        ]
    );
    let unknown = |change: &dyn Fn(&mut Gpu)| {
        let mut gpu = gpu.clone();
        change(&mut gpu);
        gaps(&gpu)
    };
    assert!(unknown(&|gpu| gpu.mig_devices[0].placement = None).is_empty());
    assert!(unknown(&|gpu| gpu.memory_slices = None).is_empty());
    let half_made = unknown(&|gpu| gpu.empty_gpu_instances = vec![5]);
    assert_eq!(half_made, ["GPU 0: GPU instance 5 has no compute instance: nothing can run on it"]);
    // Placements that cannot be are no reason to fall over.
    unknown(&|gpu| gpu.mig_devices[0].placement = Some(Placement { start: u32::MAX, size: u32::MAX }));
}

#[test]
fn the_eighth_memory_slice_is_free_for_nobody() {
    assert!(warnings(&node([mig_gpu(0, &["1g.10gb"; 7])])).is_empty());
    let gap = warnings(&node([mig_gpu(0, &["1g.10gb"; 6])]));
    assert_eq!(gap, ["GPU 0: memory slices 6-7 of 0-7 are free: more slices may fit"]);
}

#[test]
fn a_part_of_a_gpu_instance_shares_its_memory() {
    let told = warnings(&node([full(mig_gpu(0, &["1c.3g.40gb"]))]));
    assert_eq!(
        told,
        [
            "MIG device 0:0: 1c.3g.40gb is a part of GPU instance 7, whose memory it shares with its neighbours \
          there, without protection from them"
        ]
    );
}

#[test]
fn what_cannot_be_read_or_used_is_told() {
    let mut sick = full(mig_gpu(0, &["1g.10gb", "1g.10gb"]));
    sick.mig_devices[0].problem = Some(crate::inventory::Trouble::unreadable("NVML_ERROR_TIMEOUT"));
    sick.mig_devices[1].gpu_instance_node.as_mut().unwrap().exists = false;
    let mut lost = gpu(1);
    lost.problem = Some(crate::inventory::Trouble::lost("GPU is lost"));
    lost.node.exists = false;
    let mut inventory = node([sick, lost, full(mig_gpu(2, &[]))]);
    let problem = |gpu, mig_device, left_out| Problem {
        gpu,
        mig_device,
        uuid: None,
        reason: crate::inventory::Trouble::unreadable("why"),
        left_out,
    };
    inventory.problems = vec![problem(3, None, true), problem(2, Some(1), true), problem(0, Some(1), false)];
    assert_eq!(
        warnings(&inventory),
        [
            "GPU 3: left out: why",
            "MIG device 2:1: left out: why",
            "MIG device 0:1: incomplete: why",
            "MIG device 0:0: cannot be used: NVML_ERROR_TIMEOUT",
            "MIG device 0:1: /dev/nvidia-caps/nvidia-cap75 does not exist",
            "GPU 1: cannot be used: GPU is lost",
            "GPU 1: /dev/nvidia1 does not exist",
        ]
    );
    let text = text(&explained(&inventory));
    assert!(text.contains("nvidia.com/mig-1g.10gb  0 of 2  0:0-1\n"), "{text}");
    assert!(text.contains("  unhealthy 0:0: cannot be read: NVML_ERROR_TIMEOUT\n"), "{text}");
}

#[test]
fn a_profile_without_a_name_is_told_under_mixed() {
    let long = "x".repeat(60);
    let inventory = node([full(mig_gpu(0, &["1g.10gb", &long]))]);
    assert_eq!(codes(&inventory)[2], ["no-resource-name"]);
    let warning = &explained(&inventory).strategies[2].warnings[0];
    assert_eq!(warning.gpus(), [0]);
    assert!(warning.to_string().contains("longer than 63"), "{warning}");
    text(&explained(&inventory));
}

#[test]
fn replicas_are_counted_and_told_in_short() {
    let shared = SharedResource {
        name: "nvidia.com/mig-1g.10gb".parse().unwrap(),
        rename: None,
        devices: DeviceSelection::All,
        replicas: 4,
    };
    let time_slicing = TimeSlicing { resources: vec![shared], ..TimeSlicing::default() };
    let policy = OfferPolicy { time_slicing, ..policy(MigStrategy::Mixed) };
    let explanation = explain(&node([mig_gpu(0, &["1g.10gb", "1g.10gb", "2g.20gb"])]), &policy);
    assert_eq!(
        offers(&explanation, MigStrategy::Mixed),
        [
            ("nvidia.com/mig-1g.10gb", 8, "0:0-1 x4".to_owned()),
            ("nvidia.com/mig-2g.20gb", 1, "0:2".to_owned()),
        ]
    );
}

#[test]
fn the_same_is_said_once_of_several_gpus() {
    let text = text(&explained(&node([full(mig_gpu(0, &["1g.10gb"])), full(mig_gpu(5, &["1g.10gb"]))])));
    assert!(text.contains("  ! GPU 0 5: MIG mode is on"), "{text}");
}

#[test]
fn programs_get_everything() {
    let explanation = explained(&node([mig_gpu(0, &["1g.10gb"])]));
    let json: serde_json::Value = serde_json::from_str(&render(&explanation, Format::Json).unwrap()).unwrap();
    let mixed = &json["strategies"][2];
    assert_eq!((&mixed["strategy"], &mixed["configured"]), (&"mixed".into(), &true.into()));
    assert_eq!(mixed["resources"][0]["devices"][0]["id"], "MIG-0-7-0");
    assert_eq!(mixed["resources"][0]["allocatable"], 1);
    assert_eq!(json["warnings"][0]["code"], "free-memory-slices");
    assert_eq!(json["strategies"][0]["warnings"][0]["gpus"][0], 0);
    let yaml: serde_json::Value =
        serde_saphyr::from_str(&render(&explanation, Format::Yaml).unwrap()).unwrap();
    assert_eq!(yaml, json);
}

#[test]
fn many_profiles_and_long_names_stay_within_the_line() {
    let mut long = mig_gpu(0, &["1g.24gb+me.all", "1g.24gb-me", "2g.48gb", "1g.24gb+gfx", "4g.96gb+me.all"]);
    long.name = "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition".to_owned();
    let text = text(&explained(&node([long])));
    assert!(text.lines().nth(2).unwrap().starts_with("GPU  NAME"), "{text}");
}
