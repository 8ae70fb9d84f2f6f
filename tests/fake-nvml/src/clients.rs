//! Who has NVML open, and which GPUs: a file for each process, locked while the process has it open, so that one that
//! was killed is no client any more.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process, thread,
};

use crate::tree;

/// A client's process and the GPUs that it has open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Process ID, as the process itself sees it.
    pub pid: u32,
    /// UUIDs of the GPUs that it has open: from the first handle until NVML is shut down.
    pub gpus: BTreeSet<String>,
}

/// This process's file.
#[derive(Debug)]
pub(crate) struct OwnFile {
    file: File,
    path: PathBuf,
    gpus: BTreeSet<String>,
}

fn folder(root: &Path) -> PathBuf {
    tree::control(root).join("clients")
}

impl OwnFile {
    /// To be called `locked`, so that nobody takes the new file for a killed client's.
    pub(crate) fn create(root: &Path) -> io::Result<Self> {
        let folder = folder(root);
        fs::create_dir_all(&folder)?;
        for number in 0.. {
            let path = folder.join(format!("{}-{number}", process::id()));
            match File::create_new(&path) {
                Ok(file) => {
                    file.lock()?;
                    return Ok(Self { file, path, gpus: BTreeSet::new() });
                }
                // Another library in this process, or a killed client that had the same ID.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => thread::yield_now(),
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    pub(crate) fn has(&self, gpu: &str) -> bool {
        self.gpus.contains(gpu)
    }

    /// Notes that a GPU is open.
    pub(crate) fn opens(&mut self, gpu: &str) {
        if self.gpus.insert(gpu.to_owned()) {
            // Nobody but the node's owner asks for it.
            let _written = self.file.write_all(format!("{gpu}\n").as_bytes());
        }
    }

    /// Whether this is that client.
    pub(crate) fn is(&self, path: &Path) -> bool {
        self.path == path
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        let _removed = fs::remove_file(&self.path);
    }
}

/// The clients that are there, each with its file. To be called `locked`.
pub(crate) fn all(root: &Path) -> Vec<(PathBuf, Client)> {
    let files = fs::read_dir(folder(root)).into_iter().flatten().flatten();
    let mut clients: Vec<_> = files.filter_map(|entry| read(entry.path())).collect();
    clients.sort_by(|a, b| a.0.cmp(&b.0));
    clients
}

fn read(path: PathBuf) -> Option<(PathBuf, Client)> {
    let file = File::open(&path).ok()?;
    if file.try_lock_shared().is_ok() {
        // Whoever locked it is no more.
        let _removed = fs::remove_file(&path);
        return None;
    }
    let pid = path.file_name()?.to_str()?.split('-').next()?.parse().ok()?;
    let gpus = fs::read_to_string(&path).ok()?.lines().map(str::to_owned).collect();
    Some((path, Client { pid, gpus }))
}
