//! Where a GPU's instances go: placements, GPU instance IDs, and why a layout is impossible.

use std::ops::Range;

use crate::{
    catalogue::{Engines, Model, Profile},
    description::{Gpu, Instance, PlacementMap},
    suggest,
};

/// The highest GPU instance ID that has a capability minor.
pub(crate) const LAST_GI: u32 = 14;
/// The highest compute instance ID that has a capability minor.
pub(crate) const LAST_CI: u32 = 7;

/// A GPU instance with all decided.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) profile: Profile,
    pub(crate) start: u32,
    pub(crate) gi: u32,
    /// The first engine that it has.
    pub(crate) engine: u32,
}

/// Decides placement and ID of each instance, in the order of the layout; or lists what is wrong.
pub(crate) fn place(model: &Model, gpu: &Gpu, map: PlacementMap) -> Result<Vec<Placed>, Vec<String>> {
    let mut problems = Vec::new();
    let mut profiles = Vec::new();
    for (index, instance) in gpu.layout.iter().enumerate() {
        match profile_of(model, instance) {
            Ok(profile) => profiles.push(profile),
            Err(problem) => problems.push(format!("layout[{index}]: {problem}")),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    problems.extend(budget_problems(model, &profiles));
    problems.extend(start_problems(model, gpu, &profiles));
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut starts = vec![0; profiles.len()];
    let mut deepest = 0;
    if !fit(gpu, &profiles, 0, 0, &mut starts, &mut deepest) {
        let stuck = &profiles[deepest];
        return Err(vec![format!(
            "layout[{deepest}]: no free placement for {} (size {} at memory slices {:?}) beside the instances before it",
            stuck.name, stuck.size, stuck.starts
        )]);
    }
    let spans: Vec<Span> = profiles
        .iter()
        .zip(&starts)
        .map(|(profile, start)| Span::of(model, map, *start, profile.size))
        .collect();
    let ids = instance_ids(gpu, &spans)?;
    let placed = profiles.into_iter().zip(starts).zip(spans).zip(ids);
    Ok(placed
        .map(|(((profile, start), span), gi)| Placed { profile, start, gi, engine: span.first_engine })
        .collect())
}

fn profile_of(model: &Model, instance: &Instance) -> Result<Profile, String> {
    let name = &instance.profile;
    if let Some(unknown) = &instance.unknown_profile {
        if unknown.size == 0 || unknown.size > model.memory_slices || unknown.g == 0 {
            return Err(format!(
                "unknownProfile: g must be at least 1 and size 1 to {} memory slices",
                model.memory_slices
            ));
        }
        return Ok(Profile {
            name: name.clone(),
            index: u32::MAX,
            id: unknown.id,
            g: unknown.g,
            size: unknown.size,
            starts: (0..=model.memory_slices - unknown.size).collect(),
            max: u32::MAX,
            memory_mib: unknown.memory_mib,
            sm: unknown.sm,
            // As many copy engines as compute slices, and no media, where nobody says it.
            engines: Engines { copy: unknown.g, ..Engines::default() },
            uncertain: Vec::new(),
            estimated: Vec::new(),
        });
    }
    model.profile(name).cloned().ok_or_else(|| {
        let names = model.profiles.iter().map(|profile| profile.name.as_str());
        format!("{} has no profile {name:?}; {}", model.key, suggest::allowed(name, names))
    })
}

/// Limits of the GPU as a whole: compute slices, memory slices, media engines, instances of a profile.
fn budget_problems(model: &Model, profiles: &[Profile]) -> Vec<String> {
    let mut problems = Vec::new();
    let compute: u32 = profiles.iter().map(|profile| profile.g).sum();
    if compute > model.compute_slices {
        problems
            .push(format!("layout: needs {compute} compute slices; the GPU has {}", model.compute_slices));
    }
    let memory: u32 = profiles.iter().map(|profile| profile.size).sum();
    if memory > model.memory_slices {
        problems.push(format!("layout: needs {memory} memory slices; the GPU has {}", model.memory_slices));
    }
    for (index, profile) in profiles.iter().enumerate() {
        let same = profiles.iter().filter(|other| other.name == profile.name).count();
        let first = profiles.iter().position(|other| other.name == profile.name) == Some(index);
        if first && same > profile.max as usize {
            problems.push(format!("layout: {same} × {}; a GPU can have {}", profile.name, profile.max));
        }
    }
    let with_media = profiles.iter().filter(|profile| profile.has_media()).count();
    if with_media > 1 {
        problems.push(format!("layout: {with_media} instances with +me; a GPU can have 1"));
    }
    if let Some(all) = profiles.iter().find(|profile| profile.has_all_media())
        && let Some(other) = profiles.iter().find(|other| !std::ptr::eq(*other, all) && !other.has_no_media())
    {
        problems.push(format!("layout: beside {} only -me profiles fit, not {}", all.name, other.name));
    }
    problems
}

/// Starts that somebody wrote: allowed for the profile, and free of each other.
fn start_problems(model: &Model, gpu: &Gpu, profiles: &[Profile]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut taken: Vec<(usize, u32)> = Vec::new();
    for (index, (instance, profile)) in gpu.layout.iter().zip(profiles).enumerate() {
        let Some(start) = instance.start else { continue };
        if !profile.starts.contains(&start) {
            problems.push(format!(
                "layout[{index}].start: {} cannot start at memory slice {start} of {}; allowed: {:?}",
                profile.name, model.key, profile.starts
            ));
            continue;
        }
        for (other, other_start) in &taken {
            if overlap(start, profile.size, *other_start, profiles[*other].size) {
                problems.push(format!(
                    "layout[{index}].start: {} at {start} (size {}) overlaps layout[{other}], {} at {other_start} (size {})",
                    profile.name, profile.size, profiles[*other].name, profiles[*other].size
                ));
            }
        }
        taken.push((index, start));
    }
    problems
}

fn overlap(start: u32, size: u32, other_start: u32, other_size: u32) -> bool {
    start < other_start + other_size && other_start < start + size
}

/// Finds a placement for instance `at` and all after it: the first free one in list order, going back where
/// that leaves no room for a later one. `taken` has a bit for each memory slice.
fn fit(
    gpu: &Gpu,
    profiles: &[Profile],
    at: usize,
    taken: u32,
    starts: &mut [u32],
    deepest: &mut usize,
) -> bool {
    let Some(profile) = profiles.get(at) else { return true };
    *deepest = at.max(*deepest);
    let wanted = gpu.layout[at].start;
    for start in profile.starts.iter().copied().filter(|start| wanted.is_none_or(|wanted| wanted == *start)) {
        let slices = ((1u32 << profile.size) - 1) << start;
        starts[at] = start;
        if taken & slices == 0 && fit(gpu, profiles, at + 1, taken | slices, starts, deepest) {
            return true;
        }
    }
    false
}

/// The part of a chip that an instance is.
struct Span {
    /// The IDs of all parts of its size.
    ids: Range<u32>,
    /// The ID of the part itself, where there is one of that size at that place.
    id: Option<u32>,
    first_engine: u32,
}

impl Span {
    /// Chips are halved again and again: the whole has ID 0, the halves 1 and 2, the quarters 3 to 6, and the eighths
    /// 7 to 14, but for chips of four slices or of a multiple of three.
    fn of(model: &Model, map: PlacementMap, start: u32, size: u32) -> Self {
        let parts = (model.memory_slices / size).next_power_of_two();
        let smallest = if model.memory_slices.is_multiple_of(8) { 8 } else { 4 };
        let unit = (model.memory_slices / smallest).max(1);
        let part = map.part(start / unit, smallest);
        let units = smallest / parts.min(smallest);
        let fits = size == units * unit && start.is_multiple_of(size);
        let ids = parts - 1..2 * parts - 1;
        // The parts of a span are swapped too: its first engine is that of the part with the lowest number.
        let first = part / units;
        Self { id: fits.then(|| ids.start + first), ids, first_engine: first * units }
    }
}

/// GPU instance IDs: those that were written, then those of the parts of the chip; where such a one is taken, the
/// first of its size that is free.
fn instance_ids(gpu: &Gpu, spans: &[Span]) -> Result<Vec<u32>, Vec<String>> {
    let mut problems = Vec::new();
    let mut taken: Vec<u32> = Vec::new();
    for (index, instance) in gpu.layout.iter().enumerate() {
        if let Some(gi) = instance.gi {
            if gi > LAST_GI {
                problems.push(format!("layout[{index}].gi: {gi} is above {LAST_GI}"));
            } else if taken.contains(&gi) {
                problems.push(format!("layout[{index}].gi: {gi} is taken"));
            }
            taken.push(gi);
        }
    }
    let mut ids = Vec::new();
    for (index, (instance, span)) in gpu.layout.iter().zip(spans).enumerate() {
        let id = instance.gi.or_else(|| {
            let candidates = span.id.into_iter().chain(span.ids.clone()).chain(0..=LAST_GI);
            candidates.into_iter().find(|gi| *gi <= LAST_GI && !taken.contains(gi))
        });
        match id {
            Some(gi) => {
                taken.push(gi);
                ids.push(gi);
            }
            None => problems.push(format!("layout[{index}]: no GPU instance ID is free")),
        }
    }
    if problems.is_empty() { Ok(ids) } else { Err(problems) }
}

/// A compute instance with all decided.
#[derive(Clone, Debug)]
pub(crate) struct PlacedCompute {
    pub(crate) slices: u32,
    pub(crate) ci: u32,
    pub(crate) start: u32,
    pub(crate) index: Option<u32>,
    pub(crate) uuid: Option<String>,
    pub(crate) access_file_gone: bool,
    /// Its first engine, counted from the first of its GPU instance.
    pub(crate) engine: u32,
}

/// Decides ID and placement of a GPU instance's compute instances; or lists what is wrong.
pub(crate) fn place_compute(instance: &Instance, g: u32) -> Result<Vec<PlacedCompute>, Vec<String>> {
    let Some(wanted) = &instance.compute else {
        let (index, uuid) = (instance.index, instance.uuid.clone());
        let access_file_gone = instance.access_file_gone;
        return Ok(vec![PlacedCompute {
            slices: g,
            ci: 0,
            start: 0,
            index,
            uuid,
            access_file_gone,
            engine: 0,
        }]);
    };
    let mut problems = Vec::new();
    let several = wanted.len() != 1;
    if several && (instance.index.is_some() || instance.uuid.is_some()) {
        problems.push("index and uuid: write them at the compute instance".to_owned());
    }
    let sum: u32 = wanted.iter().map(|compute| compute.slices).sum();
    if sum > g {
        problems.push(format!("compute: needs {sum} compute slices; {} has {g}", instance.profile));
    }
    let mut taken_ids: Vec<u32> = wanted.iter().filter_map(|compute| compute.ci).collect();
    let mut taken_slices = 0u32;
    let mask = |slices: u32, start: u32| ((1u32 << slices.min(31)) - 1) << start.min(31);
    for compute in wanted {
        if let Some(start) = compute.start {
            taken_slices |= mask(compute.slices, start);
        }
    }
    let mut placed = Vec::new();
    for (at, compute) in wanted.iter().enumerate() {
        if !compute_sizes(g).any(|size| size == compute.slices) {
            let sizes: Vec<String> = compute_sizes(g).map(|slices| format!("{slices}c")).collect();
            problems.push(format!(
                "compute[{at}]: {}c does not fit {}; allowed: {}",
                compute.slices,
                instance.profile,
                sizes.join(", ")
            ));
            continue;
        }
        let ci = compute.ci.or_else(|| (0..=LAST_CI).find(|ci| !taken_ids.contains(ci)));
        let start = compute.start.or_else(|| {
            let last = g.checked_sub(compute.slices)?;
            (0..=last).find(|start| taken_slices & mask(compute.slices, *start) == 0)
        });
        let (Some(ci), Some(start)) = (ci, start) else {
            problems.push(format!("compute[{at}]: no free placement for {}c", compute.slices));
            continue;
        };
        if start + compute.slices > g || ci > LAST_CI {
            problems.push(format!("compute[{at}]: start or ci lies outside {}", instance.profile));
        }
        taken_ids.push(ci);
        taken_slices |= mask(compute.slices, start);
        placed.push(PlacedCompute {
            slices: compute.slices,
            ci,
            start,
            index: compute.index.or(instance.index),
            uuid: compute.uuid.clone().or_else(|| instance.uuid.clone()),
            access_file_gone: compute.access_file_gone || instance.access_file_gone,
            engine: compute.engine.unwrap_or(ci),
        });
    }
    for (at, compute) in placed.iter().enumerate() {
        for other in &placed[..at] {
            if compute.ci == other.ci || overlap(compute.start, compute.slices, other.start, other.slices) {
                problems.push(format!("compute[{at}]: shares its ID or its slices with another one"));
            }
        }
    }
    if problems.is_empty() { Ok(placed) } else { Err(problems) }
}

/// The sizes, in compute slices, that a compute instance of a GPU instance with `g` slices can have.
pub(crate) fn compute_sizes(g: u32) -> impl Iterator<Item = u32> + Clone {
    // 4g and 7g are seen without 3c and without 5c and 6c: only sizes that have a profile of their own.
    (1..=g).filter(move |slices| *slices == g || matches!((g, *slices), (_, 1 | 2) | (7.., 3 | 4)))
}
