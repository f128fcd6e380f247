//! `ports`: the port document. Prints it, writes it beside the Compose file, or tells what differs from it.
//!
//! What it says is decided in `palisade_core::port_document`.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};

use palisade_core::audit::audit;
use palisade_core::finding::Finding;
use palisade_core::port_document::{Change, PortDocument, changes, host};
use palisade_core::stack::Stack;
use palisade_host::whole_file;
use serde_json::json;

use super::audit::looked_at;
use crate::cli::{Format, PortsArgs, StackArgs};
use crate::exit::{Answer, Failure};
use crate::load::{self, Loaded};
use crate::observe;

/// What it is called unless somebody says otherwise.
const NAME: &str = "PORTS.md";

/// Prints, writes or checks the document.
pub(crate) fn run(args: &StackArgs, options: &PortsArgs) -> Result<Answer, Failure> {
    let loaded = load::load(args).map_err(load::Unusable::into_failure)?;
    let document = document(&loaded)?;
    let path = options.output.clone().unwrap_or_else(|| loaded.folder.join(NAME));
    if options.check {
        return check(args, options.format, &loaded.stack, &document, &path);
    }
    let text = match options.format {
        Format::Text => document.to_markdown(),
        Format::Json => format!("{:#}\n", versioned(&document)),
    };
    if options.write || options.output.is_some() {
        write(&path, &text)?;
        println!("{} is written", path.display());
    } else {
        print!("{text}");
    }
    Ok(Answer::Yes)
}

/// The document calls files as they are called from the folder that it stands in, wherever the reader stands.
fn document(loaded: &Loaded) -> Result<PortDocument, Failure> {
    let here = std::env::current_dir().map_err(|error| Failure::new("can't read the current folder", error))?;
    let name = |file: &str| below(&here.join(file), &loaded.folder);
    Ok(PortDocument::of(&loaded.stack, &name))
}

/// A path as it is called from a folder. Both are absolute.
fn below(path: &Path, folder: &Path) -> String {
    let path = without_dots(path);
    let folder = without_dots(folder);
    let shared = path.components().zip(folder.components()).take_while(|(a, b)| a == b).count();
    let up = folder.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(path.components().skip(shared)).collect::<PathBuf>().display().to_string()
}

/// Without `.` and `..`, as they are written; links aren't followed.
fn without_dots(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut whole, part| {
        match part {
            Component::ParentDir => _ = whole.pop(),
            Component::CurDir => {}
            part => whole.push(part),
        }
        whole
    })
}

fn versioned(document: &PortDocument) -> serde_json::Value {
    let mut value = serde_json::to_value(document).unwrap_or_default();
    value["version"] = 1.into();
    value
}

/// Complete or not at all.
fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |error| Failure::new(format!("can't write {}", path.display()), error);
    whole_file::replace(path, text.as_bytes(), 0o666).map_err(failed)
}

/// What came of a look at the host.
enum Host {
    /// It was compared.
    Compared(Vec<Finding>),
    /// It wasn't, and why.
    NotCompared(String),
}

fn check(
    args: &StackArgs,
    format: Format,
    stack: &Stack,
    document: &PortDocument,
    path: &Path,
) -> Result<Answer, Failure> {
    let text = match fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(Failure::new(format!("can't read {}", path.display()), error)),
    };
    let wanted = document.to_markdown();
    let changed = text.as_deref().map(|text| changes(text, &wanted));
    let moved = changed.as_ref().is_some_and(Vec::is_empty) && text.as_ref() != Some(&wanted);
    let host = look_at_host(args, stack)?;
    let differs = matches!(&host, Host::Compared(findings) if !findings.is_empty());
    let stale = changed.as_ref().is_none_or(|changed| !changed.is_empty());
    match format {
        Format::Text => print!("{}", checked(path, changed.as_deref(), moved, &host)),
        Format::Json => {
            let (compared, findings) = match &host {
                Host::Compared(findings) => (json!({ "compared": true }), findings.as_slice()),
                Host::NotCompared(why) => (json!({ "compared": false, "why": why }), [].as_slice()),
            };
            let answer = json!({
                "version": 1,
                "project": stack.project,
                "file": path,
                "exists": text.is_some(),
                "stale": stale,
                "only_lines_moved": moved,
                "changes": changed.unwrap_or_default(),
                "host": compared,
                "findings": findings,
            });
            println!("{answer:#}");
        }
    }
    Ok(if stale || differs { Answer::No } else { Answer::Yes })
}

fn checked(path: &Path, changed: Option<&[Change]>, moved: bool, host: &Host) -> String {
    let shown = path.display();
    let mut text = match changed {
        None => format!("{shown} doesn't exist\n  hint: `palisade ports --write` writes it\n"),
        Some([]) if moved => format!(
            "{shown} says what the Compose file says; only lines have moved, and `palisade ports --write` brings their \
             numbers up to date\n"
        ),
        Some([]) => format!("{shown} says what the Compose file says\n"),
        Some(changed) => {
            let lines: String = changed.iter().map(|change| format!("{change}\n")).collect();
            format!(
                "{shown} is out of date (- what it says, + what the Compose file says):\n{lines}  hint: review \
                     that, and run `palisade ports --write`\n"
            )
        }
    };
    match host {
        Host::NotCompared(why) => text += &format!("Only the file was compared: {why}\n"),
        Host::Compared(findings) if findings.is_empty() => {
            text += "This host has nothing that the Compose file doesn't declare\n"
        }
        Host::Compared(findings) => findings.iter().for_each(|finding| text += &format!("\n{finding}\n")),
    }
    text
}

fn look_at_host(args: &StackArgs, stack: &Stack) -> Result<Host, Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(Host::NotCompared("looking at the host needs root".to_owned()));
    }
    let layout = args.layout(stack.project.clone());
    if observe::observe(&layout).instances.is_empty() {
        return Ok(Host::NotCompared(format!("{} isn't up on this host", stack.project)));
    }
    let (facts, declared) = looked_at(&layout, Some(stack), &[], None)?;
    let audit = audit(&facts, declared.as_ref());
    Ok(Host::Compared(host::unnamed(stack, &facts, &audit, &ephemeral_ports())))
}

/// Ports that the kernel gives to sockets which don't ask for one; Linux's default where it doesn't tell.
fn ephemeral_ports() -> RangeInclusive<u16> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => first..=last,
        _ => 32_768..=60_999,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_called_as_from_the_documents_folder() {
        let called = |path: &str| below(Path::new(path), Path::new("/srv/shop"));
        assert_eq!(called("/srv/shop/compose.yaml"), "compose.yaml");
        assert_eq!(called("/srv/shop/./parts/db.yaml"), "parts/db.yaml");
        assert_eq!(called("/srv/shop/../common/db.yaml"), "../common/db.yaml");
        assert_eq!(called("/srv/shopping/compose.yaml"), "../shopping/compose.yaml");
    }
}
