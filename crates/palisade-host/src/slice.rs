//! Slices of systemd: cgroups for containers of an engine that lets systemd make them.
//!
//! Such an engine puts a container into a scope, `docker-<id>.scope`, of the slice that it is told. systemd makes the slice's
//! directory when the slice is started and keeps it, with the guard that is attached there, until the slice is stopped:
//! reloads, its own update and the end of the last container leave it alone (tried with systemd 252). Once it was stopped,
//! the next container brings a directory of the same name that nobody guards.
//!
//! Only names are made in here, and systemd is asked; what is in the directories is [`crate::cgroup`]'s.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use palisade_core::names::InstanceId;

use crate::layout::Layout;
use crate::nft::{ToolError, run};

/// systemd names no unit longer than this, and the kernel no directory.
const UNIT_BYTES_MAX: usize = 255;
/// How long systemd gets to forget the scope of a container that has ended.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(5);

/// A slice: `palisade-shop-web.1.slice` is below `palisade-shop.slice`, and that below `palisade.slice`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    parts: Vec<String>,
}

impl Slice {
    /// Of a whole realm.
    pub fn of_realm(layout: &Layout) -> Self {
        Self { parts: vec![escape(&layout.realm)] }
    }
    /// Of a stack.
    pub fn of_stack(layout: &Layout) -> Self {
        Self::of_realm(layout).below(layout.project.as_str())
    }
    /// Of an instance.
    pub fn of_instance(layout: &Layout, id: &InstanceId) -> Self {
        Self::of_stack(layout).below(&id.to_string())
    }

    fn below(mut self, name: &str) -> Self {
        self.parts.push(escape(name));
        self
    }

    /// The unit's name, which engines are told.
    pub fn unit(&self) -> String {
        format!("{}.slice", self.parts.join("-"))
    }

    /// Its directory below the cgroup2 mount.
    pub fn path(&self) -> PathBuf {
        (1..=self.parts.len()).map(|depth| format!("{}.slice", self.parts[..depth].join("-"))).collect()
    }

    /// What a slice right below this one is called, by the name of its directory.
    pub fn child(&self, directory: &str) -> Option<String> {
        let name = directory.strip_suffix(".slice")?.strip_prefix(&self.parts.join("-"))?.strip_prefix('-')?;
        (!name.contains('-')).then(|| unescape(name))?
    }

    /// Makes its directory and those above it.
    pub(crate) fn start(&self) -> Result<(), ToolError> {
        systemctl(&["start", "--", &self.unit()])
    }

    /// Ends what is in it, and removes its directory.
    pub(crate) fn stop(&self) -> Result<(), ToolError> {
        systemctl(&["stop", "--", &self.unit()])
    }
}

/// Why containers of these instances can't be in slices, if they can't.
pub(crate) fn unfit<'a>(layout: &Layout, services: impl Iterator<Item = &'a str>) -> Option<String> {
    if !Path::new("/run/systemd/system").is_dir() {
        return Some("systemd doesn't run this host (there is no /run/systemd/system)".to_owned());
    }
    let longest = services.map(|service| {
        let unit = Slice::of_stack(layout).below(&format!("{service}.{}", u8::MAX)).unit();
        (unit.len(), service.to_owned())
    });
    let (bytes, service) = longest.max()?;
    (bytes > UNIT_BYTES_MAX).then(|| {
        format!(
            "the names of the project and of {service} are too long for a slice of systemd ({bytes} bytes, {UNIT_BYTES_MAX} at most; each `-` counts as four)"
        )
    })
}

/// Makes systemd forget the scope of a container that has ended: one that failed (killed for want of memory, or because
/// it didn't stop in time) stays, and runc before 1.1.6 starts a container whose scope is there already *outside* of it.
pub(crate) fn forget_scope(container: &str) -> Result<(), String> {
    let unit = format!("docker-{container}.scope");
    let deadline = Instant::now() + FORGOTTEN_WITHIN;
    loop {
        let shown = run("systemctl", &["show", "--property=LoadState", "--value", "--", &unit], "");
        match shown.map_err(|error| error.to_string())?.trim() {
            "not-found" => return Ok(()),
            _ if Instant::now() > deadline => return Err(format!("systemd still has {unit}")),
            _ => {}
        }
        // It says so when there is nothing to forget, or when the unit hasn't ended yet.
        let _ = systemctl(&["reset-failed", "--", &unit]);
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn systemctl(arguments: &[&str]) -> Result<(), ToolError> {
    run("systemctl", &[&["--quiet", "--no-ask-password"], arguments].concat(), "").map(drop)
}

/// As systemd writes names of others in names of its units: `-` stands between a slice and the one above it.
fn escape(name: &str) -> String {
    name.replace('-', "\\x2d")
}

/// `None`: nothing that [`escape`] writes.
fn unescape(text: &str) -> Option<String> {
    let name = text.replace("\\x2d", "-");
    (!name.contains('\\')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_core::names::ProjectName;

    fn layout(project: &str) -> Layout {
        Layout { realm: "palisade".into(), project: ProjectName::parse(project).unwrap() }
    }

    #[test]
    fn a_slice_is_named_as_systemd_reads_it() {
        let id = InstanceId::parse("web-api_2.x.1").unwrap();
        let slice = Slice::of_instance(&layout("shop-eu"), &id);
        assert_eq!(slice.unit(), r"palisade-shop\x2deu-web\x2dapi_2.x.1.slice");
        let expected = r"palisade.slice/palisade-shop\x2deu.slice/palisade-shop\x2deu-web\x2dapi_2.x.1.slice";
        assert_eq!(slice.path(), Path::new(expected));
        let stack = Slice::of_stack(&layout("shop-eu"));
        let directory = slice.path().file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(stack.child(&directory), Some(id.to_string()));
        assert_eq!(Slice::of_realm(&layout("any")).child(r"palisade-shop\x2deu.slice"), Some("shop-eu".to_owned()));
        for other in
            ["palisade-shop.slice", "web.1", "palisade-shop\\x2deu-a-b.slice", "palisade-shop\\x2deu-a\\x5f.slice"]
        {
            assert_eq!(stack.child(other), None, "{other}");
        }
    }

    #[test]
    fn names_that_make_a_unit_too_long_are_refused() {
        if !Path::new("/run/systemd/system").is_dir() {
            assert!(unfit(&layout("shop"), ["web"].into_iter()).unwrap().contains("systemd doesn't run this host"));
        }
        let longest = |project: &str, service: &str| {
            Slice::of_stack(&layout(project)).below(&format!("{service}.255")).unit().len()
        };
        assert!(longest(&"p".repeat(63), &"s".repeat(63)) <= UNIT_BYTES_MAX);
        assert!(longest(&format!("p{}", "-".repeat(62)), "s") > UNIT_BYTES_MAX);
    }
}
