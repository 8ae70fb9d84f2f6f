//! The plugin only reads: whatever rights it needs to hear of errors, it calls no function of NVML that changes a GPU.
//!
//! - The methods of `nvml_wrapper` that do are disallowed in `clippy.toml`; here the list is compared with the crate's
//!   source, so that an update of the crate cannot bring one in unnoticed.
//! - Functions of the raw bindings are reached by name only, and here no source of ours has the name of one that changes
//!   something.
//! - No other crate that is linked knows of NVML.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use serde_json::Value;

/// Functions that change no GPU although their names do not say so. Whatever is neither here nor has `Get`, `Is` or
/// `Query` in its name counts as one that changes something.
const HARMLESS: [&str; 18] = [
    "nvmlInit",
    "nvmlInit_v2",
    "nvmlInitWithFlags",
    "nvmlShutdown",
    "nvmlErrorString",
    "nvmlDeviceOnSameBoard",
    "nvmlDeviceValidateInforom",
    "nvmlDeviceRegisterEvents",
    "nvmlEventSetCreate",
    "nvmlEventSetFree",
    "nvmlEventSetWait",
    "nvmlEventSetWait_v2",
    "nvmlSystemRegisterEvents",
    "nvmlSystemEventSetCreate",
    "nvmlSystemEventSetFree",
    "nvmlSystemEventSetWait",
    "nvmlGpmSampleAlloc",
    "nvmlGpmSampleFree",
];

const WRAPPER: &str = "nvml-wrapper";
const BINDINGS: &str = "nvml-wrapper-sys";
/// Makes conversions of enums for the wrapper at compile time, and calls nothing.
const WRAPPERS_MACRO: &str = "wrapcenum-derive";

fn only_reads(function: &str) -> bool {
    HARMLESS.contains(&function) || ["Get", "Is", "Query"].iter().any(|word| function.contains(word))
}

/// The folders of all packages that end up in the program.
fn linked() -> BTreeMap<String, PathBuf> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform"])
        .arg(format!("{}-unknown-linux-gnu", env::consts::ARCH))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let list = |value: &Value| value.as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let nodes = list(&metadata["resolve"]["nodes"]);
    let normal = |id: &str| {
        let node = nodes.iter().find(|node| node["id"] == id).unwrap();
        let is_normal = |dep: &Value| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
        list(&node["deps"]).into_iter().filter(is_normal).map(|dep| text(&dep["pkg"])).collect::<Vec<_>>()
    };
    let mut seen = BTreeSet::new();
    let mut todo = vec![text(&metadata["resolve"]["root"])];
    while let Some(id) = todo.pop() {
        if seen.insert(id.clone()) {
            todo.extend(normal(&id));
        }
    }
    let packages = list(&metadata["packages"]);
    let packages = packages.iter().filter(|package| seen.contains(package["id"].as_str().unwrap()));
    let folder =
        |package: &Value| PathBuf::from(text(&package["manifest_path"])).parent().unwrap().join("src");
    packages.map(|package| (text(&package["name"]), folder(package))).collect()
}

/// The Rust sources below a folder.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
            found.push((path, text));
        }
    }
    found
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// The functions of the raw bindings that change something.
fn changing(bindings: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(bindings.join("bindings.rs")).unwrap();
    let (_, library) = text.split_once("pub struct NvmlLib {").unwrap();
    let (fields, _) = library.split_once("\n}").unwrap();
    let names = fields.lines().filter_map(|line| line.strip_prefix("    pub nvml")?.split_once(':'));
    let all: Vec<_> = names.map(|(name, _)| format!("nvml{name}")).collect();
    assert!(all.len() > 300 && all.iter().any(|name| name == "nvmlDeviceGetCount_v2"), "{all:?}");
    all.into_iter().filter(|name| !only_reads(name)).collect()
}

/// A method of the wrapper: its type, its name, and the words of its body.
struct Method {
    of: String,
    name: String,
    public: bool,
    words: BTreeSet<String>,
    own_calls: BTreeSet<String>,
}

/// Relies on how rustfmt lays a crate out: blocks of methods at the margin, methods one step further in.
fn methods(text: &str) -> Vec<Method> {
    let mut methods: Vec<Method> = Vec::new();
    let mut of = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("impl") {
            let rest = rest.split_once("> ").filter(|_| rest.starts_with('<')).map_or(rest, |(_, rest)| rest);
            of = words(rest).next().map(str::to_owned);
        } else if line == "}" {
            of = None;
        }
        let Some(of) = &of else { continue };
        let line = line.strip_prefix("    ").unwrap_or(line);
        let head = line.split_once("fn ").filter(|(before, _)| {
            !line.starts_with([' ', '/', '#'])
                && before.split(' ').all(|word| {
                    word.is_empty() || word.starts_with("pub") || word == "unsafe" || word == "const"
                })
        });
        if let Some((before, rest)) = head {
            methods.push(Method {
                of: of.clone(),
                name: words(rest).next().unwrap().to_owned(),
                public: before.starts_with("pub "),
                words: BTreeSet::new(),
                own_calls: BTreeSet::new(),
            });
        } else if let Some(method) = methods.last_mut().filter(|method| method.of == *of)
            && !line.trim_start().starts_with("//")
            && !line.trim_start().starts_with("#[")
        {
            method.words.extend(words(line).map(str::to_owned));
            let calls = line.split("self.").skip(1).filter_map(|rest| rest.split_once('('));
            method.own_calls.extend(calls.map(|(name, _)| name.to_owned()));
        }
    }
    methods
}

#[test]
fn every_method_of_the_wrapper_that_changes_a_gpu_is_disallowed() {
    let linked = linked();
    let changing = changing(&linked[BINDINGS]);
    let all: Vec<_> = sources(&linked[WRAPPER]).iter().flat_map(|(_, text)| methods(text)).collect();
    let mut found: BTreeSet<(&str, &str)> = BTreeSet::new();
    loop {
        let before = found.len();
        for method in &all {
            let calls = |name: &String| found.contains(&(method.of.as_str(), name.as_str()));
            if !method.words.is_disjoint(&changing) || method.own_calls.iter().any(calls) {
                found.insert((&method.of, &method.name));
            }
        }
        if found.len() == before {
            break;
        }
    }
    for known in
        [("Device", "set_mig_mode"), ("Device", "remove"), ("NvLink", "unfreeze_utilization_counter")]
    {
        assert!(found.contains(&known), "{known:?} is not found: the crate is laid out in another way");
    }
    let list = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/clippy.toml")).unwrap();
    let public = all.iter().filter(|method| method.public && found.contains(&(&method.of, &method.name)));
    let missing: BTreeSet<_> = public
        .map(|method| format!("::{}::{}\"", method.of, method.name))
        .filter(|path| !list.contains(path))
        .collect();
    assert!(
        missing.is_empty(),
        "these change a GPU: add them to disallowed-methods in clippy.toml: {missing:#?}"
    );
}

#[test]
fn no_source_of_ours_names_a_function_that_changes_a_gpu() {
    let linked = linked();
    let changing = changing(&linked[BINDINGS]);
    assert!(changing.contains("nvmlGpuInstanceDestroy"));
    let own = sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")));
    assert!(own.iter().any(|(path, _)| path.ends_with("nvml/raw/mod.rs")));
    for (path, text) in own {
        // This file is the only one that has a reason to.
        if path.ends_with("nvml/tests/reads_only.rs") {
            continue;
        }
        let named: BTreeSet<_> = words(&text).filter(|word| changing.contains(*word)).collect();
        assert!(named.is_empty(), "{} names functions that change a GPU: {named:?}", path.display());
    }
}

#[test]
fn no_other_crate_that_is_linked_knows_of_nvml() {
    let linked = linked();
    assert!(linked.len() > 50 && linked.contains_key("tonic"), "{linked:?}");
    for (name, folder) in &linked {
        if [WRAPPER, BINDINGS, WRAPPERS_MACRO, env!("CARGO_PKG_NAME")].contains(&name.as_str()) {
            continue;
        }
        let own = sources(folder).into_iter();
        let with: Vec<_> =
            own.filter(|(_, text)| text.contains("nvml") || text.contains("libnvidia-ml")).collect();
        assert!(
            with.is_empty(),
            "{name} knows of NVML: {:?}",
            with.iter().map(|(path, _)| path).collect::<Vec<_>>()
        );
    }
}
