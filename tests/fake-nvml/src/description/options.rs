//! States of the driver and its GPUs, and what can be so or otherwise.

use serde::{Deserialize, Serialize};

/// Whether the kernel driver is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DriverState {
    /// It is, and all works.
    #[default]
    Loaded,
    /// It is not: `DRIVER_NOT_LOADED`, and no files in `dev` and `proc`.
    NotLoaded,
    /// It is another version than the library: `LIB_RM_VERSION_MISMATCH`.
    VersionMismatch,
}

/// What switching MIG mode off does while there are instances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MigOff {
    /// It is refused: `IN_USE`.
    #[default]
    InUse,
    /// It destroys them.
    Destroys,
}

/// What a reset makes of instances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AfterReset {
    /// They are gone.
    #[default]
    Gone,
    /// They come back under the same IDs.
    Restored,
}

/// Whether a GPU has fallen off the bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Lost {
    /// It is there.
    #[default]
    No,
    /// Every call about it answers `GPU_IS_LOST`.
    IsLost,
    /// As well, but those that give its handle answer `UNKNOWN`.
    UnknownHandles,
}

/// Who makes the device nodes of instances that come. Nobody removes those of instances that go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Nodes {
    /// The library, in the process that first asks for the MIG device.
    #[default]
    OnUse,
    /// Only [`Node::make_nodes`](crate::Node::make_nodes), as `nvidia-modprobe` or `nvidia-ctk` do.
    ByHand,
}

impl Lost {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
    pub(super) fn is_no(&self) -> bool {
        *self == Self::No
    }
}

/// What a GPU needs before it can be used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[repr(u32)]
pub enum RecoveryAction {
    /// Nothing: it can be used.
    #[default]
    None = 0,
    /// A reset of the GPU.
    Reset = 1,
    /// A reboot of the node.
    Reboot = 2,
    /// Its peer-to-peer traffic must end.
    DrainP2p = 3,
    /// Its work must end, then a reset.
    DrainAndReset = 4,
    /// Its IMEX domain must be recovered.
    RecoverImex = 5,
}

impl RecoveryAction {
    /// Whether the driver asks for it on behalf of the whole node.
    pub(super) fn is_of_node(self) -> bool {
        matches!(self, Self::None | Self::Reboot | Self::RecoverImex)
    }

    /// The weightier of two, which is what the driver tells.
    pub(crate) fn or(self, other: Self) -> Self {
        let weight = |action| match action {
            Self::Reboot => 5,
            Self::Reset => 4,
            Self::DrainAndReset => 3,
            Self::DrainP2p => 2,
            Self::RecoverImex => 1,
            Self::None => 0,
        };
        if weight(other) > weight(self) { other } else { self }
    }
}
