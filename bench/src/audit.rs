//! How long an audit of a busy host takes, beside what people use to find out what is reachable.
//!
//! The host is a network namespace with sockets and rules; who looks from outside is in another one.

use anyhow::{Context, Result, bail};
use palisade_host::link::{self, VethEnd};
use palisade_host::netns::Netns;
use std::io::Write;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::Options;
use crate::report::{duration, table};
use crate::scratch::Scratch;
use crate::stats::{median, ratio};

const SOCKETS: u16 = 1_000;
const RULES: usize = 5_000;
const HOST: [&str; 2] = ["203.0.113.1", "2001:db8::1"];
const STRANGER: [&str; 2] = ["203.0.113.2", "2001:db8::2"];

/// Somebody's way to find out what is reachable.
struct Way {
    what: &'static str,
    answers: &'static str,
    program: &'static str,
    arguments: Vec<String>,
    /// Asked from outside, or on the host itself.
    outside: bool,
    took_ns: Vec<f64>,
}

pub(crate) fn measure(options: &Options, scratch: &Scratch) -> Result<String> {
    let palisade = std::env::current_exe()?.with_file_name("palisade");
    let palisade = palisade.to_str().context("the path of this program is text")?.to_owned();
    let (host, outside) = (Netns::unnamed()?, Netns::unnamed()?);
    wire(&host, &outside)?;
    let sockets = host.run(|| sockets(SOCKETS))??;
    let mut rows = vec![["rules", "way", "says", "time"].map(String::from).to_vec()];
    for (what, rules) in [("5 rules", few()), ("5,000 addresses blocked by a rule each", blocked())] {
        host.run(|| load(&rules))??;
        let mut ways = ways(&palisade, &scratch.realm);
        for round in 0..options.rounds {
            for way in &mut ways {
                let netns = if way.outside { &outside } else { &host };
                way.took_ns.push(netns.run(|| run(way.program, &way.arguments, &scratch.folder))??);
            }
            eprintln!("audit, {what}: round {} of {}", round + 1, options.rounds);
        }
        let own = ways[0].took_ns.clone();
        for way in &ways {
            let time = median(&way.took_ns).map_or("–".to_owned(), duration);
            let times = ratio(&own, &way.took_ns, false).filter(|_| way.program != palisade);
            let times = times.map_or(String::new(), |times| format!(" (**{times:.1}** times as long)"));
            rows.push(vec![what.to_owned(), way.what.to_owned(), way.answers.to_owned(), time + &times]);
        }
    }
    drop(sockets);
    Ok(table(&rows))
}

fn ways(palisade: &str, realm: &str) -> Vec<Way> {
    let way = |what, answers, program: &'static str, arguments: &[&str], outside| Way {
        what,
        answers,
        program,
        arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
        outside,
        took_ns: Vec::new(),
    };
    // A path of this run, which lives as long as the program.
    let own: &'static str = Box::leak(palisade.to_owned().into_boxed_str());
    let scan = ["-n", "-Pn", "-sS", "-p-", "-T5", "--min-rate", "5000", "--max-retries", "1"];
    vec![
        way(
            "`palisade audit`",
            "TCP and UDP, IPv4 and IPv6, all ports, with owners, rules and settings",
            own,
            &["--realm", realm, "audit", "--host-only", "--format", "json"],
            false,
        ),
        way("`nmap -sS -p-`", "TCP by IPv4", "nmap", &[&scan[..], &[HOST[0]]].concat(), true),
        way("`nmap -6 -sS -p-`", "TCP by IPv6", "nmap", &[&scan[..], &["-6", HOST[1]]].concat(), true),
        way(
            "`lynis`, groups firewalls and networking",
            "that there are rules, and which ports listen",
            "lynis",
            &[
                "audit",
                "system",
                "--quick",
                "--quiet",
                "--no-log",
                "--report-file",
                "/dev/null",
                "--tests-from-group",
                "firewalls,networking",
            ],
            false,
        ),
    ]
}

fn wire(host: &Netns, outside: &Netns) -> Result<()> {
    let end = |netns, name| VethEnd { netns, name, index: None, mac: None };
    link::add_veth(end(host, "eth0"), end(outside, "eth0"))?;
    for (netns, own, other) in [(host, HOST, STRANGER), (outside, STRANGER, HOST)] {
        netns.run(|| {
            link::set_up("lo", false)?;
            link::set_up("eth0", false)?;
            let [v4, v6] = own.map(|ip| ip.parse::<IpAddr>());
            link::add_address("eth0", v4?, 24)?;
            link::add_address("eth0", v6?, 64)?;
            link::add_route("eth0", None, Some(other[0].parse()?), false)?;
            Ok::<_, anyhow::Error>(())
        })??;
    }
    Ok(())
}

/// As many for TCP as for UDP.
fn sockets(count: u16) -> Result<(Vec<TcpListener>, Vec<UdpSocket>)> {
    let tcp = (0..count / 2).map(|n| TcpListener::bind(("::", 20_000 + n)));
    let udp = (0..count / 2).map(|n| UdpSocket::bind(("::", 20_000 + n)));
    Ok((tcp.collect::<Result<_, _>>()?, udp.collect::<Result<_, _>>()?))
}

/// An ordinary firewall.
fn few() -> String {
    "table inet filter {
     chain input {
       type filter hook input priority 0; policy drop;
       ct state established,related accept
       iif lo accept
       meta l4proto { icmp, ipv6-icmp } accept
       tcp dport { 22, 80, 443 } accept
       udp dport 443 accept
     }
     }"
    .to_owned()
}

/// The same after years of somebody's script that adds a rule for each address.
fn blocked() -> String {
    let rules: String =
        (0..RULES).map(|n| format!("ip saddr 198.51.{}.{} drop\n", 100 + n / 250, 1 + n % 250)).collect();
    format!(
        "{}\ntable inet blocked {{\nchain input {{\ntype filter hook input priority -10; policy accept;\n{rules}}}\n}}\n",
        few()
    )
}

fn load(rules: &str) -> Result<()> {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("starting nft")?;
    child.stdin.take().context("nft reads rules")?.write_all(format!("flush ruleset\n{rules}").as_bytes())?;
    if !child.wait()?.success() {
        bail!("nft didn't take the rules");
    }
    Ok(())
}

/// Nanoseconds from start to end. What it finds is no failure.
fn run(program: &str, arguments: &[String], folder: &Path) -> Result<f64> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let started = Instant::now();
    let status = command.status().with_context(|| format!("starting {program}"))?;
    let took_ns = started.elapsed().as_nanos() as f64;
    // Palisade answers 1 when something is found, and Lynis with numbers of its own.
    if status.code().is_none_or(|code| code == 2 || code == 101) {
        bail!("{command:?} ended with {status}");
    }
    Ok(took_ns)
}
