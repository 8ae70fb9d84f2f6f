//! PCI addresses.

/// The addresses of a usual eight-GPU board, and on from there.
pub(crate) fn default_pci(index: u32) -> String {
    let (domain, place) = (index / 24, index % 24);
    format!("{domain:04x}:{:02x}:00.0", 0x18 + 8 * place)
}

/// Domain, bus and device of an address as sysfs writes it.
pub(crate) fn parse_pci(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts = text.split(':');
    let (domain, bus, rest) = (parts.next()?, parts.next()?, parts.next()?);
    let (device, function) = rest.split_once('.')?;
    let hex = |digits: &str, length| {
        (digits.len() == length).then(|| u32::from_str_radix(digits, 16).ok()).flatten()
    };
    hex(function, 1)?;
    match parts.next() {
        None => Some((hex(domain, 4).or_else(|| hex(domain, 8))?, hex(bus, 2)?, hex(device, 2)?)),
        Some(_) => None,
    }
}
