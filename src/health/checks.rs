//! Which events make a device sick, and how it gets well: what the configuration says, as checked values.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{EventKind, xid};
use crate::inventory::Gpu;

/// The Xids that do not count unless they are enabled by name: errors of an application, after which the GPU should
/// still be healthy. These are the ones that NVIDIA's plugin ignores (its `internal/rm/health.go`).
pub const IGNORED_BY_DEFAULT: [u64; 6] = [13, 31, 43, 45, 68, 109];

/// One word of `DP_DISABLE_HEALTHCHECKS` or `DP_ENABLE_HEALTHCHECKS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// `all`: whatever can be checked.
    All,
    /// `xids`: all Xids.
    Xids,
    /// `79`: this Xid.
    Xid(u64),
}

/// The text names no check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no health check: all, xids or the number of an Xid (79) would be")]
pub struct InvalidCheck(String);

impl FromStr for Check {
    type Err = InvalidCheck;

    fn from_str(text: &str) -> Result<Self, InvalidCheck> {
        let word = text.trim().to_ascii_lowercase();
        match word.as_str() {
            "all" => Ok(Self::All),
            "xids" => Ok(Self::Xids),
            // A sign in front is not how anybody writes an Xid, though `u64` would take it.
            _ if word.starts_with('+') => Err(InvalidCheck(text.to_owned())),
            _ => word.parse().ok().map(Self::Xid).ok_or_else(|| InvalidCheck(text.to_owned())),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.pad("all"),
            Self::Xids => f.pad("xids"),
            Self::Xid(number) => number.fmt(f),
        }
    }
}

/// Which events count.
///
/// What is enabled by name counts, whatever else is said; of the rest, what is disabled by name or ignored by default
/// does not; an Xid that is in no catalogue counts as the configuration says; everything else counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checks {
    disabled: BTreeSet<Check>,
    enabled: BTreeSet<Check>,
    unknown_xids_count: bool,
}

impl Default for Checks {
    fn default() -> Self {
        Self::new(&[], &[], true)
    }
}

impl Checks {
    /// From `DP_DISABLE_HEALTHCHECKS`, `DP_ENABLE_HEALTHCHECKS`, and whether Xids count that are in no catalogue.
    pub fn new(disabled: &[Check], enabled: &[Check], unknown_xids_count: bool) -> Self {
        let set = |checks: &[Check]| checks.iter().copied().collect();
        Self { disabled: set(disabled), enabled: set(enabled), unknown_xids_count }
    }

    /// Whether an event of this kind makes its devices sick. For [`EventKind::RecoveryAction`], which itself harms
    /// nobody: whether a GPU counts as sick while it needs something done.
    pub fn counts(&self, kind: EventKind) -> bool {
        let named = |checks: &BTreeSet<Check>| match kind {
            EventKind::Xid(number) => {
                [Check::All, Check::Xids, Check::Xid(number)].iter().any(|check| checks.contains(check))
            }
            _ => checks.contains(&Check::All),
        };
        if kind == EventKind::MigConfigChange {
            return false;
        }
        if named(&self.enabled) {
            return true;
        }
        if named(&self.disabled) {
            return false;
        }
        match kind {
            EventKind::Xid(number) if IGNORED_BY_DEFAULT.contains(&number) => false,
            EventKind::Xid(number) => self.unknown_xids_count || xid::find(number).is_some(),
            _ => true,
        }
    }

    /// Whether everything is switched off, so that nothing needs to be listened for but changes of the MIG
    /// configuration.
    pub fn none(&self) -> bool {
        self.disabled.contains(&Check::All) && self.enabled.is_empty()
    }
}

/// Whether and when a sick device is well again (`--health-recovery`, `--health-recovery-quiet`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Never, until this program starts again, as with NVIDIA's plugin. A slice that was destroyed and made anew is
    /// another device, and what was known of the old one does not concern it.
    Off,
    /// When the driver has nothing against it and nothing happened for this long.
    Auto {
        /// The quiet period of a device that was not sick lately.
        quiet: Duration,
    },
}

impl Default for Recovery {
    fn default() -> Self {
        Self::Auto { quiet: Duration::from_secs(10) }
    }
}

/// What the configuration says about health.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HealthPolicy {
    /// Which events count.
    pub checks: Checks,
    /// How a sick device gets well.
    pub recovery: Recovery,
}

/// Which rule of recovery holds for a GPU and its slices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// They stay sick.
    Off,
    /// The driver tells what the GPU needs, and it needs nothing.
    ByRecoveryAction,
    /// The driver does not tell, so the GPU has to be reset or the instance made anew.
    ByReset,
}

/// The rule of recovery that holds for this GPU.
pub fn rule_for(gpu: &Gpu, policy: &HealthPolicy) -> Rule {
    match (policy.recovery, gpu.recovery_action) {
        (Recovery::Off, _) => Rule::Off,
        (Recovery::Auto { .. }, Some(_)) => Rule::ByRecoveryAction,
        (Recovery::Auto { .. }, None) => Rule::ByReset,
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Off => "a sick device stays sick until this program starts again",
            Self::ByRecoveryAction => {
                "a sick device recovers when the driver says that its GPU needs nothing, and all has been quiet"
            }
            Self::ByReset => {
                "the driver does not tell what the GPU needs, so a sick device recovers when its GPU was reset or its \
                 instance made anew, and all has been quiet"
            }
        })
    }
}
