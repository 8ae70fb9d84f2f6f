//! Reads values out of flags and environment variables, and collects what is wrong with them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::ArgMatches;
use clap::parser::ValueSource;
use tracing::Level;
use tracing_subscriber::filter::Targets;

use super::ConfigError;

/// The values that were given, by their flag's name, and the mistakes found in them so far.
#[derive(Debug, Clone, Default)]
pub struct Values {
    given: HashMap<String, Given>,
    mistakes: Vec<String>,
}

/// A value as it was given.
#[derive(Debug, Clone)]
struct Given {
    text: String,
    /// How the person wrote it: `--mig-strategy`, or `MIG_STRATEGY in the environment`.
    origin: String,
}

impl Values {
    /// What `matches` of `command` holds. An empty variable counts as none, as in NVIDIA's plugin: charts set
    /// variables whose value is not chosen.
    pub fn new(command: &clap::Command, matches: &ArgMatches) -> Self {
        let mut given = HashMap::new();
        for argument in command.get_arguments() {
            let id = argument.get_id().as_str();
            let Some(flag) = argument.get_long() else { continue };
            let Ok(Some(text)) = matches.try_get_one::<String>(id) else { continue };
            let variable = argument.get_env().map(|name| name.to_string_lossy().into_owned());
            let origin = match (matches.value_source(id), variable) {
                (Some(ValueSource::EnvVariable), Some(_)) if text.is_empty() => continue,
                (Some(ValueSource::EnvVariable), Some(variable)) => format!("{variable} in the environment"),
                _ => format!("--{flag}"),
            };
            given.insert(flag.to_owned(), Given { text: text.clone(), origin });
        }
        Self { given, mistakes: Vec::new() }
    }

    /// The same with one value set by hand, for tests.
    #[must_use]
    pub fn with(mut self, flag: &str, text: &str) -> Self {
        self.given.insert(flag.to_owned(), Given { text: text.to_owned(), origin: format!("--{flag}") });
        self
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&mut self, flag: &str, choices: &[(&str, T)], default: T) -> T {
        let Some(given) = self.given.get(flag) else { return default };
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == given.text) {
            return *value;
        }
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        self.mistake(flag, &format!("it is one of {}", words.join(", "))).unwrap_or(default)
    }

    /// What Go's `strconv.ParseBool` takes, since NVIDIA's plugin is configured with that.
    pub fn boolean(&mut self, flag: &str) -> Option<bool> {
        match self.given.get(flag)?.text.as_str() {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
            _ => self.mistake(flag, "it is true or false"),
        }
    }

    /// A time with its unit, or 0.
    pub fn duration(&mut self, flag: &str, default: Duration) -> Duration {
        let Some(given) = self.given.get(flag) else { return default };
        if given.text == "0" {
            return Duration::ZERO;
        }
        match humantime::parse_duration(&given.text) {
            Ok(duration) => duration,
            Err(_) => self
                .mistake(flag, "it is a time with a unit, such as 500ms, 10s, 1m30s, or 0")
                .unwrap_or(default),
        }
    }

    /// An absolute path with a default.
    pub fn path(&mut self, flag: &str, default: &str) -> PathBuf {
        self.optional_path(flag).unwrap_or_else(|| default.into())
    }

    /// An absolute path, if given.
    pub fn optional_path(&mut self, flag: &str) -> Option<PathBuf> {
        let path = PathBuf::from(&self.given.get(flag)?.text);
        if path.is_absolute() { Some(path) } else { self.mistake(flag, "it is an absolute path") }
    }

    /// Numbers with commas between.
    pub fn numbers(&mut self, flag: &str) -> Vec<u32> {
        let Some(given) = self.given.get(flag) else { return Vec::new() };
        let numbers: Result<Vec<u32>, _> = given.text.split(',').map(|part| part.trim().parse()).collect();
        match numbers {
            Ok(numbers) => numbers,
            Err(_) => self
                .mistake(flag, "it is a user's number, or several with commas between")
                .unwrap_or_default(),
        }
    }

    /// A level, or levels per module. Only this program's own modules are meant by a level alone.
    pub fn log_level(&mut self, flag: &str) -> Targets {
        let quiet = Targets::new().with_default(Level::WARN);
        let own = env!("CARGO_CRATE_NAME");
        let Some(given) = self.given.get(flag) else { return quiet.with_target(own, Level::INFO) };
        if let Ok(level) = given.text.parse::<Level>() {
            return quiet.with_target(own, level);
        }
        match given.text.parse::<Targets>() {
            Ok(targets) => targets,
            Err(_) => self
                .mistake(
                    flag,
                    "it is error, warn, info, debug or trace, or module=level pairs with commas between",
                )
                .unwrap_or(quiet),
        }
    }

    /// Notes a mistake in the value of `flag`: `rule` says what would be right. Always `None`.
    pub fn mistake<T>(&mut self, flag: &str, rule: &str) -> Option<T> {
        self.mistakes.push(match self.given.get(flag) {
            Some(given) => format!("{}: {:?} cannot be used: {rule}", given.origin, given.text),
            None => format!("--{flag}: the default cannot be used: {rule}"),
        });
        None
    }

    /// All mistakes, if there are any.
    pub fn finish(self) -> Result<(), ConfigError> {
        if self.mistakes.is_empty() { Ok(()) } else { Err(ConfigError { mistakes: self.mistakes }) }
    }
}
