//! The values that were given, and where; and their meaning.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::ArgMatches;
use tracing::Level;
use tracing_subscriber::filter::Targets;

use super::kind::{self, parts};
use super::settings::{self, Setting};

/// Longer values are cut short in messages.
const SHOWN: usize = 60;

/// The values that were given, by their setting's id.
#[derive(Debug, Clone, Default)]
pub struct Values {
    given: BTreeMap<&'static str, Given>,
}

/// A value as it was given; lists with commas between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) text: String,
    pub(super) origin: Origin,
}

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// On the command line.
    Flag(&'static str),
    /// In the environment.
    Variable(&'static str),
    /// In the file.
    File { file: String, line: usize, column: usize, key: String },
    /// Nowhere: it follows from another setting.
    From(&'static str),
}

impl fmt::Display for Origin {
    /// As the subject of a message about a mistake.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "--{flag}"),
            Self::Variable(variable) => write!(f, "{variable} in the environment"),
            Self::File { file, line, column, key } => write!(f, "{file}:{line}:{column}: {key}"),
            Self::From(flag) => write!(f, "(from --{flag})"),
        }
    }
}

impl Origin {
    /// As an answer to "where does this come from?".
    pub(super) fn name(&self) -> String {
        match self {
            Self::Flag(flag) => format!("flag --{flag}"),
            Self::Variable(variable) => format!("environment {variable}"),
            Self::File { file, line, .. } => format!("file {file}:{line}"),
            Self::From(flag) => format!("same as --{flag}"),
        }
    }
}

/// `text` between quotes, escaped, and not longer than a line takes.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

impl Values {
    /// What `matches` holds, and for other flags what `environment` has. An empty variable counts as none, as in
    /// NVIDIA's plugin: charts set variables whose value is not chosen.
    pub fn new(matches: &ArgMatches, environment: impl Fn(&str) -> Option<String>) -> Self {
        let mut values = Self::default();
        for setting in settings::all() {
            let flag = matches.try_get_many::<String>(setting.flag).ok().flatten();
            let flag = flag.map(|texts| texts.cloned().collect::<Vec<_>>().join(","));
            let variables = setting.variables.iter();
            let counts = |text: &String| setting.kind.takes_empty() || !text.is_empty();
            let variable = || {
                let mut set = variables.filter_map(|name| Some((*name, environment(name)?)));
                set.find(|(_, text)| counts(text))
            };
            if let Some(text) = flag {
                values.set(setting, Given { text, origin: Origin::Flag(setting.flag) });
            } else if let Some((name, text)) = variable() {
                values.set(setting, Given { text, origin: Origin::Variable(name) });
            }
        }
        values
    }

    /// The same with one flag set by hand, for tests.
    #[must_use]
    pub fn with(mut self, flag: &str, text: &str) -> Self {
        if let Some(setting) = settings::find(flag) {
            self.set(setting, Given { text: text.to_owned(), origin: Origin::Flag(setting.flag) });
        }
        self
    }

    /// Notes a value; an empty one may count as none.
    pub(super) fn set(&mut self, setting: &'static Setting, given: Given) {
        if !(given.text.is_empty() && setting.kind.may_be_empty()) {
            self.given.insert(setting.id(), given);
        }
    }

    /// These, and `others` for what these do not say.
    pub(super) fn over(&self, others: &Self) -> Self {
        let mut given = others.given.clone();
        given.extend(self.given.clone());
        Self { given }
    }

    /// A sentence for each value that cannot be used, of the settings that `which` chooses.
    pub(super) fn mistakes(&self, which: impl Fn(&Setting) -> bool) -> Vec<String> {
        let chosen = settings::all().filter(|setting| which(setting));
        let given = chosen.filter_map(|setting| Some((setting, self.given.get(setting.id())?)));
        given
            .filter_map(|(setting, given)| {
                let why = setting.kind.check(&given.text).err()?;
                Some(format!("{}: {} cannot be used: {why}", given.origin, shown(&given.text)))
            })
            .collect()
    }

    /// What was given.
    pub(super) fn given(&self, id: &str) -> Option<&Given> {
        self.given.get(id)
    }

    /// What was given, or else the default.
    pub(super) fn text(&self, id: &str) -> &str {
        match self.given.get(id) {
            Some(given) => &given.text,
            None => settings::find(id).map_or("", |setting| setting.default),
        }
    }

    /// Whether it is so, if that was said.
    pub(super) fn boolean(&self, id: &str) -> Option<bool> {
        kind::boolean(self.text(id))
    }

    /// Whether it was said to be so.
    pub(super) fn is(&self, id: &str) -> bool {
        self.boolean(id) == Some(true)
    }

    /// A time.
    pub(super) fn duration(&self, id: &str) -> Duration {
        kind::duration(self.text(id)).unwrap_or_default()
    }

    /// A path with a default.
    pub(super) fn path(&self, id: &str) -> PathBuf {
        self.text(id).into()
    }

    /// A path, if given.
    pub(super) fn optional_path(&self, id: &str) -> Option<PathBuf> {
        Some(self.text(id)).filter(|text| !text.is_empty()).map(PathBuf::from)
    }

    /// The parts of a list, each read by `read`.
    pub(super) fn list<T>(&self, id: &str, read: impl Fn(&str) -> Option<T>) -> impl Iterator<Item = T> {
        parts(self.text(id)).filter_map(read)
    }

    /// A level, or levels per module. Only this program's own modules are meant by a level alone.
    pub(super) fn log_level(&self, id: &str) -> Targets {
        let quiet = Targets::new().with_default(Level::WARN);
        let own = env!("CARGO_CRATE_NAME");
        let text = self.text(id);
        match (text.parse::<Level>(), text.parse::<Targets>()) {
            (Ok(level), _) => quiet.with_target(own, level),
            (_, Ok(targets)) => targets,
            _ => quiet.with_target(own, Level::INFO),
        }
    }
}
