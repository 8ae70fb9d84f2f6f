//! The C library's calls that Rust's standard library has no form for, behind safe functions.

use std::{
    ffi::{CStr, CString, OsStr, c_int, c_void},
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::atomic::AtomicU64,
    time::Duration,
};

/// The file that this code was loaded from: the node's library, in a process that opened it.
pub(crate) fn own_library() -> Option<PathBuf> {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    let here = own_library as *const c_void;
    // SAFETY: dladdr only looks `here` up, and writes to `info`, which outlives the call.
    let found = unsafe { libc::dladdr(here, &raw mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr succeeded, so the name is a C string that lives as long as this code is loaded.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    std::fs::canonicalize(OsStr::from_bytes(name.to_bytes())).ok()
}

/// Whether this process may own device nodes.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Makes a character device with mode 0666, as the driver's are.
pub(crate) fn make_character_device(path: &Path, major: u32, minor: u32) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let device = libc::makedev(major, minor);
    // SAFETY: `name` is a C string that outlives the call.
    let answer = unsafe { libc::mknod(name.as_ptr(), libc::S_IFCHR | 0o666, device) };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    // The process's umask took bits away.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
}

/// Makes a socket's file that nobody listens on: it cannot be opened.
pub(crate) fn make_socket_file(path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `name` is a C string that outlives the call.
    let made = unsafe { libc::mknod(name.as_ptr(), libc::S_IFSOCK | 0o600, 0) };
    if made == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits. Not `thread::sleep`, so that the one place that plays a slow driver stands out from mistakes.
pub(crate) fn pause(time: Duration) {
    let ms = c_int::try_from(time.as_millis()).unwrap_or(c_int::MAX);
    // SAFETY: with no descriptors the pointer is not read.
    unsafe { libc::poll(std::ptr::null_mut(), 0, ms) };
}

/// A file's words in memory, shared with every process that maps it.
#[derive(Debug)]
pub(crate) struct SharedWords {
    words: *const AtomicU64,
    count: usize,
}

// SAFETY: the words are atomics, in memory that is mapped until the value is dropped.
unsafe impl Send for SharedWords {}
// SAFETY: as above; only shared references to atomics are handed out.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps `count` words of a file that is at least that long.
    pub(crate) fn map(file: &File, count: usize) -> io::Result<Self> {
        let length = count * size_of::<AtomicU64>();
        if file.metadata()?.len() < length as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: no address is asked for, so no mapping is replaced; length and descriptor are valid.
        let address = unsafe {
            libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { words: address.cast(), count })
    }

    /// The words.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: `map` mapped this many words, page-aligned and zeroed or written as words, and they stay
        // mapped while `self` lives. Nobody cuts the file short: the node only ever writes it whole.
        unsafe { std::slice::from_raw_parts(self.words, self.count) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        let address = self.words.cast_mut().cast();
        // SAFETY: this is what `map` mapped, and no reference to it outlives `self`.
        unsafe { libc::munmap(address, self.count * size_of::<AtomicU64>()) };
    }
}

/// Sees changes of files, by inotify.
#[derive(Debug)]
pub(crate) struct Watch {
    queue: OwnedFd,
}

impl Watch {
    /// Watches these files for writes, and folders for files written or renamed into them.
    pub(crate) fn new(paths: &[&Path]) -> io::Result<Self> {
        // SAFETY: inotify_init1 has no preconditions.
        let descriptor = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and nobody else has it.
        let queue = unsafe { OwnedFd::from_raw_fd(descriptor) };
        for path in paths {
            let name = CString::new(path.as_os_str().as_bytes())?;
            let changes = libc::IN_MODIFY | libc::IN_CLOSE_WRITE | libc::IN_MOVED_TO;
            // SAFETY: `name` is a C string that outlives the call.
            let watched = unsafe { libc::inotify_add_watch(queue.as_raw_fd(), name.as_ptr(), changes) };
            if watched < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self { queue })
    }

    /// Returns when something changed since the last call, or when the time is over.
    pub(crate) fn wait(&self, time: Duration) {
        // Rounded up, or the last fraction of a millisecond would be spun away.
        let ms = c_int::try_from(time.as_micros().div_ceil(1000)).unwrap_or(c_int::MAX);
        let mut entry = libc::pollfd { fd: self.queue.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, which outlives the call.
        unsafe { libc::poll(&raw mut entry, 1, ms) };
        let mut buffer = [0u8; 4096];
        loop {
            // SAFETY: the buffer outlives the call and has that length.
            let read =
                unsafe { libc::read(self.queue.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
            if read <= 0 {
                break;
            }
        }
    }
}
