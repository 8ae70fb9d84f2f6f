//! The fake against a plugin that can misbehave: does it behave as the kubelet does?

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod admission;
mod life;
mod memory;
mod plugin;
mod race;
mod registration;

use std::time::{Duration, Instant};

const RESOURCE: &str = "nvidia.com/mig-2g.20gb";

/// A folder for one kubelet.
fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("fk").tempdir().unwrap()
}

/// Waits for something that only the plugin can see.
async fn until(is: impl Fn() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < Duration::from_secs(10), "it didn't happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
