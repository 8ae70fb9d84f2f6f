//! A kubelet that has just started admits all pods again: static ones at once, the API server's when they are there.

use std::sync::Arc;

use tokio::time::Instant;

use crate::admission;
use crate::pod::{Phase, PodRecord};
use crate::shared::Shared;

/// Ends when the pods of all sources are known.
pub(crate) async fn run(shared: &Arc<Shared>) {
    readmit(shared, |pod| pod.spec.is_static).await;
    // A kubelet waits for its Node object first. It makes no difference where there are no pods.
    if shared.with(|manager| manager.pods.values().any(|pod| !pod.spec.is_static)) {
        api_server(shared).await;
    }
    readmit(shared, |pod| !pod.spec.is_static).await;
    shared.change(|manager| manager.sources_ready = true);
}

/// Waits for the API server's pods.
async fn api_server(shared: &Arc<Shared>) {
    let started = Instant::now();
    let mut setting = shared.api_pods_after.subscribe();
    loop {
        let pause = *setting.borrow_and_update();
        let due = async {
            match pause {
                Some(pause) => tokio::time::sleep_until(started + pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => return,
            changed = setting.changed() => if changed.is_err() { return },
        }
    }
}

async fn readmit(shared: &Arc<Shared>, of_source: impl Fn(&PodRecord) -> bool) {
    let _one_at_a_time = shared.admission.lock().await;
    let names = shared.with(|manager| {
        let pods = manager.pods.values().filter(|pod| !pod.known && of_source(pod));
        pods.map(|pod| pod.spec.name.clone()).collect::<Vec<_>>()
    });
    for name in names {
        let pod = shared.change(|manager| {
            let pod = manager.pods.get_mut(&name)?;
            pod.known = true;
            (pod.phase == Phase::Active).then(|| pod.clone())
        });
        let Some(pod) = pod else { continue };
        if let Err(refusal) = admission::admit(shared, &pod).await {
            shared.change(|manager| {
                if let Some(pod) = manager.pods.get_mut(&name) {
                    pod.phase = Phase::Ended;
                }
                manager.history.failed_pods.push(format!("the running pod {name}: {refusal}"));
            });
        }
    }
}
