use super::*;
use palisade_core::prove::Family;

fn rules() -> FirewallRules {
    let open =
        |proto, port, host_ip: Option<&str>| OpenPort { proto, port, host_ip: host_ip.map(|ip| ip.parse().unwrap()) };
    FirewallRules {
        ssh_ports: [22].into(),
        published: [
            open(Proto::Tcp, 8084, None),
            open(Proto::Udp, 8085, None),
            open(Proto::Tcp, 8086, Some("203.0.113.1")),
            open(Proto::Tcp, 8087, Some("2001:db8::1")),
        ]
        .into(),
        allow: [PortProto { port: 443, proto: Proto::Tcp }, PortProto { port: 22, proto: Proto::Tcp }].into(),
        backend: palisade_core::firewall::Backend::Nftables,
    }
}

fn written(write: impl Fn(&Export<'_>) -> String) -> String {
    let rules = rules();
    let because = BTreeMap::from([
        (PortProto { port: 8084, proto: Proto::Tcp }, "web, compose.yaml:5".to_owned()),
        (PortProto { port: 8085, proto: Proto::Udp }, "dns, a--b\n\u{1b}[2J.yaml:7".to_owned()),
    ]);
    write(&Export { stack: "shop", rules: &rules, because: &because })
}

#[test]
fn each_file_says_what_it_lets_in_and_why() {
    insta::assert_snapshot!("nftables", written(nftables));
    insta::assert_snapshot!("iptables_v4", written(|export| iptables(export, Family::V4)));
    insta::assert_snapshot!("iptables_v6", written(|export| iptables(export, Family::V6)));
    insta::assert_snapshot!("firewalld", written(zone));
}

#[test]
fn what_somebody_named_stays_a_comment() {
    let all = [written(nftables), written(|export| iptables(export, Family::V4)), written(zone)];
    for text in &all {
        assert!(!text.contains('\u{1b}'), "{text}");
        let line = text.lines().find(|line| line.contains("dns, a")).unwrap().trim();
        assert!(line.starts_with('#') || (line.starts_with("<!--") && line.ends_with("-->")), "{line}");
    }
    let comments = all[2].split("<!--").skip(1).map(|rest| rest.split("-->").next().unwrap());
    comments.for_each(|comment| assert!(!comment.contains("--"), "{comment}"));
}

#[test]
fn long_names_of_stacks_make_different_zones() {
    assert_eq!(zone_name("shop"), "stack-shop");
    let [one, other] = ["a-stack-with-a-long-name-1", "a-stack-with-a-long-name-2"].map(zone_name);
    assert!(one != other && one.len() <= ZONE_NAME_MAX && other.len() <= ZONE_NAME_MAX, "{one} {other}");
}
