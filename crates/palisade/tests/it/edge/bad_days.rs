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
    make_certificate_in(host, domain, "given");
}

/// The same in these files.
fn make_certificate_in(host: &Host, domain: &str, name: &str) {
    let made = Command::new("timeout")
        .args(["30", "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-days", "30", "-subj", "/CN=given", "-addext", &format!("subjectAltName=DNS:{domain}")])
        .args(["-keyout", "new.key", "-out", "new.pem"])
        .current_dir(&host.folder)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    for end in ["key", "pem"] {
        fs::rename(host.folder.join(format!("new.{end}")), host.folder.join(format!("{name}.{end}"))).unwrap();
    }
}

/// Makes a domain's certificate of another one with the same key, which ended years ago.
fn end_certificate(host: &Host, domain: &str) {
    make_certificate_in(host, domain, domain);
    let config = "[ca]\ndefault_ca = own\n[own]\ndatabase = index\nserial = serial\nnew_certs_dir = .\ndefault_md = sha256\n\
                  policy = any\ncopy_extensions = copy\n[any]\ncommonName = optional\n";
    for (name, text) in [("ca.conf", config), ("index", ""), ("serial", "01\n")] {
        fs::write(host.folder.join(name), text).unwrap();
    }
    let script = "timeout 30 openssl x509 -x509toreq -copy_extensions copy -in $0.pem -signkey $0.key -out ended.csr && \
                  timeout 30 openssl ca -batch -notext -config ca.conf -selfsign -keyfile $0.key -in ended.csr \
                  -startdate 20200101000000Z -enddate 20200201000000Z -out ended.pem && mv ended.pem $0.pem";
    let ended = Command::new("sh").args(["-c", script, domain]).current_dir(&host.folder).output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
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
fn a_given_certificate_that_is_spoilt_is_told_of_once_and_holds_up_no_other() {
    need_root!("edge::bad_days::a_given_certificate_that_is_spoilt_is_told_of_once_and_holds_up_no_other");
    let host = Host::new();
    // The first by name is the one that is spoilt.
    let domains = ["a.example", "shop.example"];
    for domain in domains {
        make_certificate_in(&host, domain, domain);
    }
    let given = |domain: &str| format!("{domain}: {{chain: ./{domain}.pem, key: ./{domain}.key}}");
    let certificates = format!("certificates: {{{}}}", domains.map(given).join(", "));
    let routes = "- domain: [shop.example, a.example]\n";
    host.write(
        &APP.replace("certificates: {default: local}", &certificates).replace("- domain: shop.example\n", routes),
    );
    host.up();
    let believed = |domain: &str| {
        let mut command = Command::new("timeout");
        command
            .args(["30", "curl", "-sS", "--max-time", "20", "--cacert"])
            .arg(host.folder.join(format!("{domain}.pem")));
        command.args(["--resolve", &format!("{domain}:443:{HOST}"), &format!("https://{domain}/")]);
        let output = host.internet.run(|| command.output()).unwrap().unwrap();
        output.stdout.starts_with(b"version 1 ")
    };
    let failed = || {
        // It needs no file that the stack names.
        let events = host.palisade(&["events", "--format", "json"]).expect(0).out;
        let events = events.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        events.filter(|event| event["kind"].as_str().is_some_and(|kind| kind.ends_with("failed"))).collect::<Vec<_>>()
    };
    let renewed = |domain: &str| {
        let file = host.folder.join(format!("{domain}.pem"));
        let before = fs::read(&file).ok();
        make_certificate_in(&host, domain, domain);
        assert_ne!(fs::read(&file).ok(), before, "it is another one");
        patiently("the new certificate", || believed(domain).then_some(()));
    };
    assert!(domains.iter().all(|domain| believed(domain)));
    fs::remove_file(host.folder.join("a.example.key")).unwrap();
    renewed("shop.example");
    assert!(believed("a.example"), "the copy is served on");
    let said = failed();
    assert_eq!(said.len(), 1, "{said:?}");
    let (details, text) = (&said[0]["details"], said[0]["details"]["text"].to_string());
    assert_eq!((&details["domain"], &details["why"]), (&"a.example".into(), &"given".into()), "{details}");
    assert!(text.contains("a.example.key") && text.contains("served on"), "{text}");
    // One that has ended is told of once as well, however long ago that is by then.
    end_certificate(&host, "a.example");
    patiently("a word about it", || (failed().len() == 2).then_some(()));
    renewed("shop.example");
    let said = failed();
    assert!(said.len() == 2 && said[1]["details"]["text"].to_string().contains("ended at"), "{said:?}");
    // What is mended is served.
    renewed("a.example");
    assert_eq!(failed().len(), 2);
    host.down();
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
