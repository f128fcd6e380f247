//! Images: what a service takes from its own, which of them have to be fetched, and what stands against an engine.
//!
//! Pure: which images an engine has is a parameter, and nothing is fetched here.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::action::{Action, Cause, Fetch, Step};
use crate::digest::digest_of;
use crate::finding::Finding;
use crate::names::{InstanceId, ProjectName, ServiceName};
use crate::observed::{EngineSeen, EngineState, ImageSeen};
use crate::place::Placed;
use crate::stack::{Container, HealthTest, Runner, Service, Stack};

/// What the command line says about images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FetchWishes {
    /// `--pull`: instead of every `pull_policy`.
    pub pull: Option<PullPolicy>,
    /// `--build`: whatever can be built is built, also when it is there.
    pub build: bool,
}

/// When an image is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// Each time.
    Always,
    /// If it isn't there.
    Missing,
    /// It has to be there.
    Never,
    /// It is built, each time.
    Build,
}

impl PullPolicy {
    /// `pull_policy` of a file; `None` is what Compose takes when nothing is written. Those that say after how long an
    /// image is old (`daily`, `every_12h`) ask the registry each time, which costs one request when nothing is new.
    fn of(container: &Container) -> Self {
        match container.pull_policy.as_deref() {
            Some("never") => Self::Never,
            Some("build") => Self::Build,
            None | Some("missing" | "if_not_present") => Self::Missing,
            Some(_) => Self::Always,
        }
    }
}

/// What the image of a service is called on the engine; one that is built and has no name gets Compose's.
pub fn image_name(project: &ProjectName, service: &Service, container: &Container) -> String {
    container.image.clone().unwrap_or_else(|| format!("{project}-{}", service.name))
}

/// The image of a service, if it has one and that is on the engine.
pub fn image_of<'a>(stack: &Stack, service: &Service, engine: &'a EngineState) -> Option<&'a ImageSeen> {
    let Runner::Engine(container) = service.run.runner() else { return None };
    engine.seen()?.images.get(&image_name(&stack.project, service, container))
}

/// The volumes that the service's image asks for (`VOLUME`) at places where the file mounts nothing.
pub fn uncovered_volumes<'a>(service: &'a Service, image: &'a ImageSeen) -> impl Iterator<Item = &'a Path> {
    let covered = |path: &Path| service.mounts.iter().any(|mount| mount.value.target == *path);
    image.volumes.iter().map(PathBuf::as_path).filter(move |path| !covered(path))
}

/// What the engine's volume at such a place is called. An engine would give each container a new one, without a name,
/// and with the next container the data would be gone.
pub fn volume_name(project: &ProjectName, id: &InstanceId, target: &Path) -> String {
    let digest = digest_of(&target);
    format!("{project}_{}_{}_{}", id.service, id.number, &digest[..VOLUME_DIGITS])
}

/// Whether a volume is called as [`volume_name`] calls those of a service.
pub fn is_volume_of(project: &ProjectName, service: &ServiceName, name: &str) -> bool {
    let rest = name.strip_prefix(project.as_str()).and_then(|rest| rest.strip_prefix('_'));
    let rest = rest.and_then(|rest| rest.strip_prefix(service.as_str())).and_then(|rest| rest.strip_prefix('_'));
    rest.and_then(|rest| rest.split_once('_')).is_some_and(|(number, digest)| {
        number.parse::<u16>().is_ok_and(|number| number > 0)
            && digest.len() == VOLUME_DIGITS
            && digest.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// Hexadecimal digits of the digest of a place: enough to tell the volumes of one image apart.
const VOLUME_DIGITS: usize = 12;

/// The names of all images that the stack needs.
pub fn names(stack: &Stack) -> Vec<String> {
    let of = |service: &Service| match service.run.runner() {
        Runner::Engine(container) => Some(image_name(&stack.project, service, container)),
        Runner::Process(_) | Runner::Nobody => None,
    };
    stack.services.iter().filter_map(of).collect()
}

/// The stack with what its images say where the file is silent: ports and health checks.
pub fn completed<'a>(stack: &'a Stack, engine: &EngineState) -> Cow<'a, Stack> {
    let images: BTreeMap<usize, &ImageSeen> = (0..)
        .zip(&stack.services)
        .filter_map(|(index, service)| Some((index, image_of(stack, service, engine)?)))
        .collect();
    if images.is_empty() {
        return Cow::Borrowed(stack);
    }
    let mut stack = stack.clone();
    for (index, image) in images {
        let service = &mut stack.services[index];
        for port in &image.exposed {
            if !service.expose.iter().any(|known| known.value == *port) {
                service.expose.push(Placed { value: *port, place: service.place.clone() });
            }
        }
        if service.healthcheck.is_none() && !service.healthcheck_disabled {
            service.healthcheck.clone_from(&image.healthcheck);
        }
    }
    Cow::Owned(stack)
}

/// The steps that bring images to the engine, each image once.
pub fn fetches(stack: &Stack, engine: &EngineState, wishes: FetchWishes) -> Vec<Step> {
    let Some(engine) = engine.seen() else { return Vec::new() };
    let mut steps: Vec<Step> = Vec::new();
    for service in stack.services.iter().filter(|service| service.replicas > 0) {
        let Runner::Engine(container) = service.run.runner() else { continue };
        let image = image_name(&stack.project, service, container);
        let known =
            steps.iter().any(|step| matches!(&step.action, Action::FetchImage { image: known, .. } if *known == image));
        if known {
            continue;
        }
        let Some((how, cause)) = fetch(container, engine.images.contains_key(&image), wishes) else { continue };
        steps.push(Step { action: Action::FetchImage { service: service.name.clone(), image, how }, cause });
    }
    steps
}

fn fetch(container: &Container, there: bool, wishes: FetchWishes) -> Option<(Fetch, Cause)> {
    let policy = wishes.pull.unwrap_or_else(|| PullPolicy::of(container));
    let pull = || Fetch::Pull { platform: container.platform.clone() };
    match &container.build {
        Some(build) if wishes.build || policy == PullPolicy::Build => {
            Some((Fetch::Build(build.clone()), if there { Cause::Refreshed } else { Cause::Missing }))
        }
        // As Compose does it: an image that can be built is pulled only when the file says so.
        Some(build) if policy != PullPolicy::Always || container.image.is_none() => {
            (!there).then(|| (Fetch::Build(build.clone()), Cause::Missing))
        }
        _ => match policy {
            PullPolicy::Always => Some((pull(), if there { Cause::Refreshed } else { Cause::Missing })),
            PullPolicy::Missing => (!there).then(|| (pull(), Cause::Missing)),
            PullPolicy::Never | PullPolicy::Build => None,
        },
    }
}

/// What stands against running the service's container on this engine.
pub fn obstacles(stack: &Stack, service: &Service, container: &Container, engine: &EngineSeen) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut push = |id, message: String, remedy: &str| {
        findings.push(Finding::error(id, &service.name, message).remedy(remedy).at(&service.place));
    };
    let image = image_name(&stack.project, service, container);
    match engine.images.get(&image) {
        None if container.pull_policy.as_deref() == Some("never") && container.build.is_none() => push(
            "image-missing",
            format!("its image {image} isn't on this host, and `pull_policy: never` keeps it from being fetched"),
            "load it with `docker load`, or change pull_policy",
        ),
        Some(seen) if !seen.has_command && container.command.is_none() && container.entrypoint.is_none() => push(
            "no-command",
            format!("its image {image} doesn't say what to run, and the file doesn't either"),
            "write `command`",
        ),
        _ => {}
    }
    if engine.remaps_users {
        push(
            "engine-remaps-users",
            format!(
                "{} maps the users of containers (userns-remap), and such containers can't use the host's network",
                engine.version
            ),
            "take userns-remap out of daemon.json, or run the service with x-palisade.process",
        );
    }
    if let Some(sysctl) = container.sysctls.keys().find(|name| name.starts_with("net.")) {
        push(
            "host-sysctl",
            format!("its sysctl {sysctl} would be the host's, as it runs on the host's network"),
            "set it on the host (/etc/sysctl.d) and take it off the service",
        );
    }
    findings
}

/// How a health test of an image reads: `None` for `["NONE"]` or something unknown.
pub fn health_test(words: &[String]) -> Option<HealthTest> {
    match words {
        [kind, command @ ..] if kind == "CMD" && !command.is_empty() => Some(HealthTest::Command(command.to_vec())),
        [kind, script] if kind == "CMD-SHELL" => Some(HealthTest::Shell(script.clone())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_without_a_name_is_called_after_its_instance_and_place() {
        let project = ProjectName::parse("shop").unwrap();
        let service = ServiceName::parse("db").unwrap();
        let name = |number, target: &str| {
            volume_name(&project, &InstanceId { service: service.clone(), number }, Path::new(target))
        };
        assert_eq!(name(1, "/data"), name(1, "/data"), "the same data after a replacement");
        assert_ne!(name(1, "/data"), name(2, "/data"));
        assert_ne!(name(1, "/data"), name(1, "/other"));
        assert!(is_volume_of(&project, &service, &name(3, "/data")));
        for other in ["shop_db", "shop_db_data", "shop_db_1_data", "shop_db_0_0123456789ab", "shop_db2_1_0123456789ab"]
        {
            assert!(!is_volume_of(&project, &service, other), "{other}");
        }
    }
}
