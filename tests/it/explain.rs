//! `explain`: what each strategy would make of a node, and whether a pod could run there.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use fake_nvml::{Description, Fault, Instance, Node, PlacementMap};
use tempfile::TempDir;

/// A node, and a folder for files beside it.
struct Bench {
    dir: TempDir,
    node: Node,
}

impl Bench {
    fn new(description: &Description) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::create(dir.path().join("node"), description).unwrap();
        Self { dir, node }
    }

    /// The command with this node's driver; `flags` belong to the whole program.
    fn run(&self, flags: &[&str], command: &[&str]) -> Output {
        let root = ["--driver-root-ctr-path", self.node.root().to_str().unwrap()];
        run(&[flags, &root, command].concat(), "")
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

fn run(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mig-device-plugin"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Who does not read it has closed it, which is no matter here.
    drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
    child.wait_with_output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    text
}

fn told(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Lines of the table of resources: name, then none, single, mixed.
fn counts(text: &str) -> Vec<Vec<&str>> {
    let lines = text.lines().skip_while(|line| !line.starts_with("RESOURCE")).skip(1);
    lines.take_while(|line| !line.is_empty()).map(|line| line.split_whitespace().collect()).collect()
}

#[test]
fn seven_slices_on_each_gpu() {
    let seven = ["1g.10gb"; 7];
    let mut description = Description::h100s(2).with_mig(0, &seven).with_mig(1, &seven);
    // Slices are listed by instance ID; on this chip those follow the MIG indices.
    description.gpu(1).placement_map = Some(PlacementMap::Straight);
    let bench = Bench::new(&description);
    let text = text(&bench.run(&["--mig-strategy=single"], &["explain"]));
    let expected = [vec!["nvidia.com/gpu", "2", "14", "-"], vec!["nvidia.com/mig-1g.10gb", "-", "-", "14"]];
    assert_eq!(counts(&text), expected);
    for words in [
        "0-1  NVIDIA H100 80GB HBM3  on   1g.10gb x7",
        "SINGLE (CONFIGURED)",
        "  nvidia.com/gpu  14  0:0-6 1:0-6",
        "  ! GPU 0 1: MIG mode is on",
        "A Pod for nvidia.com/gpu\n",
    ] {
        assert!(text.contains(words), "{words} in {text}");
    }
    assert!(!text.contains("Whatever the strategy"), "{text}");
}

#[test]
fn mixed_profiles_whole_gpus_and_a_gpu_that_waits() {
    let mut description = Description::h100s(4).with_mig(0, &["3g.40gb", "1g.10gb", "1g.10gb"]);
    description.set_mig(1, &[] as &[&str]);
    description.set_mig(2, &[Instance::new("2g.20gb").gi(3).at(0)]);
    description.gpus[3].mig_pending = Some(true);
    let bench = Bench::new(&description);
    let text = text(&bench.run(&[], &["explain"]));
    let expected = [
        vec!["nvidia.com/gpu", "4", "2", "1"],
        vec!["nvidia.com/mig-1g.10gb", "-", "-", "2"],
        vec!["nvidia.com/mig-2g.20gb", "-", "-", "1"],
        vec!["nvidia.com/mig-3g.40gb", "-", "-", "1"],
        vec!["withheld", "-", "3", "-"],
    ];
    assert_eq!(counts(&text), expected);
    for words in [
        "NONE (CONFIGURED)",
        "! GPU 1: MIG mode is on, and there are no slices",
        "! GPU 2: memory slices 2-7 of 0-7 are free",
        "! GPU 3: MIG mode will be on after the next GPU reset",
        "! slices have several profiles, and only 1g.10gb is offered, not 3g.40gb, 2g.20gb",
    ] {
        assert!(text.contains(words), "{words} in {text}");
    }
}

#[test]
fn a_lost_gpu_does_not_hide_the_others() {
    let mut description = Description::h100s(2).with_mig(1, &["7g.80gb"]);
    description.faults.push(Fault::error("*", "GPU_IS_LOST").on_gpu(0));
    let bench = Bench::new(&description);
    let text = text(&bench.run(&[], &["explain", "--strategy=mixed"]));
    assert!(text.contains("nvidia.com/mig-7g.80gb  1  1:0"), "{text}");
    assert!(text.contains("! GPU 0: left out: ") && text.contains("GPU_IS_LOST"), "{text}");
    assert!(!text.contains("single:") && !text.contains("RESOURCE"), "{text}");
}

#[test]
fn every_model_of_the_catalogue_can_be_explained() {
    for model in fake_nvml::catalogue::models() {
        let mut description = Description::of(&model.key, model.profiles.len().max(1));
        for (index, profile) in model.profiles.iter().enumerate() {
            description.set_mig(index, &[profile.name.as_str()]);
        }
        let bench = Bench::new(&description);
        let output = bench.run(&["--mig-strategy=mixed"], &["explain"]);
        let text = text(&output);
        for profile in &model.profiles {
            let name = format!("nvidia.com/mig-{}", profile.name.replace('+', "."));
            let line = counts(&text).into_iter().find(|line| line[0] == name);
            assert_eq!(line.unwrap()[3], "1", "{}: {name}", model.key);
        }
    }
}

#[test]
fn a_saved_node_is_explained_like_the_node_itself() {
    let bench = Bench::new(&Description::h100s(2).with_mig(0, &["3g.40gb", "2g.20gb", "1g.10gb+me"]));
    for output in ["text", "json", "yaml", "pods"] {
        let direct = bench.run(&["--mig-strategy=mixed"], &["explain", "-o", output]);
        assert!(direct.status.success() && !direct.stdout.is_empty(), "{direct:?}");
        for format in ["json", "yaml"] {
            let saved = text_of(&bench.run(&[], &["devices", "-o", format]));
            let explain = ["--mig-strategy=mixed", "explain", "-o", output, "--inventory"];
            let through = run(&[&explain[..], &["-"]].concat(), &saved);
            assert_eq!(through.stdout, direct.stdout, "{output} from {format}: {through:?}");
            let file = bench.file("saved", &saved);
            let from_file = run(&[&explain[..], &[path(&file)]].concat(), "");
            assert_eq!(from_file.stdout, direct.stdout);
        }
    }
}

fn text_of(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn programs_are_told_everything() {
    let bench = Bench::new(&Description::h100s(1).with_mig(0, &["1g.10gb"; 6]));
    let json = json(&bench.run(&["--mig-strategy=mixed"], &["explain", "-o", "json"]));
    let uuid = &bench.node.gpus().unwrap()[0].mig[0].uuid;
    assert_eq!(json["strategies"][2]["resources"][0]["devices"][0]["id"], uuid.as_str());
    assert_eq!(json["strategies"][2]["configured"], true);
    assert_eq!(json["warnings"][0]["code"], "free-memory-slices");
}

#[test]
fn files_that_cannot_be_used_are_told_with_the_place_and_code_64() {
    let bench = Bench::new(&Description::h100s(1));
    let refused = |arguments: &[&str], expected: &[&str]| {
        let output = bench.run(&[], arguments);
        assert_eq!(output.status.code(), Some(64), "{output:?}");
        let told = told(&output);
        assert_eq!(told.lines().count(), 1, "{told}");
        for words in expected {
            assert!(told.contains(words), "{words} in {told}");
        }
        assert!(output.stdout.is_empty());
    };
    let json = bench.file("node.json", "{\n  \"driverVersion\": 7\n}\n");
    refused(&["explain", "--inventory", path(&json)], &["node.json:2:", "invalid type", "devices -o json"]);
    let yaml = bench.file("node.yaml", "driverVersion: '1'\ngpus: many\n");
    refused(&["explain", "--inventory", path(&yaml)], &["node.yaml:2:7: "]);
    let pod = bench.file("pod.yaml", "kind: Pod\nspec:\n  containers: none\n");
    refused(&["explain", "--pod", path(&pod)], &["pod.yaml:3:15: "]);
    refused(&["explain", "--inventory", path(&pod)], &["pod.yaml:", "missing field"]);
    let service = bench.file("service.yaml", "kind: Service\nmetadata: {name: a}\n");
    refused(&["explain", "--pod", path(&service)], &["service.yaml: ", "found Service"]);
    refused(&["explain", "--pod", "/nonexistent/pod.yaml"], &["cannot read /nonexistent/pod.yaml"]);
    refused(&["explain", "--pod=-", "--inventory=-"], &["cannot both be read from standard input"]);
    refused(&["explain", "--pod", path(&pod), "-o", "pods"], &["-o pods"]);
}

#[test]
fn no_driver_is_code_1() {
    let output = run(&["--driver-root-ctr-path=/nonexistent", "explain"], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(told(&output).contains("libnvidia-ml.so.1"), "{output:?}");
}

const POD: &str = "
kind: Deployment
metadata: {name: web}
spec:
  template:
    spec:
      containers:
      - name: main
        resources: {limits: {nvidia.com/mig-1g.10gb: 2}}
";

#[test]
fn the_exit_code_says_whether_a_pod_fits_under_the_configured_strategy() {
    let bench = Bench::new(&Description::h100s(1).with_mig(0, &["3g.40gb", "1g.10gb", "1g.10gb"]));
    let file = bench.file("pod.yaml", POD);
    let explain = ["explain", "--pod", path(&file)];
    let fits = bench.run(&["--mig-strategy=mixed"], &explain);
    let text = text(&fits);
    let slices = &bench.node.gpus().unwrap()[0].mig;
    for slice in slices.iter().filter(|slice| slice.profile == "1g.10gb") {
        assert!(text.contains(&slice.uuid), "{text}");
    }
    assert!(text.contains("mixed (configured): fits, once on an empty node"), "{text}");
    assert!(text.contains("/dev/nvidia0") && text.contains("NVIDIA_VISIBLE_DEVICES=MIG-"), "{text}");

    let misfit = bench.run(&[], &explain);
    assert_eq!(misfit.status.code(), Some(1));
    assert_eq!(
        told(&misfit),
        "mig-device-plugin: under the strategy none this node cannot run Deployment web\n"
    );
    assert!(!misfit.stdout.is_empty());
    let asked = bench.run(&[], &[&explain[..], &["--strategy=mixed", "-o", "json"]].concat());
    assert_eq!(asked.status.code(), Some(0));
    assert_eq!(json(&asked)["pods"][0]["strategies"].as_array().unwrap().len(), 1);
}

#[test]
fn a_pod_from_standard_input_on_a_saved_node() {
    let bench = Bench::new(&Description::h100s(1).with_mig(0, &["2g.20gb"; 3]));
    let saved = bench.file("saved.json", &text_of(&bench.run(&[], &["devices", "-o", "json"])));
    let wanted = POD.replace("1g.10gb", "2g.10gb");
    let arguments = ["--mig-strategy=mixed", "explain", "--pod=-", "--inventory", path(&saved)];
    let output = run(&arguments, &wanted);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("did you mean nvidia.com/mig-2g.20gb?"), "{text}");
    assert!(run(&arguments, &POD.replace("1g.10gb", "2g.20gb")).status.success());
}

#[test]
fn ready_pods_fit() {
    let bench = Bench::new(&Description::h100s(2).with_mig(0, &["3g.40gb", "1g.10gb+me", "1g.20gb"]));
    for strategy in ["none", "single", "mixed"] {
        let pods = text_of(&bench.run(&[], &["explain", "-o", "pods", "--strategy", strategy]));
        let file = bench.file("pods.yaml", &pods);
        let output = bench.run(&[], &["explain", "--strategy", strategy, "--pod", path(&file)]);
        assert!(output.status.success(), "{output:?}");
    }
}
