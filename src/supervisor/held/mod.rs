//! What is known of the devices that pods hold, and when that frees one.
//!
//! ```text
//!   a look:  List ──► the checkpoint is read           (List makes the kubelet forget pods that ended)
//!   free:    a look ──► the list is sent again ──► a look that finds a newer checkpoint without the device
//! ```
//!
//! The kubelet writes its checkpoint for every list that it takes in. What is in it is what the kubelet looks up in our
//! lists, now and after its next start; what podresources says is only believed where it names a device.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::kubelet::{Checkpoint, CheckpointError, Claim, FileId, Look};
use crate::resource::DeviceId;

/// How long a look is good, so that the kubelet is asked gently.
const FRESH: Duration = Duration::from_secs(5);

/// How soon another look follows where something is waited for, and how many unanswered questions in a row mean that
/// podresources cannot be asked here.
const AGAIN: Duration = Duration::from_millis(250);
const GIVE_UP: u32 = 3;

/// How long a newer checkpoint is looked for after a list was sent again. The kubelet writes it within milliseconds.
const WRITTEN: Duration = Duration::from_secs(2);

/// The first and the longest pause between two lists that are sent again for a device that the checkpoint still has:
/// each of them is a file that the kubelet writes.
const SEND_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// A device that is waited for: its resource, its ID, and since when.
pub(super) type Awaited<'a> = (&'a str, &'a DeviceId, Instant);

/// Looks, and what follows from them.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// When the last look began, and whether it is under way.
    asked: Option<Instant>,
    waiting: bool,
    /// What podresources answered last. It counts until there is another answer: a kubelet that is restarting must not
    /// make us forget what its pods hold.
    listed: Option<Vec<Claim>>,
    /// The last checkpoint that could be read.
    written: Option<Checkpoint>,
    /// When the last look began that had an answer of podresources, and which file it found, if any.
    base: Option<(Instant, Option<FileId>)>,
    /// When the last look began after which there was a newer checkpoint.
    proven: Option<Instant>,
    /// Questions in a row that had no answer while the kubelet followed our lists.
    failures: u32,
    /// Why nothing can be known from the checkpoint, since the kubelet should have written it.
    trouble: Option<String>,
    /// When a list was last sent again, how often in a row in vain, and whether a newer checkpoint is looked for since.
    sent_again: Option<Instant>,
    in_vain: u32,
    expected: bool,
}

impl Held {
    /// Whether it is time for a look, for devices of which the last began to leave at `newest`. If so, it counts as
    /// begun, and its result goes to [`Held::take`].
    pub(super) fn ask(&mut self, newest: Instant) -> bool {
        let expected = self.expected && self.sent_again.is_some_and(|sent| sent.elapsed() < WRITTEN);
        let in_vain = self.failures >= GIVE_UP || self.trouble.is_some();
        let seen = in_vain || self.base.is_some_and(|(began, _)| began > newest);
        let pause = if seen && !expected { FRESH } else { AGAIN };
        self.asked.is_none_or(|asked| asked.elapsed() >= pause) && self.ask_now()
    }

    /// Whether it is time for another look after one that found nothing.
    pub(super) fn ask_soon(&mut self) -> bool {
        self.asked.is_none_or(|asked| asked.elapsed() >= AGAIN) && self.ask_now()
    }

    /// Whether a look is under way.
    pub(super) fn is_asking(&self) -> bool {
        self.waiting
    }

    /// Whether a look can begin, which then counts as begun.
    fn ask_now(&mut self) -> bool {
        let free = !self.waiting;
        if free {
            self.waiting = true;
            self.asked = Some(Instant::now());
        }
        free
    }

    /// Takes what a look found. `watched`: whether the kubelet follows our lists; one that is stopping or starting says
    /// nothing of whether it can be asked.
    pub(super) fn take(&mut self, look: Look, watched: bool) {
        self.waiting = false;
        let answered = look.listed.is_ok();
        match look.listed {
            Ok(listed) => {
                if self.listed.as_ref() != Some(&listed) {
                    self.in_vain = 0;
                }
                self.listed = Some(listed);
                self.failures = 0;
            }
            Err(error) if !watched => debug!(%error, "the kubelet is away"),
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                if self.failures == GIVE_UP {
                    self.listed = None;
                    warn!(%error, "only the kubelet's checkpoint says what pods hold: a device that a pod held leaves \
                          the list when the kubelet admits another pod after that one's end");
                }
            }
        }
        let Ok(file) = self.take_checkpoint(look.checkpoint, watched) else {
            self.base = None;
            return;
        };
        if let Some((began, before)) = self.base
            && file.is_some()
            && before != file
        {
            self.proven = Some(began);
            self.expected = false;
        }
        if answered || self.failures >= GIVE_UP {
            self.base = self.asked.map(|asked| (asked, file));
        }
    }

    /// The file that was read, or `None` where there is none; an error where it cannot be used.
    fn take_checkpoint(
        &mut self,
        read: Result<Checkpoint, CheckpointError>,
        watched: bool,
    ) -> Result<Option<FileId>, CheckpointError> {
        let error = match read {
            Ok(checkpoint) => {
                let file = checkpoint.file;
                self.written = Some(checkpoint);
                if self.trouble.take().is_some() {
                    info!("the kubelet's checkpoint can be read again");
                }
                return Ok(Some(file));
            }
            Err(error) => error,
        };
        // A kubelet that follows our lists has written it.
        if watched && self.trouble.is_none() {
            let trouble = format!(
                "{error}: a device that has gone or is no longer offered stays listed, since it is not known whether a \
                 pod holds it"
            );
            warn!("{trouble}");
            self.trouble = Some(trouble);
        }
        if error.is_missing() { Ok(None) } else { Err(error) }
    }

    /// Whether anything has been said of what pods hold.
    pub(super) fn is_known(&self) -> bool {
        self.listed.is_some() || self.written.is_some()
    }

    /// Whether a first word is still hoped for.
    pub(super) fn is_awaited(&self) -> bool {
        !self.is_known() && self.failures < GIVE_UP
    }

    /// Why it cannot be known whether a device is free.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// All that pods may hold, each device once.
    pub(super) fn claims(&self) -> impl Iterator<Item = &Claim> {
        let written = self.written.iter().flat_map(|checkpoint| &checkpoint.claims);
        let all = self.listed.iter().flatten().chain(written);
        let all: BTreeMap<_, _> = all.map(|claim| ((&claim.resource, &claim.device), claim)).collect();
        all.into_values()
    }

    /// Whether `id` of `resource`, which began to leave at `since`, is free.
    pub(super) fn lets_go(&self, resource: &str, id: &DeviceId, since: Instant) -> bool {
        let is_proven = self.trouble.is_none() && self.proven.is_some_and(|proven| proven > since);
        is_proven && self.claims().all(|claim| !is_it(claim, resource, id))
    }

    /// Whether a list has to be sent again, so that a newer checkpoint shows whether one of these is free; it counts as
    /// sent then.
    pub(super) fn send_again<'a>(&mut self, awaited: impl Iterator<Item = Awaited<'a>>) -> bool {
        let Some((asked, _)) = self.base.filter(|_| !self.waiting) else { return false };
        let mut newest = None;
        let mut due = false;
        for (resource, id, since) in awaited.filter(|(_, _, since)| *since < asked) {
            newest = newest.max(Some(since));
            let listed = self.listed.iter().flatten().any(|claim| is_it(claim, resource, id));
            due |= !listed && !self.lets_go(resource, id, since);
        }
        if !due {
            return false;
        }
        if newest > self.sent_again {
            self.in_vain = 0;
        }
        if let (Some(sent), Some(times)) = (self.sent_again, self.in_vain.checked_sub(1))
            && sent.elapsed() < SEND_AGAIN.0.saturating_mul(1 << times.min(10)).min(SEND_AGAIN.1)
        {
            return false;
        }
        self.in_vain = self.in_vain.saturating_add(1);
        self.sent_again = Some(Instant::now());
        self.expected = true;
        true
    }
}

fn is_it(claim: &Claim, resource: &str, id: &DeviceId) -> bool {
    claim.device == *id && claim.resource == resource
}

#[cfg(test)]
mod tests;
