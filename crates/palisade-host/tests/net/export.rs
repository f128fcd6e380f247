//! What is exported for other tools lets in what Palisade's own table does: asked with packets to all ports.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use palisade_core::firewall::{Backend, FirewallRules, OpenPort};
use palisade_core::prove::Family;
use palisade_core::stack::{PortProto, Proto};
use palisade_host::firewall::Firewall;
use palisade_host::firewall::export::{self, Export};

use crate::twin::run;
use crate::{HOST4, HOST6, Scratch, scratch, tool};

fn rules() -> FirewallRules {
    let open =
        |proto, port, host_ip: Option<&str>| OpenPort { proto, port, host_ip: host_ip.map(|ip| ip.parse().unwrap()) };
    FirewallRules {
        ssh_ports: [22, 2222].into(),
        published: [
            open(Proto::Tcp, 8084, None),
            open(Proto::Udp, 8085, None),
            open(Proto::Tcp, 8086, Some(HOST4)),
            open(Proto::Tcp, 8086, Some("203.0.113.77")),
            open(Proto::Tcp, 8087, Some(HOST6)),
            open(Proto::Udp, 8088, Some("2001:db8::77")),
        ]
        .into(),
        allow: [PortProto { port: 443, proto: Proto::Tcp }, PortProto { port: 51820, proto: Proto::Udp }].into(),
        backend: Backend::Nftables,
    }
}

/// Ports that get through: TCP and UDP over IPv4, then over IPv6.
fn reached(scratch: &Scratch) -> Vec<String> {
    run(&scratch.host).reached.iter().map(|reached| reached.local.to_string()).collect()
}

/// What Palisade's own table lets in.
fn own(test: &str) -> Option<Vec<String>> {
    let scratch = scratch(test)?;
    scratch.host.run(|| Firewall::new("palisade").apply("shop", &rules())).unwrap().unwrap();
    let reached = reached(&scratch);
    assert_eq!(reached, ["22,443,2222,8084,8086", "8085,51820", "22,443,2222,8084,8087", "8085,51820"]);
    Some(reached)
}

fn written(write: impl Fn(&Export<'_>) -> String) -> String {
    let (rules, because) = (rules(), BTreeMap::new());
    write(&Export { stack: "9-lives", rules: &rules, because: &because })
}

#[test]
fn nftables_lets_in_what_palisade_does() {
    let test = "nftables_lets_in_what_palisade_does";
    let Some(own) = own(test) else { return };
    let Some(scratch) = scratch(test) else { return };
    let text = written(export::nftables);
    let load = || {
        tool(&["nft", "-c", "-f", "-"], &text);
        // Twice: the file replaces what it has made.
        tool(&["nft", "-f", "-"], &text);
        tool(&["nft", "-f", "-"], &text);
    };
    scratch.host.run(load).unwrap();
    assert_eq!(reached(&scratch), own);
    scratch.host.run(|| tool(&["nft", "delete", "table", "inet", "stack_9-lives"], "")).unwrap();
    assert_eq!(reached(&scratch), ["1-65535"; 4]);
}

#[test]
fn iptables_lets_in_what_palisade_does() {
    let test = "iptables_lets_in_what_palisade_does";
    let Some(own) = own(test) else { return };
    for [ipv4, ipv6] in [
        ["iptables-restore", "ip6tables-restore"],
        ["iptables-nft-restore", "ip6tables-nft-restore"],
        ["iptables-legacy-restore", "ip6tables-legacy-restore"],
    ] {
        let Some(scratch) = scratch(test) else { return };
        if Command::new(ipv4).arg("-V").output().is_err() {
            println!("SKIPPED: {test}: {ipv4} is not installed");
            continue;
        }
        let load = || {
            for (program, family) in [(ipv4, Family::V4), (ipv6, Family::V6)] {
                let text = written(|export| export::iptables(export, family));
                tool(&[program, "--test"], &text);
                tool(&[program], &text);
                tool(&[program, "--noflush"], &text);
            }
        };
        if let Err(why) = usable(&scratch, ipv4) {
            println!("SKIPPED: {test}: {ipv4}: {why}");
            continue;
        }
        scratch.host.run(load).unwrap();
        assert_eq!(reached(&scratch), own, "{ipv4}");
    }
}

/// Whether the program can load anything here: the legacy one needs tables that a kernel may not have.
fn usable(scratch: &Scratch, program: &str) -> Result<(), String> {
    let trial = || {
        let mut child = Command::new(program).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"*filter\nCOMMIT\n").unwrap();
        let output = child.wait_with_output().unwrap();
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
    };
    scratch.host.run(trial).unwrap()
}

/// firewalld with a bus of its own, in the namespace of the thread that starts it.
struct Firewalld {
    children: Vec<Child>,
    folder: PathBuf,
}

impl Firewalld {
    fn start(zone: &str, text: &str) -> Result<Self, String> {
        let folder = std::env::temp_dir().join(format!("palisade-test-{}-firewalld", std::process::id()));
        let mut it = Self { children: Vec::new(), folder: folder.clone() };
        let zones = folder.join("etc/zones");
        fs::create_dir_all(&zones).unwrap();
        fs::write(zones.join(format!("{zone}.xml")), text).unwrap();
        let settings = format!("DefaultZone={zone}\nFirewallBackend=nftables\nLogDenied=off\n");
        fs::write(folder.join("etc/firewalld.conf"), settings).unwrap();
        let bus = folder.join("bus");
        fs::write(folder.join("bus.conf"), bus_settings(&bus)).unwrap();
        it.spawn(Command::new("dbus-daemon").arg("--nofork").arg("--config-file").arg(folder.join("bus.conf")))?;
        it.wait_for("the bus", || bus.exists())?;
        let address = format!("unix:path={}", bus.display());
        it.spawn(
            Command::new("firewalld")
                .args(["--nofork", "--nopid", "--system-config"])
                .arg(folder.join("etc"))
                .arg("--log-file")
                .arg(folder.join("log"))
                .env("DBUS_SYSTEM_BUS_ADDRESS", &address),
        )?;
        let state = || {
            let mut state = Command::new("firewall-cmd");
            state.arg("--state").env("DBUS_SYSTEM_BUS_ADDRESS", &address);
            state.output().is_ok_and(|output| output.status.success())
        };
        it.wait_for("firewalld", state)?;
        Ok(it)
    }

    fn spawn(&mut self, command: &mut Command) -> Result<(), String> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.children.push(child.map_err(|error| format!("{}: {error}", command.get_program().to_string_lossy()))?);
        Ok(())
    }

    fn wait_for(&mut self, what: &str, is_there: impl Fn() -> bool) -> Result<(), String> {
        let began = Instant::now();
        while !is_there() {
            let over = self.children.iter_mut().any(|child| child.try_wait().is_ok_and(|status| status.is_some()));
            if over || began.elapsed() > Duration::from_secs(60) {
                return Err(format!("{what} didn't come up here: {}", self.log()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Firewalld {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn bus_settings(bus: &Path) -> String {
    format!(
        r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={}</listen>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>"#,
        bus.display()
    )
}

#[test]
fn firewalld_lets_in_what_palisade_does() {
    let test = "firewalld_lets_in_what_palisade_does";
    let Some(own) = own(test) else { return };
    let Some(scratch) = scratch(test) else { return };
    let zone = export::zone_name("9-lives");
    let text = written(export::zone);
    let started = scratch.host.run_in(Duration::from_secs(150), move || Firewalld::start(&zone, &text)).unwrap();
    let firewalld = match started {
        Ok(firewalld) => firewalld,
        Err(why) => return println!("SKIPPED: {test}: {why}"),
    };
    assert_eq!(reached(&scratch), own, "{}", firewalld.log());
    assert!(!firewalld.log().contains("ERROR"), "{}", firewalld.log());
}
