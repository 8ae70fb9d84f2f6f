//! What the program does: one of its commands, or the daemon.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;

use tracing::{error, warn};

use crate::admin::client;
use crate::cli::{self, Command};
use crate::config::command::{self, CommandError, ConfigCommand};
use crate::config::{self, Config, ConfigError, ConfigSource, Values};
use crate::devices::state::{DriverState, NodeState, PluginState};
use crate::devices::{self, Format};
use crate::explain::command::{ExplainArgs, ExplainError, Misfit};
use crate::nvml::{self, DriverError, Paths};
use crate::serve::{self, BEGUN_ANEW, Served};
use crate::supervisor::SupervisorError;
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
        None => match serve::serve(&ConfigSource::new(values, our_uid()))? {
            Served::Stopped => Ok(()),
            Served::StaleLibrary(library) => Err(begin_anew(&library)),
        },
    }
}

/// Replaces this process image by itself, under the same process ID: the container is not restarted, and the loader
/// forgets the library that could not be unloaded. Returns only if that fails.
fn begin_anew(library: &Path) -> AppError {
    warn!(library = %library.display(), "the driver's library was replaced by another one: loading this program anew");
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    // The link leads to the file that runs, also where it has been replaced since.
    let source =
        std::process::Command::new("/proc/self/exe").arg0(name).args(arguments).env(BEGUN_ANEW, "1").exec();
    AppError::System { what: "load this program anew", source }
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
    let node = match ask_plugin(values, &paths) {
        Ok(node) => node,
        Err(why) => {
            if let Some(why) = why {
                // Nothing is left to be done about a closed terminal.
                drop(writeln!(
                    io::stderr(),
                    "{why}, so only what the driver says now is shown, and no health"
                ));
            }
            nvml::discover(&paths)?.into()
        }
    };
    print(&devices::render(&node, format)?)
}

/// What the plugin that runs on this node knows, so that the driver is not asked behind its back; or why the driver has to
/// be, where that is worth a word.
fn ask_plugin(values: &Values, paths: &Paths) -> Result<NodeState, Option<String>> {
    let Some(address) = config::http_address(values) else { return Err(None) };
    let node = client::ask(address).map_err(|error| Some(error.to_string()))?;
    match &node.plugin {
        Some(plugin) if plugin.driver_root != paths.driver_root => Err(Some(format!(
            "the plugin that runs has another driver root, {}",
            plugin.driver_root.display()
        ))),
        Some(PluginState { driver: DriverState::Present, .. }) => Ok(node),
        // On hold, nobody else is to ask the driver.
        Some(PluginState { on_hold: true, .. }) if !node.inventory.gpus.is_empty() => Ok(node),
        _ => Err(Some("the plugin that runs has found no driver".to_owned())),
    }
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
