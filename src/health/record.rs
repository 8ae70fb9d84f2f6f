//! What stands against one GPU or one slice, and how long it has to be quiet.

use std::time::{Duration, SystemTime};

use super::EventKind;
use crate::inventory::{RecoveryAction, Trouble, TroubleKind};
use crate::resource::Reason;

/// Time on a clock that never goes back, since the program's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(pub Duration);

impl Moment {
    /// This long after it.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }

    /// How long after `earlier` it is; nothing where it is not.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// How many kinds of events are told apart in one illness. What comes beyond them keeps the device sick and starts
/// the quiet period anew like any other, but is not among its reasons.
pub(super) const MAX_KINDS: usize = 8;

/// How long a device has to be well before its next illness is no relapse.
pub(super) const FORGIVEN_AFTER: Duration = Duration::from_hours(1);

/// What the doubling of the quiet period ends at, where it was not configured longer.
pub(super) const LONGEST_QUIET: Duration = Duration::from_mins(10);

/// The state of one GPU, or of one slice by itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Record {
    /// Why it could not be used or read the last time that it could not, and when that look began.
    trouble: Option<(Trouble, Moment)>,
    /// What the GPU needed.
    asks: Option<RecoveryAction>,
    /// The events that counted, each kind when it first came, in that order.
    events: Vec<(EventKind, SystemTime)>,
    /// When there last was evidence of illness.
    last: Moment,
    /// Whether the GPU was reset since then.
    reset_since: bool,
    /// How many illnesses followed one another, each within an hour of the end of the one before.
    relapses: u32,
    /// Since when it has been well; `None` while it is sick.
    well_since: Option<Moment>,
}

impl Record {
    pub(super) fn is_sick(&self) -> bool {
        self.well_since.is_none()
    }

    /// An event; whether it adds a reason.
    pub(super) fn event(&mut self, kind: EventKind, at: SystemTime, now: Moment) -> bool {
        self.sicken(now);
        let news = self.events.len() < MAX_KINDS && self.events.iter().all(|(known, _)| *known != kind);
        if news {
            self.events.push((kind, at));
        }
        news
    }

    /// It is lost or cannot be read, as a look tells that began at `began`; whether that is news. A GPU that is lost
    /// cannot come back without a reset, which counts for an event as well unless the event may have come later. One
    /// that only could not be read needs none for that.
    pub(super) fn trouble(&mut self, trouble: &Trouble, began: Moment) -> bool {
        let lost = trouble.kind == TroubleKind::Lost;
        let needs_no_reset = self.events.is_empty() && (lost || self.asks.is_none());
        let reset_since = self.reset_since || needs_no_reset || lost && began > self.last;
        self.sicken(began);
        self.reset_since = reset_since;
        let before = self.trouble.replace((trouble.clone(), began));
        before.is_none_or(|(before, _)| before.kind != trouble.kind)
    }

    /// Whether the look that began then could not read it.
    pub(super) fn was_unreadable(&self, looked: Moment) -> bool {
        self.trouble.as_ref().is_some_and(|(_, began)| *began == looked)
    }

    /// The GPU needs something; whether that is news.
    pub(super) fn asks(&mut self, action: RecoveryAction, now: Moment) -> bool {
        self.sicken(now);
        self.asks.replace(action) != Some(action)
    }

    /// What the GPU was found to need, while that is a reason.
    pub(super) fn asked(&self) -> Option<RecoveryAction> {
        self.asks
    }

    /// The GPU was reset, as a look tells that began at `began`. One that began before the last evidence may have
    /// seen a reset from before it.
    pub(super) fn was_reset(&mut self, began: Moment) {
        self.reset_since |= began > self.last;
    }

    /// The driver was unloaded just now, which resets every GPU.
    pub(super) fn driver_unloaded(&mut self) {
        self.reset_since = true;
    }

    pub(super) fn reset_since(&self) -> bool {
        self.reset_since
    }

    /// When the quiet period ends, if nothing happens before.
    pub(super) fn due(&self, quiet: Duration) -> Moment {
        self.last.after(damped(quiet, self.relapses))
    }

    /// Whether a look that began then is late enough to make it well.
    pub(super) fn may_end(&self, quiet: Duration, began: Moment) -> bool {
        began > self.last && began >= self.due(quiet)
    }

    /// It is well again; the reasons that no longer hold.
    pub(super) fn recover(&mut self, began: Moment) -> Vec<Reason> {
        let reasons = self.reasons();
        self.trouble = None;
        self.asks = None;
        self.events.clear();
        self.well_since = Some(began);
        reasons
    }

    /// Whether it was well for so long that nothing has to be remembered.
    pub(super) fn is_forgiven(&self, now: Moment) -> bool {
        self.well_since.is_some_and(|since| now.since(since) >= FORGIVEN_AFTER)
    }

    pub(super) fn reasons(&self) -> Vec<Reason> {
        let trouble = self.trouble.clone().map(|(trouble, _)| Reason::from(trouble));
        let asks = self.asks.map(Reason::RecoveryAction);
        let events = self.events.iter().map(|(kind, at)| Reason::Event(*kind, *at));
        trouble.into_iter().chain(asks).chain(events).collect()
    }

    fn sicken(&mut self, now: Moment) {
        if let Some(since) = self.well_since.take() {
            let relapsed = now.since(since) < FORGIVEN_AFTER;
            self.relapses = if relapsed { self.relapses.saturating_add(1) } else { 0 };
        }
        self.last = self.last.max(now);
        self.reset_since = false;
    }
}

/// The quiet period after so many relapses.
fn damped(quiet: Duration, relapses: u32) -> Duration {
    let factor = 1_u32.checked_shl(relapses).unwrap_or(u32::MAX);
    quiet.saturating_mul(factor).min(LONGEST_QUIET.max(quiet))
}
