use super::*;
use crate::config::{Config, Values};
use crate::explain::input::{self, InputError};
use crate::explain::render::Format;
use crate::fixtures::{gpu, mig_gpu, node, present};
use crate::resource::policy;

fn pods(yaml: &str) -> Vec<PodSpec> {
    input::pods("pods.yaml".into(), yaml).unwrap()
}

fn refused(yaml: &str) -> String {
    input::pods("pods.yaml".into(), yaml).unwrap_err().to_string()
}

/// Those of a plugin that nothing is configured of.
fn rules() -> Rules {
    Config::new(&Values::default(), 0).unwrap().rules
}

fn judged(inventory: &Inventory, yaml: &str) -> PodAnswer {
    let policy = OfferPolicy { strategy: MigStrategy::Mixed, ..OfferPolicy::default() };
    judge(inventory, &policy, &rules(), &pods(yaml)).pods.remove(0)
}

fn under(answer: &PodAnswer, strategy: MigStrategy) -> &Verdict {
    answer.strategies.iter().find(|verdict| verdict.strategy == strategy).unwrap()
}

fn mixed(answer: &PodAnswer) -> &Verdict {
    under(answer, MigStrategy::Mixed)
}

fn obstacles(verdict: &Verdict) -> Vec<String> {
    verdict.obstacles.iter().map(ToString::to_string).collect()
}

/// Container, resource and device indices.
fn given(verdict: &Verdict) -> Vec<(&str, &str, Vec<&str>)> {
    let views = verdict.containers.iter();
    views
        .map(|view| {
            let indices = view.devices.iter().map(|device| device.index.as_str()).collect();
            (view.name.as_str(), view.resource.as_str(), indices)
        })
        .collect()
}

const SMALL: &str = "nvidia.com/mig-1g.10gb";
const LARGE: &str = "nvidia.com/mig-3g.40gb";

/// A Pod whose containers have these limits; names that begin with `init` or `side` are init containers.
fn pod(containers: &[(&str, &[(&str, u64)])]) -> String {
    let mut init = Vec::new();
    let mut app = Vec::new();
    for (name, limits) in containers {
        let limits: Vec<_> = limits.iter().map(|(resource, count)| format!("{resource}: {count}")).collect();
        let always = if name.starts_with("side") { "restartPolicy: Always, " } else { "" };
        let text = format!("{{name: {name}, {always}resources: {{limits: {{{}}}}}}}", limits.join(", "));
        if name.starts_with("init") || name.starts_with("side") { &mut init } else { &mut app }.push(text);
    }
    format!(
        "kind: Pod\nmetadata: {{name: p}}\nspec:\n  initContainers: [{}]\n  containers: [{}]\n",
        init.join(", "),
        app.join(", ")
    )
}

#[test]
fn a_pod_gets_what_the_plugin_would_give() {
    let mut inventory = node([mig_gpu(0, &["3g.40gb", "1g.10gb", "1g.10gb"]), gpu(1)]);
    inventory.control_nodes = vec![present("/dev/nvidiactl")];
    let answer = judged(&inventory, &pod(&[("main", &[(SMALL, 2)])]));
    let verdict = mixed(&answer);
    assert!(verdict.fits && verdict.configured);
    assert_eq!(verdict.room, Some(1));
    assert_eq!(given(verdict), [("main", SMALL, vec!["0:1", "0:2"])]);
    let container = &verdict.containers[0];
    let visible = ("NVIDIA_VISIBLE_DEVICES".to_owned(), "MIG-0-8-0,MIG-0-9-0".to_owned());
    assert!(container.environment.contains(&visible), "{container:?}");
    let nodes: Vec<_> = container.nodes.iter().map(|node| node.to_str().unwrap()).collect();
    assert_eq!(
        nodes,
        [
            "/dev/nvidiactl",
            "/dev/nvidia0",
            "/dev/nvidia-caps/nvidia-cap75",
            "/dev/nvidia-caps/nvidia-cap76",
            "/dev/nvidia-caps/nvidia-cap84",
            "/dev/nvidia-caps/nvidia-cap85",
        ]
    );
    assert!(!under(&answer, MigStrategy::None).fits && !under(&answer, MigStrategy::Single).fits);
}

#[test]
fn why_a_pod_cannot_run_is_said() {
    let mut inventory = node([mig_gpu(0, &["2g.20gb", "2g.20gb", "2g.20gb"]), gpu(1)]);
    let told = |inventory: &Inventory, resource, count| {
        obstacles(mixed(&judged(inventory, &pod(&[("main", &[(resource, count)])]))))
    };
    assert_eq!(told(&inventory, "nvidia.com/mig-2g.20gb", 4), ["4 nvidia.com/mig-2g.20gb wanted, 3 there"]);
    inventory.gpus[0].mig_devices[0].problem = Some(crate::inventory::Trouble::unreadable("sick"));
    assert_eq!(
        told(&inventory, "nvidia.com/mig-2g.20gb", 3),
        ["3 nvidia.com/mig-2g.20gb wanted, 3 there, 2 of them healthy"]
    );
    assert_eq!(
        told(&inventory, "nvidia.com/mig-2g.10gb", 1),
        ["nvidia.com/mig-2g.10gb is not offered here; did you mean nvidia.com/mig-2g.20gb?"]
    );
    assert_eq!(
        told(&inventory, "nvidia.com/mig-7g.141gb", 1),
        ["nvidia.com/mig-7g.141gb is not offered here"]
    );
    let answer = judged(&inventory, &pod(&[("main", &[("nvidia.com/mig-2g.20gb", 1)])]));
    assert_eq!(
        obstacles(under(&answer, MigStrategy::Single)),
        ["nvidia.com/mig-2g.20gb is not offered here; the strategy mixed offers it"]
    );
    let answer = judged(&node([full_mig()]), &pod(&[("main", &[("nvidia.com/gpu", 1)])]));
    assert_eq!(
        obstacles(mixed(&answer)),
        ["nvidia.com/gpu is not offered here; the strategies none and single offer it"]
    );
}

fn full_mig() -> crate::inventory::Gpu {
    mig_gpu(0, &["1g.10gb"; 7])
}

#[test]
fn a_refusal_of_the_plugin_is_an_obstacle() {
    let shared = policy::SharedResource {
        name: SMALL.parse().unwrap(),
        rename: None,
        devices: policy::DeviceSelection::All,
        replicas: 2,
    };
    let time_slicing = policy::TimeSlicing {
        fail_requests_greater_than_one: true,
        resources: vec![shared],
        ..policy::TimeSlicing::default()
    };
    let offer = OfferPolicy { strategy: MigStrategy::Mixed, time_slicing, ..OfferPolicy::default() };
    let inventory = node([full_mig()]);
    let answers = |count| judge(&inventory, &offer, &rules(), &pods(&pod(&[("main", &[(SMALL, count)])])));
    let answer = answers(2).pods.remove(0);
    let told = obstacles(mixed(&answer));
    assert!(told[0].starts_with("container main would be refused: at most one replica"), "{told:?}");
    assert!(!mixed(&answer).fits);
    let answer = answers(1).pods.remove(0);
    assert_eq!(mixed(&answer).room, Some(14));
    assert!(mixed(&answer).containers[0].devices[0].id.contains("::"));
}

#[test]
fn init_containers_leave_their_devices_and_sidecars_keep_them() {
    let inventory = node([full_mig()]);
    let check = |containers: &[(&str, &[(&str, u64)])], asks: u64| {
        let answer = judged(&inventory, &pod(containers));
        assert_eq!(answer.asks.get(SMALL), Some(&asks), "{containers:?}");
        // What is counted and what is handed out must be the same.
        let devices = mixed(&answer).containers.iter().flat_map(|view| &view.devices);
        let distinct: BTreeSet<_> = devices.map(|device| device.id.clone()).collect();
        assert_eq!(distinct.len() as u64, asks, "{containers:?}");
    };
    check(&[("a", &[(SMALL, 1)]), ("b", &[(SMALL, 2)])], 3);
    check(&[("init", &[(SMALL, 5)]), ("a", &[(SMALL, 1)]), ("b", &[(SMALL, 2)])], 5);
    check(&[("init-1", &[(SMALL, 2)]), ("init-2", &[(SMALL, 3)]), ("a", &[(SMALL, 1)])], 3);
    check(&[("side", &[(SMALL, 1)]), ("init", &[(SMALL, 2)]), ("a", &[(SMALL, 1)])], 3);
    check(&[("init", &[(SMALL, 2)]), ("side", &[(SMALL, 1)]), ("a", &[(SMALL, 1)])], 2);
    check(&[("side-1", &[(SMALL, 1)]), ("side-2", &[(SMALL, 1)]), ("a", &[(SMALL, 2)])], 4);
}

#[test]
fn what_the_api_server_would_refuse_is_said() {
    let inventory = node([full_mig()]);
    let told = |resources: &str| {
        let answer =
            judged(&inventory, &format!("spec: {{containers: [{{name: c, resources: {resources}}}]}}"));
        assert!(answer.strategies.iter().all(|verdict| !verdict.fits), "{resources}");
        answer.mistakes
    };
    assert_eq!(
        told("{limits: {nvidia.com/gpu: 0.5}}"),
        ["container c: nvidia.com/gpu: 0.5 is no whole number, and devices are given whole"]
    );
    assert_eq!(
        told("{limits: {nvidia.com/gpu: 2}, requests: {nvidia.com/gpu: 1}}"),
        ["container c: nvidia.com/gpu: the request, 1, and the limit, 2, have to be the same"]
    );
    assert_eq!(
        told("{requests: {nvidia.com/gpu: 1}}"),
        ["container c: nvidia.com/gpu is in requests only: it has to be in limits"]
    );
    assert_eq!(told("{limits: {nvidia.com/gpu: -1}}"), ["container c: nvidia.com/gpu: -1 is less than 0"]);
    assert_eq!(told("{limits: {nvidia.com/gpu: one}}"), ["container c: nvidia.com/gpu: one is no quantity"]);
}

#[test]
fn requests_that_equal_limits_are_one_demand() {
    let yaml = "spec: {containers: [{name: c, resources: {limits: {nvidia.com/mig-1g.10gb: \"1000m\", cpu: 500m}, \
                requests: {nvidia.com/mig-1g.10gb: 1, memory: 1Gi}}}]}";
    let answer = judged(&node([full_mig()]), yaml);
    assert_eq!(answer.mistakes, [""; 0]);
    assert_eq!(answer.asks, BTreeMap::from([(SMALL.to_owned(), 1)]));
    assert!(mixed(&answer).fits);
}

#[test]
fn two_resources_in_one_container_hide_each_other() {
    let inventory = node([mig_gpu(0, &["3g.40gb", "1g.10gb"])]);
    let answer = judged(&inventory, &pod(&[("main", &[(SMALL, 1), (LARGE, 1)])]));
    assert!(mixed(&answer).fits);
    let told = &mixed(&answer).warnings;
    assert!(told[0].contains("both set NVIDIA_VISIBLE_DEVICES"), "{told:?}");
    assert!(told[1].contains("uses one MIG device, and this container gets 2"), "{told:?}");
    let apart = judged(&inventory, &pod(&[("one", &[(SMALL, 1)]), ("two", &[(LARGE, 1)])]));
    assert!(mixed(&apart).warnings.is_empty());
}

#[test]
fn a_whole_gpu_in_mig_mode_is_warned_of() {
    let answer = judged(&node([full_mig()]), &pod(&[("main", &[("nvidia.com/gpu", 1)])]));
    let none = under(&answer, MigStrategy::None);
    assert!(none.fits);
    assert_eq!(
        none.warnings,
        ["container main: GPU 0 is in MIG mode, so no CUDA program can use it as a whole"]
    );
    assert!(under(&answer, MigStrategy::Single).warnings.is_empty());
}

#[test]
fn other_plugins_resources_are_not_judged_and_slips_are() {
    let inventory = node([full_mig()]);
    let answer = judged(&inventory, &pod(&[("main", &[("rdma/hca", 1), ("nvidia.com/hostdev", 1)])]));
    assert_eq!(answer.not_judged, ["nvidia.com/hostdev", "rdma/hca"]);
    assert!(mixed(&answer).fits && mixed(&answer).room.is_none());
    let answer = judged(&inventory, &pod(&[("main", &[("nvidia.com/mg-1g.10gb", 1)])]));
    let told = obstacles(mixed(&answer));
    assert_eq!(told, ["nvidia.com/mg-1g.10gb is not offered here; did you mean nvidia.com/mig-1g.10gb?"]);
}

#[test]
fn everything_that_makes_pods_is_read_out_of_one_file() {
    let found = pods(
        "---
apiVersion: v1
kind: Service
metadata: {name: none-of-our-business}
spec: {ports: [{port: 80}]}
---
kind: Pod
metadata: {generateName: run-}
spec: {containers: [{name: a}]}
---
kind: StatefulSet
metadata: {name: db}
spec: {template: {spec: {containers: [{name: a}]}}}
---
kind: CronJob
metadata: {name: nightly}
spec: {jobTemplate: {spec: {template: {spec: {initContainers: null, containers: [{name: a, resources: null}]}}}}}
---
kind: List
items:
- {kind: Job, metadata: {name: once}, spec: {template: {spec: {containers: [{name: a}]}}}}
",
    );
    let names: Vec<_> = found.iter().map(|pod| pod.name.as_str()).collect();
    assert_eq!(names, ["Pod run-…", "StatefulSet db", "CronJob nightly", "Job once"]);
}

#[test]
fn a_file_without_pods_or_with_mistakes_says_where() {
    assert_eq!(refused(""), "pods.yaml: no Pod, or something that makes Pods: it is empty");
    assert_eq!(refused("kind: Service"), "pods.yaml: no Pod, or something that makes Pods: found Service");
    let told = refused("kind: Pod\nspec:\n  containers: 7\n");
    assert!(told.starts_with("pods.yaml:3:15: "), "{told}");
    assert_eq!(told.lines().count(), 1);
    let told = refused("kind: [Pod\n");
    assert!(told.starts_with("pods.yaml:"), "{told}");
    assert!(matches!(input::pods("x".into(), "\u{0}"), Err(InputError::Invalid { .. })));
}

#[test]
fn a_ready_pod_fits_where_it_was_printed() {
    let inventory = node([mig_gpu(0, &["3g.40gb", "1g.10gb+me", "2g.48gb-me"]), gpu(1)]);
    for strategy in STRATEGIES {
        let policy = OfferPolicy { strategy, ..OfferPolicy::default() };
        let explanation = crate::explain::explain(&inventory, &policy);
        let text = crate::explain::render(&explanation, Format::Pods).unwrap();
        let answers = judge(&inventory, &policy, &rules(), &pods(&text));
        assert_eq!(answers.misfits(strategy), [""; 0]);
    }
}

#[test]
fn answers_are_written_for_people() {
    let inventory = node([mig_gpu(0, &["3g.40gb", "1g.10gb", "1g.10gb"])]);
    let policy = OfferPolicy { strategy: MigStrategy::Mixed, ..OfferPolicy::default() };
    let pods = pods(&pod(&[("main", &[(SMALL, 2)])]));
    let answers = judge(&inventory, &policy, &rules(), &pods);
    assert_eq!(answers.misfits(MigStrategy::Single), ["Pod p"]);
    let text = render(&answers, Format::Text).unwrap();
    assert_eq!(
        text,
        "Pod p asks for 2 nvidia.com/mig-1g.10gb

none: does not fit
  nvidia.com/mig-1g.10gb is not offered here; the strategy mixed offers it

single: does not fit
  nvidia.com/mig-1g.10gb is not offered here; the strategy mixed offers it

mixed (configured): fits, once on an empty node
  container main: 2 nvidia.com/mig-1g.10gb
    0:1  1g.10gb  MIG-0-8-0
    0:2  1g.10gb  MIG-0-9-0
    NVIDIA_VISIBLE_DEVICES=MIG-0-8-0,MIG-0-9-0
    /dev/nvidia0 /dev/nvidia-caps/nvidia-cap75 /dev/nvidia-caps/nvidia-cap76
    /dev/nvidia-caps/nvidia-cap84 /dev/nvidia-caps/nvidia-cap85
  ! container main: a CUDA program uses one MIG device, and this container gets 2

Judged on a node where nothing is in use: what other pods hold is not considered, nor are CPU,
memory, taints and the like.
"
    );
    let json: serde_json::Value = serde_json::from_str(&render(&answers, Format::Json).unwrap()).unwrap();
    assert_eq!(json["pods"][0]["strategies"][2]["fits"], true);
    assert_eq!(json["pods"][0]["strategies"][0]["obstacles"][0]["code"], "not-offered");
}
