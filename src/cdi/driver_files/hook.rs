//! The hook program of NVIDIA's container toolkit, which the host's container runtime runs.

use std::path::{Path, PathBuf};

use super::root::Root;
use super::{Search, is_program};

/// Where the toolkit is on the host: by package, by the GPU Operator, by hand. Below the host's root.
pub(super) const HOOK_FOLDERS: [&str; 3] = ["usr/bin", "usr/local/nvidia/toolkit", "usr/local/bin"];

/// Its programs that are hooks, the one that is made for this first.
const HOOKS: [&str; 2] = ["nvidia-cdi-hook", "nvidia-ctk"];

impl Search {
    /// The hook program on the host, and what there is to say against it.
    pub(super) fn hook(&self, root: &Root<'_>) -> (Option<PathBuf>, Option<String>) {
        let is_there = |path: &Path| root.file(path).is_some_and(|file| is_program(&file.here));
        // Only the host's own root has the programs that the host's runtime can run.
        let is_host = self.host_driver_root == Path::new("/");
        if let Some(named) = &self.hook {
            let missing = is_host && !named.strip_prefix("/").is_ok_and(is_there);
            let missing = missing.then(|| {
                format!(
                    "{} is no program on the host (--nvidia-cdi-hook-path), so containers that get a device by CDI do \
                     not start",
                    named.display()
                )
            });
            return (Some(named.clone()), missing);
        }
        let places = HOOKS.iter().flat_map(|name| HOOK_FOLDERS.map(|folder| Path::new(folder).join(name)));
        if let Some(found) = places.filter(|_| is_host).find(|path| is_there(path)) {
            return (Some(Path::new("/").join(found)), None);
        }
        let why = if is_host {
            let folders = HOOK_FOLDERS.map(|folder| format!("/{folder}")).join(", ");
            format!("there is no {} in {folders}", HOOKS.join(" or "))
        } else {
            format!(
                "the driver root {} is not the host's own, so the host's programs cannot be looked for",
                self.host_driver_root.display()
            )
        };
        let costs = "links and the loader's cache are not made in containers that get a device by CDI; \
                     --nvidia-cdi-hook-path names NVIDIA's hook program";
        (None, Some(format!("{why}: {costs}")))
    }
}
