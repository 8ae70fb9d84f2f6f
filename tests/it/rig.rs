//! A node, a kubelet and a plugin, in a folder of their own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use fake_kubelet::{FakeKubelet, TopologyPolicy, View};
use fake_nvml::{Description, Node};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// Longer than anything takes on the slowest machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) const GPU: &str = "nvidia.com/gpu";

/// `nvidia.com/mig-<profile>`.
pub(crate) fn mig(profile: &str) -> String {
    format!("nvidia.com/mig-{}", profile.replace('+', "."))
}

/// Everything of one test. The plugin looks at the driver five times a second.
pub(crate) struct Rig {
    pub(crate) node: Node,
    pub(crate) kubelet: FakeKubelet,
    pub(crate) plugin: Plugin,
    pub(crate) dir: TempDir,
}

impl Rig {
    /// A node with MIG strategy mixed.
    pub(crate) async fn mixed(description: &Description) -> Self {
        Self::start(description, &["--mig-strategy=mixed"]).await
    }

    pub(crate) async fn start(description: &Description, flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::create(dir.path().join("node"), description).unwrap();
        let plugins = dir.path().join("device-plugins");
        std::fs::create_dir(&plugins).unwrap();
        let kubelet = kubelet(dir.path()).await;
        let plugin = Plugin::spawn(dir.path(), node.root(), flags);
        Self { node, kubelet, plugin, dir }
    }

    /// The same, but how often the driver is looked at is left to `flags` and the file that they name.
    pub(crate) async fn start_plain(description: &Description, flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::create(dir.path().join("node"), description).unwrap();
        std::fs::create_dir(dir.path().join("device-plugins")).unwrap();
        let kubelet = kubelet(dir.path()).await;
        let plugin = Plugin::spawn_plain(dir.path(), node.root(), flags);
        Self { node, kubelet, plugin, dir }
    }

    /// Waits until the kubelet has exactly these resources with so many devices, all healthy.
    pub(crate) async fn wait_for_counts(&self, counts: &[(&str, usize)]) {
        let counts: Vec<_> = counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let is = |view: &View| {
            let offered = view.resources.iter().filter(|(_, resource)| resource.capacity.capacity > 0);
            let offered: Vec<_> = offered.map(|(name, r)| (name.clone(), r.capacity)).collect();
            offered.len() == counts.len()
                && offered.iter().zip(&counts).all(|((name, capacity), (wanted, count))| {
                    name == wanted && capacity.allocatable == *count && capacity.capacity == *count
                })
        };
        self.kubelet.wait_for(is, &format!("{counts:?}")).await.unwrap();
    }

    /// A second plugin on the same node and kubelet.
    pub(crate) fn second_plugin(&self, flags: &[&str]) -> Plugin {
        Plugin::spawn(self.dir.path(), self.node.root(), flags)
    }

    pub(crate) fn plugin_folder(&self) -> PathBuf {
        self.dir.path().join("device-plugins")
    }

    /// Our sockets in the plugin folder.
    pub(crate) fn sockets(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.plugin_folder()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name.starts_with("migdp-")).collect();
        names.sort();
        names
    }

    /// Ends the plugin as the kubelet would, and checks that it leaves nothing behind.
    pub(crate) async fn finish(mut self) {
        self.plugin.signal("TERM");
        assert!(self.plugin.exit().await.success());
        assert_eq!(self.sockets(), Vec::<String>::new(), "sockets left behind");
        self.kubelet.assert_no_crash();
        assert_eq!(self.kubelet.complaints(), Vec::<String>::new());
    }
}

/// A kubelet whose plugin folder is `<dir>/device-plugins`.
pub(crate) async fn kubelet(dir: &Path) -> FakeKubelet {
    let folder = dir.join("pod-resources");
    std::fs::create_dir_all(&folder).unwrap();
    // A Topology Manager looks at the devices of running pods, and crashes where one is not listed.
    let builder = FakeKubelet::builder(dir.join("device-plugins")).pod_resources(folder);
    builder.topology_policy(TopologyPolicy::Restricted).start().await.unwrap()
}

/// The plugin binary as a process. Its log is shown when the test fails.
pub(crate) struct Plugin {
    child: Child,
    log: PathBuf,
}

impl Plugin {
    /// Starts the plugin on the node at `node`, with the kubelet's folders in `dir`.
    pub(crate) fn spawn(dir: &Path, node: &Path, flags: &[&str]) -> Self {
        let usual = ["--rescan-interval=200ms", "--health-recovery-quiet=300ms"];
        Self::spawn_plain(dir, node, &[&usual, flags].concat())
    }

    /// Starts the plugin with a library that its process can never let go of.
    pub(crate) fn spawn_preloaded(dir: &Path, node: &Path, library: &Path, flags: &[&str]) -> Self {
        let usual = ["--rescan-interval=200ms"];
        Self::spawn_with(dir, node, &[&usual, flags].concat(), |command| {
            command.env("LD_PRELOAD", library);
        })
    }

    fn spawn_plain(dir: &Path, node: &Path, flags: &[&str]) -> Self {
        Self::spawn_with(dir, node, flags, |_| {})
    }

    fn spawn_with(dir: &Path, node: &Path, flags: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let log = tempfile::Builder::new().prefix("log").tempfile_in(dir).unwrap().keep().unwrap().1;
        let mut command = Command::new(env!("CARGO_BIN_EXE_mig-device-plugin"));
        prepare(&mut command);
        let child = command
            .arg("--log-level=debug")
            // Plugins of tests that run beside each other would meet at the default one.
            .arg("--http-address=")
            .arg("--driver-root-ctr-path")
            .arg(node)
            .arg("--kubelet-socket")
            .arg(dir.join("device-plugins/kubelet.sock"))
            .arg("--pod-resources-socket")
            .arg(dir.join("pod-resources/kubelet.sock"))
            .args(flags)
            .stdin(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until the log has a line with all of these words.
    pub(crate) async fn wait_for_log(&self, words: &[&str]) {
        let found = || self.log().lines().any(|line| words.iter().all(|word| line.contains(word)));
        wait_until(found, &format!("a log line with {words:?}")).await;
    }

    /// Sends `TERM`, `HUP` and the like.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let sent = std::process::Command::new("kill").args(["-s", name, &pid]).status().unwrap();
        assert!(sent.success());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("the plugin has ended")
    }

    /// Resident memory, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let pid = self.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) async fn exit(&mut self) -> ExitStatus {
        timeout(LIMIT, self.child.wait()).await.expect("the plugin does not end").unwrap()
    }

    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the plugin's log\n{}---", self.log());
        }
    }
}

/// Waits until `is` holds.
pub(crate) async fn wait_until(mut is: impl FnMut() -> bool, what: &str) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < LIMIT, "waited in vain for {what}");
        sleep(Duration::from_millis(10)).await;
    }
}
