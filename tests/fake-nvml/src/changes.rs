//! What the driver tells of an edit: one `MigConfigChange` for each instance made or destroyed.

use std::collections::BTreeMap;

use crate::{Event, state::GpuState};

/// Identities of what there is, by path below the node's folder: of each GPU's `mig` folder, and of each capability
/// file in it. Whatever has another identity was destroyed and made again.
pub(crate) type Identities = BTreeMap<String, String>;

/// The identity of a GPU's folder: whose it is, and whether MIG mode is on.
pub(crate) fn gpu_identity(gpu: &GpuState) -> String {
    format!("{}:{}", gpu.uuid, if gpu.mig_mode { ON } else { OFF })
}

const ON: &str = "mig";
const OFF: &str = "whole";

/// The events that an edit brings for a GPU whose folder is `folder`, as lines. A change of the mode brings none, nor
/// does a GPU that comes or goes.
pub(crate) fn lines(folder: &str, gpu: &GpuState, before: &Identities, now: &Identities) -> String {
    let same_gpu = before.get(folder).is_some_and(|old| old.split(':').next() == Some(&gpu.uuid));
    if !same_gpu || !gpu.mig_mode {
        return String::new();
    }
    let prefix = format!("{folder}/");
    let of_gpu = |all: &'_ Identities, other: &'_ Identities| {
        let of_gpu = all.iter().filter(|(path, _)| path.starts_with(&prefix));
        let (kept, changed): (Vec<_>, Vec<_>) =
            of_gpu.map(|(path, identity)| other.get(path) == Some(identity)).partition(|kept| *kept);
        (kept.len(), changed.len())
    };
    let ((kept, destroyed), (_, made)) = (of_gpu(before, now), of_gpu(now, before));
    let event = Event::mig_config_change();
    let mut lines = event.line_of(&gpu.uuid, true).repeat(destroyed.saturating_sub(1));
    if destroyed > 0 {
        // The last to go is a GPU instance: with it the GPU is whole again, if nothing was kept.
        lines += &event.line_of(&gpu.uuid, kept > 0);
    }
    lines + &event.line_of(&gpu.uuid, true).repeat(made)
}
