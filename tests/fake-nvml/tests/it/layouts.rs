//! Layouts: every model's, the impossible ones, and what a change does to those that stay.

use fake_nvml::{ComputeInstance, Description, Instance, NodeError, PlacementMap, catalogue};

use crate::node;

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

/// GPU instance IDs and placements that were seen on real GPUs, one with each half in its place and one without.
#[test]
fn instance_ids_are_those_of_the_parts_of_the_chip() {
    let ids = |gpu: usize, map: Option<PlacementMap>, layout: &[Instance]| -> Vec<u32> {
        let mut description = Description::h100s(3).with_mig(gpu, layout);
        description.gpu(gpu).placement_map = map;
        description.resolve().unwrap().gpus[gpu].mig.iter().map(|mig| mig.gi).collect()
    };
    let of = |names: &[&str]| -> Vec<Instance> { names.iter().map(|name| Instance::new(name)).collect() };
    let (one, two, three) =
        (Instance::new("1g.10gb"), Instance::new("2g.20gb").at(0), Instance::new("3g.40gb").at(4));
    let mixed = [one.clone().at(2), one.at(3), two, three];
    let (sevens, twos, quarters) = (of(&["1g.10gb"; 7]), of(&["2g.20gb"; 3]), of(&["1g.20gb"; 4]));
    // By default three GPUs are three kinds.
    assert_eq!(ids(0, None, &mixed), [9, 10, 3, 2]);
    assert_eq!(ids(1, None, &mixed), [13, 14, 5, 1]);
    assert_eq!(ids(2, None, &mixed), [7, 8, 4, 2]);
    for (map, of_sevens, of_twos, of_quarters) in [
        (PlacementMap::Straight, [7, 8, 9, 10, 11, 12, 13], [3, 4, 5], [3, 4, 5, 6]),
        (PlacementMap::HalvesSwapped, [11, 12, 13, 14, 7, 8, 9], [5, 6, 3], [5, 6, 3, 4]),
        (PlacementMap::QuartersSwapped, [9, 10, 7, 8, 13, 14, 11], [4, 3, 6], [4, 3, 6, 5]),
    ] {
        let ids = |layout: &[Instance]| ids(0, Some(map), layout);
        assert_eq!(ids(&sevens), of_sevens, "{map:?}");
        assert_eq!((ids(&twos), ids(&quarters)), (of_twos.to_vec(), of_quarters.to_vec()), "{map:?}");
        assert_eq!((ids(&of(&["7g.80gb"])), ids(&of(&["4g.40gb", "3g.40gb"])).len()), (vec![0], 2));
    }
    // Chips of four parts have none of the small IDs.
    for (model, profile) in [("rtx-pro-6000-blackwell-96gb", "1g.24gb"), ("a30-24gb", "1g.6gb")] {
        for (map, expected) in [
            (PlacementMap::Straight, [3, 4, 5, 6]),
            (PlacementMap::HalvesSwapped, [5, 6, 3, 4]),
            (PlacementMap::QuartersSwapped, [4, 3, 6, 5]),
        ] {
            let mut description = Description::of(model, 1).with_mig(0, &[profile; 4]);
            description.gpu(0).placement_map = Some(map);
            let ids: Vec<u32> = starts(&description).into_iter().map(|(gi, _)| gi).collect();
            assert_eq!(ids, expected, "{model} {map:?}");
        }
    }
    // An ID that was written for another part is left to it.
    assert_eq!(ids(0, None, &[Instance::new("1g.10gb").gi(7).at(3), Instance::new("1g.10gb").at(0)]), [7, 8]);
}

#[test]
fn a_uuid_is_that_of_the_part_and_its_engine_whatever_the_profile() {
    let uuids = |layout: &[Instance]| -> Vec<String> {
        let state = h100(layout).resolve().unwrap();
        state.gpus[0].mig.iter().map(|mig| mig.uuid.clone()).collect()
    };
    let of = |name: &str| uuids(&[Instance::new(name).at(0)]);
    assert_eq!(of("1g.20gb"), of("2g.20gb"));
    assert_eq!(of("3g.40gb"), of("4g.40gb"));
    assert_ne!(of("1g.10gb"), of("1g.20gb"));
    let split = uuids(&[Instance::new("3g.40gb").at(0).compute(&[1, 2])]);
    assert_eq!(split[0], of("3g.40gb")[0]);
    assert_ne!(split[1], split[0]);
    // The engine decides, not the ID of the compute instance.
    let second_engine = |ci| ComputeInstance { ci, engine: Some(1), ..ComputeInstance::new(1) };
    let told =
        |ci| uuids(&[Instance { compute: Some(vec![second_engine(ci)]), ..Instance::new("3g.40gb").at(0) }]);
    assert_eq!(told(Some(0)), told(Some(5)));
    assert_eq!(told(None)[0], split[1]);
    // Another chip is another UUID; a written one of the GPU is another chip.
    let with_uuid = |uuid: Option<&str>| {
        let mut description = h100(&[Instance::new("3g.40gb")]);
        description.gpu(0).uuid = uuid.map(str::to_owned);
        description.resolve().unwrap().gpus[0].clone()
    };
    let derived = with_uuid(None);
    assert_eq!(with_uuid(Some(&derived.uuid)).mig[0].uuid, derived.mig[0].uuid);
    let other = with_uuid(Some("GPU-2c3e4b4e-7a4b-5a7b-9d3e-1f2a3b4c5d6e"));
    assert_ne!(other.mig[0].uuid, derived.mig[0].uuid);
    // Version 5, variant 1.
    assert_eq!((derived.uuid.as_bytes()[18], &derived.uuid[..4]), (b'5', "GPU-"));
}

#[test]
fn keys_about_the_chip_go_both_ways_and_stay_with_their_gpu() {
    let yaml = "gpus:
  - model: h100-80gb-sxm5
    mig: true
    placementMap: halvesSwapped
    layout: [{ 3g.40gb: [{ slices: 1c, engine: 2 }] }]
";
    let description = Description::parse(yaml).unwrap();
    assert_eq!(Description::parse(&description.to_yaml().unwrap()).unwrap(), description);
    assert_eq!(starts(&description), [(2, 0)]);
    let refused = Description::parse("gpus: [{ model: a30-24gb, placementMap: swapped }]").unwrap_err();
    assert!(
        refused.to_string().contains("expected one of straight, halvesSwapped, quartersSwapped"),
        "{refused}"
    );
    let (_folder, node) = node(&Description::h100s(3));
    node.update(|d| drop(d.gpus.remove(0))).unwrap();
    node.update(|d| d.set_mig(0, &["3g.40gb"])).unwrap();
    assert_eq!(node.gpus().unwrap()[0].mig[0].gi, 2, "it was the second GPU");
}

#[test]
fn a_possible_list_is_placed_whatever_its_order() {
    // Seven slices in an order that a placement without looking ahead cannot place.
    let description = Description::h100s(1).with_mig(0, &["1g.10gb", "1g.10gb", "2g.20gb", "3g.40gb"]);
    assert_eq!(starts(&description), [(7, 0), (8, 1), (4, 2), (2, 4)]);
    let description = Description::h100s(1).with_mig(0, &["3g.40gb", "4g.40gb"]);
    assert_eq!(starts(&description), [(2, 4), (1, 0)]);
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
