//! The one table of risks: what each is called, why it matters, and what to do about it in general.
//!
//! Only words here; how a risk is found is in the modules beside this one.

/// One kind of risk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Risk {
    /// Its stable name, for messages and for `x-palisade.allow`.
    pub id: &'static str,
    /// What it is, in a few words.
    pub title: &'static str,
    /// Why it matters, in one sentence without a full stop.
    pub why: &'static str,
    /// What to do, for the documentation.
    pub instead: &'static str,
    /// Found in more services than this, it is told once for all of them.
    pub services_max: usize,
    /// The guard can't hold a service that has it: without a reason in `x-palisade.allow` it isn't started.
    pub breaks_guard: bool,
}

const fn risk(id: &'static str, title: &'static str, why: &'static str, instead: &'static str) -> Risk {
    Risk { id, title, why, instead, services_max: 10, breaks_guard: false }
}
/// What is missing, rather than written: many services tend to lack it together.
const fn lack(id: &'static str, title: &'static str, why: &'static str, instead: &'static str) -> Risk {
    Risk { services_max: 3, ..risk(id, title, why, instead) }
}
const fn breach(id: &'static str, title: &'static str, why: &'static str, instead: &'static str) -> Risk {
    Risk { breaks_guard: true, ..risk(id, title, why, instead) }
}

pub(crate) static WEAK_PASSWORD: Risk = risk(
    "weak-password",
    "a password that is guessed first, or none at all",
    "whoever reaches the port, from a broken peer or past a firewall's mistake, tries known passwords first",
    "make one with `openssl rand -base64 24`, keep it out of the file (`env_file`, `secrets`), and give no default: `${PASSWORD:?}`",
);
pub(crate) static SECRET_IN_CLEAR: Risk = risk(
    "secret-in-clear",
    "a secret in the Compose file itself",
    "the file is copied, committed and pasted into questions, and the secret goes with it",
    "move it to an `env_file` that isn't committed, to a variable, or to `secrets`",
);
pub(crate) static PRIVILEGED: Risk = breach(
    "privileged",
    "a privileged service",
    "it has every capability and device, so it can take the guard and the host's firewall away",
    "remove it, and add only the capability or device that is needed",
);
pub(crate) static ADDED_CAPABILITY: Risk = breach(
    "added-capability",
    "a capability that reaches beyond the service",
    "such a capability acts on the whole host, which the service's own network and files do not confine",
    "remove it; for most programs the default capabilities are enough",
);
pub(crate) static ENGINE_SOCKET: Risk = breach(
    "engine-socket",
    "access to the container engine",
    "whoever may talk to the engine can start a privileged container, and so is root on the host; `:ro` does not change that",
    "put a proxy that allows only reading between them, or run the tool outside of the stack",
);
pub(crate) static ROOT_MOUNT: Risk = breach(
    "root-mount",
    "a folder of the host's system",
    "what is read there holds secrets of the host and of other services, and what is written there can run as root",
    "mount only the file or folder that is needed, with `:ro`",
);
pub(crate) static HOST_DEVICE: Risk = breach(
    "host-device",
    "a disk, or the memory, of the host",
    "whoever can read or write a disk can read or change every file of the host",
    "mount a folder in place of the disk",
);
pub(crate) static HOST_NAMESPACE: Risk = risk(
    "host-namespace",
    "a namespace shared with the host",
    "it sees, and as root can end, processes that are not its own",
    "remove it, unless the service watches the host",
);
pub(crate) static UNCONFINED: Risk = risk(
    "unconfined",
    "a switched-off security profile",
    "seccomp, AppArmor and SELinux are what stands between a hole in the program and a hole in the kernel",
    "remove the option, or write a profile that allows the one call that is needed",
);
pub(crate) static DATABASE_PUBLISHED: Risk = risk(
    "database-published",
    "a data store on a public port, or behind the edge for everybody",
    "data stores on public addresses are found by scanners within hours, and their passwords are tried",
    "remove it from `ports` (peers don't need it), or publish it on 127.0.0.1 only; a route of the edge to it needs `allow`",
);
pub(crate) static MODEL_SERVER_PUBLISHED: Risk = risk(
    "model-server-published",
    "a model server on a public port, or behind the edge for everybody",
    "model servers ask for no password, so anybody can use, load and delete models",
    "remove it from `ports` (peers don't need it), or publish it on 127.0.0.1 only; a route of the edge to it needs `allow`",
);
pub(crate) static ADMIN_PUBLISHED: Risk = risk(
    "admin-published",
    "an administration tool on a public port, or behind the edge for everybody",
    "it holds the keys to what it administers, and stands behind one login at most",
    "publish it on 127.0.0.1 only and reach it through SSH: `ssh -L 8080:127.0.0.1:8080 host`; a route of the edge to it needs `allow`",
);
pub(crate) static HOST_MODE_PORTS: Risk = risk(
    "host-mode-ports",
    "`ports` beside `network_mode: host`",
    "Docker ignores these ports and Palisade maps them, so the same file opens different ports under each",
    "remove `network_mode: host` (under Palisade every service is on the host's network), or `ports`",
);
pub(crate) static FLAT_NETWORK: Risk = risk(
    "flat-network",
    "every service can reach every other",
    "one broken service reaches all the others, the database included",
    "let `palisade learn` write what is really used as `x-palisade.connect`, or split the services into `networks`",
);
pub(crate) static PUBLIC_DNS: Risk = lack(
    "public-dns",
    "names are looked up at a public resolver",
    "a company elsewhere is told every name, names of the local network aren't found, and lookups fail once egress is narrowed",
    "remove `dns`: the host's own resolver is used then",
);
pub(crate) static LATEST_TAG: Risk = lack(
    "latest-tag",
    "an image without a fixed version",
    "what runs depends on the day it was pulled: a restart can become an upgrade, and going back is not possible",
    "write the version (`postgres:17.2`), or better its digest",
);
pub(crate) static NO_HEALTHCHECK: Risk = lack(
    "no-healthcheck",
    "no health check",
    "nobody notices that it hangs, peers start before it answers, and an update can't be stopped in time",
    "add `healthcheck` with a `test` that asks the service something; images may bring one, which the file doesn't tell",
);
pub(crate) static NO_MEMORY_LIMIT: Risk = lack(
    "no-memory-limit",
    "no memory limit",
    "one leak takes the memory of the whole host, and the kernel chooses what to kill",
    "set `mem_limit` or `deploy.resources.limits.memory` well above what it uses",
);
pub(crate) static STATEFUL_WITHOUT_BACKUP: Risk = lack(
    "stateful-without-backup",
    "data without a backup",
    "a lost disk, a mistaken `down --volumes` or a bad upgrade takes the data with it",
    "back it up, try the way back, and accept this risk with how it is done as the reason. Palisade can't see backups that are made outside of the stack",
);
pub(crate) static UNROTATED_LOG: Risk = lack(
    "unrotated-log",
    "a log without an end",
    "a log that is never rotated fills the disk, and everything on it stops",
    "remove the option: Palisade keeps three logs of 10 MB unless told otherwise",
);

pub(crate) static PAST_THE_EDGE: Risk = risk(
    "past-the-edge",
    "a service behind the edge that is published as well",
    "whoever asks that port gets past the edge: without TLS, limits, lists of who may ask, and the access log",
    "remove it from `ports` (the edge needs none), or publish it on 127.0.0.1 only",
);
pub(crate) static TRUSTS_EVERYBODY: Risk = risk(
    "trusts-everybody",
    "`trusted_proxies` that holds every address",
    "any client can say that it is another one, and so gets past limits, bans and lists of who may ask",
    "list only the networks of the proxies in front of this host",
);
pub(crate) static BAN_BEHIND_PROXY: Risk = risk(
    "ban-behind-proxy",
    "a ban of clients that come by way of a proxy",
    "their packets have the proxy's address, which is never banned: they are limited as before, and nothing more",
    "ban where the clients' packets arrive, at the proxy; `palisade events` says who was limited here",
);
pub(crate) static PLAIN_HTTP: Risk = risk(
    "plain-http",
    "pages over plain HTTP",
    "passwords and cookies can be read and changed on their way",
    "remove `redirect: false`: who asks by HTTP is sent to HTTPS, but for the challenges of authorities",
);
pub(crate) static NO_RATE_LIMIT: Risk = lack(
    "no-rate-limit",
    "a route without a rate limit",
    "one client alone can keep the service busy, or try passwords as fast as it answers",
    "add `rate_limit: {per_client: 10/s, burst: 20}` to the route; `rate_limit: off` says that none is wanted",
);

/// All of them, the worst first.
pub static TABLE: &[&Risk] = &[
    &PRIVILEGED,
    &ENGINE_SOCKET,
    &ROOT_MOUNT,
    &ADDED_CAPABILITY,
    &HOST_DEVICE,
    &HOST_NAMESPACE,
    &UNCONFINED,
    &WEAK_PASSWORD,
    &SECRET_IN_CLEAR,
    &DATABASE_PUBLISHED,
    &MODEL_SERVER_PUBLISHED,
    &ADMIN_PUBLISHED,
    &FLAT_NETWORK,
    &HOST_MODE_PORTS,
    &TRUSTS_EVERYBODY,
    &PAST_THE_EDGE,
    &PLAIN_HTTP,
    &BAN_BEHIND_PROXY,
    &NO_RATE_LIMIT,
    &PUBLIC_DNS,
    &LATEST_TAG,
    &NO_HEALTHCHECK,
    &NO_MEMORY_LIMIT,
    &STATEFUL_WITHOUT_BACKUP,
    &UNROTATED_LOG,
];

/// The risk of that name.
pub(crate) fn by_id(id: &str) -> Option<&'static Risk> {
    TABLE.iter().copied().find(|risk| risk.id == id)
}
