//! Audits of servers that really serve TLS: nginx, OpenSSL and PostgreSQL with certificates of OpenSSL; and of listeners that
//! say nothing, talk nonsense or never stop.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::audit::{audit, postgres_programs};
use crate::need_root;
use crate::scratch::{Host, patiently};
use crate::support::skipped;

/// An authority of the test's own, and what it signs.
struct Authority {
    folder: PathBuf,
}

impl Authority {
    fn new(folder: &Path) -> Self {
        let folder = folder.join("authority");
        fs::create_dir_all(folder.join("new")).unwrap();
        let config = format!(
            "[ca]\ndefault_ca=d\n[d]\ndir={0}\nnew_certs_dir={0}/new\ndatabase={0}/index\nserial={0}/serial\n\
             default_md=sha256\npolicy=p\nunique_subject=no\ncopy_extensions=copy\n[p]\ncommonName=supplied\n\
             [req]\ndistinguished_name=n\n[n]\n",
            folder.display()
        );
        fs::write(folder.join("config"), config).unwrap();
        fs::write(folder.join("index"), "").unwrap();
        fs::write(folder.join("serial"), "1000\n").unwrap();
        let authority = Self { folder };
        let new_key =
            ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650"];
        authority
            .openssl(&[&new_key[..], &["-subj", "/CN=Test Root", "-keyout", "root.key", "-out", "root.pem"]].concat());
        authority
    }

    fn openssl(&self, arguments: &[&str]) {
        let ran =
            Command::new("openssl").args(arguments).current_dir(&self.folder).stdin(Stdio::null()).output().unwrap();
        assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
    }

    /// `NAME.pem` and `NAME.key`, from and until so many days from now.
    fn sign(&self, name: &str, subject: &str, days: [i64; 2], key: &[&str], more: &[&str]) {
        let [csr, keyfile, pem] = ["csr", "key", "pem"].map(|end| format!("{name}.{end}"));
        let subject = format!("/CN={subject}");
        let new = ["req", "-new", "-nodes", "-config", "config", "-subj", &subject, "-keyout", &keyfile, "-out", &csr];
        self.openssl(&[&new[..], key, more].concat());
        let [from, until] = days.map(|days| {
            let day =
                Command::new("date").args(["-u", "-d", &format!("{days} days"), "+%Y%m%d%H%M%SZ"]).output().unwrap();
            String::from_utf8(day.stdout).unwrap().trim().to_owned()
        });
        let sign = ["ca", "-batch", "-notext", "-config", "config", "-cert", "root.pem", "-keyfile", "root.key"];
        let dates = ["-startdate", &from, "-enddate", &until, "-in", &csr, "-out", &pem];
        self.openssl(&[&sign[..], &dates].concat());
    }

    fn path(&self, file: &str) -> String {
        self.folder.join(file).display().to_string()
    }
}

/// A program that is ended with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn listens(port: u16) {
    patiently(&format!("a server at port {port}"), || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
}

const EC: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
const PUBLIC: &str = "authorityInfoAccess=caIssuers;URI:http://ca.example/root";

fn of_tls(report: &Value) -> Vec<String> {
    let all = report["findings"].as_array().unwrap().iter();
    let of = all.filter(|it| it["id"].as_str().unwrap().starts_with("tls-"));
    let text = |it: &Value, key: &str| it[key].as_str().unwrap().to_owned();
    of.map(|it| format!("{} {} {}", text(it, "severity"), text(it, "id"), text(it, "subject"))).collect()
}

/// An audit that finds exactly this of TLS. A server that is kept from answering for a second is taken for silent.
#[track_caller]
fn audit_until(host: &Host, asked: &[&str], expected: &[&str]) -> Value {
    let mut report = audit(host, asked);
    for _ in 0..4 {
        if of_tls(&report) == expected {
            break;
        }
        report = audit(host, asked);
    }
    assert_eq!(of_tls(&report), expected);
    report
}

fn lacks(test: &str, programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| !Path::new(program).exists());
    if let Some(program) = missing {
        skipped(test, &format!("there is no {program}"));
    }
    missing.is_some()
}

#[test]
fn certificates_are_judged_as_they_are_served() {
    const TEST: &str = "audit_served::certificates_are_judged_as_they_are_served";
    need_root!("audit_served::certificates_are_judged_as_they_are_served");
    if lacks(TEST, &["/usr/sbin/nginx", "/usr/bin/openssl"]) {
        return;
    }
    let host = Host::of("nothing");
    let authority = Authority::new(&host.folder);
    let names = |name: &str| format!("subjectAltName=DNS:{name}");
    let sign = |name: &str, days| {
        authority.sign(name, name, days, EC, &["-addext", &names(name), "-addext", PUBLIC]);
    };
    sign("shop.example", [-30, 60]);
    sign("old.example", [-90, -1]);
    sign("soon.example", [-80, 10]);
    sign("early.example", [2, 90]);
    authority.sign("weak", "weak.example", [-30, 60], &["-newkey", "rsa:1024"], &["-addext", &names("weak.example")]);
    fs::write(authority.path("chain.pem"), {
        let [leaf, root] =
            ["shop.example.pem", "root.pem"].map(|file| fs::read_to_string(authority.path(file)).unwrap());
        leaf + &root
    })
    .unwrap();
    let server = |listen: &str, name: &str, pem: &str, key: &str| {
        format!(
            "server {{ listen {listen}; server_name {name}; ssl_certificate {}; ssl_certificate_key {}; }}\n",
            authority.path(pem),
            authority.path(key)
        )
    };
    let blocks = [
        server("443 ssl default_server", "shop.example", "chain.pem", "shop.example.key"),
        server("443 ssl", "old.example", "old.example.pem", "old.example.key"),
        server("8443 ssl", "soon.example", "soon.example.pem", "soon.example.key"),
        server("8444 ssl", "early.example", "early.example.pem", "early.example.key"),
        // For this host only.
        server("127.0.0.1:8445 ssl", "old.example", "old.example.pem", "old.example.key"),
    ];
    let folder = host.folder.display();
    let config = format!(
        "daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; events {{}}\nhttp {{ access_log off; \
         client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path \
         {folder}/u; scgi_temp_path {folder}/s;\n{}}}\n",
        blocks.concat()
    );
    fs::write(host.folder.join("nginx.conf"), config).unwrap();
    let nginx = Command::new("nginx").arg("-c").arg(host.folder.join("nginx.conf")).stderr(Stdio::null()).spawn();
    let _nginx = Nginx(nginx.unwrap());
    let weak = ["s_server", "-4", "-accept", "8446", "-www", "-quiet", "-cipher", "DEFAULT@SECLEVEL=0", "-no_tls1_3"];
    let weak = Command::new("openssl")
        .args(weak)
        .args(["-cert", &authority.path("weak.pem"), "-key", &authority.path("weak.key")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _weak = Server(weak.unwrap());
    [443, 8443, 8444, 8445, 8446].into_iter().for_each(listens);

    let asked = ["--tls-name", "old.example", "--tls-name", "shop.example", "--tls-name", "www.shop.example"];
    let expected = [
        "error tls-expired 443/tcp",
        "error tls-expired 8444/tcp",
        "error tls-wrong-name 443/tcp www.shop.example",
        "warning tls-expired 8445/tcp",
        "warning tls-expires-soon 8443/tcp",
        "warning tls-weak 8446/tcp",
        "warning tls-chain-incomplete 443/tcp",
        "warning tls-chain-incomplete 8443/tcp",
        "warning tls-chain-incomplete 8444/tcp",
        "warning tls-old-version 8446/tcp",
        "note tls-chain-incomplete 8445/tcp",
        "note tls-self-signed 443/tcp",
        "note tls-self-signed 8446/tcp",
    ];
    let report = audit_until(&host, &asked, &expected);
    let all = report["findings"].as_array().unwrap();
    let of = |id: &str, subject: &str| {
        let found = all.iter().find(|it| it["id"] == id && it["subject"] == subject);
        found.unwrap_or_else(|| panic!("{id} {subject}: {report:#}"))
    };
    let expired = of("tls-expired", "443/tcp");
    assert!(
        expired["message"].as_str().unwrap().starts_with("the certificate of old.example expired on "),
        "{expired}"
    );
    assert!(
        expired["evidence"][0].as_str().unwrap().contains(":443 asked for old.example: CN=old.example"),
        "{expired}"
    );
    let weak = of("tls-weak", "8446/tcp")["message"].as_str().unwrap();
    assert!(weak.starts_with("the key of weak.example is RSA with 1024 bits"), "{weak}");
    let old = of("tls-old-version", "8446/tcp")["message"].as_str().unwrap();
    assert!(old.starts_with("a server agrees to TLS 1.0 and TLS 1.1"), "{old}");
    let unnamed = host.palisade(&["audit", "--host-only", "--tls-name", "not a name"]).expect(2);
    assert!(unnamed.err.contains("`not a name` is no name"), "{unnamed:?}");
}

/// Its workers end when their master is asked to.
struct Nginx(Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

#[test]
fn postgresql_is_asked_for_its_certificate_in_its_own_words() {
    const TEST: &str = "audit_served::postgresql_is_asked_for_its_certificate_in_its_own_words";
    need_root!("audit_served::postgresql_is_asked_for_its_certificate_in_its_own_words");
    let Some(bin) = postgres_programs() else { return skipped(TEST, "no PostgreSQL in /usr/lib/postgresql") };
    if lacks(TEST, &["/usr/bin/openssl"]) {
        return;
    }
    let host = Host::of("nothing");
    let authority = Authority::new(&host.folder);
    authority.sign("db", "db.example", [-90, -1], EC, &["-addext", "subjectAltName=DNS:db.example"]);
    fs::set_permissions(&host.folder, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let data = host.folder.join("data").display().to_string();
    let as_postgres = |arguments: &[&str]| {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).args(arguments).current_dir("/");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let [initdb, postgres] = ["initdb", "postgres"].map(|program| bin.join(program).display().to_string());
    assert!(as_postgres(&[&initdb, "-D", &data, "-A", "peer", "-N"]).status().unwrap().success());
    for (from, to) in [("db.pem", "server.crt"), ("db.key", "server.key")] {
        let to = format!("{data}/{to}");
        fs::copy(authority.path(from), &to).unwrap();
        assert!(Command::new("chown").args(["postgres", &to]).status().unwrap().success());
        fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }
    let sockets = format!("unix_socket_directories={}", host.folder.display());
    let arguments = ["-D", &data, "-c", "ssl=on", "-c", "listen_addresses=*", "-c", &sockets, "-c", "port=54322"];
    let mut server = as_postgres(&[&[postgres.as_str()], &arguments[..]].concat()).spawn().unwrap();
    listens(54322);
    audit_until(&host, &[], &["error tls-expired 54322/tcp", "note tls-self-signed 54322/tcp"]);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(server.id() as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
    server.wait().unwrap();
}

#[test]
fn listeners_that_say_nothing_or_never_stop_do_no_harm() {
    need_root!("audit_served::listeners_that_say_nothing_or_never_stop_do_no_harm");
    let host = Host::of("nothing");
    // Nobody accepts: connections wait in the kernel.
    let _silent: Vec<_> = (20_000..20_400).map(|port| TcpListener::bind(("0.0.0.0", port)).unwrap()).collect();
    let _known = TcpListener::bind("0.0.0.0:443").unwrap();
    let talks = |port: u16, bytes: &'static [u8]| {
        let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let _ = stream.set_write_timeout(Some(Duration::from_secs(60)));
                    while stream.write_all(bytes).is_ok() {}
                });
            }
        });
    };
    talks(8443, b"\x16\x03\x03\x40\x00\x01\x02\x03");
    talks(993, b"* OK this is not TLS at all\r\n");
    talks(8080, &[0x16; 4096]);
    let report = audit(&host, &[]);
    assert_eq!(of_tls(&report), [""; 0]);
    assert_eq!(report["tls"], serde_json::json!([]));
    assert!(report["unknown"].to_string().contains("what is served at 0.0.0.0:443: no answer within"), "{report:#}");
    // Waiting for each in its turn would take seven minutes.
    let took = report["duration_ms"].as_u64().unwrap();
    assert!(took < 60_000, "{took} ms");
}
