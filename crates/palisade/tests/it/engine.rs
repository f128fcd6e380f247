//! Services from images, with a real Docker Engine on a scratch host.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::dockerd::{self, Dockerd, IMAGE};
use crate::need_root;
use crate::scratch::{HOST, Host, connects, patiently};
use crate::support::skipped;

/// Runs a test with an engine on a scratch host, and looks at what is left in the end.
fn with_engine(test: &str, run: impl FnOnce(&Host, &mut Dockerd)) {
    if let Some(why) = dockerd::missing() {
        return skipped(test, &why);
    }
    let host = Host::new();
    let mut engine = match Dockerd::start(&host) {
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
        host.write(&shop("hello"));
        engine.palisade(host, &["up", "--wait"]).expect(0);
        let running = |engine: &Dockerd, container: &str| engine.inspect(container, "{{.State.Running}}") == "true";
        let all_run = |host: &Host| {
            patiently(&format!("{:?}", states(host)), || {
                states(host).iter().all(|state| state.ends_with("\"running\"")).then_some(())
            });
        };

        // Somebody else restarts and removes what the agent supervises.
        engine.docker(&["restart", "--time", "1", "shop-web-1"]).unwrap();
        patiently("web.1 after docker restart", || {
            engine.docker(&["inspect", "shop-web-1"]).ok()?;
            (running(engine, "shop-web-1")
                && host.pid("web.1")?.to_string() == engine.inspect("shop-web-1", "{{.State.Pid}}"))
            .then_some(())
        });
        assert_guarded(host, engine, "shop-web-1", "web.1");
        engine.docker(&["rm", "--force", "shop-ask-1"]).unwrap();
        patiently("ask.1 after docker rm", || {
            engine.docker(&["inspect", "shop-ask-1"]).ok()?;
            running(engine, "shop-ask-1").then_some(())
        });
        assert_guarded(host, engine, "shop-ask-1", "ask.1");
        all_run(host);

        // The engine crashes; its containers go on, and are taken up again when it is back.
        engine.kill();
        assert!(connects(SocketAddr::new(HOST, 8080)), "containers don't need their engine");
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
            assert!(!running(engine, "shop-web-1"), "`docker {verb}` started it without a guard: {said:?}");
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

/// The host's PostgreSQL with what it needs, on top of a root folder: `sh -ec POSTGRES sh BIN ROOT`.
const POSTGRES: &str = r#"
share=$("$1/pg_config" --sharedir 2>/dev/null || echo /usr/share/postgresql/"$(basename "$(dirname "$1")")")
for folder in "$(dirname "$1")" "$share" /usr/share/zoneinfo; do
    # Small images of distributions have no time zones.
    [ -e "$folder" ] || continue
    mkdir -p "$2$(dirname "$folder")"
    cp -a "$folder" "$2$(dirname "$folder")/"
done
for library in $(ldd "$1"/postgres "$1"/initdb "$1"/psql "$(dirname "$1")"/lib/*.so 2>/dev/null | grep -o '/[^ ]* (0x' | cut -d' ' -f1 | sort -u); do
    mkdir -p "$2$(dirname "$library")"
    cp -L "$library" "$2$library"
done
echo 'postgres:x:999:999::/:/bin/sh' >>"$2/etc/passwd"
echo 'postgres:x:999:' >"$2/etc/group"
mkdir -p "$2/var/lib/postgresql/data"
chown 999:999 "$2/var/lib/postgresql/data"
"#;

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
        let root = engine.root();
        let status = std::process::Command::new("sh").args(["-ec", POSTGRES, "sh"]).arg(&bin).arg(&root).status();
        assert!(status.unwrap().success());
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
