//! The file of findings that are lived with: where it is, how it is read, and how an entry is added.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use palisade_core::audit::accepted::{self, Acceptance, Date};
use palisade_core::audit::rules;
use palisade_core::diagnostic::render_all;
use palisade_host::whole_file;

use crate::cli::AuditArgs;
use crate::exit::{Answer, Failure};
use crate::load::{self, Loaded};

/// Beside the Compose file, or one for the whole host.
pub(super) fn file(options: &AuditArgs, loaded: Option<&Loaded>) -> PathBuf {
    const NAME: &str = "palisade.accept.yaml";
    if let Some(path) = &options.accepted {
        return path.clone();
    }
    loaded.map_or(Path::new("/etc/palisade"), |loaded| &loaded.folder).join(NAME)
}

/// What is accepted; nothing when there is no file.
pub(super) fn read(path: &Path) -> Result<Vec<Acceptance>, Failure> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Failure::new(format!("can't read {}", path.display()), error)),
    };
    accepted::read(&path.display().to_string(), &text).map_err(|unreadable| {
        let text = render_all(&unreadable.diagnostics, &unreadable.sources, load::style());
        Failure::Input(format!("{text}error: {} can't be used; nothing was audited", path.display()))
    })
}

/// Writes one more entry into the file.
pub(super) fn add(path: &Path, what: &str, options: &AuditArgs) -> Result<Answer, Failure> {
    let input = |message: String| Failure::Input(format!("error: {message}"));
    let (id, subject) = what.split_once('=').map_or((what, None), |(id, subject)| (id, Some(subject)));
    if rules::rule(id).is_none() {
        let ids: Vec<_> = rules::RULES.iter().map(|rule| rule.id).collect();
        return Err(input(format!(
            "nothing that an audit finds is called `{id}`\n  hint: there are {}",
            ids.join(", ")
        )));
    }
    let reason = options.reason.as_deref().unwrap_or_default().trim();
    if reason.is_empty() {
        return Err(input("`--accept` needs `--reason`: whoever reads it next wants to know why".to_owned()));
    }
    let until = options.until.as_deref().map(|text| {
        text.parse::<Date>().map_err(|()| input(format!("`{text}` is no day; write `--until 2027-03-01`")))
    });
    let until = until.transpose()?;
    // What is there must be sound before something is added to it.
    read(path)?;
    let failed = |error: io::Error| Failure::new(format!("can't write {}", path.display()), error);
    let mut text = fs::read_to_string(path).unwrap_or_default();
    if !text.lines().any(|line| line.trim_end() == "accept:") {
        if text.lines().any(|line| line.starts_with("accept:")) {
            return Err(Failure::plain(format!(
                "{} is written in another form than `--accept` can add to",
                path.display()
            ))
            .hint("put each acceptance on a line of its own below `accept:`"));
        }
        text.push_str("# Findings of `palisade audit` that are lived with. Review this file like code.\naccept:\n");
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&accepted::line(id, subject, reason, until));
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    whole_file::replace(path, text.as_bytes(), 0o666).map_err(failed)?;
    read(path)?;
    println!("{what} is accepted in {}", path.display());
    Ok(Answer::Yes)
}
