//! The edge: what the documentation and the reference stack say is right, and large ones are read in time.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use palisade_core::compose::{self, CertificateFlaw, Files, InputFile, LoadInputs, Loaded, ReadError, Rejected};
use palisade_core::diagnostic::{Severity, Style, render_all};
use palisade_core::edge::{CertificateSource, Upstream};

const PROJECT: &str = "/srv/barter";

fn load(files: &[(&str, &str)], others: &BTreeMap<PathBuf, Vec<u8>>) -> Result<Loaded, Box<Rejected>> {
    load_from(files, others)
}

fn load_from(files: &[(&str, &str)], others: &dyn Files) -> Result<Loaded, Box<Rejected>> {
    let paths: Vec<PathBuf> = files.iter().map(|(name, _)| Path::new(PROJECT).join(name)).collect();
    let files: Vec<InputFile<'_>> = files
        .iter()
        .zip(&paths)
        .map(|((name, text), path)| InputFile { name, path, contents: text.as_bytes() })
        .collect();
    compose::load(&LoadInputs {
        files: &files,
        project_dir: Path::new(PROJECT),
        project_name: None,
        profiles: &[],
        environment: &BTreeMap::new(),
        env_files: &[],
        others,
    })
}

fn said(result: &Result<Loaded, Box<Rejected>>) -> String {
    let (diagnostics, sources) = match result {
        Ok(loaded) => (&loaded.diagnostics, &loaded.sources),
        Err(rejected) => (&rejected.diagnostics, &rejected.sources),
    };
    render_all(diagnostics, sources, Style::default())
}

fn repository(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

/// Those that examples and cases name.
fn files() -> BTreeMap<PathBuf, Vec<u8>> {
    let pem = |kind: &str| format!("-----BEGIN {kind}-----\nbm8=\n-----END {kind}-----\n").into_bytes();
    let file = |name: &str| Path::new(PROJECT).join(name);
    BTreeMap::from([
        (file("tls/guests.pem"), pem("CERTIFICATE")),
        (file("tls/guests.key"), pem("PRIVATE KEY")),
        (file("tls/corp-root.pem"), pem("CERTIFICATE")),
        (file("tls/eab"), b"bm8".to_vec()),
        (file("tls/eab.key"), b"bm8".to_vec()),
        (file("pages/502.html"), b"<h1>Nobody answers</h1>".to_vec()),
    ])
}

/// What stands between ```` ```yaml ```` and the next fence.
fn examples(page: &str) -> Vec<&str> {
    let after = page.split("```yaml\n").skip(1);
    after.map(|rest| rest.split("```").next().unwrap()).filter(|example| example.contains("edge:")).collect()
}

/// Each example is a file of its own or the override of one with these services and an edge.
#[test]
fn every_example_of_the_page_is_right() {
    let base = "services:\n  app: {image: app:1, expose: [8081]}\n  web: {image: web:1, expose: [80]}\n";
    let edge = "x-palisade: {edge: [{domain: barter.example, to: app, rate_limit: 10/s}]}\n";
    let others = files();
    let (page, readme) = (repository("docs/edge.md"), repository("README.md"));
    let (of_page, of_readme) = (examples(&page), examples(&readme));
    assert!(of_page.len() >= 7 && !of_readme.is_empty(), "{} and {}", of_page.len(), of_readme.len());
    for example in of_page.into_iter().chain(of_readme) {
        // An override names a route without saying where it leads to.
        let base = if example.contains("to: ") { base.to_owned() } else { format!("{base}{edge}") };
        let result = load(&[("base.yaml", &base), ("example.yaml", example)], &others);
        let wrong = said(&result);
        let edge = result.unwrap_or_else(|_| panic!("{example}\n{wrong}")).stack.edge;
        assert!(wrong.is_empty() && edge.is_some_and(|edge| !edge.routes.is_empty()), "{example}\n{wrong}");
    }
}

#[test]
fn the_reference_stack_can_be_served_by_the_edge() {
    let (stack, edge) = (repository("examples/barter/compose.yaml"), repository("examples/barter/edge.yaml"));
    let result = load(&[("compose.yaml", &stack), ("edge.yaml", &edge)], &BTreeMap::new());
    let wrong = said(&result);
    let loaded = result.unwrap_or_else(|_| panic!("{wrong}"));
    assert!(wrong.is_empty() && loaded.risks.is_empty(), "{wrong}");
    let app = loaded.stack.services.iter().find(|service| service.name.as_str() == "app").unwrap();
    assert!(app.publish.is_empty(), "only the edge leads to it");
    let edge = loaded.stack.edge.unwrap();
    let route = &edge.routes[0].value;
    assert_eq!(route.to, Upstream { service: app.name.clone(), port: 8081 });
    assert_eq!(route.rate.map(|rate| (rate.milli_per_s, rate.burst)), Some((10_000, 20)));
    assert_eq!(edge.certificates["barter.example"], CertificateSource::Local);
    assert!(edge.acme.is_none() && edge.redirect && (edge.http_port, edge.https_port) == (80, 443));
}

#[test]
fn what_takes_something_away_from_an_edge_is_followed() {
    let base = "services: {app: {image: a:1, expose: [80]}}\nx-palisade:\n  edge:\n    - {domain: a.example, to: app, deny: [192.0.2.7]}\n    - {domain: b.example, to: app}\n";
    for (later, domains, denied) in [
        ("edge: [{domain: a.example, deny: [192.0.2.8]}]", "a.example b.example", 2),
        ("edge: {routes: [{domain: [A.example.], deny: !override [192.0.2.8]}]}", "a.example b.example", 1),
        ("edge: {routes: [{domain: a.example, deny: !reset []}]}", "a.example b.example", 0),
        ("edge: {routes: [{domain: a.example, allow: !reset []}]}", "a.example b.example", 1),
        ("edge: !override [{domain: c.example, to: app, deny: [192.0.2.9]}]", "c.example", 1),
        ("edge: {routes: !override [{domain: c.example, to: app}]}", "c.example", 0),
        ("edge:", "a.example b.example", 1),
    ] {
        let result = load(&[("a.yaml", base), ("b.yaml", &format!("x-palisade:\n  {later}\n"))], &BTreeMap::new());
        let edge = result.as_ref().unwrap_or_else(|_| panic!("{later}\n{}", said(&result))).stack.edge.clone().unwrap();
        let found: Vec<&str> = edge.routes.iter().flat_map(|route| &route.value.domains).map(String::as_str).collect();
        assert_eq!((found.join(" ").as_str(), edge.routes[0].value.deny.len()), (domains, denied), "{later}");
    }
    // Who may ask can be taken away, but not to nobody.
    let nobody = "x-palisade: {edge: {routes: [{domain: a.example, allow: !override []}]}}\n";
    let asked = base.replace("deny: [192.0.2.7]", "allow: [192.0.2.7]");
    let result = load(&[("a.yaml", &asked), ("b.yaml", nobody)], &BTreeMap::new());
    assert!(result.is_err() && said(&result).contains("`allow` names nobody"), "{}", said(&result));
    let gone = load(&[("a.yaml", base), ("b.yaml", "x-palisade: {edge: !reset }\n")], &BTreeMap::new());
    assert!(gone.is_ok_and(|loaded| loaded.stack.edge.is_none()));
}

/// Chain, key and domains.
type Judge = fn(&[u8], &[u8], &[&str]) -> Vec<CertificateFlaw>;

/// Files of which somebody can say what is wrong with them.
struct Judged(BTreeMap<PathBuf, Vec<u8>>, Judge);

impl Files for Judged {
    fn read(&self, path: &Path) -> Result<Vec<u8>, ReadError> {
        self.0.read(path)
    }
    fn certificate_flaws(&self, chain: &[u8], key: &[u8], domains: &[&str]) -> Vec<CertificateFlaw> {
        (self.1)(chain, key, domains)
    }
}

/// Each certificate is looked into with the domains that are served with it, and what is wrong is told at its line.
#[test]
fn what_is_wrong_with_a_given_certificate_is_told_where_it_is_written() {
    let text = "services: {app: {image: a:1, expose: [80]}}
x-palisade:
  edge:
    routes:
      - {domain: [b.guests.example, shop.example, a.guests.example], to: app, rate_limit: 10/s}
      - {domain: www.shop.example, to: app, rate_limit: 10/s}
    certificates:
      default: {chain: ./tls/guests.pem, key: ./tls/guests.key}
      '*.guests.example': {chain: ./tls/guests.pem, key: ./tls/guests.key}
";
    let flaws = |_: &[u8], _: &[u8], domains: &[&str]| match domains {
        ["shop.example", "www.shop.example"] => vec![
            CertificateFlaw::OtherNames { domain: "www.shop.example".into(), names: vec!["shop.example".into()] },
            CertificateFlaw::Refused("the certificate expired 3 days ago".into()),
        ],
        ["a.guests.example", "b.guests.example"] => vec![CertificateFlaw::OtherKey],
        other => panic!("{other:?}"),
    };
    let result = load_from(&[("compose.yaml", text)], &Judged(files(), flaws));
    insta::assert_snapshot!(said(&result), @r"
    error[certificate-names]: the certificate of `default` is for `shop.example`, not for `www.shop.example`
     --> compose.yaml:8:7
      |
    6 |       - {domain: www.shop.example, to: app, rate_limit: 10/s}
      |                  ---------------- clients would refuse it here
    7 |     certificates:
    8 |       default: {chain: ./tls/guests.pem, key: ./tls/guests.key}
      |       ^^^^^^^
      |
      = hint: give the files of that domain's certificate

    warning[certificate-refused]: clients refuse the certificate of `default`: the certificate expired 3 days ago
     --> compose.yaml:8:7
      |
    8 |       default: {chain: ./tls/guests.pem, key: ./tls/guests.key}
      |       ^^^^^^^
      |
      = hint: give a newer one; it is served from within ten seconds after its files have changed

    error[certificate-key]: the certificate of `*.guests.example` and its key are of two pairs: the key in `key` is not that of the first one in `chain`
     --> compose.yaml:9:7
      |
    9 |       '*.guests.example': {chain: ./tls/guests.pem, key: ./tls/guests.key}
      |       ^^^^^^^^^^^^^^^^^^
      |
      = hint: give the two files that belong together; the first certificate in `chain` has to be the server's own
    ");
    // Whoever only wants to know which stack it is can be told.
    assert_eq!(result.unwrap_err().project.unwrap().as_str(), "barter");
}

/// Each line of an edge taken away, and each value of one replaced by what doesn't belong there: whatever that means, it is
/// read to its end, and what loads is printed as something that loads.
#[test]
fn no_line_of_an_edge_can_stop_the_reader() {
    const HOSTILE: [&str; 14] = [
        "",
        "[]",
        "{}",
        "[[]]",
        "[{}, null, {a: b}]",
        "{a: {b: [c]}}",
        "-1",
        "99999999999999999999999999",
        "'\u{e9}\u{202e}'",
        "\"\\0\"",
        "*x",
        "!reset ",
        "!override {}",
        "${NOTHING:-}",
    ];
    let others = files();
    let (mut loaded, mut rejected) = (0, 0);
    for case in ["edge-every-form", "edge-short", "mistake-edge-values", "mistake-edge-authority"] {
        let text = repository(&format!("crates/palisade-core/tests/cases/{case}/compose.yaml"));
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let replaced = HOSTILE.map(|value| line.split_once(": ").map(|(key, _)| format!("{key}: {value}")));
            for variant in std::iter::once(Some(String::new())).chain(replaced).flatten() {
                let mut changed = lines.clone();
                changed[at] = &variant;
                let changed = changed.join("\n");
                match load(&[("compose.yaml", &changed)], &others) {
                    Ok(_) => loaded += 1,
                    Err(one) => {
                        rejected += 1;
                        let errors = one.diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error);
                        assert!(errors.count() > 0, "rejected without a reason:\n{changed}");
                    }
                }
            }
        }
    }
    assert!(loaded > 50 && rejected > 500, "{loaded} and {rejected}");
}

/// Nothing in here may take the square of its length.
#[test]
fn a_huge_edge_is_read_in_time() {
    let started = std::time::Instant::now();
    let ports = (0..60).map(|n| format!("{}-{}", n * 1000 + 1, n * 1000 + 1000)).collect::<Vec<_>>().join(", ");
    let mut text = format!("services: {{app: {{image: a:1, expose: [{ports}]}}}}\nx-palisade:\n  edge:\n    routes:\n");
    for number in 0..20_000 {
        let _ = writeln!(text, "      - {{domain: d{number}.example, to: 'app:80'}}");
    }
    text.push_str("    certificates:\n");
    for number in 0..20_000 {
        let _ = writeln!(text, "      d{number}.example: local");
    }
    let result = load(&[("compose.yaml", &text)], &BTreeMap::new());
    let routes = result.as_ref().map(|loaded| loaded.stack.edge.as_ref().unwrap().routes.len());
    assert_eq!(routes.ok(), Some(20_000), "{}", said(&result));
    let twice = format!(
        "services: {{app: {{image: a:1}}}}\nx-palisade:\n  edge:\n    - to: 'app:80'\n      domain: [{}]\n      allow: &n [{}]\n      deny: *n\n",
        "a.example, ".repeat(20_000),
        (0..20_000).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect::<Vec<_>>().join(", "),
    );
    let rejected = load(&[("compose.yaml", &twice)], &BTreeMap::new()).unwrap_err();
    assert!(rejected.diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error));
    // A second or two in a debug build; only something that grows with the square takes as long as this.
    assert!(started.elapsed().as_secs() < 120, "{:?}", started.elapsed());
}
