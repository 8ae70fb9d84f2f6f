//! The checkpoint of the kubelet's device manager: the devices that it looks up in plugins' lists without a check.
//!
//! It is a JSON file beside the kubelet's socket, and replaced as a whole: for each list that the kubelet takes in, and
//! for each `Allocate`. A kubelet starts with what is in it, so it can be asked while there is no kubelet, and it names
//! the devices of init containers, which podresources leaves out (`pkg/kubelet/cm/devicemanager/checkpoint`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

use super::claims::Claim;
use super::folder::FileId;
use crate::resource::DeviceId;

/// The file's name, a constant of the kubelet.
pub const CHECKPOINT: &str = "kubelet_internal_checkpoint";

/// A node with thousands of pods has some megabytes, most of them the answers of plugins.
const MAX_SIZE: u64 = 64 << 20;

/// What the kubelet has written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which file it was, to tell a newer one.
    pub file: FileId,
    /// The devices that containers hold, all plugins', in a fixed order and each once.
    pub claims: Vec<Claim>,
}

/// It is not known what the kubelet has written down.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file is missing, or cannot be read.
    #[error("cannot read the kubelet's checkpoint {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file says something else than this program knows.
    #[error("the kubelet's checkpoint {} has a form that this program does not know: {why}", path.display())]
    UnknownForm {
        /// The file.
        path: PathBuf,
        /// What is odd about it.
        why: String,
    },
}

impl CheckpointError {
    /// Whether there is no such file.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Unreadable { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl Checkpoint {
    /// Reads the file; blocks for as long as the disk takes.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let unreadable = |source| CheckpointError::Unreadable { path: path.to_owned(), source };
        let (file, text) = read(path).map_err(unreadable)?;
        let claims =
            claims(&text).map_err(|why| CheckpointError::UnknownForm { path: path.to_owned(), why })?;
        Ok(Self { file, claims })
    }
}

fn read(path: &Path) -> io::Result<(FileId, Vec<u8>)> {
    // Opening something that is no file may take for ever.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let file = File::open(path)?;
    let meta = file.metadata()?;
    let mut text = Vec::new();
    file.take(MAX_SIZE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_SIZE {
        return Err(io::Error::other(format!("it is larger than {} MiB", MAX_SIZE >> 20)));
    }
    Ok((FileId::from(&meta), text))
}

/// What is read of the file. A field that is missing makes it another form; one that is `null` is empty, as Go writes
/// it.
#[derive(Deserialize)]
struct Form {
    #[serde(rename = "Data")]
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "PodDeviceEntries", deserialize_with = "or_empty")]
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "ResourceName")]
    resource: String,
    #[serde(rename = "DeviceIDs", deserialize_with = "or_empty")]
    ids: Ids,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    /// By NUMA node; `-1` has those without one.
    ByNode(BTreeMap<String, Option<Vec<String>>>),
    /// As kubelets before 1.20 wrote them.
    Plain(Vec<String>),
}

impl Default for Ids {
    fn default() -> Self {
        Self::Plain(Vec::new())
    }
}

fn or_empty<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(value: D) -> Result<T, D::Error> {
    Option::deserialize(value).map(Option::unwrap_or_default)
}

fn claims(text: &[u8]) -> Result<Vec<Claim>, String> {
    let form: Form = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    // An init container and the one after it may have the same device, which is one claim.
    let mut all = BTreeMap::new();
    for Entry { resource, ids } in form.data.entries {
        let ids = match ids {
            Ids::Plain(ids) => vec![(None, ids)],
            Ids::ByNode(nodes) => nodes
                .into_iter()
                .map(|(node, ids)| Ok((numa_node(&node)?, ids.unwrap_or_default())))
                .collect::<Result<_, String>>()?,
        };
        for (node, ids) in ids {
            for id in ids {
                let claimed: &mut Option<u32> = all.entry((resource.clone(), DeviceId(id))).or_default();
                *claimed = claimed.or(node);
            }
        }
    }
    let claim = |((resource, device), numa_node)| Claim { resource, device, numa_node };
    Ok(all.into_iter().map(claim).collect())
}

fn numa_node(text: &str) -> Result<Option<u32>, String> {
    let node: i64 = text.parse().map_err(|error| format!("{text:?} is not a NUMA node: {error}"))?;
    Ok(u32::try_from(node).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(resource: &str, device: &str, numa_node: Option<u32>) -> Claim {
        Claim { resource: resource.to_owned(), device: DeviceId(device.to_owned()), numa_node }
    }

    /// As a kubelet writes it, on one line.
    const REAL: &str = concat!(
        r#"{"Data":{"PodDeviceEntries":["#,
        r#"{"PodUID":"a8d3c1f0-4b7e-4a53-9a0e-5d2f6f1f7a11","ContainerName":"main","ResourceName":"nvidia.com/gpu","#,
        r#""DeviceIDs":{"-1":["GPU-1"],"1":["GPU-0"]},"AllocResp":"CiQKFk5WSURJQQ=="},"#,
        r#"{"PodUID":"b8d3c1f0-4b7e-4a53-9a0e-5d2f6f1f7a11","ContainerName":"init","ResourceName":"nvidia.com/gpu","#,
        r#""DeviceIDs":{"1":["GPU-0"]},"AllocResp":null}],"#,
        r#""RegisteredDevices":{"nvidia.com/gpu":["GPU-0","GPU-1"]}},"Checksum":2514393028}"#,
    );

    #[test]
    fn what_a_kubelet_has_written_is_read() {
        let expected = [claim("nvidia.com/gpu", "GPU-0", Some(1)), claim("nvidia.com/gpu", "GPU-1", None)];
        assert_eq!(claims(REAL.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn what_older_kubelets_wrote_is_read() {
        let text = r#"{"Data":{"PodDeviceEntries":[{"PodUID":"a","ContainerName":"b","ResourceName":"c.d/e",
            "DeviceIDs":["x","y"],"AllocResp":""}],"RegisteredDevices":{"c.d/e":["x"]}},"Checksum":1}"#;
        assert_eq!(claims(text.as_bytes()).unwrap(), [claim("c.d/e", "x", None), claim("c.d/e", "y", None)]);
    }

    #[test]
    fn nothing_held_is_written_as_null() {
        let text = r#"{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{}},"Checksum":1}"#;
        assert_eq!(claims(text.as_bytes()).unwrap(), []);
        let text = r#"{"Data":{"PodDeviceEntries":[{"ResourceName":"a.b/c","DeviceIDs":null},
            {"ResourceName":"a.b/c","DeviceIDs":{"0":null}}]}}"#;
        assert_eq!(claims(text.as_bytes()).unwrap(), []);
    }

    #[test]
    fn another_form_is_said_to_be_one() {
        for (text, word) in [
            ("", "EOF"),
            ("[]", "invalid"),
            ("{}", "Data"),
            (r#"{"Data":{}}"#, "PodDeviceEntries"),
            (r#"{"Data":{"PodDeviceEntries":{}}}"#, "sequence"),
            (r#"{"Data":{"PodDeviceEntries":[{"DeviceIDs":["x"]}]}}"#, "ResourceName"),
            (r#"{"Data":{"PodDeviceEntries":[{"ResourceName":"a.b/c"}]}}"#, "DeviceIDs"),
            (r#"{"Data":{"PodDeviceEntries":[{"ResourceName":"a.b/c","DeviceIDs":7}]}}"#, "Ids"),
            (r#"{"Data":{"PodDeviceEntries":[{"ResourceName":"a.b/c","DeviceIDs":{"x":["y"]}}]}}"#, "NUMA"),
        ] {
            let why = claims(text.as_bytes()).unwrap_err();
            assert!(why.contains(word), "{text}: {why}");
        }
    }

    #[test]
    fn a_newer_file_is_told_from_an_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CHECKPOINT);
        let error = Checkpoint::read(&path).unwrap_err();
        assert!(matches!(error, CheckpointError::Unreadable { .. }), "{error}");
        std::fs::write(&path, REAL).unwrap();
        let first = Checkpoint::read(&path).unwrap();
        assert_eq!(Checkpoint::read(&path).unwrap(), first);
        let next = dir.path().join("next");
        std::fs::write(&next, REAL).unwrap();
        std::fs::rename(next, &path).unwrap();
        let second = Checkpoint::read(&path).unwrap();
        assert_eq!(second.claims, first.claims);
        assert_ne!(second.file, first.file);
        std::fs::write(&path, "{}").unwrap();
        let error = Checkpoint::read(&path).unwrap_err();
        assert!(matches!(error, CheckpointError::UnknownForm { .. }), "{error}");
        assert!(Checkpoint::read(dir.path()).unwrap_err().to_string().contains("not a file"));
    }
}
