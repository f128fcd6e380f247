//! Every difference that there is, and why.

use super::Difference;

/// Why something is shown differently.
#[derive(Debug)]
pub(super) struct Entry {
    /// The case, or `*` for all.
    pub(super) case: &'static str,
    /// Where: parts between slashes, of which `*` is any one, and a last `**` whatever is below.
    pub(super) path: &'static str,
    pub(super) who: Who,
    pub(super) reason: &'static str,
}

/// Who shows something there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// docker-compose alone.
    Theirs,
    /// Palisade alone.
    Ours,
    /// Both, and not the same.
    Both,
}

impl Entry {
    /// Whether it is about this difference.
    pub(super) fn explains(&self, case: &str, difference: &Difference) -> bool {
        let who = match (&difference.theirs, &difference.ours) {
            (Some(_), None) => Who::Theirs,
            (None, Some(_)) => Who::Ours,
            _ => Who::Both,
        };
        who == self.who && (self.case == "*" || self.case == case) && matches(self.path, &difference.path)
    }
}

fn matches(pattern: &str, path: &str) -> bool {
    let mut parts = path.split('/');
    for wanted in pattern.split('/') {
        match (wanted, parts.next()) {
            ("**", Some(_)) => return true,
            (_, None) => return false,
            (wanted, Some(part)) => {
                let fits = match wanted.strip_suffix('*') {
                    Some(start) => part.starts_with(start),
                    None => part == wanted,
                };
                if !fits {
                    return false;
                }
            }
        }
    }
    parts.next().is_none()
}

const fn entry(case: &'static str, path: &'static str, who: Who, reason: &'static str) -> Entry {
    Entry { case, path, who, reason }
}

const EXTENSIONS: &str = "1.29 leaves out extension keys; the specification lets every reader see them";
const UNUSED: &str = "nothing uses it, and Docker Compose 2 leaves out what nothing uses";
const IMPLIED: &str =
    "`links` and `volumes_from` need the other service started; Docker Compose 2 shows that as `depends_on`";
const PROFILE: &str =
    "its profile is not asked for; 1.29 shows services of all profiles, Docker Compose 2 those that would run";

/// The one table.
pub(super) const TABLE: &[Entry] = &[
    entry("*", "x-*/**", Who::Ours, EXTENSIONS),
    entry("extension-keys", "services/a/ports/0/x-port", Who::Ours, EXTENSIONS),
    entry("extension-keys", "volumes/v/x-volume", Who::Theirs, UNUSED),
    entry("*", "networks/*", Who::Theirs, UNUSED),
    entry("meaning/links", "services/*/depends_on/**", Who::Ours, IMPLIED),
    entry("monitoring", "services/*/depends_on/**", Who::Ours, IMPLIED),
    entry("old-version-2", "services/*/depends_on/**", Who::Ours, IMPLIED),
    entry("workflow", "services/*/depends_on/**", Who::Ours, IMPLIED),
    entry("edge-profiles", "services/admin/**", Who::Theirs, PROFILE),
    entry("profiles-active", "services/another/**", Who::Theirs, PROFILE),
    entry("profiles-active", "services/other/**", Who::Theirs, PROFILE),
    entry("profiles-none", "services/debug/**", Who::Theirs, PROFILE),
    entry("task-scheduler", "services/flower/**", Who::Theirs, PROFILE),
    entry(
        "edge-proxy",
        "services/whoami/labels/traefik.enable",
        Who::Both,
        "`true` without quotes becomes `True` in 1.29, Python's word for it; Docker Compose 2 keeps what is written",
    ),
    entry(
        "photo-library",
        "services/*/healthcheck/test/0",
        Who::Theirs,
        "1.29 reads `disable: false` as `disable: true`; the specification means what it says",
    ),
    entry(
        "photo-library",
        "services/*/healthcheck",
        Who::Ours,
        "1.29 reads `disable: false` as `disable: true`; the specification means what it says",
    ),
    entry(
        "project-name-flag",
        "services/a/environment/P",
        Who::Both,
        "the specification gives files the variable `COMPOSE_PROJECT_NAME`; 1.29 fills in nothing for it",
    ),
];

#[test]
fn patterns() {
    for (pattern, path, fits) in [
        ("x-*", "x-a", true),
        ("x-*", "x-a/b", false),
        ("x-*/**", "x-a/b/c", true),
        ("services/*/image", "services/a/image", true),
        ("services/*/image", "services/a/image/b", false),
        ("services/*", "services", false),
    ] {
        assert_eq!(matches(pattern, path), fits, "{pattern} {path}");
    }
}
