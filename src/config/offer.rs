//! `resources` and `sharing` of the config file: names that lead to each other, checked together.

use std::collections::BTreeMap;

use super::file::Reader;
use super::kind::{boolean, name};
use super::tree::{At, Node, Value};
use super::values::shown;
use crate::resource::ResourceName;
use crate::resource::policy::{DeviceRef, DeviceSelection, Pattern, SharedResource, TimeSlicing};

/// What NVIDIA's plugin adds to the name of a resource that is shared, under `renameByDefault`.
const SHARED: &str = ".shared";

/// What only a file can say about what is offered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Offer {
    pub(super) gpus: Vec<Pattern>,
    pub(super) mig: Vec<Pattern>,
    pub(super) time_slicing: TimeSlicing,
}

/// Reads what the table's own checks have left: the rules between values. A value that broke a rule of its own has
/// been told already and is passed over.
pub(super) fn read(reader: &mut Reader<'_>, root: &Node) -> Offer {
    let resources = root.get("resources").cloned().unwrap_or_default();
    Offer {
        gpus: patterns(reader, "resources.gpus", resources.get("gpus")),
        mig: patterns(reader, "resources.mig", resources.get("mig")),
        time_slicing: root
            .get("sharing")
            .and_then(|sharing| sharing.get("timeSlicing"))
            .filter(|slicing| matches!(slicing.value, Value::Map(_)))
            .map(|slicing| time_slicing(reader, &resources, slicing))
            .unwrap_or_default(),
    }
}

fn patterns(reader: &mut Reader<'_>, path: &str, list: Option<&Node>) -> Vec<Pattern> {
    let mut patterns = Vec::new();
    let mut seen: Vec<(&str, At)> = Vec::new();
    for (index, item) in list.map_or(&[][..], Node::items).iter().enumerate() {
        let path = format!("{path}[{index}]");
        let pattern = required(reader, &path, item, "pattern").and_then(Node::text);
        let name = required(reader, &path, item, "name").and_then(valid_name);
        let (Some(pattern), Some(name)) = (pattern, name) else { continue };
        if let Some((_, first)) = seen.iter().find(|(other, _)| *other == pattern) {
            let why =
                format!("the pattern {} is here twice; line {} has it first", shown(pattern), first.line);
            reader.mistake(item.at, &path, &why);
            continue;
        }
        seen.push((pattern, item.at));
        patterns.push(Pattern { pattern: pattern.to_owned(), name });
    }
    patterns
}

fn time_slicing(reader: &mut Reader<'_>, resources: &Node, slicing: &Node) -> TimeSlicing {
    const PATH: &str = "sharing.timeSlicing";
    let is = |key| slicing.get(key).and_then(Node::text).and_then(boolean) == Some(true);
    let mut read = TimeSlicing {
        rename_by_default: is("renameByDefault"),
        fail_requests_greater_than_one: is("failRequestsGreaterThanOne"),
        resources: Vec::new(),
    };
    let list = required(reader, PATH, slicing, "resources");
    if let Some(list) = list.filter(|list| list.value == Value::List(Vec::new())) {
        reader.mistake(list.at, "sharing.timeSlicing.resources", "the list is empty, so nothing is shared");
    }
    let mut names = Names::new(resources);
    for (index, item) in list.map_or(&[][..], Node::items).iter().enumerate() {
        let path = format!("{PATH}.resources[{index}]");
        let name = required(reader, &path, item, "name").and_then(|node| Some((valid_name(node)?, node.at)));
        let replicas = required(reader, &path, item, "replicas").and_then(|node| node.text()?.parse().ok());
        let rename = item.get("rename").and_then(|node| Some((valid_name(node)?, node.at)));
        let devices = item.get("devices").map(|node| devices(reader, &path, node)).unwrap_or_default();
        let Some((name, at)) = name else { continue };
        names.share(reader, &path, &name, at);
        match &rename {
            Some((rename, at)) => names.rename(reader, &format!("{path}.rename"), &name, rename, *at),
            None if read.rename_by_default => match format!("{name}{SHARED}").parse::<ResourceName>() {
                Ok(rename) => names.rename(reader, &format!("{path}.name"), &name, &rename, at),
                Err(error) => {
                    let why = format!("renameByDefault makes it a name that cannot be used: {error}");
                    reader.mistake(at, &format!("{path}.name"), &why);
                }
            },
            None => {}
        }
        if let Some(replicas) = replicas {
            let rename = rename.map(|(rename, _)| rename);
            read.resources.push(SharedResource { name, rename, devices, replicas });
        }
    }
    names.finish(reader);
    read
}

/// Which names stand for what, so that no two things end up under one name.
struct Names {
    /// Names that devices have before they are shared.
    own: BTreeMap<ResourceName, At>,
    /// Names of shared resources.
    shared: BTreeMap<ResourceName, At>,
    /// New names, with where they are and what they stand for.
    renames: Vec<(ResourceName, String, At, ResourceName)>,
}

impl Names {
    fn new(resources: &Node) -> Self {
        let lists = ["gpus", "mig"].into_iter().filter_map(|key| resources.get(key));
        let names = lists.flat_map(Node::items).filter_map(|item| item.get("name"));
        let own = names.filter_map(|node| Some((valid_name(node)?, node.at))).collect();
        Self { own, shared: BTreeMap::new(), renames: Vec::new() }
    }

    fn share(&mut self, reader: &mut Reader<'_>, path: &str, name: &ResourceName, at: At) {
        if let Some(first) = self.shared.get(name) {
            let why = format!("{name} is shared twice; line {} has it first", first.line);
            reader.mistake(at, &format!("{path}.name"), &why);
        } else {
            self.shared.insert(name.clone(), at);
        }
    }

    fn rename(
        &mut self,
        reader: &mut Reader<'_>,
        path: &str,
        old: &ResourceName,
        new: &ResourceName,
        at: At,
    ) {
        if let Some((_, _, first, other)) =
            self.renames.iter().find(|(name, _, _, old_too)| name == new && old_too != old)
        {
            let why = format!("{new} would stand for {old} and, by line {}, for {other}", first.line);
            reader.mistake(at, path, &why);
        } else {
            self.renames.push((new.clone(), path.to_owned(), at, old.clone()));
        }
    }

    fn finish(self, reader: &mut Reader<'_>) {
        for (new, path, at, old) in self.renames.into_iter().filter(|(new, _, _, old)| new != old) {
            let taken = self.shared.get(&new).or_else(|| self.own.get(&new));
            if let Some(first) = taken {
                let why = format!("{new} would stand for {old} and for what line {} calls so", first.line);
                reader.mistake(at, &path, &why);
            }
        }
    }
}

/// The value of a key that has to be there.
fn required<'a>(reader: &mut Reader<'_>, path: &str, node: &'a Node, key: &str) -> Option<&'a Node> {
    if !matches!(node.value, Value::Map(_) | Value::Null) {
        return None;
    }
    let found = node.get(key).filter(|value| value.value != Value::Null);
    if found.is_none() {
        reader.mistake(node.at, path, &format!("the key {key} is missing"));
    }
    found
}

fn valid_name(node: &Node) -> Option<ResourceName> {
    name(node.text()?).ok()
}

fn devices(reader: &mut Reader<'_>, path: &str, node: &Node) -> DeviceSelection {
    match &node.value {
        Value::Scalar { text, .. } => text.parse().map_or(DeviceSelection::All, DeviceSelection::Count),
        Value::List(items) if items.is_empty() => {
            reader.mistake(node.at, &format!("{path}.devices"), "the list is empty, so nothing is shared");
            DeviceSelection::All
        }
        Value::List(items) => {
            let mut list = Vec::new();
            for (index, item) in items.iter().enumerate() {
                let path = format!("{path}.devices[{index}]");
                match item.text().map(str::parse::<DeviceRef>) {
                    Some(Ok(device)) if list.contains(&device) => {
                        reader.mistake(item.at, &path, &format!("{device} is here twice"));
                    }
                    Some(Ok(device)) => list.push(device),
                    Some(Err(error)) => reader.mistake(item.at, &path, &error.to_string()),
                    None => reader.mistake(
                        item.at,
                        &path,
                        &format!("{} stands here, and a device is needed", item.what()),
                    ),
                }
            }
            DeviceSelection::List(list)
        }
        Value::Null | Value::Map(_) => DeviceSelection::All,
    }
}
