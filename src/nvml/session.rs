//! The thread that asks the driver, so that nothing else ever waits for it.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tokio::sync::mpsc;

use super::enumerate::Driver;
use super::error::DriverError;
use super::places::Paths;
use crate::inventory::{Inventory, Problem};

/// While there is no driver it is looked for after this, then after twice as long, up to [`LONGEST_WAIT`].
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// What the thread has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// What was found. Sent after the first look, and after each that found something else.
    Inventory(Inventory),
    /// There is no driver at the moment. Sent again when the reason changes.
    NoDriver(DriverError),
}

/// The thread "nvml", which looks at the driver when asked and at intervals. It ends on its own after the
/// session was dropped, or after nobody receives its reports any more. Nobody waits for its end: a call
/// into the driver may never come back.
#[derive(Debug)]
pub struct Session {
    requests: SyncSender<()>,
}

impl Session {
    /// Starts the thread. It looks at once, then every `rescan` where that is given. While there is no
    /// driver, it keeps looking for one in any case.
    pub fn spawn(
        paths: Paths,
        rescan: Option<Duration>,
        reports: mpsc::Sender<Report>,
    ) -> std::io::Result<Self> {
        // One place: a request that waits stands for all that come after it.
        let (requests, asked) = sync_channel(1);
        let thread = Thread { paths, rescan, reports, asked, last: None };
        std::thread::Builder::new().name("nvml".to_owned()).spawn(move || thread.run())?;
        Ok(Self { requests })
    }

    /// Asks for a look now. Never blocks; requests that come faster than looks become one.
    pub fn rescan(&self) {
        match self.requests.try_send(()) {
            Ok(()) | Err(TrySendError::Full(())) => {}
            Err(TrySendError::Disconnected(())) => tracing::debug!("the nvml thread has ended"),
        }
    }
}

struct Thread {
    paths: Paths,
    rescan: Option<Duration>,
    reports: mpsc::Sender<Report>,
    asked: Receiver<()>,
    last: Option<Report>,
}

/// Nobody listens any more.
struct Ended;

impl Thread {
    fn run(mut self) {
        let mut wait = SHORTEST_WAIT;
        // Without a driver: look for one, with longer and longer pauses.
        loop {
            let error = match Driver::open(&self.paths) {
                Ok(driver) => match self.with_driver(driver, &mut wait) {
                    Ok(error) => error,
                    Err(Ended) => return,
                },
                Err(error) => error,
            };
            if self.report(Report::NoDriver(error)).is_err() || self.pause(Some(wait)).is_err() {
                return;
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Looks again and again, with the library open, until the driver is gone: then says why. A driver that can be
    /// opened and not be read is none: `wait` begins anew only once a look succeeded.
    fn with_driver(&mut self, mut driver: Driver, wait: &mut Duration) -> Result<DriverError, Ended> {
        let mut known_problems = Vec::new();
        let mut opened = false;
        loop {
            match driver.look(&self.paths) {
                Ok(inventory) => {
                    if !std::mem::replace(&mut opened, true) {
                        let library = driver.library().display();
                        tracing::info!(%library, driver = driver.version(), "opened NVML");
                        *wait = SHORTEST_WAIT;
                    }
                    log_new_problems(&known_problems, &inventory.problems);
                    known_problems.clone_from(&inventory.problems);
                    self.report(Report::Inventory(inventory))?;
                }
                Err(error) => return Ok(error),
            }
            self.pause(self.rescan)?;
        }
    }

    fn report(&mut self, report: Report) -> Result<(), Ended> {
        if self.last.as_ref() == Some(&report) {
            tracing::debug!("nothing changed");
            return Ok(());
        }
        if let Report::NoDriver(error) = &report {
            tracing::warn!(%error, "no driver");
        }
        self.last = Some(report.clone());
        self.reports.blocking_send(report).map_err(|_closed| Ended)
    }

    /// Waits until somebody asks, or for this long.
    fn pause(&self, longest: Option<Duration>) -> Result<(), Ended> {
        match longest {
            None => self.asked.recv().map_err(|_dropped| Ended),
            Some(longest) => match self.asked.recv_timeout(longest) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => Ok(()),
                Err(RecvTimeoutError::Disconnected) => Err(Ended),
            },
        }
    }
}

/// One line per problem, when it appears and not on every look.
fn log_new_problems(known: &[Problem], problems: &[Problem]) {
    for problem in problems.iter().filter(|problem| !known.contains(problem)) {
        let Problem { gpu, mig_device, reason, left_out } = problem;
        if *left_out {
            tracing::warn!(gpu, mig_device, %reason, "left out");
        } else {
            tracing::warn!(gpu, mig_device, %reason, "incomplete");
        }
    }
}
