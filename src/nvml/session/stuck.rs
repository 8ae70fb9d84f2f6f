//! GPUs that did not answer in time. Looks go on without them, and none waits for them again before they have answered
//! a thread of their own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Id;
use crate::nvml::calls::Caller;

/// The longest pause before a GPU is tried again. The first is as long as one waits for an answer, the next twice as
/// long, and so on. A GPU that has answered in time for as long begins with the first one.
const LONGEST_PAUSE: u32 = 12;

/// By NVML index.
#[derive(Default)]
pub(super) struct Stuck(BTreeMap<u32, Gpu>);

struct Gpu {
    state: State,
    /// The call that did not come back in time.
    call: &'static str,
    /// The next pause, in patiences.
    pause: u32,
}

enum State {
    /// The thread that asked it in a look has not come back.
    LeftBehind(Id),
    /// It is left alone until then.
    Resting(Instant),
    /// A thread is trying it.
    Tried { id: Id, calls: Caller, since: Instant },
    /// It has answered in time at that time: looks ask it.
    Back(Instant),
}

impl Stuck {
    /// The GPUs that looks leave out.
    pub(super) fn gpus(&self) -> Vec<u32> {
        self.0.keys().copied().filter(|index| self.call(*index).is_some()).collect()
    }

    /// The call that the GPU did not answer in time, where looks leave it out.
    pub(super) fn call(&self, index: u32) -> Option<&'static str> {
        self.0.get(&index).filter(|gpu| !matches!(gpu.state, State::Back(_))).map(|gpu| gpu.call)
    }

    /// A look was given up on the GPU.
    pub(super) fn insert(&mut self, index: u32, thread: Id, call: &'static str, patience: Duration) {
        let pause = match self.0.get(&index) {
            Some(Gpu { state: State::Back(since), .. }) if since.elapsed() >= patience * LONGEST_PAUSE => 1,
            Some(Gpu { pause, .. }) => *pause,
            None => 1,
        };
        self.0.insert(index, Gpu { state: State::LeftBehind(thread), call, pause });
    }

    /// When a GPU is to be tried.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let resting = |gpu: &Gpu| if let State::Resting(until) = gpu.state { Some(until) } else { None };
        self.0.values().filter_map(resting).min()
    }

    /// A GPU that is to be tried.
    pub(super) fn due(&self, now: Instant) -> Option<u32> {
        let due = |gpu: &Gpu| matches!(gpu.state, State::Resting(until) if until <= now);
        self.0.iter().find(|(_, gpu)| due(gpu)).map(|(index, _)| *index)
    }

    /// This thread tries the GPU. Where there can be none, that is done later.
    pub(super) fn tried(&mut self, index: u32, thread: Option<(Id, Caller)>, patience: Duration) {
        let Some(gpu) = self.0.get_mut(&index) else { return };
        let since = Instant::now();
        gpu.state = match thread {
            Some((id, calls)) => State::Tried { id, calls, since },
            None => State::Resting(since + patience),
        };
    }

    /// A thread has ended: whether that means that a GPU answers in time again.
    pub(super) fn came_back(&mut self, thread: Id, patience: Duration) -> bool {
        for gpu in self.0.values_mut() {
            match gpu.state {
                State::Tried { id, since, .. } if id == thread && since.elapsed() < patience => {
                    gpu.state = State::Back(Instant::now());
                    return true;
                }
                State::LeftBehind(id) | State::Tried { id, .. } if id == thread => {
                    gpu.state = State::Resting(Instant::now() + patience * gpu.pause);
                    gpu.pause = (gpu.pause * 2).min(LONGEST_PAUSE);
                    return false;
                }
                _ => {}
            }
        }
        false
    }

    /// Ends the threads that try GPUs, as far as they can be.
    pub(super) fn give_up(&self) {
        for gpu in self.0.values() {
            if let State::Tried { calls, .. } = &gpu.state {
                calls.give_up();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn thread(id: Id) -> (Id, Caller) {
        (id, Caller::default())
    }

    /// The pause before the GPU with index 3 is tried the next time, in patiences.
    fn pause(stuck: &Stuck) -> u64 {
        let pause = stuck.deadline().unwrap() - Instant::now();
        assert_eq!((stuck.gpus(), stuck.due(Instant::now())), (vec![3], None));
        assert_eq!(stuck.due(Instant::now() + pause), Some(3));
        (pause.as_secs() + 1).div_ceil(PATIENCE.as_secs())
    }

    /// Lets time pass for the GPU with index 3.
    fn age(stuck: &mut Stuck, time: Duration) {
        match &mut stuck.0.get_mut(&3).unwrap().state {
            State::Tried { since, .. } | State::Back(since) => *since = since.checked_sub(time).unwrap(),
            State::LeftBehind(_) | State::Resting(_) => panic!("no time counts for it"),
        }
    }

    #[test]
    fn a_gpu_that_answers_late_each_time_is_tried_less_and_less_often() {
        let mut stuck = Stuck::default();
        stuck.insert(3, 1, "nvmlX", PATIENCE);
        assert_eq!((stuck.call(3), stuck.call(2), stuck.deadline()), (Some("nvmlX"), None, None));
        assert!(!stuck.came_back(1, PATIENCE));
        for (id, patiences) in [(2, 1), (3, 2), (4, 4), (5, 8), (6, 12), (7, 12)] {
            assert_eq!(pause(&stuck), patiences);
            stuck.tried(3, Some(thread(id)), PATIENCE);
            assert_eq!(stuck.deadline(), None);
            age(&mut stuck, PATIENCE);
            assert!(!stuck.came_back(id, PATIENCE));
        }
        // One answer in time brings it back, but the pauses begin anew only after a while of them.
        stuck.tried(3, Some(thread(8)), PATIENCE);
        assert!(stuck.came_back(8, PATIENCE));
        assert_eq!((stuck.call(3), stuck.gpus(), stuck.deadline()), (None, vec![], None));
        stuck.insert(3, 9, "nvmlX", PATIENCE);
        stuck.came_back(9, PATIENCE);
        assert_eq!(pause(&stuck), 12);
        stuck.tried(3, Some(thread(10)), PATIENCE);
        assert!(stuck.came_back(10, PATIENCE));
        age(&mut stuck, PATIENCE * LONGEST_PAUSE);
        stuck.insert(3, 11, "nvmlX", PATIENCE);
        stuck.came_back(11, PATIENCE);
        assert_eq!(pause(&stuck), 1);
    }

    #[test]
    fn a_gpu_for_which_there_is_no_thread_is_tried_later() {
        let mut stuck = Stuck::default();
        stuck.insert(3, 1, "nvmlX", PATIENCE);
        stuck.came_back(1, PATIENCE);
        stuck.tried(3, None, PATIENCE);
        assert_eq!(pause(&stuck), 1);
    }
}
