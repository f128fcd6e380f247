//! What the engine is told about a container: an [`InstanceSpec`] in the words of its API.
//!
//! Pure but for what the caller has made before: the files that are mounted.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use bollard::models::{
    ContainerCreateBody, DeviceMapping, DeviceRequest, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum,
    HostConfigLogConfig, Mount, MountBindOptions, MountTmpfsOptions, MountType, MountVolumeOptions,
    ResourcesBlkioWeightDevice, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum, ThrottleDevice,
};
use palisade_core::instance::{ContainerProgram, InstanceMountSource, InstanceSpec};
use palisade_core::stack::{Limits, Ulimit};
use serde_json::Value;

use super::{COMPOSE_PROJECT, COMPOSE_SERVICE, LABEL_INSTANCE, LABEL_REALM, LABEL_SPEC};
use crate::layout::Layout;
use crate::runtime::DEFAULT_CAPABILITIES;

/// Files of the host that the container shows at fixed places.
pub(super) struct Placed {
    /// On the host.
    pub(super) source: PathBuf,
    /// Inside.
    pub(super) target: PathBuf,
}

/// The request that creates it. Its restart policy is the engine's `no`: only the agent starts it, under the guard.
pub(super) fn body(
    layout: &Layout,
    spec: &InstanceSpec,
    program: &ContainerProgram,
    cgroup_parent: String,
    placed: &[Placed],
    hostname: Option<String>,
    security: Vec<String>,
) -> ContainerCreateBody {
    let settings = &program.settings;
    let mut mounts: Vec<Mount> = spec.mounts.iter().map(|one| mount(spec, one)).collect();
    mounts.extend(placed.iter().map(|file| bind(&file.source, &file.target, true)));
    let (cap_add, cap_drop) = capabilities(&spec.cap_add, &spec.cap_drop);
    let limits = &spec.limits;
    let some = |list: Vec<String>| (!list.is_empty()).then_some(list);
    let map = |pairs: &std::collections::BTreeMap<String, String>| {
        (!pairs.is_empty()).then(|| pairs.clone().into_iter().collect::<HashMap<_, _>>())
    };
    let mut host = HostConfig {
        network_mode: Some("host".to_owned()),
        cgroup_parent: Some(cgroup_parent),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), spec.log.max_bytes.to_string()),
                ("max-file".to_owned(), spec.log.max_files.to_string()),
            ])),
        }),
        mounts: Some(mounts),
        cap_add,
        cap_drop,
        group_add: some(spec.settings.groups.clone()),
        oom_score_adj: spec.settings.oom_score_adj.map(i64::from),
        shm_size: spec.settings.shm_bytes.map(signed),
        ulimits: Some(spec.settings.ulimits.iter().map(ulimit).collect()),
        readonly_rootfs: Some(spec.read_only),
        init: settings.init,
        runtime: settings.runtime.clone(),
        privileged: Some(settings.privileged),
        security_opt: some(security),
        sysctls: map(&settings.sysctls),
        storage_opt: map(&settings.storage_opt),
        annotations: map(&settings.annotations),
        devices: Some(settings.devices.iter().map(|text| device(text)).collect()),
        device_cgroup_rules: some(settings.device_cgroup_rules.clone()),
        device_requests: Some(settings.device_requests.iter().map(device_request).collect()),
        ..HostConfig::default()
    };
    limit(&mut host, limits);
    if let Some(blkio) = &settings.blkio_config {
        throttle(&mut host, blkio);
    }
    ContainerCreateBody {
        image: program.image_id.clone().or_else(|| Some(program.image.clone())),
        hostname,
        domainname: spec.settings.domainname.clone(),
        user: settings.user.clone(),
        tty: Some(settings.tty),
        open_stdin: Some(settings.stdin_open),
        env: Some(spec.environment.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        cmd: settings.command.clone(),
        entrypoint: settings.entrypoint.as_ref().map(|words| match words.as_slice() {
            // An empty word is how the API says that the image's is taken away.
            [] => vec![String::new()],
            words => words.to_vec(),
        }),
        working_dir: settings.working_dir.as_ref().map(|path| path.to_string_lossy().into_owned()),
        // The agent checks by itself: it knows `start_interval`, and two checks would be one too many.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
        stop_signal: Some(spec.stop_signal.clone()),
        stop_timeout: Some(signed(spec.stop_grace_ms.div_ceil(1_000))),
        labels: Some(labels(layout, spec, program)),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    }
}

/// Ours, Compose's, and the file's.
fn labels(layout: &Layout, spec: &InstanceSpec, program: &ContainerProgram) -> HashMap<String, String> {
    let digest = spec.fingerprint().digest;
    let own = [
        (LABEL_REALM, layout.realm.clone()),
        (LABEL_INSTANCE, spec.id.to_string()),
        (LABEL_SPEC, digest.clone()),
        (COMPOSE_PROJECT, spec.project.to_string()),
        (COMPOSE_SERVICE, spec.id.service.to_string()),
        ("com.docker.compose.container-number", spec.id.number.to_string()),
        ("com.docker.compose.oneoff", "False".to_owned()),
        ("com.docker.compose.config-hash", digest),
        ("com.docker.compose.image", program.image_id.clone().unwrap_or_default()),
    ];
    let file = program.settings.labels.iter().map(|(name, value)| (name.clone(), value.clone()));
    file.chain(own.into_iter().map(|(name, value)| (name.to_owned(), value))).collect()
}

/// Docker's default set without what a service on the host's network must not have, then what the file says.
fn capabilities(add: &BTreeSet<String>, drop: &BTreeSet<String>) -> (Option<Vec<String>>, Option<Vec<String>>) {
    let all = |set: &BTreeSet<String>| set.contains("ALL");
    if all(add) {
        return (Some(vec!["ALL".to_owned()]), Some(drop.iter().cloned().collect()));
    }
    let default =
        DEFAULT_CAPABILITIES.iter().map(|name| (*name).to_owned()).filter(|name| !all(drop) && !drop.contains(name));
    let granted: BTreeSet<String> = default.chain(add.iter().cloned()).collect();
    (Some(granted.into_iter().collect()), Some(vec!["ALL".to_owned()]))
}

fn bind(source: &Path, target: &Path, read_only: bool) -> Mount {
    Mount {
        target: Some(target.to_string_lossy().into_owned()),
        source: Some(source.to_string_lossy().into_owned()),
        typ: Some(MountType::BIND),
        read_only: Some(read_only),
        bind_options: Some(MountBindOptions::default()),
        ..Mount::default()
    }
}

fn mount(spec: &InstanceSpec, mount: &palisade_core::instance::InstanceMount) -> Mount {
    let target = Some(mount.target.to_string_lossy().into_owned());
    match &mount.source {
        InstanceMountSource::Path(path) | InstanceMountSource::Volume(path) => {
            bind(path, &mount.target, mount.read_only)
        }
        InstanceMountSource::EngineVolume { name, nocopy } => Mount {
            target,
            source: Some(name.clone()),
            typ: Some(MountType::VOLUME),
            read_only: Some(mount.read_only),
            volume_options: Some(MountVolumeOptions {
                no_copy: Some(*nocopy),
                // For one that this container is the first to use.
                labels: Some(HashMap::from([(COMPOSE_PROJECT.to_owned(), spec.project.to_string())])),
                ..MountVolumeOptions::default()
            }),
            ..Mount::default()
        },
        InstanceMountSource::Tmpfs { size_bytes, mode } => Mount {
            target,
            typ: Some(MountType::TMPFS),
            read_only: Some(mount.read_only),
            tmpfs_options: Some(MountTmpfsOptions {
                size_bytes: size_bytes.map(signed),
                mode: mode.map(i64::from),
                ..MountTmpfsOptions::default()
            }),
            ..Mount::default()
        },
    }
}

fn limit(host: &mut HostConfig, limits: &Limits) {
    let Limits { memory_bytes, cpu_milli, pids, memory_reservation_bytes, memory_swap_bytes, cpu_shares, cpuset } =
        limits;
    host.memory = memory_bytes.map(signed);
    // As much swap as there is, is -1.
    host.memory_swap = memory_swap_bytes.map(|bytes| if bytes == u64::MAX { -1 } else { signed(bytes) });
    host.memory_reservation = memory_reservation_bytes.map(signed);
    host.nano_cpus = cpu_milli.map(|milli| signed(milli.saturating_mul(1_000_000)));
    host.pids_limit = pids.map(signed);
    host.cpu_shares = cpu_shares.map(signed);
    host.cpuset_cpus = cpuset.as_ref().map(|set| set.0.clone());
}

fn ulimit((name, limit): (&String, &Ulimit)) -> ResourcesUlimits {
    let value = |value: Option<u64>| Some(value.map_or(-1, signed));
    ResourcesUlimits { name: Some(name.clone()), soft: value(limit.soft), hard: value(limit.hard) }
}

/// `/dev/x:/dev/y:rwm`.
fn device(text: &str) -> DeviceMapping {
    let mut parts = text.splitn(3, ':').map(str::to_owned);
    let host = parts.next();
    let inside = parts.next().or_else(|| host.clone());
    DeviceMapping {
        path_on_host: host,
        path_in_container: inside,
        cgroup_permissions: parts.next().or(Some("rwm".into())),
    }
}

/// `gpus` and reservations of devices, as Compose hands them on.
fn device_request(request: &Value) -> DeviceRequest {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let count = match request.get("count") {
        Some(Value::String(text)) if text == "all" => Some(-1),
        Some(Value::String(text)) => text.parse().ok(),
        Some(number) => number.as_i64(),
        None if request.get("device_ids").is_some() => None,
        None => Some(-1),
    };
    let options = request.get("options").and_then(Value::as_object).map(|options| {
        options.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
    });
    DeviceRequest {
        driver: request.get("driver").and_then(Value::as_str).map(str::to_owned),
        count,
        device_ids: request.get("device_ids").map(texts),
        capabilities: Some(vec![request.get("capabilities").map_or_else(|| vec!["gpu".to_owned()], texts)]),
        options,
    }
}

fn throttle(host: &mut HostConfig, blkio: &Value) {
    let number = |value: &Value| value.as_i64().or_else(|| value.as_str()?.parse().ok());
    let path = |item: &Value| item.get("path").and_then(Value::as_str).map(str::to_owned);
    let items = |key: &str| blkio.get(key).and_then(Value::as_array).cloned();
    let rates = |key: &str| {
        items(key).map(|items| {
            items
                .iter()
                .map(|item| ThrottleDevice { path: path(item), rate: item.get("rate").and_then(number) })
                .collect()
        })
    };
    host.blkio_weight = blkio.get("weight").and_then(number).and_then(|weight| u16::try_from(weight).ok());
    host.blkio_weight_device = items("weight_device").map(|items| {
        let one = |item: &Value| ResourcesBlkioWeightDevice {
            path: path(item),
            weight: item.get("weight").and_then(number).and_then(|weight| usize::try_from(weight).ok()),
        };
        items.iter().map(one).collect()
    });
    host.blkio_device_read_bps = rates("device_read_bps");
    host.blkio_device_write_bps = rates("device_write_bps");
    host.blkio_device_read_iops = rates("device_read_iops");
    host.blkio_device_write_iops = rates("device_write_iops");
}

/// The API counts with a sign; nobody has that much of anything.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn raw_sockets_are_no_default_and_the_file_decides_the_rest() {
        let (add, drop) = capabilities(&set(&[]), &set(&["CHOWN"]));
        let add = add.unwrap();
        assert!(!add.contains(&"NET_RAW".to_owned()) && !add.contains(&"CHOWN".to_owned()));
        assert!(add.contains(&"SETUID".to_owned()));
        assert_eq!(drop.unwrap(), ["ALL"]);
        let (add, _) = capabilities(&set(&["SYS_NICE"]), &set(&["ALL"]));
        assert_eq!(add.unwrap(), ["SYS_NICE"]);
    }

    #[test]
    fn devices_and_their_requests_are_handed_on() {
        let mapped = device("/dev/ttyUSB0");
        assert_eq!(mapped.path_in_container.as_deref(), Some("/dev/ttyUSB0"));
        let request = device_request(&serde_json::json!({"driver": "nvidia", "count": "all"}));
        assert_eq!((request.count, request.capabilities), (Some(-1), Some(vec![vec!["gpu".to_owned()]])));
        let request = device_request(&serde_json::json!({"device_ids": ["0"], "capabilities": ["gpu", "video"]}));
        assert_eq!((request.count, request.device_ids), (None, Some(vec!["0".to_owned()])));
    }
}
