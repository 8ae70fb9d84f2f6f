//! Version-5 UUIDs: names to UUIDs, so that the same slice has the same UUID each time it is made.

use sha1_smol::Sha1;

/// The namespace of this fake, itself a random UUID. Real drivers' namespaces are not known.
const NAMESPACE: [u8; 16] =
    [0x8c, 0x3f, 0x0d, 0x6e, 0x52, 0x47, 0x4b, 0x1a, 0x9d, 0x0e, 0x6a, 0x11, 0xf7, 0x25, 0x90, 0x3b];

/// The UUID of a GPU, from what stays the same about it: its model and PCI address.
pub(crate) fn gpu(model: &str, pci: &str) -> String {
    format!("GPU-{}", version_5(&format!("gpu/{model}/{pci}")))
}

/// The UUID of a MIG device: a function of parent, GPU instance and compute instance and nothing else, so
/// that another profile in the same place gets the same UUID, as real drivers' UUIDs appear to.
pub(crate) fn mig(gpu: &str, gi: u32, ci: u32) -> String {
    format!("MIG-{}", version_5(&format!("mig/{gpu}/{gi}/{ci}")))
}

fn version_5(name: &str) -> String {
    let mut sha1 = Sha1::new();
    sha1.update(&NAMESPACE);
    sha1.update(name.as_bytes());
    let mut bytes = sha1.digest().bytes();
    bytes[6] = bytes[6] & 0x0f | 0x50;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = |range: std::ops::Range<usize>| -> String {
        bytes[range].iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    };
    format!("{}-{}-{}-{}-{}", hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16))
}
