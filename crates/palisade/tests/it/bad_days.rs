//! How it behaves when things are bad: each bad day has its exit code and its message, which says what, where and what
//! to do, and leaves nothing behind.
//!
//! The messages are in `cases/bad_days`. What a Compose file may hold is tested in `palisade_core`.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::need_root;
use crate::scratch::{Host, PATIENCE, Ran, Running, left_at_last, left_of, patiently};
use crate::support::{PALISADE, skipped};

/// A service that works, with a published and a private port.
const GOOD: &str = r#"
name: shop
services:
  web:
    ports: ["8080:8080"]
    expose: ["5432"]
    x-palisade:
      process: { command: ["sleep", "1000"], user: nobody }
"#;

fn snapshot(name: &str, text: &str) {
    insta::with_settings!({
        snapshot_path => "cases/bad_days",
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, {
        insta::assert_snapshot!(name, text);
    });
}

/// Runs `up`, compares what it says, and makes sure that nothing is left.
#[track_caller]
fn up_fails(host: &Host, name: &str, code: i32, file: &str) {
    host.write(file);
    ends_clean(host, name, code, host.palisade(&["up", "--wait"]));
}

/// Is waited for however late it does what it does.
const NEVER_WELL: &str = "    healthcheck: { test: [CMD, 'false'], start_period: 60s }\n";

#[track_caller]
fn ends_clean(host: &Host, name: &str, code: i32, ran: Ran) {
    snapshot(name, &ran.whole(host));
    ran.expect(code);
    host.assert_nothing_left();
}

/// A copy of the binary that every user may run, wherever the workspace is.
fn public_binary(host: &Host) -> PathBuf {
    let copy = host.folder.join("palisade");
    fs::copy(PALISADE, &copy).unwrap();
    for path in [&copy, &host.folder] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    copy
}

#[test]
fn files_that_are_wrong() {
    need_root!("bad_days::files_that_are_wrong");
    let host = Host::new();
    let service = |name: &str, rest: &str| {
        format!("  {name}:\n    x-palisade:\n      process: {{ command: [\"sleep\", \"1000\"] }}\n{rest}")
    };
    let file = |services: &[String]| format!("name: shop\nservices:\n{}", services.concat());
    up_fails(
        &host,
        "same_published_port",
        2,
        &file(&[service("one", "    ports: [\"8080:80\"]\n"), service("two", "    ports: [\"8080:81\"]\n")]),
    );
    up_fails(&host, "unknown_peer", 2, &file(&[service("one", "      connect: [tow]\n"), service("two", "")]));
    up_fails(
        &host,
        "cycle",
        2,
        &file(&[service("one", "    depends_on: [two]\n"), service("two", "    depends_on: [one]\n")]),
    );
    up_fails(&host, "service_name", 2, &file(&[service("web server", "")]));
    up_fails(&host, "not_yaml", 2, "name: shop\nservices:\n  web: [1, 2\n    image: x\n");
    up_fails(&host, "needs_an_engine", 3, "services:\n  web: { image: nginx }\n");
    let bomb = (1..9).fold("x-0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, n| {
        let inner = [format!("*a{}", n - 1).as_str(); 10].join(",");
        format!("{text}x-{n}: &a{n} [{inner}]\n")
    });
    up_fails(&host, "alias_bomb", 2, &(bomb + GOOD));
    let began = std::time::Instant::now();
    up_fails(&host, "ten_megabytes", 2, &format!("{GOOD}# {}\n", "x".repeat(10 << 20)));
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[test]
fn without_root_only_reading_works() {
    need_root!("bad_days::without_root_only_reading_works");
    let host = Host::new();
    let binary = public_binary(&host);
    host.write(GOOD);
    let run = |arguments: &[&str]| {
        let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
        Running::start(host.wrapped(&nobody, &binary, arguments)).end(PATIENCE)
    };
    ends_clean(&host, "not_root_up", 3, run(&["up"]));
    ends_clean(&host, "not_root_down", 3, run(&["down"]));
    ends_clean(&host, "not_root_check", 0, run(&["check"]));
    ends_clean(&host, "not_root_plan", 1, run(&["plan"]));
    let ports = run(&["ports", "--check", "-o", "/nowhere/PORTS.md"]).expect(1);
    assert!(ports.out.contains("Only the file was compared: looking at the host needs root"), "{ports:?}");
    let exported = run(&["export", "nftables"]).expect(0);
    assert!(exported.out.contains("policy drop"), "{exported:?}");
    let explained = run(&["explain", "8080"]).expect(3);
    assert!(explained.err.contains("hint: run it with sudo"), "{explained:?}");
    let rehearsal = run(&["rehearse"]);
    let text = format!("{}{}", rehearsal.out, rehearsal.err);
    if text.contains("may not make user namespaces") {
        skipped("bad_days::without_root_only_reading_works (rehearse)", "users may not make user namespaces here");
        assert!(text.contains("hint: run `sudo palisade rehearse`"), "{text}");
    } else {
        assert!(text.contains("packets from outside on eth0") && text.contains("2 of 262140 doors open"), "{text}");
        assert!(text.contains("Left out without root: starting the services (cgroups), the guard (eBPF)"), "{text}");
    }
    rehearsal.expect(3);
    host.assert_nothing_left();
}

/// Runs `up` after a script has changed a mount namespace that nobody else sees.
fn up_after(host: &Host, script: &str) -> Ran {
    let script = format!("{script}\nexec \"$@\"");
    let wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", &script, "sh"];
    Running::start(host.wrapped(&wrapper, Path::new(PALISADE), &["up", "--wait"])).end(PATIENCE)
}

#[test]
fn without_cgroup2() {
    need_root!("bad_days::without_cgroup2");
    let host = Host::new();
    host.write(GOOD);
    let away = "for at in $(awk '$3 == \"cgroup2\" {print $2}' /proc/self/mounts); do umount -l \"$at\"; done";
    ends_clean(&host, "no_cgroup2", 3, up_after(&host, away));
}

#[test]
fn without_nft() {
    need_root!("bad_days::without_nft");
    let host = Host::new();
    host.write(GOOD);
    let nft = Command::new("sh").args(["-c", "PATH=$PATH:/usr/sbin:/sbin command -v nft"]).output().unwrap();
    let nft = String::from_utf8(nft.stdout).unwrap();
    let nft = fs::canonicalize(nft.trim()).unwrap();
    let folder = nft.parent().unwrap();
    if folder != Path::new("/usr/sbin") {
        return skipped("bad_days::without_nft", &format!("nft is in {}, which can't be hidden", folder.display()));
    }
    ends_clean(&host, "no_nft", 3, up_after(&host, "mount -t tmpfs none /usr/sbin"));
}

#[test]
fn with_a_disk_that_has_no_room_for_what_is_kept_for_the_next_boot() {
    need_root!("bad_days::with_a_disk_that_has_no_room_for_what_is_kept_for_the_next_boot");
    let host = Host::new();
    host.write(GOOD);
    let folder = format!("/var/lib/{}", host.layout.realm);
    let full = format!(
        "mount -t tmpfs -o size=64k none /var/lib; mkdir {folder}; ! dd if=/dev/zero of=/var/lib/full 2>/dev/null"
    );
    ends_clean(&host, "disk_full", 1, up_after(&host, &full));
}

#[test]
fn as_a_root_that_is_not_one() {
    need_root!("bad_days::as_a_root_that_is_not_one");
    let host = Host::new();
    host.write(GOOD);
    // Root of an ordinary container, and root in name only.
    for (name, gone) in [("no_sys_admin", "-sys_admin,-bpf,-net_admin"), ("no_capabilities", "-all")] {
        let wrapper = ["setpriv", &format!("--bounding-set={gone}"), &format!("--inh-caps={gone}")];
        let up = Running::start(host.wrapped(&wrapper, Path::new(PALISADE), &["up", "--wait"]));
        ends_clean(&host, name, 3, up.end(PATIENCE));
    }
}

/// From here on this process gets this error from `bpf(2)`: the system call is forbidden, or not in the kernel.
fn refuse_bpf(error: i32) -> std::io::Result<()> {
    let statement = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        // The number of the system call is the first word.
        statement((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, 0),
        statement((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 0, 1, libc::SYS_bpf as u32),
        statement((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, libc::SECCOMP_RET_ERRNO | error as u32),
        statement((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which lives until then.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[test]
fn without_bpf() {
    need_root!("bad_days::without_bpf");
    let host = Host::new();
    host.write(GOOD);
    for (name, error) in [("bpf_forbidden", libc::EPERM), ("bpf_missing", libc::ENOSYS)] {
        let mut command = host.command(&["up", "--wait"]);
        // SAFETY: between fork and exec it makes one system call and allocates nothing.
        unsafe { std::os::unix::process::CommandExt::pre_exec(&mut command, move || refuse_bpf(error)) };
        ends_clean(&host, name, 3, Running::start(command).end(PATIENCE));
    }
}

#[test]
fn ports_that_a_process_of_the_host_has() {
    need_root!("bad_days::ports_that_a_process_of_the_host_has");
    let host = Host::new();
    for (port, name) in [(8080, "published_port_taken"), (5432, "private_port_taken")] {
        let script = format!("import socket,time; s=socket.create_server(('0.0.0.0',{port})); time.sleep(300)");
        let mut squatter = Command::new("/usr/bin/python3");
        squatter.args(["-c", &script]);
        let squatter = Running::start(squatter);
        patiently("the squatter", || {
            crate::scratch::connects(std::net::SocketAddr::from(([127, 0, 0, 1], port))).then_some(())
        });
        host.write(GOOD);
        let ran = host.palisade(&["up", "--wait"]);
        let text = format!("{}{}", ran.out, ran.err);
        assert!(text.contains("python3") && text.contains(&squatter.pid().to_string()), "{text}");
        ends_clean(&host, name, 1, ran);
    }
}

#[test]
fn services_that_do_not_come_up() {
    need_root!("bad_days::services_that_do_not_come_up");
    let host = Host::new();
    let file = |command: &str, rest: &str| {
        format!("name: shop\nservices:\n  web:\n    x-palisade:\n      process: {{ command: {command} }}\n{rest}")
    };
    up_fails(
        &host,
        "exits_at_once",
        1,
        &file(r#"["sh", "-c", "echo reading the licence; echo no licence found >&2; exit 3"]"#, NEVER_WELL),
    );
    up_fails(
        &host,
        "exits_at_once_and_is_restarted",
        1,
        &file(r#"["sh", "-c", "echo no licence found >&2; exit 3"]"#, "    restart: always\n"),
    );
    up_fails(&host, "command_not_found", 1, &file(r#"["no-such-program", "--serve"]"#, ""));
    up_fails(
        &host,
        "never_healthy",
        1,
        &file(
            r#"["sleep", "1000"]"#,
            "    healthcheck: { test: [CMD-SHELL, 'echo nobody answers; exit 1'], interval: 200ms, retries: 2, timeout: 5s }\n",
        ),
    );
    up_fails(
        &host,
        "no_such_user",
        1,
        "name: shop\nservices:\n  web:\n    x-palisade:\n      process: { command: [sleep, '1000'], user: no-such-user }\n",
    );
}

#[test]
fn one_that_fails_leaves_those_that_ran_before_alone() {
    need_root!("bad_days::one_that_fails_leaves_those_that_ran_before_alone");
    let host = Host::new();
    host.write(GOOD);
    host.up();
    let before = host.pid("web.1");
    host.write(&format!(
        "{GOOD}  broken:\n{NEVER_WELL}    x-palisade: {{ process: {{ command: [sh, -c, exit 3] }} }}\n"
    ));
    let failed = host.palisade(&["up", "--wait"]).expect(1);
    assert!(failed.err.contains("broken.1 exited with 3"), "{}", failed.err);
    assert_eq!(host.pid("web.1"), before, "it was not touched");
    assert_eq!(host.pid("broken.1"), None);
    host.write(GOOD);
    let plan = host.palisade(&["plan"]).expect(0);
    assert_eq!(plan.out, "shop: nothing to change\n");
    host.down();
}

#[test]
fn ctrl_c_while_up_waits() {
    need_root!("bad_days::ctrl_c_while_up_waits");
    let host = Host::new();
    host.write(
        "name: shop\nservices:\n  web:\n    ports: ['8080:8080']\n    \
         healthcheck: { test: [CMD, 'false'], interval: 1s, retries: 1000, start_period: 1000s }\n    \
         x-palisade: { process: { command: [sh, -c, 'echo ready; exec sleep 1000'] } }\n",
    );
    let up = Running::start(host.command(&["up", "--wait"]));
    host.wait_for_line("web", "ready");
    up.signal(Signal::SIGINT);
    ends_clean(&host, "ctrl_c_in_up", 130, up.end(PATIENCE));
}

#[test]
fn ctrl_c_while_a_rehearsal_runs() {
    need_root!("bad_days::ctrl_c_while_a_rehearsal_runs");
    let host = Host::new();
    host.write(
        "name: shop\nservices:\n  web:\n    ports: ['8080:8080']\n    \
         healthcheck: { test: [CMD, 'false'], interval: 1s, retries: 1000, start_period: 1000s }\n    \
         x-palisade: { process: { command: [sh, -c, 'echo ready; exec sleep 1000'] } }\n",
    );
    let rehearsal = Running::start(host.command(&["rehearse"]));
    let realm = format!("palisade-rehearse-{}", rehearsal.pid());
    let log = format!("/var/log/{realm}/shop/web.1.log");
    patiently("the service of the rehearsal", || fs::read_to_string(&log).ok().filter(|text| text.contains("ready")));
    rehearsal.signal(Signal::SIGINT);
    let ran = rehearsal.end(PATIENCE);
    assert!(ran.err.contains("interrupted; nothing was left behind"), "{}", ran.err);
    ran.expect(130);
    assert_eq!(left_at_last(|| left_of(&realm)), Vec::<String>::new());
    host.assert_nothing_left();
}

#[test]
fn two_at_once() {
    need_root!("bad_days::two_at_once");
    let host = Host::new();
    let go = host.folder.join("go");
    host.write(
        "name: shop\nservices:\n  web:\n    ports: ['8080:8080']\n    volumes: ['./:/case:ro']\n    \
         healthcheck: { test: [CMD, test, -e, /case/go], interval: 200ms, retries: 1000, start_period: 1000s, start_interval: 100ms }\n    \
         x-palisade: { process: { command: [sh, -c, 'echo ready; exec sleep 1000'] } }\n",
    );
    let first = Running::start(host.command(&["up", "--wait"]));
    host.wait_for_line("web", "ready");
    for verb in ["up", "down"] {
        let second = host.palisade(&[verb]).expect(1);
        let pid = first.pid();
        // `up` has read the file, and counts its risks first.
        let expected = format!(
            "error: can't {verb} shop: palisade with process id {pid} is changing it\n  hint: try again when it is done\n"
        );
        assert!(second.err.ends_with(&expected) && second.err.lines().count() <= 3, "{}", second.err);
    }
    fs::write(&go, "").unwrap();
    first.end(PATIENCE).expect(0);
    // Two that begin at the same moment: one does it, the other does nothing or says who is at it.
    host.down();
    let both = [(); 2].map(|()| Running::start(host.command(&["up", "--wait"])));
    let ended = both.map(|up| up.end(PATIENCE));
    assert!(ended.iter().any(|ran| ran.code == Some(0)), "{ended:?}");
    for ran in &ended {
        let polite = ran.code == Some(0) || ran.err.contains("is changing it");
        assert!(polite, "{ended:?}");
    }
    let ps = host.ps();
    assert_eq!(ps["instances"].as_array().unwrap().len(), 1);
    assert_eq!(ps["instances"][0]["guarded"], true);
    host.down();
}

#[test]
fn two_stacks_that_publish_the_same_port() {
    need_root!("bad_days::two_stacks_that_publish_the_same_port");
    let host = Host::new();
    let serve = r#"["python3", "-c", "import socket; s = socket.create_server(('0.0.0.0', 8080)); print('ready', flush=True); [s.accept() for _ in iter(int, 1)]"]"#;
    let file = |name: &str| {
        format!(
            "name: {name}\nservices:\n  web:\n    ports: ['8080:8080']\n    x-palisade: {{ process: {{ command: {serve} }} }}\n"
        )
    };
    host.write(&file("shop"));
    host.up();
    host.wait_for_line("web", "ready");
    fs::write(host.folder.join("other.yaml"), file("other")).unwrap();
    let other = host.palisade(&["-f", "other.yaml", "up", "--wait"]);
    snapshot("port_of_another_stack", &other.whole(&host));
    other.expect(1);
    assert!(host.open_to_strangers(8080), "the first one goes on");
    host.down();
}

#[test]
fn a_listener_of_the_test_itself_is_not_taken_for_the_stacks() {
    need_root!("bad_days::a_listener_of_the_test_itself_is_not_taken_for_the_stacks");
    let host = Host::new();
    host.write(GOOD);
    // On another address than the service's: nobody is in the way of anybody.
    let other = TcpListener::bind("127.0.0.1:5432").unwrap();
    host.up();
    drop(other);
    host.down();
}
