//! What is known of the devices that pods hold, as the kubelet tells it when asked.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use crate::kubelet::{Holding, PodResourcesError};
use crate::resource::{DeviceId, ResourceName};

/// How long an answer about what pods hold is good, so that the kubelet is asked gently.
const HELD_FRESH: Duration = Duration::from_secs(5);

/// How soon an unanswered question is put again, and how many in a row mean that the kubelet cannot be asked here.
const ASK_AGAIN: Duration = Duration::from_millis(250);
const GIVE_UP: u32 = 3;

/// Questions, answers, and what follows from them.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// When the last question was put, and whether it is still open.
    asked: Option<Instant>,
    waiting: bool,
    /// The last answer, and when its question was put. It counts until there is another: a kubelet that is restarting
    /// must not make us forget what its pods hold.
    holdings: Vec<Holding>,
    answered: Option<Instant>,
    /// Questions in a row that had no answer while the kubelet followed our lists.
    failures: u32,
}

impl Held {
    /// Whether it is time for a question, about devices of which the last began to leave at `newest`. If so, it counts
    /// as put, and its answer goes to [`Held::take`].
    pub(super) fn ask(&mut self, newest: Instant) -> bool {
        let settled = self.answered.is_some_and(|answered| answered > newest) || self.failures >= GIVE_UP;
        let pause = if settled { HELD_FRESH } else { ASK_AGAIN };
        if self.asked.is_some_and(|asked| asked.elapsed() < pause) {
            return false;
        }
        self.ask_now()
    }

    /// Whether it is time for another question after one that had no answer.
    pub(super) fn ask_soon(&mut self) -> bool {
        self.asked.is_none_or(|asked| asked.elapsed() >= ASK_AGAIN) && self.ask_now()
    }

    /// Whether a question can be put, which then counts as put.
    fn ask_now(&mut self) -> bool {
        let free = !self.waiting;
        if free {
            self.waiting = true;
            self.asked = Some(Instant::now());
        }
        free
    }

    /// Takes an answer. `watched`: whether the kubelet follows our lists; one that is stopping or starting says nothing
    /// of whether it can be asked.
    pub(super) fn take(&mut self, answer: Result<Vec<Holding>, PodResourcesError>, watched: bool) {
        self.waiting = false;
        match answer {
            Ok(holdings) => {
                self.holdings = holdings;
                self.answered = self.asked;
                self.failures = 0;
            }
            Err(error) if !watched => debug!(%error, "the kubelet is away"),
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                if self.failures == GIVE_UP {
                    warn!(%error, "a device that has gone leaves the list by the time since it was last handed out \
                          (--removal-grace), unless the kubelet's last answer says that a pod holds it");
                }
            }
        }
    }

    /// Whether the kubelet has ever answered.
    pub(super) fn is_known(&self) -> bool {
        self.answered.is_some()
    }

    /// Whether a first answer is still hoped for.
    pub(super) fn is_awaited(&self) -> bool {
        !self.is_known() && self.failures < GIVE_UP
    }

    /// The last answer.
    pub(super) fn holdings(&self) -> &[Holding] {
        &self.holdings
    }

    /// Whether `id` of `resource`, which began to leave at `since`, is free as far as can be known.
    pub(super) fn lets_go(&self, resource: &ResourceName, id: &DeviceId, since: Instant) -> bool {
        let known = self.answered.is_some_and(|answered| answered > since) || self.failures >= GIVE_UP;
        let is_it = |holding: &Holding| holding.device == *id && holding.resource == resource.as_str();
        known && !self.holdings.iter().any(is_it)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> DeviceId {
        DeviceId(text.to_owned())
    }

    fn gpu() -> ResourceName {
        ResourceName::gpu()
    }

    fn holding(device: &str) -> Holding {
        let text = |text: &str| text.to_owned();
        Holding {
            resource: gpu().to_string(),
            device: id(device),
            namespace: text("default"),
            pod: text("pod"),
            container: text("main"),
        }
    }

    fn failure() -> Result<Vec<Holding>, PodResourcesError> {
        Err(PodResourcesError::new("/nonexistent".as_ref(), "nobody is there"))
    }

    #[test]
    fn nothing_leaves_before_the_kubelet_was_asked_about_it() {
        let mut held = Held::default();
        let since = Instant::now();
        assert!(!held.lets_go(&gpu(), &id("a"), since));
        assert!(held.ask(since));
        assert!(!held.ask(since), "one question at a time");
        held.take(Ok(vec![holding("a")]), true);
        assert!(!held.lets_go(&gpu(), &id("a"), since), "a pod holds it");
        assert!(held.lets_go(&gpu(), &id("b"), since));
        let other = "nvidia.com/mig-1g.10gb".parse().unwrap();
        assert!(held.lets_go(&other, &id("a"), since), "it is held under another name");
        assert!(
            !held.lets_go(&gpu(), &id("b"), Instant::now()),
            "the answer is older than the question would be"
        );
        assert!(!held.ask(since), "an answer is good for a while");
    }

    #[test]
    fn time_alone_decides_only_after_several_questions_in_vain() {
        let mut held = Held::default();
        let since = Instant::now();
        for n in 1..=GIVE_UP {
            assert!(!held.lets_go(&gpu(), &id("a"), since), "after {n} questions");
            held.take(failure(), true);
        }
        assert!(held.lets_go(&gpu(), &id("a"), since));
    }

    #[test]
    fn a_kubelet_that_is_away_makes_nothing_leave() {
        let mut held = Held::default();
        let since = Instant::now();
        assert!(held.ask(since));
        held.take(Ok(vec![holding("a")]), true);
        for _ in 0..10 {
            held.take(failure(), false);
        }
        assert!(!held.lets_go(&gpu(), &id("a"), since));
        for _ in 0..10 {
            held.take(failure(), true);
        }
        assert!(!held.lets_go(&gpu(), &id("a"), since), "the last answer counts");
    }
}
