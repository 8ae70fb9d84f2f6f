//! A CDI specification as it is written: the fields that we use, named as CDI names them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The oldest version of CDI with all that we use, so that the oldest runtimes read it: device names that
/// begin with a digit (`0:3`), and `hostPath` in device nodes, came with this one.
pub const CDI_VERSION: &str = "0.5.0";

/// One file's contents: a kind, its devices, and what every container gets that has one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// The version of CDI that the file keeps to.
    pub cdi_version: String,
    /// `<vendor>/<class>`, in front of each device's name.
    pub kind: String,
    /// Never empty: CDI has no specification without devices.
    pub devices: Vec<Device>,
    /// For every container that has at least one of the devices.
    #[serde(default, skip_serializing_if = "ContainerEdits::is_empty")]
    pub container_edits: ContainerEdits,
}

/// A name that a container can ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    /// Unique in the file.
    pub name: String,
    /// What the container gets. Never empty, either.
    pub container_edits: ContainerEdits,
}

/// What a runtime adds to a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerEdits {
    /// `NAME=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Device nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub device_nodes: Vec<DeviceNode>,
    /// Files of the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Programs of the host that finish the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
}

impl ContainerEdits {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A device node. With `type` and `major` the runtime makes it without looking at the host's; without them
/// it takes them from the node at `host_path`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceNode {
    /// In the container.
    pub path: PathBuf,
    /// On the host.
    pub host_path: PathBuf,
    /// `c` for a character device.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub device_type: Option<char>,
    /// Major number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub major: Option<u32>,
    /// Minor number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor: Option<u32>,
    /// The node's mode in the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_mode: Option<u32>,
    /// What the container's device control group allows: of `r`, `w` and `m`.
    pub permissions: String,
}

/// A file of the host in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    /// On the host.
    pub host_path: PathBuf,
    /// In the container.
    pub container_path: PathBuf,
    /// As for mount(8).
    pub options: Vec<String>,
}

/// A program of the host that the runtime runs for each container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hook {
    /// When: one of OCI's names.
    pub hook_name: String,
    /// The program.
    pub path: PathBuf,
    /// Its arguments, its own name first.
    pub args: Vec<String>,
    /// Its whole environment. Without one it would get the runtime's.
    pub env: Vec<String>,
}

/// Whether CDI allows `name` for a device: letters, digits and `_-.:`, with a letter or digit at both ends.
/// One name that it does not allow makes the whole file invalid.
pub fn is_device_name(name: &str) -> bool {
    let ends = [name.chars().next(), name.chars().next_back()];
    ends.into_iter().all(|end| end.is_some_and(|c| c.is_ascii_alphanumeric()))
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.:".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_cdi_allows() {
        for name in ["all", "0", "0:3", "GPU-48ddee82-457c", "MIG-1"] {
            assert!(is_device_name(name), "{name}");
        }
        for name in ["", "-1", "MIG-GPU-48ddee82/7/0", "a:", "ä"] {
            assert!(!is_device_name(name), "{name}");
        }
    }

    #[test]
    fn what_is_empty_is_left_out() {
        let node = DeviceNode {
            path: "/dev/nvidia0".into(),
            host_path: "/dev/nvidia0".into(),
            device_type: Some('c'),
            major: Some(195),
            minor: Some(0),
            file_mode: None,
            permissions: "rw".to_owned(),
        };
        let edits = ContainerEdits { device_nodes: vec![node], ..ContainerEdits::default() };
        let spec = Spec {
            cdi_version: CDI_VERSION.to_owned(),
            kind: "vendor.com/gpu".to_owned(),
            devices: vec![Device { name: "0".to_owned(), container_edits: edits }],
            container_edits: ContainerEdits::default(),
        };
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(
            text,
            r#"{"cdiVersion":"0.5.0","kind":"vendor.com/gpu","devices":[{"name":"0","containerEdits":{"deviceNodes":[{"path":"/dev/nvidia0","hostPath":"/dev/nvidia0","type":"c","major":195,"minor":0,"permissions":"rw"}]}}]}"#
        );
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
    }
}
