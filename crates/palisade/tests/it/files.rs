//! Which files make up a stack: the options, variables and names that the command line knows, with the real binary.
//!
//! Nothing here needs root: `check` only reads.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::PALISADE;

/// A folder with files, removed at the end.
struct Project(PathBuf);

impl Project {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let folder = std::env::temp_dir().join(format!("palisade-files-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        for (name, text) in files {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Self(folder)
    }

    fn command(&self, below: &str, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.arg("20").arg(PALISADE).args(args).current_dir(self.0.join(below)).stdin(Stdio::null());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("COMPOSE_")) {
            command.env_remove(name);
        }
        command
    }

    /// What `check` says for programs.
    #[track_caller]
    fn check(&self, below: &str, args: &[&str], variables: &[(&str, &str)]) -> Checked {
        let args: Vec<_> = args.iter().copied().chain(["check", "--format", "json"]).collect();
        let output = self.command(below, &args).envs(variables.iter().copied()).output().unwrap();
        Checked::of(&output)
    }

    /// Messages for people, when there is nothing to check.
    #[track_caller]
    fn refused(&self, below: &str, args: &[&str], variables: &[(&str, &str)]) -> String {
        let args: Vec<_> = args.iter().copied().chain(["check"]).collect();
        let output = self.command(below, &args).envs(variables.iter().copied()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Checked {
    project: String,
    services: Vec<String>,
    /// Messages that are about files, with their places.
    told: Vec<String>,
}

impl Checked {
    #[track_caller]
    fn of(output: &Output) -> Self {
        let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        assert_eq!(json["valid"], true, "{json:#}");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut services: Vec<_> = json["services"].as_array().unwrap().iter().map(text).collect();
        services.sort();
        let about_files = ["several-files", "unknown-profile", "unset-variable"];
        let told = json["diagnostics"].as_array().unwrap().iter();
        let told = told.filter(|told| about_files.contains(&told["id"].as_str().unwrap_or_default()));
        Self { project: text(&json["project"]), services, told: told.map(|told| text(&told["message"])).collect() }
    }
}

/// A file whose services do nothing, named after what brings them in.
fn services(names: &[&str]) -> String {
    let mut text = "services:\n".to_owned();
    for name in names {
        text += &format!("  {name}: {{x-palisade: {{process: {{command: [sleep, '1']}}}}}}\n");
    }
    text
}

#[test]
fn files_are_found_as_compose_finds_them() {
    let project = Project::new(
        "found",
        &[
            ("docker-compose.yml", &services(&["above"])),
            ("in/compose.yaml", &services(&["inner"])),
            ("in/docker-compose.yml", &services(&["other"])),
            ("in/compose.override.yml", &services(&["over"])),
            ("in/deep/er/x", ""),
        ],
    );
    let found = project.check("in/deep/er", &[], &[]);
    assert_eq!((found.project.as_str(), found.services), ("in", vec!["inner".to_owned(), "over".to_owned()]));
    assert_eq!(found.told, ["`../../compose.yaml` is read, and `../../docker-compose.yml` beside it is not"]);
    assert_eq!(project.check("in", &["-f", "compose.yaml"], &[]).services, ["inner"]);
    let all = project.check("in", &["-f", "compose.yaml", "-f", "../docker-compose.yml", "-p", "both"], &[]);
    assert_eq!((all.project.as_str(), all.services), ("both", vec!["above".to_owned(), "inner".to_owned()]));
    let found = project.check("", &[], &[("COMPOSE_FILE", "in/docker-compose.yml:docker-compose.yml")]);
    assert_eq!((found.project.as_str(), found.services), ("in", vec!["above".to_owned(), "other".to_owned()]));
    let found = project.check("", &[], &[("COMPOSE_FILE", "in/compose.yaml"), ("COMPOSE_PROJECT_NAME", "mine")]);
    assert_eq!(found.project, "mine");
    assert_eq!(project.check("", &["--project-directory", "in"], &[]).services, ["inner", "over"]);
}

#[test]
fn a_file_may_come_from_standard_input() {
    let project = Project::new("stdin", &[("base.yaml", &services(&["base"])), ("sub/x", "")]);
    let run = |text: &str, args: &[&str]| {
        let mut child = project
            .command("", args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let extending = "services:\n  piped: {extends: {file: base.yaml, service: base}}\n";
    let output = run(extending, &["-f", "-", "-f", "base.yaml", "check", "--format", "json"]);
    assert_eq!(Checked::of(&output).services, ["base", "piped"]);
    let output = run("services: {a: {imgae: x}}\n", &["-f", "-", "check"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("<stdin>:1:") && said.contains("did you mean `image`?"), "{said}");
    assert!(project.refused("", &["-f", "-", "-f", "-"], &[]).contains("can be read only once"));
}

#[test]
fn missing_files_are_named_with_what_names_them() {
    let project = Project::new("missing", &[("empty/x", "")]);
    let said = project.refused("empty", &[], &[]);
    assert!(said.contains("there is no compose.yaml") && said.contains("palisade -f FILE"), "{said}");
    assert!(project.refused("", &["-f", "gone.yaml"], &[]).contains("can't read gone.yaml: it does not exist"));
    let said = project.refused("", &[], &[("COMPOSE_FILE", "gone.yaml")]);
    assert!(said.contains("can't read gone.yaml") && said.contains("COMPOSE_FILE names it"), "{said}");
    assert!(project.refused("", &["-f", "empty"], &[]).contains("it is a folder"));
    assert!(project.refused("", &["--env-file", "no.env"], &[]).contains("can't read no.env"));
    assert!(project.refused("", &["--project-directory", "no"], &[]).contains("there is no folder no"));
}

#[test]
fn variables_come_from_the_environment_and_then_from_env_files() {
    let text = format!("name: p-${{V:-none}}-${{W:-none}}\n{}", services(&["a"]));
    let project = Project::new(
        "env",
        &[("compose.yaml", &text), (".env", "V=dot\nW=$V\n"), ("one.env", "V=one\nW=one\n"), ("two.env", "W=two\n")],
    );
    let name = |args: &[&str], variables: &[(&str, &str)]| project.check("", args, variables).project;
    assert_eq!(name(&[], &[]), "p-dot-dot");
    assert_eq!(name(&[], &[("V", "set")]), "p-set-set");
    assert_eq!(name(&["--env-file", "one.env", "--env-file", "two.env"], &[]), "p-one-two");
    assert_eq!(name(&[], &[("COMPOSE_ENV_FILES", "two.env,one.env")]), "p-one-one");
    assert_eq!(name(&[], &[("COMPOSE_DISABLE_ENV_FILE", "true")]), "p-none-none");
    assert_eq!(name(&["--project-name", "other"], &[]), "other");
}

#[test]
fn profiles_are_asked_for_by_options_or_variables() {
    let mut text = services(&["always"]);
    for name in ["debug", "tools"] {
        text += &format!("  {name}: {{profiles: [{name}], x-palisade: {{process: {{command: [x]}}}}}}\n");
    }
    let project = Project::new("profiles", &[("compose.yaml", &text), ("set/.env", "COMPOSE_PROFILES=tools\n")]);
    let active = |args: &[&str], variables: &[(&str, &str)]| project.check("", args, variables).services;
    assert_eq!(active(&[], &[]), ["always"]);
    assert_eq!(active(&["--profile", "debug"], &[("COMPOSE_PROFILES", "tools")]), ["always", "debug"]);
    assert_eq!(active(&["--profile", "debug", "--profile", "tools"], &[]).len(), 3);
    assert_eq!(active(&[], &[("COMPOSE_PROFILES", "tools,debug")]).len(), 3);
    assert_eq!(active(&["--profile", "*"], &[]).len(), 3);
    assert_eq!(project.check("set", &[], &[]).services, ["always", "tools"]);
    assert_eq!(project.check("", &["--profile", "tool"], &[]).told, ["no service has the profile `tool`"]);
}

#[test]
fn files_that_are_brought_in_are_named_from_where_the_user_stands() {
    let project = Project::new(
        "names",
        &[
            ("app/compose.yaml", "include: [../shared/db.yaml]\nservices: {}\n"),
            ("shared/db.yaml", "services: {db: {imgae: x}}\n"),
            ("app/deep/x", ""),
        ],
    );
    assert!(project.refused("app", &[], &[]).contains("--> ../shared/db.yaml:1:17"));
    assert!(project.refused("", &["-f", "app/compose.yaml"], &[]).contains("--> shared/db.yaml:1:17"));
}
