//! What all tasks of one fake share: the settings, and the device manager behind a lock.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::checkpoint;
use crate::manager::Manager;
use crate::topology::TopologyPolicy;
use crate::view::View;

/// The settings of a fake, from its builder.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) folder: PathBuf,
    pub(crate) pod_resources: Option<PathBuf>,
    pub(crate) emulate_race: bool,
    pub(crate) policy: TopologyPolicy,
    pub(crate) version: u32,
    pub(crate) api_pods_after: Option<Duration>,
    pub(crate) dial_limit: Duration,
    pub(crate) call_limit: Duration,
    pub(crate) wait_limit: Duration,
    pub(crate) forget_after: Duration,
    pub(crate) slow_reader: Option<Duration>,
}

/// Shared by all tasks of one fake.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    manager: Mutex<Manager>,
    changes: watch::Sender<()>,
    /// How long after a start the API server's pods are there; `None`: they are not.
    pub(crate) api_pods_after: watch::Sender<Option<Duration>>,
    /// The kubelet admits one pod after the other.
    pub(crate) admission: tokio::sync::Mutex<()>,
}

impl Shared {
    pub(crate) fn new(settings: Settings) -> Arc<Self> {
        let manager = Mutex::new(Manager::new(settings.forget_after, settings.policy));
        let changes = watch::Sender::new(());
        let api_pods_after = watch::Sender::new(settings.api_pods_after);
        let admission = tokio::sync::Mutex::default();
        Arc::new(Self { settings, manager, changes, api_pods_after, admission })
    }

    /// Looks at the manager, or changes what nobody waits for.
    pub(crate) fn with<R>(&self, look: impl FnOnce(&mut Manager) -> R) -> R {
        look(&mut self.manager.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the manager and wakes those who wait.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut Manager) -> R) -> R {
        let result = self.with(change);
        self.changes.send_replace(());
        result
    }

    /// Changes the manager, writes the checkpoint, and wakes those who wait.
    pub(crate) fn change_on_disk<R>(&self, change: impl FnOnce(&mut Manager) -> R) -> R {
        self.change(|manager| {
            let result = change(manager);
            self.write_checkpoint(manager);
            result
        })
    }

    fn write_checkpoint(&self, manager: &mut Manager) {
        let number = manager.history.checkpoint_writes;
        // A kubelet that can't write its checkpoint logs that and goes on.
        match checkpoint::write(&self.settings.folder, &manager.held, manager.registered(), number) {
            Ok(()) => manager.history.checkpoint_writes += 1,
            Err(error) => manager.history.complaints.push(format!("writing the checkpoint: {error}")),
        }
    }

    /// Looks at everything, as the kubelet does for the node's status: then it forgets resources, too.
    pub(crate) fn view(&self) -> View {
        self.with(|manager| {
            if manager.running && manager.forget(Instant::now()) {
                self.write_checkpoint(manager);
            }
            manager.view()
        })
    }

    /// Waits until the API server's pods are known; false if that takes longer than any wait may.
    pub(crate) async fn sources_ready(&self) -> bool {
        let mut changes = self.changes();
        let ready = async {
            while !self.with(|manager| manager.sources_ready) {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(self.settings.wait_limit, ready).await.is_ok()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }
}
