//! Every call of NVML goes through here: counted, timed, and known while it is under way.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nvml_wrapper::error::NvmlError;

use super::error::CallError;

/// How a function of NVML has answered so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CallCount {
    /// Calls that did what they are for. The end of a wait for events is one, whether there was an event or not; any
    /// other call that times out is not.
    pub ok: u64,
    /// Calls that did not, by the answer's name without `NVML_ERROR_`, e.g. `NOT_SUPPORTED`.
    pub errors: BTreeMap<&'static str, u64>,
    /// Time spent in the function. Waits for events spend most of it waiting.
    pub seconds: f64,
}

/// What all threads of a session have called.
#[derive(Debug, Default)]
pub(super) struct Counts(Mutex<BTreeMap<&'static str, CallCount>>);

impl Counts {
    /// By function.
    pub(super) fn all(&self) -> Vec<(&'static str, CallCount)> {
        lock(&self.0).iter().map(|(call, count)| (*call, count.clone())).collect()
    }

    fn add(&self, call: &'static str, error: Option<&'static str>, took: Duration) {
        let mut counts = lock(&self.0);
        let count = counts.entry(call).or_default();
        match error {
            None => count.ok += 1,
            Some(code) => *count.errors.entry(code).or_default() += 1,
        }
        count.seconds += took.as_secs_f64();
    }
}

/// A panic while a lock was held leaves counts and instants: nothing that could be half-made.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One thread's way to NVML. A clone lets another thread see which call is under way, and give the caller up.
#[derive(Debug, Clone, Default)]
pub(super) struct Caller {
    counts: Arc<Counts>,
    under_way: Arc<Mutex<Option<UnderWay>>>,
    given_up: Arc<AtomicBool>,
}

/// A call that has not come back yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct UnderWay {
    /// The function.
    pub(super) call: &'static str,
    /// When it was called.
    pub(super) since: Instant,
}

impl Caller {
    /// For a thread that is about to start.
    pub(super) fn new(counts: Arc<Counts>) -> Self {
        Self { counts, ..Self::default() }
    }

    /// Calls the function of this name, unless this caller was given up.
    pub(super) fn ask<T, E: Into<Named>>(
        &self,
        call: &'static str,
        function: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, CallError> {
        self.count(call, function, |_| true)
    }

    /// As [`Caller::ask`], for a function that waits: that nothing happened in the time it was given is no error of it.
    pub(super) fn wait<T, E: Into<Named>>(
        &self,
        call: &'static str,
        function: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, CallError> {
        self.count(call, function, |error| !error.is_timeout())
    }

    fn count<T, E: Into<Named>>(
        &self,
        call: &'static str,
        function: impl FnOnce() -> Result<T, E>,
        is_error: impl Fn(&CallError) -> bool,
    ) -> Result<T, CallError> {
        if self.is_given_up() {
            return Err(CallError::given_up(call));
        }
        let since = Instant::now();
        *lock(&self.under_way) = Some(UnderWay { call, since });
        let answer = function().map_err(|error| error.into().of(call));
        *lock(&self.under_way) = None;
        let error = answer.as_ref().err().filter(|error| is_error(error));
        self.counts.add(call, error.map(CallError::code), since.elapsed());
        answer
    }

    /// The call that this caller waits for.
    pub(super) fn under_way(&self) -> Option<UnderWay> {
        *lock(&self.under_way)
    }

    /// Lets it call nothing any more: the thread ends with the call that is under way.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Whether it is to call nothing any more.
    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }
}

/// An error that may still need its call's name.
pub(super) enum Named {
    /// From nvml-wrapper, which does not say which function failed.
    Wrapper(NvmlError),
    /// From `raw`, which does.
    Call(CallError),
}

impl Named {
    fn of(self, call: &'static str) -> CallError {
        match self {
            Self::Wrapper(error) => CallError::from_wrapper(call, error),
            Self::Call(error) => error,
        }
    }
}

impl From<NvmlError> for Named {
    fn from(error: NvmlError) -> Self {
        Self::Wrapper(error)
    }
}

impl From<CallError> for Named {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_answer() {
        let counts = Arc::new(Counts::default());
        let caller = Caller::new(Arc::clone(&counts));
        assert_eq!(caller.ask("nvmlX", || Ok::<_, NvmlError>(1)), Ok(1));
        assert!(caller.ask("nvmlX", || Err::<(), _>(NvmlError::GpuLost)).is_err());
        assert!(caller.ask("nvmlX", || Err::<(), _>(CallError::missing("nvmlX"))).is_err());
        assert!(caller.ask("nvmlX", || Err::<(), _>(NvmlError::Timeout)).is_err());
        assert!(caller.wait("nvmlWait", || Err::<(), _>(NvmlError::Timeout)).is_err());
        assert!(caller.wait("nvmlWait", || Err::<(), _>(NvmlError::GpuLost)).is_err());
        let all = counts.all();
        assert_eq!(all.iter().map(|(call, _)| *call).collect::<Vec<_>>(), ["nvmlWait", "nvmlX"]);
        assert_eq!((all[0].1.ok, all[1].1.ok), (1, 1));
        assert_eq!(all[0].1.errors, BTreeMap::from([("GPU_IS_LOST", 1)]));
        let errors = BTreeMap::from([("FUNCTION_NOT_FOUND", 1), ("GPU_IS_LOST", 1), ("TIMEOUT", 1)]);
        assert_eq!(all[1].1.errors, errors);
        assert!(caller.under_way().is_none());
    }

    #[test]
    fn a_caller_that_was_given_up_calls_nothing() {
        let caller = Caller::default();
        let other = caller.clone();
        let answer = caller.ask("nvmlX", || {
            assert_eq!(other.under_way().map(|now| now.call), Some("nvmlX"));
            other.give_up();
            Ok::<_, NvmlError>(())
        });
        assert_eq!(answer, Ok(()));
        let mut asked = false;
        let refused = caller.ask("nvmlY", || {
            asked = true;
            Ok::<_, NvmlError>(())
        });
        assert!(refused.is_err_and(|error| error.driver_is_gone()) && !asked);
    }
}
