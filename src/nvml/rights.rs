//! What this process may hear of: read from what it can do, since NVML registers events also for those to whom the
//! kernel driver never delivers one.

use std::fs::{self, File};
use std::path::Path;

use super::caps::{MigMinors, capability_node};
use super::places::Roots;
use crate::inventory::{EventRight, below};

/// The bit of `CAP_SYS_ADMIN` (linux/capability.h).
const SYS_ADMIN: u32 = 21;

/// What this process has at the moment; `None` where it cannot be told.
///
/// Whether libnvidia-ml opens the node of mig/monitor by itself where it can is not known; it is taken to.
pub(super) fn event_right(roots: &Roots) -> Option<EventRight> {
    // In any procfs `self` is whoever reads, or nobody, where the process is not in that procfs's PID namespace.
    let read = |name: &str| {
        let own = fs::read_to_string(roots.proc.join("self").join(name));
        own.or_else(|_| fs::read_to_string(Path::new("/proc/self").join(name))).ok()
    };
    let monitor = MigMinors::monitor(&roots.proc).is_some_and(|minor| {
        let node = capability_node(roots, minor);
        File::open(below(&roots.dev, &node.path)).is_ok()
    });
    decide(read("status").as_deref(), read("uid_map").as_deref(), monitor)
}

/// The same from the contents of `/proc/self/status` and `/proc/self/uid_map`, and whether the node of mig/monitor can
/// be opened.
fn decide(status: Option<&str>, uid_map: Option<&str>, monitor: bool) -> Option<EventRight> {
    match is_admin(status, uid_map) {
        Some(true) => Some(EventRight::Admin),
        _ if monitor => Some(EventRight::Monitor),
        Some(false) => Some(EventRight::Nothing),
        None => None,
    }
}

/// Whether the process has `CAP_SYS_ADMIN` in the initial user namespace, which maps each ID to itself. A kernel without
/// user namespaces has no such map.
fn is_admin(status: Option<&str>, uid_map: Option<&str>) -> Option<bool> {
    let effective = status?.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
    let is_initial = |map: &str| map.split_whitespace().eq(["0", "0", "4294967295"]);
    Some(effective >> SYS_ADMIN & 1 == 1 && uid_map.is_none_or(is_initial))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INITIAL: &str = "         0          0 4294967295\n";

    fn status(effective: &str) -> String {
        format!(
            "Name:\tmig-device-plug\nCapPrm:\t000001ffffffffff\nCapEff:\t{effective}\nCapBnd:\t000001ffffffffff\n"
        )
    }

    #[test]
    fn an_administrator_of_the_initial_user_namespace_hears_all() {
        let (all, admin) = (status("000001ffffffffff"), status("0000000000200000"));
        let (none, but_admin) = (status("0000000000000000"), status("000001ffffdfffff"));
        // What Kubernetes maps for a pod with hostUsers: false, and what a user's own namespace maps.
        let (pod, own) = ("0 2148204544 65536\n", "0 1000 1\n");
        for (status, uid_map, monitor, right) in [
            (&all, Some(INITIAL), false, EventRight::Admin),
            (&admin, Some(INITIAL), true, EventRight::Admin),
            (&admin, None, false, EventRight::Admin),
            (&but_admin, Some(INITIAL), false, EventRight::Nothing),
            (&none, Some(INITIAL), true, EventRight::Monitor),
            (&all, Some(pod), false, EventRight::Nothing),
            (&all, Some(pod), true, EventRight::Monitor),
            (&all, Some(own), false, EventRight::Nothing),
        ] {
            assert_eq!(decide(Some(status), uid_map, monitor), Some(right), "{status} {uid_map:?} {monitor}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_no_right_and_no_lack_of_one() {
        for status in [None, Some(""), Some("CapEff:\tall\n")] {
            assert_eq!(decide(status, Some(INITIAL), false), None);
            assert_eq!(decide(status, Some(INITIAL), true), Some(EventRight::Monitor));
        }
    }

    #[test]
    fn the_rights_of_this_very_process_can_be_read() {
        let empty = tempfile::tempdir().unwrap();
        let roots = Roots { dev: empty.path().into(), proc: empty.path().into(), sys: "/sys".into() };
        // Which it is depends on who runs the test.
        assert!(matches!(event_right(&roots), Some(EventRight::Admin | EventRight::Nothing)));
    }
}
