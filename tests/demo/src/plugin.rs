//! The real plugin: built by cargo, run as a child, ended in good order.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::DemoError;

const PACKAGE: &str = "mig-device-plugin";

/// How long the plugin may take to end after SIGTERM.
const END_LIMIT: Duration = Duration::from_secs(5);

const POLL: Duration = Duration::from_millis(20);

/// How much of the log is shown when the plugin fails.
const LAST_WORDS: usize = 20;

/// Why there is no plugin to run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    #[error("cannot run {cargo}")]
    NoCargo { cargo: String, source: std::io::Error },
    #[error("cargo could not build {PACKAGE} ({0})")]
    Failed(ExitStatus),
    #[error("cargo built {PACKAGE} and named no executable")]
    NoExecutable,
}

/// Builds the plugin in the profile that the demo was built in, and asks cargo where it is.
pub(crate) fn build() -> Result<PathBuf, BuildError> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml");
    let mut command = Command::new(&cargo);
    command.args([
        "build",
        "--package",
        PACKAGE,
        "--bin",
        PACKAGE,
        "--message-format=json-render-diagnostics",
    ]);
    command.arg("--manifest-path").arg(manifest).stdin(Stdio::null()).stdout(Stdio::piped());
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let no_cargo = |source| BuildError::NoCargo { cargo: cargo.clone(), source };
    let mut child = command.spawn().map_err(no_cargo)?;
    // Read to the end before waiting: a full pipe would stop cargo. What it says to people goes to stderr.
    let messages = child.stdout.take().map(|out| BufReader::new(out).lines().map_while(Result::ok));
    let found = messages.into_iter().flatten().filter_map(|message| executable(&message)).last();
    let status = child.wait().map_err(no_cargo)?;
    if !status.success() {
        return Err(BuildError::Failed(status));
    }
    found.ok_or(BuildError::NoExecutable)
}

fn executable(message: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let is_plugin = message["reason"] == "compiler-artifact" && message["target"]["name"] == PACKAGE;
    if is_plugin { message["executable"].as_str().map(PathBuf::from) } else { None }
}

/// The plugin while it runs. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Plugin {
    child: Child,
    log: PathBuf,
    /// Lines of the log that were shown.
    shown: usize,
}

impl Plugin {
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Self, DemoError> {
        let file = File::create(log).map_err(DemoError::io("make the plugin's log file"))?;
        let again = file.try_clone().map_err(DemoError::io("make the plugin's log file"))?;
        let child = command.stdin(Stdio::null()).stdout(file).stderr(again).spawn();
        let child = child.map_err(DemoError::io("start the plugin"))?;
        Ok(Self { child, log: log.to_owned(), shown: 0 })
    }

    /// Returns when the plugin has ended by itself, which it should not.
    pub(crate) async fn ended(&mut self) -> DemoError {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return self.ended_with(status),
                Ok(None) => tokio::time::sleep(POLL).await,
                Err(error) => return DemoError::io("wait for the plugin")(error),
            }
        }
    }

    /// Ends the plugin as Kubernetes does: SIGTERM, and SIGKILL for one that does not listen.
    pub(crate) async fn end(&mut self) -> Result<ExitStatus, DemoError> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM).map_err(|errno| DemoError::io("end the plugin")(errno.into()))?;
        }
        if let Ok(DemoError::PluginEnded { status, .. }) = tokio::time::timeout(END_LIMIT, self.ended()).await
        {
            return Ok(status);
        }
        self.child.kill().and_then(|()| self.child.wait()).map_err(DemoError::io("kill the plugin"))
    }

    /// What the plugin has logged since this was last asked.
    pub(crate) fn fresh_lines(&mut self) -> Vec<String> {
        let lines = self.lines();
        let fresh = lines.into_iter().skip(self.shown).collect::<Vec<_>>();
        self.shown += fresh.len();
        fresh
    }

    fn ended_with(&self, status: ExitStatus) -> DemoError {
        let lines = self.lines();
        let words = lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n");
        DemoError::PluginEnded { status, words }
    }

    fn lines(&self) -> Vec<String> {
        // A log that can't be read is shown as none: it is an ornament.
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill, and no harm in trying.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
