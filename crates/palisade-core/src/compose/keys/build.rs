//! `build`: how an image is made. All of it is for the engine's own builder.

use super::*;

const BUILDER: &str = "given to the engine's builder";

/// `services.*.build`.
pub static BUILD: Section = section(
    "services.*.build",
    "`build`",
    &[
        image("context", Shape::One(Kind::Context), "the folder or repository that is built; `.` unless given"),
        image("dockerfile", TEXT, "another file than `Dockerfile`"),
        image("dockerfile_inline", TEXT, "the Dockerfile itself"),
        image("args", PAIRS, BUILDER),
        image("target", TEXT, BUILDER),
        image("additional_contexts", Shape::Pairs(Pairs::Contexts), BUILDER),
        image("cache_from", TEXTS, BUILDER),
        image("cache_to", TEXTS, BUILDER),
        image("no_cache", BOOL, BUILDER),
        image("pull", BOOL, BUILDER),
        image("platforms", TEXTS, BUILDER),
        image("tags", SET, BUILDER),
        image("labels", PAIRS, BUILDER),
        image("secrets", Shape::Items(Short::FileReference, &BUILD_SECRET), BUILDER),
        image("ssh", PAIRS, BUILDER),
        image("network", TEXT, BUILDER),
        image("extra_hosts", Shape::Pairs(Pairs::Hosts), BUILDER),
        image("shm_size", BYTES, BUILDER),
        image("ulimits", Shape::NamedShort(Short::Ulimit, &ULIMIT), BUILDER),
        image("privileged", BOOL, BUILDER),
        image("entitlements", TEXTS, BUILDER),
        image("provenance", TEXT, BUILDER),
        image("sbom", TEXT, BUILDER),
        image("isolation", TEXT, WINDOWS),
    ],
);

/// One of `build.secrets`.
pub static BUILD_SECRET: Section = section(
    "services.*.build.secrets[]",
    "a secret of `build`",
    &[
        image("source", TEXT, "its name in the file's `secrets`"),
        image("target", TEXT, BUILDER),
        image("uid", TEXT, BUILDER),
        image("gid", TEXT, BUILDER),
        image("mode", MODE, BUILDER),
    ],
);
