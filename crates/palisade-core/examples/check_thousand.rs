//! How long `check` and `plan` take for 1,000 services: a generated file, seven times, medians.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use palisade_core::compose::{self, InputFile, LoadInputs};
use palisade_core::diagnostic::{Style, render_all};
use palisade_core::observed::Observed;
use palisade_core::plan::{Wishes, plan};
use palisade_core::policy::Mode;

fn main() {
    let services = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(1000);
    let text = file(services);
    let environment = BTreeMap::from([("PASSWORD".to_owned(), "secret".to_owned())]);
    let files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    let inputs = LoadInputs {
        files: &[InputFile {
            name: "compose.yaml",
            path: Path::new("/srv/thousand/compose.yaml"),
            contents: text.as_bytes(),
        }],
        project_dir: Path::new("/srv/thousand"),
        project_name: None,
        environment: &environment,
        profiles: &[],
        env_files: &[],
        others: &files,
    };
    let volume_path = |name: &str, _: &_| Path::new("/var/lib/palisade").join(name);
    let wishes = Wishes {
        mode: Mode::Enforce,
        wait_for_health: true,
        fetch: None,
        only: None,
        recreate: false,
        back: false,
        confirm: None,
        volume_path: &volume_path,
    };
    let (mut checks_ms, mut both_ms) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let stack = match compose::load(&inputs) {
            Ok(loaded) => loaded.stack,
            Err(rejected) => {
                eprint!("{}", render_all(&rejected.diagnostics, &rejected.sources, Style::default()));
                std::process::exit(1);
            }
        };
        checks_ms.push(start.elapsed().as_secs_f64() * 1000.0);
        assert_eq!(stack.services.len(), services);
        match plan(&stack, &Observed::default(), wishes) {
            Ok(plan) => assert!(plan.steps.len() > services),
            Err(findings) => {
                findings.iter().for_each(|finding| eprintln!("{finding}"));
                std::process::exit(1);
            }
        }
        both_ms.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    println!("| services | file | `check` | `check` and `plan` |\n|---|---|---|---|");
    println!(
        "| {services} | {} KiB | {:.1} ms | {:.1} ms |",
        text.len() >> 10,
        median(&mut checks_ms),
        median(&mut both_ms)
    );
}

const ROUNDS: usize = 7;

fn median(times_ms: &mut [f64]) -> f64 {
    times_ms.sort_by(f64::total_cmp);
    times_ms[times_ms.len() / 2]
}

/// Services in fifty networks, each with ports, limits, a health check, and an edge to the one before.
fn file(services: usize) -> String {
    let mut text = "name: thousand\nx-env: &env {LOG: info, PASSWORD: \"${PASSWORD:?}\"}\nservices:\n".to_owned();
    for n in 0..services {
        let _ = write!(
            text,
            "  s{n}:\n    image: example/s{n}:1\n    networks: [n{}, shared]\n    expose: [\"{}\"]\n    \
             ports: [\"{}:80\"]\n    environment:\n      <<: *env\n      NUMBER: {n}\n      URL: http://s{n}:${{PORT:-80}}/\n    \
             healthcheck: {{test: [CMD, check], interval: 5s, retries: 3}}\n    restart: unless-stopped\n    \
             deploy: {{resources: {{limits: {{memory: 64m, cpus: \"0.5\"}}}}}}\n    volumes: [\"data{n}:/data\"]\n",
            n % 50,
            6000 + n % 1000,
            10_000 + n,
        );
        if n > 0 {
            let _ = write!(
                text,
                "    depends_on: {{s{0}: {{condition: service_healthy}}}}\n    x-palisade:\n      \
                 process: {{command: [\"/usr/bin/s\", \"--number\", \"{n}\"]}}\n      connect: [\"s{0}:80\"]\n",
                n - 1
            );
        } else {
            text.push_str("    x-palisade: {process: {command: [/usr/bin/s]}}\n");
        }
    }
    text.push_str("networks:\n  shared:\n");
    for n in 0..50 {
        let _ = writeln!(text, "  n{n}:");
    }
    text.push_str("volumes:\n");
    for n in 0..services {
        let _ = writeln!(text, "  data{n}:");
    }
    text
}
