//! UUIDs as the driver makes them: version 5, of what is fixed in the chip, so that the same slice has the same UUID
//! each time it is made. The form of the message is that of `src/nvidia/src/kernel/gpu/gpu_uuid.c` in NVIDIA's open
//! kernel modules; the chip's own numbers are made up.

use sha1_smol::Sha1;

use crate::catalogue::{Architecture, Model};

/// The driver's namespace: `c816c9a3-5224-56bf-9d9a-ac7ea703fb5b`.
const NAMESPACE: [u8; 16] =
    [0xc8, 0x16, 0xc9, 0xa3, 0x52, 0x24, 0x56, 0xbf, 0x9d, 0x9a, 0xac, 0x7e, 0xa7, 0x03, 0xfb, 0x5b];

/// What tells one chip from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chip {
    /// Architecture and implementation.
    id: u16,
    /// Per-device identifier, burnt in.
    pdi: u64,
}

impl Chip {
    /// The chip of this model that sits at this PCI address.
    pub(crate) fn at(model: &Model, pci: &str) -> Self {
        Self::of(model, &format!("{}/{pci}", model.key))
    }

    /// The chip of this model that has got a UUID of its own.
    pub(crate) fn known_as(model: &Model, uuid: &str) -> Self {
        Self::of(model, uuid)
    }

    fn of(model: &Model, name: &str) -> Self {
        let digest = Sha1::from(name).digest().bytes();
        let pdi = digest[..8].iter().fold(0, |pdi, byte| pdi << 8 | u64::from(*byte));
        let id = match model.architecture {
            Architecture::Volta => 0x140,
            Architecture::Turing => 0x164,
            Architecture::Ampere => 0x170,
            Architecture::Hopper => 0x180,
            Architecture::Blackwell => 0x1a0,
        };
        Self { id, pdi }
    }

    /// The GPU's UUID.
    pub(crate) fn gpu_uuid(self) -> String {
        format!("GPU-{}", text(&self.message()))
    }

    /// The UUID of a MIG device: of its GPU instance's ID and its first engine, and nothing else.
    pub(crate) fn mig_uuid(self, gi: u32, engine: u32) -> String {
        let mut message = self.message();
        message.push(0x0b);
        message.extend(b"SMC");
        message.extend(gi.to_le_bytes());
        message.extend(engine.to_le_bytes());
        format!("MIG-{}", text(&message))
    }

    fn message(self) -> Vec<u8> {
        let mut message = NAMESPACE.to_vec();
        message.extend(b"NVIDIA GPU");
        message.push(0x02);
        message.extend(self.id.to_le_bytes());
        message.push(0x08);
        message.extend(self.pdi.to_le_bytes());
        message
    }
}

/// The version-5 UUID of a message that starts with its namespace.
fn text(message: &[u8]) -> String {
    let mut bytes = Sha1::from(message).digest().bytes();
    bytes[6] = bytes[6] & 0x0f | 0x50;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = |range: std::ops::Range<usize>| -> String {
        bytes[range].iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    };
    format!("{}-{}-{}-{}-{}", hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected values come from another implementation of version 5: Python's
    /// `uuid.uuid5(namespace, message)`.
    #[test]
    fn uuids_are_version_5_of_the_drivers_message() {
        let chip = Chip { id: 0x170, pdi: 0x0123_4567_89ab_cdef };
        assert_eq!(chip.gpu_uuid(), "GPU-1f009f4d-c4d4-5e43-8251-b910b42c5631");
        assert_eq!(chip.mig_uuid(9, 2), "MIG-3abd2707-2e77-57f4-9db9-8b4ae9b7779e");
        assert_ne!(chip.mig_uuid(9, 3), chip.mig_uuid(9, 2));
    }
}
