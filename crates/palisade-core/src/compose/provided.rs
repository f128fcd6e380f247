//! Secrets and configs: of the file, and those that a service asks for.
//!
//! What can't be had is told in `validate`, and only when a service uses it.

use std::path::{Component, Path, PathBuf};

use super::file::{Absent, FileProvided, FileReference, looked_for};
use super::keys;
use super::read::{Reader, Text};
use super::yaml::{Data, Entry, Node};
use super::{LoadInputs, ReadError};
use crate::diagnostic::{Diagnostic, Spanned, quoted};
use crate::environment::Hidden;
use crate::stack::FileSource;

/// Where secrets are put unless it is said.
const SECRETS: &str = "/run/secrets";
/// Compose Specification, 08-configs and 09-secrets.
const MODE: u32 = 0o444;

impl Reader<'_> {
    /// One of `secrets` or `configs` of the file.
    pub(crate) fn provided(&mut self, entry: &Entry, secret: bool, inputs: &LoadInputs<'_>) -> FileProvided {
        let (what, section) = if secret { ("secret", &keys::SECRET) } else { ("config", &keys::CONFIG) };
        let source = self.provided_source(entry, what, section, inputs);
        FileProvided { span: entry.key_span, source }
    }

    fn provided_source(
        &mut self,
        entry: &Entry,
        what: &str,
        section: &'static keys::Section,
        inputs: &LoadInputs<'_>,
    ) -> Result<FileSource, Absent> {
        if !is_name(&entry.key) {
            self.push(
                Diagnostic::error("invalid-name", format!("{} is not a valid name of a {what}", quoted(&entry.key)))
                    .at(entry.key_span, "")
                    .hint("names are letters, digits, `.`, `_` and `-`"),
            );
        }
        let before = self.sink.error_count();
        let mut written = Vec::new();
        if !entry.value.is_null() {
            let mut fields = self.fields(&entry.value, section).ok_or(Absent::Reported)?;
            for name in ["file", "environment", "content"] {
                if section.key(name).is_some() {
                    written.extend(fields.take(name));
                }
            }
            fields.finish();
        }
        // A refused key was perhaps meant in the place of what is missing.
        if written.is_empty() && self.sink.error_count() > before {
            return Err(Absent::Reported);
        }
        let ways = if section.key("content").is_some() {
            "`file`, `content` or `environment`"
        } else {
            "`file` or `environment`"
        };
        let [one] = written[..] else {
            let mut diagnostic = match written.first() {
                None => Diagnostic::error(
                    "missing-key",
                    format!("the {what} {} says not what it is made of", quoted(&entry.key)),
                )
                .at(entry.key_span, ""),
                Some(first) => {
                    Diagnostic::error("conflict", format!("the {what} {} is made of two things", quoted(&entry.key)))
                        .at(written[1].key_span, "")
                        .also(first.key_span, "the other one")
                }
            };
            diagnostic = diagnostic.hint(format!("give it one of {ways}"));
            self.push(diagnostic);
            return Err(Absent::Reported);
        };
        let text = self.text(&one.value, &quoted(&one.key)).ok_or(Absent::Reported)?;
        match one.key.as_str() {
            "file" => {
                let path = self.path(&text.value, text.span);
                match inputs.others.read(&path) {
                    Err(ReadError::NotFound) => Err(Absent::File(looked_for(&text.quoted(), &path), text.span)),
                    // What this user may not read, the one who starts the stack may.
                    Ok(_) | Err(ReadError::Other(_)) => Ok(FileSource::Path(path)),
                }
            }
            "environment" => match self.origin(text.span).variables.get(&text.value) {
                Some(value) => Ok(FileSource::Inline(Hidden(value))),
                None => Err(Absent::Variable(text.value.into(), text.span)),
            },
            _ => Ok(FileSource::Inline(Hidden(text.value.into()))),
        }
    }

    /// `secrets` or `configs` of a service.
    pub(crate) fn references(&mut self, node: &Node, secret: bool) -> Vec<Spanned<FileReference>> {
        let what = if secret { "`secrets`" } else { "`configs`" };
        let mut references = Vec::new();
        for item in self.list(node, what).unwrap_or_default() {
            let reference = match &item.data {
                Data::Map(_) => self.long_reference(item, secret),
                _ => self.text(item, "a name").and_then(|text| self.reference(&text, None, secret)),
            };
            references.extend(reference.map(|reference| Spanned::new(reference, item.span)));
        }
        references
    }

    fn long_reference(&mut self, node: &Node, secret: bool) -> Option<FileReference> {
        let section = if secret { &keys::SERVICE_SECRET } else { &keys::SERVICE_CONFIG };
        let mut fields = self.fields(node, section)?;
        let mut read = |name: &str| fields.value(name).map(|node| self.text(node, "a part of this"));
        let (source, target) = (read("source"), read("target"));
        let mut id = |name: &str, what: &str| {
            let node = fields.value(name)?;
            self.parsed(node, what, "write its number", |text| text.parse::<u32>().ok())
        };
        let (uid, gid) = (id("uid", "a user's number"), id("gid", "a group's number"));
        let mode = fields.value("mode").and_then(|node| self.mode(node));
        fields.finish();
        let Some(source) = source else {
            self.push(
                Diagnostic::error("missing-key", format!("{} has no `source`", section.what))
                    .at(node.span, "")
                    .hint("`source` is its name at the file's top level"),
            );
            return None;
        };
        let target = match target {
            Some(target) => Some(target?),
            None => None,
        };
        let reference = self.reference(&source?, target.as_ref(), secret)?;
        Some(FileReference { uid, gid, mode: mode.unwrap_or(MODE), ..reference })
    }

    fn reference(&mut self, source: &Text, target: Option<&Text>, secret: bool) -> Option<FileReference> {
        let below = Path::new(if secret { SECRETS } else { "/" });
        let text = target.filter(|target| !target.value.is_empty()).unwrap_or(source);
        let path = below.join(text.value.as_str());
        if path.components().any(|part| part == Component::ParentDir) || path == below || text.value.contains('\0') {
            let message = format!("{} is not a place for a file", text.quoted());
            return self.invalid(text, message, "write an absolute path, or a name");
        }
        let target: PathBuf = path.components().collect();
        Some(FileReference { name: source.value.to_string(), secret, target, uid: None, gid: None, mode: MODE })
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}
