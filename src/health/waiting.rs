//! Events about instances that no inventory has shown yet: an instance can be made and fail before it is found, also in
//! the place of another.

use std::collections::VecDeque;
use std::mem;

use super::{HealthEvent, Moment};

/// How many are kept; the oldest leaves.
pub(super) const MAX_WAITING: usize = 64;

/// The events, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Waiting {
    events: VecDeque<Kept>,
    /// How many left without being tried.
    forgotten: usize,
}

/// An event, and others like it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    /// The first of them.
    pub(super) event: HealthEvent,
    /// When that was heard. A look that began later and does not show the instance says that there was none.
    pub(super) first: Moment,
    /// When the last of them was heard.
    pub(super) last: Moment,
}

impl Waiting {
    /// Keeps an event; ones like it are one, so that a storm fills nothing.
    pub(super) fn keep(&mut self, event: &HealthEvent, heard: Moment) {
        self.put(Kept { event: event.clone(), first: heard, last: heard });
    }

    /// Keeps what was taken.
    pub(super) fn put(&mut self, kept: Kept) {
        let is_like = |known: &HealthEvent| {
            known.gpu_uuid == kept.event.gpu_uuid
                && known.gpu_instance == kept.event.gpu_instance
                && known.compute_instance == kept.event.compute_instance
                && known.kind == kept.event.kind
        };
        if let Some(known) = self.events.iter_mut().find(|known| is_like(&known.event)) {
            known.last = kept.last.max(known.last);
            return;
        }
        if self.events.len() == MAX_WAITING {
            self.events.pop_front();
            self.forgotten += 1;
        }
        self.events.push_back(kept);
    }

    /// Drops those of which the last was heard before that.
    pub(super) fn drop_before(&mut self, began: Moment) {
        self.events.retain(|kept| kept.last >= began);
    }

    /// When the first of them was heard.
    pub(super) fn oldest(&self) -> Option<Moment> {
        self.events.iter().map(|kept| kept.first).min()
    }

    /// All of them, to be tried again.
    pub(super) fn take(&mut self) -> VecDeque<Kept> {
        mem::take(&mut self.events)
    }

    /// What they are about is gone.
    pub(super) fn forget(&mut self) {
        self.forgotten += self.events.len();
        self.events.clear();
    }

    /// How many were forgotten since this was asked last.
    pub(super) fn take_forgotten(&mut self) -> usize {
        mem::take(&mut self.forgotten)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.events.len()
    }
}
