//! The command `config`: checks files, shows what is in force, and prints the reference page.

use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};

use super::file::File;
use super::values::Values;
use super::{ConfigError, Merged, derived, merge, reference, show};

/// What to do with the configuration.
#[derive(Debug, Clone, Subcommand)]
pub enum ConfigCommand {
    /// Say whether files are valid: every mistake with its line. Exit code 0: all are; 64: not all
    Check {
        /// Config files, YAML or JSON
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Print the merged configuration, and where each value comes from. Flags that serving takes stand before the
    /// command: mig-device-plugin --mig-strategy=mixed config show
    Show {
        /// How to print it
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Print the reference page of everything that can be set, as Markdown
    Reference,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// One line per setting, with its origin.
    #[default]
    Table,
    /// As a config file that says the same.
    Yaml,
    /// The same as JSON.
    Json,
}

/// Why the command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The configuration has mistakes.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It could not be written as JSON.
    #[error("the configuration cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    /// It could not be written as YAML.
    #[error("the configuration cannot be written as YAML")]
    Yaml(#[from] serde_saphyr::SerializeError),
}

/// What the command prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// For standard output.
    pub text: String,
    /// Whether everything that was looked at is as it should be.
    pub valid: bool,
}

/// Carries out `command`. `values` are the flags and the environment.
pub fn answer(command: &ConfigCommand, values: &Values, our_uid: u32) -> Result<Answer, CommandError> {
    let text = match command {
        ConfigCommand::Check { files } => return Ok(check_all(files, values.is("lenient-config"), our_uid)),
        ConfigCommand::Reference => reference::page(),
        ConfigCommand::Show { output } => {
            // Checked as for serving, and shown only if it could be served with.
            merge(values).config(our_uid)?;
            let merged = merge(values);
            match output {
                Format::Table => show::table(&merged),
                Format::Yaml => serde_saphyr::to_string(&show::as_file(&merged))?,
                Format::Json => serde_json::to_string_pretty(&show::as_file(&merged))? + "\n",
            }
        }
    };
    Ok(Answer { text, valid: true })
}

fn check_all(files: &[PathBuf], lenient: bool, our_uid: u32) -> Answer {
    let mut answer = Answer { text: String::new(), valid: true };
    let mut lines = Vec::new();
    for file in files {
        let (warnings, mistakes) = check(file, lenient, our_uid);
        answer.valid &= mistakes.is_empty();
        let ok = mistakes.is_empty().then(|| format!("{}: ok", file.display()));
        lines.extend(warnings.into_iter().map(|warning| format!("{warning} (warning)")));
        lines.extend(mistakes.into_iter().chain(ok));
    }
    answer.text = lines.join("\n") + "\n";
    answer
}

/// Warnings and mistakes of one file, as if nothing else were set.
fn check(path: &Path, lenient: bool, our_uid: u32) -> (Vec<String>, Vec<String>) {
    let file = File::read(path, lenient);
    let (warnings, mistakes) = (file.warnings.clone(), file.mistakes.clone());
    let values = derived(file.values.clone(), Path::is_dir);
    match (Merged { values, file, mistakes }).config(our_uid) {
        Ok(_) => (warnings, Vec::new()),
        Err(error) => (warnings, error.mistakes),
    }
}
