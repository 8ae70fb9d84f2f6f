//! CDI: what a container runtime is to do for a device, written down for it beforehand.
//!
//! ```text
//! Inventory ────────────────► build ──► spec ──► store ──► <spec dir>/k8s.device-plugin.nvidia.com-gpu.json
//! /proc/devices ──► majors ─────┘ ▲
//! driver root ──► driver_files ───┴─ hooks
//! ```
//!
//! An answer to the kubelet then only has names in it ([`cdi_name`]). So a file has to be in place before
//! the kubelet hears of a device that it describes: [`Cdi::update`] comes first, and the list after it.
//!
//! Files stay when the program ends. A container that restarts meanwhile resolves its names again.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

pub mod build;
pub mod driver_files;
mod features;
mod hooks;
mod majors;
pub mod spec;
mod store;

#[cfg(test)]
mod tests;

pub use majors::Majors;
pub use store::StoreError;

use self::build::Built;
use self::driver_files::{DriverFiles, Fingerprint, Search};
use crate::inventory::{Inventory, below};
use crate::nvml::Paths;
use crate::resource::cdi_name;
use crate::resource::policy::Feature;

/// How specifications are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CdiOptions {
    /// Where runtimes look for them (`--cdi-spec-dir`).
    pub spec_dir: PathBuf,
    /// The driver root on the host (`--nvidia-driver-root`).
    pub host_driver_root: PathBuf,
    /// The root of device nodes on the host (`--nvidia-dev-root`).
    pub host_dev_root: PathBuf,
    /// The hook program on the host (`--nvidia-cdi-hook-path`). `None`: the one at a usual place, if any.
    pub hook: Option<PathBuf>,
    /// Hooks that are not to be used, by the toolkit's names for them, or `all` (`--cdi-disable-hooks`).
    pub disabled_hooks: BTreeSet<String>,
    /// Leave out the daemons' sockets (`disable-ipc-discoverer` among `--cdi-feature-flags`).
    pub without_sockets: bool,
    /// IMEX channels that containers are given.
    pub imex_channels: BTreeSet<u32>,
    /// Drivers beside the GPU's that containers are given.
    pub features: BTreeSet<Feature>,
}

/// In `--cdi-disable-hooks`: no hook at all.
const ALL_HOOKS: &str = "all";

impl CdiOptions {
    fn wants_hooks(&self) -> bool {
        !self.disabled_hooks.contains(ALL_HOOKS)
    }
}

/// A device that is not in the specification, and so must not be offered by a CDI name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incomplete {
    /// Its UUID, or `channel<number>`.
    pub id: String,
    /// A clause for people.
    pub reason: String,
}

/// What an update has come to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CdiUpdate {
    /// Whether a file has changed.
    pub written: bool,
    /// What is not in it.
    pub incomplete: Vec<Incomplete>,
    /// Whether none of the driver's libraries was found below the driver root: containers then get device
    /// nodes only, and have to have the libraries from somewhere else.
    pub without_libraries: bool,
    /// Why there is no hook program, or none that can be run, where hooks are wanted: a clause for people.
    pub hook_missing: Option<String>,
    /// What of [`CdiOptions::features`] this node has no device node of.
    pub absent: Vec<Feature>,
}

/// A specification could not be written. What was there before stays.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// The file could not be replaced.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A path in it is not UTF-8.
    #[error("cannot write the specification of {kind} as JSON")]
    Encode {
        /// Its kind.
        kind: String,
        /// What JSON cannot say.
        source: serde_json::Error,
    },
}

/// Keeps the specifications of this node current. All calls are short and blocking: a look at some folders,
/// and a file where something has changed.
#[derive(Debug)]
pub struct Cdi {
    options: CdiOptions,
    paths: Paths,
    /// The driver's files as they were last found.
    found: Option<(Search, Fingerprint, DriverFiles)>,
}

impl Cdi {
    /// Writes nothing yet.
    pub fn new(options: CdiOptions, paths: Paths) -> Self {
        Self { options, paths, found: None }
    }

    /// Makes the files say what `inventory` does.
    pub fn update(&mut self, inventory: &Inventory) -> Result<CdiUpdate, CdiError> {
        let majors = Majors::read(&self.paths);
        let options = self.options.clone();
        let files = self.driver_files(inventory);
        let without_libraries = files.libraries.is_empty();
        let hook_missing = files.hook_missing.clone().filter(|_| options.wants_hooks());
        let gpus = build::build(inventory, files, &majors, &options);
        let mut update = CdiUpdate { without_libraries, hook_missing, ..CdiUpdate::default() };
        self.write(cdi_name::GPU, gpus, &mut update)?;
        if !options.imex_channels.is_empty() {
            let dev_root = self.paths.dev_root();
            let exists = |node: &Path| fs::symlink_metadata(below(&dev_root, node)).is_ok();
            self.write(cdi_name::IMEX_CHANNEL, build::build_imex(&majors, &options, exists), &mut update)?;
        }
        for feature in &options.features {
            let spec = features::describe(*feature, &self.paths, &options);
            if spec.is_none() {
                update.absent.push(*feature);
            }
            self.write(feature.word(), Built { spec, incomplete: Vec::new() }, &mut update)?;
        }
        Ok(update)
    }

    /// A class without devices keeps its file as it is: CDI has none that is empty, and what stood in it can
    /// be had again when the driver answers.
    fn write(&self, class: &str, built: Built, update: &mut CdiUpdate) -> Result<(), CdiError> {
        update.incomplete.extend(built.incomplete);
        let Some(spec) = built.spec else { return Ok(()) };
        let mut text = serde_json::to_vec_pretty(&spec)
            .map_err(|source| CdiError::Encode { kind: cdi_name::kind(class), source })?;
        text.push(b'\n');
        update.written |= store::replace(&self.options.spec_dir, &cdi_name::file_name(class), &text)?;
        Ok(())
    }

    /// Looked for again when the driver is another one, or a folder with its files has changed.
    fn driver_files(&mut self, inventory: &Inventory) -> &DriverFiles {
        let search = Search {
            driver_root: self.paths.driver_root.clone(),
            host_driver_root: self.options.host_driver_root.clone(),
            version: inventory.driver_version.clone(),
            library: inventory.library.clone(),
            hook: self.options.hook.clone(),
        };
        // Taken before the look: what comes in between is then seen by the next.
        let fingerprint = search.fingerprint();
        let known = self.found.take().filter(|(old, when, _)| *old == search && *when == fingerprint);
        let found = known.unwrap_or_else(|| {
            let mut files = search.find();
            if self.options.without_sockets {
                files.sockets.clear();
            }
            (search, fingerprint, files)
        });
        &self.found.insert(found).2
    }
}
