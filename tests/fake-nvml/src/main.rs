//! `fake-nvml`: makes and changes nodes by hand, and from scripts.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use fake_nvml::{Description, Event, Incident, Node, NodeError, NodeState, catalogue};

/// Play a GPU node with MIG: a libnvidia-ml.so.1 and the files around it.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a node in a folder, or give the node in it another description.
    Create {
        /// The node's folder.
        dir: PathBuf,
        /// Its description.
        node: PathBuf,
    },
    /// Say what a description means, or all that is wrong with it.
    Check {
        /// The description.
        node: PathBuf,
    },
    /// List a node's GPUs and MIG devices.
    List {
        /// The node's folder.
        dir: PathBuf,
    },
    /// Send an event to every client that waits for it.
    Event(EventArgs),
    /// Have an error of a whole GPU happen: events, and what becomes of the GPU.
    Fail(FailArgs),
    /// Reset a GPU, or all of them, as `nvidia-smi -r` does.
    Reset {
        /// The node's folder.
        dir: PathBuf,
        /// Index of the GPU; all of them where it is left out.
        #[arg(long)]
        gpu: Option<u32>,
    },
    /// Reboot the node, once no client is there any more.
    Reboot {
        /// The node's folder.
        dir: PathBuf,
    },
    /// Make the device nodes of all instances, as nvidia-modprobe does when it is told to.
    Nodes {
        /// The node's folder.
        dir: PathBuf,
    },
    /// Load another version of the driver, with a library of its own.
    Upgrade {
        /// The node's folder.
        dir: PathBuf,
        /// The driver's version, e.g. 590.44.01.
        version: String,
    },
    /// Show how often each NVML function was called.
    Counters {
        /// The node's folder.
        dir: PathBuf,
        /// Set them to zero afterwards.
        #[arg(long)]
        reset: bool,
    },
    /// List the GPU models and their profiles.
    Models,
}

#[derive(Debug, Args)]
struct EventArgs {
    /// The node's folder.
    dir: PathBuf,
    /// Index of the GPU.
    #[arg(long, default_value_t = 0)]
    gpu: u32,
    /// ID of the GPU instance, for an event that belongs to one.
    #[arg(long)]
    gi: Option<u32>,
    /// ID of the compute instance, for an event that belongs to one.
    #[arg(long, requires = "gi")]
    ci: Option<u32>,
    #[command(flatten)]
    kind: Kind,
    /// What an event of another type carries.
    #[arg(long, requires = "type", default_value_t = 0, value_parser = number)]
    data: u64,
}

#[derive(Debug, Args)]
struct FailArgs {
    /// The node's folder.
    dir: PathBuf,
    /// Index of the GPU.
    #[arg(long, default_value_t = 0)]
    gpu: u32,
    /// What happens to it.
    kind: Failure,
    /// Channels that are open on the GPU: each is told of once.
    #[arg(long, default_value_t = 1)]
    channels: u32,
    /// The events name no instance, instead of GPU instance 0 and compute instance 0.
    #[arg(long)]
    without_ids: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Failure {
    /// It falls off the bus: Xid 79.
    Lost,
    /// Its firmware crashes: Xid 120, a reset is owed.
    GspCrash,
    /// Its firmware meets a fatal error, on Blackwell: Xid 94, a reset is owed.
    GspFatal,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Kind {
    /// A critical error with this Xid.
    #[arg(long)]
    xid: Option<u64>,
    /// A change of MIG mode or layout.
    #[arg(long)]
    mig_config_change: bool,
    /// An event of this nvmlEventType bit, e.g. 0x2000.
    #[arg(long = "type", id = "type", value_parser = number)]
    other: Option<u64>,
}

/// A number, decimal or with `0x`.
fn number(text: &str) -> Result<u64, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

#[expect(clippy::print_stderr, reason = "a command's errors go there")]
fn main() -> ExitCode {
    match run(Cli::parse().command, &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fake-nvml: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command, out: &mut impl Write) -> Result<(), Box<dyn std::error::Error>> {
    match command {
        Command::Create { dir, node } => {
            let node = Node::create(dir, &Description::read(node)?)?;
            writeln!(out, "{}", node.library().display())?;
        }
        Command::Check { node } => list(&Description::read(node)?.resolve()?, out)?,
        Command::List { dir } => list(&Node::open(dir)?.description()?.resolve()?, out)?,
        Command::Event(event) => send(&event)?,
        Command::Fail(args) => fail(&args)?,
        Command::Reset { dir, gpu } => Node::open(dir)?.reset(gpu)?,
        Command::Reboot { dir } => Node::open(dir)?.reboot()?,
        Command::Nodes { dir } => Node::open(dir)?.make_nodes()?,
        Command::Upgrade { dir, version } => Node::open(dir)?.upgrade_driver(&version)?,
        Command::Counters { dir, reset } => {
            let node = Node::open(dir)?;
            for (name, count) in node.counters()? {
                writeln!(out, "{count:8} {name}")?;
            }
            writeln!(out, "{:8} clients that have NVML open", node.clients()?)?;
            if reset {
                node.reset_counters()?;
            }
        }
        Command::Models => models(out)?,
    }
    Ok(())
}

fn send(args: &EventArgs) -> Result<(), NodeError> {
    let event = match args.kind {
        Kind { xid: Some(xid), .. } => Event::xid(xid),
        Kind { other: Some(kind), .. } => Event::other(kind, args.data),
        Kind { .. } => Event::mig_config_change(),
    };
    let event = event.on_gpu(args.gpu);
    let event = match (args.gi, args.ci) {
        (Some(gi), Some(ci)) => event.on_instance(gi, ci),
        (Some(gi), None) => event.on_gpu_instance(gi),
        (None, _) => event,
    };
    Node::open(&args.dir)?.send(&event)
}

fn fail(args: &FailArgs) -> Result<(), NodeError> {
    let incident = match args.kind {
        Failure::Lost => Incident::lost(),
        Failure::GspCrash => Incident::gsp_crash(),
        Failure::GspFatal => Incident::gsp_fatal(),
    };
    let incident = incident.on_gpu(args.gpu).channels(args.channels);
    Node::open(&args.dir)?.strike(&if args.without_ids { incident.without_ids() } else { incident })
}

/// As `nvidia-smi -L` does it, with what the capability files need.
fn list(node: &NodeState, out: &mut impl Write) -> io::Result<()> {
    for gpu in &node.gpus {
        let mode = if gpu.mig_mode { ", MIG on" } else { "" };
        let numa = gpu.numa.map_or_else(|| "-".to_owned(), |numa| numa.to_string());
        writeln!(
            out,
            "GPU {}: {} (UUID: {}; PCI {}, minor {}, NUMA {numa}{mode})",
            gpu.index, gpu.name, gpu.uuid, gpu.pci, gpu.minor
        )?;
        for mig in &gpu.mig {
            let (start, end) = (mig.placement.start, mig.placement.start + mig.placement.size);
            let hidden = if mig.hidden { ", hidden" } else { "" };
            writeln!(
                out,
                "  MIG {:<14} Device {}: (UUID: {}; GI {}, CI {}, memory slices {start}..{end}, caps {} {}){hidden}",
                mig.profile, mig.index, mig.uuid, mig.gi, mig.ci, mig.gi_minor, mig.ci_minor
            )?;
        }
        for instance in gpu.instances.iter().filter(|instance| instance.compute.is_empty()) {
            writeln!(out, "  GI {} {}: no compute instance", instance.gi, instance.profile.name)?;
        }
    }
    Ok(())
}

fn models(out: &mut impl Write) -> io::Result<()> {
    for model in catalogue::models() {
        writeln!(out, "{:<28} {} ({} MiB)", model.key, model.products.join(", "), model.memory_mib)?;
        for profile in &model.profiles {
            let doubt = match (profile.uncertain.is_empty(), profile.estimated.is_empty()) {
                (true, _) => String::new(),
                (false, true) => format!("  uncertain: {}", profile.uncertain.join(", ")),
                (false, false) => format!(
                    "  uncertain: {}; estimated: {}",
                    profile.uncertain.join(", "),
                    profile.estimated.join(", ")
                ),
            };
            writeln!(
                out,
                "  {:<16} ID {:<3} × {}  {:>6} MiB {:>3} SM  size {} at {:?}{doubt}",
                profile.name,
                profile.id,
                profile.max,
                profile.memory_mib,
                profile.sm,
                profile.size,
                profile.starts
            )?;
        }
    }
    Ok(())
}
