//! Layouts: every model's, the impossible ones, and what a change does to those that stay.

use fake_nvml::{ComputeInstance, Description, Instance, NodeError, catalogue};

fn refused(description: &Description) -> String {
    match description.resolve() {
        Err(error @ NodeError::Invalid { .. }) => error.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

fn h100(layout: &[Instance]) -> Description {
    Description::h100s(1).with_mig(0, layout)
}

fn starts(description: &Description) -> Vec<(u32, u32)> {
    let state = description.resolve().unwrap();
    state.gpus[0].mig.iter().map(|mig| (mig.gi, mig.placement.start)).collect()
}

#[test]
fn every_profile_of_every_model_can_be_had_as_often_as_it_says() {
    for model in catalogue::models() {
        for profile in &model.profiles {
            let layout = vec![profile.name.as_str(); profile.max as usize];
            let state = Description::of(&model.key, 1).with_mig(0, &layout).resolve().unwrap();
            assert_eq!(state.gpus[0].mig.len(), layout.len(), "{} {}", model.key, profile.name);
            let more = vec![profile.name.as_str(); profile.max as usize + 1];
            refused(&Description::of(&model.key, 1).with_mig(0, &more));
        }
    }
}

#[test]
fn instance_ids_follow_the_size_not_the_order() {
    let ids = |layout: &[&str]| -> Vec<u32> {
        let state = Description::h100s(1).with_mig(0, layout).resolve().unwrap();
        state.gpus[0].mig.iter().map(|mig| mig.gi).collect()
    };
    assert_eq!(ids(&["1g.10gb"; 7]), [7, 8, 9, 10, 11, 12, 13]);
    assert_eq!(ids(&["3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb"]), [1, 3, 7, 8]);
    assert_eq!(ids(&["1g.10gb+me", "1g.20gb", "2g.20gb"]), [7, 3, 4]);
    assert_eq!(ids(&["7g.80gb"]), [0]);
    let rtx = Description::of("rtx-pro-6000-blackwell-96gb", 1).with_mig(0, &["1g.24gb"; 4]);
    assert_eq!(starts(&rtx), [(3, 0), (4, 3), (5, 6), (6, 9)]);
}

#[test]
fn a_possible_list_is_placed_whatever_its_order() {
    // Seven slices in an order that a placement without looking ahead cannot place.
    let description = Description::h100s(1).with_mig(0, &["1g.10gb", "1g.10gb", "2g.20gb", "3g.40gb"]);
    assert_eq!(starts(&description), [(7, 0), (8, 1), (3, 2), (1, 4)]);
    let description = Description::h100s(1).with_mig(0, &["3g.40gb", "4g.40gb"]);
    assert_eq!(starts(&description), [(1, 4), (2, 0)]);
}

#[test]
fn impossible_layouts_are_refused_with_the_reason() {
    let reason = |layout: &[Instance]| refused(&h100(layout));
    let of = |names: &[&str]| -> Vec<Instance> { names.iter().map(|name| Instance::new(name)).collect() };
    assert!(reason(&of(&["4g.40gb", "4g.40gb"])).contains("needs 8 compute slices; the GPU has 7"));
    assert!(reason(&of(&["1g.10gb+me", "1g.10gb+me"])).contains("2 × 1g.10gb+me; a GPU can have 1"));
    assert!(reason(&of(&["7g.80gb", "1g.10gb"])).contains("needs 9 memory slices"));
    assert!(reason(&of(&["2g.20gb", "2g.20gb", "2g.20gb", "1g.20gb", "1g.10gb"])).contains("needs 9 memory"));
    assert!(reason(&of(&["1g.11gb"])).contains("did you mean \"1g.10gb\"?"));
    assert!(reason(&[Instance::new("2g.20gb").at(6)]).contains("allowed: [0, 2, 4]"));
    let overlapping = [Instance::new("3g.40gb").at(4), Instance::new("2g.20gb").at(4)];
    assert!(reason(&overlapping).contains("2g.20gb at 4 (size 2) overlaps layout[0], 3g.40gb at 4 (size 4)"));
    let squeezed = [Instance::new("1g.10gb").at(2), Instance::new("1g.10gb").at(6), Instance::new("3g.40gb")];
    assert!(reason(&squeezed).contains("no free placement for 3g.40gb"));
    assert!(reason(&[Instance::new("3g.40gb").compute(&[2, 2])]).contains("needs 4 compute slices"));
    assert!(reason(&[Instance::new("7g.80gb").compute(&[5])]).contains("allowed: 1c, 2c, 3c, 4c, 7c"));
    let twice = [Instance::new("1g.10gb").gi(7), Instance::new("1g.10gb").gi(7)];
    assert!(reason(&twice).contains("gi: 7 is taken"));
    let rtx = |names: &[&str]| Description::of("rtx-pro-6000-blackwell-96gb", 1).with_mig(0, names);
    assert!(refused(&rtx(&["1g.24gb+me.all", "1g.24gb"])).contains("only -me profiles fit, not 1g.24gb"));
    assert!(rtx(&["1g.24gb+me.all", "1g.24gb-me"]).resolve().is_ok());
    assert!(
        refused(&Description::of("a30-24gb", 1).with_mig(0, &["1g.6gb+me", "2g.12gb+me"])).contains("+me")
    );
}

#[test]
fn all_mistakes_are_told_at_once_with_their_keys() {
    let yaml = "cudaVersion: thirteen
gpus:
  - { model: h100-80gb-sxm }
  - { model: tesla-t4, mig: true }
  - { model: a30-24gb, layout: [1g.6gb] }
  - { model: a30-24gb, pci: '18:00' }
faults:
  - { call: nvmlDeviceGetUuid, error: GPU_LOST, gpu: 7 }
  - { call: '*' }
";
    let told = Description::parse(yaml).unwrap_err().to_string();
    for part in [
        "cudaVersion: \"thirteen\" is not major.minor",
        "gpus[0].model: no model \"h100-80gb-sxm\"; did you mean \"h100-80gb-sxm5\"?",
        "gpus[1].mig: tesla-t4 knows no MIG",
        "gpus[2].layout: needs `mig: true`",
        "gpus[3].pci: \"18:00\" is no address",
        "faults[0].call: no function \"nvmlDeviceGetUuid\"; did you mean \"nvmlDeviceGetUUID\"?",
        "faults[0].error: no code \"GPU_LOST\"; did you mean \"GPU_IS_LOST\"?",
        "faults[0].gpu: 7 is none of the 4 GPUs",
        "faults[1]: needs error, delayMs or hangs",
    ] {
        assert!(told.contains(part), "{part:?} is not in:\n{told}");
    }
}

#[test]
fn an_unknown_key_is_named_with_the_known_ones() {
    let told = Description::parse("gpus:\n  - { model: a30-24gb, migg: true }\n").unwrap_err().to_string();
    assert!(told.contains("migg") && told.contains("migPending"), "{told}");
}

#[test]
fn yaml_has_short_and_long_forms_and_goes_both_ways() {
    let yaml = "gpus:
  - model: h100-80gb-sxm5
    count: 2
    mig: true
    layout:
      - 1g.10gb
      - 3g.40gb: [1c, { slices: 1c, ci: 5, index: 6 }]
      - { profile: 1g.10gb, count: 2 }
";
    let description = Description::parse(yaml).unwrap();
    assert_eq!(description.gpus.len(), 2);
    let compute = vec![
        ComputeInstance::new(1),
        ComputeInstance { ci: Some(5), index: Some(6), ..ComputeInstance::new(1) },
    ];
    let mut split = Instance::new("3g.40gb");
    split.compute = Some(compute);
    let small = Instance::new("1g.10gb");
    assert_eq!(description.gpus[0].layout, [small.clone(), split, small.clone(), small]);
    let state = description.resolve().unwrap();
    let indices: Vec<_> =
        state.gpus[1].mig.iter().map(|mig| (mig.index, mig.profile.as_str(), mig.ci)).collect();
    let named = ["1g.10gb", "1c.3g.40gb", "1g.10gb", "1g.10gb", "1c.3g.40gb"];
    assert_eq!(
        indices,
        [(0, named[0], 0), (1, named[1], 0), (2, named[2], 0), (3, named[3], 0), (6, named[4], 5)]
    );
    assert_eq!(Description::parse(&description.to_yaml().unwrap()).unwrap(), description);
}

#[test]
fn every_example_describes_a_possible_node() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/nodes");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        Description::read(entry.unwrap().path()).unwrap();
        count += 1;
    }
    assert!(count >= 7);
}
