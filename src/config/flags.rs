//! The flags, as clap sees them: made from the [table](super::settings). They are text here, and the environment
//! is not clap's: [`Values`](super::Values) reads both, so that all mistakes can be told at once.

use clap::{Arg, ArgAction, Command};

use super::kind::Kind;
use super::settings::{GROUPS, Setting};

/// Gives `command` all flags of the table.
#[must_use]
pub fn add_to(command: Command) -> Command {
    let settings = GROUPS.iter().flat_map(|group| group.settings.iter().map(move |setting| (group, setting)));
    let flags = settings.filter(|(_, setting)| !setting.flag.is_empty());
    command.args(flags.map(|(group, setting)| argument(setting).help_heading(group.heading)))
}

fn argument(setting: &'static Setting) -> Arg {
    let argument = Arg::new(setting.flag)
        .long(setting.flag)
        .aliases(setting.aliases.iter().copied())
        .help(help(setting))
        .value_name(value_name(&setting.kind))
        .global(setting.global);
    match setting.kind {
        Kind::Boolean => argument.num_args(0..=1).require_equals(true).default_missing_value("true"),
        kind if kind.is_list() => argument.action(ArgAction::Append),
        _ => argument,
    }
}

fn help(setting: &Setting) -> String {
    let mut notes = Vec::new();
    if !setting.default.is_empty() {
        notes.push(format!("default: {}", setting.default));
    }
    notes.push(format!("env: {}", setting.variables.join(", ")));
    let mut help = setting.help.to_owned();
    if let Some(first) = help.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    format!("{help} [{}]", notes.join("; "))
}

fn value_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Choice(_) => "WORD",
        Kind::Choices(_) => "WORDS",
        Kind::Boolean => "BOOL",
        Kind::Duration => "DURATION",
        Kind::Path | Kind::OptionalPath | Kind::File => "PATH",
        Kind::AnnotationPrefix => "PREFIX",
        Kind::Users => "UIDS",
        Kind::Channels => "IDS",
        Kind::Selectors | Kind::Devices => "DEVICES",
        Kind::Address => "ADDRESS",
        Kind::Checks => "CHECKS",
        Kind::Level => "LEVEL",
        Kind::Name => "NAME",
        Kind::Text | Kind::Pattern | Kind::ProfilePattern | Kind::Replicas | Kind::Refused(_) => "TEXT",
    }
}
