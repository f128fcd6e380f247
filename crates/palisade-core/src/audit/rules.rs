//! The one table of what an audit may find: stable ids, how bad it is at worst, and why it matters.
//!
//! What exactly was seen, and what to do about it here, belongs to the finding; docs/audit.md is made from this table.

use std::fmt;

use super::facts::About;
use crate::finding::{Finding, Severity};

/// One thing that an audit may find.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// Stable, for scripts and for acceptances.
    pub id: &'static str,
    /// How bad it is at worst.
    pub severity: Severity,
    /// What it is, in a few words.
    pub title: &'static str,
    /// What is true when it isn't found.
    pub good: &'static str,
    /// What must be there for it to be looked for.
    pub needs: Needs,
    /// What it is told from: unless all of that could be read, nobody can say that it isn't so.
    pub read_from: &'static [About],
    /// Why it matters.
    pub why: &'static str,
}

/// What a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Every host.
    Host,
    /// A stack that says what is meant.
    Stack,
    /// A container engine that answers.
    Engine,
    /// PostgreSQL.
    Postgres,
    /// sshd.
    Ssh,
    /// A firewall that is installed.
    Firewall,
    /// A server that speaks TLS.
    Tls,
}

impl Rule {
    /// A finding of this rule, as bad as it gets.
    pub(super) fn hit(&'static self, subject: impl fmt::Display, message: impl Into<String>) -> Finding {
        Finding { severity: self.severity, why: Some(self.why), ..Finding::error(self.id, subject, message) }
    }
}

/// Id of doors that lead to nobody, some of which can be closed without harm.
pub const DOOR_WITHOUT_LISTENER_ID: &str = "door-without-listener";
/// Id of root's login by password.
pub const SSH_ROOT_PASSWORD_ID: &str = "ssh-root-password";

/// The rule of that id.
pub fn rule(id: &str) -> Option<&'static Rule> {
    RULES.iter().copied().find(|rule| rule.id == id)
}

/// The documentation's page: every rule, the worst first.
pub fn document() -> String {
    let mut page = String::from(
        "# What `palisade audit` may find\n\n\
         Made from the table in `crates/palisade-core/src/audit/rules.rs` by its test (`UPDATE_DOCS=1`).\n\
         Each has a stable id, by which it can be accepted with a reason: `palisade audit --accept ID=SUBJECT --reason …`.\n\
         \"At worst\" is for what anybody can reach; what only a network of the host's own reaches is a warning.\n",
    );
    for (severity, heading) in [(Severity::Error, "Errors"), (Severity::Warning, "Warnings"), (Severity::Note, "Notes")]
    {
        page += &format!("\n## {heading}\n\n| id | what | why it matters |\n| --- | --- | --- |\n");
        for rule in RULES.iter().filter(|rule| rule.severity == severity) {
            page += &format!("| `{}` | {} | {} |\n", rule.id, rule.title, rule.why);
        }
    }
    page
}

macro_rules! rules {
    ($($name:ident $severity:ident $id:literal $title:literal
       $needs:ident $($about:ident)+, $good:literal $why:literal)*) => {
        $(pub(crate) static $name: Rule =
            Rule {
            id: $id, severity: Severity::$severity, title: $title, good: $good, needs: Needs::$needs, why: $why,
            read_from: &[$(About::$about),+],
        };)*
        /// All of them, in the order of the documentation.
        pub static RULES: &[&Rule] = &[$(&$name),*];
    };
}

rules! {
    FIREWALL_OPEN Error "firewall-open" "the firewall lets everything through"
        Host Reach, "the firewall lets nothing through that nobody asked for"
        "Whatever listens on this host, now or after the next installation, can be reached by anybody; often only one of IPv4 and IPv6 was thought of."
    INTERNAL_EXPOSED Error "internal-exposed" "an internal service can be reached"
        Host Reach Sockets, "no internal service can be reached"
        "Databases, caches, model servers, metrics and admin pages are made for trusted peers. Scanners find an open one within minutes, and many ask for no password."
    ENGINE_API_EXPOSED Error "engine-api-exposed" "the container engine's API listens on TCP without asking for a certificate"
        Engine Reach Sockets, "the container engine's API can't be reached over the network"
        "Whoever reaches it is root of this host: a container may mount its file system."
    ENGINE_API_LOCAL Warning "engine-api-local" "the container engine's API listens on TCP for everybody on this host"
        Engine Sockets Engine, "the container engine's API is for those who may open its socket"
        "Every process and every container with the host's network becomes root by it; the unix socket has an owner and a group."
    DNS_EXPOSED Error "dns-exposed" "a name server answers strangers"
        Host Reach Sockets, "no name server answers strangers"
        "An open resolver is used to flood others, and knows internal names."
    PORT_UNDECLARED Error "port-undeclared" "a port can be reached that the stack doesn't declare"
        Stack Reach Sockets, "only declared ports can be reached"
        "What is public should be written down: what nobody declared, nobody watches."
    PORT_UNKNOWN Warning "port-unknown" "a port can be reached and it isn't clear what for"
        Host Reach Sockets, "every port that can be reached is known"
        "What nobody can explain is forgotten software, or somebody else's."
    PORT_FORWARDED Warning "port-forwarded" "a port is passed on to another address"
        Host Reach, "no port is passed on to an unknown address"
        "Rules that pass packets on work before the rules for this host, so closing the port there changes nothing."
    DOOR_WITHOUT_LISTENER Warning "door-without-listener" "the firewall lets packets through to a port where nobody listens"
        Host Reach Sockets, "no port is open for nobody"
        "The next program that listens there is public at once; stale rules outlive the service they were made for."
    IPV6_WIDER Warning "ipv6-wider" "IPv6 is more open than IPv4"
        Host Reach, "IPv6 is no more open than IPv4"
        "Rules were made for IPv4 only; an IPv6 address is as public as an IPv4 address."
    ONLY_FIREWALL Warning "only-firewall" "an internal service listens on every address, and only the firewall keeps strangers away"
        Host Sockets, "internal services listen on loopback or private addresses"
        "One flushed table, one stopped daemon, and it is public. A service bound to loopback stays private."
    RAW_SOCKET Note "raw-socket" "a process can hear or send whole packets"
        Host Sockets, "no process hears or sends whole packets"
        "It sees what other services receive, and can answer in their name. DHCP clients and the like need that; containers rarely do."
    ABSTRACT_SOCKET Note "abstract-socket" "a unix socket without a file can be reached by everything on the host's network"
        Host Sockets, "no powerful daemon listens on an abstract unix socket"
        "Containers with the host's network reach it whatever files they see (CVE-2020-15257)."
    FIREWALL_NOT_RUNNING Error "firewall-not-running" "a firewall is installed and doesn't run"
        Firewall Firewalls, "the installed firewall runs"
        "Somebody meant this host to be protected."
    FIREWALL_NOT_AT_BOOT Warning "firewall-not-at-boot" "the firewall runs and won't after a reboot"
        Firewall Firewalls, "the firewall comes back at boot"
        "The host opens at the worst moment, when nobody looks."
    FIREWALL_FILES_DIFFER Warning "firewall-files-differ" "the firewall's files differ from what is in force"
        Firewall Firewalls, "the firewall's files say what is in force"
        "The next reload or reboot silently opens or closes what nobody expects."
    ENGINE_WITHOUT_RULES Warning "engine-without-rules" "the engine was told to leave the firewall alone"
        Engine Engine, "the engine may make the rules that bridges need"
        "Containers on bridges reach nothing and published ports are passed on by a proxy, which hides the client's address. Palisade doesn't need it: it runs stacks on the host's network."
    ENGINE_PINNED_DNS Note "engine-pinned-dns" "the engine's containers are told fixed name servers"
        Engine Engine, "containers use the host's name servers"
        "Names of the own network stop resolving, and every query goes to whoever was written there."
    PUBLISHED_PAST_UFW Error "published-past-ufw" "a published port of a container can be reached although ufw doesn't allow it"
        Engine Reach Firewalls Engine, "no published port passes ufw by"
        "The engine's rules come before ufw's: `ufw deny` and `ufw status` say nothing about published ports."
    CONTAINER_PRIVILEGED Error "container-privileged" "a container has all of root's power"
        Engine Engine, "no container is privileged"
        "Whoever takes over the container has taken over the host."
    CONTAINER_ENGINE_SOCKET Error "container-engine-socket" "a container sees the engine's socket"
        Engine Engine, "no container sees the engine's socket"
        "Who may talk to the engine may start a container that mounts the host's disk."
    CONTAINER_HOST_FILES Error "container-host-files" "a container sees files of the host that decide about it"
        Engine Engine, "no container sees files that decide about the host"
        "Writing to /etc, /root or / of the host is becoming root of it; reading them is half the way."
    CONTAINER_CAPABILITY Warning "container-capability" "a container was given capabilities that reach the host"
        Engine Engine, "no container has capabilities that reach the host"
        "NET_ADMIN changes the host's firewall on the host's network, NET_RAW sniffs it, SYS_ADMIN and SYS_PTRACE break out."
    CONTAINER_HOST_NAMESPACE Warning "container-host-namespace" "a container shares namespaces with the host and nothing guards it"
        Engine Engine, "no unguarded container shares the host's namespaces"
        "On the host's network it reaches every service on loopback and every peer; with the host's processes it can signal and inspect them."
    CONTAINER_ROOT Note "container-root" "a container's main process is root"
        Engine Engine, "containers run as users of their own"
        "A fault in the program is a fault as root; images with a user of their own lose nothing."
    CONTAINER_LOGS Warning "container-logs" "a container's log grows without a limit"
        Engine Engine, "containers' logs are rotated"
        "A full disk stops the database and everything beside it; one chatty container is enough."
    ROUTE_LOCALNET Error "kernel-route-localnet" "packets from outside may be for 127.0.0.0/8"
        Host Kernel, "packets from outside can't be for loopback"
        "Everything that is bound to loopback, and thus every private port, is one route away from the neighbours (CVE-2020-8558)."
    RP_FILTER Warning "kernel-rp-filter" "packets are taken whose sender can't be where they come from"
        Host Kernel, "senders' addresses are checked"
        "A neighbour may pretend to be somebody whom the firewall trusts."
    FORWARDING Warning "kernel-forwarding" "this host passes packets on for others, and nothing here needs that"
        Host Kernel, "packets are passed on only where that is needed"
        "A server that routes is a way around other people's firewalls, and into its own private networks."
    REDIRECTS Note "kernel-redirects" "routers may tell this host other ways"
        Host Kernel, "ICMP redirects are not followed"
        "A neighbour may lead its traffic through their machine."
    UNPRIVILEGED_BPF Warning "kernel-unprivileged-bpf" "any user may load eBPF programs"
        Host Kernel, "only root loads eBPF programs"
        "The verifier has had faults that gave root; distributions switch it off."
    LOOPBACK_ADDRESS Warning "loopback-address" "an address on the loopback interface is routed from outside"
        Host Kernel, "nothing on loopback is routed from outside"
        "What is bound there looks private and isn't: the kernel takes packets for it on every interface."
    POSTGRES_TRUST Error "postgres-trust" "PostgreSQL lets others in without a password"
        Postgres Postgres, "PostgreSQL asks everybody for a password"
        "Whoever can send it a packet can read and delete every database."
    POSTGRES_CLEAR Warning "postgres-clear" "PostgreSQL takes passwords in the clear, or weakly hashed"
        Postgres Postgres, "PostgreSQL's passwords travel hashed with SCRAM"
        "Who hears one connection knows the password; md5 can be replayed."
    POSTGRES_NO_TLS Warning "postgres-no-tls" "PostgreSQL speaks to other machines without TLS"
        Postgres Postgres, "PostgreSQL speaks TLS to other machines"
        "Queries and answers can be read and changed on the way."
    POSTGRES_WEAK_PASSWORD Error "postgres-weak-password" "PostgreSQL was set up with a password that everybody knows"
        Postgres Postgres, "PostgreSQL's password isn't a known one"
        "Default passwords are tried first."
    SSH_ROOT_PASSWORD Error "ssh-root-password" "root may log in by SSH with a password"
        Ssh Ssh, "root can't log in with a password"
        "The name is known, and the password is tried around the clock."
    SSH_PASSWORD Note "ssh-password" "users may log in by SSH with a password"
        Ssh Ssh, "SSH takes keys only"
        "Keys can't be guessed."
    TLS_EXPIRED Error "tls-expired" "a certificate that is served has expired, or isn't valid yet"
        Tls Tls, "every served certificate is valid today"
        "Clients refuse to connect; whoever clicks through the warning learns to."
    TLS_EXPIRES_SOON Warning "tls-expires-soon" "a certificate that is served expires within 21 days, or is in the last third of its time"
        Tls Tls, "every served certificate is valid for three weeks more"
        "It should have been renewed by now: what renews it is broken, or nobody does. A new file that no server has loaded is no renewal."
    TLS_WRONG_NAME Error "tls-wrong-name" "a certificate that is served isn't for the name that was asked for"
        Tls Tls, "served certificates are for the names that are asked for"
        "Clients refuse to connect."
    TLS_WEAK Warning "tls-weak" "a certificate that is served has a weak key or signature"
        Tls Tls, "served certificates have strong keys and signatures"
        "RSA below 2048 bits can be factored, and signatures by SHA-1 or MD5 can be forged; clients of today refuse both."
    TLS_CHAIN Warning "tls-chain-incomplete" "a server leaves out a certificate between its own and one that clients know"
        Tls Tls, "servers send the whole chain"
        "Browsers often find it elsewhere, programs don't: what works for people fails for curl, phones and other services."
    TLS_OLD Warning "tls-old-version" "a server agrees to TLS before 1.2"
        Tls Tls, "servers speak TLS 1.2 or later only"
        "TLS 1.0 and 1.1 rest on MD5 and SHA-1 and are deprecated (RFC 8996)."
    TLS_SELF_SIGNED Note "tls-self-signed" "strangers are served a certificate that no authority they know has signed"
        Tls Tls, "strangers are served certificates of authorities that they know"
        "Clients can't tell the server from somebody in between, unless they were told of this very certificate."
    REBOOT_PENDING Warning "reboot-pending" "a reboot is due"
        Host Reboot, "no reboot is due"
        "Mended faults of the kernel or of libraries are still in use."
    ACCEPTANCE_EXPIRED Warning "acceptance-expired" "what was accepted for a time is due"
        Host Accepted, "every acceptance is within its time"
        "Somebody promised to look at it again."
    ACCEPTANCE_UNUSED Note "acceptance-unused" "something is accepted that isn't there"
        Host Accepted, "every acceptance is needed"
        "It would hide the same thing when it comes back, for other reasons."
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_page_says_what_the_table_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/audit.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, document()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(written == document(), "docs/audit.md is out of date: run this test with UPDATE_DOCS=1");
    }

    #[test]
    fn ids_are_unique_and_short_sentences_say_why() {
        let mut ids = HashSet::new();
        for rule in RULES {
            assert!(ids.insert(rule.id), "{} twice", rule.id);
            assert!(rule.id.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{}", rule.id);
            assert!(rule.why.ends_with('.') || rule.why.ends_with(')'), "{}", rule.id);
            assert_eq!(super::rule(rule.id), Some(*rule));
        }
    }
}
