//! Trees that look like Compose files, grown from the key table by what bytes say, and written as YAML.

use arbitrary::{Result, Unstructured};
use palisade_core::compose::keys::{Key, Kind, Pairs, SERVICE, Section, Shape, Short, TABLE, TOP};

/// A value of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tree {
    /// No value.
    Null,
    /// A plain scalar, as it is written.
    Plain(&'static str),
    /// Quoted text.
    Text(String),
    /// A list.
    List(Vec<Tree>),
    /// A mapping; no key stands twice.
    Map(Vec<(String, Tree)>),
    /// A value behind `!reset` or `!override`.
    Tagged(&'static str, Box<Tree>),
}

/// Names that services, networks and everything else have: few, so that references meet something.
const NAMES: &[&str] = &["a", "b", "db", "default", "c-1"];
const TEXTS: &[&str] = &[
    "a",
    "b",
    "x:y",
    "A=1",
    "A=2",
    "B",
    "80",
    "8080:80",
    "127.0.0.1:53:53/udp",
    "[::1]:90-91:90-91",
    "5000-5003",
    "./a:/b",
    "data:/data:ro",
    "/b",
    "/var/run/x.sock:/x",
    "1m30s",
    "64m",
    "0.5",
    "-1",
    "${SECRET}",
    "${EMPTY:-8080}",
    "${PORT}",
    "$$5",
    "host",
    "none",
    "service:a",
    "service_healthy",
    "always",
    "on-failure:3",
    "host.example:192.0.2.1",
    "nofile=5:6",
    "",
    "192.0.2.0/24:443",
    "a:80",
    "other.yaml",
    ".env",
    "é\u{202e}x",
    "1.1.1.1",
    "nginx",
    "redis:7",
    "CMD",
];
const PLAINS: &[&str] = &[
    "1",
    "80",
    "0",
    "true",
    "false",
    "no",
    "5s",
    "1.5",
    "-1",
    "99999999999999999999",
    "0o17",
    "1e3",
    ".inf",
    "2026-01-01",
];
const DEPTH_MAX: usize = 9;

impl Tree {
    /// A whole file.
    pub fn file(bytes: &mut Unstructured<'_>) -> Result<Self> {
        let mut grower = Grower { bytes, depth: 0 };
        let mut services = Vec::new();
        for name in &NAMES[..1 + grower.few(3)?] {
            services.push(((*name).to_owned(), grower.service()?));
        }
        let Self::Map(mut entries) = grower.section(&TOP)? else { return Ok(Self::Null) };
        entries.retain(|(key, _)| key != "services");
        entries.push(("services".to_owned(), Self::Map(services)));
        Ok(Self::Map(entries))
    }

    /// The same with the keys of every mapping in the opposite order.
    pub fn reversed(&self) -> Self {
        match self {
            Self::List(items) => Self::List(items.iter().map(Self::reversed).collect()),
            Self::Map(entries) => {
                Self::Map(entries.iter().rev().map(|(key, value)| (key.clone(), value.reversed())).collect())
            }
            Self::Tagged(tag, value) => Self::Tagged(tag, Box::new(value.reversed())),
            other => other.clone(),
        }
    }

    /// As YAML in the style of JSON.
    pub fn yaml(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text.push('\n');
        text
    }

    fn write(&self, text: &mut String) {
        let quoted = |value: &str| serde_json::to_string(value).expect("a text can be written down");
        match self {
            Self::Null => text.push_str("null"),
            Self::Plain(value) => text.push_str(value),
            Self::Text(value) => text.push_str(&quoted(value)),
            Self::List(items) => {
                text.push('[');
                for (number, item) in items.iter().enumerate() {
                    text.push_str(if number == 0 { "" } else { ", " });
                    item.write(text);
                }
                text.push(']');
            }
            Self::Map(entries) => {
                text.push('{');
                for (number, (key, value)) in entries.iter().enumerate() {
                    text.push_str(if number == 0 { "" } else { ",\n " });
                    text.push_str(&quoted(key));
                    text.push_str(": ");
                    value.write(text);
                }
                text.push('}');
            }
            Self::Tagged(tag, value) => {
                text.push_str(tag);
                text.push(' ');
                value.write(text);
            }
        }
    }
}

struct Grower<'a, 'b> {
    bytes: &'a mut Unstructured<'b>,
    depth: usize,
}

impl Grower<'_, '_> {
    fn few(&mut self, most: usize) -> Result<usize> {
        self.bytes.int_in_range(0..=most)
    }

    fn service(&mut self) -> Result<Tree> {
        let mut tree = self.section(&SERVICE)?;
        if let Tree::Map(entries) = &mut tree
            && !entries.iter().any(|(key, _)| key == "image" || key == "build")
        {
            entries.push(("image".to_owned(), Tree::Text("redis:7".to_owned())));
        }
        Ok(tree)
    }

    fn section(&mut self, section: &'static Section) -> Result<Tree> {
        let mut entries: Vec<(String, Tree)> = Vec::new();
        if self.depth >= DEPTH_MAX {
            return Ok(Tree::Map(entries));
        }
        self.depth += 1;
        for _ in 0..self.few(5)? {
            if section.keys.is_empty() {
                break;
            }
            let key = self.bytes.choose(section.keys)?;
            if entries.iter().any(|(name, _)| name == key.name) {
                continue;
            }
            let value = self.key(section, key)?;
            entries.push((key.name.to_owned(), value));
        }
        self.depth -= 1;
        Ok(Tree::Map(entries))
    }

    fn key(&mut self, section: &'static Section, key: &'static Key) -> Result<Tree> {
        let value = match key.shape {
            // The path of a section says where it stands, also where the table has no shape for it.
            Shape::Any => match section_below(section, key.name) {
                Some(below) if !self.bytes.ratio(1, 4)? => self.section(below)?,
                _ => self.any()?,
            },
            shape => self.shape(shape)?,
        };
        Ok(match self.bytes.int_in_range(0..=30)? {
            0 => Tree::Tagged("!reset", Box::new(value)),
            1 => Tree::Tagged("!override", Box::new(value)),
            2 => Tree::Null,
            3 => self.any()?,
            _ => value,
        })
    }

    fn shape(&mut self, shape: Shape) -> Result<Tree> {
        match shape {
            Shape::One(kind) => self.one(kind),
            Shape::List(kind, _) => self.list(|grower| grower.one(kind)),
            Shape::OneOrList(kind, _) => {
                if self.bytes.arbitrary()? {
                    self.one(kind)
                } else {
                    self.list(|grower| grower.one(kind))
                }
            }
            Shape::Command => {
                if self.bytes.arbitrary()? {
                    self.text()
                } else {
                    self.list(Self::text)
                }
            }
            Shape::Pairs(Pairs::Equals | Pairs::Hosts) => {
                if self.bytes.arbitrary()? {
                    self.list(Self::text)
                } else {
                    self.named(|grower| grower.one(Kind::Text))
                }
            }
            Shape::Section(section) => self.section(section),
            Shape::Short(short, section) => self.short(short, section),
            Shape::Named(section) => self.named(|grower| grower.section(section)),
            Shape::NamedShort(short, section) => self.named(|grower| grower.short(short, section)),
            Shape::NamedOrList(section) => {
                if self.bytes.arbitrary()? {
                    self.list(|grower| Ok(Tree::Text((*grower.bytes.choose(NAMES)?).to_owned())))
                } else {
                    self.named(|grower| grower.section(section))
                }
            }
            Shape::Items(short, section) => self.list(|grower| grower.short(short, section)),
            _ => self.any(),
        }
    }

    fn short(&mut self, short: Short, section: &'static Section) -> Result<Tree> {
        if short != Short::None && self.bytes.arbitrary()? { self.one(Kind::Text) } else { self.section(section) }
    }

    fn list(&mut self, mut item: impl FnMut(&mut Self) -> Result<Tree>) -> Result<Tree> {
        let mut items = Vec::new();
        for _ in 0..self.few(4)? {
            items.push(item(self)?);
        }
        Ok(Tree::List(items))
    }

    fn named(&mut self, mut value: impl FnMut(&mut Self) -> Result<Tree>) -> Result<Tree> {
        let mut entries = Vec::new();
        for name in NAMES {
            if self.bytes.ratio(1, 3)? {
                entries.push(((*name).to_owned(), value(self)?));
            }
        }
        Ok(Tree::Map(entries))
    }

    fn one(&mut self, _kind: Kind) -> Result<Tree> {
        if self.bytes.ratio(1, 3)? { Ok(Tree::Plain(self.bytes.choose(PLAINS)?)) } else { self.text() }
    }

    fn text(&mut self) -> Result<Tree> {
        Ok(Tree::Text((*self.bytes.choose(TEXTS)?).to_owned()))
    }

    fn any(&mut self) -> Result<Tree> {
        if self.depth >= DEPTH_MAX {
            return Ok(Tree::Null);
        }
        self.depth += 1;
        let tree = match self.bytes.int_in_range(0..=5)? {
            0 => self.list(Self::any),
            1 => self.named(Self::any),
            2 => self.list(Self::text),
            3 => Ok(Tree::Null),
            _ => self.one(Kind::Text),
        };
        self.depth -= 1;
        tree
    }
}

/// The section whose path says that it stands at that key.
fn section_below(section: &Section, key: &str) -> Option<&'static Section> {
    let path = if section.path.is_empty() { key.to_owned() } else { format!("{}.{key}", section.path) };
    TABLE.iter().copied().find(|below| below.path == path)
}
