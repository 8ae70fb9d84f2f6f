//! The config file: from its bytes to values, each with its place, and all that is wrong with it.

use std::fmt::Write;
use std::fs;
use std::io::Read;
use std::path::Path;

use super::kind::Kind;
use super::near::near;
use super::offer::{self, Offer};
use super::settings::{self, Setting};
use super::tree::{self, At, Entry, Node, Value};
use super::values::{Given, Origin, Values, shown};
use super::watch::Seen;

/// A larger file is none of ours.
pub const MAX_BYTES: usize = 1 << 20;

/// What a file says.
#[derive(Debug, Clone, Default)]
pub(super) struct File {
    /// What flags could say too.
    pub(super) values: Values,
    /// What only a file can say.
    pub(super) offer: Offer,
    /// All of it.
    pub(super) root: Node,
    /// What is wrong with it, a sentence each.
    pub(super) mistakes: Vec<String>,
    /// What is dubious about it.
    pub(super) warnings: Vec<String>,
    /// Which content that was.
    pub(super) seen: Option<Seen>,
}

impl File {
    /// Reads the file at `path`.
    pub(super) fn read(path: &Path, lenient: bool) -> Self {
        let name = path.display().to_string();
        let bytes = bytes(path);
        let seen = Some(Seen::new(path, bytes.as_deref().ok()));
        match bytes {
            Ok(bytes) => Self { seen, ..Self::parse(&name, &bytes, lenient) },
            Err(error) => {
                Self { mistakes: vec![format!("{name}: cannot be read: {error}")], seen, ..Self::default() }
            }
        }
    }

    /// Reads `bytes`, which came from a file with this name. `lenient`: keys that are not known are warnings.
    pub(super) fn parse(name: &str, bytes: &[u8], lenient: bool) -> Self {
        let mut reader = Reader { name, lenient, file: Self::default(), found: Vec::new() };
        match text(bytes) {
            Ok(text) => match tree::parse(text) {
                Ok(Some(root)) => reader.read_root(root),
                Ok(None) => reader.mistake(
                    At { line: 1, column: 1 },
                    "",
                    "the file is empty; it begins with version: v1",
                ),
                Err(broken) => reader.mistake(broken.at, "", &broken.why),
            },
            Err((at, why)) => reader.mistake(at, "", &why),
        }
        reader.found.sort_by_key(|(at, _)| (at.line, at.column));
        let mistakes = reader.found.into_iter().map(|(_, sentence)| sentence).collect();
        Self { mistakes, ..reader.file }
    }
}

/// At most one byte more than is allowed.
pub(super) fn bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    // Before it is opened: opening a pipe waits for somebody to write into it.
    if !fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is no file"));
    }
    let file = fs::File::open(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The bytes as text, if a person can have meant them as one.
fn text(bytes: &[u8]) -> Result<&str, (At, String)> {
    if bytes.len() > MAX_BYTES {
        return Err((
            At { line: 1, column: 1 },
            format!("the file is larger than {MAX_BYTES} bytes, so this is no config file"),
        ));
    }
    let (valid, wrong) = match std::str::from_utf8(bytes) {
        Ok(text) => (text, None),
        Err(error) => {
            let (valid, rest) = bytes.split_at(error.valid_up_to());
            (std::str::from_utf8(valid).unwrap_or_default(), rest.first().copied())
        }
    };
    let is_wrong = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    if let Some(control) = valid.find(is_wrong) {
        let character = valid[control..].chars().next().unwrap_or_default();
        let why = format!("the character {character:?} (U+{:04X}) cannot be here", u32::from(character));
        return Err((end(&valid[..control]), why));
    }
    match wrong {
        None => Ok(valid),
        Some(byte) => Err((end(valid), format!("the byte 0x{byte:02X} is no UTF-8"))),
    }
}

/// The place after `text`.
fn end(text: &str) -> At {
    let last = text.rsplit('\n').next().unwrap_or_default();
    At { line: text.matches('\n').count() + 1, column: last.chars().count() + 1 }
}

/// Compares a tree with the table.
pub(super) struct Reader<'a> {
    name: &'a str,
    lenient: bool,
    file: File,
    /// Mistakes by their place.
    found: Vec<(At, String)>,
}

/// What the table says about a place.
enum Place {
    Leaf(&'static Setting),
    Keys,
    Items,
    Unknown,
}

impl Place {
    /// `schema` is the path with `[]` for each list.
    fn of(schema: &str) -> Self {
        let below = |after: &str| {
            let start = format!("{schema}{after}");
            settings::all().any(|setting| setting.key.starts_with(&start))
        };
        if schema.is_empty() {
            return Self::Keys;
        }
        match settings::all().find(|setting| setting.key == schema) {
            Some(setting) => Self::Leaf(setting),
            None if below(".") => Self::Keys,
            None if below("[].") => Self::Items,
            None => Self::Unknown,
        }
    }
}

impl Reader<'_> {
    /// Notes a mistake.
    pub(super) fn mistake(&mut self, at: At, path: &str, why: &str) {
        let sentence = self.sentence(at, path, why);
        self.found.push((at, sentence));
    }

    fn sentence(&self, At { line, column }: At, path: &str, why: &str) -> String {
        let separator = if path.is_empty() { "" } else { ": " };
        format!("{}:{line}:{column}: {path}{separator}{why}", self.name)
    }

    fn read_root(&mut self, mut root: Node) {
        self.read("", "", &mut root);
        if matches!(root.value, Value::Map(_))
            && root.get("version").is_none_or(|node| node.value == Value::Null)
        {
            let why = "there is no version, and v1 is meant, as NVIDIA's plugin does; write version: v1";
            let warning = self.sentence(root.at, "", why);
            self.file.warnings.push(warning);
        }
        let offer = offer::read(self, &root);
        self.file.offer = offer;
        self.file.root = root;
    }

    /// `schema` is the path in the table, `path` the one for people, which counts the items of lists.
    fn read(&mut self, schema: &str, path: &str, node: &mut Node) {
        let (at, what) = (node.at, node.what());
        match (Place::of(schema), &mut node.value) {
            // A key without a value is a key that was not given, as in NVIDIA's plugin.
            (_, Value::Null) => {}
            (Place::Leaf(setting), value) => {
                if let (Kind::Boolean, Value::Scalar { text, plain: true }) = (setting.kind, value) {
                    *text = truth(text);
                }
                self.read_leaf(setting, path, node);
            }
            (Place::Keys, Value::Map(entries)) => self.read_keys(schema, path, entries),
            (Place::Items, Value::List(items)) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.read(&format!("{schema}[]"), &format!("{path}[{index}]"), item);
                }
            }
            (Place::Items, _) => self.mistake(at, path, &format!("{what} stands here, and a list is needed")),
            (Place::Keys | Place::Unknown, _) => {
                let keys = below(schema).collect::<Vec<_>>().join(", ");
                self.mistake(at, path, &format!("{what} stands here, and these keys are known: {keys}"));
            }
        }
    }

    fn read_keys(&mut self, schema: &str, path: &str, entries: &mut [Entry]) {
        let mut seen: Vec<(String, At)> = Vec::new();
        for entry in entries {
            let known = below(schema).find(|key| *key == entry.key);
            let known = known.or_else(|| below(schema).find(|key| key.eq_ignore_ascii_case(&entry.key)));
            let full = join(path, &clipped(&entry.key));
            if let Some((_, first)) = seen.iter().find(|(key, _)| *key == known.unwrap_or(&entry.key)) {
                let why = format!("this key is here twice; it was first on line {}", first.line);
                self.mistake(entry.at, &full, &why);
                continue;
            }
            seen.push((known.unwrap_or(&entry.key).to_owned(), entry.at));
            match known {
                Some(known) => {
                    if known != entry.key {
                        let warning = self.sentence(entry.at, &full, &format!("this key is spelled {known}"));
                        self.file.warnings.push(warning);
                        known.clone_into(&mut entry.key);
                    }
                    self.read(&join(schema, known), &join(path, known), &mut entry.node);
                }
                None => self.unknown(schema, &full, entry),
            }
        }
    }

    fn unknown(&mut self, schema: &str, full: &str, entry: &Entry) {
        let mut why = "this key is not known".to_owned();
        if let Some(sibling) = near(&entry.key, below(schema)) {
            write!(why, " (did you mean {sibling}?)").ok();
        } else if let Some(elsewhere) = elsewhere(&entry.key) {
            write!(why, " here (did you mean {elsewhere}?)").ok();
        } else {
            write!(why, "; known here: {}", below(schema).collect::<Vec<_>>().join(", ")).ok();
        }
        let sentence = self.sentence(entry.at, full, &why);
        if self.lenient {
            self.file.warnings.push(sentence);
        } else {
            self.found.push((entry.at, sentence));
        }
    }

    fn read_leaf(&mut self, setting: &'static Setting, path: &str, node: &Node) {
        if let Kind::Refused(why) = setting.kind {
            return self.mistake(node.at, path, why);
        }
        if let Kind::Devices = setting.kind
            && matches!(node.value, Value::List(_))
        {
            // Read as what it is, in `offer`.
            return;
        }
        let text = match &node.value {
            Value::Scalar { text, .. } => text.clone(),
            Value::List(items) if setting.kind.is_list() => {
                let texts: Option<Vec<_>> = items.iter().map(Node::text).collect();
                match texts {
                    Some(texts) => {
                        self.check_items(setting, path, items);
                        texts.join(",")
                    }
                    None => return self.wrong_shape(setting, path, node, "a list of more than words"),
                }
            }
            _ => return self.wrong_shape(setting, path, node, node.what()),
        };
        let whole = !matches!(node.value, Value::List(_));
        let empty = text.is_empty() && setting.kind.may_be_empty();
        if whole
            && !empty
            && let Err(why) = setting.kind.check(&text)
        {
            return self.mistake(node.at, path, &format!("{} cannot be used: {why}", shown(&text)));
        }
        if !setting.key.contains("[]") {
            let (At { line, column }, key) = (node.at, path.to_owned());
            let origin = Origin::File { file: self.name.to_owned(), line, column, key };
            self.file.values.set(setting, Given { text, origin });
        }
    }

    /// Each item of a list has a place of its own.
    fn check_items(&mut self, setting: &Setting, path: &str, items: &[Node]) {
        for (index, item) in items.iter().enumerate() {
            let text = item.text().unwrap_or_default();
            let checked = if text.is_empty() {
                Err(format!("it is {}", setting.kind.rule()))
            } else {
                setting.kind.check(text)
            };
            if let Err(why) = checked {
                let path = format!("{path}[{index}]");
                self.mistake(item.at, &path, &format!("{} cannot be used: {why}", shown(text)));
            }
        }
    }

    fn wrong_shape(&mut self, setting: &Setting, path: &str, node: &Node, what: &str) {
        let rule = setting.kind.rule();
        self.mistake(node.at, path, &format!("{what} stands here, and this is needed: {rule}"));
    }
}

/// NVIDIA's plugin reads the file as YAML 1.1, where some more words are truth values if they have no quotes.
fn truth(text: &str) -> String {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "on" | "y" => "true".to_owned(),
        "no" | "off" | "n" => "false".to_owned(),
        _ => text.to_owned(),
    }
}

/// The keys that may stand directly below a place.
fn below(schema: &str) -> impl Iterator<Item = &'static str> {
    let start = if schema.is_empty() { String::new() } else { format!("{schema}.") };
    let mut last = "";
    let next = move |setting: &'static Setting| {
        let rest = setting.key.strip_prefix(&start)?;
        rest.split(['.', '[']).next().filter(|key| !key.is_empty())
    };
    let mut keys: Vec<_> = settings::all().filter_map(next).collect();
    keys.sort_unstable();
    keys.retain(|key| std::mem::replace(&mut last, key) != *key);
    keys.into_iter()
}

/// Where a key stands that was written in another place, or as its flag or variable is.
fn elsewhere(key: &str) -> Option<&'static str> {
    let flags = |setting: &Setting| setting.aliases.contains(&key) || setting.variables.contains(&key);
    let last = |setting: &Setting| setting.key.rsplit('.').next() == Some(key);
    let mut named = settings::all().filter(|setting| !setting.key.is_empty());
    named.find(|setting| last(setting) || setting.flag == key || flags(setting)).map(|setting| setting.key)
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// A key as it can stand in a message.
fn clipped(key: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "_-./".contains(c);
    if !key.is_empty() && key.len() < 60 && key.chars().all(is_plain) { key.to_owned() } else { shown(key) }
}
