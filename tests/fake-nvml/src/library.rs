//! Where cargo left the shared library.

use std::{env, path::PathBuf};

use crate::NodeError;

const NAME: &str = "libfake_nvml.so";

/// The built shared library: `FAKE_NVML_LIBRARY`, or the file beside the running executable or in its
/// `deps` folder, where cargo leaves it whether it was built for itself or as somebody's dependency.
pub fn library_file() -> Result<PathBuf, NodeError> {
    if let Some(file) = env::var_os("FAKE_NVML_LIBRARY").map(PathBuf::from) {
        return if file.is_file() {
            Ok(file)
        } else {
            Err(NodeError::NoLibrary { name: NAME, looked_at: vec![file] })
        };
    }
    let executable = env::current_exe().map_err(NodeError::io("find", "this executable"))?;
    let looked_at: Vec<PathBuf> = executable
        .ancestors()
        .skip(1)
        .take(2)
        // `deps` first: a build as a dependency leaves the newest there, and only there.
        .flat_map(|folder| [folder.join("deps").join(NAME), folder.join(NAME)])
        .collect();
    let found = looked_at.iter().find(|file| file.is_file()).cloned();
    found.ok_or(NodeError::NoLibrary { name: NAME, looked_at })
}
