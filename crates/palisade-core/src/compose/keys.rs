//! Every key of a Compose file and what becomes of it: the one table that the parser obeys and documents are made of.
//!
//! Only words here; reading the values is done in the modules beside this one.

/// What becomes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Palisade does what it says; the text says what that is.
    Honoured(&'static str),
    /// Accepted, and needs nothing done; the text says why.
    NoEffect(&'static str),
    /// What an image runs with; the text says what it does there. Beside `x-palisade.process`, which takes the image's
    /// place, it has no effect.
    Image(&'static str),
    /// An error.
    Refused {
        /// Why it can't be honoured.
        why: &'static str,
        /// What to do about it.
        instead: &'static str,
    },
}

/// One key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// As written.
    pub name: &'static str,
    /// What becomes of it.
    pub class: Class,
    /// What can stand there.
    pub shape: Shape,
}

/// What can stand at a key: from this follow how it is merged (Compose Specification, 13-merge), what its short forms
/// mean, and how the canonical file shows it. Whether a value makes sense is for the readers to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A single value; a later one takes its place.
    One(Kind),
    /// A list of single values; a later list is added to it.
    List(Kind, Repeats),
    /// The same, and a single value stands for a list of one.
    OneOrList(Kind, Repeats),
    /// A command: a list of words, or one text for a shell; a later one takes its place.
    Command,
    /// `KEY: value`, or a list of `KEY=value`; merged by key. A key without value has none.
    Pairs(Pairs),
    /// A mapping with these keys.
    Section(&'static Section),
    /// The same, or a short form.
    Short(Short, &'static Section),
    /// A mapping from names of the user's own to mappings with these keys.
    Named(&'static Section),
    /// The same, and a value may be a short form.
    NamedShort(Short, &'static Section),
    /// The same as [`Shape::Named`], and a list of names stands for a mapping to nothing.
    NamedOrList(&'static Section),
    /// A list of mappings with these keys, each of which may be a short form. Items that are the same thing (one
    /// target, one port …) are merged, others added.
    Items(Short, &'static Section),
    /// Anything at all: what only an engine's plug-in or a person understands.
    Any,
}

/// What a single value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A path of the host; a relative one starts where its file says.
    Path,
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Int,
    /// A decimal number.
    Float,
    /// `1m30s`.
    Duration,
    /// `64m`, in bytes.
    Bytes,
}

/// Whether a list may hold a value twice once it is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// It may.
    Kept,
    /// The first one stays.
    Dropped,
}

/// What a list of pairs looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// `KEY=value`, values are text.
    Equals,
    /// `extra_hosts`: `name=address` or `name:address`; a name may have several addresses.
    Hosts,
}

/// Short forms, by the key that they are known from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the key's own name")]
pub enum Short {
    /// There is none.
    None,
    Build,
    Device,
    EnvFile,
    Extends,
    External,
    FileReference,
    Include,
    Port,
    Ulimit,
    Volume,
}

/// The keys of one kind of mapping.
#[derive(Debug, PartialEq, Eq)]
pub struct Section {
    /// Where it stands: `services.*.deploy`.
    pub path: &'static str,
    /// What it is, for messages: "`deploy`".
    pub what: &'static str,
    /// Its keys, in the order of the documentation.
    pub keys: &'static [Key],
}

impl Section {
    /// The key of that name.
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

const fn yes(name: &'static str, does: &'static str) -> Key {
    Key { name, class: Class::Honoured(does), shape: Shape::Any }
}
const fn idle(name: &'static str, why: &'static str) -> Key {
    Key { name, class: Class::NoEffect(why), shape: Shape::Any }
}
const fn image(name: &'static str, does: &'static str) -> Key {
    Key { name, class: Class::Image(does), shape: Shape::Any }
}
const fn no(name: &'static str, why: &'static str, instead: &'static str) -> Key {
    Key { name, class: Class::Refused { why, instead }, shape: Shape::Any }
}

const REMOVE: &str = "remove it";
const NOT_YET: &str = "Palisade does not support it yet";
const LABELS: &str = "labels are for engines and their tools";
const LIMITS: &str = "only memory, processors and the number of processes are limited";
const LIMITS_INSTEAD: &str = "use `deploy.resources.limits` with `memory`, `cpus` and `pids`";
const HOST_NAMESPACE: &str = "it would share more of the host with the service than the guard can watch";
const RESOLVER: &str = "names of peers come from the instance's own hosts file, all others from the host's resolver";
const RESOLVER_INSTEAD: &str = "remove it, or write fixed names into `extra_hosts`";
const ONE_MACHINE: &str = "it is about a cluster, and a stack runs on one machine";
const BRIDGE: &str = "there is no bridge: a network is a group of services that may reach each other";

/// The whole file.
pub static TOP: Section = Section {
    path: "",
    what: "the file's top level",
    keys: &[
        yes("name", "the project's name, unless `--project-name` or COMPOSE_PROJECT_NAME is given"),
        yes("services", "what runs"),
        yes("networks", "which services may reach each other"),
        yes("volumes", "directories that outlive instances"),
        yes("x-palisade", "what Compose has no word for"),
        idle("version", "every file is read by the current Compose Specification"),
        no("include", NOT_YET, "write the included services into this file"),
        no("secrets", NOT_YET, "mount the file with `volumes`, or use `env_file`"),
        no("configs", NOT_YET, "mount the file with `volumes`"),
        no("models", "Palisade runs no models by itself", "run the model server as a service"),
    ],
};

/// One service.
pub static SERVICE: Section = Section {
    path: "services.*",
    what: "a service",
    keys: &[
        image("image", "what runs"),
        image("build", "what runs"),
        image("command", "what runs"),
        image("entrypoint", "what runs"),
        image("platform", "what runs"),
        image("pull_policy", "what runs"),
        yes("x-palisade", "what Compose has no word for"),
        yes("user", "who the process runs as, unless `x-palisade.process.user` says otherwise"),
        yes("working_dir", "where the process starts, unless `x-palisade.process.working_dir` says otherwise"),
        yes("environment", "the process's environment"),
        yes("env_file", "files with more of the environment"),
        yes("networks", "the networks it is in, with other names for it"),
        yes("network_mode", "`host`: `localhost` also means peers; `none`: no peers; `bridge`: as if not written"),
        yes("expose", "private ports, for peers"),
        yes("ports", "ports that are reachable from outside"),
        yes("depends_on", "start order, by condition"),
        yes("healthcheck", "how to know that it works"),
        yes("restart", "when it is run again"),
        yes("deploy", "replicas and limits"),
        yes("scale", "the same as `deploy.replicas`"),
        yes("mem_limit", "the same as `deploy.resources.limits.memory`"),
        yes("cpus", "the same as `deploy.resources.limits.cpus`"),
        yes("pids_limit", "the same as `deploy.resources.limits.pids`"),
        yes("stop_signal", "the signal that asks it to end"),
        yes("stop_grace_period", "the time until it is killed"),
        yes("volumes", "mounts"),
        yes("tmpfs", "mounts in memory"),
        yes("extra_hosts", "lines of its hosts file"),
        yes("logging", "rotation of its log"),
        yes("cap_add", "capabilities, as far as they don't break the guard"),
        yes("cap_drop", "capabilities that it goes without"),
        yes("read_only", "no writable root file system"),
        yes("container_name", "one more name that peers know it by"),
        yes("privileged", "`false` is how services run; `true` is refused"),
        yes("security_opt", "`no-new-privileges:true` is how services run; others are refused"),
        idle("init", "every instance has an init that reaps its orphans"),
        idle("hostname", "an instance sees the host's name; peers use the service's name"),
        idle("labels", LABELS),
        idle("annotations", LABELS),
        no("profiles", NOT_YET, "put the service into a stack of its own, or remove the key"),
        no("extends", NOT_YET, "use an anchor and `<<: *name`"),
        no("secrets", NOT_YET, "mount the file with `volumes`, or use `env_file`"),
        no("configs", NOT_YET, "mount the file with `volumes`"),
        no("links", "networks have replaced it", "put both services into one network, with `aliases` for other names"),
        no("external_links", "it reaches into another stack", "publish the port there and use `x-palisade.host`"),
        no("volumes_from", "it depends on another container's mounts", "name the volume in both services"),
        no("dns", RESOLVER, RESOLVER_INSTEAD),
        no("dns_search", RESOLVER, RESOLVER_INSTEAD),
        no("dns_opt", RESOLVER, RESOLVER_INSTEAD),
        no("domainname", RESOLVER, RESOLVER_INSTEAD),
        no("label_file", LABELS, REMOVE),
        no("pid", HOST_NAMESPACE, REMOVE),
        no("ipc", HOST_NAMESPACE, REMOVE),
        no("uts", HOST_NAMESPACE, REMOVE),
        no("userns_mode", HOST_NAMESPACE, REMOVE),
        no("cgroup", "the cgroup is how the guard tells services apart", REMOVE),
        no("cgroup_parent", "the cgroup is how the guard tells services apart", REMOVE),
        no("devices", "devices are a way around the guard", "run this service outside of the stack"),
        no("device_cgroup_rules", "devices are a way around the guard", "run this service outside of the stack"),
        no("gpus", NOT_YET, "run this service outside of the stack and reach it with `x-palisade.host`"),
        no("group_add", NOT_YET, "give the group with `user: name:group`"),
        no("sysctls", "a service shares the host's network settings", "set it on the host with sysctl.d"),
        no("ulimits", NOT_YET, "set it in the command with `ulimit`"),
        no("shm_size", NOT_YET, "mount a `tmpfs` with a size at `/dev/shm`"),
        no("mac_address", BRIDGE, REMOVE),
        no("mem_reservation", LIMITS, LIMITS_INSTEAD),
        no("mem_swappiness", LIMITS, LIMITS_INSTEAD),
        no("memswap_limit", LIMITS, LIMITS_INSTEAD),
        no("oom_kill_disable", LIMITS, LIMITS_INSTEAD),
        no("oom_score_adj", LIMITS, LIMITS_INSTEAD),
        no("blkio_config", LIMITS, LIMITS_INSTEAD),
        no("storage_opt", LIMITS, LIMITS_INSTEAD),
        no("cpu_count", LIMITS, LIMITS_INSTEAD),
        no("cpu_percent", LIMITS, LIMITS_INSTEAD),
        no("cpu_period", LIMITS, LIMITS_INSTEAD),
        no("cpu_quota", LIMITS, LIMITS_INSTEAD),
        no("cpu_rt_period", LIMITS, LIMITS_INSTEAD),
        no("cpu_rt_runtime", LIMITS, LIMITS_INSTEAD),
        no("cpu_shares", LIMITS, LIMITS_INSTEAD),
        no("cpuset", LIMITS, LIMITS_INSTEAD),
        no("runtime", "there is no choice of container runtimes", REMOVE),
        no("isolation", "it is for Windows", REMOVE),
        no("credential_spec", "it is for Windows", REMOVE),
        no("stdin_open", "a supervised process has no terminal", REMOVE),
        no("tty", "a supervised process has no terminal", REMOVE),
        no("attach", "output goes to the log, and `palisade logs` shows it", REMOVE),
        no("develop", "it is for development with `docker compose watch`", "move it to an override file for laptops"),
        no("post_start", NOT_YET, "do it at the beginning of the service's command"),
        no("pre_stop", NOT_YET, "do it when the stop signal arrives"),
        no("provider", "it starts programs that the guard can't see", REMOVE),
        no("models", "Palisade runs no models by itself", "run the model server as a service"),
        no("use_api_socket", "who may talk to the engine can start containers outside of the guard", REMOVE),
        no("log_driver", "it is an old spelling", "use `logging`"),
        no("log_opt", "it is an old spelling", "use `logging.options`"),
        no("net", "it is an old spelling", "use `network_mode`"),
    ],
};

/// `services.*.x-palisade`.
pub static SERVICE_PALISADE: Section = Section {
    path: "services.*.x-palisade",
    what: "`x-palisade` of a service",
    keys: &[
        yes("process", "how to run it without a container engine"),
        yes("connect", "only these peers, and ports of theirs, may be connected to"),
        yes("strict", "a bind to an undeclared port is refused"),
        yes("egress", "what it may reach outside: `none`, `all`, or a list of addresses"),
        yes("host", "ports of the host's own loopback services that it may use"),
        no("runtime", "supervised processes are the only runtime so far", "remove it, and give `process`"),
    ],
};

/// `x-palisade.process`.
pub static PROCESS: Section = Section {
    path: "services.*.x-palisade.process",
    what: "`x-palisade.process`",
    keys: &[
        yes(
            "command",
            "the argument vector, a program that begins with `./` being below the project directory; a string is for `/bin/sh -c`",
        ),
        yes("user", "`user` or `user:group`"),
        yes("working_dir", "where it starts"),
    ],
};

/// `x-palisade` of the file.
pub static TOP_PALISADE: Section = Section {
    path: "x-palisade",
    what: "`x-palisade` of the file",
    keys: &[
        yes("firewall", "what else the host's firewall lets in"),
        no(
            "edge",
            "the TLS edge is not part of this version; it comes with a later one",
            "remove it and publish the port with `ports` until then",
        ),
    ],
};

/// `x-palisade.firewall`.
pub static FIREWALL: Section = Section {
    path: "x-palisade.firewall",
    what: "`x-palisade.firewall`",
    keys: &[
        yes("allow", "ports besides SSH and the published ones that stay open"),
        yes("backend", "`auto`, or `none` to leave the host's firewall alone"),
    ],
};

/// A network of the file.
pub static NETWORK: Section = Section {
    path: "networks.*",
    what: "a network",
    keys: &[
        yes("driver", "`bridge` or `default`; others are refused"),
        yes("internal", "services that are only in such networks have no egress"),
        idle("name", BRIDGE),
        idle("attachable", BRIDGE),
        idle("enable_ipv4", "services reach each other over both families"),
        idle("enable_ipv6", "services reach each other over both families"),
        idle("labels", LABELS),
        no(
            "external",
            "it belongs to another stack",
            "remove `external`; to reach the other stack, publish its port and use `x-palisade.host`",
        ),
        no("ipam", "private addresses are given by Palisade", "remove it, and use names instead of addresses"),
        no("driver_opts", BRIDGE, REMOVE),
    ],
};

/// A network of a service.
pub static SERVICE_NETWORK: Section = Section {
    path: "services.*.networks.*",
    what: "a network of a service",
    keys: &[
        yes("aliases", "other names that peers know the service by"),
        idle("priority", BRIDGE),
        idle("gw_priority", BRIDGE),
        no("ipv4_address", "private addresses are given by Palisade", "remove it, and use the service's name"),
        no("ipv6_address", "private addresses are given by Palisade", "remove it, and use the service's name"),
        no("link_local_ips", "private addresses are given by Palisade", "remove it, and use the service's name"),
        no("mac_address", BRIDGE, REMOVE),
        no("interface_name", BRIDGE, REMOVE),
        no("driver_opts", BRIDGE, REMOVE),
    ],
};

/// A volume of the file.
pub static VOLUME: Section = Section {
    path: "volumes.*",
    what: "a volume",
    keys: &[
        yes("driver", "`local`; others are refused"),
        idle("labels", LABELS),
        no("name", "a volume's directory is named by its key", "remove it, or rename the key"),
        no("external", "it belongs to another stack", "mount its directory with a bind mount"),
        no("driver_opts", "there are no volume drivers", "mount it on the host and use a bind mount"),
    ],
};

/// `healthcheck`.
pub static HEALTHCHECK: Section = Section {
    path: "services.*.healthcheck",
    what: "`healthcheck`",
    keys: &[
        yes("test", "what is run; exit code 0 is healthy"),
        yes("interval", "time between checks"),
        yes("timeout", "a check that takes longer has failed"),
        yes("retries", "so many failures in a row make it unhealthy"),
        yes("start_period", "failures in this time don't count"),
        yes("start_interval", "time between checks during the start period"),
        yes("disable", "no health check"),
    ],
};

/// `deploy`.
pub static DEPLOY: Section = Section {
    path: "services.*.deploy",
    what: "`deploy`",
    keys: &[
        yes("replicas", "how many instances run"),
        yes("resources", "limits"),
        yes("mode", "`replicated`; others are refused"),
        idle("labels", LABELS),
        no("restart_policy", "a service has one restart policy", "use `restart`"),
        no("update_config", NOT_YET, REMOVE),
        no("rollback_config", NOT_YET, REMOVE),
        no("placement", ONE_MACHINE, REMOVE),
        no("endpoint_mode", ONE_MACHINE, REMOVE),
    ],
};

/// `deploy.resources`.
pub static RESOURCES: Section = Section {
    path: "services.*.deploy.resources",
    what: "`deploy.resources`",
    keys: &[
        yes("limits", "what it gets at most"),
        no("reservations", "nothing is set aside for a service", LIMITS_INSTEAD),
    ],
};

/// `deploy.resources.limits`.
pub static RESOURCE_LIMITS: Section = Section {
    path: "services.*.deploy.resources.limits",
    what: "`deploy.resources.limits`",
    keys: &[
        yes("cpus", "processors, as a decimal number"),
        yes("memory", "bytes, or with a unit"),
        yes("pids", "processes and threads"),
    ],
};

/// The long form of `ports`.
pub static PORT: Section = Section {
    path: "services.*.ports[]",
    what: "a port",
    keys: &[
        yes("target", "the service's port"),
        yes("published", "the host's port"),
        yes("host_ip", "the host's address; all of them unless given"),
        yes("protocol", "`tcp` or `udp`"),
        idle("mode", ONE_MACHINE),
        idle("name", "it is for people to read"),
        idle("app_protocol", "it is for people to read"),
    ],
};

/// The long form of `depends_on`.
pub static DEPENDENCY: Section = Section {
    path: "services.*.depends_on.*",
    what: "a dependency",
    keys: &[
        yes("condition", "how far the other must be"),
        yes("restart", "restarted after the other was"),
        yes("required", "`true`; `false` is refused"),
    ],
};

/// The long form of `env_file`.
pub static ENV_FILE: Section = Section {
    path: "services.*.env_file[]",
    what: "an `env_file`",
    keys: &[
        yes("path", "relative to the project directory"),
        yes("required", "`false`: may be missing"),
        no("format", "there is only the usual format", "remove it; quote values with '…' to take them as they are"),
    ],
};

/// The long form of `volumes`.
pub static MOUNT: Section = Section {
    path: "services.*.volumes[]",
    what: "a mount",
    keys: &[
        yes("type", "`bind`, `volume` or `tmpfs`"),
        yes("source", "a path, or a volume's name"),
        yes("target", "where it is seen"),
        yes("read_only", "not writable"),
        yes("bind", "options of a bind mount"),
        yes("tmpfs", "options of a mount in memory"),
        idle("consistency", "it is for virtual machines on laptops"),
        idle("volume", "volumes are plain directories"),
        no("image", "there are no images", "mount a directory"),
    ],
};

/// `bind` of a mount.
pub static MOUNT_BIND: Section = Section {
    path: "services.*.volumes[].bind",
    what: "`bind`",
    keys: &[
        idle("create_host_path", "what is missing on the host is an error when the stack starts"),
        idle("selinux", "a process of the host has the host's labels"),
        no("propagation", "mounts don't travel between services and the host", REMOVE),
        no("recursive", "mounts are always taken with what is mounted below", REMOVE),
    ],
};

/// `tmpfs` of a mount.
pub static MOUNT_TMPFS: Section = Section {
    path: "services.*.volumes[].tmpfs",
    what: "`tmpfs`",
    keys: &[yes("size", "bytes, or with a unit"), no("mode", "it is writable for everybody, like /tmp", REMOVE)],
};

/// `logging`.
pub static LOGGING: Section = Section {
    path: "services.*.logging",
    what: "`logging`",
    keys: &[yes("driver", "`json-file` or `local`; others are refused"), yes("options", "rotation")],
};

/// `logging.options`.
pub static LOGGING_OPTIONS: Section = Section {
    path: "services.*.logging.options",
    what: "`logging.options`",
    keys: &[
        yes("max-size", "a log of this size is rotated"),
        yes("max-file", "so many logs are kept, with the current one"),
        idle("compress", "rotated logs are not compressed"),
        no("mode", "output is never dropped or delayed", REMOVE),
        no("labels", LABELS, REMOVE),
        no("tag", LABELS, REMOVE),
        no("env", LABELS, REMOVE),
    ],
};

/// Everything.
pub static TABLE: &[&Section] = &[
    &TOP,
    &TOP_PALISADE,
    &FIREWALL,
    &SERVICE,
    &SERVICE_PALISADE,
    &PROCESS,
    &SERVICE_NETWORK,
    &PORT,
    &DEPENDENCY,
    &HEALTHCHECK,
    &ENV_FILE,
    &DEPLOY,
    &RESOURCES,
    &RESOURCE_LIMITS,
    &MOUNT,
    &MOUNT_BIND,
    &MOUNT_TMPFS,
    &LOGGING,
    &LOGGING_OPTIONS,
    &NETWORK,
    &VOLUME,
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_key_stands_twice() {
        for section in TABLE {
            let names: BTreeSet<_> = section.keys.iter().map(|key| key.name).collect();
            assert_eq!(names.len(), section.keys.len(), "{}", section.path);
        }
    }
}
