//! Small files, and what they are written out.

use std::path::PathBuf;

use super::*;
use std::collections::BTreeMap;
use std::path::Path;

use crate::compose::InputFile;

fn model(texts: &[&str], view: View) -> Result<Canonical, Box<Rejected>> {
    let environment =
        BTreeMap::from([("HOME".to_owned(), "/home/ada".to_owned()), ("GIVEN".to_owned(), "g$1".to_owned())]);
    let others = BTreeMap::from([
        (PathBuf::from("/srv/shop/app.env"), b"FROM_FILE=1\nBOTH=file\nDB_PASSWORD=hunter2\n".to_vec()),
        (PathBuf::from("/srv/shop/app.labels"), b"a.b=c d\n".to_vec()),
    ]);
    let files: Vec<_> = texts
        .iter()
        .map(|text| InputFile {
            name: "compose.yaml",
            path: Path::new("/srv/shop/compose.yaml"),
            contents: text.as_bytes(),
        })
        .collect();
    canonical(
        &LoadInputs {
            files: &files,
            project_dir: Path::new("/srv/shop"),
            project_name: None,
            profiles: &[],
            environment: &environment,
            env_files: &[],
            others: &others,
        },
        view,
    )
}

fn yaml_of(texts: &[&str], view: View) -> String {
    match model(texts, view) {
        Ok(canonical) => canonical.model.to_yaml(),
        Err(rejected) => panic!("{:#?}", rejected.diagnostics),
    }
}

const ALL: View = View { secrets: true, empty_values: false };

/// The lines of service `a`.
fn service(keys: &str) -> String {
    let all = yaml_of(
        &[&format!(
            "services:\n  a:\n    image: x\n    networks: [lan]\n{}\nnetworks: {{lan: }}\nvolumes: {{v: }}\n",
            indented(keys)
        )],
        ALL,
    );
    let lines = all.lines().skip_while(|line| *line != "  a:").skip(1).take_while(|line| line.starts_with("    "));
    let lines: Vec<_> =
        lines.map(|line| &line[4..]).filter(|line| !["image: x", "networks:", "  lan: null"].contains(line)).collect();
    lines.join("\n")
}

fn indented(keys: &str) -> String {
    keys.lines().map(|line| format!("    {line}\n")).collect()
}

#[test]
fn every_short_form_is_written_out() {
    for (short, long) in [
        ("command: echo \"hi there\" $$X", "command:\n  - echo\n  - hi there\n  - \"$$X\""),
        ("command: []", "command: []"),
        ("command:", ""),
        ("healthcheck: {test: curl x, interval: 90s, retries: 3}", "healthcheck:\n  interval: \"1m30s\"\n  retries: 3\n  test:\n    - CMD-SHELL\n    - curl x"),
        ("environment: [A=1, GIVEN, NOWHERE, 'B=']", "environment:\n  A: \"1\"\n  B: \"\"\n  GIVEN: g$$1\n  NOWHERE: null"),
        ("environment: {A: 1.50, B: true, C: }\nenv_file: app.env", "environment:\n  A: \"1.50\"\n  B: \"true\"\n  BOTH: file\n  C: null\n  DB_PASSWORD: hunter2\n  FROM_FILE: \"1\""),
        ("environment: {BOTH: own}\nenv_file: [{path: app.env}, {path: no.env, required: false}]", "environment:\n  BOTH: own\n  DB_PASSWORD: hunter2\n  FROM_FILE: \"1\""),
        ("labels: [x]\nlabel_file: app.labels", "labels:\n  a.b: c d\n  x: \"\""),
        ("ports: ['8080:80']", "ports:\n  - mode: ingress\n    protocol: tcp\n    published: \"8080\"\n    target: 80"),
        ("ports: ['[::1]:1-2:3-4/UDP']", "ports:\n  - host_ip: \"::1\"\n    mode: ingress\n    protocol: udp\n    published: \"1\"\n    target: 3\n  - host_ip: \"::1\"\n    mode: ingress\n    protocol: udp\n    published: \"2\"\n    target: 4"),
        ("ports: [80, '8000-8009:90']", "ports:\n  - mode: ingress\n    protocol: tcp\n    target: 80\n  - mode: ingress\n    protocol: tcp\n    published: 8000-8009\n    target: 90".replace("8000-8009", "\"8000-8009\"").as_str()),
        ("ports: [{target: 1, published: 2, mode: host}]", "ports:\n  - mode: host\n    protocol: tcp\n    published: \"2\"\n    target: 1"),
        ("volumes: ['v:/d:ro', './x:/x:z', '/t/../u:/u/', /anon]", "volumes:\n  - read_only: true\n    source: v\n    target: /d\n    type: volume\n    volume: {}\n  - bind:\n      create_host_path: true\n      selinux: z\n    source: /srv/shop/x\n    target: /x\n    type: bind\n  - bind:\n      create_host_path: true\n    source: /u\n    target: /u\n    type: bind\n  - target: /anon\n    type: volume\n    volume: {}"),
        ("volumes: [{type: bind, source: ~/a, target: /a, read_only: false}]", "volumes:\n  - source: /home/ada/a\n    target: /a\n    type: bind"),
        ("build: .", "build:\n  context: /srv/shop\n  dockerfile: Dockerfile"),
        ("build: {context: 'https://a/b.git', args: [GIVEN, NOWHERE, X=1]}", "build:\n  args:\n    GIVEN: g$$1\n    X: \"1\"\n  context: https://a/b.git\n  dockerfile: Dockerfile"),
        ("mem_limit: 64m\nstop_grace_period: 1h\ncpus: 0.5", "cpus: 0.5\nmem_limit: \"67108864\"\nstop_grace_period: \"1h0m0s\""),
        ("extra_hosts: ['b:1.1.1.1', 'a=[::1]']", "extra_hosts:\n  - a=::1\n  - b=1.1.1.1"),
        ("ulimits: {nofile: 5, nproc: {soft: 1, hard: 2}}", "ulimits:\n  nofile: 5\n  nproc:\n    hard: 2\n    soft: 1"),
        ("dns: 1.1.1.1\ntmpfs: /run", "dns:\n  - \"1.1.1.1\"\ntmpfs:\n  - /run"),
        ("devices: [/dev/a, '/dev/b:/dev/c:r']", "devices:\n  - permissions: rwm\n    source: /dev/a\n    target: /dev/a\n  - permissions: r\n    source: /dev/b\n    target: /dev/c"),
        ("gpus: all", "gpus:\n  - count: -1"),
        ("x-a: {m: 1, f: 1.5, b: true, s: '1', z: , o: 0440, l: [a, $$]}", "x-a:\n  m: 1\n  f: 1.5\n  b: true\n  s: \"1\"\n  z: null\n  o: \"0440\"\n  l:\n    - a\n    - \"$$\""),
        ("privileged: false\ninit: false\nports: []", "init: false"),
    ] {
        assert_eq!(service(short), long, "{short}");
    }
}

#[test]
fn the_file_has_names_defaults_and_no_more_than_is_used() {
    let text = "services:\n  b: {image: z, depends_on: [a], secrets: [s], configs: [{source: c, target: /c}]}\n  a: {image: x, network_mode: host, volumes: ['v:/v', 'e:/e']}\n\
        volumes: {v: , e: {external: true}, unused: }\nnetworks: {unused: }\nsecrets: {s: {file: ./s}, t: {environment: T}}\nconfigs: {c: {content: hello}}\nversion: '3'\nx-b: 1\nx-a: [2]\n";
    let expected = "name: shop\nservices:\n  a:\n    image: x\n    network_mode: host\n    volumes:\n      - source: v\n        target: /v\n        type: volume\n        volume: {}\n      - source: e\n        target: /e\n        type: volume\n        volume: {}\n  \
        b:\n    configs:\n      - source: c\n        target: /c\n    depends_on:\n      a:\n        condition: service_started\n        required: true\n    image: z\n    networks:\n      default: null\n    secrets:\n      - source: s\n        target: /run/secrets/s\n\
        networks:\n  default:\n    name: shop_default\nvolumes:\n  e:\n    external: true\n    name: e\n  v:\n    name: shop_v\nsecrets:\n  s:\n    file: /srv/shop/s\n    name: shop_s\nconfigs:\n  c:\n    content: hello\n    name: shop_c\nx-a:\n  - 2\nx-b: 1\n";
    assert_eq!(yaml_of(&[text], ALL), expected);
}

#[test]
fn json_has_the_empty_values_that_compose_writes() {
    let json =
        model(&["services: {a: {image: x, deploy: {replicas: 2}}}"], View { secrets: false, empty_values: true });
    let json: serde_json::Value = serde_json::from_str(&json.unwrap().model.to_json()).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "name": "shop",
            "services": {"a": {
                "command": null, "entrypoint": null, "image": "x", "networks": {"default": null},
                "deploy": {"replicas": 2, "resources": {}, "placement": {}},
            }},
            "networks": {"default": {"name": "shop_default", "ipam": {}}},
        })
    );
}

#[test]
fn secrets_are_hidden_unless_asked_for() {
    let text = "services:\n  a:\n    image: x\n    env_file: app.env\n    environment: {URL: 'redis://:hunter2@r', API_KEY: hunter2, KEY_FILE: /k}\n    \
        command: redis --requirepass hunter2\n    build: {context: ., args: {TOKEN: hunter2}}\n    configs: [c]\nconfigs: {c: {content: hunter2}}\n";
    let hidden = yaml_of(&[text], View::default());
    assert!(
        !hidden.contains("hunter2") && hidden.matches("***").count() == 6 && hidden.contains("KEY_FILE: /k"),
        "{hidden}"
    );
    assert_eq!(yaml_of(&[text], ALL).matches("hunter2").count(), 6);
}

#[test]
fn what_is_written_out_means_the_same_when_read_again() {
    let text = "name: shop\nservices:\n  a:\n    image: x\n    env_file: app.env\n    environment: {A: 'x$$y', B: \"1\\n2\", GIVEN: }\n    command: sh -c \"echo $$A\"\n    \
        ports: ['1-3:4-6', '9:9/udp']\n    volumes: ['./x:/x:ro,z', {type: tmpfs, target: /t, tmpfs: {size: 1m, mode: 0700}}]\n    depends_on: {b: {condition: service_healthy, required: false}}\n    \
        healthcheck: {test: [CMD, a], start_interval: 500ms, disable: true}\n    deploy: {resources: {limits: {cpus: 0.5, memory: 1.5g}, reservations: {devices: [{driver: d, count: all, capabilities: [gpu]}]}}}\n    \
        x-palisade: {connect: [], process: {command: './a b'}, egress: none}\n    post_start: [{command: 'a b', user: root}]\n  b: {build: ./b, extra_hosts: {h: [1.1.1.1, '::1']}, ulimits: {nofile: 1}, profiles: []}\n";
    for view in [ALL, View { secrets: true, empty_values: true }] {
        let once = model(&[text], view).map(|c| c.model).unwrap_or_else(|r| panic!("{:#?}", r.diagnostics));
        for written in [once.to_yaml(), once.to_json()] {
            let again =
                model(&[&written], view).map(|c| c.model).unwrap_or_else(|r| panic!("{written}{:#?}", r.diagnostics));
            assert_eq!(again.to_yaml(), once.to_yaml());
        }
    }
}

#[test]
fn refused_keys_are_shown_and_mistakes_of_form_are_not() {
    let shown = model(&["services: {a: {image: x, pid: host, privileged: true}}"], ALL).unwrap();
    assert!(shown.model.to_yaml().contains("pid: host"));
    assert!(shown.diagnostics.iter().any(|d| d.severity == Severity::Error && d.id == "refused-key"));
    for text in [
        "services: {a: {image: x, imagee: y}}",
        "services: {a: {image: [x]}}",
        "services: {a: {image: x, ports: {a: b}}}",
        "services: {a: {image: x, ports: ['1:2:3:x']}}",
        "services: {a: {image: x, mem_limit: lots}}",
        "services: {a: {image: x, build: {args: {a: [b]}}}}",
        "services: {a: {image: x, command: \"a 'b\"}}",
        "services: {a: {image: x, env_file: no.env}}",
        "services: {a: {image: '${X:?}'}}",
        "services: [a]",
    ] {
        let rejected = model(&[text], ALL).map(|c| c.model.to_yaml()).unwrap_err();
        let errors: Vec<_> = rejected.diagnostics.iter().filter(|d| d.severity == Severity::Error).collect();
        assert!(!errors.is_empty(), "{text}");
    }
}
