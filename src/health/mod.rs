//! Which devices are sick, why, and when they are well again.
//!
//! Values in, values out: this module calls no driver, reads no file and knows no clock. The caller brings the time.
//!
//! ```text
//!  HealthEvent ──► take_event ───────┐                        ┌──► reasons_of(Device) ──► the lists, metrics, logs
//!  (Xid, ECC, …)                     ▼                        │
//!  Inventory ────► take_inventory ──► Health ─────────────────┤
//!  (a look at      │                 │  GPU-a                 └──► next_look ──► the next look at the driver
//!   the driver)    │                 │   ├─ the GPU: Record
//!                  ▼                 │   └─ slices:  Record, Record …
//!               Findings             └─ GPU-b …
//!               (for logs)
//!
//!  one Record:     evidence ┌────────────────────────────────────┐ more evidence: the quiet
//!         (none) ──────────►│ sick: reasons, when last, relapses │◄┐ period starts anew
//!            ▲              └───────────────┬────────────────────┘─┘
//!            │ well for     a look that began after the quiet period,
//!            │ an hour      and the rule for the GPU allows it
//!            │              ┌───────────────▼────────────────────┐
//!            └──────────────│ well: since when, relapses         │── evidence: sick again, a relapse
//!                           └────────────────────────────────────┘
//! ```
//!
//! # What is hit
//!
//! | the event names | hit |
//! |---|---|
//! | GPU instance and compute instance | that slice |
//! | GPU instance only | its slices |
//! | neither, or it is an Xid of the whole GPU | the GPU, and with it every slice that it has or gets |
//! | an instance that is not known | nothing before the next inventory; then the instance, or, where there is none, the GPU |
//! | an instance that has just gone | nothing |
//!
//! # What makes sick, and for how long
//!
//! | evidence | hits | counts |
//! |---|---|---|
//! | an event that [`Checks`] count | as above | always |
//! | a GPU that needs something ([`RecoveryAction`](crate::inventory::RecoveryAction)) that keeps it from use | the GPU | unless all checks are disabled |
//! | a lost GPU ([`TroubleKind::Lost`](crate::inventory::TroubleKind)) | the GPU | always |
//! | a GPU or a slice that cannot be read | that | unless nothing recovers: then only while it lasts |
//!
//! A GPU or a slice is well again by a look at the driver, never by time alone. All of this has to hold:
//!
//! 1. the look began after the last evidence, and at least the quiet period after it: 10 s, doubled with each relapse
//!    within an hour, up to 10 min;
//! 2. the GPU could be read, and so could the slice, which is the same as before;
//! 3. the driver says that the GPU needs nothing that keeps it from use; or, where it does not tell ([`Rule::ByReset`]), the GPU was reset
//!    since the last evidence: it was lost, or absent, or the kernel driver was unloaded or replaced, or all its
//!    instances had gone. What only could not be read needs no reset for that.
//!
//! A slice that a readable GPU no longer has is forgotten with all that stood against it: one that is made in its place
//! is another. But an event after which no look had begun that saw the old slice may be about the new one, since IDs are
//! used again: it is tried again as if its instance had not been known. What stood against the GPU stays. A change of the policy makes nothing well.
//!
//! | file | what it has |
//! |---|---|
//! | `event` | what the driver tells by itself |
//! | `xid` | NVIDIA's Xids, as data |
//! | `checks` | the policy: which events count, how a device recovers |
//! | `record` | one GPU or slice: its reasons, its quiet period |
//! | `heard` | of which GPUs the driver reports errors to this process |
//! | `gpu` | a GPU with its slices: what a look at the driver makes of them |
//! | `state` | all of them, and how events and looks change them |
//! | `instances` | which instances there are and have just been |
//! | `waiting` | events about instances that are not known yet |

mod checks;
mod event;
mod gpu;
mod heard;
mod instances;
mod record;
mod state;
#[cfg(test)]
mod tests;
mod waiting;
pub mod xid;

pub use checks::{Check, Checks, HealthPolicy, IGNORED_BY_DEFAULT, InvalidCheck, Recovery, Rule, rule_for};
pub use event::{EventKind, HealthEvent};
pub use gpu::{caution, cautions};
pub use heard::{NOT_HEARD, has_instances, is_heard};
pub use record::Moment;
pub use state::{Findings, Health, Outcome, Recovered, Sickness};
