//! Whoever owns the folders of certificates puts something else there: root, who looks in them as well, neither waits for it nor follows it.

use super::handshakes::worker;
use crate::support::{DOMAIN, Folder, PATIENCE, settings, skipped};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use palisade_core::edge::{CertificateSource, WorkerSettings};
use palisade_edge::acme::prepare;
use palisade_edge::local_ca::LocalCa;
use rcgen::{CertificateParams, KeyPair};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

const GIVEN: &str = "given.example";
const AUTHORITY: &str = "local-ca-key.pem";

/// A stack with a certificate of its own authority and a given one, both in place.
fn stack() -> (WorkerSettings, Folder) {
    let (mut told, folder) = settings();
    let (chain, key) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
    let made = rcgen::generate_simple_self_signed([GIVEN.to_owned()]).expect("a certificate");
    fs::write(&chain, made.cert.pem()).expect("the folder is there");
    fs::write(&key, made.signing_key.serialize_pem()).expect("the folder is there");
    told.edge.certificates.insert(GIVEN.to_owned(), CertificateSource::Files { chain, key });
    let worker = worker(&told, folder.path());
    prepare(&worker).expect("nobody has done anything yet");
    (worker, folder)
}

/// What becomes of the next look of root's, which has to end.
fn prepared(worker: &WorkerSettings, attack: &str) -> Result<(), String> {
    let (done, ended) = std::sync::mpsc::channel();
    let worker = worker.clone();
    std::thread::spawn(move || done.send(prepare(&worker).map(drop).map_err(|error| chain(&error))));
    ended.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{attack}: root waits"))
}

fn chain(error: &dyn std::error::Error) -> String {
    palisade_core::causes::chain(error)
}

/// Everything that the owner of the folders can read there.
fn readable(worker: &WorkerSettings) -> String {
    let files = [&worker.folder, &worker.state].into_iter().flat_map(|folder| fs::read_dir(folder).expect("a folder"));
    let files = files.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    files.map(|entry| fs::read_to_string(entry.path()).expect("text")).collect()
}

/// A host's key and certificate, in one file.
fn pair(folder: &Path) -> PathBuf {
    let key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::new(["bank.example".to_owned()]).expect("a name");
    let certificate = certificate.self_signed(&key).expect("a certificate");
    let path = folder.join("bank.pem");
    fs::write(&path, key.serialize_pem() + &certificate.pem()).expect("the folder is there");
    path
}

/// Another stack's authority.
fn authority(folder: &Path) -> PathBuf {
    let state = folder.join("other");
    fs::create_dir(&state).expect("the folder is there");
    LocalCa::open(&state, &[&"bank.example".to_owned()], None).expect("it is made");
    state.join(AUTHORITY)
}

#[test]
fn root_waits_for_no_pipe() {
    for file in [format!("{DOMAIN}.pem"), format!("{GIVEN}.pem"), "local-ca.pem".to_owned(), AUTHORITY.to_owned()] {
        let (worker, _folder) = stack();
        let folder = if file.starts_with("local-ca") { &worker.state } else { &worker.folder };
        let path = folder.join(&file);
        fs::remove_file(&path).expect("it was prepared");
        mkfifo(&path, Mode::S_IRWXU).expect("a pipe");
        match prepared(&worker, &file) {
            Ok(()) => assert!(fs::symlink_metadata(&path).expect("it is there").is_file(), "{file} is whole again"),
            // Signing anew with another root is nothing that happens by itself.
            Err(error) => assert!(file == AUTHORITY && error.contains("is no file"), "{file}: {error}"),
        }
    }
}

#[test]
fn no_link_makes_root_copy_a_hosts_private_key() {
    for (what, target) in [("a host's certificate", pair as fn(&Path) -> PathBuf), ("another authority", authority)] {
        for (how, put) in [
            ("a link", (|target, path| symlink(target, path)) as fn(&Path, &Path) -> std::io::Result<()>),
            ("a second name", |target, path| fs::hard_link(target, path)),
        ] {
            let (mut worker, folder) = stack();
            let target = target(folder.path());
            let secret = fs::read_to_string(&target).expect("it was made");
            let key = secret.split_once("-----END").expect("a key").0;
            let path = worker.state.join(AUTHORITY);
            fs::remove_file(&path).expect("it was prepared");
            put(&target, &path).expect("the folder is there");
            if how == "a second name" {
                if !nix::unistd::geteuid().is_root() {
                    skipped(how, "somebody else's file needs root");
                    continue;
                }
                worker.owner = Some((60_842, 60_842));
            }
            let error = prepared(&worker, what).expect_err("that isn't the stack's authority");
            assert!(error.contains(AUTHORITY), "{what} by {how}: {error}");
            fs::remove_file(&path).expect("it is there");
            assert!(!readable(&worker).contains(key), "{what} by {how}");
            assert_eq!(fs::read_to_string(&target).ok().as_ref(), Some(&secret), "{what} by {how}");
            // Once it is taken away, all is well.
            prepare(&worker).expect("another authority is made");
        }
    }
}

#[test]
fn a_link_in_the_place_of_a_certificate_is_replaced_and_where_it_leads_stays() {
    for file in [format!("{DOMAIN}.pem"), format!("{GIVEN}.pem")] {
        let (worker, folder) = stack();
        let path = worker.folder.join(&file);
        let whole = fs::read(&path).expect("it was prepared");
        let target = folder.path().join("target");
        fs::rename(&path, &target).expect("it is there");
        symlink(&target, &path).expect("the folder is there");
        prepared(&worker, &file).expect("there is another file");
        assert!(fs::symlink_metadata(&path).expect("it is there").is_file(), "{file}");
        assert_eq!(fs::read(&target).expect("it is there"), whole);
    }
}

#[test]
fn what_may_sign_nothing_or_everything_is_no_root_of_the_stack() {
    let (worker, folder) = stack();
    let everything = {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        key.serialize_pem() + &params.self_signed(&key).expect("a certificate").pem()
    };
    let nothing = fs::read_to_string(pair(folder.path())).expect("it was made");
    let own = fs::read_to_string(worker.state.join(AUTHORITY)).expect("it was prepared");
    let roots = fs::read(LocalCa::root_file(&worker.state)).expect("it was prepared");
    let with_lines_of_unix = format!("{everything}{nothing}").replace("\r\n", "\n");
    fs::write(worker.state.join(AUTHORITY), with_lines_of_unix + &own).expect("it is there");
    prepare(&worker).expect("its own root is there");
    assert_eq!(fs::read_to_string(worker.state.join(AUTHORITY)).expect("it is there"), own);
    assert_eq!(fs::read(LocalCa::root_file(&worker.state)).expect("it is there"), roots);
}
