//! The daemon's composition: makes the channels, starts the parts, hands them configurations, ends them on a signal.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin;
use crate::app::AppError;
use crate::cdi::Cdi;
use crate::config::{Changes, Config, ConfigSource};
use crate::kubelet::{self, Context};
use crate::metrics::Metrics;
use crate::nvml::Session;
use crate::resource::policy::DeviceIdStrategy;
use crate::supervisor::{self, Carried, Command, Inputs, Outside, Reload, Snapshot};

/// Set in the environment of a process image that another one of the same process has left its place to.
pub(crate) const BEGUN_ANEW: &str = "MIG_DEVICE_PLUGIN_BEGUN_ANEW";

/// How serving ended.
#[derive(Debug)]
pub(crate) enum Served {
    /// By SIGTERM or SIGINT.
    Stopped,
    /// This process cannot load the driver's library that is there now; a new image of it can.
    StaleLibrary(PathBuf),
}

impl From<supervisor::Ended> for Served {
    fn from(ended: supervisor::Ended) -> Self {
        match ended {
            supervisor::Ended::Stopped | supervisor::Ended::ToStartOver => Self::Stopped,
            supervisor::Ended::StaleLibrary(library) => Self::StaleLibrary(library),
        }
    }
}

/// Serves until SIGTERM or SIGINT, with the configuration that `source` has at each moment.
pub(crate) fn serve(source: &ConfigSource) -> Result<Served, AppError> {
    let mut config = source.load()?;
    if std::env::var_os(BEGUN_ANEW).is_some() {
        // What the flag says counts at the start, and this is the middle.
        config.policy.fail_on_init_error = false;
    }
    warn_of(&config);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| AppError::System { what: "start the runtime", source })?;
    let result = runtime.block_on(run(config, source));
    // Not waited for: a name look-up or the driver may hang.
    runtime.shutdown_timeout(Duration::from_millis(50));
    result
}

/// Why a round of serving ended without an error.
enum Ended {
    Served(Served),
    /// Something changed that is fixed while the parts run.
    Restart(Box<Config>),
}

async fn run(mut config: Config, source: &ConfigSource) -> Result<Served, AppError> {
    let mut signals =
        Signals::new().map_err(|source| AppError::System { what: "listen for signals", source })?;
    let mut changes = source.watch(&config);
    let metrics = Metrics::new();
    let (show, shown) = watch::channel(None);
    if let Some(address) = config.http_address {
        // Ends with the runtime.
        tokio::spawn(admin::serve(address, metrics.clone(), shown));
    }
    info!(version = env!("CARGO_PKG_VERSION"), kubelet_socket = %config.kubelet_socket.display(), "starting");
    let mut lasting = Lasting { carried: Carried::default(), metrics, show };
    loop {
        match round(config, source, &mut changes, &mut signals, &mut lasting).await? {
            Ended::Served(served) => {
                info!("stopped");
                return Ok(served);
            }
            Ended::Restart(next) => {
                info!("the new configuration changes what is fixed while the parts run: starting over");
                config = *next;
                // That counts at the program's own start only: a driver that is away just now is waited for.
                config.policy.fail_on_init_error = false;
            }
        }
    }
}

/// What outlives a round.
struct Lasting {
    carried: Carried,
    metrics: Metrics,
    show: watch::Sender<Option<Arc<Snapshot>>>,
}

/// Serves with everything that `config` fixes.
async fn round(
    config: Config,
    source: &ConfigSource,
    changes: &mut Changes,
    signals: &mut Signals,
    lasting: &mut Lasting,
) -> Result<Ended, AppError> {
    let Lasting { carried, metrics, show } = lasting;
    let stopping = CancellationToken::new();
    let (report_sender, reports) = mpsc::channel(64);
    let (endpoint_sender, endpoints) = mpsc::channel(64);
    let (command_sender, commands) = mpsc::channel(4);
    let (pulse_sender, pulse) = mpsc::channel(4);
    let session = Session::spawn(config.paths.clone(), config.session, report_sender)
        .map_err(|source| AppError::System { what: "start the driver's thread", source })?;
    let context = Context {
        kubelet_socket: config.kubelet_socket.clone(),
        folder: kubelet::watch_folder(config.kubelet_socket.clone(), metrics.clone()),
        socket_names: config.socket_names.clone(),
        allowed_uids: config.allowed_uids.clone(),
        rules: config.rules.clone(),
        paths: config.paths.clone(),
        links: session.status().watch_links(),
        events: endpoint_sender,
        metrics: metrics.clone(),
    };
    kubelet::sweep(context.plugin_folder()).await;
    let cdi = Cdi::new(config.cdi.clone(), config.paths.clone());
    let inputs = Inputs { reports, endpoints, commands, pulse };
    let begin_with = reload_of(&config);
    let outside = Outside { driver: &session, show, pulse: pulse_sender };
    let served = supervisor::run(begin_with, context, cdi, inputs, outside, carried, stopping.clone());
    tokio::pin!(served);
    let mut current = config;
    let mut on_hold = false;
    // Starting over would open the driver, so it waits for the hold's end.
    let mut postponed = None;
    let ended = loop {
        let happened = tokio::select! {
            result = &mut served => return Ok(Ended::Served(result?.into())),
            happened = signals.next() => happened,
            () = changes.next() => Happened::ConfigChanged,
        };
        let command = match happened {
            Happened::Stop => break Ended::Served(Served::Stopped),
            Happened::Hold => {
                on_hold = true;
                Command::Hold
            }
            Happened::Resume => {
                if let Some(next) = postponed.take() {
                    break Ended::Restart(next);
                }
                on_hold = false;
                Command::Resume
            }
            Happened::HangUp | Happened::ConfigChanged => {
                if matches!(happened, Happened::HangUp) {
                    session.rescan();
                }
                let Some(next) = reload(source, metrics) else { continue };
                postponed = None;
                if current.needs_restart(&next) {
                    if !on_hold {
                        break Ended::Restart(Box::new(next));
                    }
                    info!(
                        "the new configuration changes what is fixed while the parts run: it waits for SIGUSR2"
                    );
                    postponed = Some(Box::new(next));
                    continue;
                }
                current = next;
                Command::Reload(Box::new(reload_of(&current)))
            }
        };
        tokio::select! {
            result = &mut served => return Ok(Ended::Served(result?.into())),
            _ = command_sender.send(command) => {}
        }
    };
    if let Ended::Restart(_) = ended {
        let (_, result) = tokio::join!(command_sender.send(Command::StartOver), &mut served);
        result?;
    } else {
        stopping.cancel();
        served.await?;
    }
    Ok(ended)
}

fn reload_of(config: &Config) -> Reload {
    Reload { policy: config.policy.clone(), rules: config.rules.clone() }
}

/// The configuration as it is now; the last good one stays where it cannot be used.
fn reload(source: &ConfigSource, metrics: &Metrics) -> Option<Config> {
    let loaded = source.load();
    metrics.count_reload(loaded.is_ok());
    match loaded {
        Ok(config) => {
            info!("configuration loaded again");
            warn_of(&config);
            Some(config)
        }
        Err(error) => {
            error!("the configuration cannot be used; going on with the last good one");
            error.mistakes.iter().for_each(|mistake| error!("{mistake}"));
            None
        }
    }
}

fn warn_of(config: &Config) {
    config.warnings.iter().for_each(|warning| warn!("{warning}"));
    if config.rules.ids == DeviceIdStrategy::Index {
        warn!(
            "--device-id-strategy=index: the kubelet keeps an answer for the life of a pod, and an index names another \
             device after a layout change or a reboot; uuid is safe"
        );
    }
}

enum Happened {
    Stop,
    HangUp,
    Hold,
    Resume,
    ConfigChanged,
}

/// The signals that mean something to us.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    hold: Signal,
    resume: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            hold: signal(SignalKind::user_defined1())?,
            resume: signal(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Happened {
        tokio::select! {
            _ = self.terminate.recv() => { info!("SIGTERM: stopping"); Happened::Stop }
            _ = self.interrupt.recv() => { info!("SIGINT: stopping"); Happened::Stop }
            _ = self.hang_up.recv() => {
                info!("SIGHUP: looking at the driver and the configuration again");
                Happened::HangUp
            }
            _ = self.hold.recv() => {
                info!("SIGUSR1: withdrawing all devices and leaving the driver alone");
                Happened::Hold
            }
            _ = self.resume.recv() => { info!("SIGUSR2: using the driver again"); Happened::Resume }
        }
    }
}
