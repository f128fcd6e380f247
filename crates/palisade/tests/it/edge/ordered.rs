//! Certificates are ordered while the stack runs: the authority and the name server are out on the internet.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::shop::APP;
use crate::need_root;
use crate::scratch::{HOST, Host, PATIENCE, Running, STRANGER, patiently};
use crate::support::{PALISADE, skipped};

const NAME: &str = "edge::ordered::a_certificate_is_ordered_through_the_edge_and_served_by_it";

/// Debian's authority for tests and its name server, for which every domain is the scratch host.
struct Authority([Child; 2]);

impl Authority {
    fn start(host: &Host) -> Self {
        let folder = &host.folder;
        let openssl = |arguments: &str| {
            let mut command = Command::new("timeout");
            let made = command.args(["30", "openssl"]).args(arguments.split(' ')).current_dir(folder).output().unwrap();
            assert!(made.status.success(), "{made:?}");
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        openssl(&format!("req -x509 {key} -days 2 -subj /CN=authority -keyout ca.key -out ca.pem"));
        openssl(&format!("req {key} -subj /CN=pebble -keyout api.key -out api.csr"));
        fs::write(folder.join("api.ext"), format!("subjectAltName=IP:{STRANGER}\n")).unwrap();
        openssl("x509 -req -in api.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile api.ext -out api.pem");
        let settings = serde_json::json!({ "pebble": {
            "listenAddress": format!("{STRANGER}:14000"), "managementListenAddress": "127.0.0.1:15000",
            "certificate": folder.join("api.pem"), "privateKey": folder.join("api.key"),
            "httpPort": 80, "tlsPort": 443, "ocspResponderURL": "", "externalAccountBindingRequired": false,
        }});
        fs::write(folder.join("pebble.json"), settings.to_string()).unwrap();
        let start = |command: &mut Command| {
            let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            host.internet.run(|| quiet.spawn()).unwrap().unwrap()
        };
        let names = format!(
            "-dns01 {STRANGER}:53 -http01  -https01  -tlsalpn01  -management 127.0.0.1:8055 -defaultIPv4 {HOST} -defaultIPv6 "
        );
        let names = start(Command::new("pebble-challtestsrv").args(names.split(' ')));
        let mut pebble = Command::new("pebble");
        pebble
            .args(["-dnsserver", &format!("{STRANGER}:53"), "-strict=false", "-config"])
            .arg(folder.join("pebble.json"));
        let pebble = start(pebble.env("PEBBLE_VA_NOSLEEP", "1"));
        Self([names, pebble])
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_certificate_is_ordered_through_the_edge_and_served_by_it() {
    need_root!("edge::ordered::a_certificate_is_ordered_through_the_edge_and_served_by_it");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing = ["pebble", "pebble-challtestsrv", "openssl"]
        .into_iter()
        .find(|name| !std::env::split_paths(&path).any(|folder| folder.join(name).exists()));
    if let Some(name) = missing {
        return skipped(NAME, &format!("{name} isn't installed"));
    }
    let host = Host::new();
    let _authority = Authority::start(&host);
    let acme = format!(
        "certificates: {{default: acme}}\n    acme: {{directory: [{{url: \"https://{STRANGER}:14000/dir\", root: ./ca.pem}}]}}"
    );
    host.write(&APP.replace("certificates: {default: local}", &acme));
    // The scratch host has a name server of its own; nobody else sees it.
    fs::write(host.folder.join("resolv.conf"), format!("nameserver {STRANGER}\n")).unwrap();
    let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
    let resolv = host.folder.join("resolv.conf");
    let wrapper = ["unshare", "--mount", "sh", "-c", script, resolv.to_str().unwrap()];
    Running::start(host.wrapped(&wrapper, Path::new(PALISADE), &["up", "--wait"])).end(PATIENCE).expect(0);
    // Whatever is asked from here on is asked where the agent is.
    let agent = host.agent().unwrap().to_string();
    let folder = format!("--wd={}", host.folder.display());
    let said = |arguments: &[&str]| {
        let wrapper = ["nsenter", "-t", &agent, "-m", &folder];
        let ran = Running::start(host.wrapped(&wrapper, Path::new(PALISADE), arguments)).end(PATIENCE);
        (ran.code, format!("{}{}", ran.out, ran.err))
    };
    let began = std::time::Instant::now();
    patiently("the certificate", || {
        assert!(
            began.elapsed() < PATIENCE / 2,
            "{}{}",
            said(&["events"]).1,
            said(&["logs", "palisade-certificates"]).1
        );
        let mut command = Command::new("timeout");
        command.args(["30", "curl", "-skv", "--max-time", "20", "--resolve", &format!("shop.example:443:{HOST}")]);
        let output = host.internet.run(|| command.arg("https://shop.example/").output()).unwrap().unwrap();
        let about = String::from_utf8_lossy(&output.stderr);
        (output.stdout.starts_with(b"version 1 ") && about.contains("issuer: CN=Pebble")).then_some(())
    });
    patiently("its events", || {
        let (_, events) = said(&["events"]);
        (events.contains("certificate_obtained") && events.contains("certificate_served")).then_some(())
    });
    assert_eq!(said(&["down", "--volumes", "--yes"]).0, Some(0));
}
