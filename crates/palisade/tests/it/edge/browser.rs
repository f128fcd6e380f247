//! The reference stack behind its edge, as people meet it: a browser that believes the certificate, and a WebSocket.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use palisade_core::edge::AUTHORITIES_VOLUME;
use serde_json::json;

use super::shop::root_of;
use crate::need_root;
use crate::rehearse::{BARTER, barter_is_missing};
use crate::scratch::{HOST, Host};
use crate::support::skipped;

const DOMAIN: &str = "barter.example";

/// Debian's package `node-ws`.
const WS: &str = "/usr/share/nodejs/ws";

/// Tells that it is open, then what it gets first.
const LISTENER: &str = r"
const [ws, root, host] = process.argv.slice(1);
const WebSocket = require(ws);
const lookup = (_, options, done) => options.all ? done(null, [{address: host, family: 4}]) : done(null, host, 4);
const socket = new WebSocket('wss://barter.example/api/live', {ca: require('fs').readFileSync(root), lookup});
socket.on('open', () => console.log('open'));
socket.on('message', (message) => { console.log(String(message)); socket.close(); });
socket.on('error', (error) => { console.log(String(error)); process.exit(1); });
";

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A home whose browser trusts this root.
fn home(root: &Path) -> Folder {
    let home = Folder(std::env::temp_dir().join(format!("palisade-browser-{}", std::process::id())));
    let store = home.0.join(".pki/nssdb");
    fs::create_dir_all(&store).unwrap();
    let database = format!("sql:{}", store.display());
    for arguments in
        [&["-N", "--empty-password"][..], &["-A", "-n", "rehearsal", "-t", "C,,", "-i", &root.to_string_lossy()]]
    {
        let output = Command::new("certutil").args(["-d", &database]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    home
}

/// The page as the browser has it in the end, and what it complains of.
fn browse(host: &Host, home: &Path) -> (String, String) {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "90", "chromium", "--headless", "--no-sandbox", "--disable-gpu"]);
    command.args(["--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run"]);
    command.arg(format!("--user-data-dir={}", home.join("profile").display()));
    command.arg(format!("--host-resolver-rules=MAP {DOMAIN} {HOST}"));
    command.args(["--dump-dom", &format!("http://{DOMAIN}/")]).env("HOME", home).stdin(Stdio::null());
    let output = host.internet.run(|| command.output()).unwrap().unwrap();
    let [page, complaints] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (page, complaints)
}

/// Posts a listing, as somebody on the internet.
fn post(host: &Host, root: &Path, title: &str) {
    let listing = json!({ "kind": "offer", "title": title, "text": title, "location": "Here" }).to_string();
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "30", "--resolve", &format!("{DOMAIN}:443:{HOST}"), "--cacert"]).arg(root);
    command.args(["--json", &listing, &format!("https://{DOMAIN}/api/listings")]);
    let output = host.internet.run(|| command.output()).unwrap().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains(title), "{output:?}");
}

#[test]
fn a_browser_believes_the_reference_stack_and_a_websocket_hears_of_it() {
    const TEST: &str = "edge::browser::a_browser_believes_the_reference_stack_and_a_websocket_hears_of_it";
    need_root!("edge::browser::a_browser_believes_the_reference_stack_and_a_websocket_hears_of_it");
    if let Some(why) = barter_is_missing() {
        return skipped(TEST, &why);
    }
    for (program, package) in [("chromium", "chromium"), ("certutil", "libnss3-tools"), ("node", "nodejs")] {
        let there = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
        if !there.is_ok_and(|output| output.status.success()) {
            return skipped(TEST, &format!("there is no {program} (package {package})"));
        }
    }
    if !Path::new(WS).exists() {
        return skipped(TEST, "Node has no WebSocket client (package node-ws)");
    }
    let host = Host::of("barter");
    let files = [format!("{BARTER}/compose.yaml"), format!("{BARTER}/edge.yaml")];
    let palisade = |arguments: &[&str]| host.palisade(&[&["-f", &files[0], "-f", &files[1]], arguments].concat());
    palisade(&["up", "--wait"]).expect(0);
    let root = root_of(&host.layout.volume(AUTHORITIES_VOLUME));
    post(&host, &root, "a red bicycle");

    let home = home(&root);
    let (page, complaints) = browse(&host, &home.0);
    assert!(page.contains("a red bicycle") && page.contains("</html>"), "{page}\n{complaints}");
    // The same browser without the root: it shows what it doesn't believe, and nothing of the stack.
    let stranger = Folder(home.0.join("stranger"));
    fs::create_dir_all(&stranger.0).unwrap();
    let (page, _) = browse(&host, &stranger.0);
    assert!(!page.contains("a red bicycle"), "{page}");

    let mut command = Command::new("timeout");
    command.args(["60", "node", "-e", LISTENER, WS]).arg(&root).arg(HOST.to_string()).stdout(Stdio::piped());
    let mut listener = host.internet.run(|| command.spawn()).unwrap().unwrap();
    let mut lines = BufReader::new(listener.stdout.take().unwrap()).lines();
    let mut heard = || lines.next().and_then(Result::ok).unwrap_or_default();
    assert_eq!(heard(), "open");
    post(&host, &root, "a blue bicycle");
    let listing = heard();
    assert!(listener.wait().unwrap().success(), "{listing}");
    assert!(listing.contains("a blue bicycle"), "{listing}");

    palisade(&["down", "--volumes", "--yes"]).expect(0);
    host.assert_nothing_left();
}
