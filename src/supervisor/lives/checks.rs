//! What must hold after each step.

use std::fmt;

use crate::resource::DeviceId;

/// Which invariant was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Two pods have the same hardware: a whole GPU and a slice of it, or one device twice.
    GivenTwice,
    /// A device that a running pod holds is missing in a list that the kubelet dereferences.
    Missing,
    /// It is listed without the NUMA node that it had.
    Topology,
    /// A device that was just allocated is missing when the kubelet looks it up.
    Crash,
    /// A device left a list without having been unhealthy in one.
    LeftAtOnce,
    /// A device is offered as healthy for which there is a reason not to.
    Healthy,
    /// After everything has calmed down, the lists are not what the configuration makes of the node.
    NotConverged,
    /// Lists are sent again and again that say nothing new: the kubelet writes its checkpoint for each.
    Floods,
    /// The supervisor wakes again and again for nothing.
    Spins,
}

/// A broken invariant, and what it was about.
#[derive(Debug, Clone)]
pub(super) struct Violation {
    pub(super) kind: Kind,
    text: String,
}

impl Violation {
    pub(super) fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.text)
    }
}

/// Whether two devices in the hands of two pods are the same hardware. `exists` says whether the driver has a slice: one
/// that it does not have any more is nobody's.
pub(super) fn conflict(one: &DeviceId, other: &DeviceId, exists: impl Fn(&str) -> bool) -> bool {
    let uuid = |id: &DeviceId| id.as_str().split("::").next().unwrap_or_default().to_owned();
    let is_shared = |id: &DeviceId| id.as_str().contains("::");
    let (a, b) = (uuid(one), uuid(other));
    if a == b {
        return !(is_shared(one) && is_shared(other));
    }
    // Both kinds of UUIDs say of which GPU they are.
    a.get(4..12) == b.get(4..12)
        && match (a.starts_with("GPU-"), b.starts_with("GPU-")) {
            (true, false) => exists(&b),
            (false, true) => exists(&a),
            _ => false,
        }
}
