//! Codes that were not seen on real hardware in every case: what the driver answers in which situation.

use serde::{Deserialize, Serialize};

use crate::Code;

/// A situation in which more than one code could be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Situation {
    /// An instance is to be made and nothing is free for it.
    NoRoom,
    /// An instance is to be made at a placement that is taken.
    PlacementTaken,
    /// What is to be destroyed or turned off is used, or has something in it.
    InUse,
    /// A handle names what is no more.
    GoneHandle,
    /// A MIG device is asked for by an index that is not below the number of those that there could be.
    PastLastMigDevice,
    /// MIG is asked of a GPU that knows none.
    WithoutMig,
}

impl Situation {
    /// The code where the description says nothing: what nvml.h, or a client's recording, lets one expect.
    pub fn default_code(self) -> Code {
        match self {
            Self::NoRoom | Self::PlacementTaken => Code::INSUFFICIENT_RESOURCES,
            Self::InUse => Code::IN_USE,
            Self::GoneHandle | Self::PastLastMigDevice => Code::INVALID_ARGUMENT,
            Self::WithoutMig => Code::NOT_SUPPORTED,
        }
    }
}
