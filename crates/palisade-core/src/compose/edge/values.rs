//! What single values of the edge mean: domains, paths, rates, upstreams.
//!
//! Text in, values out; what is wrong is said in words that fit behind the value itself: "`x` …".

use std::net::IpAddr;

use super::FileUpstream;
use crate::diagnostic::quoted;
use crate::edge::Domain;

/// What is wrong with a value, and what to write instead.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// Goes on where the value ends.
    pub(super) message: String,
    pub(super) hint: String,
}

fn wrong<T>(message: impl Into<String>, hint: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { message: message.into(), hint: hint.into() })
}

const DOMAIN_HINT: &str =
    "write the name alone: `barter.example`, or `*.barter.example` for all names one label below it";
/// RFC 1035, section 2.3.4, as text.
const DOMAIN_CHARS_MAX: usize = 253;
const LABEL_CHARS_MAX: usize = 63;

/// A domain name, or `*.` and one. International names become what the network knows them by (UTS #46).
pub(super) fn domain(text: &str) -> Result<Domain, Wrong> {
    if let Some((_, rest)) = text.split_once("://") {
        let name = rest.split(['/', ':', '?', '#']).next().unwrap_or_default();
        return match domain(name) {
            Ok(_) => wrong("is a page's address, not a domain", format!("write {}", quoted(name))),
            Err(_) => wrong("is a page's address, not a domain", DOMAIN_HINT),
        };
    }
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if inner.parse::<IpAddr>().is_ok() {
        let hint = "write the name that leads to it; who asks by the address is served by `default_domain`";
        return wrong("is an address, and routes are for domains", hint);
    }
    if let Some((name, path)) = text.split_once('/') {
        return wrong("has a path behind the domain", format!("write `domain: {name}` and `path: /{path}`"));
    }
    if let Some((name, _)) = text.split_once(':') {
        let hint = format!("write {}; where the edge listens is said by `ports` of `edge`", quoted(name));
        return wrong("has a port behind the domain", hint);
    }
    let (wildcard, name) = text.strip_prefix("*.").map_or(("", text), |name| ("*.", name));
    if name.contains('*') {
        return wrong("has a `*` that isn't the whole first label", DOMAIN_HINT);
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    if let Some(why) = malformed(name) {
        return wrong(format!("is not a domain name: {why}"), DOMAIN_HINT);
    }
    let Ok(ascii) = idna::domain_to_ascii_strict(name) else {
        return wrong("is not a domain name: the rules for international names forbid it", DOMAIN_HINT);
    };
    if ascii.len() + wildcard.len() > DOMAIN_CHARS_MAX {
        return wrong(format!("is not a domain name: it is longer than {DOMAIN_CHARS_MAX} characters"), DOMAIN_HINT);
    }
    if ascii == "default" {
        return wrong("is the word for all other domains, and no domain", DOMAIN_HINT);
    }
    if wildcard.is_empty() && ascii.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
        return wrong("is not a domain name: its last label is a number, as in an address", DOMAIN_HINT);
    }
    Ok(format!("{wildcard}{ascii}"))
}

/// What is wrong with a name, where it can be said more closely than by the rules for international ones.
fn malformed(name: &str) -> Option<String> {
    if name.is_ascii() && name.len() > DOMAIN_CHARS_MAX {
        return Some(format!("it is longer than {DOMAIN_CHARS_MAX} characters"));
    }
    for label in name.split('.') {
        if label.is_empty() {
            return Some("nothing stands between two dots, or at one end".to_owned());
        }
        if label.len() > LABEL_CHARS_MAX && label.is_ascii() {
            return Some(format!("a part between two dots is longer than {LABEL_CHARS_MAX} characters"));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Some("a part of it begins or ends with `-`".to_owned());
        }
        let bad = |c: &char| c.is_ascii() && !c.is_ascii_alphanumeric() && *c != '-';
        if let Some(c) = label.chars().find(bad) {
            return Some(match c {
                ' ' => "it holds a space".to_owned(),
                '_' => "it holds `_`, which names of hosts can't".to_owned(),
                c => format!("it holds {}", quoted(&c.to_string())),
            });
        }
    }
    None
}

const PATH_HINT: &str = "write what the path begins with: `/`, `/api`";

/// What a path begins with, without a slash at its end.
pub(super) fn path(text: &str) -> Result<String, Wrong> {
    if !text.starts_with('/') {
        return wrong("does not begin with `/`", PATH_HINT);
    }
    if let Some(before) = text.strip_suffix('*') {
        let before = match before.trim_end_matches('/') {
            "" => "/",
            before => before,
        };
        let hint = format!("write {}: a route is for all that is below its path", quoted(before));
        return wrong("ends in `*`, which would stand for itself", hint);
    }
    if text.contains(['?', '#']) {
        return wrong("has more than a path", "routes know only paths: leave out what begins with `?` or `#`");
    }
    if text.contains(';') {
        let hint = "write what stands before it: routes are looked for without such parameters";
        return wrong("has a parameter of a segment (`;…`)", hint);
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "/-._~!$&'()+,=:@".contains(c);
    if let Some(c) = text.chars().find(|c| !allowed(*c)) {
        let hint = "begin the route with a part of the path that has only letters, digits and `-._~!$&'()+,=:@`";
        return wrong(format!("holds {}", quoted(&c.to_string())), hint);
    }
    let trimmed = text.trim_end_matches('/');
    for segment in trimmed.split('/').skip(1) {
        match segment {
            "" => return wrong("has two slashes in a row", PATH_HINT),
            "." | ".." => return wrong(format!("holds `{segment}`, and no request's path does"), PATH_HINT),
            _ => {}
        }
    }
    Ok(if trimmed.is_empty() { "/".to_owned() } else { trimmed.to_owned() })
}

/// A faster rate is none.
const RATE_PER_S_MAX: u64 = 1_000_000;
const RATE_HINT: &str = "write requests a second or a minute: `10/s`, `90/m`";

/// `10/s`, `90/m` in thousandths of a request a second, as nginx counts them: rounded down.
pub(super) fn rate(text: &str) -> Result<u32, Wrong> {
    let Some((number, unit)) = text.split_once('/') else { return wrong("is not a rate", RATE_HINT) };
    let factor = match unit.trim() {
        "s" => 60,
        "m" => 1,
        "h" | "d" => {
            return wrong("is counted by the hour, and rates are counted by the second or the minute", RATE_HINT);
        }
        _ => return wrong("is not a rate", RATE_HINT),
    };
    let Ok(number) = number.trim().parse::<u64>() else {
        return match whole_minutes(number.trim(), factor) {
            Some(per_minute) => wrong("is no whole number of requests", format!("write `{per_minute}/m`")),
            None => wrong("is not a rate", RATE_HINT),
        };
    };
    if number == 0 {
        let hint = "nobody could ask at all: write at least `1/m`, or remove the route";
        return wrong("is no rate at all", hint);
    }
    match number.checked_mul(factor).filter(|per_minute| *per_minute <= RATE_PER_S_MAX * 60) {
        Some(per_minute) => Ok((per_minute * 1000 / 60) as u32),
        None => {
            wrong(format!("is more than {RATE_PER_S_MAX} requests a second"), "for no limit, write `rate_limit: off`")
        }
    }
}

/// `0.5` a second is 30 a minute.
fn whole_minutes(number: &str, factor: u64) -> Option<u64> {
    let (whole, part) = number.split_once('.')?;
    let digits = |text: &str| text.len() <= 6 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.is_empty() {
        return None;
    }
    let scale = 10_u64.pow(part.len() as u32);
    let scaled = (whole.parse::<u64>().unwrap_or(0) * scale + part.parse::<u64>().ok()?) * factor;
    (scaled > 0 && scaled.is_multiple_of(scale)).then_some(scaled / scale)
}

/// So many come in two seconds; at least one.
pub(super) fn usual_burst(milli_per_s: u32) -> u32 {
    (milli_per_s / 500).max(1)
}

const UPSTREAM_HINT: &str = "write a service of this file and its port: `app:8081`";

/// `service:port`, or a service.
pub(super) fn upstream(text: &str) -> Result<FileUpstream, Wrong> {
    if let Some((scheme, rest)) = text.split_once("://") {
        let name = rest.split('/').next().unwrap_or_default();
        let what = match scheme {
            "h2c" | "grpc" => format!("write {}, and `protocol: {scheme}`", quoted(name)),
            "https" => {
                format!("write {}: what goes from the edge to a service stays on this host, without TLS", quoted(name))
            }
            _ => format!("write {}", quoted(name)),
        };
        return wrong("is an address, where a service and its port are wanted", what);
    }
    let (service, port) = text.split_once(':').map_or((text, None), |(service, port)| (service, Some(port)));
    if service.is_empty() {
        return wrong("names no service", UPSTREAM_HINT);
    }
    if text.contains('/') {
        return wrong("has a path: requests keep theirs", UPSTREAM_HINT);
    }
    let port = match port.map(super::super::ports::port) {
        None => None,
        Some(Ok(port)) => Some(port),
        Some(Err(why)) => return wrong(format!("is not a service and its port: {why}"), UPSTREAM_HINT),
    };
    if service.parse::<IpAddr>().is_ok() || service == "localhost" {
        let hint = "write the name of a service of this file; what else runs on the host, or elsewhere, has no place behind the edge";
        return wrong("is an address, where a service is wanted", hint);
    }
    Ok(FileUpstream { service: service.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message<T: std::fmt::Debug>(result: Result<T, Wrong>) -> String {
        result.unwrap_err().message
    }

    #[test]
    fn domains_are_what_the_network_knows() {
        for (text, name) in [
            ("barter.example", "barter.example"),
            ("Barter.Example.", "barter.example"),
            ("*.barter.example", "*.barter.example"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
            ("例え.テスト", "xn--r8jz45g.xn--zckzah"),
            ("localhost", "localhost"),
            ("1.a.example", "1.a.example"),
        ] {
            assert_eq!(domain(text).as_deref(), Ok(name), "{text}");
        }
    }

    #[test]
    fn what_is_no_domain_is_told_why() {
        for (text, why) in [
            ("", "between two dots"),
            ("https://barter.example/x", "is a page's address"),
            ("barter.example/api", "has a path"),
            ("barter.example:443", "has a port"),
            ("192.0.2.1", "is an address"),
            ("[2001:db8::1]", "is an address"),
            ("2001:db8::1", "is an address"),
            ("a..example", "between two dots"),
            (".example", "between two dots"),
            ("-a.example", "begins or ends with `-`"),
            ("a_b.example", "`_`"),
            ("a b.example", "a space"),
            ("a,b.example", "`,`"),
            ("*", "a `*`"),
            ("a.*.example", "a `*`"),
            ("*a.example", "a `*`"),
            ("xn--a.example", "international"),
            ("a\u{ad}\u{200b}\u{fffd}.example", "international"),
            ("1.2.3", "its last label is a number"),
            ("default", "all other domains"),
            (&"a".repeat(64), "longer than 63"),
            (&"a.".repeat(130), "longer than 253"),
        ] {
            let found = domain(text).map_err(|wrong| wrong.message);
            assert!(found.as_ref().is_err_and(|message| message.contains(why)), "{text}: {found:?}");
        }
    }

    #[test]
    fn paths_are_whole_segments() {
        for (text, meant) in [("/", "/"), ("//", "/"), ("/api", "/api"), ("/api/", "/api"), ("/a/b.c/~x", "/a/b.c/~x")]
        {
            assert_eq!(path(text).as_deref(), Ok(meant), "{text}");
        }
        for text in
            ["", "api", "/api/*", "/a//b", "/a/../b", "/.", "/a?b", "/a#b", "/a b", "/%61", "/é", "/a\0", "/a;b"]
        {
            assert!(path(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_are_rounded_as_nginx_does() {
        for (text, milli) in [("10/s", 10_000), ("1/m", 16), ("90/m", 1_500), ("1000000/s", 1_000_000_000)] {
            assert_eq!(rate(text), Ok(milli), "{text}");
        }
        for text in ["10", "0/s", "10/h", "10r/s", "-1/s", "1.5/s", "1000001/s", "/s", "18446744073709551615/s"] {
            assert!(rate(text).is_err(), "{text}");
        }
        for (text, hint) in [("0.5/s", "`30/m`"), ("1.5/s", "`90/m`"), (".25/s", "`15/m`"), ("1.0/m", "`1/m`")] {
            assert!(rate(text).is_err_and(|wrong| wrong.hint.contains(hint)), "{text}");
        }
        for text in ["0.001/s", "0.0/s", "1./s", "1.5.5/s", "1.1/m", "9999999.5/s"] {
            assert!(rate(text).is_err_and(|wrong| wrong.hint == RATE_HINT), "{text}");
        }
        assert_eq!((usual_burst(10_000), usual_burst(16), usual_burst(1_500)), (20, 1, 3));
    }

    #[test]
    fn upstreams_are_services() {
        let made = |service: &str, port| Ok(FileUpstream { service: service.to_owned(), port });
        assert_eq!(upstream("app:8081"), made("app", Some(8081)));
        assert_eq!(upstream("app"), made("app", None));
        assert!(message(upstream("http://app:8081")).starts_with("is an address"));
        assert!(message(upstream("127.0.0.1:8081")).starts_with("is an address"));
        assert!(message(upstream("app:0")).contains("port"));
        assert!(message(upstream("app:8081/api")).contains("path"));
        assert!(message(upstream(":80")).contains("no service"));
    }
}
