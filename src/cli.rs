//! The command line.

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{Flags, LogFlags, RootFlags, Values};
use crate::devices::Format;
use crate::explain::command::ExplainArgs;

/// Kubernetes device plugin for NVIDIA MIG: finds the slices, keeps the kubelet's list current, hands them to
/// containers. Without a command it serves until it is told to stop (SIGTERM, SIGINT); SIGHUP makes it look for
/// changes at once.
#[derive(Debug, Parser)]
#[command(name = "mig-device-plugin", version, max_term_width = 110, args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    roots: RootFlags,
    #[command(flatten)]
    log: LogFlags,
}

/// What to do instead of serving.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Print the GPUs and MIG devices that the driver has, and exit
    Devices {
        /// How to print them
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Show what each strategy would offer of this node, or of one that was saved, and what is odd about it; or
    /// say whether a pod could run there and what it would get
    Explain(ExplainArgs),
}

/// Reads the command line and the environment: the command, if there is one, and the values of all flags.
pub fn parse(
    arguments: impl IntoIterator<Item = std::ffi::OsString>,
) -> Result<(Option<Command>, Values), clap::Error> {
    let mut command = Cli::command();
    let matches = command.try_get_matches_from_mut(arguments)?;
    let cli = Cli::from_arg_matches(&matches)?;
    Ok((cli.command, Values::new(&command, &matches)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
