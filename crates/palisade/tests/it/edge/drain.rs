//! Downloads that are on their way while the edge is replaced: for as long as `drain` says they go on.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::shop::{APP, Shop};
use crate::need_root;
use crate::scratch::{HOST, PATIENCE, Running, patiently};

/// The application, with a download that lasts until somebody asks for `/finish`. Whatever is different in `fields` needs another edge.
fn file(drain: &str, fields: u32) -> String {
    let python = "def do_GET(self):
                    if self.path == '/finish': over.set()
                    if self.path == '/download':
                        self.send_response(200)
                        self.send_header('Transfer-Encoding', 'chunked')
                        self.end_headers()
                        while not over.wait(0.1): self.wfile.write(b'3e8\\r\\n' + b'x' * 1000 + b'\\r\\n')
                        return self.wfile.write(b'3\\r\\nend\\r\\n0\\r\\n\\r\\n')
";
    APP.replace("def do_GET(self):\n", python)
        .replace("import http.server, os\n", "import http.server, os, threading; over = threading.Event()\n")
        .replace("  edge:\n", &format!("  edge:\n    drain: {drain}\n    limits: {{header_fields: {fields}}}\n"))
}

struct Download {
    curl: Running,
    into: PathBuf,
}

impl Download {
    /// Returns when some of it is here.
    fn begin(shop: &Shop) -> Self {
        let into = shop.0.folder.join("download");
        let _ = fs::remove_file(&into);
        let mut command = Command::new("curl");
        command.args(["-sS", "--no-buffer", "--max-time", "300", "--cacert"]).arg(shop.root());
        command.args(["--resolve", &format!("shop.example:443:{HOST}"), "-o"]).arg(&into);
        command.arg("https://shop.example/download");
        let curl = shop.0.internet.run(|| Running::start(command)).unwrap();
        let download = Self { curl, into };
        patiently("some of the download", || (download.text().len() > 2_000).then_some(()));
        download
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.into).unwrap_or_default()
    }
}

/// How often an edge was told to stop.
fn stops(shop: &Shop) -> usize {
    let events = shop.0.palisade(&["events"]).expect(0).out;
    events.lines().filter(|line| line.contains(" palisade-edge.") && line.contains(" stopping ")).count()
}

#[test]
fn downloads_go_on_for_as_long_as_it_is_said_when_the_edge_is_replaced() {
    need_root!("edge::drain::downloads_go_on_for_as_long_as_it_is_said_when_the_edge_is_replaced");
    let shop = Shop::new(&file("1s", 101));
    let download = Download::begin(&shop);
    shop.up(&file("5m", 102)).expect(0);
    let text = download.text();
    let cut = download.curl.end(PATIENCE);
    assert!(cut.code != Some(0) && !text.ends_with("end"), "{cut:?}");

    // The one that serves now has minutes.
    let mut download = Download::begin(&shop);
    shop.0.write(&file("5m", 103));
    let mut up = Running::start(shop.0.command(&["up"]));
    patiently("the former edge is told to stop", || (stops(&shop) == 2).then_some(()));
    // Longer than the first one had.
    std::thread::sleep(Duration::from_secs(4));
    assert!(!download.curl.is_over() && !up.is_over(), "it was cut");
    let (code, _) = shop.curl(&["https://shop.example/finish"]);
    assert_eq!(code, Some(0));
    patiently("the download's end", || download.curl.is_over().then_some(()));
    assert!(download.text().ends_with("end"));
    assert_eq!(download.curl.end(PATIENCE).code, Some(0));
    up.end(PATIENCE).expect(0);
    shop.0.down();
}
