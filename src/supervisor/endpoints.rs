//! The kubelet's side of what is served: an endpoint per resource.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tracing::warn;

use crate::kubelet::{Context, Endpoint, EndpointStatus};
use crate::resource::allocate::Rules;
use crate::resource::{Device, DeviceId, ResourceName};

/// All endpoints end within this time at exit, or are left to the end of the process.
const EXIT_LIMIT: Duration = Duration::from_millis(800);

/// All endpoints have ended their registrations within this time, when others take their places at once.
const CHANGE_LIMIT: Duration = Duration::from_secs(3);

/// To whom lists are served: the kubelet by way of sockets, or a simulated one in tests.
pub(super) trait Kubelet {
    /// Whether there is one, as far as its socket's file tells.
    fn is_there(&self) -> bool;

    /// Serves a resource that is not served.
    fn start(&mut self, resource: ResourceName, devices: Vec<Device>);

    /// Serves another list of a resource.
    fn update(&mut self, resource: &ResourceName, devices: Vec<Device>);

    /// Serves the list of a resource once more, though nothing about it has changed: the kubelet then writes its
    /// checkpoint.
    fn send_again(&mut self, resource: &ResourceName);

    /// Ends a resource.
    fn stop(&mut self, resource: &ResourceName);

    /// Changes how answers are made from now on.
    fn set_rules(&mut self, rules: Rules);

    /// Whether the kubelet follows this resource's list at the moment.
    fn is_watched(&self, resource: &ResourceName) -> bool;

    /// Time since an `Allocate` last gave this device away; `None` if none did.
    fn since_allocated(&self, resource: &ResourceName, device: &DeviceId) -> Option<Duration>;

    /// What can be seen of a resource that is served.
    fn status(&self, resource: &ResourceName) -> Option<Arc<EndpointStatus>>;
}

/// The real kubelet.
pub(super) struct Endpoints {
    context: Context,
    running: BTreeMap<ResourceName, Endpoint>,
    /// Endpoints on their way out.
    stops: HashMap<ResourceName, JoinHandle<()>>,
}

impl Endpoints {
    pub(super) fn new(context: Context) -> Self {
        Self { context, running: BTreeMap::new(), stops: HashMap::new() }
    }

    /// Ends all endpoints. `for_good`: nobody takes their places at once.
    pub(super) async fn end(self, for_good: bool) {
        let mut stops = JoinSet::new();
        for endpoint in self.running.into_values() {
            stops.spawn(endpoint.stop(for_good));
        }
        let all = async { while stops.join_next().await.is_some() {} };
        if timeout(if for_good { EXIT_LIMIT } else { CHANGE_LIMIT }, all).await.is_err() {
            warn!("some endpoints did not end in time");
        }
    }
}

impl Kubelet for Endpoints {
    fn is_there(&self) -> bool {
        self.context.folder.borrow().kubelet.is_some()
    }

    fn start(&mut self, resource: ResourceName, devices: Vec<Device>) {
        let before = self.stops.remove(&resource);
        let endpoint = Endpoint::start(self.context.clone(), resource.clone(), devices, before);
        self.running.insert(resource, endpoint);
    }

    fn update(&mut self, resource: &ResourceName, devices: Vec<Device>) {
        if let Some(endpoint) = self.running.get(resource) {
            endpoint.update(devices);
        }
    }

    fn send_again(&mut self, resource: &ResourceName) {
        if let Some(endpoint) = self.running.get(resource) {
            endpoint.send_again();
        }
    }

    fn stop(&mut self, resource: &ResourceName) {
        if let Some(endpoint) = self.running.remove(resource) {
            self.stops.retain(|_, stop| !stop.is_finished());
            self.stops.insert(resource.clone(), tokio::spawn(endpoint.stop(false)));
        }
    }

    fn set_rules(&mut self, rules: Rules) {
        if self.context.rules != rules {
            self.context.rules = rules;
            for endpoint in self.running.values() {
                endpoint.set_rules(self.context.rules.clone());
            }
        }
    }

    fn is_watched(&self, resource: &ResourceName) -> bool {
        self.running.get(resource).is_some_and(Endpoint::is_watched)
    }

    fn since_allocated(&self, resource: &ResourceName, device: &DeviceId) -> Option<Duration> {
        self.running.get(resource)?.since_allocated(device)
    }

    fn status(&self, resource: &ResourceName) -> Option<Arc<EndpointStatus>> {
        self.running.get(resource).map(Endpoint::status)
    }
}
