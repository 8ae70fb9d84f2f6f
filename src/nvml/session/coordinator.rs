//! The thread "nvml", which decides what is asked and when, and calls nothing in the library itself.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::open::{Broken, Open};
use super::released::Released;
use super::threads::{self, OpenDriver, spawn};
use super::{Asks, Id, Message, Patience, Report, SessionOptions};
use crate::nvml::calls::Caller;
use crate::nvml::error::DriverError;
use crate::nvml::mapped;
use crate::nvml::places::Paths;
use crate::nvml::status::Status;

/// While there is no driver it is looked for after this, then after twice as long, up to [`LONGEST_WAIT`].
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// So many threads are left behind at most. With more of them nothing is asked any more, which
/// [`Status::stalled_for`] shows.
const MOST_LEFT_BEHIND: usize = 32;

/// Nobody listens any more.
pub(super) struct Ended;

/// Where a session is. The drawing is in the parent module.
enum Phase {
    /// The library is closed until then.
    Away { again: Instant },
    /// A thread is opening it.
    Opening { id: Id, calls: Caller, since: Instant, told: bool },
    /// It is open.
    Open(Box<Open>),
    /// What belongs to this opening is on its way out, and is waited for until then.
    Closing { id: Id, until: Instant, then: Then },
    /// It stays closed until somebody says to go on.
    Held,
    /// The thread ends.
    Ended,
}

/// What comes after the library was closed.
enum Then {
    /// It is opened again after a while. With the library that was of another version than the driver, if one was.
    Away {
        mismatch: Option<PathBuf>,
    },
    /// At once.
    Again,
    Hold,
    End,
}

/// The thread.
pub(super) struct Coordinator {
    pub(super) paths: Paths,
    pub(super) options: SessionOptions,
    pub(super) patience: Patience,
    pub(super) reports: mpsc::Sender<Report>,
    pub(super) status: Arc<Status>,
    pub(super) asks: Asks,
    messages: Receiver<Message>,
    phase: Phase,
    last_id: Id,
    /// The pause before the library is opened the next time.
    wait: Duration,
    /// What was reported last, if there is no driver.
    no_driver: Option<DriverError>,
    /// Openings of which something is left: a library that is open, or a thread that may open it yet.
    openings: BTreeSet<Id>,
    /// Threads that are in a call that was given up on.
    left_behind: BTreeSet<Id>,
    /// The library that was opened first of those that may still be in this process.
    loaded: Option<mapped::Opened>,
    told_of_stale_library: bool,
    pub(super) released: Released,
    /// When NVML was closed to release GPUs, until a look has succeeded again.
    pub(super) reopening: Option<Instant>,
}

impl Coordinator {
    pub(super) fn new(
        paths: Paths,
        options: SessionOptions,
        patience: Patience,
        reports: mpsc::Sender<Report>,
        status: Arc<Status>,
        asks: Asks,
        messages: Receiver<Message>,
    ) -> Self {
        Self {
            paths,
            options,
            patience,
            reports,
            status,
            asks,
            messages,
            phase: Phase::Away { again: Instant::now() },
            last_id: 0,
            wait: SHORTEST_WAIT,
            no_driver: None,
            openings: BTreeSet::new(),
            left_behind: BTreeSet::new(),
            loaded: None,
            told_of_stale_library: false,
            released: Released::new(options.release_after),
            reopening: None,
        }
    }

    pub(super) fn run(mut self) {
        while !matches!(self.phase, Phase::Ended) {
            self.turn();
        }
    }

    /// Waits for a message or for the time to do something, and does it.
    fn turn(&mut self) {
        let message = match self.deadline() {
            None => self.messages.recv().map_err(RecvTimeoutError::from),
            Some(at) => self.messages.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        let heard = match message {
            Ok(message) => self.take(message),
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => Err(Ended),
        };
        if heard.and_then(|()| self.on_time()).is_err() {
            self.close(Then::End);
        }
    }

    /// When something is to be done, even if nobody says anything.
    fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Away { again } => Some(*again),
            Phase::Opening { since, told, .. } => (!told).then(|| *since + self.patience.opening),
            Phase::Open(open) => open.deadline(self),
            Phase::Closing { until, .. } => Some(*until),
            Phase::Held | Phase::Ended => None,
        }
    }

    fn take(&mut self, message: Message) -> Result<(), Ended> {
        match message {
            Message::Look => {
                if let Phase::Away { again } = &mut self.phase {
                    *again = Instant::now();
                }
                // Elsewhere the next opening is soon enough, and a request that stands would hide a later one.
                if !matches!(self.phase, Phase::Opening { .. } | Phase::Open(_)) {
                    self.asks.look_begins();
                }
                Ok(())
            }
            Message::Hold => match self.phase {
                Phase::Away { .. } | Phase::Held => self.closed(Then::Hold),
                _ => {
                    self.close(Then::Hold);
                    Ok(())
                }
            },
            Message::Resume => {
                if self.released.resume() {
                    self.asks.look();
                }
                match &mut self.phase {
                    Phase::Held => self.phase = Phase::Away { again: Instant::now() },
                    Phase::Closing { then: then @ Then::Hold, .. } => *then = Then::Again,
                    _ => {}
                }
                Ok(())
            }
            Message::End => Err(Ended),
            Message::Opened(id, opened) => self.opened(id, opened),
            Message::Closed(id) => {
                self.came_back(id);
                self.openings.remove(&id);
                match std::mem::replace(&mut self.phase, Phase::Ended) {
                    Phase::Closing { id: closing, then, .. } if closing == id => self.closed(then),
                    Phase::Held if self.openings.is_empty() => self.closed(Then::Hold),
                    other => {
                        self.phase = other;
                        Ok(())
                    }
                }
            }
            Message::Step(id, step) => {
                if step.is_last() && self.came_back(id) {
                    return self.with_open(|this, open| open.gpu_is_back(this, id));
                }
                self.with_open(|this, open| open.take_step(this, id, step))
            }
            Message::Linked(id, links) => self.with_open(|this, open| {
                open.linking.take(this, id, links);
                Ok(())
            }),
            Message::Listened(id, end) => {
                if self.came_back(id) {
                    return self.with_open(|this, open| open.ears.gpu_is_back(this, id));
                }
                self.with_open(|this, open| open.ears.ended(this, id, end))
            }
        }
    }

    fn on_time(&mut self) -> Result<(), Ended> {
        let now = Instant::now();
        match &mut self.phase {
            Phase::Away { again } if *again <= now => self.open(),
            Phase::Opening { calls, since, told, .. } if !*told && *since + self.patience.opening <= now => {
                *told = true;
                let call = calls.under_way().map_or("nvmlInit_v2", |under_way| under_way.call);
                return self.report_no_driver(DriverError::NoAnswer { call });
            }
            Phase::Open(_) => return self.with_open(|this, open| open.on_time(this)),
            Phase::Closing { id, until, .. } if *until <= now => {
                let id = *id;
                tracing::warn!(
                    "a call into the NVIDIA driver does not come back, so NVML stays open in this process"
                );
                if self.left_behind.is_empty() {
                    self.leave_behind(id);
                }
                if let Phase::Closing { then, .. } = std::mem::replace(&mut self.phase, Phase::Ended) {
                    return self.closed(then);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Lets an open library's state do something, and closes the library where that says so.
    fn with_open(
        &mut self,
        work: impl FnOnce(&mut Self, &mut Open) -> Result<(), Broken>,
    ) -> Result<(), Ended> {
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Open(mut open) => {
                let done = work(self, &mut open);
                self.phase = Phase::Open(open);
                match done {
                    Ok(()) => Ok(()),
                    Err(Broken::Ended) => Err(Ended),
                    Err(Broken::Driver(error)) => self.lose(error),
                    Err(Broken::Reopen) => {
                        self.reopening = Some(Instant::now());
                        self.close(Then::Again);
                        Ok(())
                    }
                }
            }
            other => {
                self.phase = other;
                Ok(())
            }
        }
    }

    fn open(&mut self) {
        if self.loaded.as_ref().is_some_and(|loaded| !loaded.is_mapped()) {
            self.loaded = None;
        }
        let id = self.new_id();
        let calls = self.status.caller();
        let work = threads::open(id, calls.clone(), self.paths.clone(), self.asks.clone());
        self.status.progressed();
        match spawn("nvml-open", work) {
            Ok(()) => {
                self.openings.insert(id);
                self.phase = Phase::Opening { id, calls, since: Instant::now(), told: false };
            }
            Err(error) => {
                tracing::error!(%error, "no thread can be started to open NVML");
                self.phase = Phase::Away { again: Instant::now() + LONGEST_WAIT };
            }
        }
    }

    fn opened(&mut self, id: Id, opened: Result<Arc<OpenDriver>, DriverError>) -> Result<(), Ended> {
        let current = matches!(self.phase, Phase::Opening { id: opening, .. } if opening == id);
        match opened {
            Ok(driver) if current => {
                self.loaded.get_or_insert_with(|| mapped::Opened::now(driver.library()));
                self.phase = Phase::Open(Box::new(Open::new(id, driver)));
                Ok(())
            }
            // Somebody has said to hold or to end meanwhile.
            Ok(driver) => {
                threads::drop_elsewhere(driver);
                Ok(())
            }
            Err(error) if current => {
                if let Some(library) = error.library() {
                    self.loaded.get_or_insert_with(|| mapped::Opened::now(library));
                }
                self.lose(error)
            }
            Err(_) => Ok(()),
        }
    }

    /// The driver as a whole cannot be used.
    fn lose(&mut self, error: DriverError) -> Result<(), Ended> {
        let mismatch = match &error {
            DriverError::VersionMismatch { library, .. } => Some(library.clone()),
            _ => None,
        };
        self.close(Then::Away { mismatch });
        self.report_no_driver(error)
    }

    /// Ends all that is under way.
    fn close(&mut self, then: Then) {
        let until = Instant::now() + self.patience.answer;
        self.status.progressed();
        // Who asked up to now is served by what comes next.
        self.asks.look_begins();
        self.phase = match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Open(open) => {
                let id = open.id;
                self.status.retain_watched(|_| false);
                threads::drop_elsewhere(open.end());
                Phase::Closing { id, until, then }
            }
            Phase::Closing { id, until, then: Then::End } => Phase::Closing { id, until, then: Then::End },
            Phase::Opening { id, .. } | Phase::Closing { id, .. } => Phase::Closing { id, until, then },
            Phase::Away { .. } | Phase::Held | Phase::Ended => Phase::Ended,
        };
    }

    /// All is closed that can be.
    fn closed(&mut self, then: Then) -> Result<(), Ended> {
        self.status.idle();
        match then {
            Then::Away { mismatch } => {
                self.phase = Phase::Away { again: Instant::now() + self.wait };
                self.wait = (self.wait * 2).min(LONGEST_WAIT);
                mismatch.map_or(Ok(()), |library| self.look_for_stale_library(library))
            }
            Then::Again => {
                self.phase = Phase::Away { again: Instant::now() };
                Ok(())
            }
            Then::Hold => {
                self.phase = Phase::Held;
                self.wait = SHORTEST_WAIT;
                self.no_driver = None;
                self.report(Report::OnHold { closed: self.openings.is_empty() })
            }
            Then::End => {
                self.phase = Phase::Ended;
                Ok(())
            }
        }
    }

    fn look_for_stale_library(&mut self, library: PathBuf) -> Result<(), Ended> {
        let stale = self.loaded.as_ref().is_some_and(|loaded| loaded.is_in_the_way_of(&library));
        if !stale || std::mem::replace(&mut self.told_of_stale_library, true) {
            return Ok(());
        }
        tracing::warn!(
            library = %library.display(),
            "the library was replaced, and the loader does not let go of the old one: a new process is needed"
        );
        self.report(Report::StaleLibrary(library))
    }

    /// A look has succeeded, so that there is a driver.
    pub(super) fn has_driver(&mut self) {
        if let Some(closed) = self.reopening.take() {
            let gap = closed.elapsed();
            tracing::warn!(?gap, "NVML was opened again; events of that time were not heard");
        }
        self.wait = SHORTEST_WAIT;
        self.no_driver = None;
    }

    pub(super) fn report_no_driver(&mut self, error: DriverError) -> Result<(), Ended> {
        if self.no_driver.as_ref().is_some_and(|before| before.is_like(&error)) {
            return Ok(());
        }
        let what = if error.is_no_answer() { "the driver does not answer" } else { "no driver" };
        tracing::warn!(%error, "{what}");
        self.no_driver = Some(error.clone());
        self.report(Report::NoDriver(error))
    }

    pub(super) fn report(&self, report: Report) -> Result<(), Ended> {
        self.reports.blocking_send(report).map_err(|_closed| Ended)
    }

    pub(super) fn new_id(&mut self) -> Id {
        self.last_id += 1;
        self.last_id
    }

    /// Whether there may be another thread that nobody waits for.
    pub(super) fn may_leave_behind(&self) -> bool {
        self.left_behind.len() < MOST_LEFT_BEHIND
    }

    /// Whether NVML can be shut down: no call hangs.
    pub(super) fn can_close(&self) -> bool {
        self.left_behind.is_empty()
    }

    pub(super) fn leave_behind(&mut self, id: Id) {
        self.left_behind.insert(id);
        self.status.set_hanging(self.left_behind.len());
    }

    /// A thread has ended: whether it was left behind.
    fn came_back(&mut self, id: Id) -> bool {
        let left = self.left_behind.remove(&id);
        if left {
            tracing::info!("a call that was given up on has come back");
            self.status.set_hanging(self.left_behind.len());
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use fake_nvml::{Description, Fault, Node};

    use super::super::threads::Step;
    use super::*;

    /// A coordinator that does nothing on its own, with the other end of its reports.
    fn coordinator(paths: Paths, patience: Duration) -> (Coordinator, mpsc::Receiver<Report>) {
        let (sender, messages) = channel();
        let (reports, received) = mpsc::channel(64);
        let asks = Asks { sender, look: Arc::default() };
        let patience = Patience { answer: patience, opening: patience };
        (
            Coordinator::new(
                paths,
                SessionOptions::default(),
                patience,
                reports,
                Arc::default(),
                asks,
                messages,
            ),
            received,
        )
    }

    #[test]
    fn nothing_is_due_while_no_more_threads_may_be_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let hang = |gpu| Fault::delay("nvmlDeviceGetUUID", 600_000).on_gpu(gpu);
        let description = Description::h100s(2).with_faults([hang(0), hang(1)]);
        let node = Node::create(folder.path(), &description).unwrap();
        let (mut coordinator, _reports) = coordinator(Paths::below(node.root()), Duration::from_millis(100));
        coordinator.left_behind = (1000..).take(MOST_LEFT_BEHIND - 1).collect();
        while coordinator.may_leave_behind() {
            coordinator.turn();
        }
        // The library answers, and the last GPU does not.
        let alive = coordinator.messages.recv().unwrap();
        assert!(matches!(alive, Message::Step(_, Step::Alive)));
        assert!(coordinator.take(alive).is_ok());
        // Until all patience is at its end.
        let late = Instant::now() + coordinator.patience.opening;
        while Instant::now() < late {
            std::thread::yield_now();
        }
        assert!(coordinator.on_time().is_ok());
        assert!(coordinator.deadline().is_none_or(|at| at > Instant::now()));
        // Once a thread may be left behind again, the look goes on without the last GPU.
        coordinator.left_behind.remove(&1000);
        assert!(coordinator.deadline().is_some_and(|at| at <= Instant::now()));
        assert!(coordinator.on_time().is_ok());
        assert!(!coordinator.may_leave_behind());
        node.update(|node| node.faults.clear()).unwrap();
    }

    #[test]
    fn a_look_asked_for_while_closing_is_in_the_way_of_no_later_one() {
        let (mut coordinator, _reports) = coordinator(Paths::below("/nonexistent"), Duration::from_secs(5));
        let until = Instant::now() + Duration::from_secs(5);
        coordinator.phase = Phase::Closing { id: 1, until, then: Then::Away { mismatch: None } };
        coordinator.asks.look();
        let message = coordinator.messages.try_recv().unwrap();
        assert!(coordinator.take(message).is_ok());
        coordinator.phase = Phase::Away { again: Instant::now() + Duration::from_secs(10) };
        coordinator.asks.look();
        let message = coordinator.messages.try_recv().expect("the look was swallowed");
        assert!(coordinator.take(message).is_ok());
        assert!(matches!(coordinator.phase, Phase::Away { again } if again <= Instant::now()));
    }
}
