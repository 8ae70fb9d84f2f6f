//! What the plugin costs on a node with 56 slices: the release binary between both fakes.
//!
//! `cargo bench --bench node` prints medians over several runs. They are wall times of a whole process on whatever
//! machine this is, so compare figures of one run with each other, not of two machines.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark prints, and stops at the first thing that is wrong"
)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fake_kubelet::FakeKubelet;
use fake_nvml::{Description, Event, Node};
use mig_device_plugin::inventory::{Link, Links};
use mig_device_plugin::nvml::{Paths, discover};
use mig_device_plugin::resource::policy::{AllocationPolicy, OfferPolicy};
use mig_device_plugin::resource::preferred::preferred;
use mig_device_plugin::resource::{ResourceName, resolve};

const PLUGIN: &str = env!("CARGO_BIN_EXE_mig-device-plugin");
const RESOURCE: &str = "nvidia.com/mig-1g.10gb";
const RUNS: usize = 15;
const CALLS: usize = 5_000;

fn main() {
    // `cargo test --benches` asks for a list of tests; there are none.
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(measure());
}

/// The worst that `GetPreferredAllocation` can meet: sixteen whole GPUs, each pair of another worth.
fn measure_preferred() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::create(dir.path(), &Description::h100s(16)).unwrap();
    let inventory = discover(&Paths::below(node.root())).unwrap();
    let devices =
        resolve(&inventory, &OfferPolicy::default()).resources.remove(&ResourceName::gpu()).unwrap();
    let ids: Vec<_> = devices.iter().map(|device| device.uuid.clone()).collect();
    let mut links = Links::default();
    for (a, b) in (0..16_u32).flat_map(|a| (a + 1..16).map(move |b| (a, b))) {
        let link = Link { nvlinks: (a * 7 + b * 5) % 13, pcie: None };
        links.insert(&ids[a as usize], &ids[b as usize], link);
    }
    let mut times: Vec<_> = (1..16)
        .map(|size| {
            let start = Instant::now();
            assert_eq!(preferred(&devices, &links, &ids, &[], size, AllocationPolicy::Unset).len(), size);
            start.elapsed()
        })
        .collect();
    println!("GPUs preferred of 16       {:>9.1} ms, most {:.1} ms", ms(median(&mut times)), ms(times[14]));
}

async fn measure() {
    measure_preferred();
    let mut description = Description::h100s(8);
    for gpu in 0..8 {
        description.set_mig(gpu, &["1g.10gb"; 7]);
    }
    let (mut starts, mut resident, mut calls) = (Vec::new(), Vec::new(), 0);
    for _ in 0..RUNS {
        let rig = Rig::start(&description).await;
        starts.push(rig.first_list);
        resident.push(rig.memory("VmRSS"));
        calls = rig.node.counters().unwrap().values().sum();
    }
    println!("binary                     {:>9.2} MB", size(Path::new(PLUGIN)) / 1e6);
    println!(
        "start to first list        {:>9.1} ms, of which the fake driver and the process start are part",
        ms(median(&mut starts))
    );
    println!("NVML calls by then         {calls:>9}");
    println!("resident                   {:>9.1} MB", median(&mut resident) / 1e3);

    let rig = Rig::start(&description).await;
    let ids: Vec<_> = rig.kubelet.devices(RESOURCE).into_keys().collect();
    let mut allocates = Vec::new();
    let mut options = Vec::new();
    for n in 0..CALLS {
        let start = Instant::now();
        rig.kubelet.allocate_ids(RESOURCE, &[&ids[n % ids.len()]]).await.unwrap();
        allocates.push(start.elapsed());
        let start = Instant::now();
        rig.kubelet.options(RESOURCE).await.unwrap();
        options.push(start.elapsed());
    }
    println!(
        "Allocate                   {:>9.1} µs (p99 {:.1} µs)",
        us(median(&mut allocates)),
        us(p99(&allocates))
    );
    println!(
        "an empty call beside it    {:>9.1} µs (p99 {:.1} µs)",
        us(median(&mut options)),
        us(p99(&options))
    );
    println!("resident after {:>5} calls {:>9.1} MB", 2 * CALLS, rig.memory("VmRSS") / 1e3);
    println!("most it ever had           {:>9.1} MB", rig.memory("VmHWM") / 1e3);
    println!("threads                    {:>9}", rig.memory("Threads"));
    let mut events = rig.events().await;
    println!(
        "an Xid to the kubelet      {:>9.1} ms (p99 {:.1} ms, most {:.1} ms)",
        ms(median(&mut events)),
        ms(p99(&events)),
        ms(events[events.len() - 1])
    );
    let before = rig.cpu();
    tokio::time::sleep(Duration::from_secs(30)).await;
    println!("processor time, idle 30 s  {:>9} ms, with a look at the driver every 10 s", rig.cpu() - before);
}

struct Rig {
    node: Node,
    kubelet: FakeKubelet,
    plugin: Child,
    first_list: Duration,
    _dir: tempfile::TempDir,
}

impl Rig {
    async fn start(description: &Description) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::create(dir.path().join("node"), description).unwrap();
        let builder = FakeKubelet::builder(dir.path().join("k")).pod_resources(dir.path().join("p"));
        let kubelet = builder.start().await.unwrap();
        let start = Instant::now();
        let plugin = Command::new(PLUGIN)
            .arg("--mig-strategy=mixed")
            .arg("--driver-root-ctr-path")
            .arg(node.root())
            .arg("--kubelet-socket")
            .arg(kubelet.socket())
            .arg("--pod-resources-socket")
            .arg(kubelet.pod_resources_socket().unwrap())
            .args(["--health-recovery-quiet=100ms", "--http-address=127.0.0.1:0"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        kubelet.wait_for_capacity(RESOURCE, 56, 56).await.unwrap();
        let first_list = kubelet.lists(RESOURCE)[0].at - start;
        Self { node, kubelet, plugin, first_list, _dir: dir }
    }

    /// From an Xid on one slice to the list that has it as unhealthy, for each slice after the recovery of the one
    /// before it.
    async fn events(&self) -> Vec<Duration> {
        let mut times = Vec::new();
        let gpus = self.node.gpus().unwrap();
        for (gpu, slice) in gpus.iter().flat_map(|gpu| gpu.mig.iter().map(move |slice| (gpu.index, slice))) {
            self.kubelet.wait_for_capacity(RESOURCE, 56, 56).await.unwrap();
            // The list before it may be so young that the next one has to wait.
            tokio::time::sleep(Duration::from_millis(60)).await;
            let known = self.kubelet.lists(RESOURCE).len();
            let start = Instant::now();
            self.node.send(&Event::xid(94).on_gpu(gpu).on_instance(slice.gi, slice.ci)).unwrap();
            self.kubelet.wait_for_capacity(RESOURCE, 56, 55).await.unwrap();
            times.push(self.kubelet.lists(RESOURCE)[known].at - start);
        }
        times
    }

    /// A number out of `/proc/<pid>/status`; memory is in kB there.
    fn memory(&self, key: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.plugin.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// User and system time in ms; the kernel counts in ticks of 10 ms.
    fn cpu(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.plugin.id())).unwrap();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        [11, 12].iter().map(|field| fields[*field].parse::<u64>().unwrap() * 10).sum()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.plugin.kill().unwrap();
        self.plugin.wait().unwrap();
    }
}

fn size(path: &Path) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a few MB")]
    let size = std::fs::metadata(path).unwrap().len() as f64;
    size
}

fn median<T: PartialOrd + Copy>(values: &mut [T]) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).unwrap());
    values[values.len() / 2]
}

/// Of sorted values.
fn p99<T: Copy>(values: &[T]) -> T {
    values[values.len() * 99 / 100]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
