//! The files that are compared, and how each program is asked about them.
//!
//! What the answers mean is said by `notation`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::patient;
use crate::support::PALISADE;

/// Where a case's folder is, in what is compared.
const ROOT: &str = "/srv/barter";
/// The Python that Debian's docker-compose runs on.
const PYTHON: &str = "/usr/bin/python3";
const NAMES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];
const OVERRIDES: [&str; 2] = ["compose.override.yaml", "docker-compose.override.yml"];

/// A project.
pub(super) struct Case {
    pub(super) name: String,
    folder: PathBuf,
    /// Options that stand before the command, for both programs.
    options: Vec<String>,
    environment: BTreeMap<String, String>,
}

/// Whether docker-compose 1.29 and what reads its output are there; if not, why.
pub(super) fn docker_compose() -> Result<(), String> {
    let output = patient("docker-compose").args(["version", "--short"]).output().map_err(|error| error.to_string())?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() {
        return Err("docker-compose is not installed".to_owned());
    }
    if !version.starts_with("1.29.") {
        return Err(format!("docker-compose is version {version}, and the table is about 1.29"));
    }
    let python = Command::new(PYTHON).args(["-c", "import yaml"]).stderr(Stdio::null()).status();
    if !python.is_ok_and(|status| status.success()) {
        return Err(format!("{PYTHON} has no module `yaml`"));
    }
    Ok(())
}

impl Case {
    /// Those of the corpus, the folders of other tests, and the example.
    pub(super) fn all() -> Vec<Self> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut folders = folders_in(&here.join("../palisade-core/tests/cases"));
        folders.extend(folders_in(&here.join("tests/it/cases/meaning")));
        folders.push(here.join("tests/it/cases/servers"));
        folders.push(here.join("../../examples/barter"));
        let mut cases: Vec<_> = folders.into_iter().map(Self::read).collect();
        cases.sort_by(|one, other| one.name.cmp(&other.name));
        assert!(cases.windows(2).all(|two| two[0].name != two[1].name), "two cases have one name");
        cases
    }

    fn read(folder: PathBuf) -> Self {
        let parent = folder.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        let own = folder.file_name().unwrap_or_default().to_string_lossy();
        let name = if parent == "cases" && own != "servers" { own.into_owned() } else { format!("{parent}/{own}") };
        // The same as in the corpus' own test.
        let mut environment: BTreeMap<String, String> = [
            ("HOME", "/home/ada"),
            ("DB_PASSWORD", "hunter2"),
            ("WEB_PORT", "8081"),
            ("BAD_PORT", "s3cr3t"),
            ("EMPTY", ""),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let mut options = Vec::new();
        for line in fs::read_to_string(folder.join("args")).unwrap_or_default().lines() {
            match line.split_once(' ') {
                Some((option, value)) => options.extend([option.to_owned(), value.to_owned()]),
                None => {
                    let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("{line} in {folder:?}/args"));
                    environment.insert(name.to_owned(), value.to_owned());
                }
            }
        }
        if !options.iter().any(|option| option == "-f") {
            let first = |names: &[&str]| names.iter().find(|name| folder.join(name).exists()).map(ToString::to_string);
            let files = first(&NAMES).into_iter().chain(first(&OVERRIDES));
            options.extend(files.flat_map(|file| ["-f".to_owned(), file]));
        }
        Self { name, folder, options, environment }
    }
}

fn folders_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_dir()).collect()
}

/// A copy of a case's folder, removed at the end.
pub(super) struct Folder<'a> {
    case: &'a Case,
    scratch: PathBuf,
}

impl<'a> Folder<'a> {
    pub(super) fn of(case: &'a Case) -> Self {
        let name = format!("palisade-test-{}-compared-{}", std::process::id(), case.name.replace('/', "-"));
        let folder = Self { case, scratch: std::env::temp_dir().join(name) };
        // Projects are called after their folder.
        copy(&case.folder, &folder.place());
        for (name, text) in [
            ("app.env", "FROM_FILE=1\nOVERRIDDEN=file\nSECRET='top$ecret'\n"),
            ("broken.env", "FINE=1\nhunter2 is no line\n"),
        ] {
            if !folder.place().join(name).exists() {
                fs::write(folder.place().join(name), text).unwrap();
            }
        }
        folder
    }

    fn place(&self) -> PathBuf {
        self.scratch.join("barter")
    }

    /// What Palisade makes of it, if it has a sound form.
    pub(super) fn palisade(&self) -> Option<Value> {
        let mut command = patient(PALISADE);
        command.args(&self.case.options).args(["config", "--format", "json", "--show-secrets"]);
        let text = self.output(command)?;
        Some(serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}: {text}", self.case.name)))
    }

    /// Version 1.29 knows no `name` in a file, which is an option of its instead, and wants folders to exist that are built.
    pub(super) fn prepare_for_docker_compose(&self, ours: &Value) {
        for service in ours["services"].as_object().into_iter().flat_map(|services| services.values()) {
            if let Some(context) = service["build"]["context"].as_str().filter(|path| path.starts_with(ROOT)) {
                fs::create_dir_all(self.place().join(context.trim_start_matches(ROOT).trim_start_matches('/')))
                    .unwrap();
            }
        }
        without_names(&self.place());
    }

    /// What docker-compose makes of it, if it can read it.
    pub(super) fn docker_compose(&self, project: &str) -> Option<Value> {
        let mut command = patient("docker-compose");
        if !self.case.options.iter().any(|option| option == "--project-name") {
            command.args(["--project-name", project]);
        }
        command.args(&self.case.options).arg("config");
        let text = self.output(command)?;
        let mut python = Command::new(PYTHON);
        python.args(["-c", "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)"]);
        let mut child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        Some(
            serde_json::from_slice(&output.stdout)
                .unwrap_or_else(|error| panic!("{}: {error}: {text}", self.case.name)),
        )
    }

    fn output(&self, mut command: Command) -> Option<String> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.env_clear().env("PATH", path).envs(&self.case.environment).current_dir(self.place());
        let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        assert!(output.status.code() != Some(124), "{}: not done after a minute: {command:?}", self.case.name);
        let text = String::from_utf8(output.stdout).unwrap();
        output.status.success().then(|| text.replace(&*self.place().to_string_lossy(), ROOT))
    }
}

impl Drop for Folder<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy(&entry.path(), &to.join(name));
        } else if kind.is_file() && !name.ends_with(".snap") && !name.ends_with(".snap.new") && name != "args" {
            fs::copy(entry.path(), to.join(if name == "dot.env" { ".env" } else { &name })).unwrap();
        }
    }
}

fn without_names(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            without_names(&path);
        } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            let Ok(text) = fs::read_to_string(&path) else { continue };
            let lines: String = text.split_inclusive('\n').filter(|line| !line.starts_with("name:")).collect();
            fs::write(&path, lines).unwrap();
        }
    }
}
