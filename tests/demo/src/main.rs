//! Shows the plugin's main job on a machine without a GPU: a fake node with eight GPUs, the real plugin, and a fake
//! kubelet that lists its devices and runs a pod on one.

mod plugin;
mod screen;
mod story;
mod words;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use fake_nvml::Description;
use screen::Screen;
use story::Story;

/// What shells show for a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Shows mig-device-plugin's main job without a GPU, root or a cluster.
#[derive(Debug, Parser)]
#[command(name = "demo", max_term_width = 100)]
struct Arguments {
    /// Stay at the end, with node, kubelet and plugin alive to be played with, until Ctrl-C
    #[arg(long)]
    keep: bool,

    /// Play the node that this file describes (the format is fake-nvml's) instead of eight H100
    #[arg(long, value_name = "FILE.yaml")]
    node: Option<PathBuf>,
}

/// Why the demo ended early.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("cannot {action}")]
    Io { action: &'static str, source: std::io::Error },
    #[error(transparent)]
    Build(#[from] plugin::BuildError),
    #[error(transparent)]
    Node(#[from] fake_nvml::NodeError),
    #[error(transparent)]
    Kubelet(#[from] fake_kubelet::KubeletError),
    #[error("the pod was not admitted")]
    Pod(#[from] fake_kubelet::AdmissionError),
    #[error("the plugin ended by itself ({status}); its last words:\n{words}")]
    PluginEnded { status: std::process::ExitStatus, words: String },
    #[error("a real kubelet would have crashed: {0}")]
    Crash(String),
    #[error("interrupted")]
    Interrupted,
}

impl DemoError {
    fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(DemoError::Interrupted) => ExitCode::from(INTERRUPTED),
        // `demo | head` is no failure.
        Err(DemoError::Io { source, .. }) if source.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn run(arguments: &Arguments) -> Result<(), DemoError> {
    let screen = Screen::new();
    screen.title("mig-device-plugin, on a machine without a GPU")?;
    let description = arguments.node.as_ref().map(Description::read).transpose()?;
    // Before there is anything to clean up: here Ctrl-C just ends the demo, and cargo with it.
    let executable = plugin::build()?;
    let story = Story { screen, description, executable, keep: arguments.keep };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(DemoError::io("start the runtime"))?.block_on(until_interrupted(story))
}

/// Ctrl-C ends the story by dropping it: all that it made cleans up after itself.
async fn until_interrupted(story: Story) -> Result<(), DemoError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DemoError::io("listen for signals"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(DemoError::io("listen for signals"))?;
    tokio::select! {
        ended = story.tell() => ended,
        _ = interrupt.recv() => Err(DemoError::Interrupted),
        _ = terminate.recv() => Err(DemoError::Interrupted),
    }
}

#[expect(clippy::print_stderr, reason = "the one place where the demo complains")]
fn fail(error: &DemoError) -> ExitCode {
    let mut text = format!("demo: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    eprintln!("{text}");
    ExitCode::FAILURE
}
