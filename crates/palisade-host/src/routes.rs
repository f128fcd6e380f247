//! Routes and routing rules of the calling thread's network namespace: which way an address lies, and copying all.
//!
//! Whose addresses matter is decided elsewhere.

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::SockProtocol;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::link::{LinkError, failed, ip_of, octets};
use crate::netlink::{Message, NLM_F_CREATE, NLM_F_EXCL, Netlink, attributes, u32_of};

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_GETRULE: u16 = 34;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PREFSRC: u16 = 7;
const RTA_CACHEINFO: u16 = 12;
const RTA_TABLE: u16 = 15;
const RTA_NH_ID: u16 = 30;
/// `struct rtmsg` and `struct fib_rule_hdr`.
const HEADER_LEN: usize = 12;
/// What a copy may hold; a router with the whole internet's table is not what is copied here.
const ROUTES_MAX: usize = 20_000;

/// Where packets to an address go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Out of an interface.
    Out {
        /// Its number.
        interface: u32,
        /// The host's address that they leave with.
        own: Option<IpAddr>,
    },
    /// To this host itself.
    Here,
    /// Nowhere, because a route says so: unreachable, prohibit, blackhole.
    Forbidden,
    /// Nowhere, because no route says anything.
    Unknown,
    /// To many: broadcast or multicast.
    Many,
}

/// Asks the kernel which way packets to `destination` go, by the routing rules too, as `ip route get` does
/// (`inet_rtm_getroute` of net/ipv4/route.c, `inet6_rtm_getroute` of net/ipv6/route.c).
pub fn way_to(destination: IpAddr) -> Result<Way, LinkError> {
    let wrong = || failed("find", format!("the route to {destination}"));
    let (family, bytes) = octets(destination);
    let mut fixed = [0; HEADER_LEN];
    fixed[0] = family;
    fixed[1] = bytes.len() as u8 * 8;
    let question = Message::new(RTM_GETROUTE, 0, &fixed).attr(RTA_DST, &bytes);
    let mut way = Way::Unknown;
    let mut socket = Netlink::open(SockProtocol::NetlinkRoute).map_err(wrong())?;
    let asked = socket.ask(question, |_, body| way = read_way(body));
    match asked.as_ref().err().and_then(io::Error::raw_os_error).map(Errno::from_raw) {
        None => asked.map(|()| way).map_err(wrong()),
        Some(Errno::ENETUNREACH) => Ok(Way::Unknown),
        // What fib_props of net/ipv4/fib_semantics.c says for unreachable, prohibit and blackhole.
        Some(Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL) => Ok(Way::Forbidden),
        Some(_) => asked.map(|()| way).map_err(wrong()),
    }
}

/// Waits until packets to an IPv6 address that was just added go to this host itself. The kernel adds that route on
/// its own time (`addrconf_dad_start` of net/ipv6/addrconf.c puts it on a work queue). One on an interface that is
/// down has none; nothing is waited for after a second.
pub(crate) fn wait_until_here(ip: IpAddr) -> Result<(), LinkError> {
    let deadline = Instant::now() + Duration::from_secs(1);
    while way_to(ip)? != Way::Here && Instant::now() < deadline {
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

fn read_way(body: &[u8]) -> Way {
    let Some(rest) = body.get(HEADER_LEN..) else { return Way::Unknown };
    match body[7] {
        libc::RTN_LOCAL => return Way::Here,
        libc::RTN_BROADCAST | libc::RTN_ANYCAST | libc::RTN_MULTICAST => return Way::Many,
        libc::RTN_UNICAST => (),
        _ => return Way::Forbidden,
    }
    let (mut interface, mut own) = (0, None);
    for (kind, value) in attributes(rest) {
        match kind {
            RTA_OIF => interface = u32_of(value),
            RTA_PREFSRC => own = ip_of(value),
            _ => (),
        }
    }
    if interface == 0 { Way::Unknown } else { Way::Out { interface, own } }
}

/// Routes and routing rules as the kernel tells and takes them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Routes {
    rules: Vec<Vec<u8>>,
    routes: Vec<CopiedRoute>,
    /// There were too many routes.
    pub(crate) truncated: bool,
}

#[derive(Clone, Debug)]
struct CopiedRoute {
    body: Vec<u8>,
    interface: Option<u32>,
    destination: Option<IpAddr>,
}

impl Routes {
    /// Reads all but what the kernel makes of addresses by itself.
    pub(crate) fn read() -> Result<Self, LinkError> {
        let mut socket = Netlink::open(SockProtocol::NetlinkRoute).map_err(failed("open", "a route netlink socket"))?;
        let mut found = Self::default();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut fixed = [0; HEADER_LEN];
            fixed[0] = family as u8;
            let rules = &mut found.rules;
            let asked = socket.dump(Message::new(RTM_GETRULE, 0, &fixed), |_, body| rules.push(body.to_vec()));
            asked.map_err(failed("list", "routing rules"))?;
            let routes = &mut found.routes;
            let asked = socket.dump(Message::new(RTM_GETROUTE, 0, &fixed), |_, body| {
                routes.extend((routes.len() <= ROUTES_MAX).then(|| CopiedRoute::read(body)).flatten());
            });
            asked.map_err(failed("list", "routes"))?;
        }
        found.truncated = found.routes.len() > ROUTES_MAX;
        found.routes.truncate(ROUTES_MAX);
        Ok(found)
    }
    /// Whether a route leads through an interface.
    pub(crate) fn use_interface(&self, index: u32) -> bool {
        self.routes.iter().any(|route| route.interface == Some(index) && !route.is_link_local())
    }
    /// Sets them up in the calling thread's namespace, and says what couldn't be. Routes through interfaces that
    /// `exists` doesn't know are left out.
    pub(crate) fn restore(&self, exists: impl Fn(u32) -> bool) -> Result<Vec<String>, LinkError> {
        let mut socket = Netlink::open(SockProtocol::NetlinkRoute).map_err(failed("open", "a route netlink socket"))?;
        let mut problems = Vec::new();
        let mut add = |kind, body: &[u8]| {
            match socket.request(Message::new(kind, NLM_F_CREATE | NLM_F_EXCL, body)) {
                // Every namespace has the three rules of the beginning, and the routes that addresses bring along.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
                other => other,
            }
        };
        for rule in &self.rules {
            if let Err(error) = add(RTM_NEWRULE, rule) {
                problems.push(format!("a routing rule: {error}"));
            }
        }
        let mut left: Vec<_> = self.routes.iter().filter(|route| route.interface.is_none_or(&exists)).collect();
        // A gateway must be reachable when its route comes, and the kernel tells routes in no such order.
        loop {
            let before = left.len();
            let mut refused = Vec::new();
            left.retain(|route| match add(RTM_NEWROUTE, &route.body) {
                Ok(()) => false,
                Err(error) => {
                    refused.push(format!("{}: {error}", route.label()));
                    true
                }
            });
            if left.len() == before || left.is_empty() {
                problems.extend(refused);
                return Ok(problems);
            }
        }
    }
}

impl CopiedRoute {
    fn read(body: &[u8]) -> Option<Self> {
        let fixed: [u8; HEADER_LEN] = body.get(..HEADER_LEN)?.try_into().ok()?;
        let mut table = u32::from(fixed[4]);
        let (mut interface, mut destination) = (None, None);
        let mut copy = Message::new(0, 0, &fixed);
        for (kind, value) in attributes(&body[HEADER_LEN..]) {
            match kind {
                RTA_TABLE => table = u32_of(value),
                RTA_OIF => interface = Some(u32_of(value)),
                RTA_DST => destination = ip_of(value),
                // What the kernel only tells; what a next hop's number means stands beside it.
                RTA_CACHEINFO | RTA_NH_ID => continue,
                _ => (),
            }
            copy = copy.attr(kind, value);
        }
        // In the local table only what somebody has put there.
        let by_kernel = fixed[5] == libc::RTPROT_KERNEL;
        let made_by_addresses = table == u32::from(libc::RT_TABLE_LOCAL) && by_kernel;
        (!made_by_addresses).then(|| Self { body: copy.body(), interface, destination })
    }
    fn is_link_local(&self) -> bool {
        matches!(self.destination, Some(IpAddr::V6(ip)) if ip.is_unicast_link_local() || ip.is_multicast())
    }
    fn label(&self) -> String {
        match self.destination {
            Some(ip) => format!("the route to {ip}/{}", self.body[1]),
            None => "a default route".into(),
        }
    }
}
