//! Which files make up a stack: the options, variables and names that the command line knows, with the real binary.
//!
//! Nothing here needs root: `check` only reads.

use std::io::Write;
use std::path::{Path, PathBuf};
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

/// Makes a certificate that signs itself, and its key.
fn make_certificate(folder: &Path, name: &str, domain: &str, (from, to): (&str, &str)) {
    // `req -x509` of older versions has no `-not_before`.
    let script = "timeout 30 openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x \
                    -addext subjectAltName=DNS:$1 -keyout $0.key -out $0.csr && \
                  rm -f index index.attr && touch index && echo 01 > serial && \
                  printf '[ca]\\ndefault_ca=o\\n[o]\\ndatabase=index\\nserial=serial\\nnew_certs_dir=.\\ndefault_md=sha256\\npolicy=p\\ncopy_extensions=copy\\n[p]\\ncommonName=optional\\n' > ca.conf && \
                  timeout 30 openssl ca -batch -notext -config ca.conf -selfsign -keyfile $0.key -in $0.csr \
                    -startdate $2 -enddate $3 -out $0.pem";
    let mut command = Command::new("sh");
    let made = command.args(["-c", script, name, domain, from, to]).current_dir(folder).output().unwrap();
    assert!(made.status.success(), "{made:?}");
}

#[test]
fn certificates_that_cannot_be_served_are_told_before_anything_is_started() {
    if let Some(missing) = crate::export_edge::missing(&["openssl"]) {
        return eprintln!("skipped certificates_that_cannot_be_served_are_told_before_anything_is_started: {missing}");
    }
    let file = |chain: &str, key: &str| {
        format!(
            "services:\n  db: {{image: 'app:1', expose: [80]}}\nx-palisade:\n  edge:\n    routes: [{{domain: [db.shop.example, \
             api.shop.example], to: db}}]\n    certificates: {{default: {{chain: ./{chain}.pem, key: ./{key}.key}}}}\n"
        )
    };
    let project = Project::new("certificates", &[("compose.yaml", &file("good", "good"))]);
    let ever = ("20200101000000Z", "21000101000000Z");
    for (name, domain, time) in [
        ("good", "*.shop.example", ever),
        ("other", "other.example", ever),
        ("one", "db.shop.example", ever),
        ("ended", "*.shop.example", ("20200101000000Z", "20200201000000Z")),
        ("early", "*.shop.example", ("20990101000000Z", "21000101000000Z")),
    ] {
        make_certificate(&project.0, name, domain, time);
    }
    std::fs::write(project.0.join("torn.pem"), "-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n")
        .unwrap();
    let said = |chain: &str, key: &str, verb: &str| {
        std::fs::write(project.0.join("compose.yaml"), file(chain, key)).unwrap();
        let output = project.command("", &[verb]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (chain, key, code, told, line) in [
        ("good", "good", 0, "", ""),
        ("good", "other", 2, "error[certificate-key]: the certificate of `default` and its key", ":6:"),
        ("other", "other", 2, "is for `other.example`, not for `db.shop.example`", ":6:"),
        ("one", "one", 2, "is for `db.shop.example`, not for `api.shop.example`", ":6:"),
        ("torn", "good", 2, "error[certificate-file]", ":6:"),
        ("ended", "ended", 0, "warning[certificate-refused]: clients refuse", ":6:"),
        ("early", "early", 0, "is the clock right?", ":6:"),
    ] {
        let (found, text) = said(chain, key, "check");
        assert_eq!(found, Some(code), "{chain} {key}: {text}");
        assert!(text.contains(told) && text.contains(line), "{chain} {key}: {text}");
        assert!(code != 0 || !told.is_empty() || !text.contains("certificate"), "{text}");
        if code != 0 {
            for verb in ["plan", "up"] {
                let (found, text) = said(chain, key, verb);
                assert!(found == Some(2) && text.contains(told), "{verb} {chain} {key}: {text}");
            }
        }
    }
    // What only asks which stack it is needs none of them.
    let (code, text) = said("gone", "gone", "events");
    assert!(code != Some(2) && !text.contains("gone"), "{text}");
    let (code, text) = said("gone", "gone", "plan");
    assert!(code == Some(2) && text.contains("gone.pem"), "{text}");
}
