//! What the client's process may do: by `FAKE_NVML_RIGHTS`, by the description, or by what it really may.

use std::{env, fs::File, path::Path, sync::LazyLock};

use super::node;
use crate::{
    Code, Right, Rights,
    state::{MigState, NodeState},
};

/// What decides in place of the description's rights, for one process.
const VARIABLE: &str = "FAKE_NVML_RIGHTS";

/// The capability minors of mig/config and mig/monitor.
const CONFIG: u32 = 1;
const MONITOR: u32 = 2;

/// Linux's number of `CAP_SYS_ADMIN`.
const SYS_ADMIN: u32 = 21;

/// What the environment says, or what is wrong with it.
fn of_environment() -> Option<&'static Result<Rights, String>> {
    static RIGHTS: LazyLock<Option<Result<Rights, String>>> =
        LazyLock::new(|| env::var(VARIABLE).ok().map(|text| Rights::parse(&text)));
    RIGHTS.as_ref()
}

/// Refuses an environment that means nothing.
pub(super) fn check(root: &Path) -> Result<(), Code> {
    if let Some(Err(problem)) = of_environment() {
        node::report(root, &format!("{VARIABLE}: {problem}\n"));
        return Err(Code::INVALID_ARGUMENT);
    }
    Ok(())
}

/// Whether this process has a right now.
pub(super) fn has(state: &NodeState, right: Right) -> bool {
    let of_environment = of_environment().and_then(|rights| rights.as_ref().ok());
    let rights = of_environment.unwrap_or(&state.rights);
    match (rights, right) {
        (Rights::Held(_), _) => rights.has(right),
        (Rights::OfProcess, Right::Admin) => is_admin(),
        (Rights::OfProcess, Right::Config) => opens(CONFIG),
        (Rights::OfProcess, Right::Monitor) => opens(MONITOR),
    }
}

/// Whether this process can open both nodes of a slice.
pub(super) fn can_open(state: &NodeState, mig: &MigState) -> bool {
    let of_process = state.rights == Rights::OfProcess;
    [mig.gi_minor, mig.ci_minor].into_iter().all(|minor| {
        let listed = state.openable.as_ref().is_none_or(|minors| minors.contains(&minor));
        listed && (!of_process || opens(minor))
    })
}

/// Whether the node of this capability can be opened. `ENXIO` says that it could, were there a driver behind it.
fn opens(minor: u32) -> bool {
    let Some(root) = node::root() else { return false };
    match File::open(root.join(format!("dev/nvidia-caps/nvidia-cap{minor}"))) {
        Ok(_) => true,
        Err(error) => error.raw_os_error() == Some(libc::ENXIO),
    }
}

/// Whether the process has `CAP_SYS_ADMIN` in the initial user namespace, whose map is of all IDs to themselves.
fn is_admin() -> bool {
    let read = |file: &str| std::fs::read_to_string(Path::new("/proc/self").join(file)).unwrap_or_default();
    let status = read("status");
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = set.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0);
    let initial = read("uid_map").split_whitespace().eq(["0", "0", "4294967295"]);
    initial && set & 1 << SYS_ADMIN != 0
}
