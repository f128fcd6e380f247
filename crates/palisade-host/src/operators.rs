//! From where somebody is logged in over SSH at this moment.
//!
//! What that means for anybody is decided by whoever asks. A connection to sshd that nobody has logged in over is nothing:
//! anybody can make one.

use std::fs;
use std::net::IpAddr;

use crate::sockets::{self, Holder, SocketProto, SocketsError, Which};

/// The kernel's number of the state.
const ESTABLISHED: u8 = 1;
/// What sshd calls the processes of a connection until somebody has logged in over it.
const BEFORE_LOGIN: [&str; 3] = ["[accepted]", "[net]", "[preauth]"];
/// Its program that asks who it is, from OpenSSH 10 on.
const ASKS_WHO: &str = "sshd-auth";

/// Addresses that somebody is logged in from and that `concerns` is about.
pub fn addresses(concerns: impl Fn(IpAddr) -> bool) -> Result<Vec<IpAddr>, SocketsError> {
    let all = sockets::list(Which::All)?;
    let mut candidates = all.iter().filter(|socket| {
        socket.proto == SocketProto::Tcp && socket.state == ESTABLISHED && concerns(socket.remote.ip().to_canonical())
    });
    // Who holds which socket costs a look at every process: one for sshd's ports, and one for those who are connected there.
    let Some(first) = candidates.next() else { return Ok(Vec::new()) };
    let ports = sockets::ssh_ports(None)?;
    let mut connected =
        std::iter::once(first).chain(candidates).filter(|socket| ports.contains(&socket.local.port())).peekable();
    if connected.peek().is_none() {
        return Ok(Vec::new());
    }
    let holders = sockets::holders();
    let sessions = connected.filter(|socket| {
        let holders = holders.get(&socket.inode).map_or(&[][..], Vec::as_slice);
        !holders.is_empty() && !holders.iter().any(waits_for_login)
    });
    Ok(sessions.map(|socket| socket.remote.ip().to_canonical()).collect())
}

fn waits_for_login(holder: &Holder) -> bool {
    let title = fs::read(format!("/proc/{}/cmdline", holder.pid)).unwrap_or_default();
    holder.comm == ASKS_WHO || is_before_login(&title)
}

fn is_before_login(title: &[u8]) -> bool {
    let title = String::from_utf8_lossy(title);
    let title = title.trim_end_matches(['\0', ' ']);
    BEFORE_LOGIN.iter().any(|end| title.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_told_from_a_knock_by_what_sshd_calls_itself() {
        for title in ["sshd: [accepted]\0\0", "sshd: root [net] ", "sshd: unknown [net]", "sshd: [net]"] {
            assert!(is_before_login(title.as_bytes()), "{title}");
        }
        for title in ["sshd: root@pts/0", "sshd: anna [priv]\0", "sshd: anna@notty", "python3\0-c\0", ""] {
            assert!(!is_before_login(title.as_bytes()), "{title}");
        }
    }
}
