//! What all tasks of one fake share: the settings, and the device manager behind a lock.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::checkpoint;
use crate::manager::Manager;
use crate::view::View;

/// The settings of a fake, from its builder.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) folder: PathBuf,
    pub(crate) pod_resources: Option<PathBuf>,
    pub(crate) emulate_race: bool,
    pub(crate) topology_manager: bool,
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
    /// The kubelet admits one pod after the other.
    pub(crate) admission: tokio::sync::Mutex<()>,
}

impl Shared {
    pub(crate) fn new(settings: Settings) -> Arc<Self> {
        let manager = Mutex::new(Manager::new(settings.forget_after, settings.topology_manager));
        let changes = watch::Sender::new(());
        Arc::new(Self { settings, manager, changes, admission: tokio::sync::Mutex::default() })
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
            // A kubelet that can't write its checkpoint logs that and goes on.
            match checkpoint::write(&self.settings.folder, manager) {
                Ok(()) => manager.history.checkpoint_writes += 1,
                Err(error) => manager.history.complaints.push(format!("writing the checkpoint: {error}")),
            }
            result
        })
    }

    pub(crate) fn view(&self) -> View {
        self.with(|manager| manager.view(Instant::now()))
    }

    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }
}
