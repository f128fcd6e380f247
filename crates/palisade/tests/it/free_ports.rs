//! Ports of 127.0.0.1 for servers that a test starts in the machine's own network. No test stands here.

use std::fs::File;
use std::net::TcpListener;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below those that the kernel gives to whoever doesn't care (32768 and on, `ip_local_port_range`).
const PORTS: std::ops::Range<u16> = 12_000..32_000;
const WINDOW: u16 = 200;

/// The first port of a window that is this process's as long as it lives: whoever tries whether a port is free can't tell
/// that another test is about to use it.
static FIRST: LazyLock<(u16, File)> = LazyLock::new(|| {
    PORTS
        .step_by(WINDOW.into())
        .find_map(|first| {
            let path = std::env::temp_dir().join(format!("palisade-test-ports-{first}"));
            let file = File::options().create(true).truncate(false).write(true).open(path).ok()?;
            file.try_lock().ok()?;
            Some((first, file))
        })
        .expect("a window of ports that no other test has")
});

/// Ports that nobody listens on, others each time.
pub(crate) fn free_ports<const COUNT: usize>() -> [u16; COUNT] {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    [(); COUNT].map(|()| {
        loop {
            let tried = TRIED.fetch_add(1, Ordering::Relaxed);
            assert!(tried < WINDOW, "these tests need more ports than their window has");
            let port = FIRST.0 + tried;
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return port;
            }
        }
    })
}
