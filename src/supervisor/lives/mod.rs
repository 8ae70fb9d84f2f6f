//! Whole lives of a node, from a seed: GPUs that are partitioned, lost and reset, a driver that goes and comes, a kubelet
//! that stops and starts, pods, and configurations, in any order, against the real supervisor and ledger in a clock of
//! their own. After each step the invariants in `checks` must hold, and when all has calmed down the lists must be what
//! the configuration makes of the node.
//!
//! `node` is the truth about the hardware, `told` what the supervisor knows of it, `kubelet` the kubelet with the
//! endpoints in front of it, `step` what can happen, `life` the clock and everything that takes time, `pods` one of those. CONTRIBUTING.md says how to run more seeds, and how to see
//! one of them step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::env;

mod checks;
mod kubelet;
mod life;
mod node;
mod pods;
mod random;
mod settings;
mod step;
mod told;

use checks::{Kind, Violation};
use kubelet::{Allocated, File};
use life::Life;

use crate::kubelet::{Checkpoint, CheckpointError, Claim, FileId, Look, PodResourcesError};
use crate::resource::DeviceId;

/// Steps in a life.
const STEPS: usize = 120;

/// Lives that each run of the tests tries.
const LIVES: u64 = 100;

/// Lives that once broke an invariant, and which.
const BROKEN: [(u64, Kind); 13] = [
    // A whole GPU and its slices, or a device and its replicas, were given out at the same time after a change of the
    // strategy, of sharing or of names.
    (5, Kind::GivenTwice),
    (7, Kind::GivenTwice),
    (16, Kind::GivenTwice),
    (28, Kind::GivenTwice),
    (42, Kind::GivenTwice),
    (97, Kind::GivenTwice),
    // An answer of podresources without the API server's pods, or without init containers, freed what pods held.
    (4, Kind::Missing),
    (17, Kind::Missing),
    (22, Kind::Missing),
    (26, Kind::Missing),
    // After a start of the plugin a device that had gone was listed without its NUMA node.
    (0, Kind::Topology),
    (18, Kind::Topology),
    (24, Kind::Topology),
];

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

/// What a look at what pods hold finds: what podresources lists, if it answers, and what is in the checkpoint.
fn look(listed: Option<Vec<Allocated>>, readable: bool, file: Option<&File>, alive: bool) -> Look {
    let refused = || PodResourcesError::new("/nonexistent".as_ref(), "nobody is there");
    let missing = || CheckpointError::Unreadable {
        path: "/nonexistent".into(),
        source: std::io::ErrorKind::NotFound.into(),
    };
    let checkpoint =
        file.map(|file| Checkpoint { file: FileId::number(file.number), claims: claims(&file.held) });
    let checkpoint = match (readable, checkpoint) {
        (false, Some(_)) => {
            Err(CheckpointError::UnknownForm { path: "/nonexistent".into(), why: "another form".to_owned() })
        }
        (_, checkpoint) => checkpoint.ok_or_else(missing),
    };
    Look { listed: listed.map(|held| claims(&held)).ok_or_else(refused), checkpoint, alive }
}

/// Each device once, as a look has them.
fn claims(held: &[Allocated]) -> Vec<Claim> {
    let all = held.iter().flat_map(|held| held.ids.iter().map(move |(id, numa)| (held, id, numa)));
    let claim = |(held, id, numa): (&Allocated, &DeviceId, &Option<u32>)| Claim {
        resource: held.resource.to_string(),
        device: id.clone(),
        numa_node: *numa,
    };
    all.map(claim).collect::<BTreeSet<_>>().into_iter().collect()
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
    let first = number("LIVES_FROM").unwrap_or(1000);
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
