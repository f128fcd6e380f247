//! Generated Compose files: services with what people write into them, in one file or in many that are merged.

use std::fmt::Write as _;

/// The environment that the files are read with.
pub(crate) const ENVIRONMENT: [(&str, &str); 3] = [("REGISTRY", "registry.example"), ("TAG", "4.2"), ("LEVEL", "info")];

/// Texts of `files` files with `services` services altogether: each file defines its share of them. With `every` 1, it
/// says something else about each service of the file before; with more, about every such one of all files before.
pub(crate) fn texts(services: usize, files: usize, every: usize) -> Vec<String> {
    let share = services.div_ceil(files);
    let one = |file: usize| {
        let own = file * share..services.min((file + 1) * share);
        let mut text = HEAD.to_owned();
        let first = if every == 1 { own.start.saturating_sub(share) } else { file % every.max(1) };
        (first..own.start).step_by(every.max(1)).for_each(|n| change(&mut text, n, file));
        own.clone().for_each(|n| define(&mut text, n));
        text.push_str("networks:\n  shared:\n");
        (0..NETWORKS).for_each(|n| text.push_str(&format!("  n{n}:\n")));
        text.push_str("volumes:\n  cache:\n");
        own.for_each(|n| text.push_str(&format!("  data{n}:\n")));
        text
    };
    (0..files).map(one).collect()
}

const NETWORKS: usize = 50;

const HEAD: &str = r#"x-environment: &environment
  LOG_LEVEL: "${LEVEL:-warn}"
  REGION: ${REGION-eu}
x-service: &service
  restart: unless-stopped
  init: true
  stop_grace_period: 20s
services:
"#;

fn define(text: &mut String, n: usize) {
    let _ = write!(
        text,
        r#"  s{n}:
    <<: *service
    image: ${{REGISTRY:?}}/team/s{n}:${{TAG:-latest}}
    command: ["serve", "--number", "{n}"]
    networks: [n{}, shared]
    expose: ["{}"]
    healthcheck:
      test: ["CMD", "check", "http://localhost:{1}/"]
      interval: 10s
      timeout: 2s
      retries: 3
    deploy:
      resources:
        limits: {{cpus: "0.50", memory: 64M}}
    labels:
      team: t{}
"#,
        n % NETWORKS,
        6000 + n % 1000,
        n % 7,
    );
    if n.is_multiple_of(2) {
        let _ = write!(
            text,
            "    environment:\n      <<: *environment\n      NUMBER: {n}\n      URL: \"http://s{n}:${{PORT:-80}}/\"\n    \
             ports:\n      - \"127.0.0.1:{}:80\"\n",
            10_000 + n,
        );
    } else {
        let _ = write!(
            text,
            "    environment:\n      - NUMBER={n}\n      - URL=http://s{n}:${{PORT:-80}}/\n      - LOG_LEVEL\n    \
             ports:\n      - target: 80\n        published: {}\n        protocol: tcp\n",
            10_000 + n,
        );
    }
    let _ = write!(
        text,
        "    volumes:\n      - data{n}:/data\n      - ./config/s{n}.conf:/etc/s.conf:ro\n      \
         - {{type: volume, source: cache, target: /var/cache}}\n",
    );
    match n {
        0 => {}
        _ if n.is_multiple_of(2) => {
            let _ = writeln!(text, "    depends_on:\n      s{}: {{condition: service_healthy}}", n / 2);
        }
        _ => {
            let _ = writeln!(text, "    depends_on: [s{}]", n / 2);
        }
    }
}

/// Says something else about a service of an earlier file.
fn change(text: &mut String, n: usize, file: usize) {
    let _ = write!(
        text,
        r#"  s{n}:
    image: ${{REGISTRY:?}}/team/s{n}:${{TAG:-latest}}-{file}
    environment:
      LOG_LEVEL: ${{LEVEL}}
      CHANGED_BY_{file}: "file {file}"
    healthcheck: {{interval: {}s}}
    deploy: {{resources: {{limits: {{memory: {}M}}}}}}
    labels: ["changed.{file}=yes"]
    volumes:
      - ./config/s{n}.{file}.conf:/etc/s.conf:ro
      - data{n}:/more/{file}
"#,
        5 + file,
        64 + file,
    );
}
