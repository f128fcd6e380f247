//! Which certificate a client is shown, and what happens when files are replaced or wrong.

use super::stack::serial;
use crate::support::{DOMAIN, Edge, certificate, settings};
use crate::upstream::Echo;
use palisade_core::edge::{Answer, CertificateSource, Order, TlsVersion, WorkerSettings};
use palisade_edge::acme::{copy_given, prepare};
use palisade_edge::local_ca::LocalCa;
use rcgen::{CertificateParams, KeyPair};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

/// What openssl says of a handshake, with more arguments.
fn handshake(at: SocketAddr, arguments: &[&str]) -> String {
    let output = Command::new("timeout")
        .args(["60", "openssl", "s_client", "-connect", &at.to_string()])
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .output()
        .expect("openssl is installed");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// For whom the certificate is that is shown.
fn shown(at: SocketAddr, arguments: &[&str]) -> Option<String> {
    let text = handshake(at, arguments);
    let begin = text.find("-----BEGIN CERTIFICATE-----")?;
    let file = text.get(begin..)?;
    let output = Command::new("sh")
        .args(["-c", "printf '%s' \"$0\" | openssl x509 -noout -ext subjectAltName", file])
        .output()
        .expect("openssl is installed");
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(names.split_once("DNS:")?.1.trim().to_owned())
}

fn write(folder: &Path, file: &str, names: &[&str], change: impl FnOnce(&mut CertificateParams)) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    change(&mut params);
    let key = KeyPair::generate().expect("a key");
    let text = key.serialize_pem() + &params.self_signed(&key).expect("a certificate").pem();
    std::fs::write(folder.join(file), text).expect("the folder is there");
}

#[test]
fn a_client_is_shown_the_certificate_of_the_name_that_it_asks_for() {
    let (mut told, folder) = settings();
    told.edge.certificates.insert("*.shop.example".to_owned(), CertificateSource::Local);
    told.edge.certificates.insert("api.shop.example".to_owned(), CertificateSource::Local);
    write(&told.certificates, "_.shop.example.pem", &["*.shop.example"], |_| {});
    certificate(&told.certificates, "api.shop.example");
    let edge = Edge::start((told, folder));
    let named = |name: &str| shown(edge.https(), &["-servername", name]);
    assert_eq!(named("shop.example").as_deref(), Some("shop.example"));
    assert_eq!(named("SHOP.example").as_deref(), Some("shop.example"));
    assert_eq!(named("api.shop.example").as_deref(), Some("api.shop.example"), "its own, not the wildcard's");
    assert_eq!(named("other.shop.example").as_deref(), Some("*.shop.example"));
    assert_eq!(named("a.b.shop.example").as_deref(), Some("shop.example"), "a wildcard is for one label");
    assert_eq!(named("unknown.example").as_deref(), Some("shop.example"), "the default");
    assert_eq!(shown(edge.https(), &["-noservername"]).as_deref(), Some("shop.example"));
}

#[test]
fn without_a_default_unknown_names_are_refused() {
    let (mut told, folder) = settings();
    told.edge.default_domain = None;
    let edge = Edge::start((told, folder));
    assert_eq!(shown(edge.https(), &["-servername", DOMAIN]).as_deref(), Some(DOMAIN));
    for arguments in [&["-noservername"][..], &["-servername", "unknown.example"]] {
        let text = handshake(edge.https(), arguments);
        assert!(text.contains("no peer certificate available") && text.contains("alert"), "{text}");
    }
}

#[test]
fn versions_of_tls_are_spoken_from_the_lowest_on() {
    for (minimum, old, older) in [(TlsVersion::V1_2, true, false), (TlsVersion::V1_3, false, false)] {
        let (mut told, folder) = settings();
        told.edge.tls_minimum = minimum;
        let edge = Edge::start((told, folder));
        let speaks = |version: &str| shown(edge.https(), &["-servername", DOMAIN, version]).is_some();
        assert!(speaks("-tls1_3"));
        assert_eq!(speaks("-tls1_2"), old, "{minimum:?}");
        assert_eq!(speaks("-tls1_1"), older, "{minimum:?}");
    }
}

#[test]
fn sessions_are_resumed_by_any_worker_in_both_versions() {
    let (mut told, folder) = settings();
    told.workers = 2;
    let edge = Edge::start((told, folder));
    let folder = crate::support::Folder::new();
    for version in ["-tls1_2", "-tls1_3"] {
        let file = folder.path().join(version).to_string_lossy().into_owned();
        // A ticket of TLS 1.3 comes after the handshake, so the connection has to last until then.
        let script = r#"printf 'GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n' |
            timeout 60 openssl s_client -quiet -connect "$0" -servername shop.example "$1" -sess_out "$2""#;
        let first = Command::new("sh")
            .args(["-c", script, &edge.https().to_string(), version, &file])
            .output()
            .expect("openssl is installed");
        assert!(Path::new(&file).exists(), "{}", String::from_utf8_lossy(&first.stderr));
        // The kernel chooses the worker: whichever it is, it knows the session.
        for _ in 0..6 {
            let text = handshake(edge.https(), &["-servername", DOMAIN, version, "-sess_in", &file]);
            assert!(text.contains("Reused, TLSv"), "{version}: {text}");
        }
    }
}

#[test]
fn what_is_said_after_a_handshake_goes_out_with_the_first_answer_and_holds_up_nothing() {
    let echo = Echo::start();
    let edge = Edge::with(settings(), &[echo.address]);
    let folder = crate::support::Folder::new();
    // Whoever resumes a session of TLS 1.2 gets an answer as the first thing after its handshake, whoever wants no tickets of TLS 1.3, too.
    let script = r#"printf 'GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n' |
        timeout 20 openssl s_client -ign_eof -connect "$0" -servername shop.example "$@""#;
    for version in ["-tls1_2", "-tls1_3"] {
        let file = folder.path().join(version).to_string_lossy().into_owned();
        for arguments in [&["-sess_out", &file][..], &["-sess_in", &file], &["-no_ticket"]] {
            let mut openssl = Command::new("sh");
            openssl.args(["-c", script, &edge.https().to_string(), version]).args(arguments);
            let output = openssl.output().expect("openssl is installed");
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("body: 0\n"), "{version} {arguments:?}: {said}");
            let resumed = arguments[0] == "-sess_in";
            assert_eq!(said.contains("Reused, TLSv"), resumed, "{version} {arguments:?}: {said}");
        }
    }
}

#[test]
fn a_file_that_is_wrong_keeps_the_last_good_certificate_and_says_why() {
    let (told, folder) = settings();
    let edge = Edge::start((told, folder));
    let own = edge.settings.certificates.clone();
    let before = serial(edge.https(), DOMAIN);
    let refused = |what: &str| match edge.order(&Order::ReloadCertificates) {
        Answer::Refused(text) => {
            assert_eq!(serial(edge.https(), DOMAIN), before, "{what}");
            text.replace(&*own.to_string_lossy(), "CERTIFICATES")
        }
        other => panic!("{what}: {other:?}"),
    };
    let good = std::fs::read_to_string(own.join("shop.example.pem")).expect("it is there");
    let at = good.find("-----BEGIN CERTIFICATE-----").expect("a certificate");
    let (key, chain) = good.split_at(at);
    let mut said = Vec::new();
    let mut wrong = |what: &'static str, text: &str| {
        std::fs::write(own.join("shop.example.pem"), text).expect("the folder is there");
        said.push(format!("{what}: {}", refused(what)));
    };
    wrong("empty", "");
    wrong("no certificate", key);
    wrong("no key", chain);
    wrong("half written", &good[..good.len() / 2]);
    let other = KeyPair::generate().expect("a key").serialize_pem();
    wrong("another key", &format!("{other}{chain}"));
    wrong("not a certificate", &format!("{key}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"));
    write(&own, "shop.example.pem", &["other.example", "www.other.example"], |_| {});
    said.push(format!("other names: {}", refused("other names")));
    write(&own, "shop.example.pem", &[], |params| params.subject_alt_names.clear());
    said.push(format!("no names: {}", refused("no names")));
    write(&own, "shop.example.pem", &[DOMAIN], |params| {
        params.not_before = (SystemTime::now() - Duration::from_secs(90 * 86_400)).into();
        params.not_after = (SystemTime::now() - Duration::from_secs(3 * 86_400 + 3600)).into();
    });
    said.push(format!("expired: {}", refused("expired")));
    write(&own, "shop.example.pem", &[DOMAIN], |params| {
        params.not_before = (SystemTime::now() + Duration::from_secs(4 * 86_400 + 3600)).into();
    });
    said.push(format!("not yet: {}", refused("not yet")));
    std::fs::remove_file(own.join("shop.example.pem")).expect("it is there");
    said.push(format!("gone: {}", refused("gone")));
    insta::assert_snapshot!(said.join("\n"));
    // A good one again.
    certificate(&own, DOMAIN);
    assert_eq!(edge.order(&Order::ReloadCertificates), Answer::Done);
    assert_ne!(serial(edge.https(), DOMAIN), before);
}

#[test]
fn an_edge_starts_without_a_certificate_and_takes_the_first() {
    let (told, folder) = settings();
    let file = told.certificates.join("shop.example.pem");
    std::fs::remove_file(&file).expect("the settings come with one");
    let edge = Edge::start((told, folder));
    assert_eq!(shown(edge.https(), &["-servername", DOMAIN]), None);
    certificate(&edge.settings.certificates, DOMAIN);
    assert_eq!(edge.order(&Order::ReloadCertificates), Answer::Done);
    assert_eq!(shown(edge.https(), &["-servername", DOMAIN]).as_deref(), Some(DOMAIN));
}

pub(super) fn worker(told: &palisade_core::edge::Settings, folder: &Path) -> WorkerSettings {
    WorkerSettings::new(&told.edge, told.certificates.clone(), folder.join("state"))
}

#[test]
fn the_stacks_own_authority_signs_for_the_stacks_domains_only() {
    let (mut told, folder) = settings();
    told.edge.certificates.insert("*.shop.example".to_owned(), CertificateSource::Local);
    let told_worker = worker(&told, folder.path());
    prepare(&told_worker).expect("certificates are signed");
    let root = LocalCa::root_file(&told_worker.state);
    let kept = std::fs::read(told.certificates.join("shop.example.pem")).expect("it was signed");
    prepare(&told_worker).expect("certificates are kept");
    assert_eq!(std::fs::read(told.certificates.join("shop.example.pem")).expect("it is there"), kept);
    let edge = Edge::start((told, folder));
    for name in [DOMAIN, "api.shop.example"] {
        let text = handshake(
            edge.https(),
            &[
                "-servername",
                name,
                "-verify_hostname",
                name,
                "-verify_return_error",
                "-CAfile",
                &root.to_string_lossy(),
            ],
        );
        assert!(text.contains("Verify return code: 0 (ok)"), "{text}");
    }
    // Whoever trusts it for a rehearsal trusts it for nothing else.
    let names = [DOMAIN.to_owned(), "*.shop.example".to_owned()];
    let authority = LocalCa::open(&told_worker.state, &names.iter().collect::<Vec<_>>(), None).expect("it is there");
    let foreign = told_worker.state.join("foreign.pem");
    std::fs::write(&foreign, authority.sign("bank.example").expect("it is a name")).expect("the folder is there");
    let output = Command::new("openssl")
        .arg("verify")
        .arg("-CAfile")
        .arg(&root)
        .arg(&foreign)
        .output()
        .expect("openssl is installed");
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && text.contains("permitted subtree violation"), "{text}");
    // Domains that come later get another root; whoever trusts the first one goes on.
    let before = std::fs::read_to_string(&root).expect("it is there");
    let mut more = told_worker;
    more.certificates.insert("bank.example".to_owned(), CertificateSource::Local);
    prepare(&more).expect("certificates are signed");
    let both = std::fs::read_to_string(&root).expect("it is there");
    assert!(both.starts_with(&before) && both.matches("BEGIN CERTIFICATE").count() == 2, "{both}");
    assert_eq!(std::fs::read(more.folder.join("shop.example.pem")).expect("it is there"), kept);
    let verify = |file: &str| {
        let output =
            Command::new("openssl").args(["verify", "-CAfile"]).args([&root, &more.folder.join(file)]).output();
        let output = output.expect("openssl is installed");
        assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
    };
    verify("shop.example.pem");
    verify("bank.example.pem");
    // The same once more changes nothing.
    prepare(&more).expect("certificates are kept");
    assert_eq!(std::fs::read_to_string(&root).expect("it is there"), both);
}

#[test]
fn given_files_are_put_together_and_checked() {
    let (mut told, folder) = settings();
    let (chain, key) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
    let source = CertificateSource::Files { chain: chain.clone(), key: key.clone() };
    told.edge.certificates.insert(DOMAIN.to_owned(), source);
    let made = rcgen::generate_simple_self_signed([DOMAIN.to_owned()]).expect("a certificate");
    std::fs::write(&chain, made.cert.pem()).expect("the folder is there");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("the folder is there");
    let told_worker = worker(&told, folder.path());
    prepare(&told_worker).expect("they fit");
    let whole = made.signing_key.serialize_pem() + &made.cert.pem();
    assert_eq!(std::fs::read_to_string(told.certificates.join("shop.example.pem")).expect("it is there"), whole);
    std::fs::write(&key, KeyPair::generate().expect("a key").serialize_pem()).expect("the folder is there");
    // What was there is there, and good enough to start with.
    let wrong = prepare(&told_worker).expect("there is the copy");
    assert!(wrong[0].text().contains("is not that of its first certificate"), "{wrong:?}");
    assert!(wrong[0].text().ends_with("; the certificate from before is served on"), "{wrong:?}");
    assert_eq!(std::fs::read_to_string(told.certificates.join("shop.example.pem")).expect("it is there"), whole);
    std::fs::remove_file(told.certificates.join("shop.example.pem")).expect("it is there");
    let error = prepare(&told_worker).expect_err("they don't fit");
    let cause = std::error::Error::source(&error).expect("it has a cause").to_string();
    assert_eq!(error.to_string(), "the certificate given for shop.example");
    assert!(cause.contains("is not that of its first certificate"), "{cause}");
}

/// Two domains with given files, of which the first is in place.
struct Given {
    worker: WorkerSettings,
    folder: crate::support::Folder,
}

impl Given {
    fn new() -> Self {
        let (mut told, folder) = settings();
        told.edge.certificates.clear();
        for domain in ["a.example", "b.example"] {
            let [chain, key] = ["pem", "key"].map(|end| folder.path().join(format!("{domain}.{end}")));
            told.edge.certificates.insert(domain.to_owned(), CertificateSource::Files { chain, key });
        }
        let worker = worker(&told, folder.path());
        Self { worker, folder }
    }

    /// From then on, in days, for thirty.
    fn give(&self, domain: &str, begin_days: i64) {
        let mut params = CertificateParams::new([domain.to_owned()]).expect("a name");
        let at = |days: i64| match u64::try_from(days) {
            Ok(days) => SystemTime::now() + Duration::from_secs(days * 86_400),
            Err(_) => SystemTime::now() - Duration::from_secs(days.unsigned_abs() * 86_400),
        };
        (params.not_before, params.not_after) = (at(begin_days).into(), at(begin_days + 30).into());
        let key = KeyPair::generate().expect("a key");
        let chain = params.self_signed(&key).expect("a certificate").pem();
        std::fs::write(self.folder.path().join(format!("{domain}.pem")), chain).expect("the folder is there");
        std::fs::write(self.folder.path().join(format!("{domain}.key")), key.serialize_pem()).expect("the same");
    }

    /// The copy is what is given now.
    fn is_copied(&self, domain: &str) -> bool {
        let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let given = ["key", "pem"].map(|end| read(&self.folder.path().join(format!("{domain}.{end}")))).concat();
        read(&self.worker.folder.join(format!("{domain}.pem"))) == given
    }
}

#[test]
fn a_given_file_that_is_spoilt_holds_up_no_other() {
    let given = Given::new();
    given.give("b.example", -1);
    // The first domain has nothing that could be served, which is an error only at the start, and there as well after all others are in place.
    let error = prepare(&given.worker).expect_err("nothing is given for a.example");
    assert_eq!(error.to_string(), "the certificate given for a.example");
    assert!(given.is_copied("b.example"));
    given.give("a.example", -1);
    assert!(prepare(&given.worker).expect("both are there").is_empty());
    std::fs::remove_file(given.folder.path().join("a.example.key")).expect("it was given");
    given.give("b.example", -1);
    for _ in 0..2 {
        let wrong = copy_given(&given.worker).expect("the folder is there");
        assert_eq!(wrong.iter().map(|wrong| wrong.domain.as_str()).collect::<Vec<_>>(), ["a.example"]);
        assert!(wrong[0].text().contains("a.example.key") && wrong[0].has_copy, "{}", wrong[0].text());
        assert!(given.is_copied("b.example"));
    }
}

#[test]
fn a_given_certificate_that_clients_refuse_replaces_none_that_they_take() {
    let given = Given::new();
    given.give("a.example", -40);
    given.give("b.example", -1);
    // It is served nevertheless, as there is no other.
    let wrong = prepare(&given.worker).expect("there is something to serve");
    assert!(given.is_copied("a.example") && given.is_copied("b.example"));
    assert_eq!(wrong.len(), 1);
    let text = wrong[0].text();
    assert!(text.contains("a.example.pem ended at ") && text.ends_with("Z: clients refuse it"), "{text}");
    // Said in the same words later.
    assert_eq!(copy_given(&given.worker).expect("the folder is there")[0].text(), text);
    for begin_days in [-40, 2] {
        given.give("b.example", begin_days);
        let wrong = copy_given(&given.worker).expect("the folder is there");
        assert!(wrong[1].text().ends_with("; the certificate from before is served on"), "{}", wrong[1].text());
        assert!(!given.is_copied("b.example"));
    }
    given.give("a.example", 0);
    given.give("b.example", 0);
    assert!(copy_given(&given.worker).expect("the folder is there").is_empty());
    assert!(given.is_copied("a.example") && given.is_copied("b.example"));
}
