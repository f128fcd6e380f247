//! The document as Markdown, for people who review it.

use super::{Line, OutsideReach, PortDocument, PortEntry, ServiceReach};

impl PortDocument {
    /// The whole text.
    pub fn to_markdown(&self) -> String {
        let mut text = format!("# Ports of {}\n\n", plain(self.project.as_str()));
        text += "Made from the Compose file by `palisade ports --write`. `palisade ports --check` tells when this page is \
                 out of date,\nand, as root, when the host that it runs on differs from it.\n\n";
        text += "## Who reaches what\n\n";
        text += &table(
            ["port", "service", "exposure", "who may reach it", "because"],
            self.ports.iter().map(|entry| self.port_row(entry)).collect(),
            "No service has a port.",
        );
        text += "\n";
        text += if self.keeps_firewall {
            "Everything else that comes in from outside is dropped, but for SSH where sshd listens, answers to what went out, \
             and the ICMP that IP needs.\n"
        } else {
            "The host's firewall is somebody else's business (`x-palisade.firewall.backend: none`): it may narrow what is \
             public, and\nlets in or drops whatever else the host has.\n"
        };
        text += "Private ports are at addresses of the loopback interface that no packet from outside gets to; root of the \
                 host may\nconnect to them.\n";
        if !self.edge.is_empty() {
            text += "\n## What the edge leads to\n\n";
            let rows = self.edge.iter().map(|entry| {
                let to = format!("{}:{}", entry.service, entry.port);
                [
                    plain(&entry.pages.join(", ")),
                    plain(&to),
                    plain(&entry.who()),
                    because("x-palisade.edge", &entry.line),
                ]
            });
            text += &table(["pages", "service", "who may ask", "because"], rows.collect(), "");
        }
        text += "\n## Who is in which network\n\n";
        let rows = self.networks.iter().map(|(network, members)| {
            let names: Vec<_> = members.iter().map(ToString::to_string).collect();
            [plain(network), plain(&names.join(", "))]
        });
        text += &table(["network", "services"], rows.collect(), "There is no network.");
        text += "\n## What services may reach\n\n";
        let rows = self.reaches.iter().flat_map(|reach| self.reach_rows(reach)).collect();
        text += &table(["service", "may connect to", "because"], rows, "There is no service.");
        text += "\nNobody reaches the metadata of clouds unless it is named, other ports of the host, or other stacks \
                 but by what those publish.\n";
        if !self.unguarded.is_empty() {
            text += "\n## What the guard can't hold\n\n";
            let rows = self.unguarded.iter().map(|entry| {
                let accepted = entry.accepted.as_deref().unwrap_or("not accepted: it is not started");
                [plain(entry.service.as_str()), plain(&entry.could), plain(accepted), plain(&entry.line.to_string())]
            });
            text += &table(["service", "what it could do", "accepted because", "where"], rows.collect(), "");
        }
        text
    }

    fn reach_rows(&self, reach: &ServiceReach) -> Vec<[String; 3]> {
        let service = plain(reach.service.as_str());
        let mut rows = Vec::new();
        let mut row = |target: String, because: String| rows.push([service.clone(), target, because]);
        if reach.peers.is_empty() {
            row("no other service".to_owned(), plain(&reach.line.to_string()));
        }
        // One line for all that are reached for the same reason: ten services in one network would need ninety.
        for same in reach.peers.chunk_by(|a, b| (a.port, &a.because, &a.line) == (b.port, &b.because, &b.line)) {
            let names = self.together(Some(&reach.service), same.iter().map(|peer| &peer.service)).unwrap_or_default();
            let port = same[0].port.map_or_else(|| "every port".to_owned(), |port| format!("port {port}"));
            row(format!("{}: {port}", plain(&names)), because(&same[0].because, &same[0].line));
        }
        for host in &reach.host {
            row(format!("this host's own 127.0.0.1, port {}", host.port), because("x-palisade.host", &host.line));
        }
        match &reach.outside {
            OutsideReach::Everything => row("everything outside".to_owned(), because("no egress rule", &reach.line)),
            OutsideReach::Nothing => row("nothing outside".to_owned(), because("no way out", &reach.line)),
            OutsideReach::Only(rules) => {
                rules.iter().for_each(|(rule, line)| row(plain(rule), because("x-palisade.egress", line)));
            }
        }
        rows
    }

    fn port_row(&self, entry: &PortEntry) -> [String; 5] {
        let mut port = entry.port.to_string();
        if let Some(address) = entry.address {
            let address = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
            port = format!("{address}:{port}");
        }
        let inside = entry.inside.map(|inside| format!(" (port {inside} inside)")).unwrap_or_default();
        let service = entry.service.as_ref().map_or("whoever of the host listens there", |service| service.as_str());
        let exposure = match entry.exposure {
            super::Exposure::Public => "**public**",
            super::Exposure::ThisHost => "this host only",
            super::Exposure::Private => "private",
        };
        [
            port,
            format!("{}{inside}", plain(service)),
            exposure.to_owned(),
            plain(&self.who(entry)),
            because(entry.key, &entry.line),
        ]
    }
}

fn because(key: &str, line: &Line) -> String {
    format!("{}: {}", plain(key), plain(&line.to_string()))
}

/// Columns aren't filled up: a longer name in one row would change all others, and who reviews the change would have to
/// read them all.
fn table<const COLUMNS: usize>(head: [&str; COLUMNS], rows: Vec<[String; COLUMNS]>, none: &str) -> String {
    if rows.is_empty() {
        return format!("{none}\n");
    }
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&head.map(str::to_owned));
    text += &line(&[const { "---" }; COLUMNS].map(str::to_owned));
    rows.iter().for_each(|row| text += &line(row));
    text
}

/// Text that stays text and stays in its cell.
fn plain(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '[' | ']' | '<' | '>' | '|' => escaped.extend(['\\', c]),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}
