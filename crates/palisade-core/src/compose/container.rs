//! What only an image or an engine needs: `image`, `build`, `command` … become a [`Container`].
//!
//! Beside `x-palisade.process` all of it is read, so that mistakes are found, and nothing of it is used.

use std::collections::BTreeMap;

use super::LoadInputs;
use super::dotenv;
use super::file::{FileService, looked_for};
use super::keys::{BUILD, DEVICE_REQUEST, SERVICE, Shape};
use super::read::{Fields, Reader, Text};
use super::yaml::{Entry, Node};
use crate::diagnostic::{Diagnostic, Span, quoted};

const PULL_HINT: &str = "`always`, `never`, `missing`, `build`, `daily`, `weekly` and `every_12h` are";

impl Reader<'_> {
    pub(crate) fn container(&mut self, fields: &Fields<'_>, service: &mut FileService, inputs: &LoadInputs<'_>) {
        for entry in fields.image.iter().filter(|entry| !entry.value.is_null()) {
            self.image_key(entry, service, inputs);
        }
    }

    fn image_key(&mut self, entry: &Entry, service: &mut FileService, inputs: &LoadInputs<'_>) {
        let node = &entry.value;
        let what = quoted(&entry.key);
        let container = &mut service.container;
        match entry.key.as_str() {
            "image" => {
                service.image = self.text(node, &what).map(|text| text.spanned());
                container.image = service.image.as_ref().map(|image| image.value.clone());
            }
            "build" => {
                service.build = Some(entry.key_span);
                container.build = self.build(entry);
            }
            "command" => container.command = self.command(node, &what),
            "entrypoint" => container.entrypoint = self.command(node, &what),
            "platform" => container.platform = self.text(node, &what).map(|text| text.value.into()),
            "pull_policy" => {
                container.pull_policy =
                    self.parsed(node, "a pull policy", PULL_HINT, |text| is_pull_policy(text).then(|| text.to_owned()));
            }
            "pull_refresh_after" => container.pull_refresh_after = self.text(node, &what).map(|text| text.value.into()),
            "init" => container.init = self.bool(node, &what),
            "tty" => container.tty = self.bool(node, &what).unwrap_or_default(),
            "stdin_open" => container.stdin_open = self.bool(node, &what).unwrap_or_default(),
            // What is written beside them goes before what files say.
            "labels" => container.labels.extend(self.text_pairs(node, &what)),
            "label_file" => {
                for (name, value) in self.label_files(entry, inputs) {
                    container.labels.entry(name).or_insert(value);
                }
            }
            "annotations" => container.annotations = self.text_pairs(node, &what),
            "runtime" => container.runtime = self.text(node, &what).map(|text| text.value.into()),
            "sysctls" => container.sysctls = self.text_pairs(node, &what),
            "storage_opt" => container.storage_opt = self.text_pairs(node, &what),
            "security_opt" => {
                let texts = self.texts(node, &what).unwrap_or_default();
                container.security_opt = texts.into_iter().map(|text| self.security_option(text, inputs)).collect();
            }
            "devices" => {
                let devices = self.by_table(entry).and_then(|devices| devices.as_array().cloned());
                container.devices = devices.iter().flatten().map(device).collect();
            }
            "device_cgroup_rules" => {
                let texts = self.texts(node, &what).unwrap_or_default();
                container.device_cgroup_rules = texts.into_iter().map(|text| text.value.into()).collect();
            }
            "gpus" => {
                let requests = self.by_table(entry).and_then(|requests| requests.as_array().cloned());
                container.device_requests.extend(requests.into_iter().flatten().map(gpu));
            }
            "blkio_config" => container.blkio_config = self.by_table(entry),
            other => debug_assert!(false, "the table says that `{other}` is for images, and nobody reads it"),
        }
    }

    /// What the table says can stand at this key of a service.
    fn by_table(&mut self, entry: &Entry) -> Option<serde_json::Value> {
        let key = SERVICE.key(&entry.key)?;
        self.shaped(&entry.value, key.shape, &quoted(key.name))
    }

    fn build(&mut self, entry: &Entry) -> Option<serde_json::Value> {
        let mut build = self.by_table(entry)?;
        let keys = build.as_object_mut()?;
        for (one, other) in [("dockerfile", "dockerfile_inline")] {
            if keys.contains_key(one) && keys.contains_key(other) {
                self.push(
                    Diagnostic::error("conflict", format!("`{one}` and `{other}` exclude each other"))
                        .at(entry.key_span, format!("in {}", BUILD.what))
                        .hint("keep one of them"),
                );
            }
        }
        if !keys.contains_key("context") && !keys.contains_key("dockerfile_inline") {
            let directory = self.origin(entry.key_span).directory.to_string_lossy().into_owned();
            keys.insert("context".to_owned(), directory.into());
        }
        Some(build)
    }

    /// `deploy.resources.reservations.devices`.
    pub(crate) fn reserved_devices(&mut self, entry: &Entry, service: &mut FileService) {
        let shape = Shape::Items(super::keys::Short::None, &DEVICE_REQUEST);
        let requests = self.shaped(&entry.value, shape, &quoted(&entry.key));
        let requests = requests.and_then(|requests| requests.as_array().cloned()).into_iter().flatten();
        for request in requests {
            if request.get("capabilities").is_none() {
                self.push(
                    Diagnostic::error("missing-key", "this device request has no `capabilities`")
                        .at(entry.value.span, "")
                        .hint("say what it must be able to do: `capabilities: [gpu]`"),
                );
            }
            service.container.device_requests.push(request);
        }
    }

    fn text_pairs(&mut self, node: &Node, what: &str) -> BTreeMap<String, String> {
        let pairs = self.pairs(node, what).unwrap_or_default();
        pairs.into_iter().map(|(name, value)| (name, value.unwrap_or_default())).collect()
    }

    /// A filter's file is handed on as what is in it, as Compose does: engines know nothing of the user's files.
    fn security_option(&mut self, text: Text, inputs: &LoadInputs<'_>) -> String {
        let path = text.value.strip_prefix("seccomp").and_then(|rest| rest.strip_prefix(['=', ':']));
        let Some(path) = path.filter(|path| !["unconfined", "builtin"].contains(path) && !path.starts_with('{')) else {
            return text.value.into();
        };
        let place = self.path(path, text.span);
        let read = inputs.others.read(&place).map_err(|error| error.to_string());
        match read.and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).map_err(|e| e.to_string())) {
            Ok(profile) => format!("seccomp={profile}"),
            Err(why) => {
                let message = format!("the profile {} can't be read: {why}", text.quoted());
                let mistake =
                    Diagnostic::error("security-opt", message).at(text.span, looked_for(&text.quoted(), &place));
                self.push(
                    mistake
                        .hint("`seccomp=` takes a JSON file, relative to the Compose file's folder, or `unconfined`"),
                );
                text.value.into()
            }
        }
    }

    fn label_files(&mut self, entry: &Entry, inputs: &LoadInputs<'_>) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        for item in self.one_or_list(&entry.value, "`label_file`").unwrap_or_default() {
            let Some(text) = self.text(item, "a path") else { continue };
            labels.extend(self.label_file(&text.quoted(), &text.value, text.span, inputs));
        }
        labels
    }

    fn label_file(&mut self, shown: &str, path: &str, span: Span, inputs: &LoadInputs<'_>) -> BTreeMap<String, String> {
        let path = self.path(path, span);
        let mistake = |why: String| {
            Diagnostic::error("label-file", format!("the `label_file` {shown} can't be read: {why}"))
                .at(span, looked_for(shown, &path))
                .hint("paths are relative to the file's directory; lines are `name=value`")
        };
        let read = inputs.others.read(&path).map_err(|error| error.to_string());
        let text = read.and_then(|bytes| String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned()));
        let parsed = text.and_then(|text| {
            let lookup = |name: &str| self.origin(span).variables.get(name);
            dotenv::parse(&text, &lookup).map_err(|problems| match problems.first() {
                Some(problem) => format!("line {}: {}", problem.line, problem.what),
                None => "a line is wrong".to_owned(),
            })
        });
        match parsed {
            Ok(lines) => lines.variables.into_iter().map(|(name, value)| (name, value.unwrap_or_default())).collect(),
            Err(why) => {
                self.push(mistake(why));
                BTreeMap::new()
            }
        }
    }
}

fn is_pull_policy(text: &str) -> bool {
    match text.strip_prefix("every_") {
        Some(times) => {
            let units = times.split_inclusive(|c: char| c.is_ascii_alphabetic());
            let one = |part: &str| {
                let number = part.strip_suffix(['w', 'd', 'h', 'm', 's']).unwrap_or_default();
                !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
            };
            !times.is_empty() && units.into_iter().all(one)
        }
        None => {
            matches!(text, "always" | "never" | "build" | "if_not_present" | "missing" | "refresh" | "daily" | "weekly")
        }
    }
}

/// `/dev/x:/dev/y:rwm` of the long form.
fn device(device: &serde_json::Value) -> String {
    let part = |key: &str| device.get(key).and_then(serde_json::Value::as_str);
    let source = part("source").unwrap_or_default();
    format!("{source}:{}:{}", part("target").unwrap_or(source), part("permissions").unwrap_or("rwm"))
}

/// `gpus` asks for a GPU without saying so.
fn gpu(mut request: serde_json::Value) -> serde_json::Value {
    if let Some(keys) = request.as_object_mut() {
        keys.entry("capabilities").or_insert_with(|| serde_json::json!(["gpu"]));
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policies() {
        assert!(["always", "if_not_present", "every_12h", "every_1d12h"].into_iter().all(is_pull_policy));
        assert!(!["sometimes", "every_", "every_h", "every_12", "every_1x", ""].into_iter().any(is_pull_policy));
    }

    #[test]
    fn devices_have_one_form() {
        let short = serde_json::json!({"source": "/dev/dri"});
        assert_eq!(device(&short), "/dev/dri:/dev/dri:rwm");
        assert_eq!(
            gpu(serde_json::json!({"count": "all"})),
            serde_json::json!({"count": "all", "capabilities": ["gpu"]})
        );
    }
}
