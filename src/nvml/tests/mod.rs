//! The real loading and asking code, against a `libnvidia-ml.so.1` of our own.

mod driver;
mod events;
mod gpus;
mod hanging;
mod mig;
mod session;

use std::time::{Duration, Instant};

use fake_nvml::{Description, DriverState, Event, Fault, Node};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::inventory::{MigDevice, MigMode, Placement};

/// A node, and the folder that goes with it.
struct Fake {
    node: Node,
    _folder: TempDir,
}

impl Fake {
    fn new(description: &Description) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { node: Node::create(folder.path(), description).unwrap(), _folder: folder }
    }

    fn paths(&self) -> Paths {
        Paths::below(self.node.root())
    }

    fn discover(&self) -> Inventory {
        discover(&self.paths()).unwrap()
    }

    fn update(&self, change: impl FnOnce(&mut Description)) {
        self.node.update(change).unwrap();
    }

    fn calls(&self) -> u64 {
        self.node.counters().unwrap().values().sum()
    }
}

fn one_h100(layout: &[&str]) -> Description {
    Description::h100s(1).with_mig(0, layout)
}

fn profiles(inventory: &Inventory, gpu: usize) -> Vec<&str> {
    inventory.gpus[gpu].mig_devices.iter().map(|device| device.profile.as_str()).collect()
}

fn reasons(inventory: &Inventory) -> Vec<String> {
    inventory.problems.iter().map(|problem| format!("{}: {}", problem.subject(), problem.reason)).collect()
}

/// A driver that is looked at more than once.
struct Looks {
    driver: enumerate::Driver,
    calls: calls::Caller,
    cache: enumerate::Cache,
}

impl Looks {
    fn new(fake: &Fake) -> Self {
        let calls = calls::Caller::default();
        let driver = enumerate::Driver::open(&fake.paths(), &calls).unwrap();
        Self { driver, calls, cache: enumerate::Cache::default() }
    }

    fn look(&mut self, paths: &Paths) -> Inventory {
        self.driver.look(&self.calls, paths, &mut self.cache).unwrap()
    }
}

/// A session and what it says.
struct Listener {
    session: Session,
    reports: mpsc::Receiver<Report>,
}

impl Listener {
    fn new(paths: Paths, rescan: Option<Duration>) -> Self {
        let (sender, reports) = mpsc::channel(1);
        Self { session: Session::spawn(paths, rescan, sender).unwrap(), reports }
    }

    async fn next(&mut self) -> Report {
        timeout(Duration::from_secs(20), self.reports.recv()).await.expect("no report").expect("thread ended")
    }

    async fn inventory(&mut self) -> Inventory {
        match self.next().await {
            Report::Inventory { inventory, .. } => inventory,
            report => panic!("{report:?}"),
        }
    }

    async fn no_driver(&mut self) -> DriverError {
        match self.next().await {
            Report::NoDriver(error) => error,
            report => panic!("{report:?}"),
        }
    }

    async fn expect_silence(&mut self, time: Duration) {
        let report = timeout(time, self.reports.recv()).await;
        assert!(report.is_err(), "{report:?}");
    }
}
