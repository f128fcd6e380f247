//! Over which SSH connection a process was started, and which logins came later.
//!
//! What follows from that is decided in `palisade_core::lockout` and by who asks for a confirmation. Read from `/proc`:
//! `sudo` and the like drop `SSH_CONNECTION`, the environment of the shell above them has it.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use crate::sockets::{self, SocketsError};

/// An SSH connection, as `SSH_CONNECTION` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Client address, client port, server address, server port.
    pub text: String,
    /// Where it comes from.
    pub client: IpAddr,
    /// The address of this host that it came to.
    pub server: IpAddr,
}

/// How a process hangs together with SSH.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// The nearest `SSH_CONNECTION` of the process and those above it.
    pub connection: Option<Connection>,
    /// When the nearest process of sshd above it was started, in clock ticks since boot. That is a process of this one
    /// connection, made when it came. A terminal multiplexer has none above it.
    pub sshd_started_ticks: Option<u64>,
}

/// Names of the processes that sshd serves one connection with: `sshd-session` from OpenSSH 9.8 on.
const SERVERS: [&str; 3] = ["sshd", "sshd-session", "dropbear"];

/// More processes above each other than any real one has.
const DEPTH_MAX: usize = 64;

/// A line of `/proc/<pid>/stat`, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) comm: String,
    pub(crate) state: char,
    pub(crate) parent: i32,
    pub(crate) started_ticks: u64,
}

impl Stat {
    pub(crate) fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The name may hold spaces and parentheses; what follows the last one doesn't.
        let (head, rest) = text.rsplit_once(") ")?;
        let comm = head.split_once('(')?.1.to_owned();
        let mut fields = rest.split_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        let started_ticks = fields.nth(17)?.parse().ok()?;
        Some(Self { comm, state, parent, started_ticks })
    }
}

/// The session of this process.
pub fn own() -> Session {
    of(std::process::id() as i32)
}

/// Where sshd listens, and where the calling process's own session came in: what must never be cut off.
pub fn ssh_ports() -> Result<BTreeSet<u16>, SocketsError> {
    sockets::ssh_ports(own().connection.as_ref().map(|connection| connection.text.as_str()))
}

/// The session of a process. What can't be read isn't there.
pub fn of(pid: i32) -> Session {
    let mut session = Session::default();
    let mut pid = pid;
    for _ in 0..DEPTH_MAX {
        let Some(stat) = Stat::of(pid) else { break };
        if SERVERS.contains(&stat.comm.as_str()) {
            session.sshd_started_ticks = Some(stat.started_ticks);
            break;
        }
        if session.connection.is_none() {
            session.connection = environment(pid).and_then(|text| Connection::parse(&text));
        }
        pid = stat.parent;
    }
    session
}

/// Whether somebody has logged in from `client` over a connection that came after `since_ticks`: whoever only knocked
/// has no process with `SSH_CONNECTION`.
pub fn logged_in_since(since_ticks: u64, client: IpAddr) -> bool {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| environment(*pid).is_some()).map(of).any(|session| {
        session.sshd_started_ticks.is_some_and(|started| started > since_ticks)
            && session.connection.is_some_and(|connection| connection.client == client)
    })
}

fn environment(pid: i32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = bytes.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"SSH_CONNECTION="))?;
    String::from_utf8(value.to_vec()).ok()
}

impl Connection {
    fn parse(text: &str) -> Option<Self> {
        let words: Vec<_> = text.split_whitespace().collect();
        let [client, _, server, _] = words[..] else { return None };
        // A link-local address carries its interface.
        let ip = |word: &str| Some(word.split('%').next()?.parse::<IpAddr>().ok()?.to_canonical());
        Some(Self { client: ip(client)?, server: ip(server)?, text: text.to_owned() })
    }
    /// It ends at this host, as the calling thread's network namespace knows it: a firewall of this namespace can cut it.
    pub fn is_here(&self) -> bool {
        let Ok(addresses) = nix::ifaddrs::getifaddrs() else { return true };
        let mut own = addresses.filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        });
        own.any(|ip| ip.to_canonical() == self.server)
    }
}

/// Clock ticks since boot, as `/proc` counts the start of processes.
pub fn now_ticks() -> u64 {
    boot_ms() * ticks_per_second() / 1_000
}

/// Milliseconds since boot, also while the machine sleeps.
pub fn boot_ms() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    // The clock is there since Linux 2.6.39.
    now.map_or(0, |now| now.tv_sec().unsigned_abs() * 1_000 + now.tv_nsec().unsigned_abs() / 1_000_000)
}

fn ticks_per_second() -> u64 {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
    ticks.and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_is_read_past() {
        let text = "7 (a) (b) S 3 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1 1";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.comm.as_str(), stat.state, stat.parent, stat.started_ticks), ("a) (b", 'S', 3, 4242));
    }

    #[test]
    fn a_connection_is_read_with_mapped_and_scoped_addresses() {
        let connection = Connection::parse("::ffff:192.0.2.7 5000 ::ffff:192.0.2.1 22").unwrap();
        assert_eq!(connection.client, IpAddr::from([192, 0, 2, 7]));
        assert_eq!(connection.server, IpAddr::from([192, 0, 2, 1]));
        assert_eq!(Connection::parse("fe80::1%eth0 5000 fe80::2%eth0 22").unwrap().client.to_string(), "fe80::1");
        assert_eq!(Connection::parse("hello"), None);
    }

    #[test]
    fn this_process_started_before_now() {
        let stat = Stat::of(std::process::id() as i32).unwrap();
        let now = now_ticks();
        assert!(stat.started_ticks <= now && now - stat.started_ticks < 100 * ticks_per_second(), "{stat:?} {now}");
    }
}
