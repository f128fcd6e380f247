//! What can be typed.
//!
//! Only the shape of the command line; what a verb does is in `commands`.

use clap::{Args, Parser, Subcommand, ValueEnum};
use palisade_core::compose::confirm_ms;
use palisade_core::edge::Upstream;
use palisade_core::edge::export::Version;
use palisade_core::finding::Severity;
use palisade_core::names::{ProjectName, ServiceName};
use palisade_host::layout::{HOST_REALM, Layout};
use std::net::IpAddr;
use std::path::PathBuf;

/// Run a Compose stack on the host network, guarded.
#[derive(Debug, Parser)]
#[command(name = "palisade", version, about, disable_help_subcommand = true, subcommand_required = true)]
pub(crate) struct Cli {
    /// Which stack.
    #[command(flatten)]
    pub(crate) stack: StackArgs,
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Options that say which stack is meant.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct StackArgs {
    /// Compose file; several are merged in their order, `-` is standard input [default: COMPOSE_FILE, or compose.yaml,
    /// docker-compose.yml … here or in a folder above, with its override file]
    #[arg(short, long = "file", value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Name of the stack [default: COMPOSE_PROJECT_NAME, `name:` of the file, or the name of its folder]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) project_name: Option<String>,
    /// Where relative paths start, and where `.env` is [default: the folder of the first Compose file]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) project_directory: Option<PathBuf>,
    /// File of variables for ${…} in the Compose files; of several, later ones win [default: COMPOSE_ENV_FILES, or .env]
    #[arg(long = "env-file", value_name = "FILE")]
    pub(crate) env_files: Vec<PathBuf>,
    /// Services with this profile belong to the stack too; `*`: all of them [default: COMPOSE_PROFILES]
    #[arg(long = "profile", value_name = "NAME")]
    pub(crate) profiles: Vec<String>,
    /// Keep state, cgroups and firewall apart from those of other realms; for tests in network namespaces
    #[arg(long, value_name = "NAME", hide = true, value_parser = realm)]
    pub(crate) realm: Option<String>,
}

/// A realm names folders, a cgroup and a firewall table.
fn realm(text: &str) -> Result<String, String> {
    let sound = text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.len() <= 40
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if sound { Ok(text.to_owned()) } else { Err("lower-case letters, digits and `-`, at most 40".to_owned()) }
}

impl StackArgs {
    /// What keeps folders, cgroups and the firewall's table apart.
    pub(crate) fn realm(&self) -> &str {
        self.realm.as_deref().unwrap_or(HOST_REALM)
    }
    /// Where the stack's things are.
    pub(crate) fn layout(&self, project: ProjectName) -> Layout {
        match &self.realm {
            Some(realm) => Layout { realm: realm.clone(), project },
            None => Layout::host(project),
        }
    }
}

/// For people or for programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one object with a "version".
    Json,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Read the file and report every mistake at once
    Check {
        /// Exit with 1 when there is a risk that `x-palisade.allow` doesn't accept
        #[arg(long)]
        strict: bool,
        /// Text for people, JSON for programs
        #[arg(long, default_value = "text")]
        format: Format,
    },
    /// Print all files as one: merged, variables filled in, short forms written out
    ///
    /// It is a view of the files in the shape of `docker compose config`: what Palisade refuses is printed, too, with
    /// an error about it on standard error. Files with mistakes of form are not. Values that look like secrets are
    /// `***`: variables, arguments and options whose names say so, passwords in URLs, and the content of configs.
    Config(ConfigArgs),
    /// Show what `up` would change, each step with its cause; exit code 1 if there is something
    Plan {
        /// Text for people, JSON for programs
        #[arg(long, default_value = "text")]
        format: Format,
    },
    /// Make the host as the file says
    Up(UpArgs),
    /// List the generations of the stack: what was brought up, when, by whom, and what changed
    ///
    /// Each `up` and `rollback` that changes something makes one; the last ten are kept, readable for root only, as they
    /// hold the environment.
    History {
        /// Text for people, JSON for programs
        #[arg(long, default_value = "text")]
        format: Format,
    },
    /// Bring an earlier generation back whole: services, environment, policy and images
    ///
    /// The plan is shown and has to be confirmed. It makes a generation of its own, so that it can be undone by another
    /// one. Data in volumes, and files that secrets and configs come from, are as they are now.
    Rollback {
        /// Which [default: the one before the last]
        generation: Option<u64>,
        /// Don't ask
        #[arg(long)]
        yes: bool,
    },
    /// Keep a change of the firewall that `up` made; run it over a new SSH connection
    ///
    /// A change that could lock you out is taken back after a time unless you confirm it from a login that came after the
    /// change: that you got in is the proof that you can.
    Confirm {
        /// You know that you can get in: don't ask for a new connection
        #[arg(long)]
        yes: bool,
    },
    /// Take the stack away; its volumes stay
    Down {
        /// Delete the volumes and their data as well, and the generations that `rollback` could go back to
        #[arg(long)]
        volumes: bool,
        /// Don't ask
        #[arg(long)]
        yes: bool,
    },
    /// Stop services in reverse order of their dependencies; they stay stopped until `start` or `up`
    Stop {
        /// Only these services [default: all]
        services: Vec<String>,
    },
    /// Start services that are stopped, in the order of their dependencies, as they were
    Start {
        /// Only these services [default: all]
        services: Vec<String>,
    },
    /// Stop services and start them again, as they were; what the file has new comes with `up`
    Restart {
        /// Only these services [default: all]
        services: Vec<String>,
    },
    /// Run a command inside a service, as confined as the service is
    Exec(ExecArgs),
    /// Show instances with state, addresses and published ports
    Ps {
        /// Text for people, JSON for programs
        #[arg(long, default_value = "text")]
        format: Format,
    },
    /// Show what services printed
    Logs {
        /// Only these services [default: all]
        services: Vec<String>,
        /// Go on as more is printed
        #[arg(short, long)]
        follow: bool,
        /// Only so many lines from the end of each
        #[arg(short = 'n', long, value_name = "LINES")]
        tail: Option<usize>,
    },
    /// Watch what services use of each other, and print the narrowest policy as a patch to the file
    Learn {
        /// How long [default: until Ctrl-C]
        #[arg(long = "for", value_name = "SECONDS")]
        seconds: Option<u64>,
    },
    /// Show what this host exposes, to whom, and what to do about it; with or without a stack
    ///
    /// Nothing is changed. What can be reached is found out with real packets in a copy of this host; the exit code is 1
    /// when something is found that is at least as bad as --fail-on.
    Audit(AuditArgs),
    /// Tell why a port can or can't be reached: from outside, or from one service to another
    ///
    /// Each thing that a packet or a connection meets is told in its order, with the line of the file. The answer comes
    /// from real packets: through the firewall of a copy of this host, and from inside the service that asks. The exit
    /// code is 1 when nothing that was asked about can be reached.
    Explain(ExplainArgs),
    /// Print the stack's host firewall, or what its edge serves, as files of another tool
    ///
    /// For those who keep theirs, with Palisade or without. What such files can't do stands in them as comments.
    /// Nothing is loaded.
    Export(ExportArgs),
    /// Read an nginx configuration and say what is wrong with it, or exposed by it
    ///
    /// Included files are read, too; nothing is run or changed. Where there is a Compose file, it says which ports are
    /// meant to be internal. The exit code is 1 when an error is found, and 2 when a file can't be read.
    CheckNginx(CheckNginxArgs),
    /// Print the port document: who may reach which port, what services may reach, and which line says so
    ///
    /// It is Markdown, made from the file alone and the same on every machine: to be committed and reviewed like code.
    Ports(PortsArgs),
    /// Prove with real packets that a stack that is up is reachable as its file says, and not otherwise
    Prove {
        /// Text for people, JSON for programs
        #[arg(long, default_value = "text")]
        format: Format,
    },
    /// Bring the stack up on a scratch host of network namespaces, prove it, and take it away
    Rehearse {
        /// The Compose file, instead of -f
        file: Option<PathBuf>,
        /// Text for people, JSON for programs
        #[arg(long, default_value = "text")]
        format: Format,
    },
    /// Show what the guard refused, and which line of the file would allow it
    Events {
        /// Go on as more happens
        #[arg(short, long)]
        follow: bool,
        /// Text for people, JSON lines for programs
        #[arg(long, default_value = "text")]
        format: Format,
    },
}

/// Options of `audit`.
#[derive(Clone, Debug, Args)]
pub(crate) struct AuditArgs {
    /// Text for people, JSON for programs, SARIF for code scanning, or a to-do list in Markdown
    #[arg(long, default_value = "text")]
    pub(crate) format: AuditFormat,
    /// Exit with 1 when something at least that bad is found
    #[arg(long, value_name = "HOW BAD", default_value = "error")]
    pub(crate) fail_on: FailOn,
    /// Ask for somebody of this network, too: 198.51.100.0/24, or one address; the host's routes say how they come in
    #[arg(long, value_name = "NETWORK")]
    pub(crate) from: Vec<String>,
    /// Ask whoever serves TLS at port 443, or the one given, for this name, too; those of the stack's edge are asked for anyway
    #[arg(long, value_name = "NAME[:PORT]")]
    pub(crate) tls_name: Vec<String>,
    /// Show ports that only this host can reach, too
    #[arg(long)]
    pub(crate) all: bool,
    /// Look at the host alone, also where there is a Compose file
    #[arg(long)]
    pub(crate) host_only: bool,
    /// File of findings that are accepted [default: palisade.accept.yaml beside the Compose file, or in /etc/palisade]
    #[arg(long, value_name = "FILE")]
    pub(crate) accepted: Option<PathBuf>,
    /// Mend what can be mended without harm (settings of the kernel, ports that are open for nobody, root's login by password):
    /// shown, asked, done, looked at again, and taken back if that doesn't show it mended
    #[arg(long, conflicts_with = "accept")]
    pub(crate) fix: bool,
    /// Don't ask before mending
    #[arg(long, requires = "fix")]
    pub(crate) yes: bool,
    /// Write down that this finding is accepted, with --reason; without a subject, whatever it is about
    #[arg(long, value_name = "ID[=SUBJECT]", requires = "reason")]
    pub(crate) accept: Option<String>,
    /// Why it is accepted
    #[arg(long, value_name = "TEXT", requires = "accept")]
    pub(crate) reason: Option<String>,
    /// The last day on which it is
    #[arg(long, value_name = "YYYY-MM-DD", requires = "accept")]
    pub(crate) until: Option<String>,
}

/// How an audit is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AuditFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// For code scanning, version 2.1.0.
    Sarif,
    /// A to-do list.
    Markdown,
}

/// How bad a finding must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FailOn {
    /// Errors.
    Error,
    /// Warnings and errors.
    Warning,
    /// Anything.
    Note,
}

impl FailOn {
    /// The least of what is meant.
    pub(crate) fn severity(self) -> Severity {
        match self {
            FailOn::Error => Severity::Error,
            FailOn::Warning => Severity::Warning,
            FailOn::Note => Severity::Note,
        }
    }
}

/// Options of `explain`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ExplainArgs {
    /// A port of this host (`5432`, `53/udp`), or a service and perhaps one of its ports (`db:5432`)
    #[arg(value_name = "PORT|SERVICE[:PORT]")]
    pub(crate) what: String,
    /// Who asks: `internet`, a service, an address or a network [default: the internet; for a service, its peers, too]
    #[arg(long, value_name = "internet|SERVICE|NETWORK")]
    pub(crate) from: Option<String>,
    /// Text for people, JSON for programs
    #[arg(long, default_value = "text")]
    pub(crate) format: Format,
}

/// Options of `export`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ExportArgs {
    /// For which tool
    pub(crate) tool: ExportTool,
    /// Only the file for IPv4; for iptables
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    pub(crate) ipv4: bool,
    /// Only the file for IPv6; for iptables
    #[arg(short = '6', long)]
    pub(crate) ipv6: bool,
    /// Where sshd listens on the host that the files are for [default: where it does here, or 22]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) ssh: Vec<u16>,
    /// Write the files into this folder
    #[arg(short, long, value_name = "FOLDER")]
    pub(crate) output: Option<PathBuf>,
    /// What is about nginx and HAProxy.
    #[command(flatten, next_help_heading = "For nginx and haproxy")]
    pub(crate) edge: ExportEdgeArgs,
}

/// Options of `export` that are about nginx and HAProxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub(crate) struct ExportEdgeArgs {
    /// Listen on this address only; may be given several times [default: all, IPv4 and IPv6]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Vec<IpAddr>,
    /// Where upstreams are: what the stack publishes, or names, for a server that is a service of the stack
    /// [default: published]
    #[arg(long, value_name = "HOW")]
    pub(crate) upstreams: Option<Upstreams>,
    /// Where one upstream is; several addresses with several options
    #[arg(long, value_name = "SERVICE:PORT=ADDRESS:PORT", value_parser = upstream_at)]
    pub(crate) upstream: Vec<(Upstream, String)>,
    /// Folder of certificates that the stack's file doesn't name: DOMAIN/fullchain.pem and privkey.pem for nginx,
    /// DOMAIN.pem for haproxy [default: /etc/letsencrypt/live, /etc/haproxy/certs]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) certificates: Option<PathBuf>,
    /// Folder that certbot writes .well-known/acme-challenge into; for nginx [default: /var/www/acme]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) acme_root: Option<PathBuf>,
    /// Only what belongs into nginx's `http` block, as a file for /etc/nginx/conf.d
    #[arg(long)]
    pub(crate) conf_d: bool,
    /// Write for this version of nginx [default: what 1.22 and all later ones take]
    #[arg(long, value_name = "VERSION")]
    pub(crate) nginx_version: Option<Version>,
}

/// Where upstreams are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Upstreams {
    /// What the stack publishes, on loopback at best.
    Published,
    /// The services' names.
    Names,
}

/// `app:8081=127.0.0.1:9000`.
fn upstream_at(text: &str) -> Result<(Upstream, String), String> {
    let wrong = || "SERVICE:PORT=ADDRESS:PORT, such as app:8081=127.0.0.1:9000".to_owned();
    let (upstream, address) = text.split_once('=').ok_or_else(wrong)?;
    let (service, port) = upstream.rsplit_once(':').ok_or_else(wrong)?;
    let service = ServiceName::parse(service).map_err(|error| error.to_string())?;
    let port = port.parse().map_err(|_| wrong())?;
    let (host, at) = address.rsplit_once(':').ok_or_else(wrong)?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let is_host = !host.is_empty() && host.chars().all(is_name);
    let is_v6 = address.parse::<std::net::SocketAddrV6>().is_ok();
    if at.parse::<u16>().is_err() || !(is_host || is_v6) {
        return Err(wrong());
    }
    Ok((Upstream { service, port }, address.to_owned()))
}

/// Tools that something can be written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportTool {
    /// The firewall as one file for `nft -f`.
    Nftables,
    /// The firewall as one file for iptables-restore, one for ip6tables-restore.
    Iptables,
    /// The firewall as a zone.
    Firewalld,
    /// What the edge serves, for nginx 1.22 and later.
    Nginx,
    /// What the edge serves, for HAProxy 2.6 and later.
    Haproxy,
}

/// Options of `check-nginx`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CheckNginxArgs {
    /// The configuration: a whole nginx.conf, a file of conf.d or sites-enabled, or - for the output of `nginx -T`
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Folder that relative paths start from [default: that of the file, or one above that has an nginx.conf]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) prefix: Option<PathBuf>,
    /// Text for people, JSON for programs
    #[arg(long, default_value = "text")]
    pub(crate) format: Format,
}

/// Options of `ports`.
#[derive(Clone, Debug, Args)]
pub(crate) struct PortsArgs {
    /// Write it to PORTS.md beside the Compose file
    #[arg(long, conflicts_with = "check")]
    pub(crate) write: bool,
    /// Show what differs in PORTS.md and, as root, on this host if the stack is up; exit code 1 if something does
    #[arg(long)]
    pub(crate) check: bool,
    /// Another file than PORTS.md; it is written, or compared with --check
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Text for people, JSON for programs
    #[arg(long, default_value = "text")]
    pub(crate) format: Format,
}

/// Options of `exec`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ExecArgs {
    /// No terminal inside, also when standard input is one
    #[arg(short = 'T', long)]
    pub(crate) no_tty: bool,
    /// As this user, by name or number [default: the service's]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// In this folder [default: the service's]
    #[arg(short, long, value_name = "FOLDER")]
    pub(crate) workdir: Option<PathBuf>,
    /// With this variable besides the service's; without a value, the one that it has here
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// The service, or one instance of it: `app.2` [default instance: the first that runs]
    #[arg(value_name = "SERVICE[.N]")]
    pub(crate) service: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

/// Options of `config`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ConfigArgs {
    /// YAML as in the file, JSON for programs
    #[arg(long, default_value = "yaml")]
    pub(crate) format: ModelFormat,
    /// Only the names of services, one a line
    #[arg(long, group = "list")]
    pub(crate) services: bool,
    /// Only the names of volumes
    #[arg(long, group = "list")]
    pub(crate) volumes: bool,
    /// Only the names of profiles, also of those that are not asked for
    #[arg(long, group = "list")]
    pub(crate) profiles: bool,
    /// Only the names of images
    #[arg(long, group = "list")]
    pub(crate) images: bool,
    /// Print nothing but mistakes
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Write to this file, which only its owner may read
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Show secrets
    #[arg(long)]
    pub(crate) show_secrets: bool,
}

/// Of the canonical model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModelFormat {
    /// As in the file.
    Yaml,
    /// For programs.
    Json,
}

/// Options of `up`.
#[derive(Clone, Debug, Args)]
pub(crate) struct UpArgs {
    /// Only these services and what they depend on; the others stay as they are [default: all]
    pub(crate) services: Vec<String>,
    /// Not what the services depend on
    #[arg(long, requires = "services")]
    pub(crate) no_deps: bool,
    /// Make everything and start nothing
    #[arg(long, conflicts_with_all = ["wait", "force_recreate"])]
    pub(crate) no_start: bool,
    /// Replace instances also when nothing changed
    #[arg(long)]
    pub(crate) force_recreate: bool,
    /// When images are pulled, instead of what the file says
    #[arg(long, value_name = "WHEN")]
    pub(crate) pull: Option<Pull>,
    /// Build whatever can be built, also when it is there
    #[arg(long)]
    pub(crate) build: bool,
    /// Have the change of the firewall confirmed within this time, also when it locks nobody out: 60s, 5m …
    #[arg(long, value_name = "TIME", value_parser = confirm_within_ms)]
    pub(crate) confirm_within: Option<u64>,
    /// Don't wait for a confirmation of the firewall, and don't take it back: there is another way in
    #[arg(long, conflicts_with = "confirm_within")]
    pub(crate) no_confirm: bool,
    /// Wait until everything that has a health check is healthy
    #[arg(long)]
    pub(crate) wait: bool,
    /// Let services do what they like inside the stack, and report it: what `learn` reads
    #[arg(long, hide = true)]
    pub(crate) learn: bool,
}

fn confirm_within_ms(text: &str) -> Result<u64, String> {
    confirm_ms(text).ok_or_else(|| "a time from 1s to 1h".to_owned())
}

/// When images are pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pull {
    /// Each time.
    Always,
    /// If they aren't there.
    Missing,
    /// They have to be there.
    Never,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_of_the_stack_stand_before_the_verb_as_in_compose() {
        let cli = Cli::try_parse_from(["palisade", "-f", "a.yaml", "-f", "b.yaml", "up", "--wait"]).unwrap();
        assert!(matches!(cli.verb, Verb::Up(UpArgs { wait: true, .. })));
        assert_eq!(cli.stack.files, ["a.yaml", "b.yaml"].map(PathBuf::from));
        assert!(Cli::try_parse_from(["palisade", "up", "-f", "a.yaml"]).is_err());
    }

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        for wrong in [&["--no-start", "--wait"][..], &["--no-start", "--force-recreate"], &["--no-deps"]] {
            let error = Cli::try_parse_from([&["palisade", "up"], wrong].concat()).unwrap_err();
            assert!(error.use_stderr(), "{wrong:?}");
        }
        assert!(Cli::try_parse_from(["palisade", "up", "--no-deps", "app", "--pull", "never", "--build"]).is_ok());
    }
}
