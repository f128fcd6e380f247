//! A scratch host with speakers: on it, beside it on the internet, and in the services of a case.
//!
//! Every speaker is asked through a socket in the folder that its program lies in, so asking doesn't touch the network.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::ANSWER_TIMEOUT;
use super::case::{Case, Probe, fits};
use crate::scratch::{HOST, Host, STRANGER, patiently};

const HOST6: &str = "2001:db8::1";
const STRANGER6: &str = "2001:db8::2";

/// What the host itself listens on, for services that shall not reach it: its loopback, and every address.
const OF_THE_HOST: [&str; 2] = ["tcp:127.0.0.1:7001", "tcp:7002"];
const OF_THE_INTERNET: [&str; 3] = ["tcp:443", "udp:443", "tcp:[::]:444"];

/// Answers every question after a name with "no such name", at once, as an internet without these names does.
const NAMES: &str = "
import socket, sys
server = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], 53))
while True:
    text, client = server.recvfrom(2048)
    server.sendto(text[:2] + b'\\x81\\x83' + text[4:6] + bytes(6) + text[12:], client)
";

/// The scratch host with its neighbours. Made on the thread that is to be on it.
pub(crate) struct Place {
    pub(crate) host: Host,
    pub(crate) asker: Asker,
    children: Vec<Child>,
}

/// Who asks the questions of cases; any thread may.
#[derive(Clone)]
pub(crate) struct Asker {
    /// Where the speakers of the host and of the internet are.
    outside: PathBuf,
}

impl Place {
    pub(crate) fn new(project: &str) -> Self {
        let host = Host::of(project);
        let outside = host.folder.join("outside");
        prepare(&outside);
        let mut place = Self { host, asker: Asker { outside }, children: Vec::new() };
        let run = |command: &str| {
            let status = Command::new("timeout").args(["20", "sh", "-ec", command]).status().unwrap();
            assert!(status.success(), "{command}");
        };
        let on = |address: &str, to: &str| {
            format!("ip address add {address}/64 dev eth0 nodad; ip -6 route replace default via {to} dev eth0")
        };
        run(&on(HOST6, STRANGER6));
        let servers = name_servers();
        place.host.internet.run(|| run(&on(STRANGER6, HOST6))).unwrap();
        for server in servers.iter().filter(|server| !server.is_loopback()) {
            let length = if server.is_ipv4() { 32 } else { 128 };
            let add = format!("ip address add {server}/{length} dev lo");
            place.host.internet.run(|| run(&add)).unwrap();
        }
        let named = servers.iter().filter(|server| server.is_loopback());
        for server in named {
            place.start(false, &["-c", NAMES, &server.to_string()]);
        }
        for server in servers.iter().filter(|server| !server.is_loopback()).chain([&STRANGER]) {
            place.start(true, &["-c", NAMES, &server.to_string()]);
        }
        let program = place.asker.outside.join("speak.py").to_string_lossy().into_owned();
        place.start(false, &[&[program.as_str(), "host"], &OF_THE_HOST[..]].concat());
        place.start(true, &[&[program.as_str(), "internet"], &OF_THE_INTERNET[..]].concat());
        wait_for(&place.asker.outside, &["host".to_owned(), "internet".to_owned()], String::new);
        place
    }

    fn start(&mut self, internet: bool, arguments: &[&str]) {
        let mut command = Command::new("/usr/bin/python3");
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        let mut start = || command.spawn().unwrap();
        let child = if internet { self.host.internet.run(start).unwrap() } else { start() };
        self.children.push(child);
    }
}

impl Asker {
    /// Asks everything of the case's table that speakers can be asked; what is not as expected is returned.
    pub(crate) fn ask<'c>(
        &self,
        case: &'c Case,
        folder: &Path,
        expected: impl Fn(&'c Probe) -> &'c str,
    ) -> Vec<String> {
        let speakers = speakers(folder);
        let of = |name: &str| match name {
            "host" | "internet" => self::speakers(&self.outside).remove(name),
            name => speakers.get(name).cloned(),
        };
        let address = |name: &str| match name {
            "host" => HOST.to_string(),
            "host6" => HOST6.to_owned(),
            "internet" => STRANGER.to_string(),
            "internet6" => STRANGER6.to_owned(),
            name => match name.strip_prefix('@') {
                Some(name) => {
                    let question = json!([{"kind": "address", "host": name}]);
                    let answers = of(name).map(|socket| tell(&socket, &question)).unwrap();
                    answers[0].as_str().unwrap().to_owned()
                }
                None => name.to_owned(),
            },
        };
        let mut by_speaker: BTreeMap<&str, Vec<&Probe>> = BTreeMap::new();
        for probe in &case.probes {
            if let Some(from) = probe.question.from().filter(|_| expected(probe) != "-") {
                by_speaker.entry(from).or_default().push(probe);
            }
        }
        let mut wrong = Vec::new();
        for (from, probes) in by_speaker {
            let questions: Value = probes.iter().map(|probe| probe.question.asked(address)).collect();
            let Some(socket) = of(from) else {
                wrong.push(format!("nobody is {from}"));
                continue;
            };
            let answers = tell(&socket, &questions);
            for (probe, answer) in probes.iter().zip(answers.as_array().unwrap()) {
                let expected = expected(probe);
                let mut answer = answer.as_str().unwrap().to_owned();
                // On a busy machine somebody may not get to answer in time.
                for _ in 0..2 {
                    if answer == "silent" && !fits(expected, &answer) {
                        let again = tell(&socket, &json!([probe.question.asked(address)]));
                        answer = again[0].as_str().unwrap().to_owned();
                    }
                }
                if std::env::var_os("MEANING_SHOW").is_some() {
                    eprintln!("{}: {}: {answer}", case.name, probe.text);
                }
                if !fits(expected, &answer) {
                    wrong.push(format!("{}: {answer}, and {expected} is expected", probe.text));
                }
            }
        }
        wrong
    }
}

impl Place {
    /// Ends what is not the stack's.
    pub(crate) fn hush(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.hush();
    }
}

fn name_servers() -> Vec<std::net::IpAddr> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = text.lines().filter_map(|line| line.strip_prefix("nameserver ")?.trim().parse().ok());
    servers.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

/// Puts the program into a folder.
pub(crate) fn prepare(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("speak.py"), include_str!("../cases/meaning/speak.py")).unwrap();
}

/// A copy of the case, with the program.
pub(crate) fn copy(case: &Case, to: &Path) -> PathBuf {
    let speak = to.join("speak");
    prepare(&speak);
    fs::copy(case.folder.join("compose.yaml"), to.join("compose.yaml")).unwrap();
    speak
}

/// Who speaks there: of replicas, any one.
fn speakers(folder: &Path) -> BTreeMap<String, PathBuf> {
    all_speakers(folder).into_iter().collect()
}

fn all_speakers(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let named = entries.filter_map(|path| {
        let (name, kind) = path.file_name()?.to_str()?.split_once('.')?;
        (kind != "py" && kind != "new").then(|| (name.to_owned(), path.clone()))
    });
    named.collect()
}

/// Waits until all of them speak.
pub(crate) fn wait_for(folder: &Path, expected: &[String], said: impl Fn() -> String) {
    let mut expected = expected.to_vec();
    expected.sort();
    let began = std::time::Instant::now();
    patiently(&format!("{expected:?} in {}", folder.display()), || {
        let mut there: Vec<String> = all_speakers(folder).into_iter().map(|(name, _)| name).collect();
        there.sort();
        assert!(began.elapsed().as_secs() < 80, "only {there:?} of {expected:?} are there: {}", said());
        (there == expected).then_some(())
    });
}

fn tell(socket: &Path, questions: &Value) -> Value {
    let mut stream = UnixStream::connect(socket).unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
    writeln!(stream, "{questions}").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{}: {error}: {line:?}", socket.display()))
}
