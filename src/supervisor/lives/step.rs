//! What can happen to a node.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::life::{Checked, Due, Life};
use super::node::{GPUS, KINDS, Node, SLOTS, gpu_uuid};
use super::random::Random;
use super::settings;
use crate::health::{EventKind, HealthEvent};
use crate::supervisor::{Command, Event};

/// One thing that happens.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    /// Somebody makes an instance, or destroys one; what was in the slot goes.
    Slot(usize, usize, Option<(&'static str, u32)>),
    /// Somebody sets MIG mode, and partitions the GPU at once.
    Mig(usize, bool),
    /// A GPU falls off the bus, or is back.
    Lost(usize, bool),
    /// A GPU needs a reset, or has had it.
    NeedsReset(usize, bool),
    /// An error on a GPU, or on what is in a slot.
    Xid(usize, Option<usize>),
    /// The driver goes, or comes.
    Driver(bool),
    /// Another configuration, read while the plugin runs.
    Reload,
    /// The plugin ends, and starts with nothing in memory; with `true` under another configuration.
    PluginRestart(bool),
    /// A configuration comes that the plugin begins anew for, with what it knows and has served.
    StartOver,
    /// SIGUSR1, SIGUSR2.
    Hold(bool),
    /// The kubelet stops, with `false` without removing its socket, and starts after this time.
    KubeletRestart(bool, Duration),
    /// Whether podresources answers.
    PodResources(bool),
    /// Whether the plugin can read the kubelet's checkpoint, and knows its form.
    Checkpoint(bool),
    /// A pod comes; with `true` it has an init container that needs devices, too.
    Pod(bool),
    /// A pod ends.
    PodEnds,
    /// Nothing.
    Nothing,
}

impl Step {
    pub(super) fn any(random: &mut Random) -> Self {
        let gpu = random.below(GPUS as usize);
        let slot = random.below(SLOTS as usize);
        match random.below(100) {
            0..14 => Self::Slot(gpu, slot, random.pick(&KINDS).filter(|_| random.percent(65))),
            14..18 => Self::Mig(gpu, random.percent(60)),
            18..21 => Self::Lost(gpu, random.percent(40)),
            21..23 => Self::NeedsReset(gpu, random.percent(40)),
            23..28 => Self::Xid(gpu, Some(slot).filter(|_| random.percent(60))),
            28..30 => Self::Driver(random.percent(40)),
            30..38 => Self::Reload,
            38 => Self::StartOver,
            39..44 => Self::PluginRestart(random.percent(30)),
            44..46 => Self::Hold(random.percent(40)),
            46..52 => {
                let pause = if random.percent(10) { random.ms(1, 400_000) } else { random.ms(1, 9000) };
                Self::KubeletRestart(random.percent(60), pause)
            }
            52..54 => Self::PodResources(random.percent(50)),
            54..76 => Self::Pod(random.percent(30)),
            76..90 => Self::PodEnds,
            90..92 => Self::Checkpoint(random.percent(60)),
            _ => Self::Nothing,
        }
    }
}

impl Life<'_> {
    /// Lets it happen.
    pub(super) fn take(&mut self, step: Step) -> Checked {
        match step {
            Step::Slot(..) | Step::Mig(..) => {
                partition(&mut self.node, step, &mut self.random);
                let (Step::Slot(gpu, ..) | Step::Mig(gpu, _)) = step else { return Ok(()) };
                if self.random.percent(50) {
                    self.hear(gpu, None, EventKind::MigConfigChange);
                }
            }
            Step::Lost(gpu, lost) => self.node.gpus[gpu].lost = lost,
            Step::NeedsReset(gpu, needs) => {
                self.node.gpus[gpu].needs_reset = needs;
                self.hear(gpu, None, EventKind::RecoveryAction);
            }
            Step::Xid(gpu, slot) => self.hear(gpu, slot, EventKind::Xid(79)),
            Step::Driver(there) => self.node.driver = there,
            Step::Reload => {
                self.settings = settings::any(&mut self.random);
                self.say(|| format!("{:?}", self.settings.policy.offer));
                return self.tell(Event::Command(Command::Reload(Box::new(self.settings.clone()))));
            }
            // Without the checkpoint nobody could tell a plugin that has just started what pods hold.
            Step::PluginRestart(_) | Step::StartOver if !self.access.checkpoint => {}
            Step::PluginRestart(other_settings) => {
                if other_settings {
                    self.settings = settings::any(&mut self.random);
                }
                if self.supervisor.take().is_some() {
                    self.kubelet.borrow_mut().plugin_gone(Instant::now());
                    self.soon(100, 8000, Due::PluginStarts);
                }
            }
            // A plugin that is on hold would have to remember that.
            Step::StartOver if self.told.on_hold => {}
            Step::StartOver => {
                self.settings = settings::any(&mut self.random);
                self.start_over();
                return self.follow_up();
            }
            Step::Hold(true) => {
                self.told.on_hold = self.supervisor.is_some();
                return self.tell(Event::Command(Command::Hold));
            }
            Step::Hold(false) => return self.tell(Event::Command(Command::Resume)),
            Step::KubeletRestart(in_good_order, pause) => {
                if self.kubelet.borrow().up {
                    self.kubelet.borrow_mut().stop(in_good_order);
                    self.after(pause, Due::KubeletStarts);
                }
            }
            Step::PodResources(answers) => self.access.pod_resources = answers,
            Step::Checkpoint(readable) => self.access.checkpoint = readable,
            Step::Pod(with_init) => return self.pod_comes(with_init),
            Step::PodEnds => {
                let pods: Vec<_> = self.kubelet.borrow().pods.keys().copied().collect();
                if let Some(pod) = self.random.pick(&pods) {
                    self.say(|| format!("pod {pod} ends"));
                    self.kubelet.borrow_mut().pods.remove(&pod);
                }
            }
            Step::Nothing => {}
        }
        Ok(())
    }

    /// The driver tells of something by itself.
    fn hear(&mut self, gpu: usize, slot: Option<usize>, kind: EventKind) {
        let number = |number: usize| u32::try_from(number).unwrap_or(0);
        let event = HealthEvent {
            gpu_uuid: gpu_uuid(number(gpu)),
            gpu_instance: slot.map(|slot| number(slot) + 7),
            compute_instance: slot.map(|_| 0),
            kind,
            at: SystemTime::UNIX_EPOCH,
        };
        if self.node.driver && !self.driver.on_hold.get() {
            self.soon(0, 50, Due::Heard(event));
        }
    }
}

/// What somebody with `nvidia-smi` does.
pub(super) fn partition(node: &mut Node, step: Step, random: &mut Random) {
    match step {
        Step::Slot(gpu, slot, kind) => node.set_slot(gpu, slot, kind),
        Step::Mig(gpu, mig) if node.gpus[gpu].mig != mig => {
            node.set_mig(gpu, mig);
            for slot in 0..node.gpus[gpu].slots.len() {
                let kind = random.pick(&KINDS).filter(|_| random.percent(70));
                node.set_slot(gpu, slot, kind);
            }
        }
        _ => {}
    }
}
