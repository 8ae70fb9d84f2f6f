//! The fake through its C symbols, as a client loads it.
#![allow(unsafe_code, reason = "a client of a C library")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "tests, and what they share")]
#![allow(
    missing_docs,
    clippy::missing_panics_doc,
    unreachable_pub,
    missing_debug_implementations,
    reason = "only tests read this"
)]

mod changes;
mod client;
mod events;
mod faults;
mod files;
mod layouts;
mod life;
mod lifecycle;
mod listing;
mod rights;
mod told;
mod topology;

use fake_nvml::{Description, Node};
use tempfile::TempDir;

/// A node that is gone when the test ends.
pub fn node(description: &Description) -> (TempDir, Node) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let node = Node::create(folder.path(), description).expect("a node");
    (folder, node)
}
