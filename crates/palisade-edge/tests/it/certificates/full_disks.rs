//! The disk is full where certificates, keys and the worker's notes are kept: what is served stays, nobody is asked for what couldn't be
//! kept, and what was issued is fetched again instead of ordered again.

use super::pebble::{self, Authority};
use super::stack::Stack;
use crate::support::{DOMAIN, Edge, PATIENCE, settings, skipped, wait_until};
use crate::upstream::Echo;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_core::edge::{AccessLog, CertificateSource, Challenge, LogFormat};
use palisade_edge::acme::Outcome;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system of its own over a folder, seen by this test and what it starts.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Before the edge is started.
    fn possible(test: &str) -> bool {
        let own = || {
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        };
        match own() {
            Ok(()) => true,
            Err(error) => {
                skipped(test, format!("it needs to mount a small disk: {error}"));
                false
            }
        }
    }

    fn over(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).expect("its parent is there");
        mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some("size=512k,mode=700"))
            .expect("a small disk");
        Self(folder.to_owned())
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Until not a byte fits.
    fn fill(&self) {
        let mut file = std::fs::File::options().create(true).append(true).open(self.filler()).expect("a file");
        for size in [4_096, 1] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.filler()).expect("it is there");
    }
}

impl Drop for SmallDisk {
    /// A folder with something mounted over it could not be removed.
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn hidden(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder is there").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| name.starts_with('.')).collect()
}

fn issued(authority: &Authority) -> usize {
    authority.log().matches("Issued certificate").count()
}

/// Looks until the certificate is due for renewal, and that fails; why.
fn renewal_fails(stack: &Stack) -> String {
    let mut why = None;
    wait_until("the renewal is due", || match stack.look() {
        Outcome::Waiting { text, .. } => {
            why = Some(text);
            true
        }
        Outcome::Kept { .. } => false,
        other => panic!("{other:?}"),
    });
    why.expect("it was waited for")
}

fn thirty_seconds(stack: &mut Stack) -> Authority {
    let mut wish = stack.wish();
    wish.validity_s = 30;
    let authority = Authority::start(wish);
    stack.order_from(vec![authority.directory()]);
    authority
}

#[test]
fn nobody_is_asked_for_a_certificate_that_couldnt_be_kept() {
    if !pebble::is_here("a full disk for certificates") || !SmallDisk::possible("a full disk for certificates") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    let disk = SmallDisk::over(&stack.worker.folder);
    let authority = thirty_seconds(&mut stack);
    stack.obtain();
    let (first, file) = (stack.served(), std::fs::read(stack.certificate()).expect("it was obtained"));
    disk.fill();
    let text = renewal_fails(&stack);
    assert!(text.contains(&stack.worker.folder.display().to_string()), "{text}");
    assert!(text.contains("No space left on device") && text.contains("make room"), "{text}");
    assert_eq!(authority.orders(), 1, "{}", authority.log());
    assert_eq!(stack.served(), first);
    assert_eq!(std::fs::read(stack.certificate()).expect("it stays"), file);
    assert_eq!(hidden(&stack.worker.folder), [""; 0], "nothing half-written is left");
    disk.make_room();
    stack.wait_over();
    stack.obtain();
    assert_ne!(stack.served(), first);
    assert_eq!((authority.orders(), issued(&authority)), (2, 2));
}

#[test]
fn a_certificate_that_was_issued_and_couldnt_be_kept_is_fetched_again_not_ordered_again() {
    if !pebble::is_here("a certificate that can't be stored") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    let authority = Authority::start(stack.wish());
    stack.order_from(vec![authority.directory()]);
    // In the way of the file, and of nothing else.
    std::fs::create_dir(stack.certificate()).expect("the folder is there");
    for failures in 1..=4 {
        let text = stack.fail();
        assert!(text.contains(&stack.certificate().display().to_string()), "{text}");
        assert_eq!(stack.remembered()["failures"], failures, "each pause is longer than the last");
        assert_eq!((authority.orders(), issued(&authority)), (1, 1), "{}", authority.log());
        stack.wait_over();
    }
    // Days later it is still there, and paid for.
    let since_s = stack.pending()["since_s"].as_u64().expect("the order is noted");
    stack.note(|memory| {
        memory["orders"][&authority.directory().url]["since_s"] = (since_s - 2 * 86_400).into();
    });
    std::fs::remove_dir(stack.certificate()).expect("it is empty");
    stack.obtain();
    assert_ne!(stack.served(), "");
    assert_eq!((authority.orders(), issued(&authority)), (1, 1), "{}", authority.log());
}

#[test]
fn an_order_is_not_forgotten_because_its_authority_is_away_for_a_moment() {
    if !pebble::is_here("an authority that is away for a moment") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    let mut authority = Authority::start(stack.wish());
    stack.order_from(vec![authority.directory()]);
    std::fs::create_dir(stack.certificate()).expect("the folder is there");
    stack.fail();
    let pending = stack.pending();
    assert_ne!(pending, serde_json::Value::Null);
    authority.down();
    stack.wait_over();
    stack.fail();
    assert_eq!(stack.pending(), pending);
}

#[test]
fn without_room_for_its_notes_the_worker_tries_ever_less_often_and_says_so() {
    if !pebble::is_here("a full disk for notes") || !SmallDisk::possible("a full disk for notes") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    let disk = SmallDisk::over(&stack.worker.state);
    let authority = thirty_seconds(&mut stack);
    let worker = stack.start_worker();
    wait_until("there is a certificate", || stack.kinds().iter().any(|kind| kind == "certificate_served"));
    let first = stack.served();
    disk.fill();
    let failed = || {
        let events = stack.events();
        events.into_iter().filter(|event| event["kind"] == "certificate_failed").collect::<Vec<_>>()
    };
    wait_until("the renewal fails, which is told nevertheless", || !failed().is_empty());
    // What can't be noted isn't forgotten as long as the process lives: the next pause is longer.
    let pid = Pid::from_raw(worker.0.id().try_into().expect("a pid"));
    kill(pid, Signal::SIGHUP).expect("it runs");
    wait_until("it fails again", || failed().len() == 2);
    let (text, failures) = (failed()[1]["details"]["text"].to_string(), failed()[1]["details"]["failures"].clone());
    assert_eq!(failures, 2);
    assert!(text.contains("No space left on device") && text.contains("make room"), "{text}");
    assert!(text.contains(&stack.worker.state.display().to_string()), "{text}");
    assert_eq!(stack.served(), first);
    assert_eq!(authority.orders(), 1, "{}", authority.log());
    disk.make_room();
    kill(pid, Signal::SIGHUP).expect("it runs");
    wait_until("there is a new one", || ![String::new(), first.clone()].contains(&stack.served()));
    let deadline = std::time::Instant::now() + PATIENCE;
    while stack.remembered()["failures"] != 0 {
        assert!(std::time::Instant::now() < deadline, "{}", stack.remembered());
    }
}

#[test]
fn an_account_isnt_made_where_it_couldnt_be_kept() {
    if !pebble::is_here("a full disk for the account") || !SmallDisk::possible("a full disk for the account") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    let disk = SmallDisk::over(&stack.worker.state);
    let mut wish = stack.wish();
    // Each refused nonce is one more request.
    wish.bad_nonces = 0;
    let authority = Authority::start(wish);
    stack.order_from(vec![authority.directory()]);
    disk.fill();
    for _ in 0..3 {
        let text = stack.fail();
        assert!(text.contains("No space left on device") && text.contains("make room"), "{text}");
    }
    assert!(!authority.log().contains("POST /sign-me-up"), "{}", authority.log());
    disk.make_room();
    stack.obtain();
    assert_eq!(authority.log().matches("POST /sign-me-up").count(), 1);
}

#[test]
fn a_certificate_of_the_stacks_own_authority_waits_for_room_and_that_is_told() {
    if !SmallDisk::possible("a full disk for local certificates") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    stack.worker.certificates.insert(DOMAIN.to_owned(), CertificateSource::Local);
    let disk = SmallDisk::over(&stack.worker.folder);
    for folder in ["http-01", "tls-alpn-01"] {
        std::fs::create_dir(disk.0.join(folder)).expect("there is room");
    }
    disk.fill();
    let worker = stack.start_worker();
    wait_until("it can't be written", || stack.kinds() == ["certificate_failed"]);
    let details = stack.events()[0]["details"].clone();
    let text = details["text"].as_str().expect("a text");
    assert_eq!((&details["why"], &details["failures"]), (&"host".into(), &1.into()), "{details}");
    assert!(text.contains(&stack.certificate().display().to_string()) && text.contains("make room"), "{text}");
    assert!(!stack.certificate().exists());
    disk.make_room();
    kill(Pid::from_raw(worker.0.id().try_into().expect("a pid")), Signal::SIGHUP).expect("it runs");
    wait_until("it is served", || !stack.served().is_empty());
}

#[test]
fn requests_are_served_while_the_access_log_doesnt_fit_and_no_line_is_half() {
    if !SmallDisk::possible("a full disk for the access log") {
        return;
    }
    let (mut settings, folder) = settings();
    let disk = SmallDisk::over(&folder.path().join("log"));
    let path = disk.0.join("access.log");
    settings.edge.access_log =
        Some(AccessLog { format: LogFormat::Json, query: false, file_bytes_max: 1 << 20, files: 2 });
    settings.access_log = Some(path.clone());
    let echo = Echo::start();
    let edge = Edge::with((settings, folder), &[echo.address]);
    let lines = || {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let whole = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("a whole line");
        text.lines().map(|line| whole(line)["path"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    edge.get("/first");
    wait_until("it is logged", || lines() == ["/first"]);
    disk.fill();
    // More than what is left of the last block.
    for at in 0..200 {
        let (head, _) = edge.get(&format!("/lost/{at}"));
        assert!(head.starts_with("HTTP/1.1 200 "), "{at}: {head}");
    }
    assert!(lines().len() < 200, "the disk wasn't full");
    disk.make_room();
    wait_until("it is written again", || {
        edge.get("/after");
        lines().last().is_some_and(|path| path == "/after")
    });
    // Before the folder that the edge has.
    drop(disk);
}

/// During an update the old and the new one append to the same file.
#[test]
fn what_doesnt_fit_takes_no_line_of_another_edge_along() {
    if !SmallDisk::possible("a full disk for two access logs") {
        return;
    }
    let folder = crate::support::Folder::new();
    let disk = SmallDisk::over(&folder.path().join("log"));
    let path = disk.0.join("access.log");
    let echo = Echo::start();
    let said = folder.path().join("said");
    let start = |number: u32| {
        let (mut settings, folder) = settings();
        settings.edge.access_log =
            Some(AccessLog { format: LogFormat::Json, query: false, file_bytes_max: 1 << 20, files: 2 });
        settings.access_log = Some(path.clone());
        let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
        command.stderr(File::create(said.with_extension(number.to_string())).expect("its folder is there"));
        let edge = Edge::start_by(command, (settings, folder));
        edge.set("web:80", &[echo.address]);
        edge
    };
    let (old, new) = (start(0), start(1));
    let text = || std::fs::read_to_string(&path).unwrap_or_default();
    let logged = |path: &str| wait_until("it is logged", || text().contains(path));
    old.get("/first");
    logged("/first");
    for at in 0..10 {
        new.get(&format!("/new/{at}"));
    }
    logged("/new/9");
    let before = text();
    disk.fill();
    wait_until("it doesn't fit", || {
        old.get("/lost");
        std::fs::read_to_string(said.with_extension("0")).is_ok_and(|text| text.contains("can't write the access log"))
    });
    disk.make_room();
    wait_until("it is written again", || {
        old.get("/after");
        text().contains("/after")
    });
    let text = text();
    assert!(text.starts_with(&before), "{text}");
    assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{text}");
    drop(disk);
}
