//! `palisade config` with the real binary: formats, lists, masking, the file's rights, exit codes.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use crate::support::PALISADE;

const FILE: &str = "\
name: shop
services:
  web:
    image: example/web:1
    environment: {DB_PASSWORD: hunter2-hunter2, MODE: plain}
    volumes: [pages:/srv]
  debug:
    image: example/debug:1
    profiles: [tools]
volumes:
  pages:
";

/// A folder with one Compose file, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str, file: &str) -> Self {
        let path = std::env::temp_dir().join(format!("palisade-test-{}-config-{test}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("compose.yaml"), file).unwrap();
        Self(path)
    }

    fn config(&self, options: &[&str]) -> Output {
        let mut command = Command::new(PALISADE);
        command.env_clear().current_dir(&self.0).arg("config").args(options).output().unwrap()
    }

    /// What is printed, by a run that goes well.
    fn printed(&self, options: &[&str]) -> String {
        let output = self.config(options);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn lists_are_names_one_a_line() {
    let folder = Folder::new("lists", FILE);
    assert_eq!(folder.printed(&["--services"]), "web\n");
    assert_eq!(folder.printed(&["--volumes"]), "pages\n");
    assert_eq!(folder.printed(&["--images"]), "example/web:1\n");
    assert_eq!(folder.printed(&["--profiles"]), "tools\n", "also of what nobody asks for");
    assert_eq!(folder.printed(&["--quiet"]), "");
}

#[test]
fn secrets_are_masked_in_both_formats_unless_asked_for() {
    let folder = Folder::new("masks", FILE);
    for format in ["yaml", "json"] {
        let masked = folder.printed(&["--format", format]);
        assert!(!masked.contains("hunter2") && masked.contains("plain"), "{masked}");
        let shown = folder.printed(&["--format", format, "--show-secrets"]);
        assert!(shown.contains("hunter2-hunter2"), "{shown}");
    }
    let model: serde_json::Value = serde_json::from_str(&folder.printed(&["--format", "json"])).unwrap();
    assert_eq!(model["name"], "shop");
    assert_eq!(model["services"]["web"]["environment"]["MODE"], "plain");
}

#[test]
fn what_is_written_reads_as_the_same_again() {
    let folder = Folder::new("again", FILE);
    let first = folder.printed(&["--show-secrets"]);
    std::fs::write(folder.0.join("compose.yaml"), &first).unwrap();
    assert_eq!(folder.printed(&["--show-secrets"]), first);
}

#[test]
fn a_written_file_is_its_owners_alone() {
    let folder = Folder::new("output", FILE);
    assert_eq!(folder.printed(&["-o", "model.yaml"]), "");
    let path = folder.0.join("model.yaml");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_to_string(path).unwrap(), folder.printed(&[]));
}

#[test]
fn mistakes_end_with_a_message_and_print_no_model() {
    for (test, file, said) in [
        ("form", "services:\n  web: {image: [\n", "compose.yaml"),
        ("unknown", "services:\n  web: {image: a, enviroment: {}}\n", "enviroment"),
        ("value", "services:\n  web: {image: a, ports: [99999]}\n", "99999"),
    ] {
        let output = Folder::new(test, file).config(&[]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{test}: {stderr}");
        assert!(output.stdout.is_empty() && stderr.contains(said), "{test}: {stderr}");
    }
}
