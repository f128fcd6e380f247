//! One service of the file: its keys, one after the other.
//!
//! Ports, mounts, environment and `x-palisade` have modules of their own.

use std::net::IpAddr;
use std::path::PathBuf;

use super::LoadInputs;
use super::file::{FileDependency, FileLink, FileService, FileVolumesFrom, NetworkMode, NetworkUse};
use super::keys;
use super::read::{Fields, Reader};
use super::units;
use super::yaml::{Data, Entry, Node};
use crate::diagnostic::{Diagnostic, Span, Spanned, quoted};
use crate::names::ServiceName;
use crate::stack::{
    Condition, Container, HealthTest, HealthTimes, LogRotation, ProcessSettings, Restart, RuntimeChoice,
};

const DURATION_HINT: &str = "write a number with a unit, like `30s`, `1m30s` or `500ms`";
const COUNT_HINT: &str = "write a whole number";

const SIGNALS: [&str; 31] = [
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

impl Reader<'_> {
    /// A service; `None` when it is none at all.
    pub(crate) fn service(&mut self, entry: &Entry, inputs: &LoadInputs<'_>) -> Option<FileService> {
        let name = match ServiceName::parse(entry.key.as_str()) {
            Ok(name) => Some(Spanned::new(name, entry.key_span)),
            Err(error) => {
                self.push(
                    Diagnostic::error("invalid-name", format!("{} is not a valid service name", quoted(&entry.key)))
                        .at(entry.key_span, "")
                        .hint(format!("service names are {}", error.rule)),
                );
                None
            }
        };
        if entry.value.is_null() {
            self.push(
                Diagnostic::error("type", format!("the service {} is empty", quoted(&entry.key)))
                    .at(entry.key_span, "nothing is below this key")
                    .hint("give it at least `x-palisade: {process: {command: […]}}`; check the indentation"),
            );
            return None;
        }
        let mut fields = self.fields(&entry.value, &keys::SERVICE)?;
        // A service whose name is wrong is still read, so that all its mistakes are reported at once.
        let name = name.unwrap_or_else(|| Spanned::new(placeholder_name(), entry.key_span));
        let mut service = empty(name);
        // Both were obeyed when the files were put together.
        fields.take("extends");
        fields.take("profiles");
        self.container(&fields, &mut service, inputs);
        self.palisade(&mut fields, &mut service);
        self.networks_of(&mut fields, &mut service);
        if let Some(entry) = fields.take("restart") {
            service.restart_span = Some(entry.key_span);
            service.restart = self.restart(&entry.value).unwrap_or(Restart::No);
        }
        self.limits(&mut fields, &mut service);
        self.settings(&mut fields, &mut service);
        self.environment(&mut fields, &mut service, inputs);
        if let Some(node) = fields.value("expose") {
            service.expose = self.expose(node);
        }
        if let Some(node) = fields.value("ports") {
            service.ports = self.ports(node);
        }
        if let Some(node) = fields.value("depends_on") {
            service.depends_on = self.depends_on(node);
        }
        if let Some(entry) = fields.take("healthcheck") {
            service.healthcheck_span = Some(entry.key_span);
            self.healthcheck(&entry.value, &mut service);
        }
        self.brought_along(&mut fields, &mut service);
        if let Some(node) = fields.value("stop_signal") {
            let hint = "write a name like `SIGTERM`, or its number";
            service.stop_signal = self.parsed(node, "a signal", hint, signal).unwrap_or_default();
        }
        if let Some(node) = fields.value("stop_grace_period") {
            service.stop_grace_ms = self.duration(node).unwrap_or_default();
        }
        if let Some(node) = fields.value("volumes") {
            service.mounts = self.mounts(node, &service.name.value);
        }
        if let Some(node) = fields.value("tmpfs") {
            service.mounts.extend(self.tmpfs(node));
        }
        for (name, secret) in [("secrets", true), ("configs", false)] {
            if let Some(node) = fields.value(name) {
                service.files.extend(self.references(node, secret));
            }
        }
        if let Some(node) = fields.value("extra_hosts") {
            service.extra_hosts = self.extra_hosts(node, &mut service.host_gateway);
        }
        if let Some(node) = fields.value("logging") {
            service.log = self.logging(node).unwrap_or_default();
        }
        if let Some(node) = fields.value("cap_add") {
            service.cap_add = self.capabilities(node, "`cap_add`");
        }
        if let Some(node) = fields.value("cap_drop") {
            service.cap_drop = self.capabilities(node, "`cap_drop`").into_iter().map(|name| name.value).collect();
        }
        if let Some(node) = fields.value("read_only") {
            service.read_only = self.bool(node, "`read_only`").unwrap_or_default();
        }
        if let Some(entry) = fields.take("privileged")
            && self.bool(&entry.value, "`privileged`") == Some(true)
        {
            service.privileged = Some(entry.key_span);
            service.container.privileged = true;
        }
        fields.finish();
        Some(service)
    }

    fn networks_of(&mut self, fields: &mut Fields<'_>, service: &mut FileService) {
        if let Some(node) = fields.value("container_name") {
            service.container_name = self.host_name(node);
        }
        if let Some(node) = fields.value("network_mode") {
            service.network_mode = self.network_mode(node);
        }
        let Some(entry) = fields.take("networks") else { return };
        let mut uses = Vec::new();
        match &entry.value.data {
            Data::Map(entries) => {
                for entry in entries {
                    let name = Spanned::new(entry.key.to_string(), entry.key_span);
                    let aliases = if entry.value.is_null() { Vec::new() } else { self.aliases(&entry.value) };
                    uses.push(NetworkUse { name, aliases });
                }
            }
            _ => {
                for text in
                    self.texts_or(&entry.value, "`networks`", "a list of names or a mapping").unwrap_or_default()
                {
                    uses.push(NetworkUse { name: text.spanned(), aliases: Vec::new() });
                }
            }
        }
        if let Some(mode) = &service.network_mode {
            self.push(
                Diagnostic::error("conflict", "`networks` and `network_mode` exclude each other")
                    .at(entry.key_span, "")
                    .also(mode.span, "the mode is given here")
                    .hint("remove `network_mode`: every service is on the host's network anyway"),
            );
        }
        service.networks = Some(uses);
    }

    fn aliases(&mut self, node: &Node) -> Vec<Spanned<String>> {
        let Some(mut fields) = self.fields(node, &keys::SERVICE_NETWORK) else { return Vec::new() };
        let aliases = fields.value("aliases").and_then(|node| self.list(node, "`aliases`")).unwrap_or_default();
        fields.finish();
        aliases.iter().filter_map(|node| self.host_name(node)).collect()
    }

    /// A name for hosts files: it must not be able to add lines to them.
    fn host_name(&mut self, node: &Node) -> Option<Spanned<String>> {
        let text = self.text(node, "a name")?;
        if is_host_name(&text.value) {
            return Some(text.spanned());
        }
        let message = format!("{} is not a valid host name", text.quoted());
        self.invalid(
            &text,
            message,
            "host names are letters, digits, `.`, `_` and `-`, and begin with a letter or digit",
        )
    }

    fn network_mode(&mut self, node: &Node) -> Option<Spanned<NetworkMode>> {
        let text = self.text(node, "`network_mode`")?;
        let mode = match text.value.as_str() {
            "host" => NetworkMode::Host,
            "none" => NetworkMode::None,
            "bridge" | "default" => NetworkMode::Bridge,
            other if other.starts_with("service:") || other.starts_with("container:") => {
                let message =
                    format!("{} can't be honoured: the guard gives each service addresses of its own", text.quoted());
                return self.invalid(
                    &text,
                    message,
                    "put both services into one network, and use the other one's name",
                );
            }
            _ => {
                let message = format!("{} is not a network mode", text.quoted());
                return self.invalid(&text, message, "`host`, `bridge` and `none` are");
            }
        };
        Some(Spanned::new(mode, text.span))
    }

    fn depends_on(&mut self, node: &Node) -> Vec<Spanned<FileDependency>> {
        let mut dependencies = Vec::new();
        if let Data::List(_) = node.data {
            for text in self.texts(node, "`depends_on`").unwrap_or_default() {
                let dependency = FileDependency {
                    service: text.value.into(),
                    condition: Condition::ServiceStarted,
                    restart: false,
                    required: true,
                };
                dependencies.push(Spanned::new(dependency, text.span));
            }
            return dependencies;
        }
        for entry in self.map(node, "`depends_on`").unwrap_or_default() {
            let mut dependency = FileDependency {
                service: entry.key.to_string(),
                condition: Condition::ServiceStarted,
                restart: false,
                required: true,
            };
            if !entry.value.is_null() {
                let Some(mut fields) = self.fields(&entry.value, &keys::DEPENDENCY) else { continue };
                if let Some(node) = fields.value("condition") {
                    let hint = "`service_started`, `service_healthy` and `service_completed_successfully` are";
                    let condition = self.parsed(node, "a condition", hint, |text| match text {
                        "service_started" => Some(Condition::ServiceStarted),
                        "service_healthy" => Some(Condition::ServiceHealthy),
                        "service_completed_successfully" => Some(Condition::ServiceCompletedSuccessfully),
                        _ => None,
                    });
                    dependency.condition = condition.unwrap_or(Condition::ServiceStarted);
                }
                if let Some(node) = fields.value("restart") {
                    dependency.restart = self.bool(node, "`restart`").unwrap_or_default();
                }
                if let Some(node) = fields.value("required") {
                    dependency.required = self.bool(node, "`required`").unwrap_or(true);
                }
                fields.finish();
            }
            dependencies.push(Spanned::new(dependency, entry.key_span));
        }
        dependencies
    }

    /// `links` and `volumes_from`: what they name is started first, too.
    fn brought_along(&mut self, fields: &mut Fields<'_>, service: &mut FileService) {
        let mut first = Vec::new();
        if let Some(node) = fields.value("links") {
            for text in self.texts(node, "`links`").unwrap_or_default() {
                let (name, alias) = text.value.split_once(':').unwrap_or((&text.value, &text.value));
                if !is_host_name(alias) {
                    let message = format!("{} does not end in a valid host name", text.quoted());
                    self.invalid::<()>(&text, message, "write `service` or `service:alias`");
                    continue;
                }
                first.push((name.to_owned(), text.span, true));
                let link = FileLink { service: name.to_owned(), alias: alias.to_owned() };
                service.links.push(Spanned::new(link, text.span));
            }
        }
        if let Some(node) = fields.value("volumes_from") {
            for text in self.texts(node, "`volumes_from`").unwrap_or_default() {
                if text.value.starts_with("container:") {
                    let message = format!("{} can't be honoured: it is not of this stack", text.quoted());
                    self.invalid::<()>(&text, message, "name the other container's volume, with `external: true`");
                    continue;
                }
                let (name, mode) = text.value.split_once(':').unwrap_or((&text.value, "rw"));
                if !matches!(mode, "ro" | "rw") {
                    let message = format!("{} does not end in `:ro` or `:rw`", text.quoted());
                    self.invalid::<()>(&text, message, "write `service` or `service:ro`");
                    continue;
                }
                first.push((name.to_owned(), text.span, false));
                let from = FileVolumesFrom { service: name.to_owned(), read_only: mode == "ro" };
                service.volumes_from.push(Spanned::new(from, text.span));
            }
        }
        for (name, span, restart) in first {
            if !service.depends_on.iter().any(|dependency| dependency.value.service == name) {
                let condition = Condition::ServiceStarted;
                let dependency = FileDependency { service: name, condition, restart, required: true };
                service.depends_on.push(Spanned::new(dependency, span));
            }
        }
    }

    pub(crate) fn duration(&mut self, node: &Node) -> Option<u64> {
        self.parsed(node, kind_of_duration(node, "a duration"), DURATION_HINT, units::duration_ms)
    }

    fn healthcheck(&mut self, node: &Node, service: &mut FileService) {
        let Some(mut fields) = self.fields(node, &keys::HEALTHCHECK) else { return };
        let disabled = fields.value("disable").is_some_and(|n| self.bool(n, "`disable`").unwrap_or_default());
        let mut time = |reader: &mut Self, name: &str, positive: bool| -> Option<u64> {
            let what = if positive { "a duration above zero" } else { "a duration" };
            let parse = |text: &str| units::duration_ms(text).filter(|ms| *ms > 0 || !positive);
            let node = fields.value(name)?;
            reader.parsed(node, kind_of_duration(node, what), DURATION_HINT, parse)
        };
        let times = HealthTimes {
            interval_ms: time(self, "interval", true),
            timeout_ms: time(self, "timeout", true),
            start_period_ms: time(self, "start_period", false),
            start_interval_ms: time(self, "start_interval", true),
            retries: fields.value("retries").and_then(|node| {
                let retries = self.number::<u32>(node, "`retries`", COUNT_HINT)?.value;
                // Docker reads 0 as "not given".
                (retries > 0).then_some(retries)
            }),
        };
        let test = fields.value("test");
        fields.finish();
        match test {
            _ if disabled => service.healthcheck_disabled = true,
            Some(test) => match self.health_test(test) {
                Some(Some(test)) => service.healthcheck = Some(times.with(test)),
                Some(None) => service.healthcheck_disabled = true,
                None => {}
            },
            None if service.process.is_some() => self.push(
                Diagnostic::error(
                    "refused-value",
                    "this health check has no `test`, and a process has no image that brings one",
                )
                .at(node.span, "")
                .hint("say what to run: `test: [\"CMD\", \"pg_isready\"]`"),
            ),
            // The image's own test, at these times.
            None => service.healthcheck_times = times,
        }
    }

    /// `None`: a mistake, reported; `Some(None)`: `["NONE"]`.
    fn health_test(&mut self, node: &Node) -> Option<Option<HealthTest>> {
        if let Data::Scalar(_) = node.data {
            return Some(Some(HealthTest::Shell(self.text(node, "`test`")?.value.into())));
        }
        let words: Vec<String> = self.texts(node, "`test`")?.into_iter().map(|text| text.value.into()).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["NONE"] => Some(None),
            ["CMD", ref command @ ..] if !command.is_empty() => {
                Some(Some(HealthTest::Command(command.iter().map(|word| (*word).to_owned()).collect())))
            }
            ["CMD-SHELL", line] => Some(Some(HealthTest::Shell(line.to_owned()))),
            _ => {
                self.push(
                    Diagnostic::error("invalid-value", "this is none of the forms of a health check's test")
                        .at(node.span, "")
                        .hint("write `[\"CMD\", \"program\", \"argument\"]`, `[\"CMD-SHELL\", \"line\"]`, a string, or `[\"NONE\"]`"),
                );
                None
            }
        }
    }

    fn restart(&mut self, node: &Node) -> Option<Restart> {
        let hint = "`no`, `always`, `on-failure`, `on-failure:3` and `unless-stopped` are";
        self.parsed(node, "a restart policy", hint, |text| match text {
            // `no` without quotes is a boolean for other readers of YAML.
            "no" | "false" => Some(Restart::No),
            "always" => Some(Restart::Always),
            "unless-stopped" => Some(Restart::UnlessStopped),
            "on-failure" => Some(Restart::OnFailure { attempts_max: None }),
            _ => {
                let attempts = text.strip_prefix("on-failure:")?.parse().ok()?;
                Some(Restart::OnFailure { attempts_max: Some(attempts) })
            }
        })
    }

    fn extra_hosts(&mut self, node: &Node, gateway: &mut Option<Span>) -> Vec<(String, IpAddr)> {
        let mut hosts = Vec::new();
        let hint = "write `\"name=192.0.2.1\"`";
        if let Data::Map(entries) = &node.data {
            for entry in entries {
                for item in self.one_or_list(&entry.value, "an address").unwrap_or_default() {
                    let Some(text) = self.text(item, "an address") else { continue };
                    hosts.extend(self.extra_host(&text, &entry.key, &text.value, gateway));
                }
            }
            return hosts;
        }
        for text in self.texts_or(node, "`extra_hosts`", "a mapping or a list of `name=address`").unwrap_or_default() {
            match text.value.split_once(['=', ':']) {
                Some((name, address)) => hosts.extend(self.extra_host(&text, name, address, gateway)),
                None => {
                    let message = format!("{} is not a name with an address", text.quoted());
                    self.invalid::<()>(&text, message, hint);
                }
            }
        }
        hosts
    }

    fn extra_host(
        &mut self,
        text: &super::read::Text,
        name: &str,
        address: &str,
        gateway: &mut Option<Span>,
    ) -> Option<(String, IpAddr)> {
        if !is_host_name(name) {
            let message = format!("{} is not a valid host name", quoted(name));
            return self.invalid(text, message, "host names are letters, digits, `.`, `_` and `-`");
        }
        if address == "host-gateway" {
            // The service is on the host: its gateway is the host itself, and the guard knows its ports by that address.
            *gateway = Some(text.span);
            return Some((name.to_owned(), IpAddr::from([127, 0, 0, 1])));
        }
        let inner = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        match inner.unwrap_or(address).parse() {
            Ok(ip) => Some((name.to_owned(), ip)),
            Err(_) => {
                let message = format!("{} does not end in an IP address", text.quoted());
                self.invalid(text, message, "write `\"name=192.0.2.1\"`")
            }
        }
    }

    fn logging(&mut self, node: &Node) -> Option<LogRotation> {
        let mut fields = self.fields(node, &keys::LOGGING)?;
        if let Some(node) = fields.value("driver") {
            let hint = "output goes to files that `palisade logs` reads: write `json-file` or `local`, or remove it";
            self.parsed(node, "a log driver that Palisade has", hint, |text| {
                matches!(text, "json-file" | "local" | "").then_some(())
            });
        }
        let options = fields.value("options");
        fields.finish();
        let mut log = LogRotation::default();
        let mut fields = self.fields(options?, &keys::LOGGING_OPTIONS)?;
        if let Some(node) = fields.value("max-size") {
            let hint = "write bytes or a number with a unit, like `10m`; at least `4k`";
            // Docker counts log sizes in thousands.
            let bytes =
                self.parsed(node, "a log size", hint, |text| units::bytes(text, 1000).filter(|bytes| *bytes >= 4000));
            log.max_bytes = bytes.unwrap_or(log.max_bytes);
        }
        if let Some(node) = fields.value("max-file") {
            let files = self.parsed(node, "a number of logs", "write 1 to 1000", |text| {
                text.parse::<u32>().ok().filter(|files| (1..=1000).contains(files))
            });
            log.max_files = files.unwrap_or(log.max_files);
        }
        fields.finish();
        Some(log)
    }

    pub(crate) fn working_dir(&mut self, node: &Node) -> Option<PathBuf> {
        self.parsed(node, "an absolute path", "write a path that begins with `/`", |text| {
            let path = PathBuf::from(text);
            path.is_absolute().then_some(path)
        })
    }
}

pub(crate) fn is_host_name(name: &str) -> bool {
    name.len() <= 253
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

fn signal(text: &str) -> Option<String> {
    if let Ok(number) = text.parse::<usize>() {
        return SIGNALS.get(number.checked_sub(1)?).map(|name| (*name).to_owned());
    }
    let upper = text.to_ascii_uppercase();
    SIGNALS.into_iter().find(|name| *name == upper || name[3..] == upper).map(str::to_owned)
}

/// What a duration isn't, for the message about a wrong one.
fn kind_of_duration(node: &Node, usual: &'static str) -> &'static str {
    match &node.data {
        Data::Scalar(scalar) if units::is_too_long(&scalar.text) => "a duration of less than a hundred years",
        _ => usual,
    }
}

fn placeholder_name() -> ServiceName {
    ServiceName::parse("invalid").unwrap_or_else(|_| unreachable!("the word keeps the rules"))
}

fn empty(name: Spanned<ServiceName>) -> FileService {
    FileService {
        name,
        image: None,
        build: None,
        container: Container::default(),
        privileged: None,
        process: None,
        process_written: false,
        runtime: RuntimeChoice::Auto,
        environment: std::collections::BTreeMap::new(),
        container_name: None,
        networks: None,
        network_mode: None,
        expose: Vec::new(),
        ports: Vec::new(),
        depends_on: Vec::new(),
        links: Vec::new(),
        healthcheck: None,
        healthcheck_span: None,
        healthcheck_disabled: false,
        healthcheck_times: HealthTimes::default(),
        restart: Restart::No,
        restart_span: None,
        update: None,
        rollback: None,
        replicas: Vec::new(),
        memory_bytes: Vec::new(),
        memory_reservation_bytes: Vec::new(),
        memory_swap_bytes: None,
        cpu_shares: None,
        cpuset: None,
        cpu_milli: Vec::new(),
        pids: Vec::new(),
        stop_signal: "SIGTERM".into(),
        stop_grace_ms: 10_000,
        mounts: Vec::new(),
        volumes_from: Vec::new(),
        files: Vec::new(),
        settings: ProcessSettings::default(),
        extra_hosts: Vec::new(),
        host_gateway: None,
        log: LogRotation::default(),
        cap_add: Vec::new(),
        cap_drop: Vec::new(),
        read_only: false,
        allow: Vec::new(),
        connect: None,
        strict: false,
        egress: None,
        host_ports: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        assert_eq!(signal("term").as_deref(), Some("SIGTERM"));
        assert_eq!(signal("SIGINT").as_deref(), Some("SIGINT"));
        assert_eq!(signal("15").as_deref(), Some("SIGTERM"));
        assert_eq!(signal("31").as_deref(), Some("SIGSYS"));
        assert_eq!((signal("0"), signal("99"), signal("SIGNONE")), (None, None, None));
    }

    #[test]
    fn hosts_files_can_not_be_broken_into() {
        assert!(is_host_name("db-1.example_x"));
        assert!(!is_host_name("a b") && !is_host_name("a\n127.0.0.1 b") && !is_host_name("") && !is_host_name("-a"));
    }
}
