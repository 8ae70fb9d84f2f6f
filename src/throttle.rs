//! At most one log line a second.

use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(1);

/// Says when there may be a line again.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    last: Option<Instant>,
}

impl Throttle {
    /// Whether there may be a line now, which is then taken for written.
    pub(crate) fn ready(&mut self) -> bool {
        let ready = self.last.is_none_or(|last| last.elapsed() >= PERIOD);
        if ready {
            self.last = Some(Instant::now());
        }
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_written_and_the_next_is_not() {
        let mut throttle = Throttle::default();
        assert!(throttle.ready());
        assert!(!throttle.ready());
        throttle.last = Instant::now().checked_sub(PERIOD);
        assert!(throttle.ready());
    }
}
