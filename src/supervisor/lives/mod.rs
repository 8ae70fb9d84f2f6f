//! Whole lives of a node, from a seed: GPUs that are partitioned, lost and reset, a driver that goes and comes, a kubelet
//! that stops and starts, pods, and configurations, in any order, against the real supervisor and ledger in a clock of
//! their own. After each step the invariants in `checks` must hold, and when all has calmed down the lists must be what
//! the configuration makes of the node.
//!
//! `node` is the truth about the hardware, `kubelet` the kubelet with the endpoints in front of it, `step` what can
//! happen, `life` the clock and everything that takes time. CONTRIBUTING.md says how to run more seeds, and how to see
//! one of them step by step.

use std::collections::BTreeMap;
use std::env;

mod checks;
mod kubelet;
mod life;
mod node;
mod random;
mod settings;
mod step;

use checks::{Kind, Violation};
use kubelet::{Allocated, File};
use life::Life;

use super::{Event, Holding, PodResourcesError};
use crate::resource::DeviceId;

/// Steps in a life.
const STEPS: usize = 120;

/// Lives that each run of the tests tries.
const LIVES: u64 = 300;

/// Lives that once broke an invariant, and which.
const BROKEN: [(u64, Kind); 0] = [];

/// One life; with `trace` it says what happens.
fn live(seed: u64, steps: usize, trace: bool) -> Result<(), Violation> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let driver = life::SimDriver::default();
        let show = tokio::sync::watch::Sender::new(None);
        Life::new(seed, &driver, &show, trace).run(steps).await
    })
}

/// What the supervisor is answered: what podresources lists, if it answers, and what is in the checkpoint.
fn answer(listed: Option<Vec<Allocated>>, _checkpoint: Option<&File>, alive: bool) -> Event {
    let listed = listed.map(|held| held.iter().flat_map(holdings).collect());
    let refused = || PodResourcesError::new("/nonexistent".as_ref(), "nobody is there");
    Event::Held(listed.ok_or_else(refused), alive)
}

fn holdings(held: &Allocated) -> Vec<Holding> {
    let holding = |id: &DeviceId| Holding {
        resource: held.resource.to_string(),
        device: id.clone(),
        namespace: "default".to_owned(),
        pod: held.pod.to_string(),
        container: held.container.to_string(),
    };
    held.ids.keys().map(holding).collect()
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

#[test]
fn no_life_breaks_an_invariant() {
    if let Some(seed) = number("LIVES_SEED") {
        if let Err(violation) = live(seed, STEPS, true) {
            panic!("{violation}");
        }
        return;
    }
    let first = number("LIVES_FROM").unwrap_or(0);
    let count = number("LIVES").unwrap_or(LIVES);
    let mut broken: BTreeMap<Kind, Vec<(u64, Violation)>> = BTreeMap::new();
    for seed in first..first + count {
        if let Err(violation) = live(seed, STEPS, false) {
            broken.entry(violation.kind).or_default().push((seed, violation));
        }
    }
    let lines = broken.iter().map(|(kind, lives)| {
        let (seed, violation) = &lives[0];
        let seeds: Vec<_> = lives.iter().take(20).map(|(seed, _)| seed.to_string()).collect();
        format!(
            "{} of {count} lives, {kind:?}; seed {seed}: {violation} (also {})",
            lives.len(),
            seeds.join(" ")
        )
    });
    let lines: Vec<_> = lines.collect();
    assert!(lines.is_empty(), "LIVES_SEED=<seed> shows one step by step\n{}", lines.join("\n"));
}

#[test]
fn lives_that_were_broken_once_are_whole() {
    for (seed, kind) in BROKEN {
        if let Err(violation) = live(seed, STEPS, false) {
            panic!("seed {seed}, which once broke {kind:?}: {violation}");
        }
    }
}
