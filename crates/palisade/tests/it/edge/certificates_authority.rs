//! An authority out on the internet, and a stack whose certificate is ordered there by the guarded worker.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_core::edge::AUTHORITIES_VOLUME;
use serde_json::Value;

use super::shop::APP;
use crate::scratch::{HOST, Host, PATIENCE, Running, STRANGER, patiently};
use crate::support::{PALISADE, skipped};

/// Debian's authority for tests and its name server, for which every domain is the scratch host. Killed when dropped.
pub(super) struct Authority {
    folder: PathBuf,
    names: Child,
    pebble: Option<Child>,
    /// Speaks for an authority that knows renewal windows, which Debian's doesn't.
    windows: Option<Child>,
}

/// Answers for a directory with a renewal window (RFC 9773): all other addresses in it are the authority's own.
const WINDOWS: &str = r#"
import http.server, json, ssl, sys, urllib.request
at, authority, folder = sys.argv[1:]
context = ssl.create_default_context(cafile=folder + '/ca.pem')
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == '/dir':
            urls = json.load(urllib.request.urlopen(f'https://{authority}:14000/dir', context=context, timeout=10))
            text = json.dumps(urls | {'renewalInfo': f'https://{at}:14001/renewal'})
        else:
            text = open(folder + '/window').read()
        self.send_response(200)
        for name, value in [('Content-Type', 'application/json'), ('Retry-After', '21600'), ('Content-Length', str(len(text)))]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())
    def log_message(self, *arguments): pass
server = http.server.ThreadingHTTPServer((at, 14001), Answer)
own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
own.load_cert_chain(folder + '/api.pem', folder + '/api.key')
server.socket = own.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"#;

impl Authority {
    /// Whether everything is here; says what isn't, and skips the test.
    pub(super) fn is_here(test: &str) -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let missing = ["pebble", "pebble-challtestsrv", "openssl", "curl", "python3"]
            .into_iter()
            .find(|name| !std::env::split_paths(&path).any(|folder| folder.join(name).exists()));
        if let Some(name) = missing {
            skipped(test, &format!("{name} isn't installed"));
        }
        missing.is_none()
    }

    /// Its certificates are good for so many seconds.
    pub(super) fn start(host: &Host, validity_s: u64) -> Self {
        let folder = &host.folder;
        let openssl = |arguments: &str| {
            let mut command = Command::new("timeout");
            let made = command.args(["30", "openssl"]).args(arguments.split(' ')).current_dir(folder).output().unwrap();
            assert!(made.status.success(), "{made:?}");
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        openssl(&format!("req -x509 {key} -days 2 -subj /CN=authority -keyout ca.key -out ca.pem"));
        openssl(&format!("req {key} -subj /CN=pebble -keyout api.key -out api.csr"));
        fs::write(folder.join("api.ext"), format!("subjectAltName=IP:{STRANGER}\n")).unwrap();
        openssl("x509 -req -in api.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile api.ext -out api.pem");
        let settings = serde_json::json!({ "pebble": {
            "listenAddress": format!("{STRANGER}:14000"), "managementListenAddress": "127.0.0.1:15000",
            "certificate": folder.join("api.pem"), "privateKey": folder.join("api.key"),
            "httpPort": 80, "tlsPort": 443, "ocspResponderURL": "", "externalAccountBindingRequired": false,
            "certificateValidityPeriod": validity_s,
        }});
        fs::write(folder.join("pebble.json"), settings.to_string()).unwrap();
        let names = format!(
            "-dns01 {STRANGER}:53 -http01  -https01  -tlsalpn01  -management 127.0.0.1:8055 -defaultIPv4 {HOST} -defaultIPv6 "
        );
        let names = out_there(host, Command::new("pebble-challtestsrv").args(names.split(' ')));
        let mut authority = Self { folder: folder.clone(), names, pebble: None, windows: None };
        authority.come_back(host);
        authority
    }

    /// Starts it (again), without any memory of former orders and accounts.
    pub(super) fn come_back(&mut self, host: &Host) {
        let mut pebble = Command::new("pebble");
        pebble
            .args(["-dnsserver", &format!("{STRANGER}:53"), "-strict=false", "-config"])
            .arg(self.folder.join("pebble.json"));
        self.pebble = Some(out_there(host, pebble.env("PEBBLE_VA_NOSLEEP", "1")));
    }

    pub(super) fn go_away(&mut self) {
        self.pebble.take().into_iter().for_each(end);
    }

    /// From now on its directory at port 14001 knows renewal windows, and this is every certificate's.
    pub(super) fn say_window(&mut self, host: &Host, start: &str, end: &str) {
        let window = serde_json::json!({ "suggestedWindow": { "start": start, "end": end } });
        fs::write(self.folder.join("window.new"), window.to_string()).unwrap();
        fs::rename(self.folder.join("window.new"), self.folder.join("window")).unwrap();
        if self.windows.is_none() {
            let mut command = Command::new("python3");
            command.args(["-c", WINDOWS, &STRANGER.to_string(), &STRANGER.to_string()]).arg(&self.folder);
            self.windows = Some(out_there(host, &mut command));
        }
    }

    /// The root of what it issues, in a file.
    pub(super) fn issued_root(&self, host: &Host) -> PathBuf {
        let file = self.folder.join("issued-root.pem");
        let mut command = Command::new("timeout");
        command.args(["30", "curl", "-sSk", "--fail", "--retry", "5", "--retry-connrefused", "-o"]).arg(&file);
        let output = host.internet.run(|| command.arg("https://127.0.0.1:15000/roots/0").output()).unwrap().unwrap();
        assert!(output.status.success(), "{output:?}");
        file
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.go_away();
        self.windows.take().into_iter().for_each(end);
        let _ = self.names.kill();
        let _ = self.names.wait();
    }
}

fn out_there(host: &Host, command: &mut Command) -> Child {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    host.internet.run(|| quiet.spawn()).unwrap().unwrap()
}

fn end(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// A stack whose one certificate comes from the authority.
pub(super) struct Ordering<'a> {
    pub(super) host: &'a Host,
    /// Whatever is asked is asked where the agent is: the host's name server is seen from there only.
    agent: String,
}

impl<'a> Ordering<'a> {
    /// Brought up. `port`: where the authority's directory is.
    pub(super) fn up(host: &'a Host, port: u16) -> Self {
        let acme = format!(
            "certificates: {{default: acme}}\n    acme: {{directory: [{{url: \"https://{STRANGER}:{port}/dir\", root: ./ca.pem}}]}}"
        );
        host.write(&APP.replace("certificates: {default: local}", &acme));
        // The scratch host has a name server of its own; nobody else sees it.
        fs::write(host.folder.join("resolv.conf"), format!("nameserver {STRANGER}\n")).unwrap();
        let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
        let resolv = host.folder.join("resolv.conf");
        let wrapper = ["unshare", "--mount", "sh", "-c", script, resolv.to_str().unwrap()];
        Running::start(host.wrapped(&wrapper, Path::new(PALISADE), &["up", "--wait"])).end(PATIENCE).expect(0);
        Self { host, agent: host.agent().unwrap().to_string() }
    }

    pub(super) fn palisade(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let folder = format!("--wd={}", self.host.folder.display());
        let wrapper = ["nsenter", "-t", &self.agent, "-m", &folder];
        let ran = Running::start(self.host.wrapped(&wrapper, Path::new(PALISADE), arguments)).end(PATIENCE);
        (ran.code, format!("{}{}", ran.out, ran.err))
    }

    /// What the stack's log says of one kind, as data.
    pub(super) fn events(&self, kind: &str) -> Vec<Value> {
        let (code, text) = self.palisade(&["events", "--format", "json"]);
        assert_eq!(code, Some(0), "{text}");
        let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        all.filter(|event| event["kind"] == kind).collect()
    }

    /// The serial number that a client is shown, or nothing.
    pub(super) fn serial(&self) -> String {
        let script = format!(
            "timeout 20 openssl s_client -connect {HOST}:443 -servername shop.example </dev/null 2>/dev/null | openssl x509 -noout -serial"
        );
        let mut command = Command::new("sh");
        let output = self.host.internet.run(|| command.args(["-c", &script]).output()).unwrap().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Waits until another certificate than this one is shown.
    pub(super) fn other_than(&self, serial: &str) -> String {
        patiently("another certificate", || Some(self.serial()).filter(|shown| !shown.is_empty() && shown != serial))
    }

    /// Makes the worker look now.
    pub(super) fn look(&self) {
        let init = self.host.pid("palisade-certificates.1").unwrap();
        let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap();
        let worker = Pid::from_raw(children.split_whitespace().next().unwrap().parse().unwrap());
        kill(worker, Signal::SIGHUP).unwrap();
    }

    /// The worker's folder.
    pub(super) fn authorities(&self) -> PathBuf {
        self.host.layout.volume(AUTHORITIES_VOLUME)
    }

    /// Failures in a row, as the worker has noted them.
    pub(super) fn failures(&self) -> u64 {
        let file = self.authorities().join("domains/shop.example.json");
        let notes: Value = serde_json::from_slice(&fs::read(file).unwrap_or_default()).unwrap_or_default();
        notes["failures"].as_u64().unwrap_or(0)
    }

    pub(super) fn down(&self) {
        let (code, said) = self.palisade(&["down", "--volumes", "--yes"]);
        assert_eq!(code, Some(0), "{said}");
    }
}

/// Asks all the time who doesn't trust what has expired, or what another authority has issued.
const CLIENT: &str = r#"
import collections, http.client, os, select, socket, ssl, sys, threading, time
host, root, out = sys.argv[1:]
context = ssl.create_default_context(cafile=root)
lock, counts, over = threading.Lock(), collections.Counter(), threading.Event()
def count(what):
    with lock: counts[what] += 1
class Connection(http.client.HTTPSConnection):
    def connect(self):
        self.sock = context.wrap_socket(socket.create_connection((host, 443), 10), server_hostname='shop.example')
def ask(connection):
    connection.request('GET', '/')
    answer = connection.getresponse()
    if answer.status != 200 or not answer.read().startswith(b'version 1 '): raise OSError(f'status {answer.status}')
def often():
    while not over.is_set():
        try:
            connection = Connection('shop.example', timeout=10)
            ask(connection)
            count(connection.sock.getpeercert()['serialNumber'].lstrip('0').upper())
            connection.close()
        except (OSError, http.client.HTTPException) as error: count(f'FAILED new: {error!r}')
        time.sleep(0.02)
def kept():
    connection = Connection('shop.example', timeout=10)
    while not over.is_set():
        try: ask(connection)
        except (OSError, http.client.HTTPException) as error:
            count(f'FAILED kept: {error!r}')
            break
        count('kept')
        time.sleep(0.02)
def tell():
    with lock: lines = ''.join(f'{number} {what}\n' for what, number in counts.items())
    with open(out + '.new', 'w') as file: file.write(lines)
    os.rename(out + '.new', out)
threads = [threading.Thread(target=work) for work in (often, kept)]
for thread in threads: thread.start()
end = time.time() + 180
while time.time() < end and not select.select([sys.stdin], [], [], 0.2)[0]: tell()
over.set()
for thread in threads: thread.join()
tell()
"#;

pub(super) struct Client {
    child: Child,
    told: PathBuf,
}

impl Client {
    pub(super) fn start(host: &Host, root: &Path) -> Self {
        let told = host.folder.join("client");
        let mut command = Command::new("python3");
        command.args(["-c", CLIENT, &HOST.to_string()]).arg(root).arg(&told);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let child = host.internet.run(|| command.spawn()).unwrap().unwrap();
        Self { child, told }
    }

    /// How many answers there were, by certificate (`kept`: over the one connection that stays).
    pub(super) fn counts(&self) -> Vec<(u64, String)> {
        let text = fs::read_to_string(&self.told).unwrap_or_default();
        let line = |line: &str| line.split_once(' ').and_then(|(n, what)| Some((n.parse().ok()?, what.to_owned())));
        text.lines().filter_map(line).collect()
    }

    pub(super) fn end(mut self) -> Vec<(u64, String)> {
        let _ = self.child.stdin.take().map(|mut pipe| pipe.write_all(b"\n"));
        self.child.wait().unwrap();
        self.counts()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
