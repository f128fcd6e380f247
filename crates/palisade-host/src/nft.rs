//! Runs `nft` and its relatives in the calling thread's network namespace.
//!
//! What is asked of them and what their answers mean is the business of `firewall` and `twin`.

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Loading a large ruleset takes well below a second; an hour-long wait for a wedged kernel helps nobody.
const TIMEOUT: Duration = Duration::from_secs(20);
/// A rule takes about 100 bytes, so this is more than anybody's; what says more isn't a firewall tool.
const OUTPUT_MAX: u64 = 256 << 20;
const COMPLAINT_MAX: u64 = 1 << 20;

/// A firewall tool didn't do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It isn't installed.
    #[error("`{program}` is not installed")]
    Missing {
        /// Its name.
        program: String,
    },
    /// It couldn't be run.
    #[error("cannot run `{program}`")]
    Run {
        /// Its name.
        program: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It refused.
    #[error("`{command}` failed: {stderr}")]
    Refused {
        /// With its arguments.
        command: String,
        /// What it said.
        stderr: String,
    },
    /// It took too long and was killed.
    #[error("`{command}` was not done after {timeout_ms} ms")]
    TimedOut {
        /// With its arguments.
        command: String,
        /// What it was given.
        timeout_ms: u64,
    },
    /// It said more than any ruleset has.
    #[error("`{command}` printed more than {bytes_max} bytes and was killed")]
    TooMuch {
        /// With its arguments.
        command: String,
        /// What it was given.
        bytes_max: u64,
    },
    /// What it said isn't a ruleset, or isn't the kernel's.
    #[error("the answer of `{command}` isn't the ruleset that the kernel has: {details}")]
    Garbled {
        /// With its arguments.
        command: String,
        /// What is wrong with it.
        details: String,
    },
    /// Its JSON couldn't be read.
    #[error("the answer of `{command}` can't be read")]
    Json {
        /// With its arguments.
        command: String,
        /// Where it breaks.
        #[source]
        source: serde_json::Error,
    },
}

impl ToolError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Missing { program } if program == "nft" => Some("install the package `nftables`"),
            Self::Missing { .. } => Some("install the package `iptables`"),
            _ => None,
        }
    }
}

/// Runs a tool, feeds it `input`, and returns what it printed.
pub(crate) fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, ToolError> {
    let command = || [&[program], arguments].concat().join(" ");
    let failed = |source| ToolError::Run { program: program.to_owned(), source };
    // Tools for root are not on every user's PATH.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let mut child = match Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .env("LC_ALL", "C")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    {
        Ok(child) => child,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(ToolError::Missing { program: program.to_owned() });
        }
        Err(source) => return Err(failed(source)),
    };
    let (mut stdin, mut stdout, mut stderr) =
        (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let deadline = Instant::now() + TIMEOUT;
    std::thread::scope(|scope| {
        // A tool that fails early closes its end; what it says about that is read below.
        scope.spawn(move || {
            let _ = stdin.write_all(input.as_bytes());
        });
        let complaint = scope.spawn(move || {
            let mut text = Vec::new();
            (&mut stderr)
                .take(COMPLAINT_MAX)
                .read_to_end(&mut text)
                .map(|_| String::from_utf8_lossy(&text).into_owned())
        });
        let (sender, receiver) = mpsc::channel();
        scope.spawn(move || {
            let mut bytes = Vec::new();
            let result = (&mut stdout).take(OUTPUT_MAX + 1).read_to_end(&mut bytes).map(|_| bytes);
            let _ = sender.send(result);
        });
        let output = receiver.recv_timeout(TIMEOUT);
        let too_much = matches!(&output, Ok(Ok(bytes)) if bytes.len() as u64 > OUTPUT_MAX);
        let ended = !too_much && output.is_ok() && exits(&child, deadline).map_err(failed)?;
        // What it left running could still hold its ends, so everything of it goes.
        let status = end(&mut child).map_err(failed)?;
        let output = match output {
            Ok(output) if ended => output,
            _ if too_much => return Err(ToolError::TooMuch { command: command(), bytes_max: OUTPUT_MAX }),
            _ => return Err(ToolError::TimedOut { command: command(), timeout_ms: TIMEOUT.as_millis() as u64 }),
        };
        let complaint = complaint.join().unwrap_or_else(|_| Ok(String::new())).unwrap_or_default();
        if status.success() {
            output.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).map_err(failed)
        } else {
            let stderr = complaint.trim().chars().take(2000).collect();
            Err(ToolError::Refused { command: command(), stderr })
        }
    })
}

/// Waits for a program that has said everything; false when it hasn't ended by then. It stays to be waited for.
fn exits(child: &Child, deadline: Instant) -> io::Result<bool> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    let mut pause = Duration::from_micros(50);
    while waitid(Id::Pid(Pid::from_raw(child.id() as i32)), flags)? == WaitStatus::StillAlive {
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
    Ok(true)
}

/// Kills what is left of a program and of everything that it started in its process group. Nobody has waited for it
/// yet, so that the group's number is still its own.
fn end(child: &mut Child) -> io::Result<ExitStatus> {
    let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    child.wait()
}

/// Runs `nft -j` with these arguments and returns the objects of its answer.
pub(crate) fn json(arguments: &[&str]) -> Result<Vec<serde_json::Value>, ToolError> {
    let text = run("nft", &[&["-j"], arguments].concat(), "")?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let wrong = |source| ToolError::Json { command: format!("nft -j {}", arguments.join(" ")), source };
    let mut answer: serde_json::Value = serde_json::from_str(&text).map_err(wrong)?;
    match answer.get_mut("nftables").map(serde_json::Value::take) {
        Some(serde_json::Value::Array(objects)) => Ok(objects),
        _ => Ok(Vec::new()),
    }
}
