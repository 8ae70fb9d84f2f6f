//! Arguments, logging, configuration, run, exit code; nothing else.

use std::process::ExitCode;

use mig_device_plugin::app::{self, AppError};

/// `EX_USAGE` of sysexits.h: the command line or the configuration cannot be understood.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    match app::main(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(AppError::CommandLine(error)) => {
            let help = !error.use_stderr();
            // Nothing is left to be done about a closed terminal.
            drop(error.print());
            if help { ExitCode::SUCCESS } else { ExitCode::from(USAGE) }
        }
        Err(error) => {
            app::complain(&error);
            if app::is_usage(&error) { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
        }
    }
}
