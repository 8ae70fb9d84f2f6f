//! NVIDIA's capability files: which device node guards which GPU instance and compute instance.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::places::Roots;
use crate::inventory::{CONTROL_NODES, DeviceNode, below};

/// Below the proc root: `<capability> <minor>` for every capability that the driver could ever hand out,
/// thousands of lines, whether the instance exists or not. `gpuN` in it is the GPU's minor number.
const MIG_MINORS: &str = "driver/nvidia-caps/mig-minors";

/// Below the proc root: the loaded kernel driver's version and build, in the first line.
const VERSION: &str = "driver/nvidia/version";

/// Below the proc root: a folder for each instance that exists.
const CAPABILITIES: &str = "driver/nvidia/capabilities";

/// The parsed `mig-minors`. The file is fixed while a driver is loaded, so it is read once.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct MigMinors {
    /// Sorted by capability.
    minors: Vec<(Capability, u32)>,
}

/// GPU minor, GPU instance, and compute instance where it is one.
type Capability = (u32, u32, Option<u32>);

impl MigMinors {
    /// Reads the file below this proc root.
    pub(super) fn read(proc_root: &Path) -> io::Result<Self> {
        fs::read(proc_root.join(MIG_MINORS)).map(|text| Self::parse(&text))
    }

    /// The minor of mig/monitor, below this proc root.
    pub(super) fn monitor(proc_root: &Path) -> Option<u32> {
        let text = fs::read_to_string(proc_root.join(MIG_MINORS)).ok()?;
        text.lines().find_map(|line| line.strip_prefix("monitor "))?.trim().parse().ok()
    }

    /// Where the file is expected, for messages.
    pub(super) fn path(proc_root: &Path) -> PathBuf {
        proc_root.join(MIG_MINORS)
    }

    /// Lines that are about something else (`config 1`, `monitor 2`) or not understood are passed over.
    fn parse(text: &[u8]) -> Self {
        // A line of the real file has some 25 bytes.
        let mut minors = Vec::with_capacity(text.len() / 20);
        minors.extend(text.split(|byte| *byte == b'\n').filter_map(parse_line));
        // The driver writes the file in this order, which makes sorting one pass.
        minors.sort_unstable();
        Self { minors }
    }

    fn minor(&self, capability: Capability) -> Option<u32> {
        let index = self.minors.binary_search_by_key(&capability, |(known, _)| *known).ok()?;
        self.minors.get(index).map(|(_, minor)| *minor)
    }

    /// The node that lets a process use the GPU instance.
    pub(super) fn gpu_instance_node(&self, roots: &Roots, gpu_minor: u32, gi: u32) -> Option<DeviceNode> {
        self.minor((gpu_minor, gi, None)).map(|minor| capability_node(roots, minor))
    }

    /// The node that lets a process use the compute instance.
    pub(super) fn compute_instance_node(
        &self,
        roots: &Roots,
        gpu_minor: u32,
        gi: u32,
        ci: u32,
    ) -> Option<DeviceNode> {
        self.minor((gpu_minor, gi, Some(ci))).map(|minor| capability_node(roots, minor))
    }
}

/// `gpu0/gi7/access 66` or `gpu0/gi7/ci0/access 67`.
fn parse_line(line: &[u8]) -> Option<(Capability, u32)> {
    let (gpu, rest) = number(line.strip_prefix(b"gpu")?)?;
    let (gi, rest) = number(rest.strip_prefix(b"/gi")?)?;
    let (ci, rest) = match rest.strip_prefix(b"/ci") {
        Some(rest) => number(rest).map(|(ci, rest)| (Some(ci), rest))?,
        None => (None, rest),
    };
    let (minor, rest) = number(rest.strip_prefix(b"/access")?.trim_ascii_start())?;
    rest.trim_ascii().is_empty().then_some(((gpu, gi, ci), minor))
}

/// The decimal number at the start of `text`, and what comes after it.
fn number(text: &[u8]) -> Option<(u32, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = text.split_at_checked(digits)?;
    Some((std::str::from_utf8(number).ok()?.parse().ok()?, rest))
}

pub(super) fn capability_node(roots: &Roots, minor: u32) -> DeviceNode {
    device_node(roots, format!("/dev/nvidia-caps/nvidia-cap{minor}"))
}

/// Where the kernel driver says what it is, as long as it is loaded.
pub(super) fn version_file(roots: &Roots) -> PathBuf {
    roots.proc.join(VERSION)
}

/// What the kernel driver says of itself; `None` where it cannot be read.
pub(super) fn kernel_module(roots: &Roots) -> Option<String> {
    let text = fs::read_to_string(version_file(roots)).ok()?;
    text.lines().next().map(str::to_owned)
}

/// The GPU's own node. Its number is the minor, not the index.
pub(super) fn gpu_node(roots: &Roots, gpu_minor: u32) -> DeviceNode {
    device_node(roots, format!("/dev/nvidia{gpu_minor}"))
}

/// The control nodes that are there.
pub(super) fn control_nodes(roots: &Roots) -> Vec<DeviceNode> {
    CONTROL_NODES
        .iter()
        .map(|path| device_node(roots, (*path).to_owned()))
        .filter(|node| node.exists)
        .collect()
}

fn device_node(roots: &Roots, path: String) -> DeviceNode {
    let path = PathBuf::from(path);
    // Not following links: a node is no link, and one that leads nowhere is better tried than left out.
    let exists = below(&roots.dev, &path).symlink_metadata().is_ok();
    DeviceNode { path, exists }
}

/// The file that stands and falls with the compute instance.
pub(super) fn access_file(roots: &Roots, gpu_minor: u32, gi: u32, ci: u32) -> PathBuf {
    mig_folder(roots, gpu_minor).join(format!("gi{gi}/ci{ci}/access"))
}

/// The folder of all capability files of the GPU's instances.
pub(super) fn mig_folder(roots: &Roots, gpu_minor: u32) -> PathBuf {
    roots.proc.join(format!("{CAPABILITIES}/gpu{gpu_minor}/mig"))
}

/// The instances that the capability folders show.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Instances {
    /// GPU instance and compute instance of each slice.
    pub(super) slices: BTreeSet<(u32, u32)>,
    /// GPU instances that have no compute instance: NVML lists none of them as a MIG device, and tells of them only one
    /// profile at a time and only to the privileged.
    pub(super) empty: BTreeSet<u32>,
}

/// Reads the capability folders of a GPU.
pub(super) fn instances(roots: &Roots, gpu_minor: u32) -> Instances {
    let mig = mig_folder(roots, gpu_minor);
    let mut found = Instances::default();
    for gi in numbered_folders(&mig, "gi") {
        let parts = numbered_folders(&mig.join(format!("gi{gi}")), "ci");
        if parts.is_empty() {
            found.empty.insert(gi);
        }
        found.slices.extend(parts.into_iter().map(|ci| (gi, ci)));
    }
    found
}

/// Whether capability files can be seen at all. The driver makes this one when it is loaded.
pub(super) fn are_visible(roots: &Roots) -> bool {
    roots.proc.join(CAPABILITIES).join("mig/config").exists()
}

/// The numbers in the names `<prefix><number>` of a folder's entries; none where the folder cannot be read.
fn numbered_folders(folder: &Path, prefix: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots(dir: &Path) -> Roots {
        Roots { dev: dir.to_owned(), proc: dir.join("proc"), sys: dir.join("sys") }
    }

    #[test]
    fn minors_are_found_by_gpu_instance_and_compute_instance() {
        let text = b"config 1\nmonitor 2\ngpu0/gi0/access 3\ngpu0/gi0/ci0/access 4\ngpu0/gi1/access 12\n\
                     gpu31/gi14/ci7/access 4322\n";
        let minors = MigMinors::parse(text);
        assert_eq!(minors.minor((0, 0, None)), Some(3));
        assert_eq!(minors.minor((0, 0, Some(0))), Some(4));
        assert_eq!(minors.minor((0, 1, None)), Some(12));
        assert_eq!(minors.minor((31, 14, Some(7))), Some(4322));
        assert_eq!(minors.minor((0, 1, Some(0))), None);
        assert_eq!(minors.minors.len(), 4);
    }

    #[test]
    fn lines_that_mean_nothing_here_are_passed_over() {
        let text = b"\ngpu0\ngpu/gi0/access 1\ngpu0/gi0/acces 1\ngpu0/gi0/access\ngpu0/gi0/access 1 2\n\
                     gpu0/gi0/ci/access 5\ngpu99999999999/gi0/access 6\ngpu0/gi3/access\t7 ";
        assert_eq!(MigMinors::parse(text).minors, vec![((0, 3, None), 7)]);
    }

    #[test]
    fn nodes_say_whether_they_exist_below_the_dev_root() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("dev/nvidia-caps")).unwrap();
        fs::write(dir.path().join("dev/nvidia-caps/nvidia-cap3"), "").unwrap();
        fs::write(dir.path().join("dev/nvidia-uvm"), "").unwrap();
        let roots = roots(dir.path());
        let minors = MigMinors::parse(b"gpu0/gi0/access 3\ngpu0/gi0/ci0/access 4\n");
        let node = |path: &str, exists| DeviceNode { path: path.into(), exists };
        assert_eq!(minors.gpu_instance_node(&roots, 0, 0), Some(node("/dev/nvidia-caps/nvidia-cap3", true)));
        let ci_node = minors.compute_instance_node(&roots, 0, 0, 0);
        assert_eq!(ci_node, Some(node("/dev/nvidia-caps/nvidia-cap4", false)));
        assert_eq!(gpu_node(&roots, 12), node("/dev/nvidia12", false));
        assert_eq!(control_nodes(&roots), vec![node("/dev/nvidia-uvm", true)]);
    }

    #[test]
    fn instances_are_read_from_the_folders() {
        let dir = tempfile::tempdir().unwrap();
        let roots = roots(dir.path());
        let mig = dir.path().join("proc/driver/nvidia/capabilities/gpu2/mig");
        for folder in ["gi11", "gi2/ci0", "gi3"] {
            fs::create_dir_all(mig.join(folder)).unwrap();
        }
        fs::write(mig.join("gi3/access"), "").unwrap();
        fs::write(mig.join("gi2/ci0/access"), "").unwrap();
        fs::write(mig.join("config"), "").unwrap();
        let expected = Instances { slices: [(2, 0)].into(), empty: [3, 11].into() };
        assert_eq!(instances(&roots, 2), expected);
        assert_eq!(instances(&roots, 0), Instances::default());
        assert!(!are_visible(&roots));
        assert_eq!(access_file(&roots, 2, 2, 0), mig.join("gi2/ci0/access"));
    }
}
