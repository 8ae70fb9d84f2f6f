//! A `libnvidia-ml.so.1` that plays a GPU node with MIG.
//!
//! The package is two things in one. The shared library exports NVML's C symbols, so that any NVML client
//! can `dlopen` it and see the node that a YAML file beside it describes. The Rust library builds such
//! nodes: a folder with the library, the description, and the `proc`, `dev` and `sys` files that a node
//! with NVIDIA's driver has.
//!
//! ```no_run
//! use fake_nvml::{Description, Event, Fault, Node};
//!
//! # fn main() -> Result<(), fake_nvml::NodeError> {
//! let node = Node::create("/tmp/node", &Description::h100s(2).with_mig(0, &["3g.40gb", "1g.10gb"]))?;
//! // A client now opens node.library() and sees two GPUs, one with two MIG devices.
//! node.update(|d| d.set_mig(1, &["1g.10gb"; 7]))?;
//! node.send(&Event::xid(79).on_gpu(0))?;
//! node.update(|d| d.faults.push(Fault::error("*", "GPU_IS_LOST").on_gpu(0)))?;
//! # Ok(())
//! # }
//! ```
//!
//! The code, from the file that people write to the C symbols:
//!
//! - [`catalogue`] — GPU models and their MIG profiles, as data;
//! - [`Description`] — what people write; [`state`] — what it means: every ID, placement and UUID decided;
//! - [`topology`] — how its GPUs are connected;
//! - [`Node`] — the folder; `tree` writes its `proc`, `dev` and `sys` files;
//! - [`Event`] and `counters` — what passes between a node's owner and the loaded library;
//! - `driver` — the C symbols. `unsafe` stands in `driver/ffi.rs` (the client's pointers) and `host.rs`
//!   (the C library's calls); the rest of `driver` is written against their safe faces.
#![allow(unsafe_code, reason = "a C library has C's pointers; see driver/ffi.rs and host.rs")]

pub mod catalogue;
mod changes;
mod clients;
mod codes;
mod counters;
mod description;
mod device_file;
mod driver;
mod error;
mod event;
mod host;
mod incident;
mod layout;
mod library;
mod node;
mod pci;
mod reset;
pub mod state;
mod suggest;
mod taken;
mod times;
pub mod topology;
mod tree;
mod uuid;

pub use clients::Client;
pub use codes::Code;
pub use description::{
    AfterReset, Branch, ComputeInstance, Description, DriverState, Fault, Gpu, Instance, Lost,
    MigConfigChange, MigOff, Nodes, NvLinks, NvSwitch, PlacementMap, Preset, Process, RecoveryAction, Right,
    Rights, Situation, Topology, UnknownProfile, UnopenableSlices, UnprivilegedEvents, UuidLookup,
};
pub use driver::CALLS;
pub use error::NodeError;
pub use event::{Event, EventType};
pub use incident::Incident;
pub use library::library_file;
pub use node::Node;
pub use state::{ComputeInstanceState, GpuInstanceState, GpuState, MigState, NodeState, Placement};
