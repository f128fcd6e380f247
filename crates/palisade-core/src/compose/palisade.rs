//! `x-palisade`, of the file and of services, and the environment with its files.
//!
//! Whether peers exist is checked in `validate`.

use std::collections::BTreeMap;

use super::dotenv;
use super::file::{ComposeFile, FileEgress, FileGrant, FileService, looked_for};
use super::keys;
use super::ports::{port, port_proto};
use super::read::{Fields, Reader};
use super::shaped::PAIRS;
use super::yaml::{Data, Node};
use super::{LoadInputs, ReadError, units};
use crate::diagnostic::{Diagnostic, Span, Spanned};
use crate::lockout::Confirm;
use crate::stack::{BackendChoice, Process, RuntimeChoice};

const COMMAND_HINT: &str = "write the argument vector: `command: [\"/usr/bin/app\", \"--flag\"]`";

/// Shorter, and nobody has logged in again; longer, and a host stays unreachable for want of a number.
const CONFIRM_MS: std::ops::RangeInclusive<u64> = 1_000..=3_600_000;

/// The time that somebody has to confirm the firewall, in milliseconds.
pub fn confirm_ms(text: &str) -> Option<u64> {
    units::duration_ms(text).filter(|ms| CONFIRM_MS.contains(ms))
}

/// The time that somebody has to confirm the firewall, or `none`.
fn confirm(text: &str) -> Option<Confirm> {
    if text == "none" {
        return Some(Confirm::Never);
    }
    confirm_ms(text).map(|within_ms| Confirm::WhenNeeded { within_ms })
}

impl Reader<'_> {
    /// `x-palisade`, with `user` and `working_dir` that `process` falls back to.
    pub(crate) fn palisade(&mut self, fields: &mut Fields<'_>, service: &mut FileService) {
        let user = fields.value("user").and_then(|node| self.user(node));
        let working_dir = fields.value("working_dir").and_then(|node| self.working_dir(node));
        service.container.user.clone_from(&user);
        service.container.working_dir.clone_from(&working_dir);
        let Some(mut own) = fields.value("x-palisade").and_then(|node| self.fields(node, &keys::SERVICE_PALISADE))
        else {
            return;
        };
        if let Some(node) = own.value("process") {
            service.process_written = true;
            service.process = self.process(node);
            if let Some(process) = &mut service.process {
                process.user = process.user.take().or(user);
                process.working_dir = process.working_dir.take().or(working_dir);
            }
        }
        if let Some(node) = own.value("runtime") {
            let hint = "write `engine`, `process` or `auto`";
            let runtime = self.parsed(node, "a runtime", hint, |text| match text {
                "engine" => Some(RuntimeChoice::Engine),
                "process" => Some(RuntimeChoice::Process),
                "auto" => Some(RuntimeChoice::Auto),
                _ => None,
            });
            service.runtime = runtime.unwrap_or_default();
        }
        // `connect:` with nothing behind it grants nothing, like `[]`; read as "not written" it would grant everything.
        if let Some(entry) = own.written("connect") {
            service.connect = Some(self.connect(&entry.value));
        }
        if let Some(node) = own.value("strict") {
            service.strict = self.bool(node, "`strict`").unwrap_or_default();
        }
        if let Some(entry) = own.written("egress") {
            service.egress = self.egress(&entry.value);
        }
        if let Some(node) = own.value("allow") {
            service.allow = self.allow(node);
        }
        if let Some(node) = own.value("host") {
            service.host_ports = self.port_list(node, "`host`", port);
        }
        own.finish();
    }

    fn process(&mut self, node: &Node) -> Option<Process> {
        let mut fields = self.fields(node, &keys::PROCESS)?;
        let command = fields.value("command");
        let user = fields.value("user").and_then(|node| self.user(node));
        let working_dir = fields.value("working_dir").and_then(|node| self.working_dir(node));
        fields.finish();
        let Some(command) = command else {
            self.push(
                Diagnostic::error("missing-key", "`process` has no `command`").at(node.span, "").hint(COMMAND_HINT),
            );
            return None;
        };
        let mut command: Vec<String> = match &command.data {
            Data::Scalar(_) => {
                let line = self.text(command, "`command`")?;
                if line.value.trim().is_empty() {
                    return self.invalid(&line, "the command is empty", COMMAND_HINT);
                }
                vec!["/bin/sh".to_owned(), "-c".to_owned(), line.value.into()]
            }
            _ => {
                let words = self.texts(command, "`command`")?;
                if words.first().is_none_or(|word| word.value.is_empty()) {
                    self.push(
                        Diagnostic::error("invalid-value", "the command is empty")
                            .at(command.span, "")
                            .hint(COMMAND_HINT),
                    );
                    return None;
                }
                words.into_iter().map(|word| word.value.into()).collect()
            }
        };
        // Like every relative path of a Compose file, the program's starts from the project directory.
        if command[0].starts_with("./") || command[0].starts_with("../") {
            command[0] = self.path(&command[0], node.span).to_string_lossy().into_owned();
        }
        if command.iter().any(|word| word.contains('\0')) {
            self.push(Diagnostic::error("invalid-value", "a command can't hold a NUL character").at(node.span, ""));
            return None;
        }
        Some(Process { command, user, working_dir, own: false })
    }

    pub(crate) fn user(&mut self, node: &Node) -> Option<String> {
        self.parsed(node, "a user", "write `user`, `user:group`, or numbers in their place", |text| {
            let part = |part: &str| !part.is_empty() && !part.contains(|c: char| c.is_whitespace() || c.is_control());
            let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
            (part(user) && group.is_none_or(|group| part(group) && !group.contains(':'))).then(|| text.to_owned())
        })
    }

    fn connect(&mut self, node: &Node) -> Vec<Spanned<FileGrant>> {
        let mut grants = Vec::new();
        for text in self.texts(node, "`connect`").unwrap_or_default() {
            let (service, port) = text.value.split_once(':').map_or((&*text.value, None), |(s, p)| (s, Some(p)));
            let port = match port.map(port_proto) {
                None => None,
                Some(Ok(port)) => Some(port),
                Some(Err(wrong)) => {
                    self.invalid::<()>(&text, wrong, "write `\"peer\"`, `\"peer:5432\"` or `\"peer:53/udp\"`");
                    continue;
                }
            };
            grants.push(Spanned::new(FileGrant { service: service.to_owned(), port }, text.span));
        }
        grants
    }

    fn egress(&mut self, node: &Node) -> Option<Spanned<FileEgress>> {
        if let Data::Scalar(_) = node.data {
            let hint = "write `none`, `all`, or a list of addresses";
            let egress = self.parsed(node, "a kind of egress", hint, |text| match text {
                "none" => Some(FileEgress::None),
                "all" => Some(FileEgress::All),
                _ => None,
            })?;
            return Some(Spanned::new(egress, node.span));
        }
        // `egress:` with nothing behind it is an empty list, too.
        let texts = self.texts(node, "`egress`")?;
        let rules: Vec<_> = texts.iter().filter_map(|text| self.egress_rule(text)).collect();
        let egress = if texts.is_empty() { FileEgress::None } else { FileEgress::Only(rules) };
        Some(Spanned::new(egress, node.span))
    }

    /// `x-palisade` of the file.
    pub(crate) fn top_palisade(&mut self, node: &Node, file: &mut ComposeFile, inputs: &LoadInputs<'_>) {
        let Some(mut fields) = self.fields(node, &keys::TOP_PALISADE) else { return };
        if let Some(node) = fields.value("allow") {
            file.allow = self.allow(node);
        }
        if let Some(mut firewall) = fields.value("firewall").and_then(|node| self.fields(node, &keys::FIREWALL)) {
            if let Some(node) = firewall.value("allow") {
                file.firewall_allow = self.port_list(node, "`allow`", port_proto);
            }
            if let Some(node) = firewall.value("backend") {
                let hint = "write `auto`, `nftables`, `firewalld` or `iptables`, or `none` to leave the host's firewall alone; \
                            ufw is found by `auto`";
                let backend = self.parsed(node, "a firewall backend", hint, |text| match text {
                    "auto" => Some(BackendChoice::Auto),
                    "nftables" => Some(BackendChoice::Nftables),
                    "firewalld" => Some(BackendChoice::Firewalld),
                    "iptables" => Some(BackendChoice::Iptables),
                    "none" => Some(BackendChoice::None),
                    _ => None,
                });
                file.firewall_backend = backend.unwrap_or_default();
            }
            if let Some(node) = firewall.value("confirm") {
                let hint = "write a time from `1s` to `1h`, or `none` if there is another way in";
                let confirm = self.parsed(node, "a time to confirm the firewall in", hint, confirm);
                file.firewall_confirm = confirm.unwrap_or_default();
            }
            firewall.finish();
        }
        if let Some(entry) = fields.take("edge") {
            file.edge = self.edge(entry, inputs);
        }
        fields.finish();
    }

    /// `env_file`, then `environment` over it.
    pub(crate) fn environment(&mut self, fields: &mut Fields<'_>, service: &mut FileService, inputs: &LoadInputs<'_>) {
        if let Some(node) = fields.value("env_file") {
            for item in self.one_or_list(node, "`env_file`").unwrap_or_default() {
                let (path, required, raw) = match &item.data {
                    Data::Map(_) => {
                        let Some(mut fields) = self.fields(item, &keys::ENV_FILE) else { continue };
                        let path = fields.value("path").cloned();
                        let required =
                            fields.value("required").is_none_or(|n| self.bool(n, "`required`").unwrap_or(true));
                        let hint = "leave it out for the usual one, with quotes and variables";
                        let format = fields.value("format");
                        let raw = format.and_then(|node| {
                            self.parsed(node, "a format of `env_file`: the only one is `raw`", hint, |text| {
                                (text == "raw").then_some(())
                            })
                        });
                        fields.finish();
                        let Some(path) = path else {
                            self.push(
                                Diagnostic::error("missing-key", "this `env_file` has no `path`").at(item.span, ""),
                            );
                            continue;
                        };
                        (path, required, raw.is_some())
                    }
                    _ => (item.clone(), true, false),
                };
                let Some(path) = self.text(&path, "a path") else { continue };
                let full = self.path(&path.value, path.span);
                self.env_file(&path.quoted(), path.span, &full, (required, raw), inputs, &mut service.environment);
            }
        }
        let Some(node) = fields.value("environment") else { return };
        match &node.data {
            Data::Map(entries) => {
                for entry in entries {
                    if entry.value.is_null() {
                        self.set(&mut service.environment, &entry.key, None, entry.key_span);
                    } else if let Some(text) = self.text(&entry.value, "a variable of the environment") {
                        self.set(&mut service.environment, &entry.key, Some(text.value.into()), entry.key_span);
                    }
                }
            }
            _ => {
                for text in self.texts_or(node, "`environment`", PAIRS).unwrap_or_default() {
                    match text.value.split_once('=') {
                        Some((name, value)) => {
                            self.set(&mut service.environment, name, Some(value.to_owned()), text.span);
                        }
                        None => self.set(&mut service.environment, &text.value, None, text.span),
                    }
                }
            }
        }
    }

    /// Sets a variable. Without a value it comes from where `palisade` runs, or doesn't exist.
    fn set(&mut self, environment: &mut BTreeMap<String, String>, name: &str, value: Option<String>, span: Span) {
        if !dotenv::is_name(name) || value.as_ref().is_some_and(|value| value.contains('\0')) {
            self.push(
                Diagnostic::error("invalid-value", "this is not a variable of the environment")
                    .at(span, "")
                    .hint("a name holds neither `=` nor spaces; neither name nor value holds a NUL character"),
            );
            return;
        }
        match value.or_else(|| self.origin(span).variables.get(name)) {
            Some(value) => environment.insert(name.to_owned(), value),
            None => environment.remove(name),
        };
    }

    fn env_file(
        &mut self,
        shown: &str,
        span: Span,
        path: &std::path::Path,
        (required, raw): (bool, bool),
        inputs: &LoadInputs<'_>,
        environment: &mut BTreeMap<String, String>,
    ) {
        let looked_for = looked_for(shown, path);
        let text = match inputs.others.read(path) {
            Ok(bytes) => String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned()),
            Err(ReadError::NotFound) if !required => return,
            Err(error) => Err(error.to_string()),
        };
        let text = match text {
            Ok(text) => text,
            Err(why) => {
                let diagnostic = Diagnostic::error("env-file", format!("the `env_file` {shown} can't be read: {why}"));
                self.push(
                    diagnostic
                        .at(span, looked_for)
                        .hint("paths are relative to the project directory; `required: false` lets it be missing"),
                );
                return;
            }
        };
        let read = match raw {
            true => dotenv::raw(&text),
            false => dotenv::parse(&text, &|name| self.origin(span).variables.get(name)),
        };
        match read {
            Ok(lines) => {
                for warning in lines.warnings {
                    let message = format!("line {} of the `env_file` {shown}: {}", warning.line, warning.what);
                    self.push(Diagnostic::warning("unset-variable", message).at(span, ""));
                }
                for (name, value) in lines.variables {
                    self.set(environment, &name, value, span);
                }
            }
            Err(problems) => {
                for problem in problems {
                    let message = format!("line {} of the `env_file` {shown}: {}", problem.line, problem.what);
                    self.push(Diagnostic::error("env-file", message).at(span, looked_for.clone()));
                }
            }
        }
    }
}
