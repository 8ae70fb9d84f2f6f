//! The files in `dev`: character devices where the process may make them, and what stands for them elsewhere.

use std::{
    fs::{self, File},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use crate::{NodeError, host, tree::make_parent};

/// `/dev/null`: a device that opens on every machine.
const NULL: (u32, u32) = (1, 3);

/// What stands at a device's place in `dev`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DeviceFile {
    /// A character device, or a plain file where this process may make none.
    Plain(u32, u32),
    /// A file that everybody can open, in the place of a node whose driver says yes.
    Opens,
    /// A file that nobody can open, not even root: a character device without a driver, or a socket.
    Refuses(u32, u32),
}

impl DeviceFile {
    /// The character device that it is, where this process may make one.
    fn numbers(self) -> (u32, u32) {
        match self {
            Self::Plain(major, minor) | Self::Refuses(major, minor) => (major, minor),
            Self::Opens => NULL,
        }
    }

    /// Whether a file that is there is what is wanted.
    fn is(self, found: &fs::Metadata) -> bool {
        let (major, minor) = self.numbers();
        let kind = found.file_type();
        let device = kind.is_char_device() && found.rdev() == libc::makedev(major, minor);
        // A file of another type is left as it is: it was made where no device could be.
        device || if matches!(self, Self::Refuses(..)) { kind.is_socket() } else { kind.is_file() }
    }
}

/// Makes such a file, if it is not there.
pub(crate) fn make_device(path: &Path, device: DeviceFile) -> Result<(), NodeError> {
    if let Ok(found) = fs::symlink_metadata(path) {
        if device.is(&found) {
            return Ok(());
        }
        fs::remove_file(path).map_err(NodeError::io("remove", path))?;
    }
    make_parent(path)?;
    let (major, minor) = device.numbers();
    if host::is_root() && host::make_character_device(path, major, minor).is_ok() {
        // A file system can forbid devices to be opened.
        if !matches!(device, DeviceFile::Opens) || File::open(path).is_ok() {
            return Ok(());
        }
        fs::remove_file(path).map_err(NodeError::io("remove", path))?;
    }
    let made = match device {
        DeviceFile::Refuses(..) => host::make_socket_file(path),
        _ => fs::write(path, []),
    };
    made.map_err(NodeError::io("write", path))
}
