//! What can happen to a node.

use std::time::Duration;

use super::node::{GPUS, KINDS, SLOTS};
use super::random::Random;

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
    /// SIGUSR1, SIGUSR2.
    Hold(bool),
    /// The kubelet stops, with `false` without removing its socket, and starts after this time.
    KubeletRestart(bool, Duration),
    /// Whether podresources answers.
    PodResources(bool),
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
            30..39 => Self::Reload,
            39..44 => Self::PluginRestart(random.percent(30)),
            44..46 => Self::Hold(random.percent(40)),
            46..52 => {
                let pause = if random.percent(10) { random.ms(1, 400_000) } else { random.ms(1, 9000) };
                Self::KubeletRestart(random.percent(60), pause)
            }
            52..54 => Self::PodResources(random.percent(50)),
            54..76 => Self::Pod(random.percent(30)),
            76..90 => Self::PodEnds,
            _ => Self::Nothing,
        }
    }
}
