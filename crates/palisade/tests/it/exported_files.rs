//! Files that `export nginx` and `export haproxy` write: taken by their programs, fine by `check-nginx`, or refused with what to
//! do.

use std::fs;
use std::process::{Command, Stdio};

use crate::export_edge::{Shop, Tool, missing};
use crate::need_root;
use crate::support::skipped;

/// Edges with something that isn't usual, each below `x-palisade.edge`; services are `app` and `api`.
const EDGES: &[&str] = &[
    r#"[{ domain: shop.example, to: "app:8081" }]"#,
    r#"{ routes: [{ domain: [shop.example, www.shop.example], to: "app:8081", rate_limit: 10/s, compress: true, hsts: { subdomains: true, preload: true } }], default_domain: shop.example }"#,
    r#"{ routes: [{ domain: "*.shop.example", to: "app:8081" }, { domain: www.shop.example, to: "api:9000" }], certificates: local, tls: { minimum: "1.3" } }"#,
    r#"{ routes: [{ domain: shop.example, path: "/it's/a.b/c-d", to: "api:9000", protocol: grpc, timeout: 1500ms, body_limit: none }], certificates: { shop.example: { chain: ./chain.pem, key: ./key.pem } } }"#,
    r#"{ routes: [{ domain: shop.example, to: "app:8081", rate_limit: { per_client: 90/m, burst: 0 }, connections: { per_client: 3 }, ban: { after: 10, for: 1h }, allow: [192.0.2.0/24, "2001:db8::/32"], deny: [192.0.2.7] }], trusted_proxies: [192.0.2.0/24, "2001:db8::1"], proxy_protocol: true }"#,
    r#"{ routes: [{ domain: shop.example, to: "app:8081", hsts: true }, { domain: other.example, path: /x, to: "app:8081" }], redirect: false, access_log: false, error_pages: ./pages, certificates: local }"#,
    r#"{ routes: [{ domain: shop.example, to: "app:8081", compress: ["text/*", image/svg+xml] }], access_log: { format: combined, query: true }, trusted_proxies: [10.0.0.0/8], http3: true, limits: { connections: 100, header_size: 8k, header_fields: 40, idle_timeout: 1s } }"#,
];

#[test]
fn every_exported_file_is_taken_by_its_program_and_nothing_is_wrong_with_it() {
    const TEST: &str = "exported_files::every_exported_file_is_taken_by_its_program_and_nothing_is_wrong_with_it";
    need_root!("exported_files::every_exported_file_is_taken_by_its_program_and_nothing_is_wrong_with_it");
    if let Some(missing) = missing(&["nginx", "haproxy", "openssl"]) {
        return skipped(TEST, &missing);
    }
    let shop = Shop::new("");
    for edge in EDGES {
        shop.write(&format!(
            "name: my-shop\nservices:\n  app: {{ image: \"app:1\", ports: [\"127.0.0.1:8081:8081\"] }}\n  \
             api: {{ image: \"api:1\", ports: [\"127.0.0.1:9000:9000\"] }}\nx-palisade:\n  edge: {edge}\n"
        ));
        let two = ["--listen", "::1", "--upstream", "app:8081=127.0.0.1:1", "--upstream", "app:8081=[::1]:2"];
        let two = if edge.contains("app:8081") { &two[..] } else { &two[..2] };
        for more in [&[][..], two] {
            for tool in [Tool::Nginx, Tool::Haproxy] {
                let file = shop.export(tool, more);
                let (good, said) = shop.tried(tool, &file);
                assert!(good && !said.contains("[warn]") && !said.contains("[WARNING]"), "{tool:?} {edge}: {said}");
            }
            let (code, out, said) = shop.palisade(&["check-nginx", "nginx.conf"]);
            assert!(code == 0 && out.contains("nothing wrong"), "{edge}: {out}{said}");
        }
        // Where upstreams are names, and on all addresses, only what is checked by text can be: names aren't known here.
        let (code, names, _) = shop.palisade(&["export", "nginx", "--upstreams", "names"]);
        assert_eq!(code, 0);
        assert!(names.contains("server app:8081;") || names.contains("server api:9000;"), "{names}");
        assert!(names.contains("listen 80") && names.contains("listen [::]:443 ssl http2"), "{names}");
        fs::write(shop.folder.join("wide.conf"), names.replace("/etc/letsencrypt/live", "certs")).unwrap();
        let (code, out, said) = shop.palisade(&["check-nginx", "wide.conf"]);
        // Who wants no redirect is told what that means, once for each of two domains.
        let expected = if edge.contains("redirect: false") { "2 warnings" } else { "nothing wrong" };
        assert!(code == 0 && out.contains(expected), "{edge}: {out}{said}");
    }
}

#[test]
fn a_file_for_conf_d_goes_into_an_nginx_that_is_there() {
    const TEST: &str = "exported_files::a_file_for_conf_d_goes_into_an_nginx_that_is_there";
    need_root!("exported_files::a_file_for_conf_d_goes_into_an_nginx_that_is_there");
    if let Some(missing) = missing(&["nginx", "openssl"]) {
        return skipped(TEST, &missing);
    }
    let shop = Shop::new("");
    let here = shop.folder.display().to_string();
    let write = |name: &str| {
        shop.write(&format!(
            "name: {name}\nservices:\n  app: {{ image: \"app:1\", ports: [\"127.0.0.1:8081:8081\"] }}\nx-palisade:\n  \
             edge: {{ routes: [{{ domain: {name}.example, to: \"app:8081\", rate_limit: 10/s }}], certificates: {{ default: {{ chain: ./chain.pem, key: ./key.pem }} }} }}\n"
        ));
    };
    // Two stacks in one nginx don't clash, nor with a default server that is there.
    let mut includes = String::new();
    for name in ["shop", "other"] {
        write(name);
        let file = shop.export(Tool::Nginx, &["--conf-d"]);
        let there = shop.folder.join(format!("{name}.inc"));
        fs::rename(file, &there).unwrap();
        includes += &format!("include {};\n", there.display());
    }
    let whole = format!(
        "pid {here}/pid; error_log {here}/log/e; events {{ }}\nhttp {{ server {{ listen 127.0.0.1:80 default_server; return 404; }}\n{includes}}}\n"
    );
    let file = shop.folder.join("whole.conf");
    fs::write(&file, whole).unwrap();
    let (good, said) = shop.tried(Tool::Nginx, &file);
    assert!(good && !said.contains("[warn]"), "{said}");
    let (_, _, said) = shop.palisade(&["export", "nginx", "--conf-d"]);
    assert!(said.contains("give it the same `ssl_protocols`"), "{said}");

    // Forms of other versions, which no nginx is here for: what they are known to have.
    let (_, new, _) = shop.palisade(&["export", "nginx", "--nginx-version", "1.26.3"]);
    assert!(new.contains("http2 on;") && !new.contains("ssl http2"), "{new}");
    let (code, _, said) = shop.palisade(&["export", "nginx", "--nginx-version", "1.18"]);
    assert_eq!((code, said.contains("older than 1.22")), (2, true), "{said}");
}

#[test]
fn a_wildcard_and_its_parent_have_certificates_of_their_own() {
    let shop = Shop::new(
        "name: shop\nservices:\n  app: { image: \"app:1\", ports: [\"127.0.0.1:8081:8081\"] }\nx-palisade:\n  edge: { routes: \
         [{ domain: [shop.example, \"*.shop.example\"], to: \"app:8081\" }], certificates: { shop.example: acme, \
         \"*.shop.example\": local } }\n",
    );
    let (_, haproxy, _) = shop.palisade(&["export", "haproxy"]);
    let of = |name: &str| haproxy.contains(&format!(" crt /etc/haproxy/certs/{name}.pem "));
    assert!(of("shop.example") && of("_.shop.example"), "{haproxy}");
    let (_, nginx, _) = shop.palisade(&["export", "nginx"]);
    let of = |name: &str| nginx.contains(&format!("\"/etc/letsencrypt/live/{name}/fullchain.pem\""));
    assert!(of("shop.example") && of("_.shop.example"), "{nginx}");
}

#[test]
fn haproxy_starts_with_the_first_certificate_that_its_file_tells_of() {
    const TEST: &str = "exported_files::haproxy_starts_with_the_first_certificate_that_its_file_tells_of";
    need_root!("exported_files::haproxy_starts_with_the_first_certificate_that_its_file_tells_of");
    if let Some(missing) = missing(&["haproxy", "openssl"]) {
        return skipped(TEST, &missing);
    }
    let shop = Shop::new(
        "name: shop\nservices:\n  app: { image: \"app:1\", ports: [\"127.0.0.1:8081:8081\"] }\nx-palisade:\n  edge: \
         [{ domain: new.example, to: \"app:8081\" }]\n",
    );
    let file = shop.export(Tool::Haproxy, &[]);
    assert!(!shop.tried(Tool::Haproxy, &file).0, "there is no certificate yet");
    let text = fs::read_to_string(&file).unwrap();
    let head = text.lines().map_while(|line| line.strip_prefix('#')).map(str::trim).collect::<Vec<_>>().join(" ");
    let (_, command) = head.split_once("HAProxy is started: ").unwrap();
    let (command, _) = command.split_once(" * ").unwrap();
    assert!(Command::new("sh").args(["-c", command]).stderr(Stdio::null()).status().unwrap().success(), "{command}");
    let (good, said) = shop.tried(Tool::Haproxy, &file);
    assert!(good, "{said}");
}

#[test]
fn what_can_t_be_exported_is_told_with_what_to_do() {
    let shop = Shop::new("name: shop\nservices:\n  app: { image: \"app:1\" }\n");
    let said = |arguments: &[&str]| {
        let (code, _, said) = shop.palisade(arguments);
        assert_eq!(code, 2, "{arguments:?} {said}");
        said
    };
    assert!(said(&["export", "nginx"]).contains("shop has no edge"));
    let edge = "x-palisade:\n  edge: [{ domain: shop.example, to: \"app:8081\" }]\n";
    shop.write(&format!("name: shop\nservices:\n  app: {{ image: \"app:1\", expose: [8081] }}\n{edge}"));
    let unpublished = said(&["export", "haproxy"]);
    assert!(
        unpublished.contains("app:8081 isn't published") && unpublished.contains("127.0.0.1:8081:8081"),
        "{unpublished}"
    );
    assert!(said(&["export", "nginx", "--upstream", "db:1=127.0.0.1:1"]).contains("those that there are: app:8081"));
    said(&["export", "nginx", "--upstream", "app:8081=a b:1"]);
    said(&["export", "nginx", "--upstream", "app:8081=127.0.0.1:1", "--acme-root", "/srv/$host"]);
    said(&["export", "haproxy", "--conf-d"]);
    said(&["export", "nftables", "--conf-d"]);
    said(&["export", "nginx", "--ssh", "22"]);
    shop.write(&format!("name: shop\nservices:\n  app: {{ image: \"app:1\", ports: [\"8081:8081\"] }}\n{edge}"));
    let (code, text, warned) = shop.palisade(&["export", "nginx"]);
    assert!(code == 0 && text.contains("server 127.0.0.1:8081;") && text.contains("# * CAUTION"), "{text}");
    assert!(warned.contains("warning: app:8081 is published as port 8081 for everybody"), "{warned}");
}
