//! What `env_file` and `label_file` name, as mappings.

use std::path::PathBuf;
use std::sync::Arc;

use super::super::yaml::{Data, Node};
use super::super::{ReadError, dotenv};
use super::{Builder, Map, Value};

impl Builder<'_> {
    /// Variables of all `env_file`s, a later one over those before.
    pub(super) fn env_files(&self, node: &Arc<Node>) -> Map {
        self.files_of(node, true).unwrap_or_default()
    }

    pub(super) fn files_of(&self, node: &Arc<Node>, variables: bool) -> Option<Map> {
        let items = match &node.data {
            Data::List(items) => items.as_slice(),
            _ => std::slice::from_ref(node),
        };
        let mut all = Vec::new();
        for item in items {
            let field = |key: &str| match &item.get(key)?.value.data {
                Data::Scalar(scalar) => Some(scalar.text.as_str()),
                _ => None,
            };
            let (path, required, raw) = match &item.data {
                Data::Scalar(scalar) => (scalar.text.as_str(), true, false),
                _ => (field("path")?, field("required") != Some("false"), field("format") == Some("raw")),
            };
            let full = PathBuf::from(self.path(path, item.span));
            let text = match self.inputs.others.read(&full) {
                Ok(bytes) => String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned()),
                Err(ReadError::NotFound) if !required => continue,
                Err(error) => Err(error.to_string()),
            };
            let text = match text {
                Ok(text) => text,
                Err(why) => {
                    self.wrong(item.span, format!("this file can't be read: {why}"));
                    continue;
                }
            };
            let origin = &self.origins.of(item.span).variables;
            let parsed =
                if raw || !variables { dotenv::raw(&text) } else { dotenv::parse(&text, &|name| origin.get(name)) };
            let Ok(lines) = parsed else {
                self.wrong(item.span, "this file has lines that are not `NAME=value`".to_owned());
                continue;
            };
            for (name, value) in lines.variables {
                let value = value.or_else(|| origin.get(&name)).map_or(Value::Null, Value::Text);
                all.retain(|(known, _)| *known != name);
                all.push((name, value));
            }
        }
        Some(all)
    }
}
