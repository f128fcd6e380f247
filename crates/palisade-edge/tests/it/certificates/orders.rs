//! A certificate is obtained, by either challenge, and it is the one that clients are shown.

use super::pebble::{self, Authority};
use super::stack::Stack;
use crate::support::DOMAIN;
use palisade_core::edge::{Challenge, ExternalAccount};
use palisade_edge::acme::Outcome;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions().mode() & 0o7777
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder is there").flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A client that trusts the authority, and nobody else, trusts the domain.
fn trusted(stack: &Stack, authority: &Authority) {
    let https = stack.edge.https();
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--noproxy", "*", "--output", "/dev/null", "--cacert"])
        .arg(authority.issued_root())
        .args(["--connect-to", &format!("::{}:{}", https.ip(), https.port()), &format!("https://{DOMAIN}/")])
        .output()
        .expect("curl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_certificate_is_obtained_by_http_01_and_served() {
    if !pebble::is_here("http-01") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    let authority = Authority::start(stack.wish());
    stack.order_from(vec![authority.directory()]);
    assert_eq!(stack.served(), "", "there is no certificate yet");
    stack.obtain();
    trusted(&stack, &authority);
    // Nobody but the edge's user reads keys, and nothing of the order is left behind.
    assert_eq!(mode(&stack.certificate()), 0o600);
    assert_eq!(mode(&stack.worker.folder), 0o700);
    assert_eq!(mode(&stack.worker.state), 0o700);
    let accounts = entries(&stack.worker.state.join("accounts"));
    assert_eq!(accounts.len(), 1);
    assert_eq!(mode(&stack.worker.state.join("accounts").join(&accounts[0])), 0o600);
    assert_eq!(entries(&stack.worker.folder), ["http-01", "shop.example.pem", "tls-alpn-01"]);
    assert_eq!(entries(&stack.worker.folder.join("http-01")), [""; 0]);
    assert_eq!(stack.pending(), serde_json::Value::Null);
    assert_eq!(stack.kinds(), ["certificate_obtained", "certificate_served"]);
    // It is kept, and the authority isn't asked again.
    let (asked, served) = (authority.log().len(), stack.served());
    let outcome = stack.look();
    let Outcome::Kept { renew_s } = outcome else { panic!("{outcome:?}") };
    let now_s = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    assert!((now_s + 50_000..now_s + 60_000).contains(&renew_s), "two thirds of a day: {renew_s} at {now_s}");
    assert!(!authority.log()[asked..].contains("/order"), "{}", &authority.log()[asked..]);
    assert_eq!(stack.served(), served);
}

#[test]
fn a_certificate_is_obtained_by_tls_alpn_01_and_served() {
    if !pebble::is_here("tls-alpn-01") {
        return;
    }
    let mut stack = Stack::new(Challenge::TlsAlpn01);
    let authority = Authority::start(stack.wish());
    stack.order_from(vec![authority.directory()]);
    stack.obtain();
    trusted(&stack, &authority);
    assert_eq!(entries(&stack.worker.folder.join("tls-alpn-01")), [""; 0]);
}

#[test]
fn an_authority_that_mislays_nonces_is_asked_until_it_answers() {
    if !pebble::is_here("bad nonces") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    let mut wish = stack.wish();
    // Of each hundred. The library asks three times, so three in a row end a try; there are five tries.
    wish.bad_nonces = 15;
    let authority = Authority::start(wish);
    stack.order_from(vec![authority.directory()]);
    stack.obtain();
}

#[test]
fn an_external_account_is_bound() {
    if !pebble::is_here("external accounts") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    let mut wish = stack.wish();
    wish.external = Some(("kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"));
    let authority = Authority::start(wish.clone());
    let mut directory = authority.directory();
    stack.order_from(vec![directory.clone()]);
    let text = stack.fail();
    assert!(text.contains("can't make an account") && text.contains("externalAccountRequired"), "{text}");
    // A key that isn't there, then the right one.
    let key_file = stack.worker.state.join("eab");
    directory.eab = Some(ExternalAccount { key_id: "kid-1".to_owned(), key_file: key_file.clone() });
    stack.order_from(vec![directory]);
    stack.wait_over();
    let text = stack.fail();
    assert!(text.contains("can't read the account's key (eab)"), "{text}");
    std::fs::write(&key_file, format!("{}\n", wish.external.expect("it was set").1)).expect("the folder is there");
    stack.wait_over();
    stack.obtain();
}

#[test]
fn another_authority_is_asked_when_the_first_is_away_or_refuses() {
    if !pebble::is_here("several authorities") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    let mut refuses = stack.wish();
    refuses.blocked = vec![DOMAIN];
    let (mut away, refuses, issues) =
        (Authority::start(stack.wish()), Authority::start(refuses), Authority::start(stack.wish()));
    away.down();
    stack.order_from(vec![away.directory(), refuses.directory(), issues.directory()]);
    stack.obtain();
    trusted(&stack, &issues);
    let expected = ["certificate_refused", "certificate_refused", "certificate_obtained", "certificate_served"];
    assert_eq!(stack.kinds(), expected);
    let events = stack.events();
    let said = |at: usize| events[at]["details"]["error"].as_str().expect("an error").to_owned();
    assert!(said(0).contains("can't connect to"), "{}", said(0));
    assert!(said(1).contains("rejectedIdentifier"), "{}", said(1));
}

#[test]
fn a_wildcard_is_not_ordered() {
    let mut stack = Stack::new(Challenge::Http01);
    let source = stack.worker.certificates.remove(DOMAIN).expect("it is there");
    stack.worker.certificates.insert("*.shop.example".to_owned(), source);
    let outcomes = palisade_edge::acme::ensure(&stack.worker).expect("its folders can be used");
    let Some(Outcome::Impossible(text)) = outcomes.get("*.shop.example") else { panic!("{outcomes:?}") };
    assert!(text.contains("dns-01"), "{text}");
}
