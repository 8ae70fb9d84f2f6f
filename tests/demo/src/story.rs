//! The story: a node, a kubelet and the plugin; what is offered; a pod; a slice that falls sick; a layout that changes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fake_kubelet::{Capacity, FakeKubelet, KubeletError, Pod, PodSpec, View};
use fake_nvml::{Description, Event, GpuState, Node, RecoveryAction};
use tempfile::TempDir;

use crate::plugin::Plugin;
use crate::screen::Screen;
use crate::{DemoError, words};

/// The resource that the story's pod asks for, if the node has it.
const WANTED: &str = "nvidia.com/mig-2g.20gb";

/// How long the plugin may take to show what it should.
const PATIENCE: Duration = Duration::from_secs(15);

/// `GPU has fallen off the bus`, which nobody takes for an application's fault.
const XID: u64 = 94;

/// How long a device must be quiet before it is well; ten times as long by default.
const QUIET: &str = "1s";

/// Log lines shown after a step.
const SAID: usize = 6;

/// The longest temporary folder that leaves room for socket names in a Unix socket's path.
const LONGEST_FOLDER: usize = 50;

/// Everything that the story takes place in. Dropped in this order: plugin, kubelet, files.
struct Stage {
    screen: Screen,
    plugin: Plugin,
    kubelet: FakeKubelet,
    node: Node,
    executable: PathBuf,
    own_node: bool,
    folder: TempDir,
}

/// What the story needs to be told.
pub(crate) struct Story {
    pub(crate) screen: Screen,
    /// Somebody's own node.
    pub(crate) description: Option<Description>,
    /// The plugin.
    pub(crate) executable: PathBuf,
    /// Whether to stay at the end.
    pub(crate) keep: bool,
}

impl Story {
    pub(crate) async fn tell(self) -> Result<(), DemoError> {
        let own_node = self.description.is_some();
        let description = self.description.unwrap_or_else(words::eight_h100s);
        let mut stage = Stage::set(self.screen, &description, self.executable, own_node).await?;
        stage.play(self.keep).await
    }
}

impl Stage {
    async fn set(
        screen: Screen,
        description: &Description,
        executable: PathBuf,
        own_node: bool,
    ) -> Result<Self, DemoError> {
        let folder = short_folder().map_err(DemoError::io("make a temporary folder"))?;
        let node = Node::create(folder.path().join("node"), description)?;
        screen.step(1, "A node")?;
        for line in words::gpus(&node.gpus()?) {
            screen.line(&line)?;
        }
        screen.line(&screen.faint(&format!("played by {}", node.library().display())))?;

        screen.step(2, "A kubelet, and the plugin")?;
        let kubelet = FakeKubelet::builder(folder.path().join("k"))
            .pod_resources(folder.path().join("pods"))
            .wait_limit(PATIENCE)
            .start()
            .await?;
        let log = folder.path().join("plugin.log");
        let mut arguments = vec![
            "--mig-strategy=mixed".to_owned(),
            format!("--driver-root-ctr-path={}", node.root().display()),
            format!("--kubelet-socket={}", kubelet.socket().display()),
        ];
        if let Some(socket) = kubelet.pod_resources_socket() {
            arguments.push(format!("--pod-resources-socket={}", socket.display()));
        }
        arguments.push(format!("--health-recovery-quiet={QUIET}"));
        arguments.push("--rescan-interval=1s".to_owned());
        arguments.push("--http-address=".to_owned());
        screen.command(&format!("mig-device-plugin {}", arguments.join(" \\\n       ")))?;
        let plugin = Plugin::start(Command::new(&executable).args(&arguments), &log)?;
        screen.line(&screen.faint(&format!("its log is {}", log.display())))?;
        Ok(Self { screen, plugin, kubelet, node, executable, own_node, folder })
    }

    async fn play(&mut self, keep: bool) -> Result<(), DemoError> {
        let screen = self.screen;
        let gpus = self.node.gpus()?;
        let expected = words::offers(&gpus);
        let offered = self.wait(|view| lists(view, expected), "the node's devices").await?;
        self.say()?;

        screen.step(3, "What the node offers, as `kubectl describe node` would show it")?;
        self.print(words::table(screen, &offered, None))?;
        if offered.values().map(|it| it.capacity).sum::<usize>() != expected {
            screen.line(&format!(
                "The node has {expected} devices; see the log for those that are not offered."
            ))?;
        }

        let pod = self.run_pod(&offered, &gpus).await?;
        self.fall_sick(&offered, &gpus, pod.as_ref()).await?;
        self.change_layout(&offered, &gpus, pod.as_ref()).await?;
        self.close(keep).await
    }

    async fn run_pod(
        &mut self,
        offered: &BTreeMap<String, Capacity>,
        gpus: &[GpuState],
    ) -> Result<Option<Pod>, DemoError> {
        let screen = self.screen;
        let free = |name: &&str| offered.get(*name).is_some_and(|it| it.allocatable > 0);
        let (mig, whole): (Vec<_>, Vec<_>) =
            offered.keys().map(String::as_str).partition(|name| name.contains("/mig-"));
        let Some(resource) = std::iter::once(WANTED).chain(mig).chain(whole).find(free) else {
            screen.step(4, "No pod: the node offers nothing to run on")?;
            return Ok(None);
        };
        screen.step(4, &format!("A pod with the limit {resource}: 1"))?;
        let spec = PodSpec::new("training").container("main").limit(resource, 1);
        let pod = self.kubelet.run_pod(spec).await?;
        screen.line("What the container gets, from the plugin's answer to Allocate:")?;
        for id in pod.ids(resource) {
            screen.line(&format!("{} {}", screen.strong(&id), screen.faint(&words::place(gpus, &id))))?;
        }
        self.print(words::answer(screen, &pod["main"]))?;
        self.say()?;
        Ok(Some(pod))
    }

    /// An error of the driver's on one slice, its consequences, and the way back.
    async fn fall_sick(
        &mut self,
        before: &BTreeMap<String, Capacity>,
        gpus: &[GpuState],
        pod: Option<&Pod>,
    ) -> Result<(), DemoError> {
        let screen = self.screen;
        let held = pod.into_iter().flat_map(held_ids).next();
        let slices = || gpus.iter().flat_map(|gpu| gpu.mig.iter().map(move |mig| (gpu, mig)));
        let mine = slices().find(|(_, mig)| Some(&mig.uuid) == held.as_ref());
        let Some((gpu, mig)) = mine.or_else(|| slices().next()) else {
            return screen.step(5, "No slice falls sick: there is none");
        };
        let index = gpu.index as usize;
        let needs = |action| {
            move |node: &mut Description| {
                if let Some(gpu) = node.gpus.get_mut(index) {
                    gpu.recovery_action = action;
                }
            }
        };
        screen.step(5, &format!("Xid {XID} on one slice of GPU {index}, which then needs a reset"))?;
        let event = Event::xid(XID).on_gpu(gpu.index).on_instance(mig.gi, mig.ci);
        self.node.send(&event)?;
        let healthy = |view: &View| capacities(view).values().map(|it| it.allocatable).sum::<usize>();
        let all = before.values().map(|it| it.allocatable).sum::<usize>();
        let sick = self.wait(|view| healthy(view) == all - 1, "one sick slice").await?;
        screen.line(&format!(
            "The Xid names {} {}",
            screen.strong(&mig.uuid),
            screen.faint(&words::place(gpus, &mig.uuid))
        ))?;
        self.print(words::table(screen, &sick, Some(before)))?;
        self.say()?;
        self.node.update(needs(RecoveryAction::Reset))?;
        let others = gpu.mig.len();
        let sick = self.wait(|view| healthy(view) == all - others, "a GPU that needs a reset").await?;
        screen.gap()?;
        screen.line(
            "The driver asks for a reset of the GPU, so nothing new may start on its other slices either:",
        )?;
        self.print(words::table(screen, &sick, Some(before)))?;
        self.say()?;
        self.node.update(needs(RecoveryAction::None))?;
        let well = self.wait(|view| healthy(view) == all, "the recovery").await?;
        screen.gap()?;
        screen.line(&format!("The driver asks for nothing more, and {QUIET} of quiet has passed:"))?;
        self.print(words::table(screen, &well, Some(&sick)))?;
        self.say()
    }

    /// Changes a GPU that the pod is not on.
    async fn change_layout(
        &mut self,
        before: &BTreeMap<String, Capacity>,
        gpus: &[GpuState],
        pod: Option<&Pod>,
    ) -> Result<(), DemoError> {
        let screen = self.screen;
        let held = pod.into_iter().flat_map(held_ids);
        let busy: Vec<u32> = held.filter_map(|id| words::gpu_of(gpus, &id)).collect();
        let can_change = |gpu: &&GpuState| !gpu.mig.is_empty() && !busy.contains(&gpu.index);
        let Some(gpu) = gpus.iter().rev().find(can_change) else {
            return screen.step(6, "No change of layout: there is no other GPU with MIG devices");
        };
        // Of somebody's own node nothing is known but that what is there can be taken away.
        let layout = if self.own_node { &[][..] } else { &words::NEW_LAYOUT[..] };
        let index = gpu.index as usize;
        self.node.update(|description| description.set_mig(index, layout))?;
        let now = self.node.gpus()?;
        let after = now.get(index).map(words::layout).unwrap_or_default();
        let what = format!("Somebody changes GPU {index}: {} becomes {after}", words::layout(gpu));
        screen.step(6, &what)?;

        let expected = words::offers(&now);
        let offered = self.wait(|view| lists(view, expected), "the new layout").await?;
        self.print(words::table(screen, &offered, Some(before)))?;
        self.say()?;
        if let Some(pod) = pod {
            let held = pod.containers.values().flat_map(|container| &container.allocated);
            let healthy = |(resource, ids): (&String, &Vec<String>)| {
                let devices = self.kubelet.devices(resource);
                ids.iter().all(|id| devices.get(id).is_some_and(|device| device.healthy))
            };
            let unharmed = held.into_iter().all(healthy);
            screen.gap()?;
            screen.line(if unharmed {
                "The pod's device is as it was."
            } else {
                "The pod's device has suffered!"
            })?;
        }
        let crashes = self.kubelet.crashes();
        if crashes.is_empty() { Ok(()) } else { Err(DemoError::Crash(crashes.join("; "))) }
    }

    async fn close(&mut self, keep: bool) -> Result<(), DemoError> {
        let screen = self.screen;
        screen.step(6, if keep { "Now you" } else { "What else there is" })?;
        let devices = format!(
            "{} devices --driver-root-ctr-path={}",
            self.executable.display(),
            self.node.root().display()
        );
        if keep {
            screen.line("See the node as the plugin sees it:")?;
            screen.command(&devices)?;
            screen.line("Change it; what changes for the kubelet is shown below:")?;
            screen.command(&format!("$EDITOR {}", self.node.description_file().display()))?;
            screen.line("Read the plugin's log:")?;
            screen.command(&format!("tail -f {}", self.folder.path().join("plugin.log").display()))?;
            screen.line("Ctrl-C ends everything and removes the files.")?;
            return self.watch().await;
        }
        screen.line("Stay and play with the node, the kubelet and the plugin:")?;
        screen.command("cargo run -p demo -- --keep")?;
        screen.line("Play a node of your own:")?;
        screen.command("cargo run -p demo -- --node FILE.yaml")?;
        screen.line("See a node as the plugin sees it (with --keep, which shows the path):")?;
        screen.command("mig-device-plugin devices --driver-root-ctr-path=<node>")?;
        let status = self.plugin.end().await?;
        screen.gap()?;
        screen
            .line(&screen.faint(&format!("The plugin was told to end ({status}); all files are removed.")))?;
        self.kubelet.stop().await?;
        Ok(())
    }

    /// Shows every change that the kubelet sees, until somebody ends it.
    async fn watch(&mut self) -> Result<(), DemoError> {
        let mut before = self.kubelet.resources();
        loop {
            let changed = self.kubelet.wait_for(|view| capacities(view) != before, "a change");
            let view = tokio::select! {
                ended = self.plugin.ended() => return Err(ended),
                view = changed => match view {
                    Ok(view) => view,
                    Err(KubeletError::Timeout { .. }) => continue,
                    Err(error) => return Err(error.into()),
                },
            };
            let now = capacities(&view);
            self.screen.gap()?;
            self.print(words::table(self.screen, &now, Some(&before)))?;
            self.say()?;
            before = now;
        }
    }

    /// Waits for what should be, takes what is after a while, and fails when the plugin has ended.
    async fn wait(
        &mut self,
        is: impl Fn(&View) -> bool,
        what: &str,
    ) -> Result<BTreeMap<String, Capacity>, DemoError> {
        tokio::select! {
            ended = self.plugin.ended() => Err(ended),
            waited = self.kubelet.wait_for(is, what) => match waited {
                Ok(view) => Ok(capacities(&view)),
                Err(KubeletError::Timeout { view, .. }) if !view.resources.is_empty() => Ok(capacities(&view)),
                Err(error) => Err(error.into()),
            },
        }
    }

    /// Prints what the plugin has logged since.
    fn say(&mut self) -> Result<(), DemoError> {
        let lines = self.plugin.fresh_lines();
        if lines.is_empty() {
            return Ok(());
        }
        let hidden = lines.len().saturating_sub(SAID);
        self.screen.gap()?;
        for line in lines.iter().take(SAID) {
            self.screen.said(line)?;
        }
        if hidden > 0 {
            self.screen.said(&format!("… and {hidden} more lines"))?;
        }
        Ok(())
    }

    fn print(&self, lines: Vec<String>) -> Result<(), DemoError> {
        lines.into_iter().try_for_each(|line| self.screen.line(&line))
    }
}

/// What the pod's containers were given.
fn held_ids(pod: &Pod) -> impl Iterator<Item = String> {
    pod.containers.values().flat_map(|container| container.allocated.values().flatten().cloned())
}

fn capacities(view: &View) -> BTreeMap<String, Capacity> {
    view.resources.iter().map(|(name, seen)| (name.clone(), seen.capacity)).collect()
}

/// Whether so many devices are listed, all of them healthy.
fn lists(view: &View, devices: usize) -> bool {
    let seen = view.resources.values().map(|seen| seen.capacity);
    let (capacity, allocatable) =
        seen.fold((0, 0), |sum, seen| (sum.0 + seen.capacity, sum.1 + seen.allocatable));
    capacity == devices && allocatable == devices
}

/// A temporary folder whose path is short enough for sockets in it.
fn short_folder() -> std::io::Result<TempDir> {
    let usual = std::env::temp_dir();
    let fits = usual.as_os_str().len() <= LONGEST_FOLDER;
    tempfile::Builder::new().prefix("mig-").tempdir_in(if fits { &usual } else { Path::new("/tmp") })
}
