//! The real plugin binary between the fake driver and the fake kubelet.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    missing_docs,
    reason = "a test fails by panicking, and shows the plugin's log then"
)]

mod admin;
mod allocation;
mod anew;
mod cdi;
mod command_line;
mod config;
mod driver;
mod explain;
mod golden;
mod hang;
mod health;
mod held;
mod http;
mod kubelet_life;
mod layouts;
mod models;
mod reload;
mod rig;
mod rights;
mod signals;
mod slices;
mod sockets;
mod strategies;
mod trouble;
mod whole_gpu;
mod whole_or_slices;
