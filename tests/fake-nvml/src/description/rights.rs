//! What a client of the driver may do and is told, and what it makes of what it may not.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, SeqAccess, Visitor},
};

/// A right that a process has with the driver. None implies another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Right {
    /// `CAP_SYS_ADMIN` in the initial user namespace.
    Admin,
    /// The capability mig/config: `nvidia-cap1` can be opened.
    Config,
    /// The capability mig/monitor: `nvidia-cap2` can be opened.
    Monitor,
}

/// What clients may do: a list of rights, or the word `process`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rights {
    /// These rights.
    Held(Vec<Right>),
    /// What the client's process really may: its capability set, and the nodes that it can open.
    OfProcess,
}

impl Default for Rights {
    fn default() -> Self {
        Self::Held(vec![Right::Admin, Right::Config, Right::Monitor])
    }
}

const OF_PROCESS: &str = "process";

impl Rights {
    /// Whether that right is among those listed.
    pub(crate) fn has(&self, right: Right) -> bool {
        matches!(self, Self::Held(rights) if rights.contains(&right))
    }

    /// As in the environment: `process`, or rights with commas between, or nothing for none.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text == OF_PROCESS {
            return Ok(Self::OfProcess);
        }
        let words = text.split(',').filter(|word| !word.is_empty());
        let rights = words.map(|word| match word {
            "admin" => Ok(Right::Admin),
            "config" => Ok(Right::Config),
            "monitor" => Ok(Right::Monitor),
            _ => Err(format!("{word:?} is no right; allowed: admin, config, monitor, or process alone")),
        });
        rights.collect::<Result<_, _>>().map(Self::Held)
    }
}

impl Serialize for Rights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Held(rights) => rights.serialize(serializer),
            Self::OfProcess => serializer.serialize_str(OF_PROCESS),
        }
    }
}

impl<'de> Deserialize<'de> for Rights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Forms;
        impl<'de> Visitor<'de> for Forms {
            type Value = Rights;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("rights: a list of admin, config and monitor, or the word process")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Rights, E> {
                if word == OF_PROCESS {
                    Ok(Rights::OfProcess)
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(word), &self))
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Rights, A::Error> {
                let mut rights = Vec::new();
                while let Some(right) = list.next_element()? {
                    rights.push(right);
                }
                Ok(Rights::Held(rights))
            }
        }
        deserializer.deserialize_any(Forms)
    }
}

/// What NVML shows of a slice whose nodes the client cannot open: what real ones do is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UnopenableSlices {
    /// All of it.
    #[default]
    Listed,
    /// A handle, its IDs and its parent; for the rest `NO_PERMISSION`, unless the client has mig/monitor.
    Unreadable,
    /// Nothing: it is not among the MIG devices.
    Hidden,
}

/// What clients without admin and mig/monitor hear of a GPU that has an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UnprivilegedEvents {
    /// Nothing, of no kind: what the kernel driver's source says.
    #[default]
    None,
    /// All events, as events of the whole GPU: what nvml.h promises.
    AsDocumented,
}

/// When clients hear of a `MigConfigChange`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MigConfigChange {
    /// Once for each instance that is made or destroyed, by a call or by an edit.
    #[default]
    OnChange,
    /// When it is sent by hand.
    WhenTold,
}

/// What a look-up by UUID does while a GPU is lost: it may start GPUs to ask them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UuidLookup {
    /// It answers `GPU_IS_LOST`, whichever GPU is lost.
    #[default]
    AnyGpu,
    /// It touches no other GPU than the one that is looked for.
    OwnGpu,
}
