//! What a person types.

use std::path::Path;
use std::process::{Command, Output};

use fake_nvml::{Description, DriverState, Node};
use tempfile::TempDir;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mig-device-plugin")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn node(description: &Description) -> (TempDir, Node) {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::create(dir.path().join("node"), description).unwrap();
    (dir, node)
}

fn devices(root: &Path, more: &[&str]) -> Output {
    let flags = ["devices", "--driver-root-ctr-path", root.to_str().unwrap()];
    run(&[&flags[..], more].concat())
}

#[test]
fn devices_are_printed_for_people() {
    let (_dir, node) = node(&Description::h100s(2).with_mig(0, &["3g.40gb", "2g.20gb", "1g.10gb"]));
    let output = devices(node.root(), &[]);
    assert!(output.status.success(), "{output:?}");
    let table = text(&output.stdout);
    for slice in &node.gpus().unwrap()[0].mig {
        assert!(table.contains(&slice.uuid) && table.contains(&slice.profile), "{table}");
    }
    assert!(table.contains("0:1") && table.contains("Memory slices"), "{table}");
    assert_eq!(text(&output.stderr).lines().filter(|line| line.contains("ERROR")).count(), 0);
    let wide = text(&devices(node.root(), &["-o", "wide"]).stdout);
    let cap = node.gpus().unwrap()[0].mig[0].gi_minor;
    assert!(wide.contains(&format!("nvidia-cap{cap}")), "{wide}");
}

#[test]
fn devices_are_printed_for_programs() {
    let (_dir, node) = node(&Description::h100s(1).with_mig(0, &["1g.10gb"; 7]));
    let output = devices(node.root(), &["-o", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = json["gpus"][0]["migDevices"].as_array().unwrap();
    assert_eq!(found.len(), 7);
    let uuids: Vec<_> = found.iter().map(|slice| slice["uuid"].as_str().unwrap().to_owned()).collect();
    let expected: Vec<_> = node.gpus().unwrap()[0].mig.iter().map(|slice| slice.uuid.clone()).collect();
    assert_eq!(uuids, expected);
    let yaml = text(&devices(node.root(), &["-o", "yaml"]).stdout);
    assert!(expected.iter().all(|uuid| yaml.contains(uuid)), "{yaml}");
}

#[test]
fn devices_without_a_driver_say_so() {
    let output = run(&["devices", "--driver-root-ctr-path=/nonexistent"]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(told.contains("libnvidia-ml.so.1") && told.contains("/nonexistent/usr/lib64"), "{told}");
    assert_eq!(text(&output.stdout), "");

    let mut description = Description::h100s(1);
    description.driver = DriverState::VersionMismatch;
    let (_dir, node) = node(&description);
    let output = devices(node.root(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("VERSION_MISMATCH"), "{output:?}");
}

#[test]
fn mistakes_are_told_together_with_code_64() {
    let output = run(&["--mig-strategy=mixd", "--rescan-interval=soon", "--fail-on-init-error=maybe"]);
    assert_eq!(output.status.code(), Some(64));
    let told = text(&output.stderr);
    for words in [
        "--mig-strategy: \"mixd\"",
        "none, single, mixed",
        "--rescan-interval: \"soon\"",
        "--fail-on-init-error: \"maybe\"",
    ] {
        assert!(told.contains(words), "{words} in {told}");
    }
    let output = run(&["--no-such-flag"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(text(&output.stderr).contains("--no-such-flag"));
}

#[test]
fn a_mistake_in_the_environment_names_the_variable_and_an_empty_one_counts_as_none() {
    let plugin = || Command::new(env!("CARGO_BIN_EXE_mig-device-plugin"));
    let output = plugin().env("MIG_STRATEGY", "all").output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(text(&output.stderr).contains("MIG_STRATEGY in the environment: \"all\""), "{output:?}");
    let output = plugin()
        .args(["--driver-root-ctr-path=/nonexistent", "--kubelet-socket=/nonexistent/kubelet.sock"])
        .env("MIG_STRATEGY", "")
        .env("PASS_DEVICE_SPECS", "")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "no driver, but no mistake: {output:?}");
}

#[test]
fn variables_are_what_flags_fall_back_to() {
    let (_dir, node) = node(&Description::h100s(1));
    for variable in ["DRIVER_ROOT_CTR_PATH", "CONTAINER_DRIVER_ROOT"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mig-device-plugin"));
        let output = command.arg("devices").env(variable, node.root()).output().unwrap();
        assert!(output.status.success(), "{variable}: {output:?}");
    }
}

#[test]
fn help_and_version_are_no_errors() {
    let help = run(&["--help"]);
    assert!(help.status.success());
    let told = text(&help.stdout);
    for words in ["--mig-strategy", "MIG_STRATEGY", "--kubelet-socket", "devices", "SIGHUP"] {
        assert!(told.contains(words), "{words} in {told}");
    }
    let version = run(&["--version"]);
    assert!(version.status.success());
    assert!(text(&version.stdout).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn json_logs_are_json() {
    let output = run(&[
        "--log-format=json",
        "--driver-root-ctr-path=/nonexistent",
        "--kubelet-socket=/nonexistent/k.sock",
    ]);
    let told = text(&output.stderr);
    assert!(!told.is_empty());
    for line in told.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["level"].is_string() && line["timestamp"].is_string(), "{line}");
    }
}
