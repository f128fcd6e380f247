//! A table for `nft -f`.

use std::fmt::Write;

use super::{Export, comments};
use crate::firewall::render;

/// The text of a file that replaces the table `inet stack_<name>` and touches no other.
pub fn nftables(export: &Export<'_>) -> String {
    let table = format!("stack_{}", export.stack);
    let mut text = "#!/usr/sbin/nft -f\n".to_owned();
    text += &comments(&export.head(&[
        "Load it with `nft -f FILE`, as often as you like; try it with `nft -c -f FILE`. For every boot, include it in".to_owned(),
        "/etc/nftables.conf (Debian) or /etc/sysconfig/nftables.conf (Fedora), and enable nftables.service.".to_owned(),
        format!("Take it away with `nft delete table inet {table}`."),
        "It is one table of its own: beside other tables (firewalld, ufw, an engine's) it can only subtract, as they can.".to_owned(),
    ]));
    let _ = writeln!(text, "\ntable inet {table}\nflush table inet {table}\ntable inet {table} {{");
    text += "  chain input {\n    type filter hook input priority filter; policy drop;\n\n";
    let _ = writeln!(text, "    iif lo accept comment \"the host with itself\"");
    let _ = writeln!(text, "    ip saddr 127.0.0.0/8 drop comment \"nobody out there is localhost\"");
    let _ = writeln!(text, "    ip6 saddr ::1 drop comment \"nobody out there is localhost by IPv6\"");
    for (rule, comment) in render::ordinary() {
        let _ = writeln!(text, "    {rule} comment \"{comment}\"");
    }
    for opening in export.openings() {
        let port = opening.port;
        let to = port.host_ip.map(|ip| ip.to_canonical()).map(|ip| {
            let family = if ip.is_ipv4() { "ip" } else { "ip6" };
            format!("{family} daddr {ip} ")
        });
        let _ = writeln!(text, "\n    # {}", opening.comment);
        let _ = writeln!(text, "    {}{} dport {} accept", to.unwrap_or_default(), port.proto, port.port);
    }
    // Until a transaction's end a new chain's policy is to accept, also while its rules are in use already.
    text += "\n    drop comment \"everything else\"\n  }\n}\n";
    text
}
