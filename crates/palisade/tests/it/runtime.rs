//! The process runtime on the real kernel: what an instance may do, what it can't, and what is left of it.

use std::path::Path;
use std::time::{Duration, Instant};

use palisade_core::instance::{InstanceMount, InstanceMountSource, InstanceSpec};
use palisade_core::stack::LogRotation;
use palisade_host::cgroup::Cgroup;
use palisade_host::runtime::{self, EnterOptions, Error, Exit, Found, Inside, Running};

use crate::need_root;
use crate::support::{PALISADE, Realm, Scratch, eventually, process_of};

fn start(realm: &Realm, spec: &InstanceSpec) -> Running {
    match runtime::start(&realm.layout, spec, Path::new(PALISADE)) {
        Ok(Found::Running(running)) => running,
        other => panic!("not running: {other:?}\n{}", realm.log(spec)),
    }
}

fn exit_of(realm: &Realm, spec: &InstanceSpec) -> Exit {
    eventually("the instance's end", || match runtime::find(&realm.layout, &spec.id).unwrap() {
        Some(Found::Ended(exit)) => Some(exit.expect("an exit status")),
        _ => None,
    })
}

/// Runs a script as an instance to its end; returns its exit code and its log.
fn run(realm: &Realm, spec: &InstanceSpec) -> (i32, String) {
    runtime::start(&realm.layout, spec, Path::new(PALISADE)).unwrap();
    let exit = exit_of(realm, spec);
    (exit.code, realm.log(spec))
}

fn refusal(realm: &Realm, spec: &InstanceSpec) -> String {
    let error = runtime::start(&realm.layout, spec, Path::new(PALISADE)).expect_err("it must not start");
    let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{source}")
}

#[test]
fn an_instance_runs_logs_and_leaves_its_exit_code() {
    need_root!("an_instance_runs_logs_and_leaves_its_exit_code");
    let realm = Realm::new();
    let spec = realm.shell("web", "echo out; echo err >&2; printf tail; hostname; exit 7");
    let (code, log) = run(&realm, &spec);
    assert_eq!(code, 7);
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["stderr F err", "stdout F out", "stdout F tailweb-1"]);
    runtime::remove(&realm.layout, &spec.id).unwrap();
    assert!(!Cgroup::of(&realm.layout, &spec).unwrap().exists());
    assert!(runtime::find(&realm.layout, &spec.id).unwrap().is_none());
}

#[test]
fn what_cannot_start_says_why_and_leaves_no_process() {
    need_root!("what_cannot_start_says_why_and_leaves_no_process");
    let realm = Realm::new();
    let missing = realm.command("a", &["no-such-command", "x"]);
    let message = refusal(&realm, &missing);
    assert!(
        message.contains("command `no-such-command` not found in the service's PATH: /usr/local/sbin"),
        "{message}"
    );
    let mut bind = realm.shell("b", "true");
    let source = InstanceMountSource::Path("/no/such/source".into());
    bind.mounts = vec![InstanceMount { source, target: "/data".into(), read_only: true }];
    let message = refusal(&realm, &bind);
    assert!(message.contains("cannot bind /no/such/source on /data: No such file"), "{message}");
    let mut user = realm.shell("c", "true");
    process_of(&mut user).user = Some("no-such-user".into());
    assert!(refusal(&realm, &user).contains("there is no user `no-such-user` in /etc/passwd"));
    let mut capability = realm.shell("d", "true");
    capability.cap_add.insert("SYS_ADMIN".into());
    assert!(refusal(&realm, &capability).contains("capability `SYS_ADMIN`"));
    for spec in [&missing, &bind, &user, &capability] {
        assert!(Cgroup::of(&realm.layout, spec).unwrap().pids().unwrap().is_empty());
    }
    let unguarded = realm.shell("e", "true");
    std::fs::remove_dir(Cgroup::of(&realm.layout, &unguarded).unwrap().v2_path()).unwrap();
    let error = runtime::start(&realm.layout, &unguarded, Path::new(PALISADE)).unwrap_err();
    assert!(matches!(error, Error::Unguarded { .. }), "{error}");
}

#[test]
fn a_stop_signal_is_forwarded_and_who_ignores_it_is_killed_with_its_children() {
    need_root!("a_stop_signal_is_forwarded_and_who_ignores_it_is_killed_with_its_children");
    let realm = Realm::new();
    let polite = realm.shell("polite", "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    let running = start(&realm, &polite);
    eventually("ready", || realm.log(&polite).contains("ready").then_some(()));
    runtime::stop(&realm.layout, &polite, &running).unwrap();
    assert_eq!(exit_of(&realm, &polite).code, 3);
    assert!(realm.log(&polite).contains("bye"));

    let mut stubborn =
        realm.shell("stubborn", "trap '' TERM; (setsid sleep 1000 &) ; echo ready; while :; do sleep 0.05; done");
    stubborn.stop_grace_ms = 300;
    let running = start(&realm, &stubborn);
    eventually("ready", || realm.log(&stubborn).contains("ready").then_some(()));
    let error = runtime::start(&realm.layout, &stubborn, Path::new(PALISADE)).unwrap_err();
    assert!(matches!(error, Error::AlreadyRunning(_)), "{error}");
    let before = Instant::now();
    runtime::stop(&realm.layout, &stubborn, &running).unwrap();
    let took = before.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(60), "{took:?}");
    assert!(Cgroup::of(&realm.layout, &stubborn).unwrap().pids().unwrap().is_empty());
    assert!(matches!(runtime::find(&realm.layout, &stubborn.id).unwrap(), Some(Found::Ended(None))));
}

#[test]
fn files_are_the_hosts_programs_and_the_instances_own_rest() {
    need_root!("files_are_the_hosts_programs_and_the_instances_own_rest");
    let realm = Realm::new();
    let scratch = Scratch::new(&realm);
    std::fs::write(scratch.0.join("config"), "from the host\n").unwrap();
    let volume = realm.layout.volume("data");
    let mut spec = realm.shell(
        "db",
        r#"
        id -u; id -G; echo "$HOME"; pwd
        cat /conf/config; (echo x > /conf/config) 2>/dev/null && echo WROTE-CONFIG
        cat /etc/inside/deep
        echo kept > /data/file; stat -c %U /data
        grep postgres /etc/hosts; test -s /etc/resolv.conf && echo resolv
        for d in /home /srv /mnt /boot /root/x /var/lib/dpkg; do test -e $d && echo "SEES $d"; done
        for d in /usr /etc / /proc/sys/kernel /sys; do (echo x > $d/palisade-test-file) 2>/dev/null && echo "WROTE $d"; done
        for d in /tmp /var/tmp /dev/shm; do echo x > $d/file || echo "CANNOT WRITE $d"; done
        echo gone > /dev/null; head -c 4 /dev/urandom | wc -c; test -c /dev/tty && echo tty
        "#,
    );
    process_of(&mut spec).user = Some("daemon".into());
    process_of(&mut spec).working_dir = Some("/data".into());
    let at = |source, target: &str, read_only| InstanceMount { source, target: target.into(), read_only };
    spec.mounts = vec![
        at(InstanceMountSource::Path(scratch.0.clone()), "/conf", true),
        at(InstanceMountSource::Path(scratch.0.join("config")), "/etc/inside/deep", true),
        at(InstanceMountSource::Volume(volume.clone()), "/data", false),
    ];
    let (code, log) = run(&realm, &spec);
    let lines: Vec<&str> = log.lines().map(|line| line.strip_prefix("stdout F ").unwrap_or(line)).collect();
    let expected = [
        "1",
        "1",
        "/usr/sbin",
        "/data",
        "from the host",
        "from the host",
        "daemon",
        "127.77.9.0\tpostgres",
        "resolv",
        "4",
        "tty",
    ];
    assert_eq!((code, lines.as_slice()), (0, &expected[..]), "{log}");
    assert_eq!(std::fs::read_to_string(volume.join("file")).unwrap(), "kept\n");
    assert!(!Path::new("/usr/palisade-test-file").exists());
}

#[test]
fn read_only_means_no_place_to_write() {
    need_root!("read_only_means_no_place_to_write");
    let realm = Realm::new();
    let mut spec = realm.shell("ro", "for d in /tmp /var/tmp /run /var/lib; do (echo x > $d/f) 2>/dev/null && echo \"WROTE $d\"; done; echo x > /scratch/f && stat -c %a /scratch");
    spec.read_only = true;
    spec.mounts = vec![InstanceMount {
        source: InstanceMountSource::Tmpfs { size_bytes: Some(1 << 20), mode: Some(0o750) },
        target: "/scratch".into(),
        read_only: false,
    }];
    assert_eq!(run(&realm, &spec), (0, "stdout F 750\n".to_owned()));
}

/// Attacks of root inside an instance, each of which works for root outside.
const ATTACKS: &str = r#"
import ctypes, ctypes.util, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, function):
    try:
        result = function()
        print(name, "WORKED", result)
    except OSError as error:
        print(name, "refused")
def call(*arguments):
    result = libc.syscall(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result
def write(path):
    with open(path, "w") as file:
        file.write("0")
def read(path):
    return len(open(path, "rb").read(64)) or call(-1)
x86 = os.uname().machine == "x86_64"
n = dict(mount=165, unshare=272, ptrace=101, setns=308, bpf=321, keyctl=250, io_uring=425, open_by_handle=304, sethostname=170, clone3=435, mknod=133) if x86 else \
    dict(mount=40, unshare=97, ptrace=117, setns=268, bpf=280, keyctl=219, io_uring=425, open_by_handle=265, sethostname=161, clone3=435, mknod=33)
libc.syscall.restype = ctypes.c_long
attempt("mount", lambda: call(n["mount"], b"none", b"/tmp", b"tmpfs", 0, 0))
attempt("unshare-user", lambda: call(n["unshare"], 0x10000000))
attempt("unshare-net", lambda: call(n["unshare"], 0x40000000))
attempt("bpf", lambda: call(n["bpf"], 0, 0, 0))
attempt("keyctl", lambda: call(n["keyctl"], 0, -3, 0))
attempt("io_uring", lambda: call(n["io_uring"], 8, ctypes.create_string_buffer(512)))
attempt("ptrace-init", lambda: call(n["ptrace"], 16, 1, 0, 0))
attempt("init-exe", lambda: os.open("/proc/1/exe", os.O_RDONLY))
attempt("init-root", lambda: os.listdir("/proc/1/root/"))
attempt("init-fd", lambda: [os.readlink("/proc/1/fd/" + fd) for fd in os.listdir("/proc/1/fd")])
attempt("init-mem", lambda: read("/proc/1/mem"))
attempt("init-environ", lambda: read("/proc/1/environ"))
attempt("af-packet", lambda: socket.socket(17, socket.SOCK_RAW, 3))
attempt("af-vsock", lambda: socket.socket(40, socket.SOCK_STREAM))
attempt("af-alg", lambda: socket.socket(38, socket.SOCK_SEQPACKET))
attempt("raw-icmp", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("netfilter", lambda: socket.socket(16, socket.SOCK_RAW, 12))
attempt("cgroup-join-v2", lambda: write("/sys/fs/cgroup/cgroup.procs"))
attempt("cgroup-join-hybrid", lambda: write("/sys/fs/cgroup/unified/cgroup.procs"))
attempt("cgroup-make", lambda: os.mkdir("/sys/fs/cgroup/unified/x" if os.path.isdir("/sys/fs/cgroup/unified") else "/sys/fs/cgroup/x"))
attempt("shadow", lambda: read("/etc/shadow"))
attempt("kcore", lambda: read("/proc/kcore"))
attempt("sysrq", lambda: write("/proc/sysrq-trigger"))
attempt("sysctl", lambda: write("/proc/sys/net/ipv4/ip_forward"))
attempt("uevent-helper", lambda: write("/sys/kernel/uevent_helper"))
attempt("device", lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(254, 0)))
attempt("hostname", lambda: socket.sethostname("x"))
attempt("x32", lambda: call(0x40000000 + 39) if x86 else call(-1))
attempt("reread-core-pattern", lambda: write("/proc/sys/kernel/core_pattern"))
attempt("memory-limit", lambda: write("/sys/fs/cgroup/memory/memory.limit_in_bytes" if os.path.isdir("/sys/fs/cgroup/memory") else "/sys/fs/cgroup/memory.max"))
pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
print("processes", len(pids))
status = {line.split(":")[0]: line.split()[1] for line in open("/proc/self/status") if ":" in line and line.split()[1:]}
print("no_new_privs", status["NoNewPrivs"], "seccomp", status["Seccomp"], "inheritable", int(status["CapInh"], 16), "ambient", int(status["CapAmb"], 16))
print("capabilities", "%x" % int(status["CapEff"], 16), "%x" % int(status["CapPrm"], 16), "%x" % int(status["CapBnd"], 16))
"#;

#[test]
fn root_inside_gets_nowhere() {
    need_root!("root_inside_gets_nowhere");
    let realm = Realm::new();
    let spec = realm.command("evil", &["python3", "-c", ATTACKS]);
    let (code, log) = run(&realm, &spec);
    assert_eq!(code, 0, "{log}");
    let worked: Vec<&str> = log.lines().filter(|line| line.contains("WORKED")).collect();
    assert!(worked.is_empty(), "{worked:#?}");
    assert_eq!(log.lines().filter(|line| line.ends_with(" refused")).count(), 30, "{log}");
    for line in [
        "processes 2",
        "no_new_privs 1 seccomp 2 inheritable 0 ambient 0",
        // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, SYS_CHROOT, SETFCAP.
        "capabilities 800405fb 800405fb 800405fb",
    ] {
        assert!(log.contains(line), "no `{line}` in\n{log}");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_32_bit_system_call_ends_the_process() {
    need_root!("a_32_bit_system_call_ends_the_process");
    let realm = Realm::new();
    // mov eax, 20 (getpid of the 32-bit table); int 0x80; ret
    let script = "import ctypes, mmap\n\
        m = mmap.mmap(-1, 4096, prot=7); m.write(b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3')\n\
        print('calling', flush=True)\n\
        print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))())\n";
    let (code, log) = run(&realm, &realm.command("old", &["python3", "-c", script]));
    assert_eq!((code, log.as_str()), (128 + nix::libc::SIGSYS, "stdout F calling\n"));
}

#[test]
fn a_user_without_capabilities_gets_none() {
    need_root!("a_user_without_capabilities_gets_none");
    let realm = Realm::new();
    let mut spec = realm.shell("plain", "grep -E '^Cap(Prm|Eff|Bnd)' /proc/self/status | cut -f2 | sort -u; id -u");
    process_of(&mut spec).user = Some("nobody".into());
    assert_eq!(run(&realm, &spec), (0, "stdout F 0000000000000000\nstdout F 65534\n".to_owned()));
}

#[test]
fn a_flood_of_output_is_rotated_away() {
    need_root!("a_flood_of_output_is_rotated_away");
    let realm = Realm::new();
    let mut spec = realm.shell("loud", "yes abcdefghijklmnopqrstuvwxyz | head -c 20000000; echo; echo last");
    spec.log = LogRotation { max_bytes: 100_000, max_files: 3 };
    let (code, log) = run(&realm, &spec);
    assert_eq!(code, 0);
    assert!(log.ends_with("stdout F last\n"));
    let directory = realm.layout.log(&spec.id).parent().unwrap().to_owned();
    let sizes: Vec<u64> = std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).collect();
    assert!(sizes.len() == 3 && sizes.iter().all(|size| *size <= 100_000), "{sizes:?}");
}

#[test]
fn limits_hold() {
    need_root!("limits_hold");
    let realm = Realm::new();
    let mut eater = realm.command("eater", &["python3", "-c", "x = bytearray(200 << 20); print('ate it all')"]);
    eater.limits.memory_bytes = Some(64 << 20);
    let before = Instant::now();
    let (code, log) = run(&realm, &eater);
    assert_eq!((code, log.contains("ate")), (137, false), "{log} after {:?}", before.elapsed());
    assert!(Cgroup::of(&realm.layout, &eater).unwrap().oom_kills() > 0);

    let mut forks = realm.shell("forks", "for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; wait");
    forks.limits.pids = Some(5);
    let (code, log) = run(&realm, &forks);
    assert!(code != 0 && log.to_lowercase().contains("cannot fork"), "{code} {log}");

    let mut busy = realm.command("busy", &["sh", "-c", "while :; do :; done"]);
    busy.limits.cpu_milli = Some(100);
    let began = Instant::now();
    let running = start(&realm, &busy);
    std::thread::sleep(Duration::from_secs(1));
    let used_us = Cgroup::of(&realm.layout, &busy).unwrap().stats().cpu_usage_us.unwrap();
    let passed_us = began.elapsed().as_micros() as u64;
    assert!(used_us < passed_us * 4 / 10, "{used_us} µs of {passed_us} at a tenth of a processor");
    running.signal(nix::libc::SIGKILL).unwrap();
    assert!(running.wait(Duration::from_secs(60)));
}

#[test]
fn commands_run_inside_a_running_instance_as_its_service() {
    need_root!("commands_run_inside_a_running_instance_as_its_service");
    let realm = Realm::new();
    let mut spec = realm.shell("web", "echo mine > /tmp/mark; exec sleep 1000");
    process_of(&mut spec).user = Some("nobody".into());
    spec.environment.insert("COLOUR".into(), "green".into());
    let running = start(&realm, &spec);
    eventually("the mark", || {
        let options = EnterOptions { timeout: Duration::from_secs(60), output_bytes_max: 1000, as_root: false };
        let script = "cat /tmp/mark || exit 9; id -u; echo $COLOUR; grep -E 'NoNewPrivs|Seccomp:|CapBnd' /proc/self/status | cut -f2; cat /proc/1/comm; cat /proc/self/cgroup | cut -d: -f3 | sort -u; exit 5";
        let command = Inside::Command(["/bin/sh", "-c", script].map(str::to_owned).to_vec());
        let result = runtime::enter(&realm.layout, &spec, &running, Path::new(PALISADE), command, options).unwrap();
        let text = String::from_utf8_lossy(&result.output).into_owned();
        let expected = "mine\n65534\ngreen\n0000000000000000\n1\n2\npalisade-init\n/\n";
        (result.code != Some(9)).then(|| assert_eq!((result.code, text.as_str()), (Some(5), expected)))
    });
    let enter = |line: &[&str], timeout_ms| {
        let options = EnterOptions { timeout: Duration::from_millis(timeout_ms), output_bytes_max: 10, as_root: false };
        let command = Inside::Command(line.iter().map(|word| (*word).to_owned()).collect());
        runtime::enter(&realm.layout, &spec, &running, Path::new(PALISADE), command, options)
    };
    let before = Instant::now();
    assert_eq!(enter(&["sh", "-c", "sleep 1000 & sleep 1000"], 200).unwrap().code, None);
    assert!(before.elapsed() < Duration::from_secs(60), "{:?}", before.elapsed());
    let before = Instant::now();
    assert_eq!(
        enter(&["sh", "-c", "sleep 60 & yes | head -c 100000; exit 4"], 50_000)
            .map(|r| (r.code, r.output.len()))
            .unwrap(),
        (Some(4), 10)
    );
    assert!(before.elapsed() < Duration::from_secs(40), "a child in the background is not waited for");
    assert!(enter(&["no-such-command"], 1000).unwrap_err().to_string().contains("`no-such-command` not found"));
    let options = EnterOptions { timeout: Duration::from_secs(60), output_bytes_max: 1000, as_root: true };
    let own = Inside::Own(vec!["--version".into()]);
    let result = runtime::enter(&realm.layout, &spec, &running, Path::new(PALISADE), own, options).unwrap();
    assert_eq!(result.code, Some(0), "{}", String::from_utf8_lossy(&result.output));
    running.signal(nix::libc::SIGKILL).unwrap();
    assert!(running.wait(Duration::from_secs(60)));
    assert!(enter(&["true"], 1000).is_err());
}
