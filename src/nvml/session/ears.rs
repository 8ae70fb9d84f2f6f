//! Keeps a thread listening for events: starts it, looks after it, starts another one when it has ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::coordinator::Coordinator;
use super::open::Broken;
use super::threads::{OpenDriver, spawn};
use super::{Id, Message};
use crate::inventory::Gpu;
use crate::nvml::backoff::Backoff;
use crate::nvml::calls::Caller;
use crate::nvml::events::{Control, End, Listener, Wanted};
use crate::nvml::status::Watched;
use crate::throttle::Throttle;

/// How often the thread is looked after.
const CHECK: Duration = Duration::from_secs(1);

/// A thread that has listened for so long begins with the shortest pause again when it fails.
const STEADY: Duration = Duration::from_secs(5);

/// Listening while a library is open.
#[derive(Default)]
pub(super) struct Ears {
    listening: Option<Listening>,
    wanted: Vec<Wanted>,
    /// When a thread is started, while there is none.
    again: Option<Instant>,
    backoff: Backoff,
    /// The driver has no events.
    deaf: Option<String>,
    /// GPUs whose registration hangs, in a thread that was left behind.
    stuck: HashMap<String, Id>,
    /// The thread that was left behind in another call. There is one at most: where the next one hangs too, it is
    /// waited for, so that event threads take no place from those that look.
    left: Option<Id>,
    log: Throttle,
}

struct Listening {
    id: Id,
    calls: Caller,
    control: Arc<Control>,
    since: Instant,
}

impl Ears {
    /// Listens to these GPUs from now on.
    pub(super) fn want(&mut self, session: &Coordinator, gpus: &[Gpu]) {
        session.status.retain_watched(|uuid| gpus.iter().any(|gpu| gpu.uuid == uuid));
        self.wanted =
            gpus.iter().filter(|gpu| !self.stuck.contains_key(&gpu.uuid)).map(Wanted::from).collect();
        if let Some(why) = &self.deaf {
            for gpu in &self.wanted {
                session.status.set_watched(&gpu.uuid, Watched::Nothing(why.clone()));
            }
        } else if let Some(listening) = &self.listening {
            listening.control.want(self.wanted.clone());
        } else if self.again.is_none() {
            self.again = Some(Instant::now());
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.listening {
            Some(_) => Some(Instant::now() + CHECK),
            None => self.again,
        }
    }

    /// Ends the thread, which may take as long as one wait.
    pub(super) fn stop(&self) {
        if let Some(listening) = &self.listening {
            listening.control.stop();
        }
    }

    /// Starts a thread when it is time, and gives one up that hangs.
    pub(super) fn check(&mut self, session: &mut Coordinator, driver: &Arc<OpenDriver>) {
        if let Some(listening) = &self.listening {
            let hanging =
                listening.calls.under_way().filter(|call| call.since.elapsed() >= session.patience.answer);
            let gpu = listening.control.registering();
            let may_leave = session.may_leave_behind() && (gpu.is_some() || self.left.is_none());
            if let Some(hanging) = hanging.filter(|_| may_leave) {
                tracing::warn!(call = hanging.call, gpu, "listening for events hangs; going on without it");
                listening.calls.give_up();
                listening.control.stop();
                session.leave_behind(listening.id);
                if let Some(gpu) = gpu {
                    let why = format!("{} does not come back", hanging.call);
                    session.status.set_watched(&gpu, Watched::Nothing(why));
                    self.wanted.retain(|other| other.uuid != gpu);
                    self.stuck.insert(gpu, listening.id);
                } else {
                    self.left = Some(listening.id);
                }
                self.listening = None;
                self.again = Some(Instant::now() + self.backoff.next());
            }
        }
        if self.again.is_some_and(|at| at <= Instant::now()) {
            self.start(session, driver);
        }
    }

    fn start(&mut self, session: &mut Coordinator, driver: &Arc<OpenDriver>) {
        let id = session.new_id();
        let control = Arc::<Control>::default();
        control.want(self.wanted.clone());
        let calls = session.status.caller();
        let listener = Listener {
            driver: Arc::clone(driver),
            calls: calls.clone(),
            control: Arc::clone(&control),
            status: Arc::clone(&session.status),
            reports: session.reports.clone(),
            asks: session.asks.clone(),
        };
        let asks = session.asks.clone();
        self.again = None;
        match spawn("nvml-events", move || asks.send(Message::Listened(id, listener.run()))) {
            Ok(()) => self.listening = Some(Listening { id, calls, control, since: Instant::now() }),
            Err(error) => {
                tracing::error!(%error, "no thread can be started to listen for events");
                self.again = Some(Instant::now() + session.patience.answer);
            }
        }
    }

    /// A thread that was left behind has ended after all.
    #[expect(clippy::unnecessary_wraps, reason = "as the coordinator's other steps")]
    pub(super) fn gpu_is_back(&mut self, session: &Coordinator, thread: Id) -> Result<(), Broken> {
        self.stuck.retain(|_, stuck| *stuck != thread);
        self.left.take_if(|left| *left == thread);
        session.asks.look();
        Ok(())
    }

    /// The thread has ended.
    pub(super) fn ended(&mut self, session: &Coordinator, id: Id, end: End) -> Result<(), Broken> {
        let Some(listening) = self.listening.take_if(|listening| listening.id == id) else { return Ok(()) };
        match end {
            End::NobodyListens => return Err(Broken::Ended),
            End::Stopped => {}
            End::Outdated => self.again = Some(Instant::now()),
            End::Failed(error) if error.is_refusal() => {
                tracing::warn!(%error, "the driver tells no events");
                let why = error.to_string();
                for gpu in &self.wanted {
                    session.status.set_watched(&gpu.uuid, Watched::Nothing(why.clone()));
                }
                self.deaf = Some(why);
            }
            End::Failed(error) => {
                if listening.since.elapsed() >= STEADY {
                    self.backoff = Backoff::default();
                }
                let wait = self.backoff.next();
                if self.log.ready() {
                    tracing::warn!(%error, ?wait, "listening for events failed; looking at all GPUs, then listening anew");
                }
                self.again = Some(Instant::now() + wait);
                session.asks.look();
            }
        }
        Ok(())
    }
}
