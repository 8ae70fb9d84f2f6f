//! What goes on while the library is open: looks, and the thread that listens for events.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::coordinator::{Coordinator, Ended};
use super::ears::Ears;
use super::linking::Linking;
use super::stuck::Stuck;
use super::threads::{self, OpenDriver, Range, Step, spawn};
use super::{Id, Message, Report};
use crate::inventory::{Problem, Trouble, TroubleKind};
use crate::nvml::calls::Caller;
use crate::nvml::enumerate::{Cache, Part, SETTLING};
use crate::nvml::error::DriverError;

/// Looks that are asked for in a burst are this far apart.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// What ends the time that a library is open.
pub(super) enum Broken {
    /// The driver cannot be used any more.
    Driver(DriverError),
    /// It is to be closed and opened again, so that GPUs are let go of.
    Reopen,
    /// Nobody listens any more.
    Ended,
}

impl From<Ended> for Broken {
    fn from(Ended: Ended) -> Self {
        Self::Ended
    }
}

/// The state of an open library.
pub(super) struct Open {
    pub(super) id: Id,
    driver: Arc<OpenDriver>,
    cache: Box<Cache>,
    look: Option<Look>,
    /// Whether a look has succeeded.
    looked: bool,
    /// When there is a look in any case.
    next_look: Option<Instant>,
    /// Until when there is none.
    pause: Instant,
    /// GPUs that no look asks.
    stuck: Stuck,
    uuids: BTreeMap<u32, String>,
    problems: Vec<Problem>,
    pub(super) ears: Ears,
    pub(super) linking: Linking,
}

/// A look under way.
struct Look {
    id: Id,
    calls: Caller,
    began: Instant,
    /// When it last came forward.
    step: Instant,
    /// Whether the library has answered: how many GPUs there are, or since one of them has not.
    counted: bool,
    /// Whether it was reported that it has not.
    told: bool,
    /// GPUs that have not answered yet, in the order in which they are asked.
    to_ask: VecDeque<u32>,
    parts: BTreeMap<u32, Part>,
}

impl Open {
    pub(super) fn new(id: Id, driver: Arc<OpenDriver>) -> Self {
        let now = Instant::now();
        Self {
            id,
            driver,
            cache: Box::default(),
            look: None,
            looked: false,
            next_look: Some(now),
            pause: now,
            stuck: Stuck::default(),
            uuids: BTreeMap::new(),
            problems: Vec::new(),
            ears: Ears::default(),
            linking: Linking::default(),
        }
    }

    /// Ends its threads, as far as they can be. What is left holds the library open.
    pub(super) fn end(self) -> Arc<OpenDriver> {
        if let Some(look) = self.look {
            look.calls.give_up();
        }
        self.stuck.give_up();
        self.ears.stop();
        self.linking.stop();
        self.driver
    }

    pub(super) fn deadline(&self, session: &Coordinator) -> Option<Instant> {
        let look = match &self.look {
            Some(look) => look.can_be_helped(session).then(|| look.step + self.patience(session, look)),
            None if session.asks.wants_look() => Some(self.pause),
            None => self.next_look,
        };
        let released = self.may_release(session).then(|| session.released.deadline()).flatten();
        [look, self.stuck.deadline(), self.ears.deadline(), released].into_iter().flatten().min()
    }

    /// Whether NVML can be closed to let GPUs go: between two looks, and while no call hangs.
    fn may_release(&self, session: &Coordinator) -> bool {
        self.look.is_none() && session.can_close()
    }

    /// How long the call that a look is in may take. The first look starts the GPUs, where nothing else has: NVML does so
    /// when it is asked for a GPU's handle.
    fn patience(&self, session: &Coordinator, look: &Look) -> Duration {
        if look.counted && !self.looked { session.patience.opening } else { session.patience.answer }
    }

    pub(super) fn on_time(&mut self, session: &mut Coordinator) -> Result<(), Broken> {
        let now = Instant::now();
        let stalled =
            |look: &Look| look.can_be_helped(session) && look.step + self.patience(session, look) <= now;
        if self.look.as_ref().is_some_and(stalled) {
            self.lose_patience(session)?;
        }
        let due = self.next_look.is_some_and(|at| at <= now);
        if self.look.is_none() && (due || session.asks.wants_look()) && self.pause <= now {
            self.begin_look(session);
        }
        while let Some(index) = self.stuck.due(now) {
            self.try_gpu(session, index);
        }
        if self.may_release(session) {
            if session.released.wake(now) {
                session.asks.look();
            }
            let released = session.released.release(now);
            for (gpu, uuid, why) in &released {
                tracing::warn!(
                    gpu,
                    uuid,
                    why,
                    "closing NVML and opening it again without this GPU, so that it can be reset (nvidia-smi -r refuses \
                     while a process has it open); send SIGUSR2 once it has been reset. Events of the moment in which NVML \
                     is closed are lost"
                );
            }
            if !released.is_empty() {
                return Err(Broken::Reopen);
            }
        }
        self.ears.check(session, &self.driver);
        Ok(())
    }

    fn begin_look(&mut self, session: &mut Coordinator) {
        session.asks.look_begins();
        self.next_look = None;
        let began = Instant::now();
        let mut skipped = self.stuck.gpus();
        skipped.extend(session.released.gpus());
        self.look = self.ask(session, Range::AllBut(skipped)).map(|(id, calls)| Look {
            id,
            calls,
            began,
            step: began,
            counted: false,
            told: false,
            to_ask: VecDeque::new(),
            parts: BTreeMap::new(),
        });
    }

    /// Starts a thread that looks. If there can be none, it is tried again later.
    fn ask(&mut self, session: &mut Coordinator, range: Range) -> Option<(Id, Caller)> {
        session.status.progressed();
        let cache = std::mem::take(&mut self.cache);
        let asked = self.start(session, cache, range);
        if asked.is_none() {
            self.next_look = Some(Instant::now() + session.patience.answer);
        }
        asked
    }

    /// Asks one GPU whether it answers in time again, while looks go on without it: nobody waits for that thread.
    fn try_gpu(&mut self, session: &mut Coordinator, index: u32) {
        let range = Range::Only(vec![index]);
        let started =
            session.may_leave_behind().then(|| self.start(session, Box::default(), range)).flatten();
        if let Some((id, _)) = &started {
            session.leave_behind(*id);
        }
        self.stuck.tried(index, started, session.patience.answer);
    }

    fn start(&self, session: &mut Coordinator, cache: Box<Cache>, range: Range) -> Option<(Id, Caller)> {
        let id = session.new_id();
        let calls = session.status.caller();
        let (driver, caller) = (Arc::clone(&self.driver), calls.clone());
        let (paths, asks) = (session.paths.clone(), session.asks.clone());
        let work = move || {
            threads::look(&driver, &caller, &paths, cache, range, |step| {
                asks.send(Message::Step(id, step));
            });
        };
        match spawn("nvml-look", work) {
            Ok(()) => Some((id, calls)),
            Err(error) => {
                tracing::error!(%error, "no thread can be started to look at the driver");
                None
            }
        }
    }

    pub(super) fn take_step(&mut self, session: &mut Coordinator, id: Id, step: Step) -> Result<(), Broken> {
        let Some(look) = self.look.as_mut().filter(|look| look.id == id) else { return Ok(()) };
        look.step = Instant::now();
        session.status.progressed();
        match step {
            Step::Count(count) => {
                look.counted = true;
                let left_alone = session.released.gpus();
                let is_asked = |index: &u32| self.stuck.call(*index).is_none() && !left_alone.contains(index);
                look.to_ask = (0..count).filter(is_asked).collect();
                for index in 0..count {
                    if let Some((uuid, why)) = session.released.left_alone(index) {
                        look.parts.insert(index, Part::left_out(index, uuid, why));
                    } else if let Some(call) = self.stuck.call(index) {
                        look.parts.insert(index, no_answer(index, self.uuids.get(&index), call));
                    }
                }
                session.released.count(count);
                if session.released.gpus() != left_alone {
                    session.asks.look();
                }
                Ok(())
            }
            Step::Alive => {
                look.counted = true;
                Ok(())
            }
            Step::Gpu(index, part) => {
                look.to_ask.retain(|other| *other != index);
                look.parts.insert(index, *part);
                Ok(())
            }
            Step::Failed(error) => {
                self.look = None;
                Err(Broken::Driver(DriverError::from_call(self.driver.library().to_owned(), error)))
            }
            Step::Done(cache) => {
                self.cache = cache;
                self.finish_look(session)
            }
        }
    }

    /// The look has not come forward for too long.
    fn lose_patience(&mut self, session: &mut Coordinator) -> Result<(), Broken> {
        let Some(look) = &mut self.look else { return Ok(()) };
        let call = look.calls.under_way().map_or("a call", |under_way| under_way.call);
        if !look.counted {
            // All that can be asked depends on it.
            look.told = true;
            session.report_no_driver(DriverError::NoAnswer { call })?;
            return Ok(());
        }
        let Some(index) = look.to_ask.front().copied() else { return Ok(()) };
        let uuid = self.uuids.get(&index);
        tracing::warn!(gpu = index, uuid, call, "the GPU does not answer; going on without it");
        look.calls.give_up();
        session.leave_behind(look.id);
        self.stuck.insert(index, look.id, call, session.patience.answer);
        look.parts.insert(index, no_answer(index, uuid, call));
        look.to_ask.pop_front();
        look.step = Instant::now();
        // Where the whole library hangs nothing is known of any GPU, not even of this one.
        (look.counted, look.told) = (false, false);
        let rest = Range::Only(look.to_ask.iter().copied().collect());
        match self.ask(session, rest) {
            Some((id, calls)) => {
                if let Some(look) = &mut self.look {
                    (look.id, look.calls) = (id, calls);
                }
            }
            None => self.look = None,
        }
        Ok(())
    }

    fn finish_look(&mut self, session: &mut Coordinator) -> Result<(), Broken> {
        let Some(look) = self.look.take() else { return Ok(()) };
        session.status.idle();
        session.has_driver();
        let now = Instant::now();
        self.pause = now + BETWEEN_LOOKS;
        self.next_look = session.options.rescan.map(|rescan| now + rescan);
        for (index, part) in &look.parts {
            if session.released.left_alone(*index).is_none() {
                let uuid = self.uuids.get(index).cloned();
                let why = part.needs_reset(session.options.release_for_reset);
                session.released.asked(*index, uuid, why, now);
            }
        }
        let roots = session.paths.roots();
        let inventory = self.driver.inventory(&roots, look.parts.into_values());
        // Whether a slice is being made or hidden is told by time.
        if inventory.gpus.iter().any(|gpu| gpu.hidden.iter().any(|slice| !slice.settled)) {
            let soon = now + SETTLING;
            self.next_look = Some(self.next_look.map_or(soon, |at| at.min(soon)));
        }
        if !std::mem::replace(&mut self.looked, true) {
            let library = self.driver.library().display();
            tracing::info!(%library, driver = self.driver.version(), "opened NVML");
        }
        log_new_problems(&self.problems, &inventory.problems);
        self.problems.clone_from(&inventory.problems);
        self.uuids.extend(inventory.gpus.iter().map(|gpu| (gpu.index, gpu.uuid.clone())));
        // Every GPU that can be read is listened to.
        self.ears.want(session, &inventory.gpus);
        let gpus = inventory.gpus.clone();
        session.report(Report::Inventory { inventory, began: look.began })?;
        self.linking.want(session, &self.driver, &gpus);
        Ok(())
    }

    /// A thread that nobody waited for has asked its GPU after all.
    #[expect(clippy::unnecessary_wraps, reason = "as the coordinator's other steps")]
    pub(super) fn gpu_is_back(&mut self, session: &Coordinator, thread: Id) -> Result<(), Broken> {
        if self.stuck.came_back(thread, session.patience.answer) {
            session.asks.look();
        }
        Ok(())
    }
}

fn no_answer(index: u32, uuid: Option<&String>, call: &str) -> Part {
    let text = format!("{call} does not come back");
    Part::left_out(index, uuid.cloned(), Trouble { kind: TroubleKind::NoAnswer, text })
}

impl Look {
    /// Whether something can be done about the call that it waits for: to say so, or to go on without a GPU.
    fn can_be_helped(&self, session: &Coordinator) -> bool {
        if self.counted { !self.to_ask.is_empty() && session.may_leave_behind() } else { !self.told }
    }
}

/// One line per problem, when it appears and not on every look.
fn log_new_problems(known: &[Problem], problems: &[Problem]) {
    for problem in problems.iter().filter(|problem| !known.contains(problem)) {
        let Problem { gpu, mig_device, uuid, reason, left_out } = problem;
        if *left_out {
            tracing::warn!(gpu, mig_device, uuid, %reason, "left out");
        } else {
            tracing::warn!(gpu, mig_device, uuid, %reason, "incomplete");
        }
    }
}
