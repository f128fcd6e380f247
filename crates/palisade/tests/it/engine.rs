//! Services from images, with a real Docker Engine on a scratch host.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_host::netns::Netns;
use serde_json::json;

use crate::dockerd::{self, Dockerd, IMAGE};
use crate::need_root;
use crate::rehearse::{BARTER, ask, barter_is_missing};
use crate::scratch::{HOST, Host, connects, patiently};
use crate::support::skipped;

/// Runs a test with an engine on a scratch host, and looks at what is left in the end.
pub(crate) fn with_engine(test: &str, run: impl FnOnce(&Host, &mut Dockerd)) {
    with_engine_on("shop", None, test, run);
}

/// The same for a stack of another name, and on a disk of this size.
pub(crate) fn with_engine_on(project: &str, size: Option<&str>, test: &str, run: impl FnOnce(&Host, &mut Dockerd)) {
    if let Some(why) = dockerd::missing() {
        return skipped(test, &why);
    }
    let host = Host::of(project);
    let mut engine = match Dockerd::start_on(&host, size) {
        Ok(engine) => engine,
        Err(why) => return skipped(test, &format!("no Docker Engine can run here: {why}")),
    };
    run(&host, &mut engine);
    assert_eq!(engine.end(), Vec::<String>::new());
}

/// A server that says a word, and a client that asks it by its name.
fn shop(word: &str) -> String {
    format!(
        r#"
name: shop
services:
  web:
    image: {IMAGE}
    command: ["sh", "-c", "echo serving $$WORD; echo $$WORD >/tmp/index.html; exec httpd -f -p 8080 -h /tmp"]
    environment: {{WORD: {word}}}
    ports: ["8080:8080"]
    restart: always
    stop_grace_period: 1s
  ask:
    image: {IMAGE}
    command: ["sh", "-c", "while :; do wget -q -O- http://web:8080/index.html || echo nobody; sleep 0.2; done"]
    depends_on: [web]
    restart: always
    stop_grace_period: 1s
"#
    )
}

fn assert_no_containers(engine: &Dockerd) {
    assert_eq!(engine.docker(&["ps", "--all", "--quiet"]).unwrap(), "");
}

/// The container's first process is in the guarded cgroup of its instance.
#[track_caller]
fn assert_guarded(host: &Host, engine: &Dockerd, container: &str, instance: &str) {
    let pid = engine.inspect(container, "{{.State.Pid}}");
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let own = cgroups.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    assert!(own.starts_with(&format!("/{}/shop/{instance}/", host.layout.realm)), "{own}");
}

fn states(host: &Host) -> Vec<String> {
    let ps = host.ps();
    let all = ps["instances"].as_array().unwrap();
    all.iter().map(|seen| format!("{} {}", seen["instance"].as_str().unwrap(), seen["state"])).collect()
}

#[test]
fn a_stack_of_images_from_up_to_down() {
    need_root!("a_stack_of_images_from_up_to_down");
    with_engine("a_stack_of_images_from_up_to_down", |host, engine| {
        let palisade = |arguments: &[&str]| engine.palisade(host, arguments);
        let built = host.folder.join("built");
        fs::create_dir_all(&built).unwrap();
        fs::copy(engine.root().join("bin/busybox"), built.join("busybox")).unwrap();
        fs::write(built.join("Dockerfile"), "FROM scratch\nARG SAYS\nCOPY busybox /bin/busybox\nENV SAYS=$SAYS\n")
            .unwrap();
        let more = r#"
  built:
    build: {context: ./built, args: {SAYS: built-here}}
    command: ["/bin/busybox", "sh", "-c", "echo $$SAYS; exec busybox sleep 1000"]
    stop_grace_period: 1s
  process:
    image: box:1
    stop_grace_period: 1s
    x-palisade: {runtime: process, process: {command: ["/bin/sh", "-c", "echo on the host; exec sleep 1000"]}}
"#;
        let file = |word: &str| format!("{}{more}", shop(word));
        host.write(&file("hello"));
        palisade(&["up", "--wait"]).expect(0);
        host.wait_for_line("ask", "hello");
        host.wait_for_line("built", "built-here");
        host.wait_for_line("process", "on the host");
        assert!(host.open_to_strangers(8080));
        let logs = palisade(&["logs"]).expect(0).out;
        assert!(logs.contains("web.1") && logs.contains("serving hello"), "{logs}");
        let prove = palisade(&["prove"]).expect(0).out;
        assert!(prove.contains("reached   ask → web:8080/tcp"), "{prove}");
        for (container, instance) in [("shop-web-1", "web.1"), ("shop-ask-1", "ask.1"), ("shop-built-1", "built.1")] {
            assert_guarded(host, engine, container, instance);
            assert_eq!(engine.inspect(container, "{{.HostConfig.RestartPolicy.Name}}"), "no");
            let labels = "{{index .Config.Labels \"com.docker.compose.project\"}}";
            assert_eq!(engine.inspect(container, labels), "shop");
        }
        assert!(engine.docker(&["inspect", "shop-process-1"]).is_err(), "a process is nobody's container");
        let plan = palisade(&["plan"]).expect(0);
        assert!(plan.out.contains("nothing to change"), "{}{}", plan.out, plan.err);

        let before = engine.inspect("shop-ask-1", "{{.Id}}");
        let web = engine.inspect("shop-web-1", "{{.Id}}");
        host.write(&file("moin"));
        palisade(&["up", "--wait"]).expect(0);
        host.wait_for_line("ask", "moin");
        // The newer one has the next number; by then the older one is gone.
        assert_ne!(engine.inspect("shop-web-2", "{{.Id}}"), web);
        assert_guarded(host, engine, "shop-web-2", "web.2");
        assert!(engine.docker(&["inspect", "shop-web-1"]).is_err());
        assert_eq!(engine.inspect("shop-ask-1", "{{.Id}}"), before, "only what was changed is replaced");

        palisade(&["down", "--volumes", "--yes"]).expect(0);
        assert_no_containers(engine);
        host.assert_nothing_left();
    });
}

#[test]
fn what_an_image_keeps_in_volumes_of_its_own_outlives_its_container() {
    need_root!("what_an_image_keeps_in_volumes_of_its_own_outlives_its_container");
    with_engine("what_an_image_keeps_in_volumes_of_its_own_outlives_its_container", |host, engine| {
        let palisade = |arguments: &[&str]| engine.palisade(host, arguments);
        let root = engine.root();
        fs::write(root.join("data/first"), "from the image\n").unwrap();
        engine.import(&root, "plain:1");
        let context = host.folder.join("keeper");
        fs::create_dir_all(&context).unwrap();
        fs::write(context.join("Dockerfile"), "FROM plain:1\nVOLUME /data\n").unwrap();
        engine.docker(&["build", "--tag", "keeper:1", &context.to_string_lossy()]).unwrap();
        let file = |word: &str| {
            format!(
                "name: shop\nservices:\n  keep:\n    image: keeper:1\n    stop_grace_period: 1s\n    environment: {{WORD: {word}}}\n    command: [sh, -c, 'cat /data/*; echo wrote-$$WORD >>/data/words; exec sleep 1000']\n"
            )
        };
        let volumes = || engine.docker(&["volume", "ls", "--quiet"]).unwrap();
        host.write(&file("one"));
        palisade(&["up", "--wait"]).expect(0);
        host.wait_for_line("keep", "from the image");
        let name = volumes();
        assert!(name.starts_with("shop_keep_1_") && name.lines().count() == 1, "{name}");
        host.write(&file("two"));
        palisade(&["up", "--wait"]).expect(0);
        host.wait_for_line("keep", "wrote-one");
        palisade(&["down"]).expect(0);
        assert_eq!(volumes(), name, "`down` keeps data");
        host.write(&file("three"));
        palisade(&["up", "--wait"]).expect(0);
        host.wait_for_line("keep", "wrote-two");
        assert_eq!(volumes(), name);
        let refused = palisade(&["down", "--volumes"]).expect(2);
        assert!(refused.err.contains(&name), "{}", refused.err);
        palisade(&["down", "--volumes", "--yes"]).expect(0);
        assert_eq!(volumes(), "");
        assert_no_containers(engine);
        host.assert_nothing_left();
    });
}

#[test]
fn nobody_starts_a_container_past_the_guard() {
    need_root!("nobody_starts_a_container_past_the_guard");
    with_engine("nobody_starts_a_container_past_the_guard", |host, engine| {
        let once = r#"
  once:
    image: box:1
    command: ["sh", "-c", "echo run >>/tmp/runs; echo run $$(wc -l </tmp/runs); exec sleep 1000"]
    stop_grace_period: 1s
"#;
        host.write(&format!("{}{once}", shop("hello")));
        engine.palisade(host, &["up", "--wait"]).expect(0);
        let all_run = |host: &Host| {
            patiently(&format!("{:?}", states(host)), || {
                states(host).iter().all(|state| state.ends_with("\"running\"")).then_some(())
            });
        };

        // Somebody else restarts and removes what the agent supervises.
        // The agent starts it again, too: whoever comes second may be told so.
        let _ = engine.docker(&["restart", "--time", "1", "shop-web-1"]);
        patiently("web.1 after docker restart", || {
            // It is away and made anew while this asks.
            let state =
                engine.docker(&["inspect", "--format", "{{.State.Running}} {{.State.Pid}}", "shop-web-1"]).ok()?;
            (state == format!("true {}", host.pid("web.1")?)).then_some(())
        });
        assert_guarded(host, engine, "shop-web-1", "web.1");
        engine.docker(&["rm", "--force", "shop-ask-1"]).unwrap();
        patiently("ask.1 after docker rm", || {
            let state = engine.docker(&["inspect", "--format", "{{.State.Running}}", "shop-ask-1"]).ok()?;
            (state == "true").then_some(())
        });
        assert_guarded(host, engine, "shop-ask-1", "ask.1");
        all_run(host);

        // Also what the agent wouldn't start again by itself, whether it was stopped or went on its own.
        host.wait_for_line("once", "run 1");
        for (run, verb) in [(2, &["restart", "--time", "0"][..]), (2, &["stop", "--time", "0"]), (3, &["start"])] {
            engine.docker(&[verb, &["shop-once-1"]].concat()).unwrap();
            let is_up = verb[0] != "stop";
            let state = if is_up { "running" } else { "exited" };
            patiently(&format!("once.1 after docker {verb:?}"), || {
                states(host).iter().any(|seen| seen.starts_with("once.1 ") && seen.contains(state)).then_some(())?;
                let pid = host.pid("once.1").map(|pid| pid.to_string());
                let inspect = || engine.docker(&["inspect", "--format", "{{.State.Pid}}", "shop-once-1"]).ok();
                (pid == is_up.then(inspect).flatten()).then_some(())
            });
            host.wait_for_line("once", &format!("run {run}"));
        }
        assert_guarded(host, engine, "shop-once-1", "once.1");
        host.write(&shop("hello"));
        engine.palisade(host, &["up", "--wait"]).expect(0);

        // The engine crashes; its containers go on, and are taken up again when it is back.
        engine.kill();
        patiently("containers, which don't need their engine", || connects(SocketAddr::new(HOST, 8080)).then_some(()));
        let plan = engine.palisade(host, &["plan"]);
        assert!(plan.code != Some(0) && plan.err.contains("doesn't answer"), "{}{}", plan.out, plan.err);
        engine.start_again();
        all_run(host);
        patiently("the server after the engine's crash", || connects(SocketAddr::new(HOST, 8080)).then_some(()));
        engine.palisade(host, &["up", "--wait"]).expect(0);
        assert_guarded(host, engine, "shop-web-1", "web.1");

        // As after a boot: neither agent nor guard nor anything below /run, and stopped containers at the engine.
        kill(Pid::from_raw(host.agent().unwrap()), Signal::SIGKILL).unwrap();
        engine.docker(&["stop", "--time", "0", "shop-web-1", "shop-ask-1"]).unwrap();
        let run = host.layout.run();
        let aside = run.with_extension("aside");
        fs::rename(&run, &aside).unwrap();
        for verb in ["start", "restart"] {
            let said = engine.docker(&[verb, "shop-web-1"]);
            assert_ne!(
                engine.inspect("shop-web-1", "{{.State.Running}}"),
                "true",
                "`docker {verb}` started it without a guard: {said:?}"
            );
        }
        fs::rename(&aside, &run).unwrap();
        engine.palisade(host, &["up", "--wait"]).expect(0);
        all_run(host);
        engine.palisade(host, &["down", "--volumes", "--yes"]).expect(0);
        assert_no_containers(engine);
        host.assert_nothing_left();
    });
}

#[test]
fn what_goes_wrong_at_an_engine_is_told_and_leaves_what_was_there() {
    need_root!("what_goes_wrong_at_an_engine_is_told_and_leaves_what_was_there");
    with_engine("what_goes_wrong_at_an_engine_is_told_and_leaves_what_was_there", |host, engine| {
        let mut said = String::new();
        let mut tell = |what: &str, host: &Host, engine: &Dockerd, file: &str| {
            host.write(file);
            let ran = engine.palisade(host, &["up", "--wait"]);
            said.push_str(&format!("{what}: {}\n\n", ran.whole(host).replace(&engine.socket()[7..], "[socket]")));
        };
        let good = shop("hello");
        host.write(&good);
        engine.palisade(host, &["up", "--wait"]).expect(0);
        let serves = |what: &str| {
            patiently(what, || connects(SocketAddr::new(HOST, 8080)).then_some(()));
        };
        let with = |service: &str| format!("{good}{service}");

        tell("exits at once", host, engine, &good.replace("exec httpd -f", "echo no database; exit 3; :"));
        serves("the old version after one that exits");
        tell("no such program", host, engine, &with("  other: {image: \"box:1\", command: [nosuchprogram]}\n"));
        tell("never pulled", host, engine, &with("  other: {image: \"none:1\", pull_policy: never}\n"));
        tell("nowhere", host, engine, &with("  other: {image: \"localhost:1/none:1\", pull_policy: missing}\n"));
        let taken = std::net::TcpListener::bind(("0.0.0.0", 9090)).unwrap();
        let command = "command: [sleep, \"1000\"]";
        tell(
            "port taken",
            host,
            engine,
            &with(&format!("  other: {{image: \"box:1\", {command}, ports: [\"9090:9090\"]}}\n")),
        );
        drop(taken);
        tell(
            "name taken",
            host,
            {
                engine.docker(&["create", "--name", "mine", "--network", "none", IMAGE, "sleep", "1"]).unwrap();
                &*engine
            },
            &with(&format!("  other: {{image: \"box:1\", {command}, container_name: mine}}\n")),
        );
        engine.docker(&["rm", "mine"]).unwrap();
        serves("the old version after everything");
        engine.kill();
        tell("engine away", host, engine, &with(&format!("  other: {{image: \"box:1\", {command}}}\n")));
        serves("the old version without an engine");
        engine.start_again();
        host.write(&good);
        engine.palisade(host, &["up", "--wait"]).expect(0);
        engine.palisade(host, &["down", "--volumes", "--yes"]).expect(0);
        host.assert_nothing_left();
        for part in [
            "exits at once: exit code 1",
            "the end of what web.2 printed:\n    serving hello\n    no database",
            "because: the container engine can't start container shop-other-1",
            "executable file not found in $PATH",
            "never pulled: exit code 2",
            "`pull_policy: never` keeps it from being fetched",
            "because: `docker pull` failed with exit status: 1",
            "9090",
            "there is a container called mine already, and it isn't Palisade's",
            "engine away: exit code",
            "the container engine at [socket] doesn't answer",
            "start it (`systemctl start docker`)",
        ] {
            assert!(said.contains(part), "{part:?} is missing in:\n{said}");
        }
    });
}

#[test]
fn a_stack_of_docker_compose_is_taken_over_with_its_data() {
    const TEST: &str = "a_stack_of_docker_compose_is_taken_over_with_its_data";
    need_root!("a_stack_of_docker_compose_is_taken_over_with_its_data");
    if !Path::new("/usr/bin/docker-compose").exists() {
        return skipped(TEST, "docker-compose not installed");
    }
    with_engine(TEST, |host, engine| {
        host.write(&format!(
            r#"
version: "3.7"
services:
  web:
    image: {IMAGE}
    network_mode: host
    command: ["sh", "-c", "cat /data/words; echo word >>/data/words; exec httpd -f -p 8090 -h /data"]
    volumes: ["data:/data"]
    stop_grace_period: 1s
volumes: {{data: {{}}}}
"#
        ));
        let file = host.folder.join("compose.yaml");
        let arguments = ["--project-name", "shop", "--file", &file.to_string_lossy(), "up", "--detach"];
        engine.tool("/usr/bin/docker-compose", &arguments).unwrap();
        engine.docker(&["exec", "shop_web_1", "sh", "-c", "echo kept >>/data/words"]).unwrap();
        let plan = engine.palisade(host, &["--project-name", "shop", "plan"]);
        assert!(plan.out.contains("shop_web_1") && !plan.out.contains("create volume"), "{}{}", plan.out, plan.err);
        engine.palisade(host, &["--project-name", "shop", "up", "--wait"]).expect(0);
        host.wait_for_line("web", "kept");
        assert_eq!(engine.docker(&["ps", "--all", "--format", "{{.Names}}"]).unwrap(), "shop-web-1");
        assert_guarded(host, engine, "shop-web-1", "web.1");
        engine.palisade(host, &["--project-name", "shop", "down", "--volumes", "--yes"]).expect(0);
        assert_no_containers(engine);
        assert_eq!(engine.docker(&["volume", "ls", "--quiet"]).unwrap(), "");
        host.assert_nothing_left();
    });
}

/// A firewall that waits to be confirmed is no reason to be away, and one that nobody confirms changes nothing.
#[test]
fn a_container_on_the_hosts_network_serves_until_it_is_stopped() {
    const TEST: &str = "a_container_on_the_hosts_network_serves_until_it_is_stopped";
    need_root!("a_container_on_the_hosts_network_serves_until_it_is_stopped");
    with_engine(TEST, |host, engine| {
        let file = format!(
            r#"
name: shop
services:
  web:
    image: {IMAGE}
    network_mode: host
    command: ["httpd", "-f", "-p", "8090", "-h", "/tmp"]
    ports: ["8090:8090"]
    stop_grace_period: 1s
"#
        );
        host.write(&file);
        let labels = ["--label", "com.docker.compose.project=shop", "--label", "com.docker.compose.service=web"]
            .map(str::to_owned);
        let run = ["run", "--detach", "--name", "shop_web_1", "--network", "host"].map(str::to_owned);
        let program = [IMAGE, "httpd", "-f", "-p", "8090", "-h", "/tmp"].map(str::to_owned);
        let arguments: Vec<_> = run.iter().chain(&labels).chain(&program).map(String::as_str).collect();
        engine.docker(&arguments).unwrap();
        patiently("the container", || host.open_to_strangers(8090).then_some(()));
        let (internet, done) = (&host.internet, &AtomicBool::new(false));
        let (ran, refused) = std::thread::scope(|scope| {
            let stranger = scope.spawn(move || {
                let knock = || {
                    let mut refused = Vec::new();
                    while !done.load(Ordering::Relaxed) {
                        let address = SocketAddr::new(HOST, 8090);
                        refused.extend(TcpStream::connect_timeout(&address, Duration::from_secs(10)).err());
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    refused
                };
                internet.run(knock).unwrap()
            });
            let ran =
                std::panic::catch_unwind(AssertUnwindSafe(|| engine.palisade(host, &["up", "--confirm-within", "3s"])));
            done.store(true, Ordering::Relaxed);
            (ran, stranger.join().unwrap())
        });
        let ran = ran.unwrap().expect(1);
        assert!(ran.err.contains("Nobody confirmed the firewall"), "{}", ran.err);
        assert!(refused.is_empty(), "{}: {:?}", refused.len(), refused[0]);
        assert_eq!(engine.docker(&["ps", "--format", "{{.Names}}"]).unwrap(), "shop_web_1");

        engine.palisade(host, &["up", "--wait", "--no-confirm"]).expect(0);
        assert_eq!(engine.docker(&["ps", "--all", "--format", "{{.Names}}"]).unwrap(), "shop-web-1");
        patiently("the instance", || host.open_to_strangers(8090).then_some(()));
        engine.palisade(host, &["down", "--volumes", "--yes"]).expect(0);
        assert_no_containers(engine);
        host.assert_nothing_left();
    });
}

#[test]
fn postgresql_and_its_application_run_from_images() {
    const TEST: &str = "postgresql_and_its_application_run_from_images";
    need_root!("postgresql_and_its_application_run_from_images");
    let found =
        fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    let Some(bin) = found.filter(|bin| bin.join("postgres").exists()).max() else {
        return skipped(TEST, "postgresql not installed in /usr/lib/postgresql");
    };
    with_engine(TEST, |host, engine| {
        let root = host.folder.join("root");
        let images = format!("{BARTER}/images");
        engine.tool(&images, &["folder", "barter-postgres", &root.to_string_lossy()]).unwrap();
        let data = root.join("var/lib/postgresql/data");
        fs::create_dir_all(&data).unwrap();
        std::os::unix::fs::chown(&data, Some(999), Some(999)).unwrap();
        engine.import(&root, "pg:1");
        let bin = bin.display();
        host.write(&format!(
            r#"
name: shop
services:
  db:
    image: pg:1
    user: postgres
    command:
      - sh
      - -c
      - |
        cd {bin}
        data=/var/lib/postgresql/data
        [ -e $$data/PG_VERSION ] || ./initdb --no-sync --auth=trust --username=shop --locale=C -D $$data
        echo 'host all all 127.0.0.0/8 trust' >>$$data/pg_hba.conf
        exec ./postgres -D $$data -c 'listen_addresses=*' -c unix_socket_directories=/tmp -c fsync=off
    volumes: ["pgdata:/var/lib/postgresql/data"]
    expose: ["5432"]
    stop_signal: SIGINT
    healthcheck:
      test: [CMD, "{bin}/pg_isready", -h, /tmp, -U, shop]
      interval: 1s
      start_period: 60s
      start_interval: 300ms
  app:
    image: pg:1
    command:
      - sh
      - -c
      - |
        psql() {{ {bin}/psql -h db -U shop -d postgres -At -c "$$1"; }}
        psql 'create table if not exists runs (n serial)'
        psql 'insert into runs default values'
        echo "runs: $$(psql 'select count(*) from runs')"
        exec sleep 1000
    depends_on: {{db: {{condition: service_healthy}}}}
    stop_grace_period: 1s
volumes: {{pgdata: {{}}}}
"#
        ));
        engine.palisade(host, &["up", "--wait"]).expect(0);
        host.wait_for_line("app", "runs: 1");
        assert!(!host.open_to_strangers(5432), "it listens on every address, and only the stack reaches it");
        engine.palisade(host, &["down"]).expect(0);
        engine.palisade(host, &["up", "--wait"]).expect(0);
        host.wait_for_line("app", "runs: 2");
        engine.palisade(host, &["down", "--volumes", "--yes"]).expect(0);
        assert_no_containers(engine);
        host.assert_nothing_left();
    });
}

/// Asks for the application's health from the internet all the time, until told to stop; returns how often it was asked,
/// and what was no good answer.
struct Client<'a> {
    stop: &'a AtomicBool,
    internet: &'a Netns,
}

impl Client<'_> {
    fn run(&self) -> (u32, Vec<String>) {
        let address = SocketAddr::new(HOST, 8081);
        let once = || -> io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(b"GET /health HTTP/1.1\r\nHost: barter.example\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.lines().next().unwrap_or("nothing").to_owned())
        };
        let (mut asked, mut bad) = (0, Vec::new());
        let all = || {
            while !self.stop.load(Ordering::Relaxed) {
                match once() {
                    Ok(status) if status.contains(" 200 ") => {}
                    Ok(status) => bad.push(status),
                    Err(error) => bad.push(error.to_string()),
                }
                asked += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        self.internet.run(all).unwrap();
        (asked, bad)
    }
}

#[test]
fn the_reference_stack_runs_from_images() {
    const TEST: &str = "the_reference_stack_runs_from_images";
    need_root!("the_reference_stack_runs_from_images");
    if let Some(why) = barter_is_missing() {
        return skipped(TEST, &why);
    }
    with_engine_on("barter", None, TEST, |host, engine| {
        engine.tool(&format!("{BARTER}/images"), &[]).unwrap();
        let files = ["compose.yaml", "compose.images.yaml"].map(|file| format!("{BARTER}/{file}"));
        let palisade =
            |arguments: &[&str]| engine.palisade(host, &[&["-f", &files[0], "-f", &files[1]], arguments].concat());
        palisade(&["up", "--wait"]).expect(0);
        assert_eq!(engine.docker(&["ps", "--quiet"]).unwrap().lines().count(), 3, "all of them are containers");
        let (status, health) = ask(host, "GET", "/health", "");
        assert_eq!((status, &health["postgres"], &health["ollama"]), (200, &json!("up"), &json!("up")), "{health}");
        let offer = json!({"kind": "offer", "title": "a red bicycle", "text": "red", "location": "Here"}).to_string();
        let (status, offer) = ask(host, "POST", "/api/listings", &offer);
        assert_eq!(status, 201, "{offer}");
        assert_eq!(host.all_open_to_strangers(&[5432, 8081, 11434]), [8081]);
        let said = palisade(&["prove"]).expect(0).out;
        for pair in ["app → postgres:5432/tcp", "app → ollama:11434/tcp"] {
            assert!(said.contains(&format!("reached   {pair}")), "{said}");
        }
        // The database tells the application from everybody else by its address.
        let authorized = |line: &String| line.contains("connection authorized") && line.contains("user=barter");
        let log = host.log("postgres");
        assert!(log.iter().any(authorized), "{log:?}");
        assert!(log.iter().filter(|line| authorized(line)).all(|line| line.contains(" 127.77.")), "{log:?}");

        // A new image of the application comes in while strangers use it.
        let context = host.folder.join("newer");
        fs::create_dir_all(&context).unwrap();
        fs::write(context.join("Dockerfile"), "FROM barter-app\nENV NEWER=1\n").unwrap();
        engine.docker(&["build", "--tag", "barter-app", &context.to_string_lossy()]).unwrap();
        let stop = AtomicBool::new(false);
        let (asked, bad) = std::thread::scope(|scope| {
            let client = Client { stop: &stop, internet: &host.internet };
            let client = scope.spawn(move || client.run());
            let ran = palisade(&["up", "--wait"]);
            stop.store(true, Ordering::Relaxed);
            ran.expect(0);
            client.join().unwrap()
        });
        eprintln!("{asked} requests from outside during the update, {} without a good answer", bad.len());
        assert!(asked > 50 && bad.is_empty(), "{asked}: {bad:?}");
        assert!(engine.inspect("barter-app-2", "{{.Config.Env}}").contains("NEWER=1"));
        let (_, listing) = ask(host, "GET", &format!("/api/listings/{}", offer["id"]), "");
        assert_eq!(listing["title"], "a red bicycle", "{listing}");

        palisade(&["down", "--volumes", "--yes"]).expect(0);
        assert_no_containers(engine);
        assert_eq!(engine.docker(&["volume", "ls", "--quiet"]).unwrap(), "");
        host.assert_nothing_left();
    });
}

#[test]
fn an_audit_tells_what_containers_may_do_to_the_host() {
    need_root!("an_audit_tells_what_containers_may_do_to_the_host");
    with_engine("an_audit_tells_what_containers_may_do_to_the_host", |host, engine| {
        let run = |arguments: &[&str], command: &[&str]| {
            let all = [&["run", "--detach", "--network", "host"], arguments, &[IMAGE], command].concat();
            engine.docker(&all).unwrap();
        };
        let idle = ["sleep", "1000"];
        run(&["--name", "boss", "--volume", &format!("{}:/var/run/docker.sock:ro", &engine.socket()[7..])], &idle);
        run(&["--name", "admin", "--cap-add", "NET_ADMIN", "--user", "65534", "--log-opt", "max-size=1m"], &idle);
        run(&["--name", "db"], &["sh", "-c", "while :; do nc -l -p 5432; done"]);
        patiently("the container to listen", || connects("127.0.0.1:5432".parse().unwrap()).then_some(()));
        host.write(&shop("hello"));
        engine.palisade(host, &["up", "--wait"]).expect(0);
        let ran = engine.palisade(host, &["audit", "--format", "json"]);
        let report: serde_json::Value =
            serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
        let of_containers: Vec<String> = report["findings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| format!("{} {}", it["id"].as_str().unwrap(), it["subject"].as_str().unwrap()))
            .filter(|text| text.starts_with("container-") || text.contains("5432"))
            .collect();
        assert_eq!(
            of_containers,
            [
                "container-engine-socket boss",
                "only-firewall 5432/tcp",
                "container-capability admin",
                "container-capability boss",
                "container-capability db",
                "container-host-namespace admin",
                "container-host-namespace boss",
                "container-host-namespace db",
                "container-logs boss",
                "container-logs db",
                "container-root boss",
                "container-root db",
            ],
            "what Palisade runs is guarded, and its file answers for it"
        );
        let db = report["ports"].as_array().unwrap().iter().find(|row| row["port"] == 5432).unwrap();
        assert_eq!(db["who"], "nc in container db");
        engine.palisade(host, &["down", "--volumes", "--yes"]).expect(0);
        engine.docker(&["rm", "--force", "boss", "admin", "db"]).unwrap();
        host.assert_nothing_left();
    });
}
