//! How long the twin takes with large rulesets. Needs root.
//!
//! Prints a table; with an argument, of the rulesets whose name has it. The host and the internet are network namespaces without names: nothing outlives this.

use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use palisade_host::link::{self, VethEnd};
use palisade_host::netns::Netns;
use palisade_host::twin::{Twin, TwinSpec};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn load(program: &[&str], rules: &str) -> Outcome<()> {
    let mut child = Command::new(program[0]).args(&program[1..]).stdin(Stdio::piped()).spawn()?;
    child.stdin.take().ok_or("no input")?.write_all(rules.as_bytes())?;
    if child.wait()?.success() { Ok(()) } else { Err(format!("{program:?} failed").into()) }
}

/// Sources that aren't the probe's: each of these rules is looked at for each packet, and none matches.
fn strangers(count: u32, rule: impl Fn(String) -> String) -> String {
    (0..count).map(|n| rule(format!("100.{}.{}.{}", 64 + (n >> 16), (n >> 8) & 255, n & 255))).collect()
}

fn nft_rules(count: u32) -> String {
    let rules = strangers(count, |source| format!("ip saddr {source} tcp dport 22 drop\n"));
    format!(
        "table inet t {{ chain input {{ type filter hook input priority 0; policy drop;\n{rules}tcp dport {{ 22, 443 }} accept\n}}\n}}\n"
    )
}

fn iptables_rules(count: u32) -> String {
    let rules =
        strangers(count, |source| format!("-A INPUT -s {source}/32 -p tcp -m multiport --dports 22,80 -j DROP\n"));
    format!("*filter\n:INPUT DROP [0:0]\n{rules}-A INPUT -p tcp -m multiport --dports 22,443 -j ACCEPT\nCOMMIT\n")
}

/// A blocklist as one set, and a chain for each of many ports.
fn set_and_chains(count: u32) -> String {
    let mut text = String::from("table inet t {\n set blocked { type ipv4_addr; elements = {\n");
    text.push_str(&strangers(count / 2, |source| format!("{source},\n")));
    text.push_str("} }\n");
    for port in 1..=count / 8 {
        let _ = writeln!(text, "chain p{port} {{\n ip saddr 100.64.0.0/10 drop\n counter\n accept\n}}");
    }
    text.push_str(
        "chain input {\ntype filter hook input priority 0; policy drop;\nip saddr @blocked drop\ntcp dport vmap {",
    );
    (1..=count / 8).for_each(|port| {
        let _ = write!(text, "{port} : jump p{port}, ");
    });
    text.push_str("}\n}\n}\n");
    text
}

fn main() -> Result<(), Box<dyn Error>> {
    let cases: [(&str, &[&str], String); 8] = [
        ("no rules", &["nft", "-f", "-"], String::new()),
        ("nft, 500 rules in a row", &["nft", "-f", "-"], nft_rules(500)),
        ("nft, 5,000 rules in a row", &["nft", "-f", "-"], nft_rules(5_000)),
        ("nft, 50,000 rules in a row", &["nft", "-f", "-"], nft_rules(50_000)),
        (
            "nft, 50,000 lines: a blocklist as a set, a chain for each of many ports",
            &["nft", "-f", "-"],
            set_and_chains(50_000),
        ),
        ("iptables-nft, 5,000 rules in a row", &["iptables-nft-restore"], iptables_rules(5_000)),
        ("iptables-legacy, 5,000 rules in a row", &["iptables-legacy-restore"], iptables_rules(5_000)),
        ("iptables-legacy, 50,000 rules in a row", &["iptables-legacy-restore"], iptables_rules(50_000)),
    ];
    println!(
        "| ruleset | lines | copy | all ports, TCP and UDP, IPv4 and IPv6 | trace of 50 ports |\n|---|---|---|---|---|"
    );
    let wanted = std::env::args().nth(1).unwrap_or_default();
    for (name, program, rules) in cases.into_iter().filter(|(name, ..)| name.contains(&wanted)) {
        let (host, internet) = (Netns::unnamed()?, Netns::unnamed()?);
        link::add_veth(
            VethEnd { netns: &host, name: "eth0", index: None, mac: None },
            VethEnd { netns: &internet, name: "inet0", index: None, mac: None },
        )?;
        let measured = host.run(|| -> Outcome<_> {
            link::set_up("lo", false)?;
            link::set_up("eth0", false)?;
            link::add_address("eth0", [203, 0, 113, 1].into(), 24)?;
            link::add_address("eth0", [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(), 64)?;
            load(program, &rules)?;
            let start = Instant::now();
            let twin = Twin::copy(&TwinSpec::new("eth0"))?;
            let copied = start.elapsed();
            let report = twin.probe()?;
            let probed = start.elapsed() - copied;
            let ports: Vec<u16> = (1..=50).collect();
            let start = Instant::now();
            twin.trace(palisade_core::stack::Proto::Tcp, false, &ports)?;
            Ok((copied, probed, start.elapsed(), report))
        })?;
        let (copied, probed, traced, report) = match measured {
            Ok(measured) => measured,
            Err(error) => {
                println!("| {name} | | {error}: {} | | |", error.source().map(ToString::to_string).unwrap_or_default());
                continue;
            }
        };
        let lines = rules.lines().count();
        let seconds = [copied, probed, traced].map(|time| format!("{:.2} s", time.as_secs_f64()));
        println!("| {name} | {lines} | {} |", seconds.join(" | "));
        if report.lost > 0 {
            println!("  {} of {} packets lost and sent again", report.lost, report.packets);
        }
    }
    Ok(())
}
