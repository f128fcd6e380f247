//! The resolv.conf of an instance: the host's, with those parts replaced that the Compose file sets.
//!
//! Pure. Whether the name servers may be asked is the guard's business.

use palisade_core::stack::Dns;

/// The text of the file.
pub(crate) fn resolv_conf(host: &str, dns: Option<&Dns>) -> String {
    let Some(dns) = dns else { return host.to_owned() };
    let kept = |keywords: &'static [&'static str]| {
        let of = move |line: &&str| line.split_whitespace().next().is_some_and(|word| keywords.contains(&word));
        host.lines().filter(of).map(|line| format!("{line}\n")).collect::<String>()
    };
    let mut text = match dns.servers.as_slice() {
        [] => kept(&["nameserver"]),
        servers => servers.iter().map(|server| format!("nameserver {server}\n")).collect(),
    };
    text += &match dns.search.as_slice() {
        [] => kept(&["search", "domain"]),
        // A lone dot: none, not even the host's.
        [dot] if dot == "." => String::new(),
        domains => format!("search {}\n", domains.join(" ")),
    };
    text += &match dns.options.as_slice() {
        [] => kept(&["options"]),
        options => format!("options {}\n", options.join(" ")),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "# by hand\nnameserver 127.0.0.53\noptions edns0\nsearch lan\n";

    fn dns(servers: &[&str], search: &[&str], options: &[&str]) -> Dns {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Dns {
            servers: servers.iter().map(|server| server.parse().unwrap()).collect(),
            search: words(search),
            options: words(options),
        }
    }

    #[test]
    fn what_the_file_does_not_set_is_the_hosts() {
        assert_eq!(resolv_conf(HOST, None), HOST);
        let servers = dns(&["192.0.2.1", "2001:db8::1"], &[], &[]);
        let expected = "nameserver 192.0.2.1\nnameserver 2001:db8::1\nsearch lan\noptions edns0\n";
        assert_eq!(resolv_conf(HOST, Some(&servers)), expected);
        let search = dns(&[], &["a.test", "b.test"], &["ndots:1", "rotate"]);
        let expected = "nameserver 127.0.0.53\nsearch a.test b.test\noptions ndots:1 rotate\n";
        assert_eq!(resolv_conf(HOST, Some(&search)), expected);
        assert_eq!(resolv_conf(HOST, Some(&dns(&[], &["."], &[]))), "nameserver 127.0.0.53\noptions edns0\n");
    }
}
