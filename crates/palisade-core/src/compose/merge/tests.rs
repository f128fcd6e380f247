//! One row a rule: an earlier file, a later one, and what they are together.

use super::*;
use crate::diagnostic::SourceMap;

fn tree(sources: &mut SourceMap, text: &str) -> Arc<Node> {
    let file = sources.add("t.yaml", text).unwrap();
    match super::super::yaml::parse(text, file) {
        (Some(mut roots), problems) if problems.is_empty() && roots.len() == 1 => roots.remove(0),
        (_, problems) => panic!("{text}: {problems:?}"),
    }
}

fn write(node: &Node) -> String {
    match &node.data {
        Data::Null => "~".into(),
        Data::Scalar(scalar) => scalar.text.to_string(),
        Data::List(items) => format!("[{}]", items.iter().map(|i| write(i)).collect::<Vec<_>>().join(", ")),
        Data::Map(entries) => {
            let parts: Vec<_> = entries.iter().map(|e| format!("{}: {}", e.key, write(&e.value))).collect();
            format!("{{{}}}", parts.join(", "))
        }
    }
}

/// Files merged one after the other, and what was told about them.
fn merged(files: &[&str]) -> (String, Vec<Diagnostic>) {
    let (mut sources, mut sink) = (SourceMap::default(), Sink::default());
    let trees: Vec<_> = files.iter().map(|text| tree(&mut sources, text)).collect();
    let all = trees.into_iter().reduce(|earlier, later| merge(earlier, &later, &keys::TOP, &mut sink)).unwrap();
    (write(&finish(&all, &mut sink)), sink.finish())
}

/// The keys of one service.
fn service_rule(rule: &str, earlier: &str, later: &str, expected: &str) {
    let file = |keys: &str| format!("services: {{a: {{{keys}}}}}");
    let (all, told) = merged(&[&file(earlier), &file(later)]);
    let mut sources = SourceMap::default();
    let expected = write(&tree(&mut sources, &file(expected)));
    assert_eq!(all, expected, "{rule}");
    assert_eq!(told, [], "{rule}");
}

#[test]
fn keys_of_a_service() {
    for (rule, earlier, later, expected) in [
        (
            "a mapping gets what is missing, a later value wins",
            "x-a: {k1: 1, k2: 2}",
            "x-a: {k2: V, k3: 3}",
            "x-a: {k1: 1, k2: V, k3: 3}",
        ),
        ("a list is added to", "dns: [1.1.1.1]", "dns: [8.8.8.8]", "dns: [1.1.1.1, 8.8.8.8]"),
        ("a text stands for a list of one", "dns: 1.1.1.1", "dns: [8.8.8.8]", "dns: [1.1.1.1, 8.8.8.8]"),
        ("also the later one", "env_file: [a.env]", "env_file: b.env", "env_file: [a.env, b.env]"),
        (
            "what a list holds already isn't added",
            "cap_add: [NET_ADMIN, CHOWN]",
            "cap_add: [CHOWN, KILL]",
            "cap_add: [NET_ADMIN, CHOWN, KILL]",
        ),
        (
            "a file of variables is read once",
            "env_file: [a, b]",
            "env_file: [{path: a, required: false}]",
            "env_file: [{path: a, required: false}, b]",
        ),
        ("a single value is replaced", "image: a, user: u", "image: b", "image: b, user: u"),
        ("a command is replaced", "command: [echo, foo]", "command: [echo, bar]", "command: [echo, bar]"),
        ("whatever its form", "command: [echo, foo]", "command: echo bar", "command: echo bar"),
        ("an entry point is replaced", "entrypoint: a b", "entrypoint: [c]", "entrypoint: [c]"),
        ("nothing is a command: the image's", "command: [echo, foo]", "command:", "command:"),
        (
            "a health check keeps what isn't said again",
            "healthcheck: {test: [CMD, a], retries: 3}",
            "healthcheck: {test: b, interval: 5s}",
            "healthcheck: {test: b, retries: 3, interval: 5s}",
        ),
        (
            "nothing written leaves what was there",
            "image: a, ports: ['80:80'], environment: {A: 1}",
            "image:, ports:, environment:",
            "image: a, ports: ['80:80'], environment: {A: 1}",
        ),
        (
            "pairs are merged by key",
            "environment: {A: 1, B: 2}",
            "environment: {B: 3, C: 4}",
            "environment: {A: 1, B: 3, C: 4}",
        ),
        (
            "a list over a mapping",
            "environment: {A: 1, B: 2}",
            "environment: [B=3, C=x=y, D]",
            "environment: {A: 1, B: 3, C: x=y, D: }",
        ),
        ("a mapping over a list", "labels: [a=1, b=2]", "labels: {b: 3}", "labels: {a: 1, b: 3}"),
        ("a list over a list", "environment: [A=1, B=2]", "environment: [B=, A]", "environment: {A: , B: ''}"),
        (
            "arguments, of a build that was a path",
            "build: ./dir",
            "build: {args: [A=1]}",
            "build: {context: ./dir, args: [A=1]}",
        ),
        (
            "and of one that becomes a path",
            "build: {context: ./dir, args: {A: 1}}",
            "build: ./other",
            "build: {context: ./other, args: {A: 1}}",
        ),
        (
            "arguments of two builds",
            "build: {context: ., args: {A: 1, B: 2}}",
            "build: {args: [B=3]}",
            "build: {context: ., args: {A: 1, B: 3}}",
        ),
        (
            "a host may have several addresses",
            "extra_hosts: ['a:1.1.1.1', 'b=1.1.1.2']",
            "extra_hosts: {a: 1.1.1.1, b: [1.1.1.3]}",
            "extra_hosts: ['a:1.1.1.1', b=1.1.1.2, b=1.1.1.3]",
        ),
        (
            "a mount takes the place of the one at its target",
            "volumes: [foo:/work, x:/y]",
            "volumes: [bar:/work/]",
            "volumes: [bar:/work/, x:/y]",
        ),
        (
            "in either form",
            "volumes: [foo:/work:ro]",
            "volumes: [{type: bind, source: ., target: /work}]",
            "volumes: [{type: bind, source: ., target: /work}]",
        ),
        (
            "a port is the same when all of it is",
            "ports: ['80:80', '443:443']",
            "ports: ['80:80/tcp', {target: 443, published: 443}]",
            "ports: ['80:80/tcp', {target: 443, published: 443}]",
        ),
        (
            "and another one otherwise",
            "ports: ['80:80']",
            "ports: ['80:80/udp', '127.0.0.1:80:80', '81:80']",
            "ports: ['80:80', '80:80/udp', '127.0.0.1:80:80', '81:80']",
        ),
        (
            "a secret's target is its own name",
            "secrets: [a, b]",
            "secrets: [{source: c, target: a}, {source: d, target: /run/secrets/b}]",
            "secrets: [{source: c, target: a}, {source: d, target: /run/secrets/b}]",
        ),
        (
            "a config's too",
            "configs: [a, {source: b, target: /etc/b}]",
            "configs: [{source: c, target: /a}, {source: d, target: /etc/b}]",
            "configs: [{source: c, target: /a}, {source: d, target: /etc/b}]",
        ),
        (
            "a device by where it is seen",
            "devices: ['/dev/a:/dev/x']",
            "devices: ['/dev/b:/dev/x:r', /dev/c]",
            "devices: ['/dev/b:/dev/x:r', /dev/c]",
        ),
        (
            "options of the same log driver are merged",
            "logging: {driver: json-file, options: {max-size: 1m}}",
            "logging: {driver: json-file, options: {max-file: 3}}",
            "logging: {driver: json-file, options: {max-size: 1m, max-file: 3}}",
        ),
        (
            "also when one doesn't name it",
            "logging: {driver: syslog, options: {a: 1}}",
            "logging: {options: {b: 2}}",
            "logging: {driver: syslog, options: {a: 1, b: 2}}",
        ),
        (
            "those of another one are not",
            "logging: {driver: json-file, options: {max-size: 1m}}",
            "logging: {driver: syslog, options: {a: b}}",
            "logging: {driver: syslog, options: {a: b}}",
        ),
        (
            "limits one by one",
            "ulimits: {nofile: 100, nproc: {soft: 1, hard: 2}}",
            "ulimits: {nofile: {soft: 1, hard: 2}, nproc: 5, core: 0}",
            "ulimits: {nofile: {soft: 1, hard: 2}, nproc: 5, core: 0}",
        ),
        (
            "half a limit keeps the other half",
            "ulimits: {nproc: {soft: 1, hard: 2}}",
            "ulimits: {nproc: {hard: 9}}",
            "ulimits: {nproc: {soft: 1, hard: 9}}",
        ),
        (
            "a dependency in a list is one that has started",
            "depends_on: [db, web]",
            "depends_on: {db: {condition: service_healthy}}",
            "depends_on: {db: {condition: service_healthy, required: true}, web: {condition: service_started, required: true}}",
        ),
        (
            "also over one that says more",
            "depends_on: {db: {condition: service_healthy, restart: true}}",
            "depends_on: [db]",
            "depends_on: {db: {condition: service_started, restart: true, required: true}}",
        ),
        (
            "networks in a list",
            "networks: {a: {aliases: [x]}}",
            "networks: [a, b]",
            "networks: {a: {aliases: [x]}, b: }",
        ),
        ("and over a list", "networks: [a]", "networks: {a: {aliases: [x]}}", "networks: {a: {aliases: [x]}}"),
        (
            "aliases are added",
            "networks: {a: {aliases: [x]}}",
            "networks: {a: {aliases: [x, y]}}",
            "networks: {a: {aliases: [x, y]}}",
        ),
        (
            "limits at depth",
            "deploy: {replicas: 2, resources: {limits: {cpus: 1}}}",
            "deploy: {resources: {limits: {memory: 1g}}}",
            "deploy: {replicas: 2, resources: {limits: {cpus: 1, memory: 1g}}}",
        ),
        (
            "peers may be given anew",
            "x-palisade: {strict: true, connect: [a]}",
            "x-palisade: {connect: [b]}",
            "x-palisade: {strict: true, connect: [a, b]}",
        ),
        (
            "!reset takes away",
            "image: a, ports: ['80:80'], environment: {FOO: BAR}",
            "ports: !reset [], environment: {FOO: !reset null}",
            "image: a, environment: {}",
        ),
        ("also what isn't there", "image: a", "ports: !reset null", "image: a"),
        (
            "!reset at depth",
            "deploy: {resources: {limits: {cpus: 1, memory: 1g}}}",
            "deploy: {resources: {limits: {cpus: !reset 0}}}",
            "deploy: {resources: {limits: {memory: 1g}}}",
        ),
        (
            "!override replaces",
            "image: a, ports: ['80:80']",
            "ports: !override ['443:443']",
            "image: a, ports: ['443:443']",
        ),
        ("also mappings", "environment: {A: 1}", "environment: !override {B: 2}", "environment: {B: 2}"),
        ("also one form by another", "environment: [A=1]", "environment: !override {B: 2}", "environment: {B: 2}"),
        ("also where there is nothing", "image: a", "dns: !override [1.1.1.1]", "image: a, dns: [1.1.1.1]"),
    ] {
        service_rule(rule, earlier, later, expected);
    }
}

#[test]
fn keys_of_the_file() {
    for (rule, files, expected) in [
        (
            "services by name",
            &["services: {a: {image: x}}", "services: {b: {image: y}, a: {user: u}}"][..],
            "{services: {a: {image: x, user: u}, b: {image: y}}}",
        ),
        ("the last name", &["name: one", "name: two"], "{name: two}"),
        (
            "networks",
            &["networks: {a: }", "networks: {a: {internal: true}, b: }"],
            "{networks: {a: {internal: true}, b: ~}}",
        ),
        (
            "subnets",
            &[
                "networks: {a: {ipam: {config: [{subnet: 10.0.0.0/8}]}}}",
                "networks: {a: {ipam: {config: [{subnet: 10.0.0.0/8, gateway: 10.0.0.1}, {subnet: 11.0.0.0/8}]}}}",
            ],
            "{networks: {a: {ipam: {config: [{subnet: 10.0.0.0/8, gateway: 10.0.0.1}, {subnet: 11.0.0.0/8}]}}}}",
        ),
        (
            "volumes with labels",
            &["volumes: {v: {labels: {a: 1}}}", "volumes: {v: {labels: [b=2]}}"],
            "{volumes: {v: {labels: {a: 1, b: 2}}}}",
        ),
        (
            "a third file after !reset starts anew",
            &[
                "services: {a: {ports: ['1:1']}}",
                "services: {a: {ports: !reset []}}",
                "services: {a: {ports: ['2:2']}}",
            ],
            "{services: {a: {ports: [2:2]}}}",
        ),
        (
            "and after !override adds",
            &[
                "services: {a: {ports: ['1:1']}}",
                "services: {a: {ports: !override ['2:2']}}",
                "services: {a: {ports: ['3:3']}}",
            ],
            "{services: {a: {ports: [2:2, 3:3]}}}",
        ),
        (
            "a service is taken away",
            &["services: {a: {image: x}, b: {image: y}}", "services: {a: !reset null}"],
            "{services: {b: {image: y}}}",
        ),
        (
            "tags of a single file",
            &["services: {a: {ports: !reset ['1:1'], dns: !override [x]}}"],
            "{services: {a: {dns: [x]}}}",
        ),
        (
            "keys that nobody knows",
            &["x-a: {b: [1], c: 2}", "x-a: {b: [3], c: {d: 4}}"],
            "{x-a: {b: [1, 3], c: {d: 4}}}",
        ),
    ] {
        let (all, told) = merged(files);
        assert_eq!(all, expected, "{rule}");
        assert_eq!(told, [], "{rule}");
    }
}

#[test]
fn an_extended_service_is_done_with_its_own_tags_and_the_extending_one_keeps_its() {
    let (mut sources, mut sink) = (SourceMap::default(), Sink::default());
    let mut tree = |text| tree(&mut sources, text);
    let base = tree("{image: x, ports: !reset ['1:1'], dns: [a], cap_add: [KILL]}");
    let own = tree("{dns: !override [b], cap_add: !reset []}");
    let extended = service(&base, &own, &mut sink);
    assert_eq!(write(&finish(&extended, &mut sink)), "{image: x, dns: [b]}");
    let over = service(&tree("{dns: [c], cap_add: [CHOWN], ports: ['2:2']}"), &extended, &mut sink);
    assert_eq!(write(&finish(&over, &mut sink)), "{dns: [b], ports: [2:2], image: x}");
}

#[test]
fn what_can_not_be_merged_is_shown_in_both_places() {
    for (earlier, later, key) in [
        ("services: {a: {ports: ['80:80']}}", "services: {a: {ports: {a: b}}}", "`ports`"),
        ("services: {a: {environment: {A: 1}}}", "services: {a: {environment: text}}", "`environment`"),
        ("services: {a: {image: x}}", "services: {a: {image: [x]}}", "`image`"),
        ("services: [a]", "services: {a: }", "`services`"),
        ("services: {a: [x]}", "services: {a: {image: x}}", "`a`"),
        (
            "services: {a: {deploy: {resources: {limits: [x]}}}}",
            "services: {a: {deploy: {resources: {limits: {cpus: 1}}}}}",
            "`limits`",
        ),
        ("x-a: [1]", "x-a: {b: 1}", "`x-a`"),
    ] {
        let (_, told) = merged(&[earlier, later]);
        let [diagnostic] = &told[..] else { panic!("{later}: {told:?}") };
        assert_eq!(diagnostic.id, "merge-conflict");
        assert!(diagnostic.message.starts_with(key), "{}", diagnostic.message);
        assert_ne!(diagnostic.primary.as_ref().unwrap().span.file, diagnostic.secondary[0].span.file);
    }
}

#[test]
fn an_item_that_is_reset_is_told_to_do_nothing() {
    let (all, told) = merged(&["services: {a: {ports: ['1:1']}}", "services: {a: {ports: [!reset '1:1', '2:2']}}"]);
    assert_eq!(all, "{services: {a: {ports: [2:2]}}}");
    assert_eq!(told.iter().map(|d| d.id).collect::<Vec<_>>(), ["tag"]);
}

#[test]
fn messages_show_variables_as_they_were_written() {
    let item = |text: &str, written: &str| {
        let mut sources = SourceMap::default();
        let node = tree(&mut sources, "x");
        let scalar = Scalar { text: text.into(), written: Some(written.into()), plain: true };
        let entry = pair_of(&node.with(Data::Scalar(scalar))).unwrap();
        let Data::Scalar(value) = &entry.value.data else { panic!() };
        (entry.key.clone(), value.text.clone(), value.written.as_deref().unwrap().to_owned())
    };
    assert_eq!(item("A=s3", "A=${S}"), ("A".into(), "s3".into(), "${S}".into()));
    assert_eq!(item("n=s3", "${N:-a=b}=${S}"), ("n".into(), "s3".into(), "${N:-a=b}=${S}".into()));
}

#[test]
fn trees_are_the_same_wherever_they_stand() {
    let mut sources = SourceMap::default();
    let mut tree = |text| tree(&mut sources, text);
    let one = tree("{a: 1, b: [x, {c: }]}");
    assert!(same(&one, &tree("b: ['x', {c: null}]\na: '1'\n")));
    assert!(!same(&one, &tree("{a: 1, b: [x, {c: 1}]}")));
    assert!(!same(&one, &tree("{a: 1}")));
}

/// A quadratic merge of this would take minutes.
#[test]
fn wide_mappings_and_long_lists_take_linear_time() {
    let wide = |from: usize| {
        let services: String = (from..from + 10_000).map(|n| format!(" s{n}: {{image: x}}\n")).collect();
        let pairs: String = (from..from + 10_000).map(|n| format!("   V{n}: x\n")).collect();
        let ports: String = (from..from + 10_000).map(|n| format!("   - {n}:{n}\n")).collect();
        format!("services:\n{services} a:\n  environment:\n{pairs}  ports:\n{ports}")
    };
    let start = std::time::Instant::now();
    let (all, told) = merged(&[&wide(0), &wide(5_000), &wide(10_000)]);
    assert_eq!((all.matches("image").count(), told.len()), (20_000, 0));
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}
