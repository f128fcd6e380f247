//! What a service is given from elsewhere: links, mounts of others, secrets and configs; and what beside a process
//! would break the guard.

use std::collections::HashMap;
use std::path::Path;

use super::super::capabilities;
use super::super::file::{Absent, ComposeFile, FileService};
use super::super::mounts::{self, Beyond};
use super::{View, suggest};
use crate::diagnostic::{Diagnostic, Sink, Span, quoted};

/// `secrets` and `configs` of a service.
pub(super) fn files(service: &FileService, file: &ComposeFile, sink: &mut Sink) {
    let mut targets: HashMap<&Path, Span> =
        service.mounts.iter().map(|mount| (mount.value.target.as_path(), mount.span)).collect();
    for reference in &service.files {
        let (all, what, list) = if reference.value.secret {
            (&file.secrets, "secret", "secrets")
        } else {
            (&file.configs, "config", "configs")
        };
        let name = &reference.value.name;
        if let Some(first) = targets.insert(&reference.value.target, reference.span) {
            let target = quoted(&reference.value.target.to_string_lossy());
            sink.push(
                Diagnostic::error("conflict", format!("two things are put at {target}"))
                    .at(reference.span, "")
                    .also(first, "the first one")
                    .hint("give one of them another `target`"),
            );
        }
        let Some(provided) = all.get(name) else {
            let near = suggest(sink, name, all.keys().map(String::as_str));
            let hint = near.unwrap_or_else(|| format!("add it below `{list}:` at the file's top level, with a `file`"));
            let id = if reference.value.secret { "unknown-secret" } else { "unknown-config" };
            sink.push(
                Diagnostic::error(id, format!("there is no {what} {}", quoted(name))).at(reference.span, "").hint(hint),
            );
            continue;
        };
        let id = if reference.value.secret { "missing-secret" } else { "missing-config" };
        match &provided.source {
            Ok(_) | Err(Absent::Reported) => {}
            Err(Absent::File(looked_for, span)) => sink.push(
                Diagnostic::error(id, format!("the file of the {what} {} does not exist", quoted(name)))
                    .at(*span, looked_for.as_str())
                    .also(reference.span, "needed here")
                    .hint("make the file; its path is relative to the Compose file's directory"),
            ),
            Err(Absent::Variable(variable, span)) => sink.push(
                Diagnostic::error(
                    id,
                    format!("the {what} {} is the variable {}, which is not set", quoted(name), quoted(variable)),
                )
                .at(*span, "")
                .also(reference.span, "needed here")
                .hint(format!("set {variable} in the environment or in `.env`")),
            ),
        }
    }
}

/// `links` and `volumes_from`. That what they name is there is checked with the dependencies that they are.
pub(super) fn links(index: usize, view: &View<'_>, sink: &mut Sink) {
    let service = &view.file.services[index];
    for link in &service.links {
        let Some(&other) = view.by_name.get(link.value.service.as_str()) else { continue };
        let alias = &link.value.alias;
        let taken = view.service(alias).filter(|named| named.name.value.as_str() != link.value.service);
        if let Some(named) = taken {
            sink.push(
                Diagnostic::error("ambiguous-name", format!("the name {} stands for two services", quoted(alias)))
                    .at(link.span, format!("for {} here", quoted(&link.value.service)))
                    .also(named.name.span, "for this one here")
                    .hint("give the link another alias"),
            );
        }
        if other != index && view.networks[index].is_disjoint(&view.networks[other]) {
            let name = quoted(&link.value.service);
            sink.push(
                Diagnostic::error(
                    "no-shared-network",
                    format!("the link to {name} leads nowhere: they share no network"),
                )
                .at(link.span, "")
                .also(view.file.services[other].name.span, "this service")
                .hint("put both into one network, or remove the link"),
            );
        }
    }
}

/// What an engine's container may have, and a process of the host that is watched by the guard may not.
pub(super) fn guard(service: &FileService, sink: &mut Sink) {
    if !service.is_process() {
        return;
    }
    if let Some(span) = service.privileged {
        sink.push(
            Diagnostic::error("beyond-the-guard", "a privileged service can't be guarded")
                .at(span, "")
                .hint("remove it, and add the capability that is needed with `cap_add`"),
        );
    }
    for name in &service.cap_add {
        if let Some(could) = capabilities::beyond_the_guard(&name.value) {
            sink.push(
                Diagnostic::error("beyond-the-guard", format!("{} {could}, so no service gets it", name.value))
                    .at(name.span, "")
                    .hint("remove it, or run this service outside of the stack"),
            );
        }
    }
    for mount in &service.mounts {
        match mounts::beyond_the_guard(&mount.value) {
            None => {}
            Some(Beyond::EngineSocket(socket)) => sink.push(
                Diagnostic::error(
                    "beyond-the-guard",
                    format!("`{socket}` lets the service start containers outside of the guard"),
                )
                .at(mount.span, "")
                .hint("run what must talk to the engine outside of the stack, and reach it with `x-palisade.host`"),
            ),
            Some(Beyond::Writable(path)) => sink.push(
                Diagnostic::error(
                    "beyond-the-guard",
                    format!("writing to `{path}` of the host would let the service leave its guard"),
                )
                .at(mount.span, format!("this mount holds `{path}`"))
                .hint("mount only the folder that the service needs, or add `:ro`"),
            ),
        }
    }
}
