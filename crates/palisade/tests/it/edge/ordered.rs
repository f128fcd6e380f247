//! Certificates are ordered while the stack runs: the authority and the name server are out on the internet.

use std::process::Command;

use super::certificates_authority::{Authority, Ordering};
use crate::need_root;
use crate::scratch::{HOST, Host, PATIENCE, patiently};

const NAME: &str = "edge::ordered::a_certificate_is_ordered_through_the_edge_and_served_by_it";

#[test]
fn a_certificate_is_ordered_through_the_edge_and_served_by_it() {
    need_root!("edge::ordered::a_certificate_is_ordered_through_the_edge_and_served_by_it");
    if !Authority::is_here(NAME) {
        return;
    }
    let host = Host::new();
    let _authority = Authority::start(&host, 86_400);
    let stack = Ordering::up(&host, 14_000);
    let began = std::time::Instant::now();
    patiently("the certificate", || {
        assert!(
            began.elapsed() < PATIENCE * 2 / 3,
            "{}{}",
            stack.palisade(&["events"]).1,
            stack.palisade(&["logs", "palisade-certificates"]).1
        );
        let mut command = Command::new("timeout");
        command.args(["30", "curl", "-skv", "--max-time", "20", "--resolve", &format!("shop.example:443:{HOST}")]);
        let output = host.internet.run(|| command.arg("https://shop.example/").output()).unwrap().unwrap();
        let about = String::from_utf8_lossy(&output.stderr);
        (output.stdout.starts_with(b"version 1 ") && about.contains("issuer: CN=Pebble")).then_some(())
    });
    patiently("its events", || {
        let (_, events) = stack.palisade(&["events"]);
        (events.contains("certificate_obtained") && events.contains("certificate_served")).then_some(())
    });
    stack.down();
}
