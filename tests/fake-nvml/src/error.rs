//! What can go wrong when a node is made, read or changed.

use std::{io, path::PathBuf};

/// Why a node could not be made, read or changed.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A file or folder of the node could not be used.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb: `read`, `write`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The text is no description: a YAML mistake, an unknown key, a value of the wrong kind.
    #[error("{}", placed(file.as_ref(), message))]
    Parse {
        /// The file, where the text came from one.
        file: Option<PathBuf>,
        /// Line, column and reason.
        message: String,
    },
    /// The description is well-formed but describes an impossible node. All its faults are listed.
    #[error("{}", placed(file.as_ref(), &format!("impossible node:\n  {}", problems.join("\n  "))))]
    Invalid {
        /// The file, where the description came from one.
        file: Option<PathBuf>,
        /// One line for each: the key, what is wrong, what is allowed.
        problems: Vec<String>,
    },
    /// The built shared library was not found.
    #[error(
        "no {name} found (looked at {}); build it with `cargo build -p fake-nvml`, or name it in FAKE_NVML_LIBRARY",
        looked_at.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NoLibrary {
        /// The file name looked for.
        name: &'static str,
        /// Where it was looked for.
        looked_at: Vec<PathBuf>,
    },
    /// Processes stand in the way of a reset or a reboot.
    #[error("{what}: in use by process {}", by.iter().map(u32::to_string).collect::<Vec<_>>().join(", "))]
    InUse {
        /// What cannot be done.
        what: String,
        /// Process IDs.
        by: Vec<u32>,
    },
    /// The folder is not a node: it holds no `node.yaml`.
    #[error("{} is no node: it holds no node.yaml", path.display())]
    NotANode {
        /// The folder.
        path: PathBuf,
    },
}

fn placed(file: Option<&PathBuf>, message: &str) -> String {
    match file {
        Some(file) => format!("{}: {message}", file.display()),
        None => message.to_owned(),
    }
}

impl NodeError {
    /// A closure for `map_err`, so that a call site reads as one line.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
