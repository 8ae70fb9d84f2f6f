//! Events about instances that no inventory has shown yet: an instance can be made and fail before it is found, also in
//! the place of another.

use std::collections::VecDeque;
use std::mem;

use super::{HealthEvent, Moment};

/// How many are kept; the oldest leaves.
pub(super) const MAX_WAITING: usize = 64;

/// The events, the oldest first, and when each was heard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Waiting {
    events: VecDeque<(HealthEvent, Moment)>,
    /// How many left without being tried.
    forgotten: usize,
}

impl Waiting {
    /// Keeps an event; one like it takes its place in time, so that a storm fills nothing.
    pub(super) fn keep(&mut self, event: &HealthEvent, heard: Moment) {
        let alike = |(known, _): &&mut (HealthEvent, Moment)| {
            known.gpu_uuid == event.gpu_uuid
                && known.gpu_instance == event.gpu_instance
                && known.compute_instance == event.compute_instance
                && known.kind == event.kind
        };
        if let Some((_, last)) = self.events.iter_mut().find(alike) {
            *last = heard.max(*last);
            return;
        }
        if self.events.len() == MAX_WAITING {
            self.events.pop_front();
            self.forgotten += 1;
        }
        self.events.push_back((event.clone(), heard));
    }

    /// Drops those that were heard before that.
    pub(super) fn drop_before(&mut self, began: Moment) {
        self.events.retain(|(_, heard)| *heard >= began);
    }

    /// All of them, to be tried again.
    pub(super) fn take(&mut self) -> VecDeque<(HealthEvent, Moment)> {
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
