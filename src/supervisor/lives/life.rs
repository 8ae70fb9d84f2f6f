//! The clock, everything that takes time, and the supervisor in the middle of it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, advance};

use super::checks::{Kind, Violation};
use super::kubelet::{Link, SimKubelet};
use super::node::Node;
use super::random::Random;
use super::settings::{self, QUIET};
use super::step::{Step, partition};
use super::told::Told;
use crate::fixtures::cdi_nowhere;
use crate::health::{EventKind, HealthEvent};
use crate::inventory::Inventory;
use crate::metrics::Metrics;
use crate::nvml::{DriverError, Report, Status};
use crate::resource::ledger::Ledger;
use crate::resource::policy::{DeviceSelection, SharedResource};
use crate::resource::{Device, DeviceId, ResourceName, resolve};
use crate::supervisor::{
    Driver, Event, Knowledge, Outlook, Outside, Pulse, Reload, Serving, Shown, Supervisor,
};

/// How often the driver is looked at if nothing else asks for it.
const RESCAN: Duration = Duration::from_secs(30);

/// After so long with nothing happening the lists must be right: the quiet period of a GPU that had many errors is
/// 10 min.
const CALM: Duration = Duration::from_mins(25);

/// The supervisor may wake so often in a second while it waits for something.
const TICKS: u32 = 60;

/// So many lists without news may come in a minute, since each shows which devices are free.
const SENT_AGAIN: usize = 30;

/// What the supervisor asked of the driver.
#[derive(Debug, Default)]
pub(super) struct SimDriver {
    look: Cell<bool>,
    pub(super) on_hold: Cell<bool>,
    status: Arc<Status>,
}

impl Driver for SimDriver {
    fn rescan(&self) {
        self.look.set(true);
    }

    fn hold(&self) {
        self.on_hold.set(true);
    }

    fn resume(&self) {
        self.on_hold.set(false);
        self.look.set(true);
    }

    fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
    }
}

/// What comes later.
#[derive(Debug)]
pub(super) enum Due {
    Rescan,
    LookBegins,
    LookEnds(Option<Inventory>, Instant),
    Heard(HealthEvent),
    Answer,
    Registered(ResourceName),
    Delivered(ResourceName),
    KubeletStarts,
    ApiPods,
    PluginStarts,
    Admitted(u32, Vec<DeviceId>),
}

/// What the plugin can get at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access {
    /// Whether podresources answers.
    pub(super) pod_resources: bool,
    /// Whether the checkpoint can be read and has a form that is known.
    pub(super) checkpoint: bool,
}

impl Access {
    const ALL: Self = Self { pod_resources: true, checkpoint: true };
}

pub(super) struct Life<'a> {
    pub(super) random: Random,
    pub(super) node: Node,
    pub(super) kubelet: Rc<RefCell<SimKubelet>>,
    pub(super) driver: &'a SimDriver,
    show: &'a Shown,
    pulse: mpsc::Sender<Pulse>,
    metrics: Metrics,
    pub(super) settings: Reload,
    pub(super) supervisor: Option<Supervisor<'a, Link>>,
    /// Whether a look at the driver is under way.
    looking: bool,
    /// By when it is, which plugin and which kubelet it concerns, and in which order it was made.
    due: BTreeMap<(Instant, u64), (u64, u64, Due)>,
    made: u64,
    /// Counts the processes.
    plugin: u64,
    pub(super) access: Access,
    pub(super) last_pod: u32,
    pub(super) told: Told,
    ticks: (Instant, u32),
    trace: bool,
    began: Instant,
}

pub(super) type Checked<T = ()> = Result<T, Violation>;

impl<'a> Life<'a> {
    pub(super) fn new(seed: u64, driver: &'a SimDriver, show: &'a Shown, trace: bool) -> Self {
        let mut random = Random::new(seed);
        let mut node = Node::new();
        for gpu in 0..node.gpus.len() {
            let step = Step::Mig(gpu, random.percent(60));
            partition(&mut node, step, &mut random);
        }
        let settings = settings::any(&mut random);
        let now = Instant::now();
        let mut kubelet = SimKubelet::default();
        kubelet.start(now);
        kubelet.know_pods();
        let mut life = Self {
            random,
            node,
            kubelet: Rc::new(RefCell::new(kubelet)),
            driver,
            show,
            pulse: mpsc::channel(1).0,
            metrics: Metrics::new(),
            settings,
            supervisor: None,
            looking: false,
            due: BTreeMap::new(),
            made: 0,
            plugin: 0,
            access: Access::ALL,
            last_pod: 0,
            told: Told::default(),
            ticks: (now, 0),
            trace,
            began: now,
        };
        life.plugin_starts();
        life
    }

    /// Lives for so many steps, and then until all is calm.
    pub(super) async fn run(&mut self, steps: usize) -> Checked {
        for _ in 0..steps {
            let step = Step::any(&mut self.random);
            self.say(|| format!("{step:?}"));
            self.take(step)?;
            let pause =
                if self.random.percent(80) { self.random.ms(0, 1500) } else { self.random.ms(0, 20_000) };
            self.pass(pause).await?;
        }
        self.calm_down().await
    }

    #[expect(clippy::print_stderr, reason = "for whoever looks at one life")]
    pub(super) fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>10.3} {}", self.began.elapsed().as_secs_f64(), what());
        }
    }

    pub(super) fn after(&mut self, pause: Duration, due: Due) {
        self.made += 1;
        let life = self.kubelet.borrow().life;
        self.due.insert((Instant::now() + pause, self.made), (self.plugin, life, due));
    }

    pub(super) fn soon(&mut self, least: u64, most: u64, due: Due) {
        let pause = self.random.ms(least, most);
        self.after(pause, due);
    }

    /// Lets time pass, and everything happen that is due in it.
    async fn pass(&mut self, time: Duration) -> Checked {
        let end = Instant::now() + time;
        loop {
            let now = Instant::now();
            let pause = self.supervisor.as_ref().and_then(Supervisor::pause);
            // A timer takes a millisecond at least.
            let tick = pause.map(|pause| now + pause.max(Duration::from_millis(1)));
            let due = self.due.first_key_value().map(|(key, _)| key.0);
            let next = tick.into_iter().chain(due).min().filter(|next| *next <= end);
            advance(next.unwrap_or(end).saturating_duration_since(now)).await;
            match next {
                None => return Ok(()),
                Some(next) if due == Some(next) => {
                    let Some((_, (plugin, life, due))) = self.due.pop_first() else { continue };
                    self.happen(plugin, life, due)?;
                }
                Some(_) => {
                    self.count_tick()?;
                    self.tell(Event::Tick)?;
                }
            }
        }
    }

    fn count_tick(&mut self) -> Checked {
        let (since, count) = &mut self.ticks;
        *count += 1;
        if since.elapsed() >= Duration::from_secs(1) {
            self.ticks = (Instant::now(), 0);
        } else if *count > TICKS {
            return Err(Violation::new(Kind::Spins, format!("{count} times in {:?}", since.elapsed())));
        }
        Ok(())
    }

    /// As the supervisor's own loop does with each event.
    pub(super) fn tell(&mut self, event: Event) -> Checked {
        if let Some(supervisor) = &mut self.supervisor {
            let ended = supervisor.take(event);
            assert!(ended.is_none(), "nothing here ends it: {ended:?}");
            supervisor.apply();
        }
        self.follow_up()
    }

    /// What the supervisor wants done.
    pub(super) fn follow_up(&mut self) -> Checked {
        if self.driver.look.get() && !self.looking && !self.driver.on_hold.get() && self.supervisor.is_some()
        {
            self.driver.look.set(false);
            self.looking = true;
            self.soon(0, 20, Due::LookBegins);
        }
        if self.supervisor.as_mut().is_some_and(|supervisor| supervisor.serving.has_a_question()) {
            self.soon(1, 100, Due::Answer);
        }
        let changed = std::mem::take(&mut self.kubelet.borrow_mut().changed);
        for name in changed {
            self.check_published(&name)?;
            let watched = self.kubelet.borrow().endpoints.get(&name).map(|endpoint| endpoint.watched);
            match watched {
                Some(true) => self.soon(1, 200, Due::Delivered(name)),
                Some(false) => self.soon(10, 500, Due::Registered(name)),
                None => {}
            }
        }
        Ok(())
    }

    fn happen(&mut self, plugin: u64, life: u64, due: Due) -> Checked {
        self.kubelet.borrow_mut().forget(Instant::now());
        let is_up = self.kubelet.borrow().up && self.kubelet.borrow().life == life;
        let is_current = self.plugin == plugin && self.supervisor.is_some();
        match due {
            Due::KubeletStarts => return self.kubelet_starts(),
            // It has to wait for the checkpoint.
            Due::PluginStarts if !self.access.checkpoint => self.soon(100, 1000, Due::PluginStarts),
            Due::PluginStarts if self.plugin == plugin => {
                self.plugin_starts();
                return self.follow_up();
            }
            Due::ApiPods if is_up => {
                self.say(|| "the API server's pods are there".to_owned());
                self.kubelet.borrow_mut().know_pods();
            }
            Due::Admitted(pod, ids) if is_up => return self.admitted(pod, &ids),
            _ if !is_current => {}
            Due::Rescan => {
                self.driver.look.set(true);
                self.after(RESCAN, Due::Rescan);
                return self.follow_up();
            }
            Due::LookBegins => {
                let found = self.node.driver.then(|| self.node.look());
                self.soon(5, 300, Due::LookEnds(found, Instant::now()));
            }
            Due::LookEnds(found, began) => {
                self.looking = false;
                return self.looked(found, began);
            }
            Due::Heard(event) => {
                if event.gpu_instance.is_none()
                    && event.kind == EventKind::Xid(79)
                    && self.told.has_gpu(&event.gpu_uuid)
                {
                    self.told.errors.insert(event.gpu_uuid.clone(), Instant::now() + QUIET);
                }
                return self.tell(Event::Report(Report::Event(event)));
            }
            Due::Answer => return self.answer(),
            Due::Registered(name) if is_up => {
                if let Some(endpoint) = self.kubelet.borrow_mut().endpoints.get_mut(&name) {
                    endpoint.watched = true;
                    endpoint.sent = None;
                }
                return self.delivered(&name);
            }
            Due::Delivered(name) if is_up => return self.delivered(&name),
            _ => {}
        }
        Ok(())
    }

    fn delivered(&mut self, name: &ResourceName) -> Checked {
        let mut kubelet = self.kubelet.borrow_mut();
        kubelet.take_list(name)?;
        if kubelet.sent_again.len() > SENT_AGAIN {
            let text = format!("{name} is one of {SENT_AGAIN} lists in a minute that say nothing new");
            return Err(Violation::new(Kind::Floods, text));
        }
        drop(kubelet);
        self.say(|| {
            let kubelet = self.kubelet.borrow();
            let list =
                kubelet.resources.get(name).and_then(|resource| resource.list.clone()).unwrap_or_default();
            let told = list
                .iter()
                .map(|(id, told)| format!("{id}{}", if told.healthy { "" } else { " (unhealthy)" }));
            format!("    {name}: {}", told.collect::<Vec<_>>().join(", "))
        });
        Ok(())
    }

    fn looked(&mut self, found: Option<Inventory>, began: Instant) -> Checked {
        if self.driver.on_hold.get() {
            return Ok(());
        }
        self.told.no_driver = found.is_none();
        let report = match found {
            Some(inventory) => {
                self.told.take(inventory.clone());
                Report::Inventory { inventory, began: began.into_std() }
            }
            None => Report::NoDriver(DriverError::NotFound {
                library: "libnvidia-ml.so.1",
                tried: Vec::new(),
                loader: String::new(),
            }),
        };
        self.tell(Event::Report(report))
    }

    fn answer(&mut self) -> Checked {
        let look = {
            let mut kubelet = self.kubelet.borrow_mut();
            let answers = kubelet.up && self.access.pod_resources;
            let listed = answers.then(|| kubelet.listed());
            super::look(listed, self.access.checkpoint, kubelet.file.as_ref(), kubelet.up)
        };
        self.say(|| format!("    {look:?}"));
        self.tell(Event::Look(look))
    }

    fn kubelet_starts(&mut self) -> Checked {
        if self.kubelet.borrow().up {
            return Ok(());
        }
        self.say(|| "the kubelet starts".to_owned());
        self.kubelet.borrow_mut().start(Instant::now());
        let late = if self.random.percent(50) { 1500 } else { 15_000 };
        self.soon(100, late, Due::ApiPods);
        let names: Vec<_> = self.kubelet.borrow().endpoints.keys().cloned().collect();
        for name in names {
            self.soon(20, 800, Due::Registered(name));
        }
        if self.supervisor.as_ref().is_some_and(|supervisor| supervisor.serving.waits_for_kubelet()) {
            return self.tell(Event::Tick);
        }
        Ok(())
    }

    fn plugin_starts(&mut self) {
        if self.supervisor.is_some() {
            return;
        }
        self.told = Told::default();
        self.supervise(Knowledge::default(), Ledger::default());
    }

    /// The plugin begins anew with what it knows and has served, as for a configuration that changes roots.
    pub(super) fn start_over(&mut self) {
        let Some(supervisor) = self.supervisor.take() else { return };
        let (_, ledger) = supervisor.serving.into_parts();
        self.kubelet.borrow_mut().plugin_gone(Instant::now());
        self.supervise(supervisor.outlook.into_knowledge(), ledger);
    }

    fn supervise(&mut self, knowledge: Knowledge, ledger: Ledger) {
        self.say(|| format!("the plugin starts: {:?}", self.settings.policy.offer));
        self.plugin += 1;
        let cdi = cdi_nowhere();
        let policy = self.settings.policy.clone();
        let grace = policy.removal_grace;
        self.supervisor = Some(Supervisor {
            outlook: Outlook::new(policy, cdi, false, knowledge),
            serving: Serving::new(Link(Rc::clone(&self.kubelet)), grace, ledger),
            outside: Outside { driver: self.driver, show: self.show, pulse: self.pulse.clone() },
            driver_root: "/nonexistent".into(),
            metrics: self.metrics.clone(),
            stale: None,
        });
        self.driver.on_hold.set(false);
        self.driver.look.set(false);
        self.looking = true;
        self.soon(10, 2000, Due::LookBegins);
        self.after(RESCAN, Due::Rescan);
    }

    /// What is healthy in a list that has just changed must have no reason not to be, as far as anybody has told.
    fn check_published(&self, name: &ResourceName) -> Checked {
        let kubelet = self.kubelet.borrow();
        let devices = kubelet.endpoints.get(name).map_or(&[][..], |endpoint| endpoint.devices.as_slice());
        for device in devices.iter().filter(|device| device.is_healthy()) {
            if let Some(why) = self.told.why_not(device) {
                return Err(Violation::new(Kind::Healthy, format!("{} of {name}: {why}", device.id)));
            }
        }
        Ok(())
    }

    /// Nothing happens any more, and nothing is held: the lists become what they should be.
    async fn calm_down(&mut self) -> Checked {
        self.say(|| "all is calm".to_owned());
        self.node.driver = true;
        for gpu in &mut self.node.gpus {
            (gpu.lost, gpu.needs_reset) = (false, false);
        }
        self.access = Access::ALL;
        self.kubelet.borrow_mut().pods.clear();
        self.take(Step::Hold(false))?;
        let end = Instant::now() + CALM;
        loop {
            self.pass(Duration::from_secs(10)).await?;
            let Err(what) = self.is_right() else { return Ok(()) };
            if Instant::now() >= end {
                return Err(Violation::new(Kind::NotConverged, what));
            }
        }
    }

    /// Whether the kubelet has the lists that the configuration makes of the node.
    fn is_right(&self) -> Result<(), String> {
        let kubelet = self.kubelet.borrow();
        let offer = &self.settings.policy.offer;
        let earlier = self.supervisor.as_ref().map(|supervisor| supervisor.outlook.wanted());
        // Which devices are shared where only their number is given depends on what was shared before.
        let counts = |shared: &SharedResource| matches!(shared.devices, DeviceSelection::Count(_));
        let wanted = match earlier {
            Some(wanted) if offer.time_slicing.resources.iter().any(counts) => wanted.resources.clone(),
            _ => resolve(&self.node.look(), offer).resources,
        };
        for (name, devices) in &wanted {
            let told =
                kubelet.endpoints.get(name).and_then(|endpoint| endpoint.sent.clone()).unwrap_or_default();
            let is_right = |device: &Device| {
                told.get(&device.id).is_some_and(|told| told.healthy == device.is_healthy())
            };
            if told.len() != devices.len() || !devices.iter().all(is_right) {
                return Err(format!("{name} is {told:?}"));
            }
        }
        let more = kubelet.endpoints.keys().find(|name| !wanted.contains_key(*name));
        more.map_or(Ok(()), |name| Err(format!("{name} is still served")))
    }
}
