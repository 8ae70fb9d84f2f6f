//! Which devices are sick, why, and when they are well again.

mod event;

pub use event::{EventKind, HealthEvent};
