//! Composition: makes the channels, starts the parts, and ends them on a signal.

use std::ffi::OsString;
use std::io::{self, Write};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::cli::{self, Command};
use crate::config::command::{self, CommandError, ConfigCommand};
use crate::config::{self, Config, ConfigError, Values};
use crate::devices::{self, Format};
use crate::explain::command::{ExplainArgs, ExplainError, Misfit};
use crate::kubelet::{self, Context};
use crate::nvml::{self, DriverError, Session};
use crate::supervisor::{self, Inputs, SupervisorError};
use crate::telemetry;

/// Why the program ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The command line cannot be read, or asks for help.
    #[error(transparent)]
    CommandLine(#[from] clap::Error),
    /// A value cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no driver to ask.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// Serving ended with an error.
    #[error(transparent)]
    Serve(#[from] SupervisorError),
    /// The list of devices cannot be printed.
    #[error("cannot print the devices: {0}")]
    Render(#[from] devices::RenderError),
    /// The configuration cannot be printed.
    #[error(transparent)]
    ShowConfig(CommandError),
    /// Nothing can be explained.
    #[error(transparent)]
    Explain(#[from] ExplainError),
    /// The node cannot run the pods that were asked about.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// The operating system refused something that every process needs.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

/// Does what the command line says.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> Result<(), AppError> {
    let (command, values) = cli::parse(arguments)?;
    let log = config::log(&values);
    if telemetry::init(log).is_err() {
        // Somebody logs in this process already, as in a test: then that is where our lines go too.
    }
    match command {
        Some(Command::Devices { output }) => print_devices(&values, output),
        Some(Command::Config(command)) => configure(&command, &values),
        Some(Command::Explain(arguments)) => explain(&values, &arguments),
        None => serve(Config::new(&values, our_uid())?),
    }
}

/// Whether something is wrong with what the program was given: it ends with `EX_USAGE` then.
pub fn is_usage(error: &AppError) -> bool {
    match error {
        AppError::Config(_) => true,
        AppError::Explain(error) => error.is_usage(),
        _ => false,
    }
}

/// Says what went wrong: the daemon in its log, where machines look, and a command in plain words.
pub fn complain(error: &AppError) {
    match error {
        AppError::Driver(_)
        | AppError::Render(_)
        | AppError::ShowConfig(_)
        | AppError::Explain(_)
        | AppError::Misfit(_) => {
            // Nothing is left to be done about a closed terminal.
            drop(writeln!(io::stderr(), "mig-device-plugin: {error}"));
        }
        _ => error.to_string().lines().for_each(|line| error!("{line}")),
    }
}

fn our_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn configure(command: &ConfigCommand, values: &Values) -> Result<(), AppError> {
    let answer = command::answer(command, values, our_uid()).map_err(|error| match error {
        CommandError::Config(error) => AppError::Config(error),
        error => AppError::ShowConfig(error),
    })?;
    print(&answer.text)?;
    // What is wrong has been printed.
    if answer.valid { Ok(()) } else { Err(AppError::Config(ConfigError { mistakes: Vec::new() })) }
}

fn print_devices(values: &Values, format: Format) -> Result<(), AppError> {
    let paths = config::paths(values)?;
    print(&devices::render(&nvml::discover(&paths)?, format)?)
}

fn explain(values: &Values, arguments: &ExplainArgs) -> Result<(), AppError> {
    let config = Config::new(values, our_uid())?;
    let inventory = match arguments.saved_inventory()? {
        Some(inventory) => inventory,
        None => nvml::discover(&config.paths)?,
    };
    let answer = arguments.answer(&inventory, &config.policy.offer, &config.rules)?;
    print(&answer.text)?;
    answer.misfit.map_or(Ok(()), |misfit| Err(misfit.into()))
}

fn print(text: &str) -> Result<(), AppError> {
    match io::stdout().write_all(text.as_bytes()) {
        // `devices | head` is no failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|source| AppError::System { what: "write to standard output", source }),
    }
}

fn serve(config: Config) -> Result<(), AppError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| AppError::System { what: "start the runtime", source })?;
    let result = runtime.block_on(run(config));
    // Not waited for: a name look-up or the driver may hang.
    runtime.shutdown_timeout(Duration::from_millis(50));
    result
}

async fn run(config: Config) -> Result<(), AppError> {
    let stopping = CancellationToken::new();
    let signals = Signals::new().map_err(|source| AppError::System { what: "listen for signals", source })?;
    let (report_sender, reports) = mpsc::channel(1);
    let (endpoint_sender, endpoints) = mpsc::channel(64);
    info!(version = env!("CARGO_PKG_VERSION"), kubelet_socket = %config.kubelet_socket.display(), "starting");
    let session = Session::spawn(config.paths.clone(), config.rescan_interval, report_sender)
        .map_err(|source| AppError::System { what: "start the driver's thread", source })?;
    let folder = kubelet::watch_folder(config.kubelet_socket.clone());
    let context = Context {
        kubelet_socket: config.kubelet_socket,
        folder,
        socket_names: config.socket_names,
        allowed_uids: config.allowed_uids,
        rules: config.rules,
        paths: config.paths,
        events: endpoint_sender,
    };
    kubelet::sweep(context.plugin_folder()).await;
    let (_reload_sender, reloads) = mpsc::channel(1);
    let inputs = Inputs { reports, endpoints, reloads };
    let options = crate::cdi::CdiOptions {
        spec_dir: "/var/run/cdi".into(),
        host_driver_root: "/".into(),
        host_dev_root: "/".into(),
        hook: None,
        disabled_hooks: std::collections::BTreeSet::new(),
        without_sockets: false,
        imex_channels: std::collections::BTreeSet::new(),
    };
    let cdi = crate::cdi::Cdi::new(options, context.paths.clone());
    let served = supervisor::run(config.policy, context, cdi, inputs, || session.rescan(), stopping.clone());
    tokio::pin!(served);
    let result = tokio::select! {
        result = &mut served => result,
        () = signals.handle(|| session.rescan()) => {
            stopping.cancel();
            served.await
        }
    };
    info!("stopped");
    Ok(result?)
}

/// The signals that mean something to us.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Returns when the program is to stop; calls `rescan` on each SIGHUP.
    async fn handle(mut self, rescan: impl Fn()) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => { info!("SIGTERM: stopping"); return }
                _ = self.interrupt.recv() => { info!("SIGINT: stopping"); return }
                _ = self.hang_up.recv() => { info!("SIGHUP: looking at the driver again"); rescan() }
            }
        }
    }
}
