//! One file that holds every key that is honoured or kept for an image: the table promises nothing that isn't read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use palisade_core::compose::keys::{Class, TABLE};
use palisade_core::compose::{self, Files, InputFile, LoadInputs, ReadError};
use palisade_core::diagnostic::{Style, render_all};

/// The case's folder, seen as the one of a project.
struct Folder(PathBuf);

const PROJECT: &str = "/srv/barter";

impl Files for Folder {
    fn read(&self, path: &Path) -> Result<Vec<u8>, ReadError> {
        let inside = path.strip_prefix(PROJECT).map_err(|error| ReadError::Other(error.to_string()))?;
        std::fs::read(self.0.join(inside)).map_err(|_| ReadError::NotFound)
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/every-key")
}

#[test]
fn what_every_key_means() {
    let contents = std::fs::read(folder().join("compose.yaml")).unwrap();
    let environment = BTreeMap::from([("TOKEN".to_owned(), "hunter2".to_owned())]);
    let path = Path::new(PROJECT).join("compose.yaml");
    let result = compose::load(&LoadInputs {
        files: &[InputFile { name: "compose.yaml", path: &path, contents: &contents }],
        project_dir: Path::new(PROJECT),
        project_name: None,
        environment: &environment,
        profiles: &[],
        env_files: &[],
        others: &Folder(folder()),
    });
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.set_snapshot_path(folder());
    let _bound = settings.bind_to_scope();
    match result {
        Ok(loaded) => {
            let said = render_all(&loaded.diagnostics, &loaded.sources, Style::default());
            assert!(!said.contains("hunter2"), "a secret is shown:\n{said}");
            insta::assert_snapshot!("said", said);
            insta::assert_snapshot!("stack", serde_json::to_string_pretty(&loaded.stack).unwrap());
        }
        Err(rejected) => panic!("{}", render_all(&rejected.diagnostics, &rejected.sources, Style::default())),
    }
}

/// In a debug build the parser panics on a key that the table honours or keeps for an image, and that it doesn't read, so a file with all of them is the proof
/// that the table promises nothing that isn't done.
#[test]
fn the_case_has_every_key_that_the_table_honours_or_keeps() {
    let text = std::fs::read_to_string(folder().join("compose.yaml")).unwrap();
    let mut missing = Vec::new();
    for section in TABLE {
        for key in section.keys.iter().filter(|key| matches!(key.class, Class::Honoured(_) | Class::Image(_))) {
            let tag = format!("{}: {}", if section.path.is_empty() { "top" } else { section.path }, key.name);
            let line = text.lines().find(|line| line.ends_with(&format!("# {tag}")));
            if !line.is_some_and(|line| line.contains(&format!("{}:", key.name))) {
                missing.push(tag);
            }
        }
    }
    assert!(missing.is_empty(), "no line of the case has the key and ends in:\n# {}", missing.join("\n# "));
}

#[test]
fn the_page_of_the_keys_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/compose-keys.md");
    let page = palisade_core::compose::keys::document();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/compose-keys.md is out of date: run this test with UPDATE_DOCS=1");
}
