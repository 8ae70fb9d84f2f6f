//! GPUs that stay lost or need a reset. `nvidia-smi -r` refuses while any process has a GPU's node open, this one too,
//! and NVML cannot close one GPU: so it is shut down and opened again, and these GPUs are not asked for any more, until
//! a pause has passed that grows, or somebody says that they were reset.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::inventory::Trouble;

/// The first pause before a GPU is asked again, and the longest, in times of what it may be lost before.
const FIRST_PAUSE: u32 = 3;
const LONGEST_PAUSE: u32 = 12;

/// The GPUs, by NVML index. They outlive an opening of the library.
#[derive(Debug, Default)]
pub(super) struct Released {
    /// How long a GPU may be lost before; `None`: for ever.
    after: Option<Duration>,
    gpus: BTreeMap<u32, Gpu>,
    /// How many GPUs there were in the last look. Indices stay while the number does.
    count: u32,
}

#[derive(Debug)]
struct Gpu {
    uuid: Option<String>,
    why: Trouble,
    state: State,
    /// The next pause, in times of [`Released::after`].
    pause: u32,
}

#[derive(Debug)]
enum State {
    /// It is to be released then, if the last look found it so.
    Down { due: Instant, found: bool },
    /// It is not asked until then.
    LeftAlone { until: Instant },
}

impl Released {
    pub(super) fn new(after: Option<Duration>) -> Self {
        Self { after, ..Self::default() }
    }

    /// There are so many GPUs. With another number than before an index may be another GPU's, and all are asked.
    pub(super) fn count(&mut self, count: u32) {
        if std::mem::replace(&mut self.count, count) != count {
            self.gpus.clear();
        }
    }

    /// A look has asked the GPU: why it cannot be used before it was reset, if so.
    pub(super) fn asked(&mut self, index: u32, uuid: Option<String>, why: Option<Trouble>, now: Instant) {
        let Some((why, after)) = why.zip(self.after) else {
            self.gpus.remove(&index);
            return;
        };
        let state = State::Down { due: now + after, found: true };
        let new = Gpu { uuid, why: why.clone(), state, pause: FIRST_PAUSE };
        let gpu = self.gpus.entry(index).or_insert(new);
        gpu.why = why;
        if let State::Down { found, .. } = &mut gpu.state {
            *found = true;
        }
    }

    /// GPUs that looks leave out.
    pub(super) fn gpus(&self) -> Vec<u32> {
        self.gpus.keys().copied().filter(|index| self.left_alone(*index).is_some()).collect()
    }

    /// What is known of a GPU that looks leave out.
    pub(super) fn left_alone(&self, index: u32) -> Option<(Option<String>, Trouble)> {
        let gpu = self.gpus.get(&index).filter(|gpu| matches!(gpu.state, State::LeftAlone { .. }))?;
        let Trouble { kind, text } = &gpu.why;
        let text = format!(
            "{text}; it is not asked for, so that it can be reset, until SIGUSR2 or some time has passed"
        );
        Some((gpu.uuid.clone(), Trouble { kind: *kind, text }))
    }

    /// When one is to be released or asked again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let at = |gpu: &Gpu| match gpu.state {
            State::Down { due, found } => found.then_some(due),
            State::LeftAlone { until } => Some(until),
        };
        self.gpus.values().filter_map(at).min()
    }

    /// Leaves those alone from now on that are due: their UUIDs and why, for the log.
    pub(super) fn release(&mut self, now: Instant) -> Vec<(u32, Option<String>, String)> {
        let Some(after) = self.after else { return Vec::new() };
        let mut released = Vec::new();
        for (index, gpu) in &mut self.gpus {
            if matches!(gpu.state, State::Down { due, found: true } if due <= now) {
                gpu.state = State::LeftAlone { until: now + after * gpu.pause };
                gpu.pause = (gpu.pause * 2).min(LONGEST_PAUSE);
                released.push((*index, gpu.uuid.clone(), gpu.why.text.clone()));
            }
        }
        released
    }

    /// Lets those be asked again whose pause has passed; whether there are any. They are released at once if they are
    /// as they were.
    pub(super) fn wake(&mut self, now: Instant) -> bool {
        let mut any = false;
        for gpu in self.gpus.values_mut() {
            if matches!(gpu.state, State::LeftAlone { until } if until <= now) {
                gpu.state = State::Down { due: now, found: false };
                any = true;
            }
        }
        any
    }

    /// Lets all be asked again: somebody says that they were reset. Whether any was left alone.
    pub(super) fn resume(&mut self) -> bool {
        let any = !self.gpus().is_empty();
        self.gpus.clear();
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_mins(5);

    fn lost() -> Trouble {
        Trouble::lost("GPU is lost")
    }

    fn minutes(minutes: u64) -> Duration {
        Duration::from_mins(minutes)
    }

    #[test]
    fn a_gpu_that_stays_lost_is_left_alone_for_longer_and_longer() {
        let mut released = Released::new(Some(AFTER));
        released.count(4);
        let mut now = Instant::now();
        released.asked(3, Some("GPU-3".to_owned()), Some(lost()), now);
        released.asked(2, None, None, now);
        assert_eq!((released.gpus(), released.deadline()), (vec![], Some(now + AFTER)));
        released.asked(3, None, Some(lost()), now + minutes(4));
        assert_eq!(released.release(now + minutes(4)), vec![]);
        now += AFTER;
        let expected = [(3, Some("GPU-3".to_owned()), "GPU is lost".to_owned())];
        assert_eq!(released.release(now), expected);
        for pause in [15, 30, 60, 60] {
            assert_eq!((released.gpus(), released.deadline()), (vec![3], Some(now + minutes(pause))));
            assert_eq!(released.left_alone(3).unwrap().0.as_deref(), Some("GPU-3"));
            assert!(!released.wake(now) && released.release(now).is_empty());
            now += minutes(pause);
            assert!(released.wake(now));
            // Nothing is done before a look has found it so.
            assert_eq!((released.gpus(), released.deadline()), (vec![], None));
            assert_eq!(released.release(now), vec![]);
            released.asked(3, None, Some(lost()), now);
            assert_eq!(released.release(now), expected);
        }
        assert!(released.resume() && !released.resume());
        assert_eq!((released.gpus(), released.deadline()), (vec![], None));
    }

    #[test]
    fn a_gpu_that_is_back_is_forgotten() {
        let mut released = Released::new(Some(AFTER));
        let now = Instant::now();
        released.asked(0, None, Some(lost()), now);
        released.asked(0, None, None, now + minutes(3));
        released.asked(0, None, Some(lost()), now + minutes(4));
        assert_eq!(released.release(now + minutes(5)), vec![]);
        assert_eq!(released.deadline(), Some(now + minutes(9)));
    }

    #[test]
    fn with_another_number_of_gpus_all_are_asked() {
        let mut released = Released::new(Some(AFTER));
        let now = Instant::now();
        released.count(8);
        released.asked(7, None, Some(lost()), now);
        released.release(now + AFTER);
        released.count(8);
        assert_eq!(released.gpus(), [7]);
        released.count(7);
        assert_eq!(released.gpus(), Vec::<u32>::new());
    }

    #[test]
    fn without_a_time_nothing_is_released() {
        let mut released = Released::new(None);
        let now = Instant::now();
        released.asked(0, None, Some(lost()), now);
        assert_eq!((released.deadline(), released.release(now + minutes(1000))), (None, vec![]));
    }
}
