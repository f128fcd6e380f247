//! `deploy` of a service and what is below it.

use super::*;

/// `services.*.deploy`.
pub static DEPLOY: Section = section(
    "services.*.deploy",
    "`deploy`",
    &[
        yes("replicas", INT, "how many instances run; 0 is none"),
        yes("resources", Shape::Section(&RESOURCES), "limits and reservations"),
        yes("mode", TEXT, "`replicated`, or `global`: one instance, for there is one machine; jobs are refused"),
        yes("restart_policy", Shape::Section(&RESTART_POLICY), "the same as `restart`"),
        yes("update_config", Shape::Section(&UPDATE_CONFIG), "how instances are replaced by newer ones"),
        yes("rollback_config", Shape::Section(&ROLLBACK_CONFIG), "how instances are replaced by earlier ones"),
        idle("labels", PAIRS, LABELS),
        idle("placement", Shape::Section(&PLACEMENT), ONE_MACHINE),
        idle("endpoint_mode", TEXT, ONE_MACHINE),
    ],
);

/// `deploy.resources`.
pub static RESOURCES: Section = section(
    "services.*.deploy.resources",
    "`deploy.resources`",
    &[
        yes("limits", Shape::Section(&RESOURCE_LIMITS), "what it gets at most"),
        yes("reservations", Shape::Section(&RESERVATIONS), "what it keeps under pressure"),
    ],
);

/// `deploy.resources.limits`.
pub static RESOURCE_LIMITS: Section = section(
    "services.*.deploy.resources.limits",
    "`deploy.resources.limits`",
    &[
        yes("cpus", FLOAT, "processors, as a decimal number"),
        yes("memory", BYTES, "bytes, or with a unit"),
        yes("pids", INT, "processes and threads"),
    ],
);

/// `deploy.resources.reservations`.
pub static RESERVATIONS: Section = section(
    "services.*.deploy.resources.reservations",
    "`deploy.resources.reservations`",
    &[
        yes("memory", BYTES, "the same as `mem_reservation`"),
        image("devices", Shape::Items(Short::None, &DEVICE_REQUEST), "devices that the engine finds and passes on"),
        idle(
            "cpus",
            FLOAT,
            "a scheduler of a cluster counts with it; `cpu_shares` says who comes first on one machine",
        ),
        idle("generic_resources", Shape::Items(Short::None, &GENERIC_RESOURCE), ONE_MACHINE),
    ],
);

/// One of `deploy.resources.reservations.devices` and of `gpus`.
pub static DEVICE_REQUEST: Section = section(
    "services.*.deploy.resources.reservations.devices[]",
    "a device request",
    &[
        image("capabilities", TEXTS, "what it must be able to do"),
        image("driver", TEXT, "whose it is"),
        image("count", TEXT, "how many, or `all`"),
        image("device_ids", TEXTS, "which"),
        image("options", PAIRS, "options of the driver"),
    ],
);

/// One of `deploy.resources.reservations.generic_resources`.
pub static GENERIC_RESOURCE: Section = section(
    "services.*.deploy.resources.reservations.generic_resources[]",
    "a generic resource",
    &[idle("discrete_resource_spec", Shape::Section(&DISCRETE_RESOURCE), ONE_MACHINE)],
);

/// `discrete_resource_spec` of a generic resource.
pub static DISCRETE_RESOURCE: Section = section(
    "services.*.deploy.resources.reservations.generic_resources[].discrete_resource_spec",
    "`discrete_resource_spec`",
    &[idle("kind", TEXT, ONE_MACHINE), idle("value", INT, ONE_MACHINE)],
);

/// `deploy.restart_policy`.
pub static RESTART_POLICY: Section = section(
    "services.*.deploy.restart_policy",
    "`deploy.restart_policy`",
    &[
        yes("condition", TEXT, "`any` is `always`, `on-failure` and `none` are what they say; `any` unless given"),
        yes("max_attempts", INT, "with `on-failure`: so many times at most"),
        idle("delay", DURATION, "the time between two starts grows by itself while a service keeps failing"),
        idle("window", DURATION, "a service that has run for a while counts as started by itself"),
    ],
);

const UPDATE_KEYS: &[Key] = &[
    yes("parallelism", INT, "so many instances at once; 0 is all of them"),
    yes("delay", DURATION, "time between one and the next"),
    yes("failure_action", TEXT, "`pause`, `continue` or `rollback`"),
    yes("monitor", DURATION, "so long an instance must run to count as good"),
    yes("max_failure_ratio", FLOAT, "so many of the instances may fail, from 0 to 1"),
    yes("order", TEXT, "`stop-first` or `start-first`"),
];

/// `deploy.update_config`.
pub static UPDATE_CONFIG: Section = section("services.*.deploy.update_config", "`deploy.update_config`", UPDATE_KEYS);

/// `deploy.rollback_config`.
pub static ROLLBACK_CONFIG: Section =
    section("services.*.deploy.rollback_config", "`deploy.rollback_config`", UPDATE_KEYS);

/// `deploy.placement`.
pub static PLACEMENT: Section = section(
    "services.*.deploy.placement",
    "`deploy.placement`",
    &[
        idle("constraints", TEXTS, ONE_MACHINE),
        idle("preferences", Shape::Items(Short::None, &PREFERENCE), ONE_MACHINE),
        idle("max_replicas_per_node", INT, ONE_MACHINE),
    ],
);

/// One of `deploy.placement.preferences`.
pub static PREFERENCE: Section = section(
    "services.*.deploy.placement.preferences[]",
    "a preference of `placement`",
    &[idle("spread", TEXT, ONE_MACHINE)],
);
