//! Exported firewalls, loaded by the tools they are for, and tried by somebody on the internet.

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use crate::need_root;
use crate::scratch::Host;

const FILE: &str = r#"
name: shop
services:
  web:
    ports: ["8080:80", "127.0.0.1:9000:9000", "203.0.113.1:8081:81"]
    expose: ["5432"]
    x-palisade: { process: { command: [sleep, "1000"] } }
x-palisade:
  firewall: { allow: [443], backend: none }
"#;

/// Runs a tool on the scratch host.
fn tool(command: &[&str]) {
    let status = Command::new("timeout").arg("20").args(command).status().unwrap();
    assert!(status.success(), "{command:?}");
}

#[test]
fn exported_files_are_loaded_by_their_tools_and_let_in_what_is_published() {
    need_root!("export::exported_files_are_loaded_by_their_tools_and_let_in_what_is_published");
    let host = Host::new();
    host.write(FILE);
    let ports = [22, 443, 2222, 5432, 8080, 8081, 9000];
    let _listeners = ports.map(|port| TcpListener::bind(("0.0.0.0", port)).unwrap());
    assert_eq!(host.all_open_to_strangers(&ports), ports, "otherwise this shows nothing");
    let folder = host.folder.join("out");
    let out = folder.to_str().unwrap();
    for tool in ["nftables", "iptables", "firewalld"] {
        host.palisade(&["export", tool, "--ssh", "2222", "-o", out]).expect(0);
    }
    let mut names: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["rules.v4", "rules.v6", "shop.nft", "stack-shop.xml"]);

    let let_in = [443, 2222, 8080, 8081];
    let file = format!("{out}/shop.nft");
    tool(&["nft", "-f", &file]);
    assert_eq!(host.all_open_to_strangers(&ports), let_in);
    // The host still reaches itself, and answers to what it asks come in.
    assert!(std::net::TcpStream::connect("127.0.0.1:5432").is_ok());
    tool(&["nft", "delete", "table", "inet", "stack_shop"]);
    assert_eq!(host.all_open_to_strangers(&ports), ports);
    tool(&["iptables-restore", &format!("{out}/rules.v4")]);
    tool(&["ip6tables-restore", &format!("{out}/rules.v6")]);
    assert_eq!(host.all_open_to_strangers(&ports), let_in);
}

#[test]
fn what_is_printed_is_one_file_that_can_be_piped() {
    need_root!("export::what_is_printed_is_one_file_that_can_be_piped");
    let host = Host::new();
    host.write(FILE);
    let printed = |arguments: &[&str]| host.palisade(&[&["export"], arguments].concat()).expect(0).out;
    let nftables = printed(&["nftables"]);
    assert!(nftables.contains("# web, compose.yaml:5\n    tcp dport 8080 accept"), "{nftables}");
    assert!(
        nftables.contains("# SSH\n    tcp dport 22 accept"),
        "sshd isn't here, and nobody is to be locked out: {nftables}"
    );
    assert!(!nftables.contains("9000") && nftables.contains("What this can't do"), "{nftables}");
    let both = printed(&["iptables"]);
    assert_eq!(both.matches("COMMIT").count(), 2);
    assert_eq!(printed(&["iptables", "-4"]).matches("COMMIT").count(), 1);
    assert!(printed(&["iptables", "-6"]).contains("--icmpv6-type"));
    host.palisade(&["export", "nftables", "-4"]).expect(2);
    host.palisade(&["export", "pf"]).expect(2);
    host.palisade(&["export", "nftables", "--ssh", "0"]).expect(2);
}
