//! The corpus: folders in `cases/`, each a project as people have it, with what is said about it (`said.snap`) and,
//! where it loads, its canonical model (`canonical.snap`).
//!
//! A folder stands for `/srv/barter`. `dot.env` is its `.env`; `args` holds an option or a `NAME=value` of the environment
//! a line.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use palisade_core::compose::canonical::{View, canonical};
use palisade_core::compose::{self, InputFile, LoadInputs};
use palisade_core::diagnostic::{Diagnostic, SourceMap, Style, render_all};
use palisade_core::edge::{Edge, Route};

const ROOT: &str = "/srv/barter";
const NAMES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];
const OVERRIDES: [&str; 4] =
    ["compose.override.yaml", "compose.override.yml", "docker-compose.override.yml", "docker-compose.override.yaml"];
/// Values of variables and files that no message may show.
const SECRETS: [&str; 2] = ["hunter2", "s3cr3t"];

/// A folder, read.
#[derive(Default)]
struct Case {
    files: BTreeMap<PathBuf, Vec<u8>>,
    given: Vec<String>,
    env_files: Vec<String>,
    profiles: Vec<String>,
    project_name: Option<String>,
    environment: BTreeMap<String, String>,
}

impl Case {
    fn read(folder: &Path) -> Self {
        let environment = [
            ("HOME", "/home/ada"),
            ("DB_PASSWORD", "hunter2"),
            ("WEB_PORT", "8081"),
            ("BAD_PORT", "s3cr3t"),
            ("EMPTY", ""),
        ];
        let mut case = Self {
            files: BTreeMap::from([
                ("/srv/barter/app.env".into(), b"FROM_FILE=1\nOVERRIDDEN=file\nSECRET='top$ecret'\n".to_vec()),
                ("/srv/barter/broken.env".into(), b"FINE=1\nhunter2 is no line\n".to_vec()),
            ]),
            environment: environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            ..Self::default()
        };
        case.read_files(folder, Path::new(ROOT));
        let args = case.files.remove(Path::new("/srv/barter/args")).unwrap_or_default();
        for line in String::from_utf8(args).unwrap().lines() {
            match line.split_once(' ') {
                Some(("-f", file)) => case.given.push(file.to_owned()),
                Some(("--env-file", file)) => case.env_files.push(file.to_owned()),
                Some(("--profile", profile)) => case.profiles.push(profile.to_owned()),
                Some(("--project-name", name)) => case.project_name = Some(name.to_owned()),
                _ => {
                    let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("{line} in {folder:?}/args"));
                    case.environment.insert(name.to_owned(), value.to_owned());
                }
            }
        }
        let has = |names: &[&str]| {
            names
                .iter()
                .find(|name| case.files.contains_key(&Path::new(ROOT).join(name)))
                .map(|name| (*name).to_owned())
        };
        if case.given.is_empty() {
            case.given = has(&NAMES).into_iter().chain(has(&OVERRIDES)).collect();
        }
        if case.env_files.is_empty() {
            case.env_files = has(&[".env"]).into_iter().collect();
        }
        case
    }

    fn read_files(&mut self, folder: &Path, place: &Path) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if entry.file_type().unwrap().is_dir() {
                self.read_files(&entry.path(), &place.join(name));
            } else if !name.ends_with(".snap") && !name.ends_with(".snap.new") {
                let name = if name == "dot.env" { ".env" } else { &name };
                self.files.insert(place.join(name), std::fs::read(entry.path()).unwrap());
            }
        }
    }

    /// The edge of what `palisade config` prints, read from another folder.
    fn read_back(&self, printed: &str) -> Edge {
        let path = Path::new("/elsewhere/compose.yaml");
        let loaded = compose::load(&LoadInputs {
            files: &[InputFile { name: "printed.yaml", path, contents: printed.as_bytes() }],
            project_dir: Path::new("/elsewhere"),
            project_name: None,
            profiles: &[],
            environment: &BTreeMap::new(),
            env_files: &[],
            others: &self.files,
        });
        match loaded {
            Ok(loaded) => loaded.stack.edge.expect("it has an edge"),
            Err(rejected) => {
                panic!("{printed}\n{}", said(&rejected.diagnostics, &rejected.risks, &rejected.sources))
            }
        }
    }

    fn with<T>(&self, run: impl FnOnce(&LoadInputs<'_>) -> T) -> T {
        let path = |name: &String| Path::new(ROOT).join(name);
        let paths: Vec<_> = self.given.iter().chain(&self.env_files).map(path).collect();
        let named = self.given.iter().chain(&self.env_files);
        let inputs: Vec<_> = named
            .zip(&paths)
            .map(|(name, path)| {
                let contents = self.files.get(path).unwrap_or_else(|| panic!("the case has no {name}"));
                InputFile { name, path, contents }
            })
            .collect();
        let (files, env_files) = inputs.split_at(self.given.len());
        run(&LoadInputs {
            files,
            project_dir: Path::new(ROOT),
            project_name: self.project_name.as_deref(),
            profiles: &self.profiles,
            environment: &self.environment,
            env_files,
            others: &self.files,
        })
    }
}

/// The edge without the places where its routes are written.
fn unplaced(edge: Edge) -> (Vec<Route>, Edge) {
    let routes = edge.routes.iter().map(|route| route.value.clone()).collect();
    (routes, Edge { routes: Vec::new(), ..edge })
}

/// Everything that is said, and the risks as a list.
fn said(diagnostics: &[Diagnostic], risks: &[Diagnostic], sources: &SourceMap) -> String {
    let mut text = render_all(diagnostics, sources, Style::default());
    for risk in risks {
        let place = risk.primary.as_ref().map(|label| sources.place(label.span).to_string()).unwrap_or_default();
        let _ = writeln!(text, "risk[{}] {place}: {}", risk.id, risk.message);
    }
    text
}

#[test]
fn corpus() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    assert!(folders.len() >= 60, "the cases are missing from {folder:?}");
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let (mut loaded_count, mut rejected_count) = (0, 0);
    for folder in &folders {
        let name = folder.file_name().unwrap().to_string_lossy();
        let case = Case::read(folder);
        let mut edge = None;
        let text = case.with(|inputs| match compose::load(inputs) {
            Ok(loaded) => {
                loaded_count += 1;
                edge = loaded.stack.edge;
                said(&loaded.diagnostics, &loaded.risks, &loaded.sources)
            }
            Err(rejected) => {
                rejected_count += 1;
                said(&rejected.diagnostics, &rejected.risks, &rejected.sources) + &format!("{rejected}\n")
            }
        });
        for secret in SECRETS {
            assert!(!text.contains(secret), "{name} shows a secret:\n{text}");
        }
        settings.set_snapshot_path(folder);
        let _bound = settings.bind_to_scope();
        insta::assert_snapshot!("said", text);
        let view = View { secrets: true, empty_values: true };
        if let Some(edge) = &edge {
            insta::assert_snapshot!("edge", serde_json::to_string_pretty(edge).unwrap());
        }
        let model = case.with(|inputs| canonical(inputs, view));
        match model {
            Ok(model) => {
                insta::assert_snapshot!("canonical", model.model.to_json());
                if let Some(edge) = edge {
                    let again = case.read_back(&model.model.to_yaml());
                    assert_eq!(unplaced(again), unplaced(edge), "{name}: what is printed means something else");
                }
            }
            Err(_) => assert!(!folder.join("canonical.snap").exists(), "{name} has a model no more"),
        }
    }
    eprintln!("{} cases: {loaded_count} are loaded, {rejected_count} are rejected", folders.len());
}
