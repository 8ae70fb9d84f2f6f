//! The command itself: its arguments, the files that they name, and the answer.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::input::{self, InputError};
use super::{Format, RenderError, explain, pod, render};
use crate::inventory::Inventory;
use crate::resource::MigStrategy;
use crate::resource::allocate::Rules;
use crate::resource::policy::OfferPolicy;

/// More than any node's inventory or any application's manifests.
const MAX_BYTES: u64 = 32 * 1024 * 1024;

/// What to explain.
#[derive(Debug, Clone, clap::Args)]
pub struct ExplainArgs {
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,

    /// Only this strategy; by default all, and that of --mig-strategy is marked
    #[arg(long, value_enum, value_name = "STRATEGY")]
    strategy: Option<Strategy>,

    /// Read the node from what `devices -o json` or `devices -o yaml` printed, - for standard input, rather than ask
    /// the driver
    #[arg(long, value_name = "FILE")]
    inventory: Option<PathBuf>,

    /// Say whether the Pods in this file could run, - for standard input: Pods, or what makes Pods (Deployment, Job, …).
    /// Exit code 0: all fit under --strategy, or else --mig-strategy; 1: not all; 64: the file cannot be used
    #[arg(long, value_name = "FILE")]
    pod: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Strategy {
    None,
    Single,
    Mixed,
}

impl From<Strategy> for MigStrategy {
    fn from(strategy: Strategy) -> Self {
        match strategy {
            Strategy::None => Self::None,
            Strategy::Single => Self::Single,
            Strategy::Mixed => Self::Mixed,
        }
    }
}

/// What there is to print, and to say at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// For standard output.
    pub text: String,
    /// Why the exit code is not 0.
    pub misfit: Option<Misfit>,
}

/// Not all Pods could run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("under the strategy {strategy} this node cannot run {}", pods.join(", "))]
pub struct Misfit {
    /// The strategy that counts.
    pub strategy: MigStrategy,
    /// Their names.
    pub pods: Vec<String>,
}

/// There is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// A file cannot be used.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The answer cannot be written down.
    #[error(transparent)]
    Render(#[from] RenderError),
}

impl ExplainError {
    /// Whether something is wrong with what was given, rather than with this program.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Input(_))
    }
}

impl ExplainArgs {
    /// The inventory that was saved in a file, if one is named.
    pub fn saved_inventory(&self) -> Result<Option<Inventory>, ExplainError> {
        let is_stdin = |file: &Option<PathBuf>| file.as_deref() == Some(Path::new("-"));
        if is_stdin(&self.inventory) && is_stdin(&self.pod) {
            return Err(InputError::Twice.into());
        }
        if self.pod.is_some() && self.output == Format::Pods {
            return Err(InputError::PodsOfPods.into());
        }
        let Some(file) = &self.inventory else { return Ok(None) };
        let (name, text) = read(file)?;
        Ok(Some(input::inventory(name, &text)?))
    }

    /// What is to be said of `inventory`, or of the Pods that are to run there.
    pub fn answer(
        &self,
        inventory: &Inventory,
        policy: &OfferPolicy,
        rules: &Rules,
    ) -> Result<Answer, ExplainError> {
        let only = self.strategy.map(MigStrategy::from);
        let Some(file) = &self.pod else {
            let explanation = explain(inventory, policy);
            let explanation = match only {
                Some(strategy) => explanation.only(strategy),
                None => explanation,
            };
            return Ok(Answer { text: render(&explanation, self.output)?, misfit: None });
        };
        let (name, text) = read(file)?;
        let pods = input::pods(name, &text)?;
        let answers = pod::judge(inventory, policy, rules, &pods);
        let strategy = only.unwrap_or(policy.strategy);
        let pods: Vec<String> = answers.misfits(strategy).into_iter().map(str::to_owned).collect();
        let misfit = (!pods.is_empty()).then_some(Misfit { strategy, pods });
        let answers = match only {
            Some(strategy) => answers.only(strategy),
            None => answers,
        };
        Ok(Answer { text: pod::render(&answers, self.output)?, misfit })
    }
}

/// The file's name for people, and what is in it.
fn read(file: &Path) -> Result<(PathBuf, String), InputError> {
    let is_stdin = file == Path::new("-");
    let name = if is_stdin { PathBuf::from("standard input") } else { file.to_owned() };
    let mut text = String::new();
    let result = if is_stdin {
        std::io::stdin().lock().take(MAX_BYTES).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text))
    };
    match result {
        Ok(_) => Ok((name, text)),
        Err(source) => Err(InputError::Read { file: name, source }),
    }
}
