//! Configurations and what is said about them; and that nothing of what a file may hold makes this crash.

use std::collections::BTreeSet;

use super::*;
use crate::diagnostic::{Style, render_all};

/// Files of an imagined host.
#[derive(Default)]
struct Files {
    texts: Vec<(&'static str, &'static str)>,
    there: Vec<&'static str>,
}

impl Source for Files {
    fn matching(&self, pattern: &str) -> Vec<(String, Result<String, String>)> {
        let found = self.texts.iter().filter(|(name, _)| matches(pattern, name));
        found.map(|(name, text)| ((*name).to_owned(), Ok((*text).to_owned()))).collect()
    }
    fn exists(&self, path: &str) -> Option<bool> {
        Some(self.there.contains(&path))
    }
}

/// Ids of what is found in a file whose certificates are there.
fn ids(text: &str) -> Vec<&'static str> {
    let source = Files { there: vec!["/c.pem", "/k.pem", "/srv/site/.git"], ..Files::default() };
    check("nginx.conf", text, &source, Known::default()).diagnostics.iter().map(|found| found.id).collect()
}

/// In the middle of a whole configuration with nothing wrong.
fn in_server(text: &str) -> Vec<&'static str> {
    ids(&format!(
        "events {{}} http {{ server_tokens off; server {{ listen 80 default_server; listen [::]:80 default_server; \
         return 308 https://$host$request_uri; }} server {{ listen 443 ssl default_server; listen [::]:443 ssl default_server; \
         server_name a.example; ssl_certificate /c.pem; ssl_certificate_key /k.pem;\n{text}\n}} }}"
    ))
}

fn in_http(text: &str) -> Vec<&'static str> {
    ids(&format!("events {{}} http {{ server_tokens off;\n{text}\n}}"))
}

#[test]
fn what_is_wrong_in_a_server_is_found_and_nothing_else() {
    for (text, expected) in [
        ("location / { proxy_pass http://127.0.0.1:8080; }", &[][..]),
        ("limit_req_zone $binary_remote_addr zone=a:10m rate=1r/s;", &["wrong-context"]),
        ("limit_conn_zone $binary_remote_addr zone=a:10m;", &["wrong-context"]),
        ("map $a $b { default 1; }", &["wrong-context"]),
        ("upstream a { server 127.0.0.1:1; }", &["wrong-context"]),
        ("proxy_pass http://127.0.0.1:8080;", &["wrong-context"]),
        ("location / { listen 80; }", &["wrong-context"]),
        ("ssl on;", &["directive-gone"]),
        ("location / { limit_req zone=nobody burst=5; limit_req_status 429; }", &["zone-unknown"]),
        ("location / { proxy_pass http://127.0.0.1:5432; }", &["internal-port-proxied"]),
        ("location /llm/ { proxy_pass http://localhost:11434/; }", &["internal-port-proxied"]),
        ("location / { proxy_pass http://unix:/var/run/docker.sock:/; }", &["internal-port-proxied"]),
        ("location / { allow 192.0.2.1; deny all; proxy_pass http://127.0.0.1:6379; }", &[]),
        ("location / { auth_basic x; auth_basic_user_file /x; proxy_pass http://127.0.0.1:11434; }", &[]),
        (
            "ssl_verify_client optional; location / { if ($ssl_client_verify != SUCCESS) { return 403; } proxy_pass http://127.0.0.1:5984; }",
            &[],
        ),
        (
            "location / { if ($request_method = POST) { return 405; } proxy_pass http://127.0.0.1:5984; }",
            &["internal-port-proxied"],
        ),
        // Grafana, or any program of Node's.
        ("location / { proxy_pass http://127.0.0.1:3000; }", &[]),
        ("location / { proxy_pass http://$arg_to; }", &["open-proxy"]),
        ("location / { proxy_pass $http_x_target; }", &["open-proxy"]),
        ("location / { proxy_pass http://$host:8080; }", &[]),
        ("location / { proxy_pass http://$hostname:8080; }", &[]),
        ("location / { proxy_pass http://${arg_to}; }", &["open-proxy"]),
        ("location / { proxy_pass http://$arg_to.internal; }", &["open-proxy"]),
        ("location / { proxy_pass http://$uri_of_mine; }", &[]),
        // What a variable holds is looked for.
        ("set $u http://127.0.0.1:6379; location / { proxy_pass $u; }", &["internal-port-proxied"]),
        ("location / { set $app ollama; set $port 11434; proxy_pass http://$app:$port; }", &["internal-port-proxied"]),
        ("location / { set $app 127.0.0.1:11434; proxy_pass http://${app}$request_uri; }", &["internal-port-proxied"]),
        ("set $a 127.0.0.1:6379; location / { set $a 127.0.0.1:8080; proxy_pass http://$a; }", &[]),
        ("location / { set $to $arg_to; proxy_pass http://$to; }", &["open-proxy"]),
        ("location ~ ^/x/(?<p>[^/]+)/ { set $b $p; proxy_pass http://$b/; }", &["open-proxy"]),
        (
            "location ~ ^/x/([^/]+)/ { if ($a) { set $b $1; proxy_pass http://$b/; } }",
            &["if-in-location", "open-proxy"],
        ),
        ("location ~ ^/x/(one|two)/ { set $b $1; proxy_pass http://$b/; }", &[]),
        ("location /api/ { set $b http://127.0.0.1:8080; proxy_pass $b/v1; }", &[]),
        ("set $a $a$a; location / { proxy_pass http://$a; }", &[]),
        ("location ~ ^/to/(.*)$ { proxy_pass http://$1; }", &["open-proxy"]),
        ("location ~ ^/to/(?<there>[^/]+)/(.*)$ { proxy_pass http://$there:8080/$2; }", &["open-proxy"]),
        ("location ~ ^/(one|two)/(.*)$ { proxy_pass http://$1:8080/$2; }", &[]),
        ("location ~ ^/to/(.*)$ { proxy_pass http://127.0.0.1:8080/$1; }", &[]),
        ("location /out { return 302 $arg_to; }", &["open-redirect"]),
        ("location /out { return 302 https://$arg_to; }", &["open-redirect"]),
        ("location /out { return 302 https://a.example/?to=$arg_to; }", &[]),
        (
            "location ~ \\.php$ { fastcgi_pass a:1; } location ~ /uploads/.*\\.php$ { deny all; }",
            &["location-never-asked"],
        ),
        ("location ~ /uploads/.*\\.php$ { deny all; } location ~ \\.php$ { fastcgi_pass a:1; }", &[]),
        ("location ~ \\.php$ { fastcgi_pass a:1; } location ~* /uploads/.*\\.php$ { deny all; }", &[]),
        ("ssl_protocols TLSv1 TLSv1.2;", &["tls-old"]),
        ("ssl_protocols SSLv3 TLSv1.2;", &["tls-old"]),
        ("ssl_protocols TLSv1.2 TLSv1.3;", &[]),
        ("ssl_ciphers HIGH:!aNULL:!MD5;", &[]),
        ("ssl_ciphers 'ECDHE-RSA-AES128-GCM-SHA256:RC4-SHA';", &["tls-weak-ciphers"]),
        ("ssl_ciphers ALL;", &["tls-weak-ciphers"]),
        ("set_real_ip_from 0.0.0.0/0; real_ip_header X-Forwarded-For;", &["real-ip-from-everybody"]),
        ("set_real_ip_from 10.0.0.0/8; real_ip_header X-Forwarded-For;", &[]),
        (
            "location / { proxy_set_header X-Real-IP $http_x_real_ip; proxy_pass http://127.0.0.1:8080; }",
            &["forwarded-spoofable"],
        ),
        (
            "location / { proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_pass http://127.0.0.1:8080; }",
            &[],
        ),
        ("location /files { alias /srv/files/; }", &["alias-traversal"]),
        ("location /files/ { alias /srv/files/; }", &[]),
        ("root /srv/site;", &["hidden-files-served"]),
        ("root /srv/site; location ~ /\\. { deny all; }", &[]),
        ("root /srv/other;", &[]),
        ("location /pub/ { autoindex on; }", &["autoindex"]),
        ("location /status { stub_status; }", &["status-public"]),
        ("location /status { stub_status; allow 127.0.0.1; deny all; }", &[]),
        ("location /old { return 301 https://$host$uri; }", &["decoded-path-in-redirect"]),
        ("location /old { return 301 https://$host$request_uri; }", &[]),
        ("location /old { return 301 https://$host$uri_of_mine; }", &[]),
        (
            "add_header Strict-Transport-Security max-age=1; location / { add_header X-A b; root /srv/x; }",
            &["add-header-lost"],
        ),
        ("add_header X-A b; location / { add_header X-B b; root /srv/x; }", &[]),
        ("location /api/ { proxy_pass http://127.0.0.1:8080/v1; }", &["proxy-uri"]),
        ("location /api { proxy_pass http://127.0.0.1:8080/; }", &["proxy-uri"]),
        ("location /api/ { proxy_pass http://127.0.0.1:8080/; }", &[]),
        ("location /ws { proxy_pass http://127.0.0.1:8080; }", &["websocket-broken"]),
        (
            "location / { proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; proxy_pass http://127.0.0.1:8080; }",
            &["websocket-broken"],
        ),
        (
            "location /ws { proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; proxy_pass http://127.0.0.1:8080; }",
            &[],
        ),
        ("location / { if ($a) { proxy_pass http://127.0.0.1:8080; } }", &["if-in-location"]),
        ("location / { if ($a) { return 403; } }", &[]),
        (
            "add_header X-Frame-Options DENY; location / { proxy_pass http://127.0.0.1:8080; if ($request_method = OPTIONS) \
             { add_header Access-Control-Allow-Origin *; add_header Content-Length 0; return 204; } }",
            &[],
        ),
        ("location / { if ($a) { add_header X-A b; } }", &["if-in-location"]),
        ("if ($a) { return 403; }", &[]),
        ("location / { proxy_pass https://service.example; }", &["upstream-unverified"]),
        ("location / { proxy_pass https://127.0.0.1:8443; }", &[]),
        ("location / { proxy_ssl_verify on; proxy_pass https://service.example; }", &[]),
        ("resolver 8.8.8.8;", &["resolver-public"]),
        ("resolver 127.0.0.53 [fd00::1]:53;", &[]),
        ("ssl_certificate /gone.pem;", &["certificate-missing"]),
        ("content_by_lua_block { local a = \"}\" -- }\n local b = [[ } ]] ngx.say({1}) }", &[]),
        ("set $a \"x;y{z}\"; set $b 'it'; set $c ${a}b;", &[]),
        ("set $a \"x\"y;", &["syntax"]),
        ("location / {", &["syntax"]),
    ] {
        assert_eq!(in_server(text), expected, "{text}");
    }
}

#[test]
fn what_is_wrong_with_servers_is_found_and_nothing_else() {
    let tls = "listen 443 ssl; listen [::]:443 ssl; ssl_certificate /c.pem; ssl_certificate_key /k.pem;";
    for (text, expected) in [
        ("server { listen 443 ssl; listen [::]:443 ssl; server_name a; }".to_owned(), &["certificate-missing", "certificate-missing"][..]),
        ("server { listen 443 ssl default_server; listen [::]:443 ssl; ssl_reject_handshake on; }".to_owned(), &[]),
        (format!("server {{ {tls} server_name a.example; }} server {{ listen 80; listen [::]:80; server_name a.example; root /x; }}"), &["http-not-redirected"]),
        (format!("server {{ {tls} server_name a.example; }} server {{ listen 80; listen [::]:80; server_name a.example; location / {{ return 301 https://$host$request_uri; }} }}"), &[]),
        (format!("server {{ {tls} listen 80; listen [::]:80; server_name a.example; }}"), &["http-not-redirected"]),
        ("server { listen 80; listen [::]:80; server_name a.example; location / { proxy_pass http://127.0.0.1:8080; } }".to_owned(), &["http-only"]),
        ("server { listen 127.0.0.1:80; server_name a.example; location / { proxy_pass http://127.0.0.1:5432; } }".to_owned(), &[]),
        ("server { listen 10.0.0.5:80; listen [fd00::5]:80; server_name a.example; location / { proxy_pass http://127.0.0.1:8080; } }".to_owned(), &[]),
        ("server { listen 10.0.0.5:80; listen 192.0.2.5:80; server_name a.example; location / { proxy_pass http://127.0.0.1:8080; } }".to_owned(), &["http-only"]),
        ("server { listen 192.0.2.5:80; server_name a.example; location / { allow 10.0.0.0/8; deny all; proxy_pass http://127.0.0.1:8080; } }".to_owned(), &[]),
        ("server { listen 192.0.2.5:80; server_name a.example; location /a { allow 10.0.0.0/8; deny all; proxy_pass http://127.0.0.1:8080; } location /b { proxy_pass http://127.0.0.1:8080; } }".to_owned(), &["http-only"]),
        ("server { listen 192.0.2.5:80; server_name a.example; location / { auth_basic x; auth_basic_user_file /x; proxy_pass http://127.0.0.1:8080; } }".to_owned(), &["http-only"]),
        ("upstream app { server 127.0.0.1:8080; keepalive 8; keepalive_timeout 60s; }".to_owned(), &[]),
        (format!("geo $office {{ default 0; 192.0.2.0/24 1; }} server {{ {tls} server_name a.example; if ($office = 0) {{ return 403; }} location / {{ proxy_pass http://127.0.0.1:5984; }} }}"), &[]),
        // OpenSSL takes the default server's versions, whoever is asked for.
        (format!("server {{ listen 443 ssl default_server; listen [::]:443 ssl default_server; ssl_reject_handshake on; }} server {{ {tls} server_name a.example; ssl_protocols TLSv1.2 TLSv1.3; }}"), &["tls-of-default-server"]),
        (format!("server {{ listen 443 ssl default_server; listen [::]:443 ssl default_server; ssl_reject_handshake on; ssl_protocols TLSv1.3; }} server {{ {tls} server_name a.example; ssl_protocols TLSv1.2 TLSv1.3; }}"), &["tls-of-default-server"]),
        (format!("server {{ listen 443 ssl default_server; listen [::]:443 ssl default_server; ssl_reject_handshake on; ssl_protocols TLSv1.3 TLSv1.2; }} server {{ {tls} server_name a.example; ssl_protocols TLSv1.2 TLSv1.3; }}"), &[]),
        (format!("ssl_protocols TLSv1.2 TLSv1.3; server {{ listen 443 ssl default_server; listen [::]:443 ssl default_server; ssl_reject_handshake on; }} server {{ {tls} server_name a.example; }}"), &[]),
        (format!("server {{ listen 127.0.0.1:443 ssl; server_name b.example; ssl_certificate /c.pem; ssl_certificate_key /k.pem; ssl_protocols TLSv1.3; }} server {{ {tls} server_name a.example; ssl_protocols TLSv1.2 TLSv1.3; }}"), &[]),
        (format!("server {{ {tls} server_name a.example; }} server {{ {tls} server_name b.example; }}"), &["no-default-server"]),
        ("server { listen 80; server_name a.example; return 301 https://a.example$request_uri; }".to_owned(), &["ipv6-missing"]),
        ("limit_req_zone $http_x_forwarded_for zone=a:1m rate=1r/s;".to_owned(), &["limit-by-header"]),
        ("limit_req_zone $binary_remote_addr zone=a:1m rate=1r/s; server { listen 127.0.0.1:8080; limit_req zone=a; }".to_owned(), &["limit-status"]),
    ] {
        assert_eq!(in_http(&text), expected, "{text}");
    }
    assert_eq!(
        ids("events {} stream { server { listen 5432; proxy_pass 127.0.0.1:5432; } }"),
        ["internal-port-proxied"]
    );
    assert_eq!(ids("events {} stream { server { listen 10.0.0.9:5432; proxy_pass 127.0.0.1:5432; } }"), [""; 0]);
    assert_eq!(ids("limit_req_zone $binary_remote_addr zone=a:1m rate=1r/s;"), [""; 0], "a file of conf.d");
    assert_eq!(ids("location / { proxy_pass http://127.0.0.1:6379; }"), ["internal-port-proxied"], "a snippet");
    assert_eq!(ids(""), [""; 0]);
}

#[test]
fn a_fragment_is_of_where_all_of_it_may_stand() {
    for (text, expected) in [
        ("ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:a:10m; ssl_prefer_server_ciphers off;", &[][..]),
        ("ssl_protocols TLSv1.2 TLSv1.3; add_header X-Frame-Options DENY; gzip on;", &[]),
        ("proxy_cache_path /var/cache/nginx keys_zone=a:10m; proxy_cache a;", &[]),
        ("map_hash_bucket_size 128; server_names_hash_bucket_size 128;", &[]),
        ("ssl_certificate /c.pem; ssl_certificate_key /k.pem;", &[]),
        ("server 127.0.0.1:8080; server 127.0.0.1:8081; least_conn;", &[]),
        ("proxy_set_header Host $host; proxy_pass http://127.0.0.1:8080;", &[]),
        ("load_module modules/a.so;", &[]),
        ("location / { return 404; } client_header_timeout 10s;", &[]),
        ("listen 127.0.0.1:80; proxy_pass http://127.0.0.1:8080;", &["wrong-context"]),
        (
            "limit_req_zone $binary_remote_addr zone=a:1m rate=1r/s; proxy_pass http://127.0.0.1:8080;",
            &["wrong-context"],
        ),
    ] {
        assert_eq!(ids(text), expected, "{text}");
    }
}

#[test]
fn upstreams_and_included_files_are_looked_through() {
    let source = Files {
        texts: vec![
            ("/etc/nginx/conf.d/a.conf", "upstream db { server 10.0.0.1:5432; server 10.0.0.2; }\n"),
            (
                "/etc/nginx/sites/b",
                "server {\n  listen 127.0.0.1:1;\n  listen 8080;\n  location / {\n    proxy_pass http://db;\n  }\n}\n",
            ),
            ("/etc/nginx/loop.conf", "include /etc/nginx/loop.conf;\n"),
        ],
        there: Vec::new(),
    };
    let text = "events {}\nhttp {\n  server_tokens off;\n  include /etc/nginx/conf.d/*.conf;\n  include /etc/nginx/sites/*;\n  \
                include /etc/nginx/none/*.conf;\n  include /etc/nginx/loop.conf;\n  include /etc/nginx/gone.conf;\n}\n";
    let report = check("nginx.conf", text, &source, Known::default());
    assert_eq!((report.files, report.unreadable), (4, 2));
    insta::assert_snapshot!(render_all(&report.diagnostics, &report.sources, Style::default()));
}

#[test]
fn what_a_host_listens_on_is_held_against_what_is_passed_on() {
    let text = "server { listen 127.0.0.1:1; location / { proxy_pass http://127.0.0.1:8081; } location /b { proxy_pass http://127.0.0.1:8082; } }";
    let open = BTreeSet::from([8081]);
    let known = Known { stack: None, open_ports: Some(&open) };
    let report = check("a.conf", text, &Files::default(), known);
    assert_eq!(report.diagnostics.iter().map(|found| found.id).collect::<Vec<_>>(), ["upstream-public"]);
}

#[test]
fn the_output_of_nginx_t_is_read_as_the_files_that_it_holds() {
    let text = "# configuration file /etc/nginx/nginx.conf:\nevents {}\nhttp {\n  include conf.d/*.conf;\n}\n\n\
                # configuration file /etc/nginx/conf.d/a.conf:\nserver {\n  listen 443 ssl;\n  limit_req_zone a zone=b:1m rate=1r/s;\n}\n";
    let (first, dump) = dumped(text).unwrap();
    assert_eq!(first, "/etc/nginx/nginx.conf");
    let report = check(&first, &dump.0[&first].clone(), &dump, Known::default());
    let found = report.diagnostics.iter().find(|found| found.id == "wrong-context").unwrap();
    let place = report.sources.place(found.primary.as_ref().unwrap().span);
    assert_eq!(place.to_string(), "/etc/nginx/conf.d/a.conf:3:3");
    assert_eq!(dumped("events {}"), None);
}

mod usual;

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }
}

const REAL: &str = r##"
user www-data; # a comment with ; and {
events { worker_connections 768; }
http {
  log_format main '$remote_addr "$request" $status';
  map $http_upgrade $connection { default upgrade; '' close; }
  limit_req_zone $binary_remote_addr zone=a:10m rate=10r/s;
  upstream app { server 127.0.0.1:8081 weight=2; server [::1]:8081 backup; keepalive 8; }
  server {
    listen 80 default_server; listen [::]:80; server_name _ ~^(?<a>.+)\.example$;
    location / { return 301 https://$host$request_uri; }
  }
  server {
    listen 443 ssl http2; server_name "a.example" 'b.example';
    ssl_certificate /etc/ssl/a.pem; ssl_certificate_key /etc/ssl/a.key; ssl_protocols TLSv1 TLSv1.2;
    add_header Strict-Transport-Security "max-age=1; includeSubDomains" always;
    location ^~ /files { alias /srv/ö/; autoindex on; }
    location ~* \.(png|jpe?g)$ { expires 30d; add_header X-A "b\"c"; }
    location /ws { if ($a = "b") { proxy_pass http://app/x; } proxy_pass https://app$b; resolver 1.1.1.1:53 [2001:db8::1]; }
    location /lua { content_by_lua_block { local t = { "}" } --[[ } ]] ngx.say('x') } }
    include snippets/*.conf;
  }
}
"##;

#[test]
fn broken_files_are_told_about_and_never_crash() {
    let pieces = [
        "{",
        "}",
        ";",
        "\"",
        "'",
        "\\",
        "#",
        "$",
        "${",
        "\n",
        " ",
        "ü",
        "\u{feff}",
        "\0",
        "[[",
        "--",
        "include a;",
        "server {",
        "listen ",
        "[::",
        ":",
        "/",
        "~",
    ];
    let source = Files { texts: vec![("snippets/a.conf", REAL)], ..Files::default() };
    let tried = |text: &str| {
        let report = check("nginx.conf", text, &source, Known::default());
        // Every place can be shown.
        let shown = render_all(&report.diagnostics, &report.sources, Style::default());
        assert_eq!(shown.is_empty(), report.diagnostics.is_empty());
    };
    for end in (0..REAL.len()).filter(|end| REAL.is_char_boundary(*end)) {
        let report = check("nginx.conf", &REAL[..end], &Files::default(), Known::default());
        assert!(report.diagnostics.iter().all(|found| found.primary.is_some()));
        if end % 7 == 0 {
            tried(&REAL[..end]);
        }
    }
    let mut numbers = Numbers(1);
    for _ in 0..600 {
        let mut text = REAL.to_owned();
        for _ in 0..=numbers.below(6) {
            let mut from = numbers.below(text.len());
            while !text.is_char_boundary(from) {
                from -= 1;
            }
            let mut to = (from + numbers.below(12)).min(text.len());
            while !text.is_char_boundary(to) {
                to += 1;
            }
            text.replace_range(from..to, pieces[numbers.below(pieces.len())]);
        }
        tried(&text);
    }
}

#[test]
fn what_is_too_much_is_refused_in_time() {
    assert_eq!(ids(&"a{".repeat(100_000)), ["syntax"]);
    assert_eq!(ids(&format!("http {{ {} }}", "a;".repeat(50_000))), ["syntax"]);
    let large = " ".repeat(FILE_BYTES_MAX + 1);
    assert_eq!(ids(&large), ["unreadable"]);
    // Each includes the next one twice.
    struct Bomb;
    impl Source for Bomb {
        fn matching(&self, pattern: &str) -> Vec<(String, Result<String, String>)> {
            let next = pattern.parse::<u32>().unwrap_or(0) + 1;
            vec![(pattern.to_owned(), Ok(format!("include {next}; include {next}; include {next};")))]
        }
        fn exists(&self, _: &str) -> Option<bool> {
            None
        }
    }
    let report = check("nginx.conf", "include 1;", &Bomb, Known::default());
    assert!(report.unreadable > 0 && report.files <= 2_000, "{}", report.files);
}
