//! What tests ask of the fake: to look, to wait, to run pods, to call a plugin directly.

use std::collections::BTreeMap;
use std::time::Duration;

use tonic::Status;

use crate::admission::{self, AdmissionError};
use crate::api;
use crate::kubelet::{FakeKubelet, KubeletError};
use crate::manager::Registered;
use crate::pod::{Phase, Pod, PodSpec};
use crate::view::{Calls, Capacity, Device, DeviceList, Registration, View};

/// How often a wait looks even if nothing has changed: resources are forgotten by the clock alone.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Looking.
impl FakeKubelet {
    /// Everything at this moment.
    pub fn view(&self) -> View {
        self.shared.view()
    }

    /// The resources in the node's status.
    pub fn resources(&self) -> BTreeMap<String, Capacity> {
        self.view().resources.into_iter().map(|(name, seen)| (name, seen.capacity)).collect()
    }

    /// The numbers of one resource, if the kubelet knows it.
    pub fn capacity(&self, resource: &str) -> Option<Capacity> {
        self.view().capacity(resource)
    }

    /// The devices of a resource, by ID.
    pub fn devices(&self, resource: &str) -> BTreeMap<String, Device> {
        self.shared.with(|manager| manager.devices(resource))
    }

    /// The registrations that succeeded, over all lives.
    pub fn registrations(&self) -> Vec<Registration> {
        self.shared.with(|manager| manager.history.registrations.clone())
    }

    /// Why registrations were refused.
    pub fn refusals(&self) -> Vec<String> {
        self.shared.with(|manager| manager.history.refusals.clone())
    }

    /// Every list that came for a resource, over all lives (the last 10,000).
    pub fn lists(&self, resource: &str) -> Vec<DeviceList> {
        self.shared.with(|manager| {
            manager
                .history
                .lists
                .get(resource)
                .map(|lists| lists.iter().cloned().collect())
                .unwrap_or_default()
        })
    }

    /// What was called how often, over all resources and lives.
    pub fn calls(&self) -> Calls {
        self.shared.with(|manager| {
            let mut sum = Calls::default();
            manager.history.calls.values().for_each(|calls| sum += *calls);
            sum
        })
    }

    /// What was called how often for one resource.
    pub fn calls_for(&self, resource: &str) -> Calls {
        self.shared.with(|manager| *manager.calls(resource))
    }

    /// How often the checkpoint was written.
    pub fn checkpoint_writes(&self) -> usize {
        self.shared.with(|manager| manager.history.checkpoint_writes)
    }

    /// How many calls the podresources API had, rejected ones too.
    pub fn pod_resources_calls(&self) -> usize {
        self.shared.with(|manager| manager.history.pod_resources_calls)
    }

    /// Whether all pods have been admitted since the start, the API server's too.
    pub fn is_settled(&self) -> bool {
        self.shared.with(|manager| manager.sources_ready)
    }

    /// Where a real kubelet would have crashed.
    pub fn crashes(&self) -> Vec<String> {
        self.shared.with(|manager| manager.history.crashes.clone())
    }

    /// Running pods that failed when a kubelet that had just started admitted them again, and why.
    pub fn failed_pods(&self) -> Vec<String> {
        self.shared.with(|manager| manager.history.failed_pods.clone())
    }

    /// What a real kubelet bears in silence and a plugin should not do: lists that change nothing, IDs that are too
    /// long, health in other words, answers of two resources that contradict each other.
    pub fn complaints(&self) -> Vec<String> {
        self.shared.with(|manager| manager.history.complaints.clone())
    }

    /// Fails the test if a real kubelet would have crashed, or would have failed a running pod.
    ///
    /// # Panics
    ///
    /// When [`crashes`](Self::crashes) or [`failed_pods`](Self::failed_pods) isn't empty.
    #[track_caller]
    pub fn assert_no_crash(&self) {
        let crashes = self.crashes();
        assert!(crashes.is_empty(), "the kubelet would have crashed: {}", crashes.join("; "));
        let failed = self.failed_pods();
        assert!(failed.is_empty(), "running pods failed: {}", failed.join("; "));
    }
}

/// Waiting, at most 20 s unless the builder said otherwise. The error says what was there instead.
impl FakeKubelet {
    /// Waits until the view is as it should be.
    pub async fn wait_for(&self, is: impl Fn(&View) -> bool, what: &str) -> Result<View, KubeletError> {
        let limit = self.shared.settings.wait_limit;
        let mut changes = self.shared.changes();
        let waiting = tokio::time::timeout(limit, async {
            loop {
                changes.mark_unchanged();
                let view = self.view();
                if is(&view) {
                    return view;
                }
                // Either way it looks again.
                tokio::time::timeout(LOOK_AGAIN, changes.changed()).await.ok();
            }
        });
        match waiting.await {
            Ok(view) => Ok(view),
            Err(_elapsed) => {
                Err(KubeletError::Timeout { limit, what: what.to_owned(), view: Box::new(self.view()) })
            }
        }
    }

    /// Waits until a plugin serves the resource and has sent a list.
    pub async fn wait_for_resource(&self, resource: &str) -> Result<Capacity, KubeletError> {
        let view = self.wait_for(|view| view.serves(resource), &format!("the resource {resource}")).await?;
        Ok(view.capacity(resource).unwrap_or_default())
    }

    /// Waits until the devices of a resource are as they should be.
    pub async fn wait_for_devices(
        &self,
        resource: &str,
        are: impl Fn(&BTreeMap<String, Device>) -> bool,
    ) -> Result<BTreeMap<String, Device>, KubeletError> {
        let none = BTreeMap::new();
        let devices =
            |view: &View| view.resources.get(resource).map_or_else(BTreeMap::new, |it| it.devices.clone());
        let fits = |view: &View| are(view.resources.get(resource).map_or(&none, |seen| &seen.devices));
        let view = self.wait_for(fits, &format!("the devices of {resource}")).await?;
        Ok(devices(&view))
    }

    /// Waits until the numbers of a resource are these.
    pub async fn wait_for_capacity(
        &self,
        resource: &str,
        capacity: usize,
        allocatable: usize,
    ) -> Result<(), KubeletError> {
        let wanted = Capacity { capacity, allocatable };
        let what = format!("{allocatable} of {capacity} allocatable {resource}");
        self.wait_for(|view| view.capacity(resource) == Some(wanted), &what).await.map(drop)
    }

    /// Waits until a resource is no longer in the node's status.
    pub async fn wait_until_forgotten(&self, resource: &str) -> Result<(), KubeletError> {
        let what = format!("{resource} to be forgotten");
        self.wait_for(|view| !view.resources.contains_key(resource), &what).await.map(drop)
    }

    /// Waits until a resource was registered `n` times in all.
    pub async fn wait_for_registrations(&self, resource: &str, n: usize) -> Result<(), KubeletError> {
        let what = format!("registration {n} of {resource}");
        self.wait_for(|view| view.registrations_of(resource) >= n, &what).await.map(drop)
    }
}

/// Pods.
impl FakeKubelet {
    /// Schedules and admits a pod, and starts its containers.
    pub async fn run_pod(&self, spec: PodSpec) -> Result<Pod, AdmissionError> {
        admission::run_pod(&self.shared, spec).await
    }

    /// Starts a pod's containers again: the answers come from the checkpoint, without a new `Allocate`.
    pub async fn restart_container(&self, pod: impl AsRef<str>) -> Result<Pod, AdmissionError> {
        admission::restart_containers(&self.shared, pod.as_ref()).await
    }

    /// A pod runs to its end. It is still there, and the kubelet keeps its devices, also in its checkpoint, until
    /// somebody asks for them. False if there is no such pod.
    pub fn finish_pod(&self, pod: impl AsRef<str>) -> bool {
        self.shared.change(|manager| {
            let found = manager.pods.get_mut(pod.as_ref());
            found.map(|pod| pod.phase = Phase::Ended).is_some()
        })
    }

    /// Removes a pod whose containers have ended. The plugin isn't told, and the kubelet notices when somebody asks.
    /// False if there is no such pod.
    pub fn delete_pod(&self, pod: impl AsRef<str>) -> bool {
        self.shared.change(|manager| manager.pods.remove(pod.as_ref()).is_some())
    }

    /// The pods that run, by name.
    pub fn pods(&self) -> BTreeMap<String, Pod> {
        self.shared.with(|manager| {
            let active = manager.pods.iter().filter(|(_, pod)| pod.phase == Phase::Active);
            active.map(|(name, pod)| (name.clone(), pod.to_pod(&manager.held).0)).collect()
        })
    }
}

/// Calls past the device manager, to the endpoint that is registered now. They change nothing in the kubelet.
impl FakeKubelet {
    /// `Allocate` for one container.
    pub async fn allocate_ids<S: AsRef<str>>(
        &self,
        resource: &str,
        ids: &[S],
    ) -> Result<api::ContainerAllocateResponse, Status> {
        let ids = ids.iter().map(|id| id.as_ref().to_owned()).collect();
        let answer = self.allocate_many(resource, vec![ids]).await?;
        let none = || Status::internal("no containers return in allocation response");
        answer.container_responses.into_iter().next().ok_or_else(none)
    }

    /// `Allocate` for several containers in one call, which the API allows and no kubelet does.
    pub async fn allocate_many(
        &self,
        resource: &str,
        containers: Vec<Vec<String>>,
    ) -> Result<api::AllocateResponse, Status> {
        let mut endpoint = self.registered(resource, |calls| calls.allocate += 1)?;
        let request = admission::allocate_request(containers);
        endpoint.plugin.allocate(request).await.map(tonic::Response::into_inner)
    }

    /// `GetPreferredAllocation` for one container; the IDs it prefers.
    pub async fn preferred<S: AsRef<str>>(
        &self,
        resource: &str,
        available: &[S],
        must_include: &[S],
        size: usize,
    ) -> Result<Vec<String>, Status> {
        let mut endpoint = self.registered(resource, |calls| calls.preferred += 1)?;
        let owned = |ids: &[S]| ids.iter().map(|id| id.as_ref().to_owned()).collect();
        let request = admission::preferred_request(owned(available), owned(must_include), size);
        let answer = endpoint.plugin.get_preferred_allocation(request).await?.into_inner();
        Ok(answer.container_responses.into_iter().next().map(|it| it.device_i_ds).unwrap_or_default())
    }

    /// `GetDevicePluginOptions`.
    pub async fn options(&self, resource: &str) -> Result<api::DevicePluginOptions, Status> {
        let mut endpoint = self.registered(resource, |calls| calls.options += 1)?;
        endpoint.plugin.get_device_plugin_options(api::Empty {}).await.map(tonic::Response::into_inner)
    }

    /// `PreStartContainer`.
    pub async fn pre_start_container<S: AsRef<str>>(&self, resource: &str, ids: &[S]) -> Result<(), Status> {
        let mut endpoint = self.registered(resource, |calls| calls.pre_start += 1)?;
        let devices_ids = ids.iter().map(|id| id.as_ref().to_owned()).collect();
        let request = api::PreStartContainerRequest { devices_ids };
        endpoint.plugin.pre_start_container(request).await.map(drop)
    }

    fn registered(&self, resource: &str, count: impl FnOnce(&mut Calls)) -> Result<Registered, Status> {
        self.shared.with(|manager| {
            let registered = manager.callable(resource).map_err(Status::unavailable)?;
            count(manager.calls(resource));
            Ok(registered)
        })
    }
}
