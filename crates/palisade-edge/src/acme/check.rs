//! Whether a domain points here, looked at as an authority would look, before one is asked: a failed look uses up nobody's limits.

use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use hyper::header::{LOCATION, SERVER};
use palisade_core::edge::{Challenge, WorkerSettings};
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::challenge::{self, AnswerError};
use super::client::{self, ClientError};
use super::served;
use super::store;

const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(20);

/// What was seen.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Our own answer came back, from every address of the domain.
    Ours,
    /// It can't be told from here. An authority may see more.
    Unknown(String),
    /// An authority would be answered by somebody else, or by nobody.
    NotOurs(String),
}

/// Looks. Puts an answer of its own where the edge serves it, and asks for it at each address of the domain.
pub(super) async fn look(settings: &WorkerSettings, challenge: Challenge, domain: &str) -> Result<Seen, AnswerError> {
    let port = settings.challenge_port.unwrap_or(match challenge {
        Challenge::Http01 => 80,
        Challenge::TlsAlpn01 => 443,
    });
    let addresses = match addresses(settings, domain).await {
        Ok(addresses) if !addresses.is_empty() => addresses,
        Ok(_) => return Ok(Seen::NotOurs(unresolved(domain, None))),
        Err(error) => return Ok(Seen::NotOurs(unresolved(domain, Some(&error)))),
    };
    let token = format!("palisade-look-{:016x}{:016x}", store::random(), store::random());
    let expected = format!("{token}.{:016x}", store::random());
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&store::random().to_ne_bytes());
    let (_answer, certificate) = match challenge {
        Challenge::Http01 => {
            (challenge::http(&settings.folder, &token, &expected, super::owner(settings))?, Vec::new())
        }
        Challenge::TlsAlpn01 => challenge::tls(&settings.folder, domain, &digest, super::owner(settings))?,
    };
    let mut unknown = None;
    for address in &addresses {
        let at = SocketAddr::new(*address, port);
        let seen = match challenge {
            Challenge::Http01 => http(domain, at, &token, &expected).await,
            Challenge::TlsAlpn01 => tls(domain, at, &certificate).await,
        };
        let all = list(&addresses);
        match seen {
            Ok(()) => {}
            Err(Wrong::Other(what)) => {
                return Ok(Seen::NotOurs(format!(
                    "{domain} is {all}, and at {at} {what}: that is not this host's edge, or something stands before it{}",
                    own_addresses()
                )));
            }
            // At an address of this host nobody else can be in the way.
            Err(Wrong::Nobody(error)) if is_own(*address) => {
                return Ok(Seen::NotOurs(format!(
                    "{domain} is {all}, which is this host, but nobody listens at {at} ({error}): is the edge up, and its port published?"
                )));
            }
            Err(Wrong::Nobody(error)) => {
                unknown = Some(format!(
                    "{domain} is {all}; {at} can't be reached from here ({error}), maybe because this host's own public address can't{}",
                    own_addresses()
                ));
            }
            Err(Wrong::Redirect(to)) => {
                unknown = Some(format!(
                    "{domain} is {all}; {at} answers with a redirect to {to} before this host's edge is asked: something stands before it"
                ));
            }
        }
    }
    Ok(unknown.map_or(Seen::Ours, Seen::Unknown))
}

/// What isn't as it should be.
enum Wrong {
    /// Somebody else answers.
    Other(String),
    /// Nobody can be reached.
    Nobody(String),
    /// The answer is elsewhere.
    Redirect(String),
}

async fn connect(at: SocketAddr) -> Result<TcpStream, Wrong> {
    let stream = timeout(CONNECT, TcpStream::connect(at)).await;
    let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    stream.map_err(|error| Wrong::Nobody(error.to_string()))
}

async fn http(domain: &str, at: SocketAddr, token: &str, expected: &str) -> Result<(), Wrong> {
    let stream = connect(at).await?;
    let host = if at.port() == 80 { domain.to_owned() } else { format!("{domain}:{}", at.port()) };
    let request = Request::get(format!("http://{host}/.well-known/acme-challenge/{token}"));
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| Wrong::Other(error.to_string()))?;
    let (parts, body) = request.into_parts();
    let answer = timeout(ANSWER, client::exchange(stream, domain, parts, body)).await;
    let answer = answer.unwrap_or_else(|_| Err(ClientError::Late(domain.to_owned())));
    let answer = answer.map_err(|error| Wrong::Other(format!("there is no HTTP: {}", crate::chain(&error))))?;
    let field = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
    if answer.status().is_redirection() {
        return Err(Wrong::Redirect(field(LOCATION).unwrap_or("nowhere").to_owned()));
    }
    if answer.status().is_success() && answer.body().trim_ascii_end() == expected.as_bytes() {
        return Ok(());
    }
    let server = field(SERVER).map(|name| format!(" by {name}")).unwrap_or_default();
    Err(Wrong::Other(format!("a challenge is answered with {}{server}", answer.status())))
}

async fn tls(domain: &str, at: SocketAddr, certificate: &[u8]) -> Result<(), Wrong> {
    let stream = connect(at).await?;
    let shown = timeout(ANSWER, served::leaf(stream, domain, &[crate::tls::ACME_ALPN])).await;
    match shown.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(shown) if shown == certificate => Ok(()),
        Ok(_) => Err(Wrong::Other("a challenge is answered with another certificate".to_owned())),
        Err(error) => Err(Wrong::Other(format!("a challenge is answered with {error}"))),
    }
}

async fn addresses(settings: &WorkerSettings, domain: &str) -> io::Result<BTreeSet<IpAddr>> {
    if let Some(addresses) = settings.addresses.get(domain) {
        return Ok(addresses.iter().copied().collect());
    }
    // The final dot keeps search lists out.
    let found = timeout(ANSWER, tokio::net::lookup_host((format!("{domain}."), 0))).await;
    Ok(found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?.map(|address| address.ip()).collect())
}

fn unresolved(domain: &str, error: Option<&io::Error>) -> String {
    let error = error.map(|error| format!(" ({error})")).unwrap_or_default();
    format!(
        "{domain} has no address in the DNS{error}: it needs an A or AAAA record that leads to this host{}",
        own_addresses()
    )
}

/// Addresses of this host that others may know. Under a system call filter they may be unknown.
fn own() -> Vec<IpAddr> {
    let found = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    found.collect()
}

fn is_own(address: IpAddr) -> bool {
    address.is_loopback() || own().contains(&address)
}

fn own_addresses() -> String {
    let global = |address: &IpAddr| match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local() && !address.is_unique_local(),
    };
    let own: BTreeSet<IpAddr> = own().into_iter().filter(global).collect();
    if own.is_empty() { String::new() } else { format!(". This host's own addresses: {}", list(&own)) }
}

fn list(addresses: &BTreeSet<IpAddr>) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
