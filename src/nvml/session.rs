//! The thread that asks the driver, so that nothing else ever waits for it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::enumerate::Driver;
use super::error::DriverError;
use super::places::Paths;
use super::status::Status;
use crate::health::HealthEvent;
use crate::inventory::{Inventory, Problem};

/// While there is no driver it is looked for after this, then after twice as long, up to [`LONGEST_WAIT`].
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// What the thread has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// What was found: by every look that succeeded, since that nothing has changed is evidence too.
    Inventory {
        /// All that is there.
        inventory: Inventory,
        /// When the look began: what happened later may not be in it.
        began: Instant,
    },
    /// There is no driver at the moment. Sent again when the reason changes.
    NoDriver(DriverError),
    /// Something happened to a GPU.
    Event(HealthEvent),
    /// The library in this process is not the file that is there now, and the loader does not let go of it: only a new
    /// process can open the new one. Sent once, after [`Report::NoDriver`].
    StaleLibrary(PathBuf),
    /// NVML is shut down, as [`Session::hold`] asked for.
    OnHold,
}

/// The thread "nvml", which looks at the driver when asked and at intervals. It ends on its own after the
/// session was dropped, or after nobody receives its reports any more. Nobody waits for its end: a call
/// into the driver may never come back.
#[derive(Debug)]
pub struct Session {
    requests: Sender<Request>,
    status: Arc<Status>,
}

enum Request {
    Look,
    Hold,
    Resume,
}

impl Session {
    /// Starts the thread. It looks at once, then every `rescan` where that is given. While there is no
    /// driver, it keeps looking for one in any case.
    pub fn spawn(
        paths: Paths,
        rescan: Option<Duration>,
        reports: mpsc::Sender<Report>,
    ) -> std::io::Result<Self> {
        let (requests, asked) = channel();
        let thread = Thread { paths, rescan, reports, asked, last: None };
        std::thread::Builder::new().name("nvml".to_owned()).spawn(move || thread.run())?;
        Ok(Self { requests, status: Arc::default() })
    }

    /// Asks for a look now. Never blocks; requests that come faster than looks become one.
    pub fn rescan(&self) {
        self.request(Request::Look);
    }

    /// Shuts NVML down and stays away from the driver, until [`Session::resume`]. [`Report::OnHold`] says when it is
    /// done.
    pub fn hold(&self) {
        self.request(Request::Hold);
    }

    /// Opens NVML again.
    pub fn resume(&self) {
        self.request(Request::Resume);
    }

    /// How the session is getting on, to be read at any time.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
    }

    fn request(&self, request: Request) {
        if self.requests.send(request).is_err() {
            tracing::debug!("the nvml thread has ended");
        }
    }
}

struct Thread {
    paths: Paths,
    rescan: Option<Duration>,
    reports: mpsc::Sender<Report>,
    asked: Receiver<Request>,
    last: Option<Report>,
}

/// What comes after the library was closed.
enum Next {
    Without(DriverError),
    OnHold,
}

/// Nobody listens any more.
struct Ended;

impl Thread {
    fn run(mut self) {
        let mut wait = SHORTEST_WAIT;
        // Without a driver: look for one, with longer and longer pauses.
        loop {
            let error = match Driver::open(&self.paths) {
                Ok(driver) => self.with_driver(driver, &mut wait),
                Err(error) => Ok(Next::Without(error)),
            };
            match error {
                Ok(Next::Without(error)) => {
                    if self.report(Report::NoDriver(error)).is_err() {
                        return;
                    }
                    match self.pause(Some(wait)) {
                        Ok(Request::Hold) => {
                            if self.stay_away().is_err() {
                                return;
                            }
                            wait = SHORTEST_WAIT;
                        }
                        Ok(Request::Look | Request::Resume) => wait = (wait * 2).min(LONGEST_WAIT),
                        Err(Ended) => return,
                    }
                }
                Ok(Next::OnHold) => {
                    if self.stay_away().is_err() {
                        return;
                    }
                }
                Err(Ended) => return,
            }
        }
    }

    /// Looks again and again, with the library open, until the driver is gone: then says why. A driver that can be
    /// opened and not be read is none: `wait` begins anew only once a look succeeded.
    fn with_driver(&mut self, mut driver: Driver, wait: &mut Duration) -> Result<Next, Ended> {
        let mut known_problems = Vec::new();
        let mut opened = false;
        loop {
            let began = Instant::now();
            match driver.look(&self.paths) {
                Ok(inventory) => {
                    if !std::mem::replace(&mut opened, true) {
                        let library = driver.library().display();
                        tracing::info!(%library, driver = driver.version(), "opened NVML");
                        *wait = SHORTEST_WAIT;
                    }
                    log_new_problems(&known_problems, &inventory.problems);
                    known_problems.clone_from(&inventory.problems);
                    self.report(Report::Inventory { inventory, began })?;
                }
                Err(error) => return Ok(Next::Without(error)),
            }
            if matches!(self.pause(self.rescan)?, Request::Hold) {
                return Ok(Next::OnHold);
            }
        }
    }

    /// Until somebody says to go on.
    fn stay_away(&mut self) -> Result<(), Ended> {
        self.report(Report::OnHold)?;
        while !matches!(self.pause(None)?, Request::Resume) {}
        Ok(())
    }

    fn report(&mut self, report: Report) -> Result<(), Ended> {
        if self.last.as_ref() == Some(&report) {
            return Ok(());
        }
        if let Report::NoDriver(error) = &report {
            tracing::warn!(%error, "no driver");
        }
        self.last = Some(report.clone());
        self.reports.blocking_send(report).map_err(|_closed| Ended)
    }

    /// Waits until somebody asks, or for this long.
    fn pause(&self, longest: Option<Duration>) -> Result<Request, Ended> {
        match longest {
            None => self.asked.recv().map_err(|_dropped| Ended),
            Some(longest) => match self.asked.recv_timeout(longest) {
                Ok(request) => Ok(request),
                Err(RecvTimeoutError::Timeout) => Ok(Request::Look),
                Err(RecvTimeoutError::Disconnected) => Err(Ended),
            },
        }
    }
}

/// One line per problem, when it appears and not on every look.
fn log_new_problems(known: &[Problem], problems: &[Problem]) {
    for problem in problems.iter().filter(|problem| !known.contains(problem)) {
        let Problem { gpu, mig_device, uuid: _, reason, left_out } = problem;
        if *left_out {
            tracing::warn!(gpu, mig_device, %reason, "left out");
        } else {
            tracing::warn!(gpu, mig_device, %reason, "incomplete");
        }
    }
}
