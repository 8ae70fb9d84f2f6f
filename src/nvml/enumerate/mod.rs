//! Looking at the driver: what it says, as an [`Inventory`].
//!
//! Per GPU these are some ten calls, and per MIG device nine; a model's profiles and what its kinds of
//! device are called are asked only once. All else is asked on every look: instances come and go.

mod gpu;
mod links;
mod mig;

pub(super) use links::{Peer, unknown_pairs};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;

use super::calls::Caller;
use super::caps::{self, MigMinors};
use super::error::{CallError, DriverError};
use super::library;
use super::models::Models;
use super::places::{Paths, Roots};
use super::rights;
use super::stamps::{Stamps, TimeCheck};
use crate::inventory::{EventRight, Gpu, Inventory, Problem, RecoveryAction, Trouble, TroubleKind};

/// The opened and initialised library. Dropping it shuts NVML down.
pub(super) struct Driver {
    nvml: Nvml,
    library: PathBuf,
    version: String,
    cuda_version: Option<String>,
    event_right: Option<EventRight>,
    /// By UUID. Kept here and not with a look, for a look that is given up takes what it holds with it.
    told: Mutex<BTreeMap<String, Told>>,
    /// Kept here for the same reason.
    stamps: Stamps,
}

/// What a GPU has told since the library was opened, and does not take back by refusing or failing to tell it again.
#[derive(Debug, Default, Clone)]
struct Told {
    /// It has a MIG mode.
    knows_mig: bool,
    recovery_action: Option<RecoveryAction>,
    /// Slices that `/proc` shows and NVML does not list, and since when. By GPU instance and compute instance.
    hidden: BTreeMap<(u32, u32), Instant>,
}

/// A slice that is being made is listed within this time after its file is there.
pub(super) const SETTLING: Duration = Duration::from_secs(2);

/// What is kept from one look to the next while the library is open.
#[derive(Debug, Default)]
pub(super) struct Cache {
    models: Models,
    minors: Option<MigMinors>,
}

/// What one GPU said.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// `None` where it could not be read: then a problem says why.
    pub(super) gpu: Option<Gpu>,
    /// What could not be read.
    pub(super) problems: Vec<Problem>,
    /// As [`Inventory::sees_instances`], for this GPU.
    pub(super) sees_instances: Option<bool>,
}

impl Part {
    /// Why the GPU may have to be reset: it cannot be read, or, with `asked`, it says so. A call that hangs is no such
    /// reason, for it keeps NVML open.
    pub(super) fn needs_reset(&self, asked: bool) -> Option<Trouble> {
        use RecoveryAction::{DrainAndReset, Reset};
        match &self.gpu {
            None => self
                .problems
                .first()
                .map(|problem| problem.reason.clone())
                .filter(|reason| reason.kind != TroubleKind::NoAnswer),
            Some(gpu) => gpu
                .recovery_action
                .filter(|action| asked && matches!(action, Reset | DrainAndReset))
                .map(|action| Trouble::unreadable(format!("the driver asks for {action}"))),
        }
    }

    /// A GPU that is left out for this reason.
    pub(super) fn left_out(index: u32, uuid: Option<String>, reason: Trouble) -> Self {
        let problem = Problem { gpu: index, mig_device: None, uuid, reason, left_out: true };
        Self { gpu: None, problems: vec![problem], sees_instances: None }
    }
}

impl Driver {
    /// Opens the library that `paths` lead to.
    pub(super) fn open(paths: &Paths, calls: &Caller) -> Result<Self, DriverError> {
        let mut times = TimeCheck::new(caps::version_file(&paths.roots()));
        times.look();
        let (nvml, library) = library::open(&paths.driver_root, calls)?;
        times.look();
        let version = calls
            .ask("nvmlSystemGetDriverVersion", || nvml.sys_driver_version())
            .map_err(|call| DriverError::from_call(library.clone(), call))?;
        // Old drivers lack the call, and nothing depends on it.
        let cuda_version = calls.ask("nvmlSystemGetCudaDriverVersion_v2", || nvml.sys_cuda_driver_version());
        while times.answer().is_none() && times.look() {}
        let times_move = times.answer().unwrap_or(false);
        if times_move {
            tracing::warn!(
                "the kernel gives entries of /proc a new time with every look, as versions before 4.17 do: a slice \
                 that is destroyed and made anew between two looks at the driver may be taken for the one before"
            );
        }
        Ok(Self {
            nvml,
            library,
            version,
            cuda_version: cuda_version.ok().map(words_of_cuda),
            // NVML is initialised by now, and may have made the node that counts.
            event_right: rights::event_right(&paths.roots()),
            told: Mutex::default(),
            stamps: Stamps::new(times_move),
        })
    }

    /// For the calls that are made elsewhere.
    pub(super) fn nvml(&self) -> &Nvml {
        &self.nvml
    }

    /// The file that was opened.
    pub(super) fn library(&self) -> &Path {
        &self.library
    }

    /// The driver's version.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Asks for something that is about no GPU.
    pub(super) fn ping(&self, calls: &Caller) -> Result<(), CallError> {
        calls.ask("nvmlSystemGetDriverVersion", || self.nvml.sys_driver_version()).map(drop)
    }

    /// How many GPUs there are.
    pub(super) fn count(&self, calls: &Caller) -> Result<u32, CallError> {
        calls.ask("nvmlDeviceGetCount_v2", || self.nvml.device_count())
    }

    /// What the GPU with this index says. An error means that the driver as a whole is gone.
    pub(super) fn gpu(
        &self,
        calls: &Caller,
        roots: &Roots,
        cache: &mut Cache,
        index: u32,
    ) -> Result<Part, CallError> {
        let minors = cache.minors.as_ref();
        let mut reader = gpu::Reader {
            nvml: &self.nvml,
            calls,
            roots,
            minors,
            models: &mut cache.models,
            told: &self.told,
            stamps: &self.stamps,
            index,
            uuid: None,
            problems: Vec::new(),
            sees_instances: None,
        };
        match reader.gpu() {
            Ok(gpu) => {
                let gpu::Reader { problems, sees_instances, .. } = reader;
                Ok(Part { gpu: Some(gpu), problems, sees_instances })
            }
            Err(error) if error.driver_is_gone() => Err(error),
            // What was said of its parts goes with it.
            Err(error) => Ok(Part::left_out(index, reader.uuid, error.trouble())),
        }
    }

    /// Puts together what the GPUs said, which is ordered by their indices.
    pub(super) fn inventory(&self, roots: &Roots, parts: impl IntoIterator<Item = Part>) -> Inventory {
        let mut inventory = Inventory {
            driver_version: self.version.clone(),
            kernel_module: caps::kernel_module(roots),
            cuda_version: self.cuda_version.clone(),
            library: self.library.clone(),
            control_nodes: caps::control_nodes(roots),
            event_right: self.event_right,
            ..Inventory::default()
        };
        for part in parts {
            inventory.gpus.extend(part.gpu);
            inventory.problems.extend(part.problems);
            // One refusal says it for all.
            inventory.sees_instances = match (inventory.sees_instances, part.sees_instances) {
                (Some(a), Some(b)) => Some(a && b),
                (a, b) => a.or(b),
            };
        }
        inventory
    }

    /// Looks at everything. An error means that the driver as a whole is gone.
    pub(super) fn look(
        &self,
        calls: &Caller,
        paths: &Paths,
        cache: &mut Cache,
    ) -> Result<Inventory, DriverError> {
        let failed = |call| DriverError::from_call(self.library.clone(), call);
        let roots = paths.roots();
        cache.begin(&roots);
        let count = self.count(calls).map_err(failed)?;
        let parts: Result<Vec<Part>, _> =
            (0..count).map(|index| self.gpu(calls, &roots, cache, index)).collect();
        Ok(self.inventory(&roots, parts.map_err(failed)?))
    }
}

impl Cache {
    /// To be called at the start of a look.
    pub(super) fn begin(&mut self, roots: &Roots) {
        if self.minors.is_none() {
            self.minors = MigMinors::read(&roots.proc).ok();
        }
        self.models.forget_incomplete();
    }
}

/// `13000` is CUDA 13.0.
fn words_of_cuda(version: i32) -> String {
    format!(
        "{}.{}",
        nvml_wrapper::cuda_driver_version_major(version),
        nvml_wrapper::cuda_driver_version_minor(version)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuda_versions_have_a_point() {
        assert_eq!(words_of_cuda(13000), "13.0");
        assert_eq!(words_of_cuda(12080), "12.8");
    }
}
