//! Given certificates that change, and an edge that doesn't answer.

use std::fs;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::shop::{APP, Shop};
use crate::need_root;
use crate::scratch::{HOST, Host, patiently};

/// Makes a certificate that signs itself, and its key, in the folder of the file.
fn make_certificate(host: &Host, domain: &str) {
    let made = Command::new("timeout")
        .args(["30", "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-days", "30", "-subj", "/CN=given", "-addext", &format!("subjectAltName=DNS:{domain}")])
        .args(["-keyout", "new.key", "-out", "new.pem"])
        .current_dir(&host.folder)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    for name in ["key", "pem"] {
        fs::rename(host.folder.join(format!("new.{name}")), host.folder.join(format!("given.{name}"))).unwrap();
    }
}

#[test]
fn a_given_certificate_that_is_replaced_is_served_without_an_up() {
    need_root!("edge::bad_days::a_given_certificate_that_is_replaced_is_served_without_an_up");
    let host = Host::new();
    make_certificate(&host, "shop.example");
    host.write(&APP.replace("default: local", "default: {chain: ./given.pem, key: ./given.key}"));
    host.up();
    let shop = Shop(host);
    let believed = || {
        let root = shop.0.folder.join("given.pem");
        let mut command = Command::new("timeout");
        command.args(["30", "curl", "-sS", "--max-time", "20", "--cacert"]).arg(root);
        command.args(["--resolve", &format!("shop.example:443:{HOST}"), "https://shop.example/"]);
        let output = shop.0.internet.run(|| command.output()).unwrap().unwrap();
        output.stdout.starts_with(b"version 1 ")
    };
    assert!(believed());
    // Nothing renews what was given, so nobody has to run for it.
    assert!(!shop.0.palisade(&["ps"]).expect(0).out.contains("palisade-certificates"));
    let given = || fs::read(shop.0.folder.join("given.pem")).unwrap();
    let before = given();
    make_certificate(&shop.0, "shop.example");
    assert_ne!(given(), before);
    patiently("the new certificate", || believed().then_some(()));
    assert_eq!(shop.edges(), ["palisade-edge.1"]);
    shop.0.down();
}

#[test]
fn an_update_isnt_done_while_the_edge_doesnt_answer() {
    need_root!("edge::bad_days::an_update_isnt_done_while_the_edge_doesnt_answer");
    let shop = Shop::new(APP);
    let init = shop.0.pid("palisade-edge.1").unwrap();
    let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap();
    let edge = Pid::from_raw(children.split_whitespace().next().unwrap().parse().unwrap());
    kill(edge, Signal::SIGSTOP).unwrap();
    let ran = shop.up(&APP.replace("VERSION: \"1\"", "VERSION: \"2\""));
    kill(edge, Signal::SIGCONT).unwrap();
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(ran.err.contains("the edge can't take new upstreams"), "{}", ran.err);
    assert!(ran.err.contains("what was done before is undone"), "{}", ran.err);
    patiently("the first version", || {
        let (code, text) = shop.curl(&["https://shop.example/"]);
        (code == Some(0) && text.starts_with("version 1 ")).then_some(())
    });
    patiently("a healthy edge", || {
        let ps = shop.0.ps();
        let all = ps["instances"].as_array()?.iter();
        all.filter(|seen| seen["instance"] == "palisade-edge.1").find(|seen| seen["health"] == "healthy").map(drop)
    });
    shop.up(&APP.replace("VERSION: \"1\"", "VERSION: \"3\"")).expect(0);
    let (code, text) = shop.curl(&["https://shop.example/"]);
    assert!(code == Some(0) && text.starts_with("version 3 "), "{text}");
    shop.0.down();
}
