//! A session with the driver. None of its threads waits for another, and nobody waits for any of them.
//!
//! ```text
//!  rescan, hold, resume ──► Message ──► "nvml": the Coordinator, which calls nothing in the library
//!                              ▲              │ starts, gives up after a while
//!                              │              ├──► "nvml-open": opens the library
//!                              │              ├──► "nvml-look": asks each GPU in turn
//!                              │              ├──► "nvml-links": asks once how GPUs are connected ──► Status
//!                              └──────────────┴──► "nvml-events": waits for events ──► Report::Event
//!                                             ▼
//!                      Report::Inventory, NoDriver, StaleLibrary, OnHold
//!
//!   Away ──► Opening ──► Open ──► Closing ──► Away (again after a while), Held (until resume), or the end
//! ```
//!
//! A thread that is in a call which does not come back is left behind: it holds the library open, is counted in
//! [`Status::hanging`], and ends when its call does. A GPU that was given up is asked again beside the looks, after a
//! pause that grows, and is back in them when it answers in time. One that stays lost or needs a reset is let go by
//! closing NVML and opening it again without it.

mod coordinator;
mod ears;
mod linking;
mod open;
mod released;
mod stuck;
mod threads;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::error::DriverError;
use super::events::End;
use super::places::Paths;
use super::status::Status;
use crate::health::HealthEvent;
use crate::inventory::{Inventory, Links};

use self::coordinator::Coordinator;
pub(super) use self::threads::OpenDriver;
use self::threads::Step;

/// What a session has to say.
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
    /// Nothing is asked any more, as [`Session::hold`] asked for.
    OnHold {
        /// Whether NVML is shut down. Where a call that hangs keeps it open, this is sent again when that has come back.
        closed: bool,
    },
}

/// How long calls may take before something is done about it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For one GPU to tell what it has, for a call that concerns the driver as a whole, and for one about events.
    pub(super) answer: Duration,
    /// For the library to open, and for each GPU in the first look after that. `nvmlInit_v2` starts no GPU; asking for
    /// a GPU's handle does where nothing keeps it running, which takes seconds. The first list waits for the sum of
    /// those, and so for a GPU that does not answer at all.
    pub(super) opening: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { answer: Duration::from_secs(5), opening: Duration::from_secs(25) }
    }
}

/// A session with the driver. It ends on its own after it was dropped, or after nobody receives its reports any more.
#[derive(Debug)]
pub struct Session {
    asks: Asks,
    status: Arc<Status>,
}

/// What a session does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SessionOptions {
    /// How often it looks without being asked; `None`: never.
    pub rescan: Option<Duration>,
    /// How long a GPU may stay lost before NVML is closed and opened again without it; `None`: for ever.
    pub release_after: Option<Duration>,
    /// Whether a GPU that can be asked and needs a reset is released too.
    pub release_for_reset: bool,
}

impl Session {
    /// Opens the library and looks at once, then as `options` say. While there is no driver, it keeps looking for one in
    /// any case.
    pub fn spawn(
        paths: Paths,
        options: SessionOptions,
        reports: mpsc::Sender<Report>,
    ) -> std::io::Result<Self> {
        Self::spawn_with(paths, options, Patience::default(), reports)
    }

    /// As [`Session::spawn`], with more or less patience.
    pub(super) fn spawn_with(
        paths: Paths,
        options: SessionOptions,
        patience: Patience,
        reports: mpsc::Sender<Report>,
    ) -> std::io::Result<Self> {
        let (sender, messages) = channel();
        let asks = Asks { sender, look: Arc::default() };
        let status = Arc::<Status>::default();
        let coordinator =
            Coordinator::new(paths, options, patience, reports, Arc::clone(&status), asks.clone(), messages);
        std::thread::Builder::new().name("nvml".to_owned()).spawn(move || coordinator.run())?;
        Ok(Self { asks, status })
    }

    /// Asks for a look that begins after this. Never blocks; requests that come faster than looks become one.
    pub fn rescan(&self) {
        self.asks.look();
    }

    /// Shuts NVML down and stays away from the driver, until [`Session::resume`]. [`Report::OnHold`] says how
    /// far that is done.
    pub fn hold(&self) {
        self.asks.send(Message::Hold);
    }

    /// Opens NVML again, and asks for GPUs again that were released.
    pub fn resume(&self) {
        self.asks.send(Message::Resume);
    }

    /// How the session is getting on, to be read at any time.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.asks.send(Message::End);
    }
}

/// Which of a session's threads, or which opening of the library.
type Id = u64;

/// All that the coordinator hears.
enum Message {
    /// [`Asks::look`]
    Look,
    Hold,
    Resume,
    End,
    /// What came of opening the library.
    Opened(Id, Result<Arc<OpenDriver>, DriverError>),
    /// All that opening it led to is gone: NVML is shut down, and the library closed.
    Closed(Id),
    /// From a look.
    Step(Id, Step),
    /// What GPUs have said of how they are connected.
    Linked(Id, Links),
    /// A listener has ended.
    Listened(Id, End),
}

/// The way to the coordinator.
#[derive(Debug, Clone)]
pub(super) struct Asks {
    sender: Sender<Message>,
    /// Whether a look was asked for that has not begun.
    look: Arc<AtomicBool>,
}

impl Asks {
    /// Asks for a look that begins after this.
    pub(super) fn look(&self) {
        if !self.look.swap(true, Ordering::AcqRel) {
            self.send(Message::Look);
        }
    }

    fn wants_look(&self) -> bool {
        self.look.load(Ordering::Acquire)
    }

    fn look_begins(&self) {
        self.look.store(false, Ordering::Release);
    }

    fn send(&self, message: Message) {
        if self.sender.send(message).is_err() {
            tracing::debug!("the session has ended");
        }
    }
}
