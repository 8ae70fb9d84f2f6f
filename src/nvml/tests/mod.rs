//! The real loading and asking code, against a `libnvidia-ml.so.1` of our own.

mod driver;
mod events;
mod gpus;
mod hanging;
mod links;
mod mig;
mod reads_only;
mod session;

use std::time::{Duration, Instant};

use fake_nvml::{Description, DriverState, Event, Fault, Node};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::session::Patience;
use super::*;
use crate::health::{EventKind, HealthEvent};
use crate::inventory::{EventRight, MigDevice, MigMode, Placement, RecoveryAction, TroubleKind};

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

    /// How often a function was called.
    fn count(&self, call: &str) -> u64 {
        self.node.counters().unwrap().get(call).copied().unwrap_or(0)
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

/// Longer than anything takes on the slowest machine.
const LIMIT: Duration = Duration::from_secs(30);

/// Less than is waited in earnest, so that the tests do not take as long.
const PATIENCE: Patience = Patience { answer: Duration::from_secs(2), opening: Duration::from_secs(4) };

/// A session and what it says.
struct Listener {
    session: Session,
    reports: mpsc::Receiver<Report>,
}

impl Listener {
    fn new(paths: Paths, rescan: Option<Duration>) -> Self {
        let (sender, reports) = mpsc::channel(16);
        let options = SessionOptions { rescan, ..SessionOptions::default() };
        Self { session: Session::spawn_with(paths, options, PATIENCE, sender).unwrap(), reports }
    }

    /// One that has looked, listens to its GPUs, and has looked again for what it may have missed.
    async fn listening(fake: &Fake) -> Self {
        let mut listener = Self::new(fake.paths(), None);
        listener.inventory().await;
        listener.inventory().await;
        listener
    }

    async fn next(&mut self) -> Report {
        timeout(LIMIT, self.reports.recv()).await.expect("no report").expect("the session has ended")
    }

    /// The next report that `pick` takes. Others are passed over.
    async fn pick<T>(&mut self, mut pick: impl FnMut(Report) -> Option<T>) -> T {
        let picked = async {
            loop {
                let report = self.reports.recv().await.expect("the session has ended");
                if let Some(picked) = pick(report) {
                    return picked;
                }
            }
        };
        timeout(LIMIT, picked).await.expect("waited in vain for a report")
    }

    /// What the next look finds.
    async fn inventory(&mut self) -> Inventory {
        self.inventory_where(|_| true).await
    }

    /// What the first look finds for which that holds.
    async fn inventory_where(&mut self, is: impl Fn(&Inventory) -> bool) -> Inventory {
        self.pick(|report| match report {
            Report::Inventory { inventory, .. } => Some(inventory).filter(&is),
            _ => None,
        })
        .await
    }

    async fn no_driver(&mut self) -> DriverError {
        self.pick(|report| match report {
            Report::NoDriver(error) => Some(error),
            _ => None,
        })
        .await
    }

    async fn event(&mut self) -> HealthEvent {
        self.pick(|report| match report {
            Report::Event(event) => Some(event),
            _ => None,
        })
        .await
    }

    /// Returns once an event comes through; those before a registration do not.
    async fn hears(&mut self, fake: &Fake) {
        let sent = async {
            loop {
                fake.node.send(&Event::xid(79)).unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            event = self.event() => assert_eq!(event.kind, EventKind::Xid(79)),
            () = sent => {}
        }
    }

    async fn expect_silence(&mut self, time: Duration) {
        let report = timeout(time, self.reports.recv()).await;
        assert!(report.is_err(), "{report:?}");
    }
}

/// Waits until `is` holds.
async fn wait_until(mut is: impl FnMut() -> bool, what: &str) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < LIMIT, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
