//! The mappings below a service that have keys of their own, but for `build`, `deploy` and `x-palisade`.

use super::*;

const WATCH_ONLY: &str = "it is for `docker compose watch`";
const NO_PROVIDERS: &str = "it starts programs that the guard can't see";
const NO_MODELS: &str = "Palisade runs no models by itself";
const NO_MODELS_INSTEAD: &str = "run the model server as a service";

/// `extends`.
pub static EXTENDS: Section = section(
    "services.*.extends",
    "`extends`",
    &[
        yes("service", TEXT, "the service that is copied"),
        yes("file", PATH, "the file that it is in; this one unless given"),
    ],
);

/// A network of a service.
pub static SERVICE_NETWORK: Section = section(
    "services.*.networks.*",
    "a network of a service",
    &[
        yes("aliases", SET, "other names that peers know the service by"),
        idle("priority", INT, BRIDGE),
        idle("gw_priority", INT, BRIDGE),
        idle("ipv4_address", TEXT, ADDRESSES),
        idle("ipv6_address", TEXT, ADDRESSES),
        idle("link_local_ips", SET, ADDRESSES),
        idle("mac_address", TEXT, BRIDGE),
        idle("interface_name", TEXT, BRIDGE),
        idle("driver_opts", PAIRS, BRIDGE),
    ],
);

/// `healthcheck`.
pub static HEALTHCHECK: Section = section(
    "services.*.healthcheck",
    "`healthcheck`",
    &[
        yes("test", Shape::Test, "what is run; exit code 0 is healthy; without it, the image's own test"),
        yes("interval", DURATION, "time between checks"),
        yes("timeout", DURATION, "a check that takes longer has failed"),
        yes("retries", INT, "so many failures in a row make it unhealthy"),
        yes("start_period", DURATION, "failures in this time don't count"),
        yes("start_interval", DURATION, "time between checks during the start period"),
        yes("disable", BOOL, "no health check"),
    ],
);

/// The long form of `ports`.
pub static PORT: Section = same_by(
    Identity::Port,
    "services.*.ports[]",
    "a port",
    &[
        yes("target", INT, "the service's port"),
        yes("published", TEXT, "the host's port"),
        yes("host_ip", TEXT, "the host's address; all of them unless given"),
        yes("protocol", TEXT, "`tcp` or `udp`"),
        idle("mode", TEXT, ONE_MACHINE),
        idle("name", TEXT, "it is for people to read"),
        idle("app_protocol", TEXT, "it is for people to read"),
    ],
);

/// The long form of `depends_on`.
pub static DEPENDENCY: Section = section(
    "services.*.depends_on.*",
    "a dependency",
    &[
        yes("condition", TEXT, "how far the other must be"),
        yes("restart", BOOL, "restarted after the other was"),
        yes("required", BOOL, "`false`: when the other can't be had, that is told and not waited for"),
    ],
);

/// The long form of `env_file`.
pub static ENV_FILE: Section = same_by(
    Identity::Path,
    "services.*.env_file[]",
    "an `env_file`",
    &[
        yes("path", PATH, "relative to the file's directory"),
        yes("required", BOOL, "`false`: may be missing"),
        yes("format", TEXT, "`raw`: values are taken as they are, without quotes and variables"),
    ],
);

/// The long form of `volumes`.
pub static MOUNT: Section = same_by(
    Identity::Target,
    "services.*.volumes[]",
    "a mount",
    &[
        yes("type", TEXT, "`bind`, `volume` or `tmpfs`; others are refused"),
        yes("source", TEXT, "a path, or a volume's name; a volume without one is the instance's own"),
        yes("target", TEXT, "where it is seen"),
        yes("read_only", BOOL, "not writable"),
        yes("bind", Shape::Section(&MOUNT_BIND), "options of a bind mount"),
        yes("volume", Shape::Section(&MOUNT_VOLUME), "options of a volume"),
        yes("tmpfs", Shape::Section(&MOUNT_TMPFS), "options of a mount in memory"),
        no(
            "image",
            Shape::Section(&MOUNT_IMAGE),
            "the contents of images are not mounted",
            "mount a folder or a volume",
        ),
        idle("consistency", TEXT, "it is for virtual machines on laptops"),
    ],
);

/// `bind` of a mount.
pub static MOUNT_BIND: Section = section(
    "services.*.volumes[].bind",
    "`bind`",
    &[
        idle("create_host_path", BOOL, "what is missing on the host is an error when the stack starts"),
        idle("selinux", TEXT, "a process of the host has the host's labels"),
        yes("propagation", TEXT, "`private` and `rprivate` are how mounts are made; others are refused"),
        yes("recursive", TEXT, "`enabled` is how mounts are made; others are refused"),
    ],
);

/// `volume` of a mount.
pub static MOUNT_VOLUME: Section = section(
    "services.*.volumes[].volume",
    "`volume`",
    &[
        yes("nocopy", BOOL, "an image's files are not copied into it"),
        idle("labels", PAIRS, LABELS),
        no("subpath", TEXT, "a volume is mounted whole", "use a volume of its own, or a bind mount of the folder"),
    ],
);

/// `tmpfs` of a mount.
pub static MOUNT_TMPFS: Section = section(
    "services.*.volumes[].tmpfs",
    "`tmpfs`",
    &[
        yes("size", BYTES, "bytes, or with a unit"),
        yes("mode", MODE, "permission bits; writable for everybody, like /tmp, unless given"),
    ],
);

/// `image` of a mount.
pub static MOUNT_IMAGE: Section = section(
    "services.*.volumes[].image",
    "`image` of a mount",
    &[no("subpath", TEXT, "the contents of images are not mounted", "mount a folder or a volume")],
);

const REFERENCE_KEYS: &[Key] = &[
    yes("source", TEXT, "its name at the file's top level"),
    yes("target", TEXT, "where it is seen"),
    yes("uid", TEXT, "its owner"),
    yes("gid", TEXT, "its group"),
    yes("mode", MODE, "its permission bits, `0444` unless given"),
];

/// The long form of a service's `secrets`.
pub static SERVICE_SECRET: Section =
    same_by(Identity::TargetBelow("/run/secrets"), "services.*.secrets[]", "a secret of a service", REFERENCE_KEYS);

/// The long form of a service's `configs`.
pub static SERVICE_CONFIG: Section =
    same_by(Identity::TargetBelow(""), "services.*.configs[]", "a config of a service", REFERENCE_KEYS);

/// `logging`.
pub static LOGGING: Section = same_by(
    Identity::Driver,
    "services.*.logging",
    "`logging`",
    &[
        yes("driver", TEXT, "`json-file` or `local`; others are refused"),
        yes("options", Shape::Section(&LOGGING_OPTIONS), "rotation"),
    ],
);

/// `logging.options`.
pub static LOGGING_OPTIONS: Section = section(
    "services.*.logging.options",
    "`logging.options`",
    &[
        yes("max-size", TEXT, "a log of this size is rotated"),
        yes("max-file", TEXT, "so many logs are kept, with the current one"),
        idle("compress", TEXT, "rotated logs are not compressed"),
        idle("mode", TEXT, "output is never dropped"),
        idle("max-buffer-size", TEXT, "output is never dropped"),
        idle("labels", TEXT, LABELS),
        idle("labels-regex", TEXT, LABELS),
        idle("tag", TEXT, LABELS),
        idle("env", TEXT, LABELS),
        idle("env-regex", TEXT, LABELS),
    ],
);

/// The long form of one of `ulimits`.
pub static ULIMIT: Section = section(
    "services.*.ulimits.*",
    "a limit",
    &[yes("soft", INT, "what counts; -1 is unlimited"), yes("hard", INT, "what it may be raised to; -1 is unlimited")],
);

/// One of `post_start` or `pre_stop`.
pub static HOOK: Section = section(
    "services.*.post_start[]",
    "a hook",
    &[
        yes("command", Shape::Command, "what is run"),
        yes("user", TEXT, "who it runs as; the service's user unless given"),
        yes("privileged", BOOL, "`false` is how hooks run; `true` is refused"),
        yes("working_dir", TEXT, "where it starts; where the service starts unless given"),
        yes("environment", PAIRS, "variables besides the service's"),
    ],
);

/// The long form of `devices`.
pub static DEVICE: Section = same_by(
    Identity::Target,
    "services.*.devices[]",
    "a device",
    &[
        image("source", TEXT, "the host's device"),
        image("target", TEXT, "where it is seen"),
        image("permissions", TEXT, "`r`, `w` and `m`"),
    ],
);

/// `blkio_config`.
pub static BLKIO: Section = section(
    "services.*.blkio_config",
    "`blkio_config`",
    &[
        image("weight", INT, "its weight when the disk is busy"),
        image("weight_device", Shape::Items(Short::None, &BLKIO_WEIGHT), "the same, for one device"),
        image("device_read_bps", Shape::Items(Short::None, &BLKIO_RATE), "bytes a second"),
        image("device_read_iops", Shape::Items(Short::None, &BLKIO_RATE), "operations a second"),
        image("device_write_bps", Shape::Items(Short::None, &BLKIO_RATE), "bytes a second"),
        image("device_write_iops", Shape::Items(Short::None, &BLKIO_RATE), "operations a second"),
    ],
);

/// A limit of `blkio_config`.
pub static BLKIO_RATE: Section = section(
    "services.*.blkio_config.device_*[]",
    "a limit of `blkio_config`",
    &[image("path", TEXT, "the device"), image("rate", BYTES, "bytes or operations a second")],
);

/// A weight of `blkio_config`.
pub static BLKIO_WEIGHT: Section = section(
    "services.*.blkio_config.weight_device[]",
    "a weight of `blkio_config`",
    &[image("path", TEXT, "the device"), image("weight", INT, "10 to 1000")],
);

/// `credential_spec`.
pub static CREDENTIAL_SPEC: Section = section(
    "services.*.credential_spec",
    "`credential_spec`",
    &[no("config", TEXT, WINDOWS, REMOVE), no("file", TEXT, WINDOWS, REMOVE), no("registry", TEXT, WINDOWS, REMOVE)],
);

/// `develop`.
pub static DEVELOP: Section =
    section("services.*.develop", "`develop`", &[idle("watch", Shape::Items(Short::None, &WATCH), WATCH_ONLY)]);

/// One of `develop.watch`.
pub static WATCH: Section = section(
    "services.*.develop.watch[]",
    "an item of `watch`",
    &[
        idle("path", PATH, WATCH_ONLY),
        idle("action", TEXT, WATCH_ONLY),
        idle("target", TEXT, WATCH_ONLY),
        idle("ignore", Shape::OneOrList(Kind::Text, Repeats::Kept), WATCH_ONLY),
        idle("include", Shape::OneOrList(Kind::Text, Repeats::Kept), WATCH_ONLY),
        idle("exec", Shape::Section(&HOOK), WATCH_ONLY),
        idle("initial_sync", BOOL, WATCH_ONLY),
    ],
);

/// `provider`.
pub static PROVIDER: Section = section(
    "services.*.provider",
    "`provider`",
    &[no("type", TEXT, NO_PROVIDERS, REMOVE), no("options", Shape::Any, NO_PROVIDERS, REMOVE)],
);

/// A model of a service.
pub static SERVICE_MODEL: Section = section(
    "services.*.models.*",
    "a model of a service",
    &[no("endpoint_var", TEXT, NO_MODELS, NO_MODELS_INSTEAD), no("model_var", TEXT, NO_MODELS, NO_MODELS_INSTEAD)],
);
