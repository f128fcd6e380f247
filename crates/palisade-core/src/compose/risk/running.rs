//! How services are run: versions, health, limits, logs, backups.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::images::{Image, Kind, kind_of_port};
use super::power::texts;
use super::{Hit, Hits, Seen, table};
use crate::compose::yaml::Data;
use crate::stack::{Condition, MountSource, Restart};

/// Where programs keep what can't be made again.
const DATA: [&str; 16] = [
    "/var/lib/postgresql",
    "/var/lib/mysql",
    "/var/lib/mariadb",
    "/data/db",
    "/var/lib/mongodb",
    "/bitnami",
    "/var/lib/cassandra",
    "/var/lib/clickhouse",
    "/var/lib/influxdb",
    "/usr/share/elasticsearch/data",
    "/var/lib/rabbitmq",
    "/var/jenkins_home",
    "/var/opt/gitlab",
    "/var/www/html",
    "/opt/couchdb/data",
    "/var/lib/neo4j",
];
/// A service whose logs may grow beyond this has none that end.
const LOG_BYTES_MAX: u64 = 10 << 30;

/// What all services together tell about each.
pub(super) struct Running<'a> {
    /// Services that others wait for until they have ended.
    awaited: HashSet<&'a str>,
    has_backup: bool,
}

impl<'a> Running<'a> {
    pub(super) fn new(services: &[Seen<'a>]) -> Self {
        let dependencies = services.iter().flat_map(|seen| &seen.service.depends_on);
        let completed = |condition| condition == Condition::ServiceCompletedSuccessfully;
        Self {
            awaited: dependencies
                .filter(|dependency| completed(dependency.value.condition))
                .map(|dependency| dependency.value.service.as_str())
                .collect(),
            has_backup: services.iter().any(|seen| image_of(seen).is_some_and(|image| Image::parse(image).is_backup())),
        }
    }

    /// It does something and ends.
    fn is_job(&self, seen: &Seen<'_>) -> bool {
        let again = matches!(seen.service.restart, Restart::Always | Restart::UnlessStopped);
        !again
            && (self.awaited.contains(seen.name())
                || seen
                    .get("restart")
                    .is_some_and(|node| texts(node).first().is_some_and(|(text, _)| matches!(*text, "no" | "false"))))
    }

    pub(super) fn examine(&self, seen: &Seen<'_>, hits: &mut Hits) {
        tag(seen, hits);
        log(seen, hits);
        if !self.is_job(seen) {
            health(seen, hits);
            memory(seen, hits);
            if !self.has_backup {
                backup(seen, hits);
            }
        }
    }
}

/// What runs, unless it is a process of the host.
pub(super) fn image_of<'a>(seen: &Seen<'a>) -> Option<&'a str> {
    match &seen.get("image")?.data {
        Data::Scalar(scalar) => Some(&scalar.text),
        _ => None,
    }
}

fn tag(seen: &Seen<'_>, hits: &mut Hits) {
    // The image of a build is named by this file, and pulled from nowhere.
    if seen.is_process() || seen.get("build").is_some() {
        return;
    }
    let Some(node) = seen.get("image") else { return };
    let Some(image) = image_of(seen).map(Image::parse).filter(|image| !image.digest) else { return };
    let name = seen.name();
    let message = match image.tag {
        None => format!("the image of `{name}` has no tag, so it is `latest`"),
        Some(tag @ ("latest" | "main" | "master" | "edge" | "nightly" | "dev")) => {
            format!("the image of `{name}` is whatever `{tag}` is today")
        }
        Some(_) => return,
    };
    hits.push(Hit::new(&table::LATEST_TAG, seen, node.span, message));
}

fn health(seen: &Seen<'_>, hits: &mut Hits) {
    let service = seen.service;
    let (span, message) = match service.healthcheck_span {
        Some(span) if service.healthcheck_disabled => (span, "has its health check switched off"),
        Some(_) => return,
        None => (service.name.span, "has no health check"),
    };
    hits.push(Hit::new(&table::NO_HEALTHCHECK, seen, span, format!("`{}` {message}", seen.name())));
}

fn memory(seen: &Seen<'_>, hits: &mut Hits) {
    if seen.service.memory_bytes.iter().all(|limit| limit.value == 0) {
        let message = format!("`{}` may use all of the host's memory", seen.name());
        hits.push(Hit::new(&table::NO_MEMORY_LIMIT, seen, seen.service.name.span, message));
    }
}

fn log(seen: &Seen<'_>, hits: &mut Hits) {
    let size = seen.get("logging").and_then(|node| node.get("options")).and_then(|entry| entry.value.get("max-size"));
    let written = size.and_then(|entry| texts(&entry.value).first().copied());
    let total = seen.service.log.max_bytes.saturating_mul(u64::from(seen.service.log.max_files));
    let (Some((text, span)), name) = (written, seen.name()) else { return };
    if matches!(text, "-1" | "0") {
        let message = format!("the log of `{name}` is never rotated");
        hits.push(Hit::new(&table::UNROTATED_LOG, seen, span, message));
    } else if total > LOG_BYTES_MAX {
        let message = format!("the logs of `{name}` may grow to {} GB", total / 1_000_000_000);
        hits.push(Hit::new(&table::UNROTATED_LOG, seen, span, message).hint("keep less: `max-size` × `max-file`"));
    }
}

/// What lies there can't be made again.
fn holds_data(target: &Path) -> bool {
    let plain: PathBuf = target.components().collect();
    let text = plain.to_string_lossy();
    let below = |rest: &str| rest.is_empty() || rest.starts_with('/');
    DATA.iter().any(|folder| text.strip_prefix(folder).is_some_and(below))
}

fn backup(seen: &Seen<'_>, hits: &mut Hits) {
    let volume = |source: &MountSource| matches!(source, MountSource::Volume(_) | MountSource::Anonymous { .. });
    let kept = |target_only: bool| {
        seen.service.mounts.iter().find(|mount| {
            let durable = matches!(mount.value.source, MountSource::Bind(_)) || volume(&mount.value.source);
            let volume = volume(&mount.value.source);
            durable && !mount.value.read_only && (!target_only && volume || holds_data(&mount.value.target))
        })
    };
    let image = if seen.is_process() { None } else { image_of(seen) };
    let kind = image.and_then(|image| Image::parse(image).kind());
    let by_port = || {
        let ports = seen.service.expose.iter().map(|port| port.value.port);
        let mut ports = ports.chain(seen.service.ports.iter().map(|port| port.value.container.port));
        match ports.find_map(kind_of_port)? {
            Kind::Store(what) | Kind::Cache(what) => Some((kept(false)?.span, what)),
            Kind::Model | Kind::Admin => None,
        }
    };
    let (span, what) = match kind {
        Some(Kind::Store(what)) => (kept(false).map_or(seen.service.name.span, |mount| mount.span), what),
        Some(Kind::Cache(what)) => match kept(false) {
            Some(mount) => (mount.span, what),
            None => return,
        },
        Some(Kind::Model | Kind::Admin) => return,
        None => match by_port().or_else(|| Some((kept(true)?.span, "files"))) {
            Some(found) => found,
            None => return,
        },
    };
    let how = match what {
        "PostgreSQL" => "`pg_dump` from a timer, copied to another machine",
        "MySQL" | "MariaDB" => "`mysqldump --single-transaction` from a timer, copied to another machine",
        "MongoDB" => "`mongodump` from a timer, copied to another machine",
        _ => "a copy of its folder, taken while it is stopped, on another machine",
    };
    let data = if what == "files" { "files".to_owned() } else { format!("{what} data") };
    let message = format!("nothing in this file backs up the {data} of `{}`", seen.name());
    let reason = "x-palisade: {allow: {stateful-without-backup: \"pg_dump every night to …\"}}";
    let reason = if what == "PostgreSQL" { reason.to_owned() } else { reason.replace("pg_dump", "copied") };
    hits.push(
        Hit::new(&table::STATEFUL_WITHOUT_BACKUP, seen, span, message)
            .hint(format!("{how}, is enough for many; try the way back once, then say so: `{reason}`")),
    );
}
