//! What a service's settings, secrets and configs are inside of its instance, on the real kernel, and who can't get at them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use palisade_core::environment::Hidden;
use palisade_core::instance::{InstanceFile, InstanceSpec, InstanceStatus, RunState};
use palisade_core::names::ProjectName;
use palisade_core::stack::{CpuSet, Dns, FileSource, Hook, ProvidedFile, Restart, Ulimit};
use palisade_host::agent::{self, Client};
use palisade_host::cgroup::{Cgroup, Mounts};
use palisade_host::layout::Layout;
use palisade_host::runtime::{self, Exit, Found};

use crate::need_root;
use crate::scratch::{Host, PATIENCE, Running, patiently};
use crate::support::{PALISADE, Realm, Scratch, eventually, process_of};

fn exit_of(realm: &Realm, spec: &InstanceSpec) -> Exit {
    eventually("the instance's end", || match runtime::find(&realm.layout, &spec.id).unwrap() {
        Some(Found::Ended(exit)) => Some(exit.expect("an exit status")),
        _ => None,
    })
}

/// Runs the instance to its end; returns its exit code and what it printed, without the streams' names.
fn run(realm: &Realm, spec: &InstanceSpec) -> (i32, String) {
    runtime::start(&realm.layout, spec, Path::new(PALISADE)).unwrap_or_else(|error| {
        panic!("{error}: {:?}", std::error::Error::source(&error));
    });
    let code = exit_of(realm, spec).code;
    let log = realm.log(spec);
    (code, log.lines().map(|line| line.splitn(3, ' ').nth(2).unwrap_or(line).to_owned() + "\n").collect())
}

fn refusal(realm: &Realm, spec: &InstanceSpec) -> String {
    let error = runtime::start(&realm.layout, spec, Path::new(PALISADE)).expect_err("it must not start");
    let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{source}")
}

fn file(secret: bool, name: &str, target: &str, source: FileSource, mode: u32) -> InstanceFile {
    let (name, target) = (name.to_owned(), PathBuf::from(target));
    let file = ProvidedFile { name, secret, target, source, uid: None, gid: None, mode };
    InstanceFile { file, content_digest: None }
}

fn inline(text: &str) -> FileSource {
    FileSource::Inline(Hidden(text.to_owned()))
}

#[test]
fn root_in_another_instance_gets_at_no_secret_and_at_no_setting() {
    need_root!("root_in_another_instance_gets_at_no_secret_and_at_no_setting");
    let realm = Realm::new();
    let scratch = Scratch::new(&realm);
    let host_file = scratch.0.join("token");
    std::fs::write(&host_file, "hunter2-token").unwrap();
    std::fs::set_permissions(&host_file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut holder =
        realm.shell("holder", "cat /run/secrets/token /run/secrets/inline > /dev/null && echo ready; sleep 1000");
    holder.files = vec![
        file(true, "token", "/run/secrets/token", FileSource::Path(host_file.clone()), 0o400),
        file(true, "inline", "/run/secrets/inline", inline("hunter2-inline"), 0o400),
    ];
    let Found::Running(running) = runtime::start(&realm.layout, &holder, Path::new(PALISADE)).unwrap() else {
        panic!("{}", realm.log(&holder))
    };
    eventually("ready", || realm.log(&holder).contains("ready").then_some(()));

    // Every line that it prints is a success of the attacker's, but for the last.
    let script = format!(
        r#"
        found() {{ grep -rl "hunt""er2" "$@" 2>/dev/null; }}
        found /run /tmp /var /dev/shm /root {scratch} /run/{realm} && echo "FOUND A SECRET"
        for p in /proc/[0-9]*; do
            found $p/root/run/secrets $p/environ $p/cmdline && echo "FOUND THROUGH $p"
        done
        test -e /proc/{pid} && echo "SEES THE OTHER'S PROCESS"
        test -e /run/secrets/token && echo "SEES THE OTHER'S FILE"
        (ulimit -n 4096) 2>/dev/null && echo "RAISED NOFILE"
        python3 -c 'import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))' 2>/dev/null && echo "RAISED NOFILE"
        python3 -c 'import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (4096, 4096))' 2>/dev/null && echo "RAISED NOFILE OF ANOTHER"
        hostname evil 2>/dev/null && echo "RENAMED"
        domainname evil 2>/dev/null && echo "RENAMED DOMAIN"
        echo evil 2>/dev/null > /proc/sys/kernel/hostname && echo "RENAMED THROUGH PROC"
        (echo -500 > /proc/self/oom_score_adj) 2>/dev/null && echo "PROTECTED FROM OOM"
        (echo evil > /run/secrets/own) 2>/dev/null && echo "WROTE ITS SECRET"
        (echo evil > /run/secrets/other) 2>/dev/null && echo "WROTE BESIDE ITS SECRET"
        rm -f /run/secrets/own 2>/dev/null && echo "REMOVED ITS SECRET"
        mv /run/secrets /run/elsewhere 2>/dev/null && echo "MOVED THE SECRETS"
        mount -o remount,rw /run/secrets 2>/dev/null && echo "REMOUNTED"
        umount /run/secrets 2>/dev/null && echo "UNMOUNTED"
        (echo evil > /etc/app.conf) 2>/dev/null && echo "WROTE ITS CONFIG"
        chmod 777 /run/secrets/own 2>/dev/null && echo "CHANGED THE MODE"
        (echo nameserver 192.0.2.66 > /etc/resolv.conf) 2>/dev/null && echo "CHANGED THE RESOLVER"
        for f in /.files /run/own /run/host; do test -e $f && echo "SEES $f"; done
        cat /run/secrets/own
        "#,
        scratch = scratch.0.display(),
        realm = realm.layout.realm,
        pid = running.process().pid,
    );
    let mut attacker = realm.shell("attacker", &script);
    attacker.files = vec![
        file(true, "own", "/run/secrets/own", inline("its own\n"), 0o440),
        file(false, "conf", "/etc/app.conf", inline("x\n"), 0o444),
    ];
    attacker.settings.ulimits.insert("nofile".into(), Ulimit { soft: Some(256), hard: Some(512) });
    attacker.settings.oom_score_adj = Some(300);
    let (code, log) = run(&realm, &attacker);
    assert_eq!((code, log.as_str()), (0, "its own\n"));

    // Another user of the same instance, and what is left afterwards.
    let mut user =
        realm.shell("user", "cat /run/secrets/root-only 2>&1; cat /run/secrets/all; stat -c '%u:%g %a' /run/secrets/*");
    process_of(&mut user).user = Some("nobody".into());
    user.files = vec![
        file(true, "root-only", "/run/secrets/root-only", inline("hunter2-root"), 0o400),
        file(true, "all", "/run/secrets/all", inline("for all\n"), 0o444),
    ];
    let (_, log) = run(&realm, &user);
    assert_eq!(log, "cat: /run/secrets/root-only: Permission denied\nfor all\n0:0 444\n0:0 400\n");

    runtime::stop(&realm.layout, &holder, &running).unwrap();
    for spec in [&holder, &attacker, &user] {
        runtime::remove(&realm.layout, &spec.id).unwrap();
    }
    std::fs::remove_file(host_file).unwrap();
    for base in ["/run", "/var/lib", "/var/log"] {
        let folder = Path::new(base).join(&realm.layout.realm);
        let grep = std::process::Command::new("grep").arg("-rl").arg("hunter2").arg(&folder).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&grep.stdout), "", "a secret is left in {}", folder.display());
    }
}

#[test]
fn a_service_sees_its_settings() {
    need_root!("a_service_sees_its_settings");
    let realm = Realm::new();
    let scratch = Scratch::new(&realm);
    std::fs::write(scratch.0.join("conf"), "from the host\n").unwrap();
    std::os::unix::fs::chown(scratch.0.join("conf"), Some(1234), Some(0)).unwrap();
    let mut spec = realm.shell(
        "app",
        r#"
        id -G
        ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -Hc; ulimit -Ss
        cat /proc/self/oom_score_adj
        hostname; domainname; cat /etc/hostname; grep 127.77 /etc/hosts | head -n 1
        cat /etc/resolv.conf
        df -B1 --output=size /dev/shm | tail -n 1
        cat /run/secrets/token /usr-conf /etc/deep/inside/conf /etc/hosts.extra /srv/app/conf
        stat -c '%n %u:%g %a' /run/secrets/token /usr-conf /etc/deep/inside/conf /srv/app/conf
        "#,
    );
    spec.settings.groups = vec!["daemon".into(), "4242".into()];
    let ulimit = |soft, hard| Ulimit { soft, hard };
    spec.settings.ulimits = [
        ("nofile".to_owned(), ulimit(Some(777), Some(888))),
        ("core".to_owned(), ulimit(Some(0), Some(4096))),
        ("stack".to_owned(), ulimit(Some(4 << 20), Some(8 << 20))),
    ]
    .into();
    // Below what it was takes a capability that not every machine's root has.
    spec.settings.oom_score_adj = Some(321);
    spec.settings.hostname = Some("front".into());
    spec.settings.domainname = Some("example.test".into());
    spec.settings.dns = Some(Dns {
        servers: vec!["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()],
        search: vec!["corp.test".into()],
        options: vec!["ndots:2".into()],
    });
    spec.settings.shm_bytes = Some(8 << 20);
    let mut owned = file(false, "owned", "/srv/app/conf", FileSource::Path(scratch.0.join("conf")), 0o640);
    owned.file.gid = Some(77);
    spec.files = vec![
        file(true, "token", "/run/secrets/token", inline("a token\n"), 0o400),
        file(false, "usr-conf", "/usr-conf", inline("at the root\n"), 0o444),
        file(false, "deep", "/etc/deep/inside/conf", inline("deep\n"), 0o444),
        file(false, "extra", "/etc/hosts.extra", inline("extra\n"), 0o444),
        owned,
    ];
    let (code, log) = run(&realm, &spec);
    assert_eq!(code, 0, "{log}");
    insta::assert_snapshot!(log, @r"
    0 1 4242
    777
    888
    0
    8
    4096
    321
    front
    example.test
    front
    127.77.8.1	front.example.test front
    nameserver 192.0.2.53
    nameserver 2001:db8::53
    search corp.test
    options ndots:2
      8388608
    a token
    at the root
    deep
    extra
    from the host
    /run/secrets/token 0:0 400
    /usr-conf 0:0 444
    /etc/deep/inside/conf 0:0 444
    /srv/app/conf 1234:77 640
    ");

    // Without any, it is as before: the host's resolver, and a name of its own.
    let plain = realm.shell("plain", "hostname; cat /etc/resolv.conf; ulimit -c");
    let (_, log) = run(&realm, &plain);
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    assert_eq!(log, format!("plain-1\n{host}0\n"));
}

#[test]
fn settings_that_cannot_be_are_refused_by_name() {
    need_root!("settings_that_cannot_be_are_refused_by_name");
    let realm = Realm::new();
    // An instance each: what has just failed may still be ending.
    let refused = |service: &str, change: &dyn Fn(&mut InstanceSpec)| {
        let mut spec = realm.shell(service, "true");
        change(&mut spec);
        refusal(&realm, &spec)
    };
    let ulimit = |name: &str, soft, hard| [(name.to_owned(), Ulimit { soft: Some(soft), hard: Some(hard) })].into();
    let message = refused("a", &|spec| spec.settings.ulimits = ulimit("nosuch", 1, 1));
    assert!(message.contains("set the limit `nosuch`: there is no limit `nosuch`; there are as, core"), "{message}");
    let message = refused("b", &|spec| spec.settings.ulimits = ulimit("nofile", 9, 3));
    assert!(message.contains("its soft limit is above its hard limit"), "{message}");
    let message = refused("c", &|spec| spec.settings.groups = vec!["no-such-group".into()]);
    assert!(message.contains("no group `no-such-group`"), "{message}");
    let message = refused("d", &|spec| spec.settings.hostname = Some("x".repeat(65)));
    assert!(message.contains("set the host name to `xxx"), "{message}");
    let missing = FileSource::Path("/no/such/token".into());
    let missing = file(true, "token", "/run/secrets/token", missing, 0o400);
    let message = refused("e", &|spec| spec.files = vec![missing.clone()]);
    assert!(message.contains("read /no/such/token for the secret token"), "{message}");
    let forbidden = file(true, "token", "/proc/token", inline("hunter2"), 0o400);
    let message = refused("f", &|spec| spec.files = vec![forbidden.clone()]);
    assert!(message.contains("mount on /proc/token: this place belongs to the runtime"), "{message}");
    assert!(!message.contains("hunter2"), "{message}");
}

#[test]
fn limits_are_what_the_kernel_enforces() {
    need_root!("limits_are_what_the_kernel_enforces");
    let realm = Realm::new();
    let mounts = Mounts::find().unwrap();
    let mut spec = realm.shell("app", "grep Cpus_allowed_list /proc/self/status; sleep 1000");
    spec.limits.memory_bytes = Some(64 << 20);
    spec.limits.memory_reservation_bytes = Some(32 << 20);
    spec.limits.memory_swap_bytes = Some(96 << 20);
    spec.limits.cpu_shares = Some(2048);
    spec.limits.cpuset = Some(CpuSet("0".into()));
    let Found::Running(running) = runtime::start(&realm.layout, &spec, Path::new(PALISADE)).unwrap() else {
        panic!("{}", realm.log(&spec))
    };
    eventually("its processors", || realm.log(&spec).contains("Cpus_allowed_list:\t0\n").then_some(()));
    let path = realm.layout.instance_cgroup(&spec.id);
    let read = |controller: &str, v1: &str, v2: &str| {
        let v2 = mounts.v2.join(&path).join(v2);
        let file = if v2.exists() { v2 } else { mounts.v1(controller).unwrap().join(&path).join(v1) };
        std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).trim().to_owned()
    };
    assert_eq!(read("memory", "memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
    assert_eq!(read("memory", "memory.soft_limit_in_bytes", "memory.low"), (32 << 20).to_string());
    let v1 = !mounts.v2.join(&path).join("memory.max").exists();
    let swap = read("memory", "memory.memsw.limit_in_bytes", "memory.swap.max");
    assert_eq!(swap, (if v1 { 96 << 20 } else { 32 << 20 }).to_string());
    let shares = read("cpu", "cpu.shares", "cpu.weight");
    assert!(["2048", "174"].contains(&shares.as_str()), "{shares}");
    runtime::stop(&realm.layout, &spec, &running).unwrap();
    // Lifted again, in the same cgroup.
    spec.limits = Default::default();
    let (read, spec) = (read, spec);
    let Found::Running(running) = runtime::start(&realm.layout, &spec, Path::new(PALISADE)).unwrap() else {
        panic!("{}", realm.log(&spec))
    };
    assert_ne!(read("memory", "memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
    assert_ne!(read("memory", "memory.soft_limit_in_bytes", "memory.low"), (32 << 20).to_string());
    assert!(["1024", "100"].contains(&read("cpu", "cpu.shares", "cpu.weight").as_str()));
    runtime::stop(&realm.layout, &spec, &running).unwrap();
    let mut impossible = spec.clone();
    impossible.limits.cpuset = Some(CpuSet("4095".into()));
    assert!(refusal(&realm, &impossible).contains("cpuset.cpus"), "{}", refusal(&realm, &impossible));
    runtime::remove(&realm.layout, &spec.id).unwrap();
    Cgroup::all_of_realm(&realm.layout).unwrap().iter().for_each(|cgroup| cgroup.remove().unwrap());
    assert!(!mounts.v2.join(&realm.layout.realm).exists());
    if let Some(cpuset) = mounts.v1("cpuset") {
        assert!(!cpuset.join(&realm.layout.realm).exists(), "the cpuset hierarchy is cleaned up too");
    }
}

fn hook(script: &str) -> Hook {
    Hook {
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        user: None,
        working_dir: None,
        environment: Default::default(),
    }
}

fn status(client: &mut Client, spec: &InstanceSpec) -> InstanceStatus {
    client.status().unwrap().into_iter().find(|status| status.id == spec.id).expect("a status")
}

#[test]
fn hooks_run_inside_before_it_counts_as_started_and_before_it_is_told_to_stop() {
    need_root!("hooks_run_inside_before_it_counts_as_started_and_before_it_is_told_to_stop");
    let realm = Realm::new();
    let mut client = agent::ensure(&realm.layout, Path::new(PALISADE)).unwrap();
    let mut spec =
        realm.shell("app", "trap 'echo told to stop; exit 0' TERM; touch /tmp/ready; while :; do sleep 0.02; done");
    process_of(&mut spec).user = Some("nobody".into());
    spec.environment.insert("OF_SERVICE".into(), "one".into());
    let mut second = hook("id -un; pwd; echo $OF_SERVICE $OF_HOOK");
    second.user = Some("daemon".into());
    second.working_dir = Some("/usr".into());
    second.environment.insert("OF_HOOK".into(), "two".into());
    spec.settings.post_start =
        vec![hook("while ! test -e /tmp/go -a -e /tmp/ready; do sleep 0.02; done; id -un"), second];
    spec.settings.pre_stop = vec![hook("echo before the stop; exit 3")];
    client.start(&spec).unwrap();
    let starting = status(&mut client, &spec);
    assert_eq!(starting.state, RunState::Starting, "its hooks aren't through");
    std::fs::write(format!("/proc/{}/root/tmp/go", starting.pid.unwrap()), "").unwrap();
    eventually("it runs", || (status(&mut client, &spec).state == RunState::Running).then_some(()));
    client.stop(&spec.id).unwrap();
    let log = realm.log(&spec);
    let lines: Vec<_> = log.lines().map(|line| line.splitn(3, ' ').nth(2).unwrap_or(line)).collect();
    assert_eq!(lines, ["nobody", "daemon", "/usr", "one two", "before the stop", "told to stop"]);
    let events = std::fs::read_to_string(realm.layout.events()).unwrap();
    assert!(events.contains("its pre_stop hook 1 (`/bin/sh`) exited with 3"), "{events}");
    assert!(!events.contains("OF_HOOK"), "no arguments: {events}");

    // One that fails ends the service, however well that takes it, and nobody starts it again.
    spec.settings.post_start =
        vec![hook("while ! test -e /tmp/ready; do sleep 0.02; done; echo cannot >&2; exit 7"), hook("echo never")];
    spec.restart = Restart::Always;
    client.start(&spec).unwrap();
    let failed = eventually("its end", || {
        Some(status(&mut client, &spec)).filter(|status| matches!(status.state, RunState::Exited { .. }))
    });
    assert_eq!(failed.state, RunState::Exited { code: 7 });
    assert_eq!(failed.hook_failure.as_deref(), Some("its post_start hook 1 (`/bin/sh`) exited with 7"));
    let log = realm.log(&spec);
    assert!(log.contains("cannot") && !log.contains("never"), "{log}");
    assert_eq!(log.matches("before the stop").count(), 1, "what never started isn't prepared for its stop");

    // One that never ends uses up the grace period; the signal comes all the same.
    spec.settings.post_start.clear();
    spec.settings.pre_stop = vec![hook("sleep 1000")];
    spec.stop_grace_ms = 200;
    client.start(&spec).unwrap();
    let ready = format!("/proc/{}/root/tmp/ready", status(&mut client, &spec).pid.unwrap());
    eventually("its trap", || Path::new(&ready).exists().then_some(()));
    client.stop(&spec.id).unwrap();
    assert_eq!(realm.log(&spec).matches("told to stop").count(), 3);
    client.remove(&spec.id).unwrap();
    client.shutdown().unwrap();
}

/// Everything at once, as somebody writes it.
const FILE: &str = r#"
name: shop
services:
  app:
    hostname: front
    domainname: example.test
    group_add: [daemon, "4242"]
    ulimits: {nofile: {soft: 777, hard: 888}}
    oom_score_adj: 321
    shm_size: 8m
    dns: [192.0.2.53]
    dns_search: corp.test
    dns_opt: ["ndots:2"]
    cpu_shares: 2048
    cpuset: "0"
    mem_limit: 64m
    mem_reservation: 32m
    memswap_limit: 96m
    links: ["db:database"]
    depends_on:
      optional: {condition: service_completed_successfully, required: false}
    secrets:
      - token
      - {source: from_env, target: renamed, uid: "65534", mode: 0400}
    configs: [{source: settings, target: /etc/app/settings}]
    volumes: ["shared:/shared", "theirs:/theirs"]
    post_start: [{command: [/bin/sh, -c, "echo hook $$(id -un) $$OF_HOOK"], user: daemon, environment: {OF_HOOK: set}}]
    pre_stop: [{command: [/bin/sh, -c, "echo before the stop"]}]
    stop_signal: SIGKILL
    x-palisade:
      process:
        command:
          - /bin/sh
          - -c
          - |
            id -G; ulimit -Sn; ulimit -Hn; grep Cpus_allowed_list /proc/self/status; cat /proc/self/oom_score_adj; hostname
            cat /etc/resolv.conf; df -B1 --output=size /dev/shm | tail -n 1
            cat /run/secrets/token /run/secrets/renamed /etc/app/settings; echo
            stat -c '%n %u %a' /run/secrets/*
            grep -w database /etc/hosts
            cat /theirs/note; echo kept > /shared/note
            python3 -c 'import socket; socket.create_connection(("db", 5432))' 2>&1 | tail -n 1
            echo done; exec sleep 1000
  db:
    scale: 0
    expose: ["5432"]
    x-palisade: {process: {command: ["true"]}}
  optional:
    x-palisade: {process: {command: ["false"]}}
  alone:
    network_mode: none
    x-palisade:
      process:
        command: [/bin/sh, -c, "grep -c -w app /etc/hosts; ls /run/secrets 2>&1; exec sleep 1000"]
secrets:
  token: {file: ./token}
  from_env: {environment: TOKEN}
configs:
  settings: {content: "inline hunter2-config"}
volumes:
  shared: {name: common}
  theirs: {external: true, name: other_data}
"#;

#[test]
fn a_file_with_every_setting_comes_up_changes_and_goes() {
    need_root!("a_file_with_every_setting_comes_up_changes_and_goes");
    let host = Host::new();
    let palisade = |arguments: &[&str]| {
        let mut command = host.command(arguments);
        command.env("TOKEN", "hunter2-variable");
        Running::start(command).end(PATIENCE)
    };
    host.write(FILE);
    let token = host.folder.join("token");
    std::fs::write(&token, "hunter2-token").unwrap();
    let missing = palisade(&["up"]).expect(2);
    assert!(missing.err.contains("volume-missing") && missing.err.contains("other_data"), "{}", missing.err);
    let other = Layout { project: ProjectName::parse("other").unwrap(), ..host.layout.clone() };
    std::fs::create_dir_all(other.volume("data")).unwrap();
    std::fs::write(other.volume("data").join("note"), "theirs\n").unwrap();

    let up = palisade(&["up"]).expect(0);
    assert!(up.err.contains("warning: optional.1 exited with 1"), "{}", up.err);
    host.wait_for_line("app", "done");
    host.wait_for_line("app", "hook daemon set");
    let mut log = host.log("app");
    log.retain(|line| !line.starts_with("hook "));
    insta::assert_snapshot!(log.join("\n"), @r"
    0 1 4242
    777
    888
    Cpus_allowed_list:	0
    321
    front
    nameserver 192.0.2.53
    search corp.test
    options ndots:2
      8388608
    hunter2-tokenhunter2-variableinline hunter2-config
    /run/secrets/renamed 65534 400
    /run/secrets/token 0 444
    127.77.2.0	database
    theirs
    PermissionError: [Errno 1] Operation not permitted
    done
    ");
    host.wait_for_line("alone", "No such file");
    assert_eq!(host.log("alone")[0], "0");
    let events = patiently("the refusal", || {
        Some(palisade(&["events"]).expect(0).out).filter(|events| events.contains("refused"))
    });
    assert!(events.contains("no instance"), "{events}");

    std::fs::write(&token, "hunter3").unwrap();
    let again = palisade(&["up"]).expect(0);
    assert!(again.err.contains("stop app.1 (changed: secret.token;"), "{}", again.err);
    host.wait_for_line("app", "before the stop");
    let shown = [up.out, up.err, again.out, again.err, events, palisade(&["plan", "--format", "json"]).out].concat();
    assert!(!shown.contains("hunter"), "{shown}");

    assert!(host.layout.named_volume("common").join("note").exists());
    palisade(&["down", "--volumes", "--yes"]).expect(0);
    assert!(!host.layout.named_volume("common").exists(), "the stack made it");
    assert!(other.volume("data").join("note").exists(), "somebody else's stays");
    std::fs::remove_dir_all(other.lib()).unwrap();
    let _ = std::fs::remove_dir(other.lib().parent().unwrap());
    host.assert_nothing_left();
}

#[test]
fn a_volume_without_a_name_outlives_its_instance() {
    need_root!("settings::a_volume_without_a_name_outlives_its_instance");
    let host = Host::new();
    let file = |version: &str| {
        format!(
            "name: shop\nservices:\n  web:\n    volumes: [/data]\n    deploy: {{ replicas: 2 }}\n    \
             environment: {{ VERSION: '{version}' }}\n    x-palisade:\n      process:\n        \
             command: [sh, -c, 'echo $$VERSION >> /data/seen; echo saw $$(cat /data/seen); exec sleep 1000']\n"
        )
    };
    host.write(&file("one"));
    host.up();
    host.wait_for_line("web", "saw one");
    host.write(&file("two"));
    host.up();
    // Each of the two has seen its own, and that of nobody else.
    host.wait_for_line("web", "saw one two");
    host.down();
}
