//! The file's top level, and what is listed there besides services.

use super::*;

const NO_MODELS: &str = "Palisade runs no models by itself";
const NO_MODELS_INSTEAD: &str = "run the model server as a service";
const CLUSTER_STORE: &str = "it is kept by a cluster's store, and a stack runs on one machine";
const CLUSTER_STORE_INSTEAD: &str = "give the value with `file` or `environment`";

/// The whole file.
pub static TOP: Section = section(
    "",
    "the file's top level",
    &[
        yes("name", TEXT, "the project's name, unless `--project-name` or COMPOSE_PROJECT_NAME is given"),
        yes("include", Shape::Items(Short::Include, &INCLUDE), "other files whose services belong to this stack"),
        yes("services", Shape::Named(&SERVICE), "what runs"),
        yes("networks", Shape::Named(&NETWORK), "which services may reach each other"),
        yes("volumes", Shape::Named(&VOLUME), "directories that outlive instances"),
        yes("secrets", Shape::Named(&SECRET), "files that only the services see that name them"),
        yes("configs", Shape::Named(&CONFIG), "files that are put into services"),
        yes("x-palisade", Shape::Section(&TOP_PALISADE), "what Compose has no word for"),
        idle("version", TEXT, "every file is read by the current Compose Specification"),
        no("models", Shape::Named(&MODEL), NO_MODELS, NO_MODELS_INSTEAD),
    ],
);

/// One of `include`.
pub static INCLUDE: Section = section(
    "include[]",
    "an `include`",
    &[
        yes("path", Shape::OneOrList(Kind::Path, Repeats::Kept), "the file, or several that are merged"),
        yes("project_directory", PATH, "where its relative paths start; its own folder unless given"),
        yes(
            "env_file",
            Shape::OneOrList(Kind::Path, Repeats::Kept),
            "variables for it, instead of its folder's `.env`",
        ),
    ],
);

/// A network of the file.
pub static NETWORK: Section = section(
    "networks.*",
    "a network",
    &[
        yes("driver", TEXT, "`bridge`, `default` and `overlay` are the same here; others are refused"),
        yes("internal", BOOL, "services that are only in such networks have no egress"),
        yes(
            "external",
            Shape::Short(Short::External, &EXTERNAL),
            "a group of this stack's services: other stacks stay out",
        ),
        idle("name", TEXT, BRIDGE),
        idle("attachable", BOOL, BRIDGE),
        idle("enable_ipv4", BOOL, "services reach each other over both families"),
        idle("enable_ipv6", BOOL, "services reach each other over both families"),
        idle("labels", PAIRS, LABELS),
        idle("ipam", Shape::Section(&IPAM), ADDRESSES),
        idle("driver_opts", PAIRS, BRIDGE),
    ],
);

/// `ipam` of a network.
pub static IPAM: Section = section(
    "networks.*.ipam",
    "`ipam`",
    &[
        idle("driver", TEXT, ADDRESSES),
        idle("config", Shape::Items(Short::None, &IPAM_CONFIG), ADDRESSES),
        idle("options", PAIRS, ADDRESSES),
    ],
);

/// One of `ipam.config`.
pub static IPAM_CONFIG: Section = same_by(
    Identity::Subnet,
    "networks.*.ipam.config[]",
    "an item of `ipam.config`",
    &[
        idle("subnet", TEXT, ADDRESSES),
        idle("ip_range", TEXT, ADDRESSES),
        idle("gateway", TEXT, ADDRESSES),
        idle("aux_addresses", PAIRS, ADDRESSES),
    ],
);

/// A volume of the file.
pub static VOLUME: Section = section(
    "volumes.*",
    "a volume",
    &[
        yes("driver", TEXT, "`local`; others are refused"),
        yes("driver_opts", Shape::Section(&VOLUME_OPTIONS), "a folder of the host, or memory"),
        yes("name", TEXT, "its name on the host, instead of the project's and the key"),
        yes("external", Shape::Short(Short::External, &EXTERNAL), "it exists already, and is never removed"),
        idle("labels", PAIRS, LABELS),
    ],
);

/// `driver_opts` of a volume.
pub static VOLUME_OPTIONS: Section = section(
    "volumes.*.driver_opts",
    "`driver_opts` of a volume",
    &[
        yes("type", TEXT, "`none` or `bind` with a folder, or `tmpfs`; network file systems are refused"),
        yes("o", TEXT, "`bind`, `ro`, `rw`, `size=…`; others are refused"),
        yes("device", PATH, "the folder"),
    ],
);

/// A secret of the file.
pub static SECRET: Section = section(
    "secrets.*",
    "a secret",
    &[
        yes("file", PATH, "it is the contents of this file"),
        yes("environment", TEXT, "it is the value of this variable"),
        idle("name", TEXT, "it names an engine's own secret; services know it by its key"),
        idle("labels", PAIRS, LABELS),
        no("external", Shape::Short(Short::External, &EXTERNAL), CLUSTER_STORE, CLUSTER_STORE_INSTEAD),
        no("driver", TEXT, CLUSTER_STORE, CLUSTER_STORE_INSTEAD),
        no("driver_opts", PAIRS, CLUSTER_STORE, CLUSTER_STORE_INSTEAD),
        no("template_driver", TEXT, CLUSTER_STORE, CLUSTER_STORE_INSTEAD),
    ],
);

/// A config of the file.
pub static CONFIG: Section = section(
    "configs.*",
    "a config",
    &[
        yes("file", PATH, "it is the contents of this file"),
        yes("content", TEXT, "it is this text, variables filled in"),
        yes("environment", TEXT, "it is the value of this variable"),
        idle("name", TEXT, "it names an engine's own config; services know it by its key"),
        idle("labels", PAIRS, LABELS),
        no("external", Shape::Short(Short::External, &EXTERNAL), CLUSTER_STORE, CLUSTER_STORE_INSTEAD),
        no("template_driver", TEXT, CLUSTER_STORE, CLUSTER_STORE_INSTEAD),
    ],
);

/// `external` with the old way to give a name.
pub static EXTERNAL: Section =
    section("*.*.external", "`external`", &[yes("name", TEXT, "the old spelling of `name` beside `external: true`")]);

/// A model of the file.
pub static MODEL: Section = section(
    "models.*",
    "a model",
    &[
        no("name", TEXT, NO_MODELS, NO_MODELS_INSTEAD),
        no("model", TEXT, NO_MODELS, NO_MODELS_INSTEAD),
        no("context_size", INT, NO_MODELS, NO_MODELS_INSTEAD),
        no("runtime_flags", TEXTS, NO_MODELS, NO_MODELS_INSTEAD),
    ],
);
