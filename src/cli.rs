//! The command line.

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::command::ConfigCommand;
use crate::config::{self, Values};
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
    /// Check config files, and show what is in force and where it comes from
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Show what each strategy would offer of this node, or of one that was saved, and what is odd about it; or
    /// say whether a pod could run there and what it would get
    Explain(ExplainArgs),
}

/// Reads the command line and the environment: the command, if there is one, and the values of all flags.
pub fn parse(
    arguments: impl IntoIterator<Item = std::ffi::OsString>,
) -> Result<(Option<Command>, Values), clap::Error> {
    let matches = config::add_to(Cli::command()).try_get_matches_from(arguments)?;
    let cli = Cli::from_arg_matches(&matches)?;
    // A variable that is no UTF-8 is in none of the forms that a value has, and says so with its replacement characters.
    let variable = |name: &str| std::env::var_os(name).map(|text| text.to_string_lossy().into_owned());
    Ok((cli.command, Values::new(&matches, variable)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        config::add_to(Cli::command()).debug_assert();
    }
}
