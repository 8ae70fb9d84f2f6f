//! The driver: the only room that talks to NVML, and with it the place to look for how a node is read.
//!
//! ```text
//! places   which folders              library    opening libnvidia-ml.so.1
//!    └──────────┬──────────────────────┘
//!               ▼
//! caps ──► enumerate ◄── models ◄── names        raw: the calls that nvml-wrapper lacks
//! (/proc)       │        (once per GPU model)
//!               ▼
//!            session: the thread; sends an Inventory, or that there is no driver
//! ```
//!
//! Rules that hold here:
//! - `unsafe` stands in `raw.rs` alone.
//! - An error concerns the smallest thing it can: a detail, a MIG device, a GPU. Only an answer that says
//!   so is about the driver as a whole.
//! - No handle is kept from one look to the next: it dies with its instance, and may then be another's.

mod calls;
mod caps;
mod enumerate;
mod error;
mod library;
mod models;
mod names;
mod places;
mod raw;
mod session;
mod status;

#[cfg(test)]
mod tests;

pub use calls::CallCount;
pub(crate) use caps::file_stamp;
pub use error::{CallError, DriverError};
pub use places::Paths;
pub(crate) use places::resolve_in_root;
pub use session::{Report, Session};
pub use status::{Status, Watched};

use crate::inventory::Inventory;

/// One look at the driver: opens the library, reads everything, and shuts NVML down again.
pub fn discover(paths: &Paths) -> Result<Inventory, DriverError> {
    enumerate::Driver::open(paths)?.look(paths)
}
