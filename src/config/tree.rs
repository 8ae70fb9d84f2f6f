//! A YAML or JSON text as a small tree in which everything knows its place.
//!
//! Serde would stop at the first mistake; here a text is parsed as a whole, and only what cannot be parsed at all
//! ends the reading.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle};
use serde::Serialize;
use serde::ser::{SerializeMap, SerializeSeq, Serializer};

/// Everything in a file, aliases written out. A file with hundreds of resources has a few thousand.
const MAX_NODES: usize = 10_000;

/// Lists and maps in each other.
const MAX_DEPTH: usize = 32;

/// A place in the text. Both numbers begin at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct At {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// A value with its place.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Node {
    pub(super) at: At,
    pub(super) value: Value,
}

/// What stands there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Value {
    /// Nothing, or `null`.
    #[default]
    Null,
    /// A text; `plain`: without quotes, so that it may be a number or a truth value.
    Scalar { text: String, plain: bool },
    /// Values in their order.
    List(Vec<Node>),
    /// Keys and values in their order, the same key twice where the text has it twice.
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) at: At,
    pub(super) node: Node,
}

/// Why the text is no tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) at: At,
    pub(super) why: String,
}

impl Node {
    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    /// The items, where this is a list.
    pub(super) fn items(&self) -> &[Self] {
        if let Value::List(items) = &self.value { items } else { &[] }
    }

    /// The text, where this is one.
    pub(super) fn text(&self) -> Option<&str> {
        if let Value::Scalar { text, .. } = &self.value { Some(text) } else { None }
    }

    /// What stands there, for a sentence.
    pub(super) fn what(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Scalar { .. } => "a single value",
            Value::List(_) => "a list",
            Value::Map(_) => "a group of keys",
        }
    }

    fn size(&self) -> usize {
        1 + match &self.value {
            Value::Null | Value::Scalar { .. } => 0,
            Value::List(items) => items.iter().map(Self::size).sum(),
            Value::Map(entries) => entries.iter().map(|entry| entry.node.size()).sum(),
        }
    }
}

/// Reads the one document of `text`; `None` where there is nothing but blanks and comments.
pub(super) fn parse(text: &str) -> Result<Option<Node>, Broken> {
    let options = granit_parser::options! {
        emit_comments: false,
        block_nesting_limit: MAX_DEPTH,
        flow_nesting_limit: MAX_DEPTH,
    };
    let mut builder = Builder::default();
    for next in Parser::new_from_str_with_options(text, options) {
        let (event, span) = next.map_err(|error| syntax(text, &error))?;
        builder.take(event, At { line: span.start.line(), column: span.start.col() + 1 })?;
    }
    Ok(builder.root)
}

/// The parser's words, and the cause that people can see least.
fn syntax(text: &str, error: &granit_parser::ScanError) -> Broken {
    let at = At { line: error.marker().line(), column: error.marker().col() + 1 };
    let around = text.lines().skip(at.line.saturating_sub(2)).take(2);
    let is_blank = |c: &char| *c == ' ' || *c == '\t';
    let tab = around.into_iter().any(|line| line.chars().take_while(is_blank).any(|c| c == '\t'));
    let hint = if tab { "; the line begins with a tab, and YAML is indented with spaces" } else { "" };
    let kind = error.info();
    if kind.contains("recursion limit") {
        let why = format!("lists and groups of keys are more than {MAX_DEPTH} deep in each other");
        return Broken { at, why };
    }
    Broken { at, why: format!("this is neither YAML nor JSON: {kind}{hint}") }
}

/// Puts events together.
#[derive(Default)]
struct Builder {
    root: Option<Node>,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    documents: usize,
    nodes: usize,
}

/// A list or a map that has not ended.
struct Open {
    node: Node,
    anchor: usize,
    key: Option<(String, At)>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, at: At) -> Result<(), Broken> {
        let broken = |why: &str| Err(Broken { at, why: why.to_owned() });
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return broken("a second document begins here (---), and a config file has one");
                }
            }
            Event::Scalar(_, _, _, Some(tag)) if !tag.is_yaml_core_schema() => {
                return broken("tags (!…) have no meaning here");
            }
            Event::SequenceStart(_, _, Some(_)) | Event::MappingStart(_, _, Some(_)) => {
                return broken("tags (!…) have no meaning here");
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                let is_null = plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value =
                    if is_null { Value::Null } else { Value::Scalar { text: text.into_owned(), plain } };
                return self.add(Node { at, value }, anchor);
            }
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(node) => return self.add(node, 0),
                None => return broken("an alias stands inside of what it stands for"),
            },
            Event::SequenceStart(_, anchor, _) => {
                self.open.push(Open { node: Node { at, value: Value::List(Vec::new()) }, anchor, key: None });
            }
            Event::MappingStart(_, anchor, _) => {
                self.open.push(Open { node: Node { at, value: Value::Map(Vec::new()) }, anchor, key: None });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.open.pop() {
                    return self.add(open.node, open.anchor);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn add(&mut self, node: Node, anchor: usize) -> Result<(), Broken> {
        // An alias counts as what it stands for, before it is copied into anything larger. What is in a list or map is
        // counted again at each level, so the sum is allowed more than a whole tree.
        let size = if matches!(node.value, Value::List(_) | Value::Map(_)) { node.size() } else { 1 };
        self.nodes += size;
        if self.nodes > MAX_NODES * MAX_DEPTH || size > MAX_NODES {
            let why = format!("more than {MAX_NODES} values, aliases (*…) written out");
            return Err(Broken { at: node.at, why });
        }
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node).filter(|node| node.value != Value::Null);
            return Ok(());
        };
        match (&mut open.node.value, open.key.take()) {
            (Value::List(items), _) => items.push(node),
            (Value::Map(entries), Some((key, at))) => entries.push(Entry { key, at, node }),
            (_, _) => match node.value {
                Value::Scalar { text, .. } => open.key = Some((text, node.at)),
                Value::Null => open.key = Some((String::new(), node.at)),
                Value::List(_) | Value::Map(_) => {
                    let why = "a key is a single word (is this a template, {{ … }}, that was not rendered?)";
                    return Err(Broken { at: node.at, why: why.to_owned() });
                }
            },
        }
        Ok(())
    }
}

impl Serialize for Node {
    /// Texts without quotes that read as numbers or truth values are written as such.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.value {
            Value::Null => serializer.serialize_unit(),
            Value::Scalar { text, plain: true } => {
                if let Ok(number) = text.parse::<u64>() {
                    serializer.serialize_u64(number)
                } else if let Ok(truth) = text.parse::<bool>() {
                    serializer.serialize_bool(truth)
                } else {
                    serializer.serialize_str(text)
                }
            }
            Value::Scalar { text, plain: false } => serializer.serialize_str(text),
            Value::List(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                items.iter().try_for_each(|item| list.serialize_element(item))?;
                list.end()
            }
            Value::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                entries.iter().try_for_each(|entry| map.serialize_entry(&entry.key, &entry.node))?;
                map.end()
            }
        }
    }
}
