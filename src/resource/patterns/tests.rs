use proptest::prelude::*;

use super::*;
use crate::fixtures::{gpu, mig_gpu, node};
use crate::resource::{MigStrategy, resolve};

fn pattern(pattern: &str, name: &str) -> Pattern {
    Pattern { pattern: pattern.to_owned(), name: name.parse().unwrap() }
}

fn names(set: &ResourceSet) -> Vec<&str> {
    set.resources.keys().map(ResourceName::as_str).collect()
}

#[test]
fn a_pattern_matches_the_whole_text() {
    let matches = |text: &str, like: &str| pattern(like, "nvidia.com/x").matches(text);
    for (text, like) in [
        ("1g.10gb", "1g.10gb"),
        ("1g.10gb", "*"),
        ("1g.10gb+me", "1g.10gb*"),
        ("abcabc", "*abc"),
        ("aXbYc", "a*b*c"),
        ("", "*"),
        ("", ""),
    ] {
        assert!(matches(text, like), "{text} {like}");
    }
    for (text, like) in [
        ("1g.10gb+me", "1g.10gb"),
        ("11g.10gb", "1g*"),
        ("1gx10gb", "1g.10gb"),
        ("ab", "a*bb"),
        ("aba", "ab*ba"),
        ("x", ""),
    ] {
        assert!(!matches(text, like), "{text} {like}");
    }
}

#[test]
fn the_first_pattern_that_matches_names_the_resource() {
    let policy = OfferPolicy {
        strategy: MigStrategy::Mixed,
        gpus: vec![pattern("NVIDIA H100*", "nvidia.com/h100")],
        mig: vec![pattern("1g.*+me", "nvidia.com/media"), pattern("1g.*", "nvidia.com/small")],
        ..OfferPolicy::default()
    };
    let inventory = node([mig_gpu(0, &["1g.10gb+me", "1g.20gb", "2g.20gb"]), gpu(1)]);
    let set = resolve(&inventory, &policy);
    assert_eq!(
        names(&set),
        ["nvidia.com/h100", "nvidia.com/media", "nvidia.com/mig-2g.20gb", "nvidia.com/small"]
    );
    assert!(set.warnings.is_empty());
}

#[test]
fn a_pattern_counts_under_single_too() {
    let policy = OfferPolicy {
        strategy: MigStrategy::Single,
        mig: vec![pattern("1g.10gb", "nvidia.com/small")],
        ..OfferPolicy::default()
    };
    assert_eq!(names(&resolve(&node([mig_gpu(0, &["1g.10gb"])]), &policy)), ["nvidia.com/small"]);
}

#[test]
fn a_pattern_that_matches_nothing_is_told() {
    let policy = OfferPolicy {
        strategy: MigStrategy::Mixed,
        gpus: vec![pattern("NVIDIA B200", "nvidia.com/b200")],
        mig: vec![pattern("9g.*", "nvidia.com/nine")],
        ..OfferPolicy::default()
    };
    let set = resolve(&node([mig_gpu(0, &["1g.10gb"])]), &policy);
    assert_eq!(
        set.warnings,
        [
            "resources.gpus: the pattern \"NVIDIA B200\" matches nothing on this node",
            "resources.mig: the pattern \"9g.*\" matches nothing on this node",
        ]
    );
}

#[test]
fn withheld_devices_stay_listed_as_unhealthy() {
    let inventory = node([mig_gpu(0, &["1g.10gb", "2g.20gb", "1g.10gb"]), mig_gpu(1, &["1g.10gb"]), gpu(2)]);
    let unhealthy = |selector: Selector| {
        let policy =
            OfferPolicy { strategy: MigStrategy::Mixed, withhold: vec![selector], ..OfferPolicy::default() };
        let set = resolve(&inventory, &policy);
        assert_eq!(set.resources.values().flatten().count(), 5);
        let devices = set.resources.values().flatten().filter(|device| !device.is_healthy());
        let mut indices: Vec<_> = devices.map(Device::index).collect();
        indices.sort();
        (indices, set.warnings.len())
    };
    let device = |text: &str| Selector::Device(text.parse().unwrap());
    let indices = |indices: &[&str]| indices.iter().map(|index| (*index).to_owned()).collect::<Vec<_>>();
    assert_eq!(unhealthy(device("0:2")), (indices(&["0:2"]), 0));
    assert_eq!(unhealthy(device("MIG-0-8-0")), (indices(&["0:1"]), 0));
    assert_eq!(unhealthy(device("0")), (indices(&["0:0", "0:1", "0:2"]), 0));
    assert_eq!(unhealthy(device("GPU-2")), (indices(&["2"]), 0));
    assert_eq!(
        unhealthy(Selector::Profile("1g.10gb".parse().unwrap())),
        (indices(&["0:0", "0:2", "1:0"]), 0)
    );
    assert_eq!(unhealthy(device("7:0")), (indices(&[]), 1));
}

proptest! {
    #[test]
    fn a_pattern_without_wildcard_matches_only_itself(a in "[a-c.]{0,6}", b in "[a-c.]{0,6}") {
        prop_assert_eq!(pattern(&a, "nvidia.com/x").matches(&b), a == b);
    }

    #[test]
    fn a_text_matches_itself_with_anything_cut_out(text in "[a-c.]{0,8}", from in 0_usize..8, len in 0_usize..8) {
        let from = from.min(text.len());
        let to = (from + len).min(text.len());
        let like = format!("{}*{}", &text[..from], &text[to..]);
        prop_assert!(pattern(&like, "nvidia.com/x").matches(&text), "{} {}", text, like);
    }
}
