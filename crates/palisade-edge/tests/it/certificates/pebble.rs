//! Debian's `pebble`, a certificate authority for tests, and `pebble-challtestsrv`, the name server that it asks.

use crate::support::{Folder, free_address, own_address, skipped, wait_until};
use palisade_core::edge::AcmeDirectory;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Says so if a program is missing, and which test is skipped for it.
pub(crate) fn is_here(test: &str) -> bool {
    let here = ["pebble", "pebble-challtestsrv"].iter().all(|name| {
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|folder| folder.join(name).exists())
    });
    if !here {
        skipped(test, "it needs pebble (scripts/install-deps test)");
    }
    here
}

/// What is special about an authority.
#[derive(Clone)]
pub(crate) struct Wish {
    /// Where it finds domains.
    pub(crate) http: SocketAddr,
    pub(crate) tls: SocketAddr,
    /// Seconds.
    pub(crate) validity_s: u64,
    /// Key identifier and key in base64url.
    pub(crate) external: Option<(&'static str, &'static str)>,
    pub(crate) blocked: Vec<&'static str>,
    /// In a hundred nonces.
    pub(crate) bad_nonces: u32,
    /// Seconds that it may take to look.
    pub(crate) slow_s: Option<u32>,
}

impl Wish {
    pub(crate) fn new(http: SocketAddr, tls: SocketAddr) -> Self {
        Self { http, tls, validity_s: 86_400, external: None, blocked: vec![], bad_nonces: 5, slow_s: None }
    }
}

/// A running authority. It is killed with the value.
pub(crate) struct Authority {
    pub(crate) api: SocketAddr,
    management: SocketAddr,
    folder: Folder,
    wish: Wish,
    pebble: Option<Child>,
    names: Child,
    names_at: SocketAddr,
}

impl Authority {
    pub(crate) fn start(wish: Wish) -> Self {
        let folder = Folder::new();
        let (api, management) = (free_address(), free_address());
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = CertifiedIssuer::self_signed(root, KeyPair::generate().expect("a key")).expect("a root");
        let key = KeyPair::generate().expect("a key");
        let leaf = CertificateParams::new([own_address().to_string()]).expect("an address is a name");
        let leaf = leaf.signed_by(&key, &root).expect("a certificate");
        for (name, text) in [("root.pem", root.pem()), ("leaf.pem", leaf.pem()), ("key.pem", key.serialize_pem())] {
            std::fs::write(folder.path().join(name), text).expect("the folder is there");
        }
        let (names_at, names_management) = (free_address(), free_address());
        let names = Command::new("pebble-challtestsrv")
            .args(["-dns01", &names_at.to_string(), "-management", &names_management.to_string()])
            .args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", ""])
            .args(["-defaultIPv4", &wish.http.ip().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it was looked for");
        let mut authority = Self { api, management, folder, wish, pebble: None, names, names_at };
        wait_until("the name server listens", || TcpStream::connect(names_at).is_ok());
        authority.up();
        authority
    }

    /// Starts it (again), without any memory of former orders and accounts.
    pub(crate) fn up(&mut self) {
        let file = |name: &str| self.folder.path().join(name);
        let wish = &self.wish;
        let keys = wish.external.iter().map(|(id, key)| ((*id).to_owned(), json!(key)));
        let config = json!({ "pebble": {
            "listenAddress": self.api.to_string(),
            "managementListenAddress": self.management.to_string(),
            "certificate": file("leaf.pem"),
            "privateKey": file("key.pem"),
            "httpPort": wish.http.port(),
            "tlsPort": wish.tls.port(),
            "externalAccountBindingRequired": wish.external.is_some(),
            "externalAccountMACKeys": keys.collect::<serde_json::Map<_, _>>(),
            "domainBlocklist": wish.blocked,
            "certificateValidityPeriod": wish.validity_s,
        }});
        std::fs::write(file("config.json"), config.to_string()).expect("the folder is there");
        let mut command = Command::new("pebble");
        match wish.slow_s {
            Some(seconds) => command.env("PEBBLE_VA_SLEEPTIME", seconds.to_string()),
            None => command.env("PEBBLE_VA_NOSLEEP", "1"),
        };
        let log = std::fs::File::create(file("log")).expect("the folder is there");
        let pebble = command
            .env("PEBBLE_WFE_NONCEREJECT", wish.bad_nonces.to_string())
            .args(["-config", &file("config.json").to_string_lossy(), "-dnsserver", &self.names_at.to_string()])
            .args(["-strict=false"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("it was looked for");
        self.pebble = Some(pebble);
        wait_until("the authority listens", || TcpStream::connect(self.api).is_ok());
    }

    /// The same, with certificates that are good for so many seconds.
    pub(crate) fn up_for(&mut self, validity_s: u64) {
        self.wish.validity_s = validity_s;
        self.up();
    }

    pub(crate) fn down(&mut self) {
        if let Some(mut pebble) = self.pebble.take() {
            let _ = pebble.kill();
            let _ = pebble.wait();
        }
    }

    pub(crate) fn directory(&self) -> AcmeDirectory {
        AcmeDirectory { url: format!("https://{}/dir", self.api), root: Some(self.api_root()), eab: None }
    }

    /// The root of its own server.
    pub(crate) fn api_root(&self) -> PathBuf {
        self.folder.path().join("root.pem")
    }

    /// How many orders were made.
    pub(crate) fn orders(&self) -> usize {
        self.log().matches("Added order").count()
    }

    /// What it says of itself: each request and each look at a domain.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// The root of what it has issued, in a file.
    pub(crate) fn issued_root(&self) -> PathBuf {
        let file = self.folder.path().join("issued-root.pem");
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--insecure", "--noproxy", "*", "--output"])
            .arg(&file)
            .arg(format!("https://{}/roots/0", self.management))
            .output()
            .expect("curl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        file
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.down();
        let _ = self.names.kill();
        let _ = self.names.wait();
    }
}
