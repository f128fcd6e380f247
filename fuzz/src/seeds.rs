//! Where the fuzzer begins: the test cases as inputs, and the words of the key table, or of HTTP, as a dictionary.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use palisade_core::compose::keys::TABLE;

use crate::edge;
use crate::files::MARK;

/// When `PALISADE_FUZZ_SEEDS` names a folder, writes a dictionary for the targets of each crate and inputs for each target there and
/// ends the process.
pub fn write_if_asked() {
    let Some(folder) = std::env::var_os("PALISADE_FUZZ_SEEDS").map(PathBuf::from) else { return };
    if let Err(error) = write(&folder) {
        eprintln!("can't write the seeds to {}: {error}", folder.display());
        std::process::exit(1);
    }
    std::process::exit(0);
}

fn write(folder: &Path) -> std::io::Result<()> {
    let load = folder.join("load");
    std::fs::create_dir_all(&load)?;
    std::fs::write(folder.join("keys.dict"), keys())?;
    std::fs::write(folder.join("http.dict"), dictionary(edge::seeds::WORDS.iter().map(|word| (*word).to_owned())))?;
    edge::seeds::write(folder)?;
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/palisade-core/tests/cases");
    for case in std::fs::read_dir(cases)? {
        let case = case?;
        if !case.file_type()?.is_dir() {
            continue;
        }
        let mut input = std::fs::read(case.path().join("compose.yaml")).unwrap_or_default();
        let mut names = Vec::new();
        walk(&case.path(), &mut names)?;
        names.sort();
        for path in names {
            let name = path.strip_prefix(case.path()).unwrap_or(&path).to_string_lossy().replace("dot.env", ".env");
            if name == "compose.yaml" || name.contains(".snap") {
                continue;
            }
            if !input.ends_with(b"\n") {
                input.push(b'\n');
            }
            input.extend_from_slice(format!("{MARK}{name}\n").as_bytes());
            input.extend_from_slice(&std::fs::read(&path)?);
        }
        std::fs::write(load.join(case.file_name()), input)?;
    }
    Ok(())
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Every key, and what has a meaning of its own in YAML, in variables and in short forms.
fn keys() -> String {
    const WORDS: &[&str] = &[
        "!reset",
        "!override",
        "!!str ",
        "<<: *a",
        "&a ",
        "*a",
        "? ",
        "- ",
        "---\n",
        "...\n",
        "|\n",
        ">-\n",
        "null",
        "~",
        "true",
        "\"",
        "'",
        "\\u202e",
        "${",
        "${SECRET}",
        "${SECRET:-",
        "${X:?",
        "${X+",
        "${EMPTY:+",
        "$$",
        "\n#@ compose.b.yaml\n",
        "\n#@ .env\n",
        "\n#@ other.yaml\n",
        "export ",
        "8080:80",
        "[::1]:80:80/udp",
        "3000-3005",
        "1-65535",
        "127.0.0.1:",
        "/tcp",
        "1m30s",
        "64m",
        "0.5",
        "./a:/b:ro",
        "host",
        "service:",
        "service_healthy",
        "999999999999999999999",
        "-1",
        "1e400",
        "0x7f",
        ".inf",
        "\t",
        "\u{feff}",
        "\r\n",
        "other.yaml",
        "file: ",
        "service: ",
    ];
    let keys: BTreeSet<&str> = TABLE.iter().flat_map(|section| section.keys).map(|key| key.name).collect();
    dictionary(keys.iter().map(|key| format!("{key}: ")).chain(WORDS.iter().map(|word| (*word).to_owned())))
}

/// In the way that the fuzzer reads it.
fn dictionary(words: impl Iterator<Item = String>) -> String {
    let mut text = String::new();
    for word in words {
        text.push('"');
        for byte in word.bytes() {
            match byte {
                b' '..=b'~' if byte != b'"' && byte != b'\\' => text.push(char::from(byte)),
                _ => write!(text, "\\x{byte:02x}").expect("a string takes all"),
            }
        }
        text.push_str("\"\n");
    }
    text
}
