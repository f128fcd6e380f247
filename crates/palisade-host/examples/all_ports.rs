//! How long the proof over all ports takes, beside nmap on the same scratch host. Needs root; `make bench` runs it.
//!
//! Prints one JSON object. The host and the internet are network namespaces without names: nothing outlives this.

use std::error::Error;
use std::net::{IpAddr, TcpListener};
use std::process::{Command, Stdio};
use std::time::Instant;

use palisade_core::firewall::{FirewallRules, OpenPort};
use palisade_core::stack::Proto;
use palisade_host::firewall::Firewall;
use palisade_host::link::{self, VethEnd};
use palisade_host::netns::Netns;
use palisade_host::probe;
use palisade_host::twin::{self, TwinSpec};

const ROUNDS: usize = 5;
/// nmap can't ask all UDP ports in an evening; this many show how long that would take.
const NMAP_UDP_SAMPLE: u32 = 50;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn nmap(arguments: &[&str]) -> std::io::Result<Option<f64>> {
    let start = Instant::now();
    let mut command = Command::new("timeout");
    command.args(["120", "nmap", "-n", "-Pn"]).args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command.status()?.success().then(|| start.elapsed().as_secs_f64()))
}

fn main() -> Result<(), Box<dyn Error>> {
    let (host, internet) = (Netns::unnamed()?, Netns::unnamed()?);
    link::add_veth(
        VethEnd { netns: &host, name: "eth0", index: None, mac: None },
        VethEnd { netns: &internet, name: "inet0", index: None, mac: None },
    )?;
    for (netns, name, last) in [(&host, "eth0", 1), (&internet, "inet0", 2)] {
        netns.run(|| {
            link::set_up("lo", false)?;
            link::set_up(name, false)?;
            link::add_address(name, [203, 0, 113, last].into(), 24)?;
            link::add_address(name, [0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)].into(), 64)
        })??;
    }
    let rules = FirewallRules {
        ssh_ports: [22].into(),
        published: [OpenPort { proto: Proto::Tcp, port: 8084, host_ip: None }].into(),
        allow: [].into(),
        ..FirewallRules::default()
    };
    let _listeners = host.run(|| {
        Firewall::new("palisade").apply("bench", &rules)?;
        Ok::<_, Box<dyn Error + Send + Sync>>((TcpListener::bind("[::]:22")?, TcpListener::bind("[::]:5432")?))
    })?;
    let (ipv4, ipv6): (IpAddr, IpAddr) = ("203.0.113.1".parse()?, "2001:db8::1".parse()?);
    let (mut twins, mut scans, mut nmaps, mut nmaps6) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut lost = 0;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let report = host.run(|| twin::probe(&TwinSpec::new("eth0")))??;
        twins.push(start.elapsed().as_secs_f64());
        lost += report.lost;
        for reached in &report.reached {
            let expected = if reached.proto == Proto::Tcp { "22,8084" } else { "none" };
            if reached.local.to_string() != expected {
                return Err(
                    format!("{} {}: {} instead of {expected}", reached.target, reached.proto, reached.local).into()
                );
            }
        }
        let start = Instant::now();
        for target in [ipv4, ipv6] {
            let scan = internet.run(|| probe::scan_tcp(target))??;
            if (scan.open.to_string(), scan.refused.to_string()) != ("22".into(), "8084".into()) {
                return Err(format!("{target}: {scan:?}").into());
            }
        }
        scans.push(start.elapsed().as_secs_f64());
        let fast = ["-sS", "-p-", "-T5", "--min-rate", "100000", "--max-retries", "1"];
        nmaps.extend(internet.run(|| nmap(&[&fast[..], &["203.0.113.1"]].concat()))??);
        nmaps6.extend(internet.run(|| nmap(&[&fast[..], &["-6", "2001:db8::1"]].concat()))??);
    }
    let sample = format!("1-{NMAP_UDP_SAMPLE}");
    let nmap_udp = internet.run(|| nmap(&["-sU", "-T5", "-p", &sample, "203.0.113.1"]))??;
    let all =
        |values: Vec<f64>| if values.is_empty() { "not installed".into() } else { format!("{:.2} s", median(values)) };
    println!("| what | ports asked | median of {ROUNDS} |\n|---|---|---|");
    println!("| the twin: TCP and UDP, IPv4 and IPv6, every port ({lost} packets lost) | 262,140 | {} |", all(twins));
    println!("| a SYN to every TCP port of the live host, IPv4 and IPv6 | 131,070 | {} |", all(scans));
    println!("| `nmap -sS -p- -T5 --min-rate 100000`, IPv4 | 65,535 | {} |", all(nmaps));
    println!("| the same, IPv6 | 65,535 | {} |", all(nmaps6));
    let nmap_udp = nmap_udp.map_or("not installed".into(), |seconds| format!("{seconds:.2} s"));
    println!("| `nmap -sU -T5`, IPv4: a sample, since all ports take hours; once | {NMAP_UDP_SAMPLE} | {nmap_udp} |");
    Ok(())
}
