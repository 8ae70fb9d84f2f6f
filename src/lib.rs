//! Kubernetes device plugin for NVIDIA MIG.
//!
//! One daemon per GPU node: it finds the MIG devices through NVML, advertises them to the kubelet by UUID, and
//! answers `Allocate` with a slice's device nodes and environment.
//!
//! # The flow: one way, no cycles
//!
//! ```text
//!  flags, environment, file ──► config ────────┐
//!                                              ▼
//!  NVML ──► nvml ──► Inventory ──► resource::resolve ──► ResourceSet ──► supervisor ──► kubelet::Endpoint
//!  /proc caps ──┘ │                    (pure)               (Ledger, diff)   ▲ │        (one per resource)
//!                 └► HealthEvent ──► health (pure) ── reasons ───────────────┤ │               │ ▲
//!                                                                            │ └► Snapshot     ▼ │
//!  SIGHUP, rescan interval, stale Allocate ──► nvml::Session::rescan         │       │     Register, ListAndWatch,
//!  SIGUSR1, SIGUSR2 ─────────────────────────────────────────────────────────┤       ▼     Allocate
//!  inotify on the plugin folder ──► kubelet::FolderState ────────────────────┼──► Endpoint
//!  podresources, the kubelet's checkpoint ──► which devices pods hold ───────┘    admin: metrics, probes, page
//! ```
//!
//! # Rooms
//!
//! | module | what it is | what it never does |
//! |---|---|---|
//! | [`cli`], [`config`] | flags, variables and the file to one checked `Config`, all mistakes at once | bind, open, start |
//! | [`nvml`] | the driver: threads that look and wait for events, and can be left behind; the only `unsafe` (`nvml/raw`) | policy |
//! | [`inventory`] | the domain's nouns, as plain data | call the driver, read a file, know the time |
//! | [`health`] | who is sick and who is well again; the catalogue of Xids | the same |
//! | [`resource`] | policy: strategies, names, what an `Allocate` answers, how a list changes | the same |
//! | [`supervisor`] | the only task that changes what is served | call the driver |
//! | [`kubelet`] | gRPC: a server and a registration per resource, kept alive | call the driver |
//! | [`devices`] | the inventory as a table, a drawing, JSON or YAML | look anything up |
//! | [`explain`] | what each strategy makes of a node, whether a pod could run there | decide: it asks `resource` |
//! | [`cdi`] | CDI specifications: what a container runtime is to do for a device | policy |
//! | [`metrics`], `admin` | what is counted; metrics, probes and a page over HTTP | change anything |
//! | [`app`] | commands, and `serve`, the daemon's composition | anything else |
//!
//! # Invariants
//!
//! 1. Only [`nvml`] names `nvml_wrapper`; only [`kubelet`] names `tonic` and the generated types.
//! 2. Only the supervisor starts, changes and stops endpoints. An endpoint never calls NVML.
//! 3. `Allocate` answers from the list that was last published, after a look at the slice's capability file. Where that
//!    is not the file that was seen with the slice, the driver is looked at, and the next list decides.
//! 4. A socket is bound before it is registered; an old stream is closed before a new registration.
//! 5. A device leaves in two steps: first `Unhealthy`, then out of the list, when no recent `Allocate` named it
//!    and no pod holds it, also where a pod has held it since before this program was started. That podresources does
//!    not name it proves nothing; a newer checkpoint of the kubelet without it does. A GPU is given out either as a whole
//!    or as slices: what is not to be used beside a device that is leaving waits for it.
//! 6. No state of the node is fatal, but NVML that cannot be used at start with `--fail-on-init-error=true`.
//! 7. What identifies a slice is the whole tuple: UUID, parent, instance IDs, profile, placement, device nodes.
//! 8. Every wait has a bound, every retry a back-off, every task an end.
//! 9. A list is sent when something changed, and a burst of changes as its first and its last.
//! 10. A device is healthy when no reason stands against it, and only a look at the driver makes a sick one well.

mod admin;
pub mod app;
pub mod cdi;
pub mod cli;
pub mod config;
pub mod devices;
pub mod explain;
#[cfg(test)]
mod fixtures;
pub mod health;
pub mod inventory;
pub mod kubelet;
pub mod metrics;
pub mod nvml;
pub mod resource;
mod serve;
pub mod supervisor;
pub mod telemetry;
mod throttle;
mod watch;
