//! The kubelet's side of the program: the only room that speaks gRPC.
//!
//! ```text
//!  supervisor ── list ──► Endpoint (one per resource) ──► Server on a socket of its own ──► Plugin (the RPCs)
//!                            │   ▲                             ▲ ListAndWatch, Allocate, …
//!                 Register   ▼   │ FolderState                 │
//!                          kubelet.sock ◄── FolderWatch     kubelet
//! ```
//!
//! An [`Endpoint`] is one sequential task: serve, register, wait until something ends the registration, begin
//! anew. Nothing here calls the driver.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::inventory::Links;
use crate::metrics::Metrics;
use crate::nvml::Paths;
use crate::resource::allocate::Rules;
use crate::resource::{DeviceId, ResourceName};

mod checkpoint;
mod claims;
mod endpoint;
mod folder;
mod offer;
mod plugin;
mod podresources;
mod registration;
mod server;
mod socket;

pub use checkpoint::{CHECKPOINT, Checkpoint, CheckpointError};
pub use claims::{Claim, Look, look};
pub use endpoint::{Endpoint, EndpointStatus, Registration};
pub use folder::{FileId, FolderState, watch_folder};
pub use podresources::{Holding, PodResourcesError, holdings};
pub use socket::{SocketNames, sweep};

#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    missing_debug_implementations,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "generated"
)]
mod api {
    pub mod deviceplugin {
        tonic::include_proto!("v1beta1");
    }
    pub mod podresources {
        tonic::include_proto!("v1");
    }
}

/// What all endpoints share.
#[derive(Debug, Clone)]
pub struct Context {
    /// The kubelet's registration socket; ours stand in the same folder.
    pub kubelet_socket: PathBuf,
    /// What the folder holds at the moment.
    pub folder: watch::Receiver<FolderState>,
    /// Names for our sockets.
    pub socket_names: SocketNames,
    /// Users that may connect.
    pub allowed_uids: HashSet<u32>,
    /// How answers are made.
    pub rules: Rules,
    /// Where device nodes are looked at.
    pub paths: Paths,
    /// How GPUs are connected, as far as is known at the moment.
    pub links: watch::Receiver<Arc<Links>>,
    /// What an endpoint has to tell.
    pub events: mpsc::Sender<EndpointEvent>,
    /// Where calls and registrations are counted.
    pub metrics: Metrics,
}

/// What an endpoint tells the supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointEvent {
    /// An `Allocate` found that a listed device is not what the list says: time to look again.
    Stale {
        /// The resource.
        resource: ResourceName,
        /// The device.
        device: DeviceId,
    },
}

impl Context {
    /// The kubelet's plugin folder.
    pub fn plugin_folder(&self) -> &Path {
        self.kubelet_socket.parent().unwrap_or_else(|| Path::new("/"))
    }
}
