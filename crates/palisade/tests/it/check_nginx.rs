//! `check-nginx` beside the real `nginx -t`, on configurations that people have, and in front of a stack.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::export_edge::{Shop, Tool, missing};
use crate::need_root;
use crate::support::{PALISADE, skipped};

/// Runs it in the folder: exit code, standard output, standard error.
fn checked(folder: &Path, arguments: &[&str], stdin: &str) -> (i32, String, String) {
    let mut child = Command::new(PALISADE)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

const COMPOSE: &str = r#"
name: shop
services:
  web: { image: "web:1", ports: ["127.0.0.1:8081:80"] }
  admin: { image: "admin:1", ports: ["127.0.0.1:8082:80"] }
  open: { image: "open:1", ports: ["8083:80"] }
  db: { image: "postgres:16", ports: ["127.0.0.1:15432:5432"] }
x-palisade:
  edge:
    - { domain: shop.example, to: "web:80" }
    - { domain: shop.example, path: /open, to: "open:80" }
"#;

#[test]
fn the_configuration_of_the_distribution_is_fine() {
    const TEST: &str = "check_nginx::the_configuration_of_the_distribution_is_fine";
    let untouched = Command::new("dpkg").args(["--verify", "nginx-common"]).output();
    if !untouched.is_ok_and(|output| output.status.success() && output.stdout.is_empty()) {
        return skipped(TEST, "/etc/nginx isn't as Debian's package has it");
    }
    let shop = Shop::new("name: shop\nservices: {}\n");
    let (code, out, said) = checked(&shop.folder, &["check-nginx", "/etc/nginx/nginx.conf"], "");
    assert_eq!((code, out.contains("nothing wrong")), (0, true), "{out}{said}");
    let (code, out, said) = checked(&shop.folder, &["check-nginx", "/etc/nginx/sites-available/default"], "");
    assert_eq!((code, out.contains("nothing wrong")), (0, true), "{out}{said}");
}

/// What stands in a server, or in `http` around it, and whether nginx takes it.
const JUDGED: &[(&str, &str, bool)] = &[
    ("", "location / { return 404; }", true),
    ("limit_req_zone $binary_remote_addr zone=a:1m rate=1r/s;", "limit_req zone=a; limit_req_status 429;", true),
    ("", "limit_req_zone $binary_remote_addr zone=a:1m rate=1r/s;", false),
    ("", "limit_conn_zone $binary_remote_addr zone=a:1m;", false),
    ("", "map $uri $a { default 1; }", false),
    ("", "upstream a { server 127.0.0.1:1; }", false),
    ("upstream a { server 127.0.0.1:1; keepalive 8; keepalive_timeout 60s; }", "", true),
    ("", "set $u http://127.0.0.1:1; location / { proxy_pass $u; }", true),
    ("", "log_format a b;", false),
    ("", "proxy_pass http://127.0.0.1:1;", false),
    ("", "location / { server_name a; }", false),
    ("", "location / { ssl_protocols TLSv1.2; }", false),
    ("", "worker_processes 2;", false),
    ("", "alias /srv;", false),
    ("location / { }", "", false),
    ("proxy_pass http://127.0.0.1:1;", "", false),
    ("listen 80;", "", false),
    ("worker_connections 10;", "", false),
    ("", "if ($a) { root /srv; }", false),
    ("", "location / { if ($uri) { proxy_pass http://127.0.0.1:1; } }", true),
    ("", "location / { if ($uri) { alias /srv; } }", false),
    ("", "location / { limit_except GET { proxy_pass http://127.0.0.1:1; } }", true),
    ("", "location / { limit_except GET { return 403; } }", false),
    ("", "limit_req zone=nobody;", false),
    ("", "limit_conn nobody 1;", false),
    ("", "set $a \"x\"y;", false),
    ("", "set $a \"x;", false),
    ("", "set $a 'x;y{z}'; set $b ${a}c; set $c a\\;b; set $d \"a\\\"b\";", true),
    ("", "return 404", false),
    ("", "location / { return 404; }}", false),
    ("", ";", false),
    ("", "location ~ ^/a{2}$ { return 404; }", false),
    ("", "location ~ \"^/a{2}$\" { return 404; }", true),
    ("", "add_header A b; location / { if ($uri) { add_header A b; } }", true),
];

#[test]
fn what_nginx_refuses_for_its_form_is_refused_and_what_it_takes_is_not() {
    const TEST: &str = "check_nginx::what_nginx_refuses_for_its_form_is_refused_and_what_it_takes_is_not";
    need_root!("check_nginx::what_nginx_refuses_for_its_form_is_refused_and_what_it_takes_is_not");
    if let Some(missing) = missing(&["nginx", "openssl"]) {
        return skipped(TEST, &missing);
    }
    let shop = Shop::new("name: shop\nservices: {}\n");
    let here = shop.folder.display();
    for (http, server, taken) in JUDGED {
        let text = format!(
            "pid {here}/pid; error_log {here}/log/e; events {{ }} http {{ access_log off; {http}\nserver {{ listen 127.0.0.1:1; \
             {server}\n}} }}\n"
        );
        let file = shop.folder.join("judged.conf");
        fs::write(&file, &text).unwrap();
        let (real, said) = shop.tried(Tool::Nginx, &file);
        assert_eq!(real, *taken, "nginx on {http} | {server}: {said}");
        let (code, out, said) = checked(&shop.folder, &["check-nginx", "judged.conf"], "");
        assert_eq!(code == 0, *taken, "{http} | {server}: {out}{said}");
    }
}

#[test]
fn a_stack_says_what_is_meant_to_be_internal() {
    let shop = Shop::new(COMPOSE);
    fs::create_dir_all(shop.folder.join("sites")).unwrap();
    fs::write(shop.folder.join("nginx.conf"), "events { }\nhttp {\n  server_tokens off;\n  include sites/*.conf;\n}\n")
        .unwrap();
    let key = shop.folder.join("key.pem");
    let site = format!(
        "server {{\n  listen 443 ssl;\n  listen [::]:443 ssl;\n  server_name shop.example;\n  ssl_certificate chain.pem;\n  \
         ssl_certificate_key {};\n  location / {{ proxy_pass http://127.0.0.1:8081; }}\n  location /admin {{ proxy_pass \
         http://127.0.0.1:8082; }}\n  location /open {{ proxy_pass http://127.0.0.1:8083; }}\n  location /db {{ proxy_pass \
         http://127.0.0.1:15432; }}\n}}\n",
        key.display()
    );
    fs::write(shop.folder.join("sites/a.conf"), &site).unwrap();
    let ids = |out: &str| -> Vec<(String, u64)> {
        let report: Value = serde_json::from_str(out).unwrap();
        assert_eq!(report["version"], 1);
        let each = report["diagnostics"].as_array().unwrap();
        each.iter().map(|it| (it["id"].as_str().unwrap().to_owned(), it["place"]["line"].as_u64().unwrap())).collect()
    };
    let expected = [("internal-service-proxied", 8), ("upstream-public", 9), ("internal-port-proxied", 10)];
    let expected = expected.map(|(id, line)| (id.to_owned(), line));
    let (code, out, said) = checked(&shop.folder, &["check-nginx", "nginx.conf", "--format", "json"], "");
    assert_eq!(code, 1, "{said}");
    assert_eq!(ids(&out), expected, "{out}");

    // The same as a program prints it, and as text with the place and what to do.
    let dump = format!(
        "# configuration file /etc/nginx/nginx.conf:\nevents {{ }}\nhttp {{ server_tokens off; include sites/*.conf; }}\n\n\
         # configuration file /etc/nginx/sites/a.conf:\n{site}\n"
    );
    let (code, out, _) = checked(&shop.folder, &["check-nginx", "-", "--format", "json"], &dump);
    assert_eq!((code, ids(&out)), (1, expected.to_vec()), "{out}");
    let (code, out, said) = checked(&shop.folder, &["check-nginx", "nginx.conf"], "");
    assert_eq!(code, 1);
    assert!(said.contains("sites/a.conf:8:") && said.contains("admin:80 is internal to the stack"), "{said}");
    assert!(said.contains("compose.yaml:5:"), "it says where the service stands: {said}");
    assert!(out.contains("2 files, 2 errors, 1 warning"), "{out}");

    // A single site is looked at from the folder of its nginx.conf; what can't be read is an exit code of its own.
    let (code, out, said) = checked(&shop.folder, &["check-nginx", "sites/a.conf"], "");
    assert_eq!((code, out.contains("1 file,")), (1, true), "{out}{said}");
    fs::write(shop.folder.join("gone.conf"), "events { }\nhttp { include gone/gone.conf; }\n").unwrap();
    let (code, _, said) = checked(&shop.folder, &["check-nginx", "gone.conf"], "");
    assert_eq!((code, said.contains("gone/gone.conf isn't there")), (2, true), "{said}");
    assert_eq!(checked(&shop.folder, &["check-nginx", "nobody.conf"], "").0, 2);
    assert_eq!(checked(&shop.folder, &["check-nginx", "."], "").0, 2);
    let (code, ..) = checked(&shop.folder, &["-f", "nobody.yaml", "check-nginx", "nginx.conf"], "");
    assert_eq!(code, 2);
}
