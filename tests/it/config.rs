//! The command `config`, and what a config file does to the command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/config-files");

fn plugin(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mig-device-plugin"));
    command.args(arguments);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn told(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}

/// The config files in a folder of the test data.
fn files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(Path::new(FILES).join(folder)).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_none_or(|extension| extension != "expected"));
    files.sort();
    files
}

/// What is printed for each file is what stands beside it.
fn check_all(folder: &str, code: i32) -> usize {
    let files = files(folder);
    for file in &files {
        let name = file.file_name().unwrap().to_str().unwrap();
        let mut command = plugin(&["config", "check", name]);
        let output = command.current_dir(file.parent().unwrap()).output().unwrap();
        let expected = fs::read_to_string(file.with_file_name(format!("{name}.expected"))).unwrap();
        assert_eq!(text(&output.stdout), expected, "{name}");
        assert_eq!(text(&output.stderr), "", "{name}");
        assert_eq!(output.status.code(), Some(code), "{name}");
    }
    files.len()
}

#[test]
fn every_broken_file_has_a_precise_message() {
    let count = check_all("broken", 64);
    assert!(count >= 30, "{count}");
}

#[test]
fn every_good_file_is_ok() {
    assert!(check_all("good", 0) > 5);
}

#[test]
fn a_file_of_another_kind_is_told_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let large = "version: v1 # ".to_owned() + &"x".repeat(1 << 20);
    let line = "version: ".to_owned() + &"x".repeat((1 << 20) - 100);
    let key = "x".repeat((1 << 20) - 100) + ": 1";
    let rows = "- x\n".repeat((1 << 18) - 10);
    let wanted = ["larger than 1048576 bytes", "it is v1", "config.yaml:1:", "more than 10000 values"];
    for (content, words) in [large, line, key, rows].iter().zip(wanted) {
        let path = dir.path().join("config.yaml");
        fs::write(&path, content).unwrap();
        let output = plugin(&["config", "check", path.to_str().unwrap()]).output().unwrap();
        assert_eq!(output.status.code(), Some(64));
        let told = told(&output);
        assert!(told.contains(words) && told.lines().count() == 1 && told.len() < 600, "{words}: {told}");
    }
    for path in [dir.path(), &dir.path().join("absent.yaml")] {
        let output = plugin(&["config", "check", path.to_str().unwrap()]).output().unwrap();
        assert_eq!(output.status.code(), Some(64));
        assert!(told(&output).contains("cannot be read"), "{output:?}");
    }
}

#[test]
fn several_files_are_checked_at_once_and_one_that_is_broken_counts() {
    let paths = [files("good").remove(0), files("broken").remove(0)];
    let [good, broken] = paths.each_ref().map(|path| path.to_str().unwrap());
    let output = plugin(&["config", "check", good, broken]).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(told(&output).contains(&format!("{good}: ok\n{broken}:")), "{output:?}");
}

#[test]
fn unknown_keys_are_warnings_for_those_who_want_that() {
    let file = format!("{FILES}/broken/unknown-key.yaml");
    let output = plugin(&["config", "check", "--lenient-config", &file]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(told(&output).contains("did you mean migStrategy?) (warning)"), "{output:?}");
}

#[test]
fn the_flag_wins_over_the_environment_over_the_file_over_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    let content = "version: v1\nflags:\n  migStrategy: mixed\n  failOnInitError: false\n  gdsEnabled: true\n";
    fs::write(&file, content).unwrap();
    let mut command = plugin(&["--mig-strategy=single", "config", "show"]);
    command.env("CONFIG_FILE", &file).env("MIG_STRATEGY", "none").env("FAIL_ON_INIT_ERROR", "true");
    let output = command.env("GDS_ENABLED", "").output().unwrap();
    let shown = text(&output.stdout);
    let row = |flag: &str| {
        let line = shown.lines().find(|line| line.split_whitespace().next() == Some(flag)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(row("--mig-strategy"), "--mig-strategy single flag --mig-strategy");
    assert_eq!(row("--fail-on-init-error"), "--fail-on-init-error true environment FAIL_ON_INIT_ERROR");
    assert_eq!(row("--gds-enabled"), format!("--gds-enabled true file {}:5", file.display()));
    assert_eq!(row("--removal-grace"), "--removal-grace 5s default");
    assert_eq!(row("--nvidia-dev-root"), "--nvidia-dev-root / same as --nvidia-driver-root");
}

#[test]
fn lists_are_repeated_or_have_commas_and_nvidias_other_names_work() {
    let flags = ["--device-list-strategy=envvar", "--device-list-strategy", "cdi-cri,volume-mounts"];
    let others = ["--nvidia-ctk-path=/x", "--driver-root=/y", "--container-driver-root=/z", "config", "show"];
    let output = plugin(&[&flags[..], &others[..]].concat()).output().unwrap();
    let shown = text(&output.stdout);
    for words in ["envvar,cdi-cri,volume-mounts", " /x ", " /y ", " /z "] {
        assert!(shown.contains(words), "{words} in {shown}");
    }
    let output = plugin(&["config", "show"]).env("NVIDIA_CTK_PATH", "/hook").output().unwrap();
    assert!(text(&output.stdout).contains("environment NVIDIA_CTK_PATH"), "{output:?}");
}

#[test]
fn what_is_shown_as_a_file_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for file in files("good") {
        let show = |file: &Path, format: &str| {
            let file = file.to_str().unwrap();
            let output = plugin(&["config", "show", "-o", format, "--config-file", file]).output().unwrap();
            assert!(output.status.success(), "{file}: {output:?}");
            text(&output.stdout)
        };
        for format in ["yaml", "json"] {
            let shown = show(&file, format);
            let again = dir.path().join("config");
            fs::write(&again, &shown).unwrap();
            assert_eq!(show(&again, format), shown, "{}", file.display());
        }
    }
}

#[test]
fn mistakes_of_all_layers_are_told_together_at_start() {
    let file = format!("{FILES}/broken/bad-choice.yaml");
    let mut command = plugin(&["--device-id-strategy=name", "--config-file", &file]);
    let output = command.env("GDS_ENABLED", "perhaps").output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let told = told(&output);
    for words in [
        "--device-id-strategy: \"name\"",
        "GDS_ENABLED in the environment: \"perhaps\"",
        "bad-choice.yaml:3:16: flags.migStrategy: \"mixd\"",
        "bad-choice.yaml:6:23: flags.plugin.deviceIDStrategy: \"number\"",
    ] {
        assert!(told.contains(words), "{words} in {told}");
    }
}

#[test]
fn the_reference_page_is_the_one_in_docs_and_names_every_flag() {
    let page = text(&plugin(&["config", "reference"]).output().unwrap().stdout);
    let written = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md")).unwrap();
    assert_eq!(page, written);
    let help = text(&plugin(&["--help"]).output().unwrap().stdout);
    let flags: Vec<_> = help.split_whitespace().filter(|word| word.starts_with("--")).collect();
    assert!(flags.len() > 30, "{help}");
    for flag in flags {
        let flag = flag.split(['[', '=', ',', ';', '.']).next().unwrap();
        assert!(page.contains(&format!("`{flag}`")) || ["--help", "--version"].contains(&flag), "{flag}");
    }
}
