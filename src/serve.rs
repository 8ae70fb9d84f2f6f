//! The daemon's composition: makes the channels, starts the parts, hands them configurations, ends them on a signal.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
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
use crate::supervisor::{self, Inputs, Reload};

/// Serves until SIGTERM or SIGINT, with the configuration that `source` has at each moment.
pub(crate) fn serve(source: &ConfigSource) -> Result<(), AppError> {
    let config = source.load()?;
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
    Stopped,
    /// Something changed that is fixed while the parts run.
    Restart(Box<Config>),
}

async fn run(mut config: Config, source: &ConfigSource) -> Result<(), AppError> {
    let mut signals =
        Signals::new().map_err(|source| AppError::System { what: "listen for signals", source })?;
    let mut changes = source.watch(&config);
    let metrics = Metrics::new();
    if let Some(address) = config.http_address {
        let listener = admin::bind(address).await;
        let listener =
            listener.map_err(|source| AppError::System { what: "listen on --http-address", source })?;
        // Ends with the runtime.
        tokio::spawn(admin::serve(listener, metrics.clone()));
    }
    info!(version = env!("CARGO_PKG_VERSION"), kubelet_socket = %config.kubelet_socket.display(), "starting");
    loop {
        match round(config, source, &mut changes, &mut signals, &metrics).await? {
            Ended::Stopped => {
                info!("stopped");
                return Ok(());
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

/// Serves with everything that `config` fixes.
async fn round(
    config: Config,
    source: &ConfigSource,
    changes: &mut Changes,
    signals: &mut Signals,
    metrics: &Metrics,
) -> Result<Ended, AppError> {
    let stopping = CancellationToken::new();
    let (report_sender, reports) = mpsc::channel(1);
    let (endpoint_sender, endpoints) = mpsc::channel(64);
    let (reload_sender, reloads) = mpsc::channel(1);
    let session = Session::spawn(config.paths.clone(), config.rescan_interval, report_sender)
        .map_err(|source| AppError::System { what: "start the driver's thread", source })?;
    let context = Context {
        kubelet_socket: config.kubelet_socket.clone(),
        folder: kubelet::watch_folder(config.kubelet_socket.clone()),
        socket_names: config.socket_names.clone(),
        allowed_uids: config.allowed_uids.clone(),
        rules: config.rules.clone(),
        paths: config.paths.clone(),
        events: endpoint_sender,
    };
    kubelet::sweep(context.plugin_folder()).await;
    let cdi = Cdi::new(config.cdi.clone(), config.paths.clone());
    let inputs = Inputs { reports, endpoints, reloads };
    let policy = config.policy.clone();
    let served = supervisor::run(policy, context, cdi, inputs, || session.rescan(), stopping.clone());
    tokio::pin!(served);
    let mut current = config;
    let ended = loop {
        let happened = tokio::select! {
            result = &mut served => return result.map(|()| Ended::Stopped).map_err(AppError::from),
            happened = signals.next() => happened,
            () = changes.next() => Happened::ConfigChanged,
        };
        match happened {
            Happened::Stop => break Ended::Stopped,
            Happened::HangUp => session.rescan(),
            Happened::ConfigChanged => {}
        }
        let Some(next) = reload(source, metrics) else { continue };
        if current.needs_restart(&next) {
            break Ended::Restart(Box::new(next));
        }
        let reload = Reload { policy: next.policy.clone(), rules: next.rules.clone() };
        current = next;
        tokio::select! {
            result = &mut served => return result.map(|()| Ended::Stopped).map_err(AppError::from),
            _ = reload_sender.send(reload) => {}
        }
    };
    stopping.cancel();
    served.await?;
    Ok(ended)
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
    for variable in ["DP_DISABLE_HEALTHCHECKS", "DP_ENABLE_HEALTHCHECKS"] {
        if std::env::var_os(variable).is_some_and(|value| !value.is_empty()) {
            warn!("{variable} has no effect: health is not judged by Xid events yet");
        }
    }
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
    ConfigChanged,
}

/// The signals that mean something to us.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
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
        }
    }
}
