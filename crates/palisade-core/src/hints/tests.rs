use super::*;
use crate::testing::{at, grant, name, place, publish, service, stack, tcp};
use std::collections::BTreeSet;

fn shop() -> (Stack, AddressBook) {
    let mut app = service("app");
    let mut connect = grant("cache", None);
    connect.place = Place { line: 20, ..place() };
    app.connect = Some(vec![connect]);
    let mut db = service("db");
    db.expose = vec![at(tcp(5432))];
    let mut cache = service("cache");
    cache.expose = vec![at(tcp(5432))];
    let mut vault = service("vault");
    vault.networks = BTreeSet::from(["secret".to_owned()]);
    let mut web = service("web");
    web.publish = vec![publish(None, 80, 8080)];
    let stack = stack([app, db, cache, vault, web]);
    let book = AddressBook::default().assign(stack.services.iter().map(|s| &s.name), &BTreeSet::new()).unwrap();
    (stack, book)
}

fn explained(reason: Reason, client: Option<&str>, proto: Proto, address: &str, port: u16) -> String {
    let (stack, book) = shop();
    let refusal = Refusal { client: client.map(name), proto, address: address.parse().unwrap(), port, reason };
    let Explanation { what, hint, place } = explain(&stack, &book, &refusal);
    let hint = hint.map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
    let place = place.map(|place| format!(" ({place})")).unwrap_or_default();
    format!("{what}{hint}{place}\n")
}

#[test]
fn every_reason_says_what_would_help() {
    let app = |reason, address: &str, port| explained(reason, Some("app"), Proto::Tcp, address, port);
    let text = [
        app(Reason::NotAPeer, "127.77.2.0", 5432),
        app(Reason::NotAPeer, "::ffff:127.77.2.1", 5432),
        app(Reason::NotAPeer, "fd70:616c:6973:6164::7f4d:201", 5432),
        app(Reason::NotAPeer, "127.77.4.0", 8200),
        explained(Reason::NotAPeer, None, Proto::Tcp, "127.77.2.1", 5432),
        explained(Reason::NotAPeer, Some("app"), Proto::Udp, "127.77.2.0", 53),
        app(Reason::UndeclaredPort, "0.0.0.0", 9000),
        app(Reason::UndeclaredListener, "0.0.0.0", 40001),
        app(Reason::HostLoopback, "127.0.0.1", 631),
        app(Reason::HostPort, "192.0.2.1", 80),
        app(Reason::HostPort, "192.0.2.1", 25),
        app(Reason::OtherStack, "127.77.9.0", 80),
        app(Reason::Metadata, "169.254.169.254", 80),
        app(Reason::Egress, "198.51.100.7", 443),
        app(Reason::Egress, "2001:db8::7", 443),
        app(Reason::AmbiguousLocalhost, "127.0.0.1", 5432),
        app(Reason::NoBackend, "127.77.3.0", 6379),
        app(Reason::ForeignAddress, "127.205.2.1", 5432),
        app(Reason::SocketType, "0.0.0.0", 0),
        app(Reason::AbstractUnix, "0.0.0.0", 0),
        app(Reason::NoPolicy, "0.0.0.0", 80),
        app(Reason::Ipv6LocalDatagram, "::1", 53),
        app(Reason::FromOutside, "2001:db8::7", 5432),
    ];
    insta::assert_snapshot!(text.concat(), @r#"
    service app may not connect to db:5432/tcp
      hint: add "db:5432" to x-palisade.connect of service app (compose.yaml:20:5)
    service app may not connect to db:5432/tcp
      hint: add "db:5432" to x-palisade.connect of service app (compose.yaml:20:5)
    service app may not connect to db:5432/tcp
      hint: add "db:5432" to x-palisade.connect of service app (compose.yaml:20:5)
    service app may not connect to vault:8200/tcp
      hint: they share no network: add secret to networks of service app (compose.yaml:12:5)
    a process of the host may not connect to db:5432/tcp
      hint: publish the port at 127.0.0.1 with `ports:` to let the host use it
    service app may not connect to db:53/udp
      hint: add "db:53/udp" to x-palisade.connect of service app (compose.yaml:20:5)
    service app is strict and may not bind 9000/tcp, which it doesn't declare
      hint: add "9000" to expose of service app (compose.yaml:12:5)
    service app listens at 40001/tcp on a socket that it never bound; nobody reaches it there
      hint: bind the socket before listening, and add "40001" to expose of service app (compose.yaml:12:5)
    service app may not connect to 127.0.0.1:631/tcp, a service of the host itself
      hint: add 631 to x-palisade.host of service app (compose.yaml:12:5)
    service app may not connect to 192.0.2.1:80/tcp of this host
      hint: use the name: web:8080 (compose.yaml:12:5)
    service app may not connect to 192.0.2.1:25/tcp of this host
      hint: add 25 to x-palisade.host of service app (compose.yaml:12:5)
    service app may not connect to 127.77.9.0:80/tcp, which belongs to another stack
      hint: let the other stack publish the port, or put both services into one file (compose.yaml:12:5)
    service app may not reach the cloud's metadata at 169.254.169.254:80/tcp, where credentials of the machine are
      hint: if it needs them, add "169.254.169.254/32:80" to x-palisade.egress of service app (compose.yaml:12:5)
    service app may not connect to 198.51.100.7:443/tcp outside
      hint: add "198.51.100.7/32:443" to x-palisade.egress of service app (compose.yaml:12:5)
    service app may not connect to [2001:db8::7]:443/tcp outside
      hint: add "[2001:db8::7]/128:443" to x-palisade.egress of service app (compose.yaml:12:5)
    service app connected to localhost:5432, which could be any of db, cache
      hint: use the name: db:5432 (compose.yaml:12:5)
    service app connected to cache:6379/tcp, and no instance of it takes connections now
      hint: `palisade ps` shows its state, `palisade logs cache` why (compose.yaml:12:5)
    service app may not bind db:5432/tcp, which isn't its address
      hint: bind 0.0.0.0, [::] or localhost; `ports:` says where it is visible (compose.yaml:12:5)
    service app may not make a socket of this kind, because it can't be guarded
      hint: TCP, UDP and unix sockets are possible (compose.yaml:12:5)
    service app may not use an abstract unix socket of another service
      hint: share a volume and use a socket with a path (compose.yaml:12:5)
    service app is in no policy, so it may neither bind nor connect
      hint: run `palisade up` (compose.yaml:12:5)
    service app may not send a datagram to [::1]:53/tcp, because it can't be led to a service
      hint: use the service's name or 127.0.0.1 instead of ::1 (compose.yaml:12:5)
    2001:db8::7 sent a packet from outside to the private address of service app, port 5432/tcp
      hint: `ports:` says what is visible outside; whoever sends to private addresses looks for holes (compose.yaml:12:5)
    "#);
}
