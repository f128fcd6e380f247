//! Stacks that are made of several files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::compose::{self, InputFile, LoadInputs, Loaded, Rejected};
use crate::diagnostic::{Style, render_all};
use crate::stack::Stack;

/// What is given besides the files.
#[derive(Default)]
struct Given {
    /// How many of the files are given with `-f`; the others are there.
    files: usize,
    profiles: Vec<String>,
    environment: BTreeMap<String, String>,
    dot_env: Option<&'static str>,
}

fn load(given: &Given, files: &[(&str, &str)]) -> Result<Loaded, Box<Rejected>> {
    let all: BTreeMap<PathBuf, Vec<u8>> =
        files.iter().map(|(name, text)| (Path::new("/srv/app").join(name), text.as_bytes().to_vec())).collect();
    let paths: Vec<_> = files.iter().map(|(name, _)| Path::new("/srv/app").join(name)).collect();
    let inputs: Vec<_> = files
        .iter()
        .zip(&paths)
        .take(given.files.max(1))
        .map(|((name, text), path)| InputFile { name, path, contents: text.as_bytes() })
        .collect();
    let dot_env = given.dot_env.map(|text| InputFile {
        name: ".env",
        path: Path::new("/srv/app/.env"),
        contents: text.as_bytes(),
    });
    compose::load(&LoadInputs {
        files: &inputs,
        project_dir: Path::new("/srv/app"),
        project_name: None,
        profiles: &given.profiles,
        environment: &given.environment,
        env_files: dot_env.as_slice(),
        others: &all,
    })
}

#[track_caller]
fn stack_of(given: &Given, files: &[(&str, &str)]) -> (Stack, Vec<&'static str>) {
    match load(given, files) {
        Ok(loaded) => {
            let ids = loaded.diagnostics.iter().filter(|d| d.primary.is_none() || d.id.contains("include"));
            (loaded.stack, ids.map(|d| d.id).collect())
        }
        Err(rejected) => panic!("{}", render_all(&rejected.diagnostics, &rejected.sources, Style::default())),
    }
}

#[track_caller]
fn stack(files: &[(&str, &str)]) -> Stack {
    stack_of(&Given::default(), files).0
}

/// All that is said about files with mistakes.
#[track_caller]
fn said(given: &Given, files: &[(&str, &str)]) -> String {
    let rejected = load(given, files).expect_err("there is a mistake in it");
    render_all(&rejected.diagnostics, &rejected.sources, Style::default())
}

#[track_caller]
fn says(files: &[(&str, &str)], parts: &[&str]) {
    let said = said(&Given::default(), files);
    for part in parts {
        assert!(said.contains(part), "`{part}` is missing in:\n{said}");
    }
}

fn variable<'s>(stack: &'s Stack, service: &str, name: &str) -> Option<&'s str> {
    let service = stack.services.iter().find(|known| known.name.as_str() == service).expect("the service is there");
    service.environment.get(name).map(String::as_str)
}

fn names(stack: &Stack) -> Vec<&str> {
    stack.services.iter().map(|service| service.name.as_str()).collect()
}

#[test]
fn a_service_begins_as_a_copy_of_others() {
    let stack = stack(&[
        (
            "compose.yaml",
            "services:
  a: {extends: b, environment: {A: a, B: a}}
  b: {extends: {service: c, file: sub/base.yaml}, environment: {B: b, C: b}}
  d: {extends: {file: sub/base.yaml, service: e}, environment: !override {D: d}}
",
        ),
        (
            "sub/base.yaml",
            "services:
  c: {extends: e, env_file: c.env, x-palisade: {process: {command: [c]}}, environment: [\"C=c\", \"D=$D\"]}
  e: {image: e:1, environment: {E: e}}
  unused: {extends: nobody}
",
        ),
        ("sub/c.env", "FROM_FILE=1\n"),
    ]);
    for (name, value) in [("A", "a"), ("B", "a"), ("C", "b"), ("D", ""), ("E", "e"), ("FROM_FILE", "1")] {
        assert_eq!(variable(&stack, "a", name), Some(value), "{name}");
    }
    assert_eq!((variable(&stack, "d", "D"), variable(&stack, "d", "E")), (Some("d"), None));
    assert_eq!(names(&stack).len(), 3);
}

#[test]
fn what_takes_away_does_so_across_extends_and_files() {
    let base = "services:\n  a: {image: a:1, environment: {A: 1, B: 1}, expose: [80]}\n";
    let over = "services:\n  b: {image: b:1, environment: {B: 2}, expose: !reset [80]}\n  a: {extends: b, environment: !override {C: 3}}\n";
    let given = Given { files: 2, ..Given::default() };
    let (stack, _) = stack_of(&given, &[("compose.yaml", base), ("over.yaml", over)]);
    let a = stack.services.iter().find(|service| service.name.as_str() == "a").unwrap();
    assert_eq!(a.environment.keys().collect::<Vec<_>>(), ["C"]);
    assert_eq!(a.expose.len(), 1, "what `b` takes away from its own file is no business of `a`");
}

#[test]
fn cycles_of_extends_show_the_way() {
    let one = "services:\n  a: {extends: b}\n  b: {extends: c}\n  c: {extends: a}\n  d: {extends: a}\n";
    let said = said(&Given::default(), &[("compose.yaml", one)]);
    assert!(said.contains("`a` → `b` → `c` → `a`"), "{said}");
    assert_eq!(said.matches("[extends-cycle]").count(), 1, "{said}");
    says(
        &[
            ("compose.yaml", "services:\n  a: {extends: {file: other.yaml, service: b}}\n"),
            ("other.yaml", "services:\n  b: {extends: {file: compose.yaml, service: a}}\n"),
        ],
        &["[extends-cycle]", "`b` → `a` → `b`", "other.yaml"],
    );
    says(&[("compose.yaml", "services:\n  a: {image: a:1, extends: a}\n")], &["`a` → `a`"]);
}

#[test]
fn mistakes_in_extends_point_into_the_right_file() {
    let base =
        "services:\n  webb: {extends: {service: x, serivce: y}}\n  bad: {extends: []}\n  no: {extends: {file: f}}\n";
    let main = "services:
  a: {extends: {file: base.yaml, service: web}}
  b: {extends: {file: missing.yaml, service: web}}
  c: {extends: {file: base.yaml, service: webb}}
  d: {extends: {file: 'https://x.example/f.yaml', service: webb}}
  e: {extends: bb}
  f: {extends: {file: base.yaml, service: bad}}
  g: {extends: {file: base.yaml, service: no}}
";
    says(
        &[("compose.yaml", main), ("base.yaml", base)],
        &[
            "no service `web` in `/srv/app/base.yaml`",
            "did you mean `webb`?",
            "`missing.yaml` can't be read: it does not exist",
            "looked for `/srv/app/missing.yaml`",
            "/srv/app/base.yaml:2:",
            "did you mean `service`?",
            "no service `x`",
            "[remote-file]",
            "no service `bb` in this file",
            "/srv/app/base.yaml:3:",
            "names no service",
        ],
    );
}

#[test]
fn copies_stay_bounded() {
    let mut chain = String::from("services:\n  s0: {image: a:1}\n");
    for n in 1..=60 {
        chain += &format!("  s{n}: {{extends: s{}}}\n", n - 1);
    }
    says(&[("compose.yaml", &chain)], &["[too-deep]"]);
    let mut large = String::from("services:\n  base:\n    image: a:1\n    environment:\n");
    for n in 0..3_000 {
        large += &format!("      V{n}: x\n");
    }
    for n in 0..1_000 {
        large += &format!("  s{n}: {{extends: base}}\n");
    }
    says(&[("compose.yaml", &large)], &["[too-large]", "this goes past the limit"]);
}

#[test]
fn an_included_application_has_its_own_folder_and_variables() {
    let main = "include:
  - db/compose.yaml
  - {path: [web/compose.yaml, web/more.yaml], project_directory: other, env_file: [web/x.env, web/y.env]}
services:
  app: {image: app:1, depends_on: [db, web], environment: {V: \"$V$W\"}, networks: [back]}
";
    let given = Given { dot_env: Some("V=outer\n"), ..Given::default() };
    let (stack, told) = stack_of(
        &given,
        &[
            ("compose.yaml", main),
            (
                "db/compose.yaml",
                "name: ignored\nservices:\n  db: {image: 'db:1', env_file: db.env, environment: {V: \"$V$W\"}, networks: [back]}\nnetworks: {back: {}}\n",
            ),
            ("db/.env", "V=inner\nW=db-$V\n"),
            ("db/db.env", "FILE=db\n"),
            ("web/compose.yaml", "services:\n  web: {image: 'web:1', environment: {X: \"$X$Y\"}}\n"),
            ("web/more.yaml", "services:\n  web: {env_file: web.env, environment: {MORE: 1}}\n"),
            ("web/x.env", "X=1\nY=1\n"),
            ("web/y.env", "Y=2\n"),
            ("other/web.env", "FILE=web\n"),
        ],
    );
    assert_eq!(stack.project.as_str(), "app");
    assert_eq!(told, [""; 0]);
    assert_eq!(names(&stack).len(), 3);
    assert_eq!(variable(&stack, "app", "V"), Some("outer"), "an included application's variables stay with it");
    assert_eq!(variable(&stack, "db", "V"), Some("outerdb-outer"), "those outside win");
    assert_eq!(variable(&stack, "db", "FILE"), Some("db"));
    assert_eq!(variable(&stack, "web", "X"), Some("12"));
    assert_eq!(variable(&stack, "web", "MORE"), Some("1"));
    assert_eq!(variable(&stack, "web", "FILE"), Some("web"));
}

#[test]
fn what_is_included_twice_is_one_thing_and_what_differs_is_told() {
    let given = Given::default();
    let common = "services:\n  c: {image: 'c:1', environment: {C: 1}, expose: [1]}\n";
    let diamond = [
        ("compose.yaml", "include: [a.yaml, b.yaml, ./a.yaml]\n"),
        ("a.yaml", "include: [sub/../common.yaml]\nservices: {a: {image: 'a:1'}}\n"),
        ("b.yaml", "include: [common.yaml]\nservices: {b: {extends: c}}\n"),
        ("common.yaml", common),
    ];
    let (stack, told) = stack_of(&given, &diamond);
    assert_eq!((told, names(&stack).len()), (Vec::new(), 3));
    assert_eq!(variable(&stack, "b", "C"), Some("1"), "what is included can be extended");
    let changed = [
        (
            "compose.yaml",
            "include: [common.yaml]\nservices:\n  c: {environment: {C: 2, D: 2}, expose: !override [2]}\n",
        ),
        ("common.yaml", common),
    ];
    let (stack, told) = stack_of(&given, &changed);
    assert_eq!(told, ["include-conflict"]);
    assert_eq!((variable(&stack, "c", "C"), variable(&stack, "c", "D")), (Some("2"), Some("2")));
    assert_eq!(stack.services[0].expose.iter().map(|port| port.value.port).collect::<Vec<_>>(), [2]);
}

#[test]
fn mistakes_in_includes_are_told() {
    says(
        &[
            ("compose.yaml", "include: [a.yaml]\nservices: {x: {image: 'x:1'}}\n"),
            ("a.yaml", "include: [b.yaml]\n"),
            ("b.yaml", "include: [a.yaml]\n"),
        ],
        &["[include-cycle]", "`/srv/app/a.yaml` → `/srv/app/b.yaml` → `/srv/app/a.yaml`", "/srv/app/b.yaml:1:"],
    );
    says(
        &[(
            "compose.yaml",
            "include:\n  - gone.yaml\n  - {paht: x}\n  - 'oci://x/y'\n  - [x]\n  - {path: compose.yaml}\n  - {path: gone2.yaml, env_file: gone.env}\nservices: {x: {image: 'x:1'}}\n",
        )],
        &[
            "`gone.yaml` can't be read",
            "did you mean `path`?",
            "names no file",
            "[remote-file]",
            "an `include` is a path",
            "includes itself",
            "the `env_file` `gone.env` can't be read",
        ],
    );
    let mut deep: Vec<(String, String)> = (0..40)
        .map(|n| (format!("f{n}.yaml"), format!("include: [f{}.yaml]\nservices: {{s{n}: {{image: 'x:1'}}}}\n", n + 1)))
        .collect();
    deep.push(("f40.yaml".to_owned(), "services: {}\n".to_owned()));
    let deep: Vec<_> = deep.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    says(&deep, &["[too-deep]"]);
}

#[test]
fn the_number_of_files_is_bounded() {
    let many: Vec<String> = (0..1_100).map(|n| format!("f{n}.yaml")).collect();
    let main = format!("include: [{}]\nservices: {{x: {{image: 'x:1'}}}}\n", many.join(", "));
    let mut files = vec![("compose.yaml", main.as_str())];
    files.extend(many.iter().map(|name| (name.as_str(), "x-nothing: 1\n")));
    let said = said(&Given::default(), &files);
    assert!(said.contains("more than 1000 files"), "{said}");
    assert_eq!(said.matches("[too-large]").count(), 1);
}

const PROFILES: &str = "services:
  foo: {image: 'foo:1'}
  bar: {image: 'bar:1', profiles: [test]}
  baz: {image: 'baz:1', depends_on: [bar], profiles: [test]}
  zot: {image: 'zot:1', depends_on: [bar], profiles: [debug]}
";

#[test]
fn profiles_decide_which_services_there_are() {
    let with = |profiles: &[&str]| Given {
        profiles: profiles.iter().map(|name| (*name).to_owned()).collect(),
        ..Given::default()
    };
    let active = |profiles: &[&str]| {
        let (stack, told) = stack_of(&with(profiles), &[("compose.yaml", PROFILES)]);
        (names(&stack).join(" "), told)
    };
    let sorted = |names: &str| {
        let mut names: Vec<_> = names.split(' ').collect();
        names.sort_unstable();
        names.join(" ")
    };
    assert_eq!(active(&[]), ("foo".into(), Vec::new()));
    assert_eq!(sorted(&active(&["test"]).0), "bar baz foo");
    assert_eq!(sorted(&active(&["debug", "test"]).0), "bar baz foo zot");
    assert_eq!(sorted(&active(&["*"]).0), "bar baz foo zot");
    assert_eq!(active(&["tset"]), ("foo".into(), vec!["unknown-profile"]));
    let said = said(&with(&["debug"]), &[("compose.yaml", PROFILES)]);
    assert!(said.contains("`zot` depends on `bar`, which no active profile asks for"), "{said}");
    assert!(said.contains("--profile test"), "{said}");
}

#[test]
fn services_that_are_not_active_are_still_checked_for_their_form() {
    let text = "services:
  a: {image: 'a:1', depends_on: {b: {condition: service_started, required: false}}}
  b: {image: 'b:1', profiles: [x], env_file: missing.env}
";
    let (stack, _) = stack_of(&Given::default(), &[("compose.yaml", text)]);
    assert_eq!((names(&stack), stack.services[0].depends_on.len()), (vec!["a"], 0));
    says(&[("compose.yaml", &text.replace("env_file", "env_fiel"))], &["did you mean `env_file`?"]);
    says(&[("compose.yaml", "services:\n  b: {image: 'b:1', profiles: [x]}\n")], &["[no-active-services]", "`x`"]);
}

#[test]
fn documents_of_one_file_are_merged_in_their_order() {
    let text = "---\nname: one\nservices: {a: {image: 'a:1', environment: {A: 1, B: 1}}}\n---\nname: two\nservices: {a: {environment: {B: 2}}, b: {image: 'b:1'}}\n---\n";
    let stack = stack(&[("compose.yaml", text)]);
    assert_eq!(stack.project.as_str(), "two");
    assert_eq!((variable(&stack, "a", "A"), variable(&stack, "a", "B")), (Some("1"), Some("2")));
    assert_eq!(names(&stack).len(), 2);
}

#[test]
fn no_message_shows_a_value_of_a_file_that_is_brought_in_or_overridden() {
    let base = "services: {a: {image: 'a:1', environment: {PASSWORD: hunter2}, prots: [1], build: {context: ., args: [\"T=hunter2\"]}}}\n";
    let over = "services: {a: {environment: {PASSWORD: other}}, b: {extends: {file: c.yaml, service: c}}}\n";
    let third = "services: {c: {image: 'c:1', environment: [\"P=hunter2$X/hunter2\"], prots: [1]}}\n";
    let given = Given { files: 2, ..Given::default() };
    let said = said(&given, &[("compose.yaml", base), ("over.yaml", over), ("c.yaml", third)]);
    assert!(said.contains("PASSWORD: *******") && said.contains("P=*******$X********"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn what_is_wrong_with_a_file_is_told_once_however_often_it_is_used() {
    let main = "include: [b.yaml]\nservices: {a: {extends: {file: b.yaml, service: b}}, x: {imgae: x}}\n";
    let said = said(
        &Given::default(),
        &[("compose.yaml", main), ("b.yaml", "services: {b: {image: 'b:1', environment: {V: $NOT_SET}}}\n")],
    );
    assert_eq!(said.matches("`NOT_SET` is not set").count(), 1, "{said}");
}
