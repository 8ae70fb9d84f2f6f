//! The driver: the only room that talks to NVML, and with it the place to look for how a node is read.
//!
//! ```text
//! places   which folders              library    opening libnvidia-ml.so.1      raw: calls that nvml-wrapper lacks
//!    └──────────┬──────────────────────┘         mapped: what the loader still has
//!               ▼
//! caps ──► enumerate ◄── models ◄── names        events: the set of events, and what one means
//! stamps        │        (once per GPU model)       │
//! (/proc)       │                                   │
//!               └───────────────┬───────────────────┘
//!                               ▼
//!            session: the threads; says what is there and what happens, or that there is no driver
//!                               │
//!                               ▼
//!            status: how NVML answers, and what hangs (every call goes through `calls`)
//! ```
//!
//! Rules that hold here:
//! - `unsafe` stands in `raw/` alone.
//! - An error concerns the smallest thing it can: a detail, a MIG device, a GPU. Only an answer that says
//!   so is about the driver as a whole.
//! - No handle of an instance is kept from one look to the next: it dies with its instance, and may then be another's.
//! - Any call may never come back. It is then left behind with its thread, and nothing waits for it.

mod backoff;
mod calls;
mod caps;
mod enumerate;
mod error;
mod events;
mod library;
mod mapped;
mod models;
mod names;
mod places;
mod raw;
mod rights;
mod session;
mod stamps;
mod status;

#[cfg(test)]
mod tests;

pub use calls::CallCount;
pub use error::{CallError, DriverError};
pub use places::Paths;
pub(crate) use places::resolve_in_root;
pub use session::{Report, Session, SessionOptions};
pub(crate) use stamps::file_stamp;
pub use status::{Status, Watched};

use std::time::Duration;

use crate::inventory::Inventory;

/// Looks at the driver: opens the library, reads everything, and shuts NVML down again. Where NVML does not list what
/// `/proc` shows, it looks again until it is clear whether that is only being made.
pub fn discover(paths: &Paths) -> Result<Inventory, DriverError> {
    let calls = calls::Caller::default();
    let driver = enumerate::Driver::open(paths, &calls)?;
    let mut cache = enumerate::Cache::default();
    loop {
        let found = driver.look(&calls, paths, &mut cache)?;
        if found.gpus.iter().all(|gpu| gpu.hidden.iter().all(|slice| slice.settled)) {
            return Ok(found);
        }
        std::thread::park_timeout(AGAIN);
    }
}

/// How long a look that was not clear is from the next.
const AGAIN: Duration = Duration::from_millis(250);
