//! The catalogue and the policy.

use super::*;
use crate::health::checks::InvalidCheck;
use crate::health::xid::{Action, CATALOG, Class, find};

fn checks(disabled: &str, enabled: &str, unknown_xids_count: bool) -> Checks {
    fn words(list: &str) -> Vec<Check> {
        list.split(',').filter(|word| !word.is_empty()).map(|word| word.parse().unwrap()).collect()
    }
    Checks::new(&words(disabled), &words(enabled), unknown_xids_count)
}

#[test]
fn the_catalogue_is_ordered_and_its_names_can_stand_in_a_sentence() {
    assert!(CATALOG.is_sorted_by(|a, b| a.number < b.number));
    for xid in CATALOG {
        assert_eq!(find(xid.number), Some(xid));
        assert!(
            !xid.name.is_empty() && !xid.name.ends_with('.') && !xid.name.contains(['(', ')', '\n']),
            "{xid:?}"
        );
        assert_ne!(xid.name, "Unused");
        assert_ne!(xid.number, EventKind::UNKNOWN_TO_NVML);
    }
    // Those that the catalog calls unused, and those beyond its end.
    for number in [0, 1, 14, 47, 61, 108, 173, EventKind::UNKNOWN_TO_NVML, u64::MAX] {
        assert_eq!(find(number), None, "{number}");
    }
}

#[test]
fn some_rows_of_the_catalogue_are_as_nvidia_has_them() {
    for (number, name, action, class) in [
        (13, "Graphics Engine Exception", "RESTART_APP", "application"),
        (31, "GPU memory page fault", "RESTART_APP", "application"),
        (43, "GPU stopped processing", "IGNORE", "informational"),
        (45, "Preemptive cleanup, due to previous errors", "WORKFLOW_XID_45", "application"),
        (48, "Double Bit ECC Error", "WORKFLOW_XID_48", "critical"),
        (54, "Auxiliary power is not connected to the GPU board", "CHECK_MECHANICALS", "inspection"),
        (63, "GPU memory remapping event", "IGNORE", "informational"),
        (74, "NVLINK Error", "WORKFLOW_NVLINK_ERR", "critical"),
        (79, "GPU has fallen off the bus", "RESTART_BM", "critical"),
        (94, "Contained memory error", "RESTART_APP", "application"),
        (95, "Uncontained memory error", "RESET_GPU", "critical"),
        (109, "Context Switch Timeout Error", "RESET_GPU", "critical"),
        (119, "GSP RPC Timeout", "RESET_GPU", "critical"),
        (154, "GPU Recovery Action Changed", "XID_154", "informational"),
        (172, "UNCORRECTABLE_SRAM_ERROR", "unstated", "unstated"),
    ] {
        let xid = find(number).unwrap();
        assert_eq!(
            (xid.name, xid.action.to_string().as_str(), xid.class().to_string().as_str()),
            (name, action, class)
        );
    }
    let of_class = |class| CATALOG.iter().filter(|xid| xid.class() == class).count();
    assert_eq!(of_class(Class::Unstated), CATALOG.iter().filter(|xid| xid.number >= 162).count());
    assert_eq!(of_class(Class::Inspection), 4);
    assert!(CATALOG.iter().all(|xid| (xid.action == Action::Xid154) == (xid.number == 154)));
}

#[test]
fn an_xid_is_called_by_its_name_where_there_is_one() {
    assert_eq!(EventKind::Xid(79).to_string(), "Xid 79 (GPU has fallen off the bus)");
    assert_eq!(EventKind::Xid(1234).to_string(), "Xid 1234");
    assert_eq!(EventKind::Xid(999).to_string(), "Xid 999 (one that NVML does not know)");
}

#[test]
fn by_default_every_xid_counts_but_the_six_of_applications() {
    let checks = Checks::default();
    for xid in CATALOG {
        let ignored = [13, 31, 43, 45, 68, 109].contains(&xid.number);
        assert_eq!(checks.counts(EventKind::Xid(xid.number)), !ignored, "{xid:?}");
    }
    for kind in [
        EventKind::Xid(999),
        EventKind::Xid(61),
        EventKind::DoubleBitEcc,
        EventKind::FatalPoison,
        EventKind::GpuUnavailable,
        EventKind::RecoveryAction,
    ] {
        assert!(checks.counts(kind), "{kind}");
    }
    assert!(!checks.counts(EventKind::MigConfigChange));
    assert!(!checks.none());
}

#[test]
fn the_two_variables_do_together_what_nvidias_documentation_says() {
    // Disabled, enabled, and whether these count: Xid 79, Xid 13 (ignored by default), Xid 999 (unknown), double-bit
    // ECC errors; and whether nothing is left to listen for.
    for (disabled, enabled, expected, none) in [
        ("", "", [true, false, true, true], false),
        ("all", "", [false, false, false, false], true),
        ("ALL", "", [false, false, false, false], true),
        ("xids", "", [false, false, false, true], false),
        ("79", "", [false, false, true, true], false),
        ("79,999", "", [false, false, false, true], false),
        ("", "13", [true, true, true, true], false),
        ("79", "79", [true, false, true, true], false),
        ("all", "79", [true, false, false, false], false),
        ("all", "xids", [true, true, true, false], false),
        ("all", "all", [true, true, true, true], false),
        ("xids", "79", [true, false, false, true], false),
        ("xids", "all", [true, true, true, true], false),
        ("", "all", [true, true, true, true], false),
        ("79", "xids", [true, true, true, true], false),
    ] {
        let checks = checks(disabled, enabled, true);
        let kinds = [EventKind::Xid(79), EventKind::Xid(13), EventKind::Xid(999), EventKind::DoubleBitEcc];
        assert_eq!(
            kinds.map(|kind| checks.counts(kind)),
            expected,
            "disabled {disabled:?}, enabled {enabled:?}"
        );
        assert_eq!(checks.none(), none, "disabled {disabled:?}, enabled {enabled:?}");
        assert!(!checks.counts(EventKind::MigConfigChange));
    }
}

#[test]
fn all_but_one_xid_disabled_leaves_exactly_that_one() {
    let checks = checks("all", "79", true);
    for xid in CATALOG {
        assert_eq!(checks.counts(EventKind::Xid(xid.number)), xid.number == 79, "{xid:?}");
    }
    assert!(!checks.counts(EventKind::RecoveryAction));
}

#[test]
fn xids_that_nobody_knows_follow_the_configuration() {
    for (enabled, expected) in [("", false), ("999", true), ("xids", true), ("all", true), ("79", false)] {
        assert_eq!(checks("", enabled, false).counts(EventKind::Xid(999)), expected, "{enabled:?}");
    }
    assert!(checks("", "", false).counts(EventKind::Xid(79)));
    assert!(!checks("", "", false).counts(EventKind::Xid(61)));
}

#[test]
fn the_words_of_the_variables_are_read_in_either_case_and_others_refused() {
    for (text, check) in [
        ("all", Check::All),
        ("All", Check::All),
        (" XIDS ", Check::Xids),
        ("79", Check::Xid(79)),
        ("0", Check::Xid(0)),
    ] {
        assert_eq!(text.parse(), Ok(check));
        assert_eq!(check.to_string().parse(), Ok(check));
    }
    for text in ["", "none", "-1", "+79", "7 9", "79,80", "0x4f", "99999999999999999999"] {
        let error: InvalidCheck = text.parse::<Check>().unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("{text:?} is no health check: all, xids or the number of an Xid (79) would be")
        );
    }
}

#[test]
fn the_rule_in_force_depends_on_what_the_driver_tells() {
    let (new, off) = (gpu(0), HealthPolicy { recovery: Recovery::Off, ..HealthPolicy::default() });
    let old = Gpu { recovery_action: None, ..gpu(1) };
    let auto = HealthPolicy::default();
    assert_eq!(rule_for(&new, &auto), Rule::ByRecoveryAction);
    assert_eq!(rule_for(&old, &auto), Rule::ByReset);
    assert_eq!([rule_for(&new, &off), rule_for(&old, &off)], [Rule::Off; 2]);
    assert!(Rule::ByReset.to_string().contains("does not tell"));
}
