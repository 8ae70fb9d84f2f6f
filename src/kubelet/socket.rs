//! Our sockets' names, and what a crashed run left of them.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::resource::ResourceName;

/// In front of each socket of ours, so that we never touch another plugin's.
const PREFIX: &str = "migdp-";

/// `sun_path` has 108 bytes, the last of which is a NUL.
const MAX_PATH: usize = 107;

/// What a name needs besides the folder and the resource's short name: prefix, hash, instance, a running number of
/// up to four digits, suffix.
const FIXED: usize = PREFIX.len() + 9 + 7 + 4 + ".sock".len();

/// A running socket tells itself apart within this time, in [`sweep`].
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// The plugin folder's path leaves no room for a socket's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the folder {} is too long: a socket's path may have {MAX_PATH} bytes, and names in it need {FIXED}",
    folder.display()
)]
pub struct FolderTooLong {
    folder: PathBuf,
}

/// Makes names such as `migdp-mig-2g.20gb-1f0c9a7e-x4k2p91.sock`: the resource for people, a hash of its whole name,
/// and a part that differs between instances of this program and grows with each registration. A name is never
/// used twice, because the kubelet's end of an old stream can end the new one under the same name
/// (kubernetes PR 135437).
#[derive(Debug, Clone)]
pub struct SocketNames {
    instance: String,
    room: usize,
    next: Arc<AtomicU32>,
}

impl SocketNames {
    /// Names for sockets in `folder`.
    pub fn new(folder: &Path) -> Result<Self, FolderTooLong> {
        let taken = folder.as_os_str().len() + 1 + FIXED;
        let room = MAX_PATH.checked_sub(taken).ok_or_else(|| FolderTooLong { folder: folder.to_owned() })?;
        let random = RandomState::new().build_hasher().finish();
        let digit = |shift: u32| char::from_digit((random >> shift & 0x1f) as u32, 32).unwrap_or('0');
        Ok(Self { instance: (0..6).map(|i| digit(i * 5)).collect(), room, next: Arc::new(AtomicU32::new(1)) })
    }

    /// A name that was not used before.
    pub fn next(&self, resource: &ResourceName) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed) % 10_000;
        let short: String = resource.short().chars().take(self.room).collect();
        format!("{PREFIX}{short}-{:08x}-{}{number}.sock", hash(resource), self.instance)
    }

    /// Whether `name` is a socket that another instance of this program made for `resource`.
    pub fn is_of_other_instance(&self, name: &str, resource: &ResourceName) -> bool {
        name.starts_with(PREFIX)
            && name.contains(&format!("-{:08x}-", hash(resource)))
            && !name.contains(&format!("-{}", self.instance))
    }
}

/// Whether a file of this name is a socket of this program.
pub(super) fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX) && Path::new(name).extension().is_some_and(|extension| extension == "sock")
}

/// FNV-1a, 32 bits: stable over versions of this program and of Rust, unlike the standard library's hashers.
fn hash(resource: &ResourceName) -> u32 {
    resource
        .as_str()
        .bytes()
        .fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Removes the sockets of earlier runs from `folder`: those with our prefix that nobody listens on.
pub async fn sweep(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        if !is_socket || !entry.file_name().to_str().is_some_and(is_ours) {
            continue;
        }
        let path = entry.path();
        let answer = timeout(CONNECT_LIMIT, UnixStream::connect(&path)).await;
        if matches!(answer, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused) {
            match std::fs::remove_file(&path) {
                Ok(()) => info!(socket = %path.display(), "removed the socket of an earlier run"),
                Err(error) => {
                    warn!(socket = %path.display(), %error, "cannot remove the socket of an earlier run");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_into_a_socket_address_or_the_folder_is_refused() {
        let resource: ResourceName = "nvidia.com/mig-1c.3g.40gb".parse().unwrap();
        for length in [1, 20, 60, 70, 74, 75] {
            let folder = PathBuf::from("/".repeat(length));
            let names = SocketNames::new(&folder).unwrap();
            let name = names.next(&resource);
            assert!(length + 1 + name.len() <= MAX_PATH, "{name}");
            assert!(is_ours(&name), "{name}");
        }
        let error = SocketNames::new(&PathBuf::from("/".repeat(76))).unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
    }

    #[test]
    fn instances_tell_their_sockets_apart_per_resource() {
        let folder = Path::new("/var/lib/kubelet/device-plugins");
        let (a, b) = (SocketNames::new(folder).unwrap(), SocketNames::new(folder).unwrap());
        let (gpu, mig) = (ResourceName::gpu(), "nvidia.com/mig-1g.10gb".parse().unwrap());
        assert_ne!(a.next(&gpu), a.next(&gpu));
        assert!(a.is_of_other_instance(&b.next(&gpu), &gpu));
        assert!(!a.is_of_other_instance(&b.next(&mig), &gpu));
        assert!(!a.is_of_other_instance(&a.next(&gpu), &gpu));
        assert!(!a.is_of_other_instance("nvidia-gpu.sock", &gpu));
    }
}
