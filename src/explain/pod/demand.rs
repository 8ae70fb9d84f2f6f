//! What a Pod asks for: container by container, and as a whole, as the scheduler and the kubelet count it.

use std::collections::BTreeMap;

use super::manifest::{Container, PodSpec};

/// How much of which resource.
pub(super) type Amounts = BTreeMap<String, u64>;

/// A container, and how long it keeps its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// Its name.
    pub(super) name: String,
    /// When it runs.
    pub(super) role: Role,
    /// What it asks for.
    pub(super) amounts: Amounts,
}

/// When a container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Until it is done, before those behind it; what it had goes to them.
    Init,
    /// From its turn among the init containers to the end.
    Sidecar,
    /// Beside all others of its kind.
    App,
}

/// A Pod's containers in the order in which the kubelet gives them devices, and what the API server would refuse.
pub(super) fn steps(pod: &PodSpec) -> (Vec<Step>, Vec<String>) {
    let mut mistakes = Vec::new();
    let role = |container: &Container| match container.restart_policy.as_deref() {
        Some("Always") => Role::Sidecar,
        _ => Role::Init,
    };
    let init = pod.init_containers.iter().map(|container| (container, role(container)));
    let steps = init.chain(pod.containers.iter().map(|container| (container, Role::App)));
    let steps = steps.map(|(container, role)| Step {
        name: container.name.clone(),
        role,
        amounts: amounts(container, &mut mistakes),
    });
    (steps.collect(), mistakes)
}

/// Limits count: for what is not Kubernetes' own, requests must be the same or not be there.
fn amounts(container: &Container, mistakes: &mut Vec<String>) -> Amounts {
    let mut amounts = Amounts::new();
    let resources = container.resources.clone().unwrap_or_default();
    let (limits, requests) = (resources.limits.unwrap_or_default(), resources.requests.unwrap_or_default());
    let mut mistake = |words: String| mistakes.push(format!("container {}: {words}", container.name));
    for (name, limit) in limits.iter().filter(|(name, _)| is_extended(name)) {
        match limit.count() {
            Ok(0) => {}
            Ok(count) => {
                amounts.insert(name.clone(), count);
            }
            Err(error) => mistake(format!("{name}: {limit} {error}")),
        }
    }
    for (name, request) in requests.iter().filter(|(name, _)| is_extended(name)) {
        match (limits.get(name), request.count()) {
            (_, Err(error)) => mistake(format!("{name}: {request} {error}")),
            (None, Ok(_)) => mistake(format!("{name} is in requests only: it has to be in limits")),
            (Some(limit), Ok(request)) if limit.count().is_ok_and(|limit| limit != request) => mistake(
                format!("{name}: the request, {request}, and the limit, {limit}, have to be the same"),
            ),
            (Some(_), Ok(_)) => {}
        }
    }
    amounts
}

/// Whether a name is of a resource that a device plugin can offer: with a domain that is not Kubernetes' own.
fn is_extended(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, _)| {
        !domain.is_empty() && domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io")
    })
}

/// What the Pod holds at most at any time. Kubernetes' rule (`PodRequests` in k8s.io/component-helpers): app
/// containers and sidecars together, or an init container with the sidecars before it, whichever is more.
pub(super) fn effective(steps: &[Step]) -> Amounts {
    let (mut running, mut sidecars, mut peak) = (Amounts::new(), Amounts::new(), Amounts::new());
    for step in steps {
        match step.role {
            Role::App => add(&mut running, &step.amounts),
            Role::Sidecar => {
                add(&mut running, &step.amounts);
                add(&mut sidecars, &step.amounts);
                raise(&mut peak, &sidecars);
            }
            Role::Init => {
                let mut during = sidecars.clone();
                add(&mut during, &step.amounts);
                raise(&mut peak, &during);
            }
        }
    }
    raise(&mut running, &peak);
    running
}

fn add(sum: &mut Amounts, amounts: &Amounts) {
    for (name, count) in amounts {
        let sum = sum.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*count);
    }
}

fn raise(most: &mut Amounts, amounts: &Amounts) {
    for (name, count) in amounts {
        let most = most.entry(name.clone()).or_default();
        *most = (*most).max(*count);
    }
}
