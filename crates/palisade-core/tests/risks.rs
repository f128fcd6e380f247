//! Risks: each fires where it should, stays quiet where it should, and shows no secret.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use palisade_core::compose::{self, InputFile, LoadInputs, risk};
use palisade_core::diagnostic::{Style, render_all};

/// `(ids of risks, everything that is said)`; a file with mistakes has risks, too.
fn risks(text: &str) -> (Vec<&'static str>, String) {
    let environment = BTreeMap::from([("PW".to_owned(), "hunter2".to_owned()), ("GOOD".into(), "uF4vJ8qLw2Zr".into())]);
    let others: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::from([
        ("/srv/a/db.env".into(), b"POSTGRES_PASSWORD=hunter2\n".to_vec()),
        ("/srv/a/pw.txt".into(), b"hunter2\n".to_vec()),
    ]);
    let path = Path::new("/srv/a/compose.yaml");
    let result = compose::load(&LoadInputs {
        files: &[InputFile { name: "compose.yaml", path, contents: text.as_bytes() }],
        project_dir: Path::new("/srv/a"),
        project_name: None,
        environment: &environment,
        profiles: &[],
        env_files: &[],
        others: &others,
    });
    let (risks, diagnostics, sources) = match result {
        Ok(loaded) => (loaded.risks, loaded.diagnostics, loaded.sources),
        Err(rejected) => (rejected.risks, rejected.diagnostics, rejected.sources),
    };
    let said = render_all(risks.iter().chain(&diagnostics), &sources, Style::default());
    for secret in ["hunter2", "uF4vJ8qLw2Zr", "s3cr3tdefault"] {
        assert!(!said.contains(secret), "a secret is shown:\n{said}");
    }
    (risks.iter().map(|risk| risk.id).collect(), said)
}

/// A service without any risk, with these lines besides.
fn service(lines: &[&str]) -> String {
    let quiet = "    image: nginx:1.27\n    mem_limit: 64m\n    healthcheck: {test: [CMD, \"true\"]}\n";
    let kept: String = quiet
        .lines()
        .filter(|line| {
            let key = line.trim().split(':').next().unwrap_or_default();
            !lines.iter().any(|own| own.trim_start().starts_with(&format!("{key}:")))
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let lines: String = lines.iter().map(|line| format!("    {line}\n")).collect();
    format!("services:\n  a:\n{kept}{lines}")
}

#[test]
fn each_fires_and_stays_quiet() {
    for (lines, id) in [
        (&["environment: {POSTGRES_PASSWORD: hunter2}"][..], "weak-password"),
        (&["environment: [\"POSTGRES_PASSWORD=${PW}\"]"], "weak-password"),
        (&["environment: {POSTGRES_PASSWORD: \"${GOOD:-postgres}\"}"], "weak-password"),
        (&["environment: {POSTGRES_USER: ada, POSTGRES_PASSWORD: ada}"], "weak-password"),
        (&["environment: {DATABASE_URL: \"postgres://ada:hunter2@db/shop\"}"], "weak-password"),
        (&["environment: {POSTGRES_HOST_AUTH_METHOD: trust}"], "weak-password"),
        (&["environment: {MYSQL_ALLOW_EMPTY_PASSWORD: \"yes\"}"], "weak-password"),
        (&["env_file: db.env"], "weak-password"),
        (&["command: redis-server --requirepass hunter2"], "weak-password"),
        (&["command: [redis-server, --requirepass, \"${PW}\"]"], "weak-password"),
        (&["environment: {POSTGRES_PASSWORD: \"${GOOD:?}\"}"], ""),
        (&["environment: {POSTGRES_PASSWORD_FILE: /run/secrets/postgres}"], ""),
        (&["environment: {API_KEY: uF4vJ8qLw2Zr}"], "secret-in-clear"),
        (&["environment: {POSTGRES_PASSWORD: uF4vJ8qLw2Zr}"], "secret-in-clear"),
        (&["environment: {API_KEY: \"${GOOD}\"}"], ""),
        (&["image: nginx"], "latest-tag"),
        (&["image: nginx:latest"], "latest-tag"),
        (&["image: \"nginx@sha256:0000000000000000000000000000000000000000000000000000000000000000\""], ""),
        (&["privileged: true"], "privileged"),
        (&["privileged: false"], ""),
        (&["cap_add: [SYS_ADMIN]"], "added-capability"),
        (&["cap_add: [NET_BIND_SERVICE]"], ""),
        (&["volumes: [\"/var/run/docker.sock:/var/run/docker.sock:ro\"]"], "engine-socket"),
        (&["volumes: [\"/:/host:ro\"]"], "root-mount"),
        (&["volumes: [\"/etc:/host\"]"], "root-mount"),
        (&["volumes: [\"/etc/localtime:/etc/localtime:ro\", \"./conf:/conf\"]"], ""),
        (&["network_mode: host", "ports: [\"80:8080\"]"], "host-mode-ports"),
        (&["network_mode: host"], ""),
        (&["healthcheck: {disable: true}"], "no-healthcheck"),
        (&["healthcheck: {disable: true}", "restart: \"no\""], ""),
        (&["mem_limit: 0"], "no-memory-limit"),
        (&["deploy: {resources: {limits: {memory: 1g}}}", "mem_limit: 1g"], ""),
        (&["expose: [5432]", "volumes: [\"./pg:/var/lib/postgresql/data\"]"], "stateful-without-backup"),
        (&["ports: [\"5432:5432\"]"], "database-published"),
        (&["ports: [\"127.0.0.1:5432:5432\"]"], ""),
        (&["ports: [\"11434:11434\"]"], "model-server-published"),
        (&["image: adminer:5", "ports: [\"8080:8080\"]"], "admin-published"),
        (&["dns: 8.8.8.8"], "public-dns"),
        (&["dns: [192.168.1.1]"], ""),
        (&["logging: {options: {max-size: 20g}}"], "unrotated-log"),
        (&["logging: {options: {max-size: 10m}}"], ""),
        (&["security_opt: [\"seccomp:unconfined\"]"], "unconfined"),
        (&["pid: host"], "host-namespace"),
        (&["devices: [\"/dev/sda:/dev/sda\"]"], "host-device"),
        (&["devices: [\"/dev/dri:/dev/dri\"]"], ""),
    ] {
        let text = service(lines);
        let (ids, said) = risks(&text);
        let expected: Vec<&str> = Some(id).filter(|id| !id.is_empty()).into_iter().collect();
        assert_eq!(ids, expected, "{text}\n{said}");
    }
}

#[test]
fn an_edge_is_told_what_it_leaves_open() {
    let limited = "domain: a.example, to: 'a:80', rate_limit: 10/s";
    let banned = format!("{limited}, ban: {{after: 30, for: 1h}}");
    for (ports, edge, id) in [
        ("['127.0.0.1:8080:80', '8081:81']", format!("[{{{limited}}}]"), ""),
        ("['8080:80']", format!("[{{{limited}}}]"), "past-the-edge"),
        ("[]", "[{domain: a.example, to: 'a:80', rate_limit: off}]".to_owned(), ""),
        ("[]", "[{domain: a.example, to: 'a:80', connections: {per_client: 9}}]".to_owned(), "no-rate-limit"),
        ("[]", format!("{{routes: [{{{limited}}}], redirect: false}}"), "plain-http"),
        ("[]", format!("{{routes: [{{{limited}}}], redirect: false, trusted_proxies: [192.0.2.0/28]}}"), ""),
        ("[]", format!("{{routes: [{{{limited}}}], trusted_proxies: ['::/0', 192.0.2.0/28]}}"), "trusts-everybody"),
        ("[]", format!("{{routes: [{{{banned}}}], trusted_proxies: [192.0.2.0/28]}}"), "ban-behind-proxy"),
        ("[]", format!("{{routes: [{{{banned}}}]}}"), ""),
    ] {
        let text =
            format!("x-palisade: {{edge: {edge}}}\n{}", service(&["expose: [80, 81]", &format!("ports: {ports}")]));
        let (ids, said) = risks(&text);
        let expected: Vec<&str> = Some(id).filter(|id| !id.is_empty()).into_iter().collect();
        assert_eq!(ids, expected, "{text}\n{said}");
        let accepted = text.replace("edge:", &format!("allow: {{{id}: we know}}, edge:"));
        assert!(id.is_empty() || risks(&accepted).0.is_empty(), "{accepted}");
    }
}

#[test]
fn what_is_not_for_everybody_is_told_behind_the_edge_as_well() {
    for (image, to, more, id) in [
        ("ollama/ollama:0.5", "a:11434", "", "model-server-published"),
        ("ollama/ollama:0.5", "a", "", "model-server-published"),
        ("redis:7.4", "a:11434", "", "database-published"),
        ("nginx:1.27", "a:11434", "", "model-server-published"),
        ("adminer:5", "a:11434", "", "admin-published"),
        ("adminer:5", "a:11434", "deny: [192.0.2.7]", "admin-published"),
        ("adminer:5", "a:11434", "allow: [192.0.2.0/24, '::/0']", "admin-published"),
        ("adminer:5", "a:11434", "allow: [192.0.2.0/24]", ""),
        ("nginx:1.27", "a:8081", "", ""),
    ] {
        let route = format!("{{domain: a.example, to: '{to}', rate_limit: 10/s, {more}}}");
        let port = if to.ends_with("8081") { "8081" } else { "11434" };
        let lines = [format!("image: {image}"), format!("expose: [{port}]")];
        let text = format!("x-palisade: {{edge: [{route}]}}\n{}", service(&lines.each_ref().map(String::as_str)));
        let (ids, said) = risks(&text);
        let expected: Vec<&str> = Some(id).filter(|id| !id.is_empty()).into_iter().collect();
        assert_eq!(ids, expected, "{text}\n{said}");
        assert!(id.is_empty() || said.contains("compose.yaml:1:"), "{said}");
    }
}

#[test]
fn a_flat_network_is_told_once_until_something_narrows_it() {
    let quiet = "image: a:1, mem_limit: 1g, healthcheck: {test: [CMD, a]}";
    let flat = format!("services:\n  a: {{{quiet}}}\n  b: {{{quiet}}}\n  c: {{{quiet}}}\n");
    assert_eq!(risks(&flat).0, ["flat-network"]);
    let narrowed = flat.replacen("image: a:1", "image: a:1, x-palisade: {connect: [b]}", 1);
    assert_eq!(risks(&narrowed).0, Vec::<&str>::new());
}

#[test]
fn accepted_risks_are_not_told_and_needless_entries_are() {
    let (ids, said) = risks(&service(&["image: nginx", "x-palisade: {allow: {latest-tag: we build it}}"]));
    assert_eq!((ids.len(), said.as_str()), (0, ""));
    let (_, said) = risks(&service(&["image: nginx", "x-palisade: {allow: [latest-tag]}"]));
    assert!(said.starts_with("note[no-reason]"), "{said}");
    let (_, said) = risks(&service(&["x-palisade: {allow: [{id: latest-tag, reason: old}]}"]));
    assert!(said.starts_with("note[unused-allow]"), "{said}");
    let (_, said) = risks(&service(&["x-palisade: {allow: [latest-tags]}"]));
    assert!(said.contains("error[unknown-risk]") && said.contains("did you mean `latest-tag`?"), "{said}");
    let (ids, _) = risks(&service(&["privileged: true", "x-palisade: {allow: [privileged]}"]));
    assert_eq!(ids, ["privileged"], "what the guard can't hold needs a reason");
}

#[test]
fn what_many_services_lack_is_told_once() {
    let text: String = (0..5).map(|n| format!("  s{n}: {{image: a:1, healthcheck: {{test: [CMD, a]}}}}\n")).collect();
    let (ids, said) = risks(&format!("services:\n{text}"));
    assert_eq!(ids.iter().filter(|id| **id == "no-memory-limit").count(), 1, "{said}");
    assert!(said.contains("in 5 services: `s0`"), "{said}");
}

#[test]
fn the_page_of_risks_is_made_of_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/risks.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, risk::document()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == risk::document(), "docs/risks.md is out of date: run this test with UPDATE_DOCS=1");
}
