//! Reads what was saved: the inventory of a node, and Pods.

use std::path::PathBuf;

use super::pod::manifest::{self, PodSpec};
use crate::inventory::Inventory;

/// A file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Read {
        /// Its path, or `standard input`.
        file: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{}{position}: {what}: {message}", file.display())]
    Invalid {
        /// Its path, or `standard input`.
        file: PathBuf,
        /// `:<line>:<column>` where known.
        position: String,
        /// What it should have been.
        what: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// Both files are to come from standard input.
    #[error("--inventory and --pod cannot both be read from standard input")]
    Twice,
    /// Ready Pods are for an explanation of the node.
    #[error("-o pods prints ready Pods for what a node offers, and does not go with --pod")]
    PodsOfPods,
}

/// An inventory out of what `devices -o json` or `devices -o yaml` printed.
pub fn inventory(file: PathBuf, text: &str) -> Result<Inventory, InputError> {
    let what = "no inventory as `devices -o json` prints it";
    if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|error| {
            let position = format!(":{}:{}", error.line(), error.column());
            // serde_json repeats the position behind its message.
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default().to_owned();
            InputError::Invalid { file, position, what, message }
        })
    } else {
        serde_saphyr::from_str(text).map_err(|error| not_yaml(file, what, &error))
    }
}

/// The Pods in one or several YAML or JSON documents.
pub fn pods(file: PathBuf, text: &str) -> Result<Vec<PodSpec>, InputError> {
    let what = "no Pod, or something that makes Pods";
    let documents =
        serde_saphyr::from_multiple(text).map_err(|error| not_yaml(file.clone(), what, &error))?;
    let pods = manifest::pods(&documents);
    if pods.is_empty() {
        let kinds: Vec<&str> = documents.iter().map(manifest::Document::kind).collect();
        let message =
            if kinds.is_empty() { "it is empty".to_owned() } else { format!("found {}", kinds.join(", ")) };
        return Err(InputError::Invalid { file, position: String::new(), what, message });
    }
    Ok(pods)
}

fn not_yaml(file: PathBuf, what: &'static str, error: &serde_saphyr::Error) -> InputError {
    let plain = error.without_snippet();
    let position = plain.location().map(|at| format!(":{}:{}", at.line(), at.column())).unwrap_or_default();
    let message = plain.to_string();
    let message = message.lines().next().unwrap_or_default();
    let message = message.split(" at line ").next().unwrap_or_default().to_owned();
    InputError::Invalid { file, position, what, message }
}
