//! `check-nginx`: what is wrong with an nginx configuration, or exposed by it. Reads files; runs and changes nothing.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use palisade_core::diagnostic::Severity;
use palisade_core::nginx::{self, FILE_BYTES_MAX, Known, Source};
use serde_json::json;

use crate::cli::{CheckNginxArgs, Format, StackArgs};
use crate::exit::{Answer, Failure};
use crate::load::{self, counted};

/// Reads it, and says what was found.
pub(crate) fn run(args: &StackArgs, options: &CheckNginxArgs) -> Result<Answer, Failure> {
    let stack = stack(args)?;
    let mut known = Known { stack: stack.as_ref(), open_ports: None };
    let report = if options.file.as_os_str() == "-" {
        let text = read(std::io::stdin().lock()).map_err(|why| unreadable("standard input", &why))?;
        match nginx::dumped(&text) {
            Some((first, dump)) => {
                let text = dump.0.get(&first).cloned().unwrap_or_default();
                nginx::check(&first, &text, &dump, known)
            }
            None => nginx::check("<stdin>", &text, &nginx::Dump::default(), known),
        }
    } else {
        let name = options.file.display().to_string();
        let text = file(&options.file).map_err(|why| unreadable(&name, &why))?;
        let prefix = options.prefix.clone().unwrap_or_else(|| prefix_of(&options.file));
        let open = open_ports();
        known.open_ports = Some(&open);
        nginx::check(&name, &text, &Folder { prefix }, known)
    };
    let count = |severity| report.count(severity);
    match options.format {
        Format::Json => println!(
            "{}",
            json!({
                "version": 1,
                "files": report.files,
                "diagnostics": load::diagnostics_as_json(&report.diagnostics, &report.sources),
                "counts": {
                    "errors": count(Severity::Error),
                    "warnings": count(Severity::Warning),
                    "notes": count(Severity::Note),
                },
            })
        ),
        Format::Text => {
            eprint!("{}", load::diagnostics_as_text(&report.diagnostics, &report.sources));
            let kinds = [(Severity::Error, "error"), (Severity::Warning, "warning"), (Severity::Note, "note")];
            let told = kinds.map(|(severity, what)| (count(severity), what));
            let told: Vec<_> = told.iter().filter(|(n, _)| *n > 0).map(|(n, what)| counted(*n, what)).collect();
            let told = if told.is_empty() { "nothing wrong".to_owned() } else { told.join(", ") };
            println!("{}: {}, {told}", options.file.display(), counted(report.files, "file"));
        }
    }
    if report.unreadable > 0 {
        return Err(Failure::Input(String::new()));
    }
    Ok(if count(Severity::Error) > 0 { Answer::No } else { Answer::Yes })
}

/// The stack, if one is meant or found. A file that was named must be good; one that is only there needn't be.
fn stack(args: &StackArgs) -> Result<Option<palisade_core::stack::Stack>, Failure> {
    match load::load(args) {
        Ok(loaded) => Ok(Some(loaded.stack)),
        Err(unusable) if !args.files.is_empty() => Err(unusable.into_failure()),
        Err(load::Unusable::Rejected(_)) => {
            eprintln!("note: the Compose file here has mistakes and isn't looked at: see `palisade check`");
            Ok(None)
        }
        Err(load::Unusable::NoFile(_)) => Ok(None),
    }
}

fn unreadable(name: &str, why: &str) -> Failure {
    Failure::Input(format!("error: can't read {name}: {why}"))
}

/// The file's own folder, or the one above that has an nginx.conf: files of sites-enabled are included from there.
fn prefix_of(file: &Path) -> PathBuf {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let above =
        folder.parent().filter(|above| !folder.join("nginx.conf").exists() && above.join("nginx.conf").exists());
    above.unwrap_or(folder).to_owned()
}

/// Files of this host.
struct Folder {
    prefix: PathBuf,
}

impl Source for Folder {
    fn matching(&self, pattern: &str) -> Vec<(String, Result<String, String>)> {
        let mut paths = vec![if pattern.starts_with('/') { PathBuf::from("/") } else { self.prefix.clone() }];
        for part in pattern.split('/').filter(|part| !part.is_empty()) {
            paths = paths.into_iter().flat_map(|path| step(path, part)).collect();
        }
        paths.sort();
        paths.into_iter().map(|path| (path.display().to_string(), file(&path))).collect()
    }

    fn exists(&self, path: &str) -> Option<bool> {
        // Whoever isn't root can't see into folders of keys: that isn't the same as a file that is missing.
        self.prefix.join(path).try_exists().ok()
    }
}

/// What is in the folder of that name, or of those that a pattern means.
fn step(folder: PathBuf, part: &str) -> Vec<PathBuf> {
    if matches!(part, "." | "..") || !part.contains(['*', '?', '[']) {
        let path = folder.join(part);
        // A link that leads nowhere is there, and can't be read.
        return if path.symlink_metadata().is_ok() { vec![path] } else { Vec::new() };
    }
    let Ok(entries) = fs::read_dir(&folder) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| nginx::matches(part, name)).map(|name| folder.join(name)).collect()
}

/// A regular file's text; bytes that aren't UTF-8 are replaced.
fn file(path: &Path) -> Result<String, String> {
    let is_file = fs::metadata(path).map_err(|error| error.to_string())?.is_file();
    if !is_file {
        return Err("it is no file".to_owned());
    }
    read(fs::File::open(path).map_err(|error| error.to_string())?)
}

/// At most one byte more than is looked at, so that what is too large is seen to be.
fn read(from: impl Read) -> Result<String, String> {
    let mut bytes = Vec::new();
    from.take(8 * FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// TCP ports on which something of this host listens on every address, by the kernel's list.
fn open_ports() -> BTreeSet<u16> {
    let mut open = BTreeSet::new();
    for path in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let table = fs::read_to_string(path).unwrap_or_default();
        for line in table.lines().skip(1) {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let (Some(local), Some(state)) = (fields.next(), fields.nth(1)) else { continue };
            let Some((address, port)) = local.split_once(':') else { continue };
            // 0A: it listens.
            if state == "0A" && address.bytes().all(|byte| byte == b'0') {
                open.extend(u16::from_str_radix(port, 16).ok());
            }
        }
    }
    open
}
