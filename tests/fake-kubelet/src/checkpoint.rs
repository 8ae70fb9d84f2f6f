//! The kubelet's checkpoint file.
//!
//! The fake keeps what matters in memory; the file is written because it appears in the folder that plugins
//! watch, as often as the kubelet writes it: for each list and each allocation.

use std::io;
use std::path::Path;

use serde_json::json;

use crate::manager::Manager;

/// The file's name, in the plugin folder.
pub(crate) const FILE: &str = "kubelet_internal_checkpoint";

/// Writes the file as the kubelet does: a temporary file beside it, then a rename.
pub(crate) fn write(folder: &Path, manager: &Manager) -> io::Result<()> {
    let mut entries = Vec::new();
    for (pod, record) in &manager.pods {
        for (container, held) in &record.containers {
            for (resource, allocation) in held {
                let ids: Vec<_> = allocation.ids.keys().collect();
                entries.push(json!({
                    "PodUID": pod, "ContainerName": container, "ResourceName": resource, "DeviceIDs": ids,
                }));
            }
        }
    }
    let data = json!({ "PodDeviceEntries": entries, "RegisteredDevices": manager.registered() });
    let temporary = folder.join(format!(".{FILE}"));
    std::fs::write(&temporary, json!({ "Data": data, "Checksum": 0 }).to_string())?;
    std::fs::rename(temporary, folder.join(FILE))
}
