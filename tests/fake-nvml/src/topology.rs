//! What a description of connections means: how far each GPU is from each other, and where its `NVLinks` go.

use crate::{
    catalogue::{Architecture, Model},
    description::{Branch, NvLinks, NvSwitch, Preset, Topology},
    state::GpuState,
};

/// `NVML_NVLINK_MAX_LINKS`.
const MOST_LINKS: u32 = 18;
/// As many switches have a bus number below the GPUs' own.
const MOST_SWITCHES: u32 = 16;
const FIRST_SWITCH_BUS: u32 = 5;

/// How two GPUs are connected by PCIe: `nvmlGpuTopologyLevel_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum Level {
    /// On the same board.
    Internal = 0,
    /// By one PCIe switch.
    Single = 10,
    /// By several PCIe switches.
    Multiple = 20,
    /// By a host bridge.
    HostBridge = 30,
    /// Within a NUMA node.
    Node = 40,
    /// From one NUMA node to another.
    System = 50,
}

/// An `NVLink` of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whether it is up.
    pub active: bool,
    /// What is at its other end.
    pub to: Peer,
}

/// The other end of an `NVLink`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The GPU of this index.
    Gpu(u32),
    /// A switch, by PCI address.
    Switch(String),
}

/// How a node's GPUs are connected.
#[derive(Clone, Debug, Default)]
pub struct Connections {
    /// By index of both GPUs.
    levels: Vec<Vec<Level>>,
    /// By index of the GPU, then by number of the link.
    links: Vec<Vec<Link>>,
    active_with_mig: bool,
}

impl Connections {
    /// Decides how these GPUs are connected, or lists what is wrong with the description.
    pub(crate) fn resolve(topology: &Topology, gpus: &[GpuState]) -> Result<Self, Vec<String>> {
        let mut problems = preset_problems(topology.preset, gpus);
        if !problems.is_empty() {
            return Err(problems);
        }
        let wanted = completed(topology, gpus);
        let trees = Trees::of(wanted.pcie.as_deref().unwrap_or_default());
        problems.extend(trees.problems(gpus.len()));
        problems.extend(board_problems(&wanted.boards, gpus.len()));
        let links = links(&wanted, gpus.len()).unwrap_or_else(|wrong| {
            problems.extend(wrong);
            Vec::new()
        });
        if !problems.is_empty() {
            return Err(problems);
        }
        let level = |a: &GpuState, b: &GpuState| {
            let board = |board: &Vec<u32>| board.contains(&a.index) && board.contains(&b.index);
            if a.index == b.index || wanted.boards.iter().any(board) {
                return Level::Internal;
            }
            let apart = if a.numa == b.numa { Level::Node } else { Level::System };
            trees.level(a.index, b.index).unwrap_or(apart)
        };
        let levels = gpus.iter().map(|a| gpus.iter().map(|b| level(a, b)).collect()).collect();
        Ok(Self { levels, links, active_with_mig: wanted.active_with_mig })
    }

    /// How two GPUs are connected by PCIe.
    pub fn level(&self, a: &GpuState, b: &GpuState) -> Level {
        let row = self.levels.get(a.index as usize);
        row.and_then(|row| row.get(b.index as usize)).copied().unwrap_or(Level::System)
    }

    /// The `NVLinks` of a GPU, by number.
    pub fn links(&self, gpu: &GpuState) -> Vec<Link> {
        let links = self.links.get(gpu.index as usize).cloned().unwrap_or_default();
        let up = !gpu.mig_mode || self.active_with_mig;
        links.into_iter().map(|link| Link { active: link.active && up, ..link }).collect()
    }

    /// Whether there is an active `NVLink` from one GPU to the other, or from both to switches.
    pub fn linked(&self, a: &GpuState, b: &GpuState) -> bool {
        let active = |gpu| self.links(gpu).into_iter().filter(|link| link.active).map(|link| link.to);
        let switched = |gpu| active(gpu).any(|to| matches!(to, Peer::Switch(_)));
        active(a).any(|to| to == Peer::Gpu(b.index)) || switched(a) && switched(b)
    }
}

/// `NVLinks` that a bridged pair and a GPU on `NVSwitches` have.
fn links_of(model: &Model, preset: Preset) -> u32 {
    match (preset, model.architecture) {
        (Preset::Bridges, _) if model.key.starts_with("a30") => 4,
        (Preset::Bridges, _) | (_, Architecture::Ampere) => 12,
        (_, Architecture::Volta | Architecture::Turing) => 6,
        (_, Architecture::Hopper | Architecture::Blackwell) => MOST_LINKS,
    }
}

fn preset_problems(preset: Option<Preset>, gpus: &[GpuState]) -> Vec<String> {
    let count = gpus.len();
    let problem = match preset {
        Some(Preset::Dgx1) if count != 8 => Some(format!("topology.preset: dgx1 has 8 GPUs, not {count}")),
        Some(Preset::Bridges) if !count.is_multiple_of(2) => {
            Some(format!("topology.preset: bridges join pairs of GPUs; {count} are not pairs"))
        }
        _ => None,
    };
    problem.into_iter().collect()
}

/// The topology with what its preset says written out.
fn completed(topology: &Topology, gpus: &[GpuState]) -> Topology {
    let of_preset = topology.preset.map_or_else(Topology::default, |preset| written_out(preset, gpus));
    let topology = topology.clone();
    Topology {
        pcie: topology.pcie.or(of_preset.pcie),
        nvlinks: topology.nvlinks.or(of_preset.nvlinks),
        nvswitch: topology.nvswitch.or(of_preset.nvswitch),
        ..topology
    }
}

/// The number of `NVLinks` between the GPUs of a DGX-1 with V100, from `nvidia-smi topo -m`.
const DGX1: [(u32, u32, u32); 16] = [
    (0, 1, 1),
    (0, 2, 1),
    (0, 3, 2),
    (0, 4, 2),
    (1, 2, 2),
    (1, 3, 1),
    (1, 5, 2),
    (2, 3, 2),
    (2, 6, 1),
    (3, 7, 1),
    (4, 5, 1),
    (4, 6, 1),
    (4, 7, 2),
    (5, 6, 2),
    (5, 7, 1),
    (6, 7, 2),
];

fn written_out(preset: Preset, gpus: &[GpuState]) -> Topology {
    let mut topology = Topology::default();
    let indices: Vec<u32> = gpus.iter().map(|gpu| gpu.index).collect();
    match preset {
        Preset::Dgx1 => {
            for (a, b, links) in DGX1 {
                topology = topology.nvlinks(a, b, links);
            }
            topology = by_node(topology, gpus, |node| node.chunks(2).map(of_switch).collect());
        }
        Preset::Hgx => {
            let links = gpus.first().map_or(0, |gpu| links_of(gpu.model, preset));
            topology.nvswitch = Some(NvSwitch { gpus: indices, links, switches: 4 });
        }
        Preset::Bridges => {
            for pair in gpus.chunks_exact(2) {
                let [a, b] = [&pair[0], &pair[1]];
                topology = topology
                    .nvlinks(a.index, b.index, links_of(a.model, preset))
                    .host_bridge([a.index, b.index].map(Branch::Gpu));
            }
        }
        Preset::PcieTree => {
            topology = by_node(topology, gpus, |node| {
                let pairs: Vec<Branch> = node.chunks(2).map(of_switch).collect();
                pairs.chunks(2).map(|pairs| Branch::switch(pairs.iter().cloned())).collect()
            });
        }
    }
    topology
}

fn of_switch(gpus: &[u32]) -> Branch {
    Branch::gpus(gpus.iter().copied())
}

/// One host bridge for each NUMA node, with what `below` makes of the node's GPUs.
fn by_node(mut topology: Topology, gpus: &[GpuState], below: impl Fn(&[u32]) -> Vec<Branch>) -> Topology {
    let mut nodes: Vec<Option<u32>> = gpus.iter().map(|gpu| gpu.numa).collect();
    nodes.sort_unstable();
    nodes.dedup();
    for node in nodes {
        let on_it: Vec<u32> = gpus.iter().filter(|gpu| gpu.numa == node).map(|gpu| gpu.index).collect();
        topology = topology.host_bridge(below(&on_it));
    }
    topology
}

/// By GPU, in the order of the description: the way from the host bridge down, as the number of each branch.
struct Trees(Vec<(u32, Vec<usize>)>);

impl Trees {
    fn of(bridges: &[Branch]) -> Self {
        let mut ways = Vec::new();
        for (bridge, branch) in bridges.iter().enumerate() {
            walk(branch, &mut vec![bridge], &mut ways);
        }
        Self(ways)
    }

    fn problems(&self, count: usize) -> Vec<String> {
        let gpus = self.0.iter().map(|(gpu, _)| *gpu);
        let mut problems = Vec::new();
        for (at, gpu) in gpus.clone().enumerate() {
            problems.extend(unknown("topology.pcie", gpu, count));
            if gpus.clone().take(at).any(|other| other == gpu) {
                problems.push(format!("topology.pcie: GPU {gpu} is in two places"));
            }
        }
        problems
    }

    /// What connects two GPUs, if they are below the same host bridge.
    fn level(&self, a: u32, b: u32) -> Option<Level> {
        let way = |gpu| self.0.iter().find(|(other, _)| *other == gpu).map(|(_, way)| way);
        let (a, b) = (way(a)?, way(b)?);
        let shared = a.iter().zip(b).take_while(|(a, b)| a == b).count();
        match shared {
            0 => None,
            1 => Some(Level::HostBridge),
            // The last step of each way is the GPU itself.
            _ if a.len() == shared + 1 && b.len() == shared + 1 => Some(Level::Single),
            _ => Some(Level::Multiple),
        }
    }
}

fn walk(branch: &Branch, way: &mut Vec<usize>, ways: &mut Vec<(u32, Vec<usize>)>) {
    match branch {
        Branch::Gpu(gpu) => ways.push((*gpu, way.clone())),
        Branch::Switch(below) => {
            for (at, branch) in below.iter().enumerate() {
                way.push(at);
                walk(branch, way, ways);
                way.pop();
            }
        }
    }
}

fn unknown(key: &str, gpu: u32, count: usize) -> Option<String> {
    (gpu as usize >= count).then(|| format!("{key}: {gpu} is none of the {count} GPUs"))
}

fn board_problems(boards: &[Vec<u32>], count: usize) -> Vec<String> {
    boards.iter().flatten().filter_map(|gpu| unknown("topology.boards", *gpu, count)).collect()
}

fn links(topology: &Topology, count: usize) -> Result<Vec<Vec<Link>>, Vec<String>> {
    let mut problems = Vec::new();
    let mut links = vec![Vec::new(); count];
    let mut add = |gpu: u32, link: Link| {
        if let Some(links) = links.get_mut(gpu as usize) {
            links.push(link);
        }
    };
    for (at, NvLinks { gpus: [a, b], links, active }) in
        topology.nvlinks.iter().flatten().copied().enumerate()
    {
        let key = format!("topology.nvlinks[{at}]");
        problems.extend([a, b].into_iter().filter_map(|gpu| unknown(&key, gpu, count)));
        if a == b {
            problems.push(format!("{key}: a link joins two GPUs, not {a} and itself"));
        }
        if !(1..=MOST_LINKS).contains(&links) {
            problems.push(format!("{key}.links: {links} is not 1 to {MOST_LINKS}"));
            continue;
        }
        for _ in 0..links {
            add(a, Link { active, to: Peer::Gpu(b) });
            add(b, Link { active, to: Peer::Gpu(a) });
        }
    }
    if let Some(switch) = &topology.nvswitch {
        problems.extend(switch.gpus.iter().filter_map(|gpu| unknown("topology.nvswitch", *gpu, count)));
        for (key, number, most) in
            [("links", switch.links, MOST_LINKS), ("switches", switch.switches, MOST_SWITCHES)]
        {
            if !(1..=most).contains(&number) {
                problems.push(format!("topology.nvswitch.{key}: {number} is not 1 to {most}"));
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        for gpu in &switch.gpus {
            for link in 0..switch.links {
                let address = format!("0000:{:02x}:00.0", FIRST_SWITCH_BUS + link % switch.switches);
                add(*gpu, Link { active: true, to: Peer::Switch(address) });
            }
        }
    }
    for (gpu, links) in links.iter().enumerate().filter(|(_, links)| links.len() > MOST_LINKS as usize) {
        problems.push(format!("topology: GPU {gpu} has {} NVLinks; {MOST_LINKS} are the most", links.len()));
    }
    if problems.is_empty() { Ok(links) } else { Err(problems) }
}
