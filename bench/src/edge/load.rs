//! The load: h2load, which speaks HTTP/1.1 and HTTP/2, counts answers by status and resumes no session.

use anyhow::{Context, Result, bail};
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::proxies::{DOMAIN, Proxy};
use crate::world::Background;

/// Descriptors of the load and of proxies.
pub(super) const DESCRIPTORS: u64 = 20_000;
/// No measurement takes longer.
const TIMEOUT_S: u32 = 120;
/// Connections of the measurement at a fixed rate, and requests a second of each. h2load looks every 10 ms at most.
const PACED: (u64, u64) = (50, 80);

/// So many requests in one way.
pub(super) struct Load {
    pub(super) requests: u64,
    tls: bool,
    arguments: Vec<String>,
    latency: bool,
}

/// What the client saw.
pub(super) struct Ran {
    pub(super) per_second: f64,
    /// The median and the 99th percentile, in nanoseconds.
    pub(super) latency: Option<(f64, f64)>,
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(String::from).collect()
}

impl Load {
    /// HTTP/1.1 over 32 connections.
    pub(super) fn keep_alive(requests: u64, tls: bool) -> Self {
        Self { requests, tls, arguments: words("--h1 -c 32"), latency: false }
    }

    /// Eight connections with eight requests at once.
    pub(super) fn http2(requests: u64) -> Self {
        Self { requests, tls: true, arguments: words("-c 8 -m 8"), latency: false }
    }

    /// A thousand new connections a second, each with one request.
    pub(super) fn handshakes(requests: u64) -> Self {
        let arguments = words(&format!("--h1 -c {requests} -r 10 --rate-period=10ms"));
        Self { requests, tls: true, arguments, latency: false }
    }

    /// 4,000 requests a second, whose connections don't ask at the same time.
    pub(super) fn paced(requests: u64) -> Self {
        let (connections, each) = PACED;
        let arguments = words(&format!("--h1 -c {connections} --rps={each} -r 1 --rate-period=11ms"));
        Self { requests, tls: true, arguments, latency: true }
    }

    fn command(proxy: &Proxy, cpu: usize, tls: bool) -> Command {
        let mut command = Command::new("prlimit");
        command.args([&format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}"), "taskset", "-c", &cpu.to_string()]);
        command.args(["timeout", "--kill-after=5", &TIMEOUT_S.to_string(), "h2load", "-t", "1"]);
        let (scheme, port) = if tls { ("https", proxy.https) } else { ("http", proxy.http) };
        command.arg(format!("--connect-to=127.0.0.1:{port}")).arg(format!("{scheme}://{DOMAIN}/"));
        command
    }

    /// Fails if an answer isn't 200: a proxy that refuses has less to do.
    pub(super) fn run(&self, proxy: &Proxy, cpu: usize) -> Result<Ran> {
        let log = proxy.folder.join("latencies");
        let mut command = Self::command(proxy, cpu, self.tls);
        command.args(["-n", &self.requests.to_string()]).args(&self.arguments);
        if self.latency {
            command.arg(format!("--log-file={}", log.display()));
        }
        let output = command.output().context("starting h2load (nghttp2-client)")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let wanted = format!("status codes: {} 2xx, 0 3xx, 0 4xx, 0 5xx", self.requests);
        if !output.status.success() || !said.contains(&wanted) {
            bail!("not every request was answered: {said}{}", String::from_utf8_lossy(&output.stderr));
        }
        let finished = said.lines().find_map(|line| line.strip_prefix("finished in "));
        let per_second = finished.and_then(|line| line.split(", ").nth(1)?.split(' ').next()?.parse().ok());
        let latency = self.latency.then(|| latencies(&log)).transpose()?;
        Ok(Ran { per_second: per_second.with_context(|| format!("no rate in {said}"))?, latency })
    }
}

/// Columns: start, status, microseconds.
fn latencies(file: &std::path::Path) -> Result<(f64, f64)> {
    let text = fs::read_to_string(file).context("reading h2load's log")?;
    fs::remove_file(file)?;
    let mut all: Vec<f64> = text.lines().filter_map(|line| line.split('\t').nth(2)?.parse().ok()).collect();
    all.sort_unstable_by(f64::total_cmp);
    let at = |part: f64| all.get((all.len() as f64 * part) as usize).map(|us| us * 1e3);
    at(0.5).zip(at(0.99)).context("h2load's log is empty")
}

/// Connections that have asked once and wait; they are closed with the value.
pub(super) struct Idle(#[expect(dead_code, reason = "dropped last")] Background);

impl Idle {
    pub(super) fn open(proxy: &Proxy, cpu: usize, count: u64) -> Result<Self> {
        let mut command = Load::command(proxy, cpu, true);
        // The second request of each comes in a hundred seconds, when it has long ended.
        command.args(["--h1", "--rps=0.01", "-r", "20", "--rate-period=10ms"]);
        command.args(["-c", &count.to_string(), "-n", &(2 * count).to_string()]);
        let idle = Self(Background::start(command.stdout(Stdio::null()))?);
        let deadline = Instant::now() + Duration::from_secs(60);
        while proxy.connections()? < count && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(idle)
    }
}
