//! Where a route of the edge is asked for, and by whom.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use palisade_edge::client::{self, Answer, Believed, Opened};

use super::PATIENCE;

/// Where a route is asked for.
pub(super) struct Door<'a> {
    pub(super) at: SocketAddr,
    pub(super) name: String,
    pub(super) path: &'a str,
    pub(super) believed: Believed,
    /// Its domain and path.
    pub(super) what: String,
}

impl Door<'_> {
    pub(super) fn open(&self, source: Option<IpAddr>) -> io::Result<Opened> {
        client::tls(self.at, source, &self.name, &self.believed, PATIENCE)
    }

    pub(super) fn get(&self, opened: &mut Opened, fields: &[&str]) -> io::Result<Answer> {
        opened.get(&self.name, self.path, fields)
    }

    /// Asks as the stranger, and again when a limit wants to be waited for.
    pub(super) fn ask(&self, fields: &[&str]) -> io::Result<Answer> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.get(&mut self.open(None)?, fields)?;
            let again = answer.field("retry-after").filter(|_| answer.status == 429);
            match again.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs) {
                Some(wait) if Instant::now() + wait < deadline => std::thread::sleep(wait),
                _ => return Ok(answer),
            }
        }
    }

    /// So many connections of this client.
    pub(super) fn open_all(&self, client: IpAddr, count: u32) -> io::Result<Vec<Opened>> {
        (0..count).map(|_| self.open(Some(client))).collect()
    }

    /// Asks once on each of these connections, on so many at a time. Whoever asks claims to be somebody else each time, if it
    /// `forges`.
    pub(super) fn burst(&self, opened: Vec<Opened>, at_once: u32, forges: bool) -> Asked {
        let tried = opened.len() as u32;
        let waiting = Mutex::new(opened);
        let barrier = Barrier::new(at_once as usize + 1);
        let ask = || {
            let mut statuses = Vec::new();
            barrier.wait();
            loop {
                let next = {
                    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                    waiting.pop().map(|opened| (opened, waiting.len()))
                };
                let Some((mut opened, number)) = next else { return statuses };
                let claim = forged(Ipv4Addr::new(192, 0, 2, (number % 250) as u8 + 1).into());
                let claim: Vec<&str> = claim.iter().map(String::as_str).collect();
                let answer = self.get(&mut opened, if forges { &claim } else { &[] });
                statuses.push(answer.map(|answer| answer.status));
            }
        };
        std::thread::scope(|scope| {
            let asking: Vec<_> = (0..at_once).map(|_| scope.spawn(ask)).collect();
            let began = Instant::now();
            barrier.wait();
            let statuses: Vec<_> = asking.into_iter().flat_map(|asking| asking.join().unwrap_or_default()).collect();
            let refused = statuses.iter().filter(|status| matches!(status, Ok(429))).count() as u32;
            let answered = statuses.iter().filter(|status| status.is_ok()).count() as u32;
            Asked { began, ended: Instant::now(), passed: answered - refused, unanswered: tried - answered }
        })
    }
}

/// What came of requests at once.
pub(super) struct Asked {
    pub(super) began: Instant,
    pub(super) ended: Instant,
    pub(super) passed: u32,
    pub(super) unanswered: u32,
}

/// Fields of a client that claims to be somebody else.
pub(super) fn forged(address: IpAddr) -> Vec<String> {
    let node = if address.is_ipv4() { address.to_string() } else { format!("\"[{address}]\"") };
    ["X-Forwarded-For", "X-Real-IP", "X_Forwarded_For"]
        .iter()
        .map(|name| format!("{name}: {address}"))
        .chain([format!("Forwarded: for={node}")])
        .collect()
}
