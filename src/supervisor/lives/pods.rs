//! Pods: how the kubelet gives them devices, container by container.

use std::collections::BTreeMap;

use super::checks::{Kind, Violation};
use super::kubelet::{Allocated, Container, Pod};
use super::life::{Checked, Due, Life};
use crate::kubelet::EndpointEvent;
use crate::resource::DeviceId;
use crate::supervisor::Event;

impl Life<'_> {
    pub(super) fn pod_comes(&mut self, with_init: bool) -> Checked {
        let mut kubelet = self.kubelet.borrow_mut();
        let is_admitting = kubelet.pods.values().any(|pod| pod.admitted < pod.containers.len());
        if !kubelet.sources_ready || !kubelet.up || is_admitting {
            return Ok(());
        }
        let healthy = kubelet.resources.iter().filter(|(_, resource)| !resource.healthy.is_empty());
        let names: Vec<_> = healthy.map(|(name, _)| name.clone()).collect();
        if names.is_empty() {
            return Ok(());
        }
        let mut container = |init| {
            let resource = names[self.random.below(names.len())].clone();
            Container { init, resource, count: 1 + self.random.below(10) / 8 }
        };
        let mut containers = Vec::from_iter(with_init.then(|| container(true)));
        containers.push(container(false));
        self.last_pod += 1;
        let pod = self.last_pod;
        kubelet.pods.insert(pod, Pod { containers, admitted: 0, known: true });
        drop(kubelet);
        self.admit_next(pod)
    }

    /// Gives a pod's next container its devices.
    fn admit_next(&mut self, pod: u32) -> Checked {
        let mut kubelet = self.kubelet.borrow_mut();
        kubelet.update_allocated();
        let Some(Pod { containers, admitted, .. }) = kubelet.pods.get(&pod).cloned() else { return Ok(()) };
        let Some(Container { resource, count, .. }) = containers.get(admitted) else { return Ok(()) };
        let (mut ids, mut free) = kubelet.available(pod, resource);
        self.random.shuffle(&mut ids);
        self.random.shuffle(&mut free);
        ids.extend(free);
        ids.truncate(*count);
        let answer =
            if ids.len() == *count { kubelet.allocate(resource, &ids, &self.node) } else { Err(None) };
        let Err(stale) = answer else {
            kubelet.judge_allocation(pod, &ids, |uuid| self.told.has_slice(uuid))?;
            drop(kubelet);
            self.say(|| format!("pod {pod} is given {ids:?} of {resource}"));
            self.soon(0, 60, Due::Admitted(pod, ids));
            return Ok(());
        };
        // A pod that is not admitted has failed for good.
        kubelet.pods.remove(&pod);
        drop(kubelet);
        match stale {
            Some(device) => {
                self.tell(Event::Stale(EndpointEvent::Stale { resource: resource.clone(), device }))
            }
            None => Ok(()),
        }
    }

    /// The kubelet takes down what a container was given.
    pub(super) fn admitted(&mut self, pod: u32, ids: &[DeviceId]) -> Checked {
        let mut kubelet = self.kubelet.borrow_mut();
        let Some(Pod { containers, admitted, .. }) = kubelet.pods.get(&pod).cloned() else { return Ok(()) };
        let Some(Container { resource, init, .. }) = containers.get(admitted).cloned() else { return Ok(()) };
        let list =
            kubelet.resources.get(&resource).and_then(|resource| resource.list.clone()).unwrap_or_default();
        let mut held = BTreeMap::new();
        for id in ids {
            let Some(told) = list.get(id) else {
                let text =
                    format!("{id} of {resource} was just given to pod {pod} and is not in the list any more");
                return Err(Violation::new(Kind::Crash, text));
            };
            held.insert(id.clone(), told.numa);
        }
        kubelet.held.push(Allocated { pod, init, resource, ids: held });
        kubelet.write();
        if let Some(pod) = kubelet.pods.get_mut(&pod) {
            pod.admitted += 1;
        }
        drop(kubelet);
        self.admit_next(pod)
    }
}
