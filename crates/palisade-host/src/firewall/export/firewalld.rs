//! A zone for firewalld.

use std::fmt::Write;

use palisade_core::digest::digest_of;

use super::Export;

/// Longer names of zones are refused: firewalld makes names of iptables chains of them (`firewalld.zone(5)`).
pub const ZONE_NAME_MAX: usize = 17;

/// What the zone of a stack is called.
pub fn zone_name(stack: &str) -> String {
    let name = format!("stack-{stack}");
    if name.len() <= ZONE_NAME_MAX {
        return name;
    }
    // Two stacks with the same beginning are still two zones.
    let digest: String = digest_of(&stack).chars().filter(char::is_ascii_alphanumeric).take(4).collect();
    format!("{}-{digest}", name.chars().take(ZONE_NAME_MAX - 5).collect::<String>())
}

/// The text of the zone's file.
pub fn zone(export: &Export<'_>) -> String {
    let name = zone_name(export.stack);
    let mut text = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<!--\n".to_owned();
    let head = export.head(&[
        format!("Put it to /etc/firewalld/zones/{name}.xml, write DefaultZone={name} into /etc/firewalld/firewalld.conf, and run"),
        "`systemctl reload firewalld`. The default zone is that of every interface which isn't given another one: see that".to_owned(),
        "those which lead outside aren't.".to_owned(),
        "Strangers are told that a port is closed, where Palisade stays silent; ping and the like are as in firewalld's".to_owned(),
        "other zones. Forwarding, masquerading and other zones are left as they are.".to_owned(),
    ]);
    for line in head {
        let _ = writeln!(text, "{}", format!("  {}", comment(&line)).trim_end());
    }
    let _ = writeln!(text, "-->\n<zone>\n  <short>Stack {}</short>", escape(export.stack));
    let _ =
        writeln!(text, "  <description>What the stack {} lets in from outside.</description>", escape(export.stack));
    text += "  <service name=\"dhcpv6-client\"/>\n";
    for opening in export.openings() {
        let port = opening.port;
        let element = format!("<port protocol=\"{}\" port=\"{}\"/>", port.proto, port.port);
        let _ = writeln!(text, "  <!-- {} -->", comment(&opening.comment));
        let _ = match port.host_ip.map(|ip| ip.to_canonical()) {
            None => writeln!(text, "  {element}"),
            Some(ip) => {
                let family = if ip.is_ipv4() { "ipv4" } else { "ipv6" };
                writeln!(
                    text,
                    "  <rule family=\"{family}\">\n    <destination address=\"{ip}\"/>\n    {element}\n    <accept/>\n  </rule>"
                )
            }
        };
    }
    text += "</zone>\n";
    text
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Two hyphens would end the comment.
fn comment(text: &str) -> String {
    text.replace("--", "- -")
}
