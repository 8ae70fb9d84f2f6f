//! The driver's major numbers, which the kernel hands out when its modules are loaded.

use std::fs;
use std::path::PathBuf;

use crate::nvml::Paths;

/// Major numbers of NVIDIA's character devices; `None` where the module that has them is not loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Majors {
    /// GPUs, `nvidiactl` and `nvidia-modeset`.
    pub gpu: Option<u32>,
    /// `nvidia-uvm` and `nvidia-uvm-tools`.
    pub uvm: Option<u32>,
    /// The capability nodes of MIG.
    pub caps: Option<u32>,
    /// IMEX channels.
    pub imex: Option<u32>,
}

impl Majors {
    /// From the list of devices below the proc root: the one that is set, or else the driver root's where
    /// that knows a GPU driver, or else the system's.
    pub fn read(paths: &Paths) -> Self {
        let read = |proc: PathBuf| Self::parse(&fs::read_to_string(proc.join("devices")).unwrap_or_default());
        if let Some(proc) = &paths.proc_root {
            return read(proc.clone());
        }
        let own = read(paths.driver_root.join("proc"));
        if own.gpu.is_some() { own } else { read(PathBuf::from("/proc")) }
    }

    /// Parses `/proc/devices`. Block devices come after the character devices and have numbers of their own.
    fn parse(text: &str) -> Self {
        let mut majors = Self::default();
        for line in text.lines().take_while(|line| !line.starts_with("Block devices")) {
            let mut words = line.split_whitespace();
            let (Some(Ok(major)), Some(name)) = (words.next().map(str::parse), words.next()) else {
                continue;
            };
            match name {
                // The second is what drivers up to 535 say.
                "nvidia" | "nvidia-frontend" => majors.gpu = Some(major),
                "nvidia-uvm" => majors.uvm = Some(major),
                "nvidia-caps" => majors.caps = Some(major),
                "nvidia-caps-imex-channels" => majors.imex = Some(major),
                _ => {}
            }
        }
        majors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majors_are_read_by_name() {
        let text = "Character devices:\n  1 mem\n195 nvidia\n195 nvidia-modeset\n195 nvidiactl\n508 nvidia-uvm\n\
                    511 nvidia-caps\n510 nvidia-caps-imex-channels\n\nBlock devices:\n  7 nvidia-uvm\n";
        let majors = Majors { gpu: Some(195), uvm: Some(508), caps: Some(511), imex: Some(510) };
        assert_eq!(Majors::parse(text), majors);
        assert_eq!(Majors::parse("195 nvidia-frontend\n").gpu, Some(195));
        assert_eq!(Majors::parse("Block devices:\n195 nvidia\nx nvidia\n"), Majors::default());
    }

    #[test]
    fn the_driver_roots_own_list_counts_only_where_it_knows_the_driver() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path());
        fs::create_dir(dir.path().join("proc")).unwrap();
        fs::write(dir.path().join("proc/devices"), "42 nvidia\n").unwrap();
        assert_eq!(Majors::read(&paths).gpu, Some(42));
        fs::create_dir(dir.path().join("other")).unwrap();
        let elsewhere = Paths { proc_root: Some(dir.path().join("other")), ..paths };
        assert_eq!(Majors::read(&elsewhere), Majors::default());
    }
}
