//! Somebody on the internet who asks all the time: over new connections, and over ones that are kept as browsers keep them.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::shop::Shop;
use crate::scratch::{HOST, patiently};

/// A kept connection that the server has closed between two requests is no failure: whoever reuses one asks again (RFC 9112,
/// section 9.3.1). A new one is.
const CLIENT: &str = r#"
import collections, http.client, socket, ssl, sys, threading, time
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
    text = answer.read().decode()
    if answer.status != 200: raise OSError(f'status {answer.status}')
    count(' '.join(text.split()[:2]))
    return answer.getheader('Connection') == 'close'
def often():
    while not over.is_set():
        try:
            connection = Connection('shop.example', timeout=10)
            ask(connection)
            connection.close()
        except (OSError, http.client.HTTPException) as error: count(f'FAILED new: {error!r}')
        time.sleep(0.01)
def kept():
    while not over.is_set():
        connection, used = Connection('shop.example', timeout=10), False
        while not over.is_set():
            try:
                if ask(connection): break
                used = True
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
                count('asked again' if used else f'FAILED kept: {error!r}')
                break
            except (OSError, http.client.HTTPException) as error:
                count(f'FAILED kept: {error!r}')
                break
            time.sleep(0.003)
        connection.close()
threads = [threading.Thread(target=work) for work in (often, kept, kept)]
for thread in threads: thread.start()
def tell():
    with lock: lines = ''.join(f'{number} {what}\n' for what, number in counts.items())
    with open(out + '.new', 'w') as file: file.write(lines)
    import os; os.rename(out + '.new', out)
end = time.time() + 600
import select
while time.time() < end and not select.select([sys.stdin], [], [], 0.2)[0]: tell()
over.set()
for thread in threads: thread.join()
tell()
"#;

pub(super) struct Load {
    child: Child,
    told: PathBuf,
}

impl Load {
    /// Begins, and returns when it is answered.
    pub(super) fn start(shop: &Shop) -> Self {
        let told = shop.0.folder.join("load");
        let mut command = Command::new("python3");
        command.args(["-c", CLIENT, &HOST.to_string()]).arg(shop.root()).arg(&told);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        command.stderr(File::create(shop.0.folder.join("load.err")).unwrap());
        let child = shop.0.internet.run(|| command.spawn()).unwrap().unwrap();
        let load = Self { child, told };
        load.wait_for("version 1", 50);
        load
    }

    fn counts(&self) -> Vec<(u64, String)> {
        let text = fs::read_to_string(&self.told).unwrap_or_default();
        let line = |line: &str| {
            let (number, what) = line.split_once(' ')?;
            Some((number.parse().ok()?, what.to_owned()))
        };
        text.lines().filter_map(line).collect()
    }

    fn count(&self, what: &str) -> u64 {
        self.counts().into_iter().find(|(_, known)| known == what).map_or(0, |(number, _)| number)
    }

    /// Until so many more answers are such.
    pub(super) fn wait_for(&self, what: &str, more: u64) {
        let before = self.count(what);
        patiently(&format!("{what}: {:?}", self.counts()), || (self.count(what) >= before + more).then_some(()));
    }

    /// Ends it. Nothing may have failed; tells how often a kept connection had to be made anew.
    pub(super) fn end(mut self) -> u64 {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
        let counts = self.counts();
        assert!(counts.iter().all(|(_, what)| !what.starts_with("FAILED")), "{counts:?}");
        eprintln!("{counts:?}");
        self.count("asked again")
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
