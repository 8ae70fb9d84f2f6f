//! What a session shows of itself at any time: for metrics and probes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::calls::{CallCount, Caller, Counts, lock};
use crate::inventory::Links;

/// How a session is getting on. Reading it never waits for the driver.
#[derive(Debug, Default)]
pub struct Status {
    counts: Arc<Counts>,
    /// When the work that is under way last came forward.
    busy: Mutex<Option<Instant>>,
    hanging: AtomicUsize,
    watched: Mutex<BTreeMap<String, Watched>>,
    links: watch::Sender<Arc<Links>>,
}

/// Which events a GPU is watched for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watched {
    /// These, by [`EventKind::word`](crate::health::EventKind::word).
    Events(Vec<&'static str>),
    /// None, and why.
    Nothing(String),
}

impl Status {
    /// For how long the driver has let everything wait: opening the library and looking at the GPUs. `None` while
    /// nothing is asked. A GPU that does not answer is given up after a while, so this grows only where all that can
    /// be asked waits for a call that does not come back.
    pub fn stalled_for(&self) -> Option<Duration> {
        lock(&self.busy).map(|since| since.elapsed())
    }

    /// How many threads are in a call that was given up on and has not come back.
    pub fn hanging(&self) -> usize {
        self.hanging.load(Ordering::Relaxed)
    }

    /// How NVML has answered so far, by function.
    pub fn calls(&self) -> Vec<(&'static str, CallCount)> {
        self.counts.all()
    }

    /// Which events are listened for, by GPU UUID.
    pub fn watched(&self) -> BTreeMap<String, Watched> {
        lock(&self.watched).clone()
    }

    /// How GPUs are connected, as far as they have said.
    pub fn links(&self) -> Arc<Links> {
        Arc::clone(&self.links.borrow())
    }

    /// The same, for those who want to know it at any time.
    pub fn watch_links(&self) -> watch::Receiver<Arc<Links>> {
        self.links.subscribe()
    }

    /// GPUs have said how they are connected.
    pub(super) fn add_links(&self, links: Links) {
        self.links.send_modify(|known| Arc::make_mut(known).extend(links));
    }

    /// A caller whose calls are counted here.
    pub(super) fn caller(&self) -> Caller {
        Caller::new(Arc::clone(&self.counts))
    }

    /// The work under way has come forward.
    pub(super) fn progressed(&self) {
        *lock(&self.busy) = Some(Instant::now());
    }

    /// Nothing is under way.
    pub(super) fn idle(&self) {
        *lock(&self.busy) = None;
    }

    /// This many threads were left behind.
    pub(super) fn set_hanging(&self, threads: usize) {
        self.hanging.store(threads, Ordering::Relaxed);
    }

    /// What came of listening to a GPU; whether that is news.
    pub(super) fn set_watched(&self, gpu_uuid: &str, watched: Watched) -> bool {
        let before = lock(&self.watched).insert(gpu_uuid.to_owned(), watched.clone());
        before != Some(watched)
    }

    /// Nothing is known of other GPUs than these any more.
    pub(super) fn retain_watched(&self, gpus: impl Fn(&str) -> bool) {
        lock(&self.watched).retain(|uuid, _| gpus(uuid));
    }
}
