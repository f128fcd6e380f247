//! Compose files in `cases/<name>/compose.yaml`, each with what is said about it and what it means.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use palisade_core::compose::{self, FILE_BYTES_MAX, InputFile, LoadInputs, Loaded, Rejected};
use palisade_core::diagnostic::{Severity, Style, render_all};
use palisade_core::stack::{Egress, MountSource, Proto, Runner, Service, Stack};

fn environment() -> BTreeMap<String, String> {
    [("HOME", "/home/ada"), ("DB_PASSWORD", "hunter2"), ("WEB_PORT", "8081"), ("BAD_PORT", "s3cr3t"), ("EMPTY", "")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

fn load_with(contents: &[u8], dot_env: Option<&[u8]>) -> Result<Loaded, Box<Rejected>> {
    let files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::from([
        ("/srv/barter/app.env".into(), b"FROM_FILE=1\nOVERRIDDEN=file\nSECRET='top$ecret'\n".to_vec()),
        ("/srv/barter/filter.json".into(), b"{\n  \"defaultAction\": \"SCMP_ACT_ALLOW\"\n}\n".to_vec()),
        ("/srv/barter/broken.env".into(), b"FINE=1\nhunter2 is no line\n".to_vec()),
    ]);
    let path = Path::new("/srv/barter/.env");
    let dot_env = dot_env.map(|contents| InputFile { name: ".env", path, contents });
    compose::load(&LoadInputs {
        files: &[InputFile { name: "compose.yaml", path: Path::new("/srv/barter/compose.yaml"), contents }],
        project_dir: Path::new("/srv/barter"),
        project_name: None,
        environment: &environment(),
        profiles: &[],
        env_files: dot_env.as_slice(),
        others: &files,
    })
}

fn load(text: &str) -> Result<Loaded, Box<Rejected>> {
    load_with(text.as_bytes(), None)
}

fn stack(text: &str) -> Stack {
    match load(text) {
        Ok(loaded) => loaded.stack,
        Err(rejected) => panic!("{}", said(Err(rejected))),
    }
}

/// Everything that is said about a file.
fn said(result: Result<Loaded, Box<Rejected>>) -> String {
    match result {
        Ok(loaded) => render_all(&loaded.diagnostics, &loaded.sources, Style::default()),
        Err(rejected) => {
            let mut text = render_all(&rejected.diagnostics, &rejected.sources, Style::default());
            let _ = writeln!(text, "{rejected}");
            text
        }
    }
}

#[test]
fn a_system_call_filter_is_handed_on_as_what_is_in_its_file() {
    let file = |option: &str| format!("services:\n  app:\n    image: app:1\n    security_opt: [\"{option}\"]\n");
    let options = |option: &str| {
        let stack = stack(&file(option));
        let Runner::Engine(container) = stack.services[0].run.runner() else { panic!("it has an image") };
        container.security_opt.clone()
    };
    assert_eq!(options("seccomp=./filter.json"), [r#"seccomp={"defaultAction":"SCMP_ACT_ALLOW"}"#]);
    assert_eq!(options("seccomp:filter.json"), [r#"seccomp={"defaultAction":"SCMP_ACT_ALLOW"}"#]);
    for option in ["seccomp:unconfined", "seccomp={}", "no-new-privileges:true", "apparmor=mine"] {
        assert_eq!(options(option), [option]);
    }
    assert_eq!(error_ids(&file("seccomp=./nowhere.json")), ["security-opt"]);
    assert_eq!(error_ids(&file("seccomp=app.env")), ["security-opt"]);
}

fn error_ids(text: &str) -> Vec<&'static str> {
    match load(text) {
        Ok(_) => Vec::new(),
        Err(rejected) => rejected.diagnostics.iter().filter(|d| d.severity == Severity::Error).map(|d| d.id).collect(),
    }
}

/// A file with one service `a` that holds these lines, and `rest` below.
fn service(lines: &[&str]) -> String {
    let mut text = "services:\n  a:\n    x-palisade: {process: {command: [a]}}\n".to_owned();
    for line in lines {
        let _ = writeln!(text, "    {line}");
    }
    text
}

/// What the files of the corpus mean where a case has it written down; what is said about them is in `corpus.rs`.
#[test]
fn meanings() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for name in ["dot-env", "host-mode", "reference"] {
        let case = folder.join(name);
        let contents = std::fs::read(case.join("compose.yaml")).unwrap();
        let dot_env = std::fs::read(case.join("dot.env")).ok();
        settings.set_snapshot_path(&case);
        let _bound = settings.bind_to_scope();
        let loaded =
            load_with(&contents, dot_env.as_deref()).unwrap_or_else(|rejected| panic!("{}", said(Err(rejected))));
        insta::assert_snapshot!("stack", serde_json::to_string_pretty(&loaded.stack).unwrap());
    }
}

#[test]
fn a_file_that_is_too_large_is_not_parsed() {
    let huge = vec![b'x'; 10 << 20];
    assert!(huge.len() > FILE_BYTES_MAX);
    insta::assert_snapshot!(said(load_with(&huge, None)), @"
    error[too-large]: `compose.yaml` is larger than 8 MiB, so it was not read
     |
     = hint: is it a Compose file? A thousand services need about half a MiB

    1 mistake in compose.yaml
    ");
}

#[test]
fn what_is_no_text_is_said_so() {
    insta::assert_snapshot!(said(load_with(b"services:\n  a: \xff\xfe\n", None)), @"
    error[not-text]: `compose.yaml` is not UTF-8 text: the first wrong byte is in line 2
     |
     = hint: save it as UTF-8; if it is another kind of file, give the Compose file with `-f`

    1 mistake in compose.yaml
    ");
}

#[test]
fn an_empty_file_is_said_so() {
    assert_eq!(error_ids("# nothing yet\n"), ["not-compose"]);
    insta::assert_snapshot!(said(load("")), @"
    error[not-compose]: `compose.yaml` is empty
     |
     = hint: it begins with `services:`, and the services are indented below; if this is another kind of file, give the Compose file with `-f`

    1 mistake in compose.yaml
    ");
}

#[test]
fn hostile_files_end_soon() {
    let started = std::time::Instant::now();
    let deep = format!("services: {}", "[".repeat(1_000_000));
    assert_eq!(error_ids(&deep), ["too-deep"]);
    let many_mistakes = format!("services:\n{}", "  a: {imagee: x}\n  'b c': {}\n".repeat(10_000));
    assert!(!error_ids(&many_mistakes).is_empty());
    let long_line = format!("services: {{a: {{image: \"{}\"}}}}", "x".repeat(4 << 20));
    let said = said(load(&long_line));
    assert!(said.len() < 2000, "{}", said.len());
    let mut chain = "services:\n".to_owned();
    for n in 0..5000 {
        let _ =
            writeln!(chain, "  s{n}: {{x-palisade: {{process: {{command: [a]}}}}, depends_on: [s{}]}}", (n + 1) % 5000);
    }
    assert_eq!(error_ids(&chain), ["cycle"]);
    let ranges = service(&["ports:", &"\n      - 1000-2000:1000-2000".repeat(1000)]);
    assert_eq!(error_ids(&ranges), Vec::<&str>::new(), "the same port written twice counts once");
    // A few seconds in a debug build; only something that doesn't end takes as long as this.
    assert!(started.elapsed().as_secs() < 120, "{:?}", started.elapsed());
}

#[test]
fn values_settle_as_compose_means_them() {
    let stack = stack(&service(&[
        "environment: [\"A=1\", HOME, NOWHERE, \"OVERRIDDEN=here\"]",
        "env_file: [app.env, {path: absent.env, required: false}]",
        "ports: [\"0.0.0.0:80:8080\", \"[::]:80:8080\", \"127.0.0.1:53:53/udp\"]",
        "expose: [\"9000-9001\", 8080]",
        "restart: no",
        "stop_signal: 2",
        "stop_grace_period: 1m30s",
        "mem_limit: 512m",
        "cpus: 0.5",
        "pids_limit: -1",
        "volumes: [\"./data/../conf:/etc/a:ro\", \"~/x:/x\", {type: tmpfs, target: /t, tmpfs: {size: 1m}}]",
        "extra_hosts: [\"a.example:192.0.2.1\", \"b.example=[2001:db8::1]\"]",
        "cap_add: [cap_sys_nice]",
        "logging: {driver: local, options: {max-size: 10m, max-file: \"5\"}}",
        "container_name: the-a",
    ]));
    let a = &stack.services[0];
    assert_eq!(stack.project.as_str(), "barter");
    let environment: Vec<_> = a.environment.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(environment, ["A=1", "FROM_FILE=1", "HOME=/home/ada", "OVERRIDDEN=here", "SECRET=top$ecret"]);
    let published: Vec<_> =
        a.publish.iter().map(|p| (p.value.host_ip.map(|ip| ip.to_string()), p.value.host_port)).collect();
    assert_eq!(published, [(None, 80), (Some("127.0.0.1".into()), 53)]);
    let exposed: Vec<_> = a.expose.iter().map(|p| p.value.to_string()).collect();
    assert_eq!(exposed, ["9000/tcp", "9001/tcp", "8080/tcp", "53/udp"]);
    assert_eq!((a.stop_signal.as_str(), a.stop_grace_ms), ("SIGINT", 90_000));
    assert_eq!((a.limits.memory_bytes, a.limits.cpu_milli, a.limits.pids), (Some(512 << 20), Some(500), None));
    assert_eq!((a.log.max_bytes, a.log.max_files), (10_000_000, 5));
    let mounts = serde_json::to_string(&a.mounts.iter().map(|m| &m.value.source).collect::<Vec<_>>()).unwrap();
    assert_eq!(mounts, r#"[{"Bind":"/srv/barter/conf"},{"Bind":"/home/ada/x"},{"Tmpfs":{"size_bytes":1048576}}]"#);
    assert!(a.cap_add.contains("SYS_NICE") && a.aliases.contains("the-a"));
    assert_eq!(a.publish[0].place.to_string(), "compose.yaml:6:13");
}

#[test]
fn volumes_without_a_name_are_of_an_instance_and_a_target() {
    let text = "x-p: &p {process: {command: [a]}}\nservices:\n  \
        web: {x-palisade: *p, volumes: [/data, {type: volume, target: /a.b}], deploy: {replicas: 2}}\n  \
        job: {x-palisade: *p, volumes_from: [web], volumes: [/data/]}\n  none: {x-palisade: *p, tmpfs: ['/t:mode=0700,size=1m']}\n";
    let stack = stack(text);
    let keys: Vec<_> = stack.volumes.keys().map(|key| key.rsplit_once('.').unwrap().0).collect();
    assert_eq!(keys, ["job.1.data", "web.1.a-b", "web.1.data", "web.2.a-b", "web.2.data"]);
    let (web, job) = (&stack.services[0], &stack.services[1]);
    let key = |service: &Service, mount: usize, number| service.mounts[mount].value.volume_key(&service.name, number);
    assert_ne!(key(web, 0, 1), key(web, 0, 2));
    assert_ne!(key(job, 0, 1), key(web, 0, 1), "what it says itself goes first");
    assert_eq!(key(job, 1, 1), key(web, 1, 1), "the first instance's");
    assert_eq!(key(job, 1, 2), key(web, 1, 1));
    let tmpfs = &stack.services[2].mounts[0].value.source;
    assert_eq!(*tmpfs, MountSource::Tmpfs { size_bytes: Some(1 << 20), mode: Some(0o700) });
}

#[test]
fn networks_follow_compose() {
    let text = "networks: {inner: {internal: true}}\nx-p: &p {process: {command: [a]}}\nservices:\n  \
                plain: {x-palisade: *p}\n  host: {network_mode: host, x-palisade: *p}\n  \
                none: {network_mode: none, x-palisade: *p}\n  inner: {networks: [inner], x-palisade: *p}\n  \
                both: {networks: {inner: , default: {aliases: [x]}}, x-palisade: *p}\n";
    let stack = stack(text);
    let networks = |n: usize| stack.services[n].networks.iter().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!((0..5).map(networks).collect::<Vec<_>>(), ["default", "default", "", "inner", "default inner"]);
    assert!(stack.services[1].host_mode && !stack.services[0].host_mode);
    assert_eq!(stack.services[3].egress, Egress::None);
    assert_eq!(stack.services[4].egress, Egress::All);
}

#[test]
fn the_reference_stack_is_understood() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/barter/compose.yaml");
    let contents = std::fs::read(path).unwrap();
    let result = load_with(&contents, None);
    assert!(result.as_ref().is_ok_and(|loaded| loaded.diagnostics.is_empty()), "{}", said(result));
}

#[test]
fn an_empty_policy_key_grants_nothing() {
    for empty in ["", "[]"] {
        let text = format!(
            "services:\n  a:\n    x-palisade:\n      process: {{command: [a]}}\n      connect: {empty}\n      egress: {empty}\n"
        );
        let stack = stack(&text);
        assert_eq!(stack.services[0].connect.as_deref().map(<[_]>::len), Some(0), "{text}");
        assert_eq!(stack.services[0].egress, Egress::None, "{text}");
    }
}

#[test]
fn each_mistake_has_its_own_answer() {
    for (lines, id) in [
        (&["ports: [\"80:80\", \"81:80\"]"][..], "refused-value"),
        (&["ports: [\"80:80\", \"80:81\"]"], "port-conflict"),
        (&["ports: [\"80:81\"]", "expose: [80]"], "port-conflict"),
        (&["ports: [\"80\"]"], "refused-value"),
        (&["ports: [\"0:80\"]"], "invalid-value"),
        (&["ports: [\"80:65536\"]"], "invalid-value"),
        (&["ports: [{target: 80}]"], "refused-value"),
        (&["ports: 80"], "type"),
        (&["ports: [\"80:80/udp\"]", "scale: 2"], "replicas-publish"),
        (&["scale: 0"], ""),
        (&["scale: 255"], "invalid-value"),
        (&["scale: 2", "deploy: {replicas: 3}"], "conflict"),
        (&["mem_limit: lots"], "invalid-value"),
        (&["stop_grace_period: 10"], "invalid-value"),
        (&["restart: sometimes"], "invalid-value"),
        (&["cap_add: [NET_ADMIN]"], "beyond-the-guard"),
        (&["cap_add: [CAP_DAC_READ_SEARCH]"], "beyond-the-guard"),
        (&["cap_add: [ALL]"], "beyond-the-guard"),
        (&["cap_add: [NET_BIND]"], "invalid-value"),
        (&["privileged: true"], "beyond-the-guard"),
        (&["volumes: [\"/var/run/docker.sock:/var/run/docker.sock:ro\"]"], "beyond-the-guard"),
        (&["volumes: [\"/:/host\"]"], "beyond-the-guard"),
        (&["volumes: [\"data:/data\"]"], "unknown-volume"),
        (&["volumes: [\"./a:/x\", \"./b:/x\"]"], "conflict"),
        (&["volumes: [\"./a:x\"]"], "invalid-value"),
        (&["networks: [nowhere]"], "unknown-network"),
        (&["networks: [default]", "network_mode: host"], "conflict"),
        (&["network_mode: \"service:b\""], "invalid-value"),
        (&["depends_on: [nobody]"], "unknown-service"),
        (&["depends_on: [a]"], "cycle"),
        (&["depends_on: {nobody: {required: false}}"], ""),
        (&["healthcheck: {interval: 1s}"], "refused-value"),
        (&["healthcheck: {test: [pg_isready]}"], "invalid-value"),
        (&["extra_hosts: [\"gw:host-gateway\"]"], ""),
        (&["logging: {driver: syslog}"], "invalid-value"),
        (&["env_file: nothere.env"], "env-file"),
        (&["env_file: broken.env"], "env-file"),
        (&["environment: {A: \"${NOWHERE:?}\"}"], "required-variable"),
        (&["environment: {A: \"5$\"}"], "interpolation"),
        (&["image: a", "image: b"], "duplicate-key"),
        (&["sekrets: []"], "unknown-key"),
        (&["init: true"], ""),
        (&["restart: \"no\""], ""),
        (&["healthcheck: {disable: true}"], ""),
        (&["x-anything: {a: [1]}"], ""),
        (&["ports: [\"80:80\"]", "expose: [80]"], ""),
        (&["volumes: [\"/:/host:ro\"]"], ""),
        (&["cap_drop: [ALL]", "cap_add: [CHOWN]"], ""),
        (&["volumes: []", "ports: []", "environment:"], ""),
    ] {
        let expected: Vec<&str> = Some(id).filter(|id| !id.is_empty()).into_iter().collect();
        let text = service(lines);
        let found = error_ids(&text);
        let all_expected = expected.iter().all(|id| found.contains(id)) && found.is_empty() == expected.is_empty();
        assert!(all_expected, "{lines:?} should give {expected:?}:\n{}", said(load(&text)));
    }
}

#[test]
fn x_palisade_says_what_it_can_not_do() {
    for (line, id) in [
        ("connect: [nobody]", "unknown-peer"),
        ("connect: [\"b:0\"]", "invalid-value"),
        ("connect: [lone]", "no-shared-network"),
        ("egress: [\"registry.example:443\"]", "invalid-value"),
        ("egress: [\"169.254.169.254\"]", "invalid-value"),
        ("egress: [\"10.0.0.1/8\"]", "invalid-value"),
        ("egress: some", "invalid-value"),
        ("host: [0]", "invalid-value"),
        ("strict: perhaps", "invalid-value"),
        ("runtime: docker", "invalid-value"),
        ("conect: [b]", "unknown-key"),
    ] {
        let text = format!(
            "services:\n  a:\n    x-palisade:\n      process: {{command: [a]}}\n      {line}\n  \
             b: {{x-palisade: {{process: {{command: [b]}}}}}}\n  \
             lone: {{network_mode: none, x-palisade: {{process: {{command: [b]}}}}}}\n"
        );
        assert_eq!(error_ids(&text), [id], "{line}:\n{}", said(load(&text)));
    }
    let many = (0..33).map(|n| format!("10.0.{n}.0/24")).collect::<Vec<_>>().join(", ");
    let text = format!("services:\n  a: {{x-palisade: {{process: {{command: [a]}}, egress: [{many}]}}}}\n");
    assert_eq!(error_ids(&text), ["too-many"]);
}

#[test]
fn limits_of_the_kernel_maps_are_kept() {
    let networks: String = (0..65).map(|n| format!("  n{n}:\n")).collect();
    let services: String =
        (0..65).map(|n| format!("  s{n}: {{networks: [n{n}], x-palisade: {{process: {{command: [a]}}}}}}\n")).collect();
    assert_eq!(error_ids(&format!("networks:\n{networks}services:\n{services}")), ["too-many"]);
}

#[test]
fn ports_of_different_protocols_and_addresses_do_not_collide() {
    let stack = stack(
        "services:\n  a: {ports: [\"53:53\", \"127.0.0.1:90:90\"], x-palisade: {process: {command: [a]}}}\n  \
         b: {ports: [\"53:53/udp\", \"127.0.0.2:90:90\"], expose: [90], x-palisade: {process: {command: [a]}}}\n",
    );
    assert_eq!(stack.services[1].publish[0].value.container.proto, Proto::Udp);
}

#[test]
fn a_top_level_key_given_twice_is_told_and_read_once() {
    let text = service(&["image: x"]) + "services:\n  b: {image: y}\n";
    assert_eq!(error_ids(&text), ["duplicate-key"]);
}

#[test]
fn characters_that_nobody_sees_are_shown() {
    let said = said(load("services:\n  \"a\u{202e}b\u{feff}\": {image: x}\n"));
    assert!(!said.contains(['\u{202e}', '\u{feff}']), "{said:?}");
    assert!(said.contains("`a\\u{202e}b\\u{feff}`"), "{said}");
}

#[test]
fn a_suggested_name_is_shown_without_control_characters() {
    let said = said(load(&format!("{}volumes: {{\"da\\x01ta\": {{}}}}\n", service(&["volumes: [\"data:/x\"]"]))));
    assert!(said.contains("did you mean `da\\u{1}ta`?") && !said.contains('\u{1}'), "{said}");
}
