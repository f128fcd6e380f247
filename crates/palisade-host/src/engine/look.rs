//! What an engine has of a stack: read only.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use bollard::models::{
    ContainerSummaryStateEnum, HealthConfig, ImageInspect, SystemInfo, SystemInfoCgroupDriverEnum as Driver,
    SystemInfoCgroupVersionEnum as Version,
};
use bollard::query_parameters::{ListContainersOptionsBuilder, ListVolumesOptions};
use palisade_core::image::{self, health_test};
use palisade_core::instance::CgroupDriver;
use palisade_core::names::ServiceName;
use palisade_core::observed::{EngineSeen, EngineState, ForeignContainer, ImageSeen};
use palisade_core::stack::{Healthcheck, PortProto, Proto, Stack};

use super::{COMPOSE_PROJECT, COMPOSE_SERVICE, Engine, EngineError, LABEL_REALM, socket};
use crate::layout::Layout;
use crate::slice;

/// What the host's engine has of this stack; asked only when a service of it needs one.
pub fn look(layout: &Layout, stack: &Stack, docker_host: Option<&str>) -> EngineState {
    if !stack.needs_engine() {
        return EngineState::NotAsked;
    }
    let away = |why: String, remedy: &str| EngineState::Away { why, remedy: remedy.to_owned() };
    let path = match socket(docker_host) {
        Ok(path) => path,
        Err(why) => {
            return away(why, "install Docker Engine or Podman, or add x-palisade.process with the command to run");
        }
    };
    match Engine::connect(&path).and_then(|engine| engine.seen(layout, stack)) {
        Ok(Ok(seen)) => EngineState::There(Box::new(seen)),
        Ok(Err(Unfit { why, remedy })) => away(why, remedy),
        Err(error) => {
            let why = palisade_core::causes::chain(&error);
            away(why, "start it (`systemctl start docker`), and mind that only root and the group docker may use it")
        }
    }
}

/// An engine that answers and can't be used.
struct Unfit {
    why: String,
    remedy: &'static str,
}

impl Engine {
    fn seen(&self, layout: &Layout, stack: &Stack) -> Result<Result<EngineSeen, Unfit>, EngineError> {
        let info = self.ask(|| "say what it is".to_owned(), self.docker.info())?;
        let services = stack.services.iter().filter(|service| service.run.container_run().is_some());
        let slices = || slice::unfit(layout, services.map(|service| service.name.as_str()));
        let fit = match fit(&info, slices) {
            Ok(fit) => fit,
            Err(unfit) => return Ok(Err(unfit)),
        };
        let volumes =
            self.ask(|| "list its volumes".to_owned(), self.docker.list_volumes(None::<ListVolumesOptions>))?;
        let volumes: BTreeSet<String> = volumes.volumes.into_iter().flatten().map(|volume| volume.name).collect();
        let mut images = BTreeMap::new();
        for name in image::names(stack) {
            if images.contains_key(&name) {
                continue;
            }
            match self.ask(|| format!("describe image {name}"), self.docker.inspect_image(&name)) {
                Ok(inspected) => drop(images.insert(name, image_seen(inspected))),
                Err(error) if error.is_missing() => {}
                Err(error) => return Err(error),
            }
        }
        let foreign = self.foreign(stack)?;
        let version = info.server_version.clone().unwrap_or_default();
        let podman = is_podman(&info);
        let root = PathBuf::from(info.docker_root_dir.unwrap_or_else(|| "/var/lib/docker".to_owned()));
        Ok(Ok(EngineSeen {
            socket: self.socket.clone(),
            version: format!("{} {version}", if podman { "Podman" } else { "Docker" }),
            cgroup_driver: fit.cgroup_driver,
            remaps_users: fit.remaps_users,
            volumes_folder: root.join("volumes"),
            images,
            volumes,
            foreign,
        }))
    }

    /// Containers of a Compose project of the same name that Palisade hasn't made.
    fn foreign(&self, stack: &Stack) -> Result<Vec<ForeignContainer>, EngineError> {
        let filters = HashMap::from([("label", vec![format!("{COMPOSE_PROJECT}={}", stack.project)])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let listed = self.ask(|| "list its containers".to_owned(), self.docker.list_containers(Some(options)))?;
        let foreign = listed.into_iter().filter_map(|container| {
            let labels = container.labels.unwrap_or_default();
            let name = container.names?.into_iter().next()?.trim_start_matches('/').to_owned();
            (!labels.contains_key(LABEL_REALM)).then(|| ForeignContainer {
                id: container.id.unwrap_or_default(),
                name,
                service: labels.get(COMPOSE_SERVICE).and_then(|name| ServiceName::parse(name.as_str()).ok()),
                ports: container.ports.iter().flatten().filter_map(|port| port.public_port).collect(),
                running: container.state == Some(ContainerSummaryStateEnum::RUNNING),
            })
        });
        Ok(foreign.collect())
    }
}

fn is_podman(info: &SystemInfo) -> bool {
    info.name.is_none() && info.docker_root_dir.as_deref().is_some_and(|dir| dir.contains("containers"))
}

struct Fit {
    cgroup_driver: CgroupDriver,
    remaps_users: bool,
}

/// `slices` says why this host's slices can't hold the stack's containers, if they can't.
fn fit(info: &SystemInfo, slices: impl FnOnce() -> Option<String>) -> Result<Fit, Unfit> {
    let option = |name: &str| {
        let options = info.security_options.iter().flatten();
        options.flat_map(|option| option.split(',')).any(|part| part == format!("name={name}"))
    };
    if option("rootless") {
        return Err(Unfit {
            why: "the container engine is rootless, so its containers can't be put under the guard".to_owned(),
            remedy: "use the engine of the system (`unset DOCKER_HOST`), or run the services with x-palisade.process",
        });
    }
    let cgroup_driver = match info.cgroup_driver.unwrap_or(Driver::NONE) {
        Driver::CGROUPFS => CgroupDriver::Cgroupfs,
        // Only what was tried: Docker with version 2 of cgroups.
        Driver::SYSTEMD if is_podman(info) => return Err(unfit("`systemd`, which Palisade knows of Docker only")),
        Driver::SYSTEMD if info.cgroup_version != Some(Version::_2) => {
            return Err(unfit("`systemd` on a host with cgroups of version 1"));
        }
        Driver::SYSTEMD => match slices() {
            None => CgroupDriver::Systemd,
            Some(why) => return Err(unfit(&format!("`systemd`, and {why}"))),
        },
        other => return Err(unfit(&format!("`{}`", if other == Driver::EMPTY { Driver::NONE } else { other }))),
    };
    Ok(Fit { cgroup_driver, remaps_users: option("userns") })
}

fn unfit(driver: &str) -> Unfit {
    Unfit {
        why: format!(
            "the container engine's cgroup driver is {driver}, so its containers can't be put under the guard"
        ),
        remedy: "set `\"exec-opts\": [\"native.cgroupdriver=cgroupfs\"]` in /etc/docker/daemon.json (Podman: `cgroup_manager = \"cgroupfs\"` in containers.conf), and restart the engine",
    }
}

fn image_seen(image: ImageInspect) -> ImageSeen {
    let config = image.config.unwrap_or_default();
    let lines = |words: &Option<Vec<String>>| words.iter().flatten().any(|word| !word.is_empty());
    ImageSeen {
        id: image.id.unwrap_or_default(),
        digest: image.repo_digests.into_iter().flatten().next(),
        has_command: lines(&config.cmd) || lines(&config.entrypoint),
        exposed: config.exposed_ports.iter().flatten().filter_map(|port| exposed(port)).collect(),
        healthcheck: config.healthcheck.as_ref().and_then(healthcheck),
        user: config.user.filter(|user| !matches!(user.as_str(), "" | "0" | "root" | "0:0" | "root:root")),
        volumes: config
            .volumes
            .into_iter()
            .flatten()
            .filter(|path| Path::new(path).is_absolute())
            .map(PathBuf::from)
            .collect(),
    }
}

/// `5432/tcp`.
fn exposed(text: &str) -> Option<PortProto> {
    let (port, proto) = text.split_once('/').unwrap_or((text, "tcp"));
    let proto = match proto {
        "tcp" => Proto::Tcp,
        "udp" => Proto::Udp,
        _ => return None,
    };
    port.parse().ok().filter(|port| *port > 0).map(|port| PortProto { port, proto })
}

/// With Docker's defaults where the image is silent: zero stands for them.
fn healthcheck(check: &HealthConfig) -> Option<Healthcheck> {
    let ms = |nanoseconds: Option<i64>, default_ms: u64| match nanoseconds {
        Some(ns) if ns > 0 => (ns as u64).div_ceil(1_000_000),
        _ => default_ms,
    };
    Some(Healthcheck {
        test: health_test(check.test.as_deref()?)?,
        interval_ms: ms(check.interval, 30_000),
        timeout_ms: ms(check.timeout, 30_000),
        retries: check.retries.filter(|retries| *retries > 0).map_or(3, |retries| retries as u32),
        start_period_ms: ms(check.start_period, 0),
        start_interval_ms: ms(check.start_interval, 5_000),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_puts_containers_elsewhere_is_refused_with_the_way_out() {
        let answer = |text: &str| serde_json::from_str::<SystemInfo>(text).unwrap();
        let fit = |text: &str| fit(&answer(text), || None);
        let fits = fit(r#"{"CgroupDriver": "cgroupfs", "SecurityOptions": ["name=seccomp,profile=default"]}"#);
        assert!(fits.is_ok_and(|fit| fit.cgroup_driver == CgroupDriver::Cgroupfs && !fit.remaps_users));
        let fits = fit(r#"{"CgroupDriver": "systemd", "CgroupVersion": "2", "Name": "host"}"#);
        assert!(fits.is_ok_and(|fit| fit.cgroup_driver == CgroupDriver::Systemd));
        let refused = [
            ("`none`", r#"{"CgroupDriver": "none"}"#),
            ("`none`", "{}"),
            ("`systemd` on a host with cgroups of version 1", r#"{"CgroupDriver": "systemd", "CgroupVersion": "1"}"#),
            ("`systemd` on a host with cgroups of version 1", r#"{"CgroupDriver": "systemd"}"#),
            (
                "`systemd`, which Palisade knows of Docker only",
                r#"{"CgroupDriver": "systemd", "CgroupVersion": "2", "DockerRootDir": "/var/lib/containers/storage"}"#,
            ),
        ];
        for (driver, text) in refused {
            let Err(unfit) = fit(text) else { panic!("{text}") };
            assert!(unfit.why.contains(&format!("cgroup driver is {driver}")), "{}", unfit.why);
            assert!(unfit.remedy.contains("native.cgroupdriver=cgroupfs"), "{}", unfit.remedy);
        }
        let two = answer(r#"{"CgroupDriver": "systemd", "CgroupVersion": "2", "Name": "host"}"#);
        let Err(unfit) = super::fit(&two, || Some("the names are too long".to_owned())) else { panic!("it fits") };
        assert!(unfit.why.contains("`systemd`, and the names are too long"), "{}", unfit.why);
        let rootless = fit(r#"{"CgroupDriver": "cgroupfs", "SecurityOptions": ["name=rootless"]}"#);
        assert!(rootless.is_err_and(|unfit| unfit.why.contains("rootless")));
    }

    #[test]
    fn what_an_image_says_is_understood() {
        assert_eq!(exposed("53/udp"), Some(PortProto { port: 53, proto: Proto::Udp }));
        assert_eq!((exposed("99/sctp"), exposed("0/tcp"), exposed("x")), (None, None, None));
        let check = HealthConfig {
            test: Some(["CMD-SHELL", "pg_isready"].map(str::to_owned).to_vec()),
            interval: Some(1_500_000_000),
            ..HealthConfig::default()
        };
        let check = healthcheck(&check).unwrap();
        assert_eq!((check.interval_ms, check.timeout_ms, check.retries), (1_500, 30_000, 3));
        let none = HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() };
        assert!(healthcheck(&none).is_none());
    }
}
