//! `ports`, `expose` and everything else that is spelled with ports and addresses.
//!
//! Whether two of them are in each other's way is checked in `validate`.

use std::net::IpAddr;

use super::keys;
use super::read::{Reader, Text};
use super::yaml::{Data, Node};
use crate::diagnostic::{Diagnostic, Spanned, quoted};
use crate::network::Network;
use crate::stack::{EgressRule, PortProto, Proto, Publish};

/// A range may hold so many ports.
const RANGE_MAX: u16 = 1024;

const PORT_HINT: &str = "ports are 1 to 65535, with `/udp` behind them if they are not TCP";
const PUBLISH_HINT: &str = "write `\"HOST:CONTAINER\"`, `\"IP:HOST:CONTAINER\"` or with `/udp` behind it, like `\"8080:80\"` or `\"127.0.0.1:9000:9000\"`";

/// The first and last port of `8080` or `8080-8090`.
type Range = (u16, u16);

/// What was wrong with a port, in words that follow the value.
type Wrong = String;

pub(crate) fn port(text: &str) -> Result<u16, Wrong> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("{} is not a port", quoted(text)));
    }
    match text.parse::<u16>() {
        Ok(0) => Err("0 is not a port".into()),
        Ok(port) => Ok(port),
        Err(_) => Err(format!("{text} is not a port: the highest is 65535")),
    }
}

fn range(text: &str) -> Result<Range, Wrong> {
    let Some((first, last)) = text.split_once('-') else {
        return port(text).map(|port| (port, port));
    };
    if first.is_empty() || last.is_empty() {
        return Err(format!("{} is not a port", quoted(text)));
    }
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(format!("the range {text} runs backwards"));
    }
    if last - first >= RANGE_MAX {
        return Err(format!("the range {text} has more than {RANGE_MAX} ports"));
    }
    Ok((first, last))
}

fn split_proto(text: &str) -> Result<(&str, Proto), Wrong> {
    match text.rsplit_once('/') {
        None => Ok((text, Proto::Tcp)),
        Some((rest, name)) => Ok((rest, proto(name)?)),
    }
}

fn proto(name: &str) -> Result<Proto, Wrong> {
    match name.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Proto::Tcp),
        "udp" => Ok(Proto::Udp),
        "sctp" => Err("SCTP can't be guarded, so it can't be used".into()),
        _ => Err(format!("{} is not a protocol: `tcp` and `udp` are", quoted(name))),
    }
}

/// `5432`, `5432/udp`.
pub(crate) fn port_proto(text: &str) -> Result<PortProto, Wrong> {
    let (rest, proto) = split_proto(text)?;
    Ok(PortProto { port: port(rest)?, proto })
}

/// What follows the last colon outside of brackets.
fn split_last(text: &str) -> (Option<&str>, &str) {
    match text.rfind(':') {
        Some(colon) if !text[colon..].contains(']') => (Some(&text[..colon]), &text[colon + 1..]),
        _ => (None, text),
    }
}

fn host_ip(text: &str) -> Result<IpAddr, Wrong> {
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inner.unwrap_or(text).parse().map_err(|_| format!("{} is not an IP address of the host", quoted(text)))
}

/// Why a short form isn't one, and what to write.
struct Bad {
    id: &'static str,
    message: Wrong,
    hint: String,
}

fn bad(message: Wrong) -> Bad {
    Bad { id: "invalid-value", message, hint: PUBLISH_HINT.into() }
}

/// The short form of `ports`.
fn publish(text: &str) -> Result<Vec<Publish>, Bad> {
    let (rest, proto) = split_proto(text).map_err(bad)?;
    let (host, container) = split_last(rest);
    let container = range(container).map_err(bad)?;
    let suffix = if proto == Proto::Udp { "/udp" } else { "" };
    let no_host_port = |ip: &str| Bad {
        id: "refused-value",
        message: format!("{} names no port of the host, and Palisade doesn't pick one by chance", quoted(text)),
        hint: format!(
            "write `\"{ip}{0}:{0}{suffix}\"` to publish it, or put `\"{0}{suffix}\"` into `expose` if it is for peers only",
            container.0
        ),
    };
    let Some(host) = host else {
        return Err(no_host_port(""));
    };
    let (ip, host_ports) = split_last(host);
    if host_ports.is_empty() {
        return Err(no_host_port(&ip.map(|ip| format!("{ip}:")).unwrap_or_default()));
    }
    if ip.is_none() && host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4()) {
        return Err(no_host_port(&format!("{host}:")));
    }
    if ip.is_some_and(|ip| ip.contains(':') && !ip.starts_with('[')) {
        return Err(Bad {
            id: "invalid-value",
            message: format!("the colons of {} can be read in several ways", quoted(text)),
            hint: "put an IPv6 address into brackets: `\"[::1]:8080:80\"`".into(),
        });
    }
    let ip = ip.map(host_ip).transpose().map_err(bad)?;
    spread(ip, range(host_ports).map_err(bad)?, container, proto).map_err(bad)
}

fn spread(host_ip: Option<IpAddr>, host: Range, container: Range, proto: Proto) -> Result<Vec<Publish>, Wrong> {
    if host.1 - host.0 != container.1 - container.0 {
        return Err(format!(
            "the host's range has {} ports and the container's {}: each needs its own",
            host.1 - host.0 + 1,
            container.1 - container.0 + 1
        ));
    }
    let pair = |(host_port, port)| Publish { host_ip, host_port, container: PortProto { port, proto } };
    Ok((host.0..=host.1).zip(container.0..=container.1).map(pair).collect())
}

impl Reader<'_> {
    pub(crate) fn ports(&mut self, node: &Node) -> Vec<Spanned<Publish>> {
        let mut ports = Vec::new();
        for item in self.list(node, "`ports`").unwrap_or_default() {
            let published = match &item.data {
                Data::Map(_) => self.long_port(item),
                _ => self.text(item, "a port").and_then(|text| match publish(&text.value) {
                    Ok(published) => Some(published),
                    // A variable without a value is no wish for any port.
                    Err(bad) if bad.id == "refused-value" && !text.value.starts_with(':') => {
                        let message = bad.message.replace(&quoted(&text.value), &text.quoted());
                        self.push(Diagnostic::error(bad.id, message).at(text.span, "").hint(bad.hint));
                        None
                    }
                    Err(bad) => self.bad_port(&text, bad.message, &bad.hint),
                }),
            };
            ports.extend(published.into_iter().flatten().map(|publish| Spanned::new(publish, item.span)));
        }
        ports
    }

    /// Names the value as written when a variable is in it: what came out could be anything.
    fn bad_port<T>(&mut self, text: &Text, wrong: Wrong, hint: &str) -> Option<T> {
        let filled_in = text.quoted() != quoted(&text.value);
        let message = if filled_in { format!("{} does not become a valid port", text.quoted()) } else { wrong };
        self.invalid(text, message, hint)
    }

    fn long_port(&mut self, node: &Node) -> Option<Vec<Publish>> {
        let mut fields = self.fields(node, &keys::PORT)?;
        let mut read = |name: &str| fields.value(name).map(|node| self.text(node, "a part of a port"));
        let (target, published) = (read("target"), read("published"));
        let (ip, protocol) = (read("host_ip"), read("protocol"));
        fields.finish();
        let Some(target) = target else {
            self.push(
                Diagnostic::error("missing-key", "this port has no `target`")
                    .at(node.span, "")
                    .hint("`target` is the service's port, `published` the host's"),
            );
            return None;
        };
        let target = self.port_part(&target?, range)?;
        let Some(published) = published else {
            self.push(
                Diagnostic::error(
                    "refused-value",
                    "this port has no `published`, and Palisade doesn't pick one by chance",
                )
                .at(node.span, "")
                .hint("add `published`, or use `expose` if the port is for peers only"),
            );
            return None;
        };
        let published = self.port_part(&published?, range)?;
        let ip = match ip {
            None => None,
            Some(text) => Some(self.port_part(&text?, host_ip)?),
        };
        let proto = match protocol {
            None => Proto::Tcp,
            Some(text) => self.port_part(&text?, proto)?,
        };
        match spread(ip, published, target, proto) {
            Ok(ports) => Some(ports),
            Err(wrong) => {
                self.push(
                    Diagnostic::error("invalid-value", wrong).at(node.span, "").hint("make both ranges equally long"),
                );
                None
            }
        }
    }

    fn port_part<T>(&mut self, text: &Text, parse: impl FnOnce(&str) -> Result<T, Wrong>) -> Option<T> {
        parse(&text.value).map_err(|wrong| self.bad_port::<()>(text, wrong, PORT_HINT)).ok()
    }

    /// `expose`: ports and ranges, for peers.
    pub(crate) fn expose(&mut self, node: &Node) -> Vec<Spanned<PortProto>> {
        let mut ports = Vec::new();
        for item in self.list(node, "`expose`").unwrap_or_default() {
            let Some(text) = self.text(item, "a port") else { continue };
            let parsed = split_proto(&text.value).and_then(|(rest, proto)| {
                if rest.contains(':') {
                    return Err(format!(
                        "{} is for `ports`: `expose` knows only the service's own port",
                        quoted(&text.value)
                    ));
                }
                range(rest).map(|(first, last)| (first..=last).map(move |port| PortProto { port, proto }))
            });
            match parsed {
                Ok(parsed) => ports.extend(parsed.map(|port| Spanned::new(port, text.span))),
                Err(wrong) => {
                    self.bad_port::<()>(&text, wrong, PORT_HINT);
                }
            }
        }
        ports
    }

    /// A list of single ports.
    pub(crate) fn port_list<T>(
        &mut self,
        node: &Node,
        what: &str,
        parse: impl Fn(&str) -> Result<T, Wrong>,
    ) -> Vec<Spanned<T>> {
        let mut ports = Vec::new();
        for item in self.list(node, what).unwrap_or_default() {
            let Some(text) = self.text(item, "a port") else { continue };
            if let Some(port) = self.port_part(&text, &parse) {
                ports.push(Spanned::new(port, text.span));
            }
        }
        ports
    }

    /// One entry of `x-palisade.egress`.
    pub(crate) fn egress_rule(&mut self, text: &Text) -> Option<Spanned<EgressRule>> {
        match egress_rule(&text.value) {
            Ok(rule) => Some(Spanned::new(rule, text.span)),
            Err(bad) => self.invalid(text, bad.message, &bad.hint),
        }
    }
}

const EGRESS_HINT: &str = "write an address or a network, with a port if only that is meant: `198.51.100.7:443`, `10.0.0.0/8`, `[2001:db8::/32]:443/tcp`";

fn egress_rule(text: &str) -> Result<EgressRule, Bad> {
    let wrong = |message: String| Bad { id: "invalid-value", message, hint: EGRESS_HINT.into() };
    // A protocol is a word behind the last slash; a prefix length is a number.
    let (rest, proto) = match text.rsplit_once('/') {
        Some((rest, name)) if name.starts_with(|c: char| c.is_ascii_alphabetic()) => {
            (rest, Some(self::proto(name).map_err(wrong)?))
        }
        _ => (text, None),
    };
    let bracketed = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (network, port) = match bracketed {
        Some((inside, "")) => (inside, None),
        Some((inside, behind)) => (inside, Some(behind.strip_prefix(':').unwrap_or(behind))),
        None if rest.matches(':').count() > 1 => (rest, None),
        None => rest.split_once(':').map_or((rest, None), |(network, port)| (network, Some(port))),
    };
    let port = port.map(self::port).transpose().map_err(wrong)?;
    let (address, length) = network.split_once('/').map_or((network, None), |(a, l)| (a, Some(l)));
    let Ok(ip) = address.parse::<IpAddr>() else {
        let name_like = address.contains(|c: char| c.is_ascii_alphabetic());
        return Err(if name_like && !address.contains(':') {
            Bad {
                id: "invalid-value",
                message: format!("{} is a name, and egress rules are made of addresses so far", quoted(address)),
                hint: "a name's addresses change behind the rule's back: write the provider's published networks, like `198.51.100.0/24:443`".into(),
            }
        } else {
            wrong(format!("{} is not an address", quoted(address)))
        });
    };
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    let prefix_len = match length.map(str::parse::<u8>) {
        None => bits,
        Some(Ok(length)) if length <= bits => length,
        _ => return Err(wrong(format!("the prefix length of {} is not 0 to {bits}", quoted(network)))),
    };
    let network = Network::around(ip, prefix_len).address();
    if network != ip {
        return Err(Bad {
            id: "invalid-value",
            message: format!("{address}/{prefix_len} is not a network: it has bits behind its prefix"),
            hint: format!("write `{network}/{prefix_len}` for the network, or `{address}` for the one address"),
        });
    }
    let loopback = matches!(ip, IpAddr::V4(v4) if v4.is_loopback()) || ip.is_loopback();
    if loopback {
        return Err(Bad {
            id: "invalid-value",
            message: format!("{address} is this host, and egress is about what is outside of it"),
            hint: "peers go into `connect`, the host's own services into `x-palisade.host`".into(),
        });
    }
    if prefix_len == bits && [metadata_v4(), metadata_v6()].contains(&ip) {
        return Err(Bad {
            id: "invalid-value",
            message: format!("{address} hands out the machine's credentials, and no service may reach it"),
            hint: "give the service credentials of its own".into(),
        });
    }
    Ok(EgressRule { network, prefix_len, port, proto })
}

fn metadata_v4() -> IpAddr {
    IpAddr::from([169, 254, 169, 254])
}
fn metadata_v6() -> IpAddr {
    IpAddr::from([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<String, String> {
        let one = |p: &Publish| {
            let ip = p.host_ip.map_or("*".into(), |ip| ip.to_string());
            format!("{ip} {} {}", p.host_port, p.container)
        };
        publish(text).map(|list| list.iter().map(one).collect::<Vec<_>>().join(", ")).map_err(|bad| bad.message)
    }

    #[test]
    fn short_forms() {
        assert_eq!(shown("8084:8094").unwrap(), "* 8084 8094/tcp");
        assert_eq!(shown("127.0.0.1:53:5353/udp").unwrap(), "127.0.0.1 53 5353/udp");
        assert_eq!(shown("[::1]:80:8080").unwrap(), "::1 80 8080/tcp");
        assert_eq!(shown("80-81:90-91").unwrap(), "* 80 90/tcp, * 81 91/tcp");
        for wrong in [
            "80",
            "127.0.0.1::80",
            "127.0.0.1:80",
            "::1:80:80",
            "80:80/sctp",
            "0:80",
            "80:65536",
            "80-82:80",
            "82-80:1-3",
            "1-65535:1-65535",
            "x:80",
            "",
            ":80",
            "1.2.3:80:80",
            "80:",
            "-1:80",
        ] {
            assert!(shown(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn egress() {
        let rule = |text: &str| egress_rule(text).map_err(|bad| bad.message);
        let made = |ip: &str, prefix_len, port, proto| {
            Ok::<_, String>(EgressRule { network: ip.parse().unwrap(), prefix_len, port, proto })
        };
        assert_eq!(rule("198.51.100.7"), made("198.51.100.7", 32, None, None));
        assert_eq!(rule("198.51.100.0/24:443"), made("198.51.100.0", 24, Some(443), None));
        assert_eq!(rule("198.51.100.7:53/udp"), made("198.51.100.7", 32, Some(53), Some(Proto::Udp)));
        assert_eq!(rule("2001:db8::/32"), made("2001:db8::", 32, None, None));
        assert_eq!(rule("[2001:db8::/32]:443/tcp"), made("2001:db8::", 32, Some(443), Some(Proto::Tcp)));
        assert_eq!(rule("0.0.0.0/0"), made("0.0.0.0", 0, None, None));
        for wrong in [
            "registry.example:443",
            "198.51.100.7/24",
            "198.51.100.7/33",
            "127.0.0.1:80",
            "169.254.169.254",
            "",
            "1.2.3.4:0",
            "[::1]",
        ] {
            assert!(rule(wrong).is_err(), "{wrong}");
        }
    }
}
