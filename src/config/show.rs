//! The merged configuration, for people and as a file.

use std::fmt::Write;

use super::Merged;
use super::kind::{Kind, boolean, parts};
use super::settings::{self, Setting};
use super::tree::{At, Entry, Node, Value};
use super::values::Values;

/// One line per setting: its name, its value, and where that comes from.
pub(super) fn table(merged: &Merged) -> String {
    let mut rows: Vec<[String; 3]> = vec![["SETTING".into(), "VALUE".into(), "FROM".into()]];
    for setting in settings::all().filter(|setting| !setting.flag.is_empty()) {
        let text = merged.values.text(setting.id());
        let origin = merged.values.given(setting.id()).map(|given| given.origin.name());
        let text = if text.is_empty() { "-" } else { text };
        rows.push([
            format!("--{}", setting.flag),
            text.to_owned(),
            origin.unwrap_or_else(|| "default".into()),
        ]);
    }
    for top in ["resources", "sharing"] {
        if let Some(Value::Map(entries)) = merged.file.root.get(top).map(|node| &node.value) {
            for entry in entries {
                flat(&format!("{top}.{}", entry.key), &entry.node, &file_name(merged), &mut rows);
            }
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (first, second) = (width(0), width(1).min(60));
    let mut table = String::new();
    for [setting, value, origin] in &rows {
        writeln!(table, "{setting:first$}  {value:second$}  {origin}").ok();
    }
    table
}

fn file_name(merged: &Merged) -> String {
    merged.values.text("config-file").to_owned()
}

/// A line per value below `node`.
fn flat(path: &str, node: &Node, file: &str, rows: &mut Vec<[String; 3]>) {
    match &node.value {
        Value::Null => {}
        Value::Scalar { text, .. } => {
            rows.push([path.to_owned(), text.clone(), format!("file {file}:{}", node.at.line)]);
        }
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                flat(&format!("{path}[{index}]"), item, file, rows);
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                flat(&format!("{path}.{}", entry.key), &entry.node, file, rows);
            }
        }
    }
}

/// The configuration as a file that says the same, as far as a file can.
pub(super) fn as_file(merged: &Merged) -> Node {
    let mut root = Node { value: Value::Map(Vec::new()), ..Node::default() };
    let version = settings::find("version").into_iter();
    let in_file = settings::all().filter(|setting| !setting.key.is_empty() && !setting.flag.is_empty());
    for setting in version.chain(in_file) {
        if let Some(value) = value(setting, &merged.values) {
            put(&mut root, setting.key, value);
        }
    }
    for top in ["resources", "sharing"] {
        if let Some(node) = merged.file.root.get(top).filter(|node| node.value != Value::Null) {
            put(&mut root, top, node.clone());
        }
    }
    root
}

fn value(setting: &Setting, values: &Values) -> Option<Node> {
    let text = values.text(setting.id());
    if text.is_empty() {
        return None;
    }
    let scalar = |text: &str| {
        let truth = boolean(text).filter(|_| matches!(setting.kind, Kind::Boolean));
        let is_number = matches!(setting.kind, Kind::Users | Kind::Channels);
        let plain = truth.is_some() || is_number;
        let text = truth.map_or_else(|| text.to_owned(), |truth| truth.to_string());
        Node { value: Value::Scalar { text, plain }, ..Node::default() }
    };
    Some(if setting.kind.is_list() {
        Node { value: Value::List(parts(text).map(scalar).collect()), ..Node::default() }
    } else {
        scalar(text)
    })
}

/// Puts `value` where `path` leads, making maps on the way.
fn put(node: &mut Node, path: &str, value: Node) {
    let Value::Map(entries) = &mut node.value else { return };
    let (key, rest) = path.split_once('.').map_or((path, None), |(key, rest)| (key, Some(rest)));
    let index = entries.iter().position(|entry| entry.key == key).unwrap_or_else(|| {
        let node = Node { value: Value::Map(Vec::new()), ..Node::default() };
        entries.push(Entry { key: key.to_owned(), at: At::default(), node });
        entries.len() - 1
    });
    if let Some(entry) = entries.get_mut(index) {
        match rest {
            Some(rest) => put(&mut entry.node, rest, value),
            None => entry.node = value,
        }
    }
}
