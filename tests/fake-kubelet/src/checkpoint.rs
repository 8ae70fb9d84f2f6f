//! The kubelet's checkpoint file, `kubelet_internal_checkpoint` in the plugin folder, in the kubelet's own form.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use prost::Message as _;
use serde_json::{Value, json};

use crate::api;
use crate::pod_devices::{Allocation, PodDevices};

/// The file's name, in the plugin folder.
pub(crate) const FILE: &str = "kubelet_internal_checkpoint";

/// The key of the devices that are on no NUMA node.
const NO_NODE: &str = "-1";

/// Devices on no node sort first, as `NO_NODE` does.
type ByNode<'a> = BTreeMap<String, Vec<&'a String>>;

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Checkpoint {
    pub(crate) held: PodDevices,
    /// The healthy devices of each resource.
    pub(crate) registered: BTreeMap<String, BTreeSet<String>>,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    #[error("can't read it: {0}")]
    Io(#[from] io::Error),
    #[error("it is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("checkpoint is corrupted")]
    Checksum,
    #[error("it has no {0}")]
    Form(&'static str),
}

/// Writes the file as the kubelet does: a temporary file beside it that only root may read, then a rename.
/// `number` keeps the temporary names apart.
pub(crate) fn write(
    folder: &Path,
    held: &PodDevices,
    registered: &BTreeMap<String, BTreeSet<String>>,
    number: usize,
) -> io::Result<()> {
    let entries: Vec<_> = held.entries().map(|(uid, container, resource, it)| {
        let mut ids = ByNode::new();
        for (id, node) in &it.ids {
            let node = node.map_or_else(|| NO_NODE.to_owned(), |node| node.to_string());
            ids.entry(node).or_default().push(id);
        }
        let answer = BASE64_STANDARD.encode(it.response.encode_to_vec());
        json!({
            "PodUID": uid, "ContainerName": container, "ResourceName": resource, "DeviceIDs": ids, "AllocResp": answer,
        })
    }).collect();
    // Go writes a list that was never made as null.
    let entries = if entries.is_empty() { Value::Null } else { Value::Array(entries) };
    let data = json!({ "PodDeviceEntries": entries, "RegisteredDevices": registered });
    let temporary = folder.join(format!(".{number:010}"));
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(json!({ "Data": data, "Checksum": checksum(&data) }).to_string().as_bytes())?;
    drop(file);
    std::fs::rename(temporary, folder.join(FILE))
}

/// Reads the file. `None`: there is none, as on a new node.
pub(crate) fn read(folder: &Path) -> Result<Option<Checkpoint>, CheckpointError> {
    let text = match std::fs::read(folder.join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    let file: Value = serde_json::from_slice(&text)?;
    let data = file.get("Data").ok_or(CheckpointError::Form("Data"))?;
    if file.get("Checksum").and_then(Value::as_u64) != Some(checksum(data)) {
        return Err(CheckpointError::Checksum);
    }
    let mut checkpoint = Checkpoint::default();
    for entry in data.get("PodDeviceEntries").and_then(Value::as_array).into_iter().flatten() {
        let text = |key| entry.get(key).and_then(Value::as_str).ok_or(CheckpointError::Form(key));
        let (uid, container, resource) = (text("PodUID")?, text("ContainerName")?, text("ResourceName")?);
        let answer = BASE64_STANDARD.decode(text("AllocResp")?).unwrap_or_default();
        let response = api::ContainerAllocateResponse::decode(answer.as_slice()).unwrap_or_default();
        let by_node =
            entry.get("DeviceIDs").and_then(Value::as_object).ok_or(CheckpointError::Form("DeviceIDs"))?;
        let ids = by_node.iter().flat_map(|(node, ids)| {
            let node = node.parse().ok().filter(|node| *node >= 0);
            strings(ids).map(move |id| (id, node))
        });
        checkpoint.held.insert(uid, container, resource, Allocation { ids: ids.collect(), response });
    }
    for (resource, ids) in data.get("RegisteredDevices").and_then(Value::as_object).into_iter().flatten() {
        checkpoint.registered.insert(resource.clone(), strings(ids).collect());
    }
    Ok(Some(checkpoint))
}

fn strings(list: &Value) -> impl Iterator<Item = String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned)
}

/// The kubelet's is an FNV hash of how Go prints the data; ours is one of its JSON. Only who wrote it can check either.
fn checksum(data: &Value) -> u64 {
    let hash = data
        .to_string()
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    u64::from(hash)
}
