//! What surrounds a service that is attacked from: services of the host, servers on the internet, somebody out there
//! who keeps knocking. Lives in two network namespaces that somebody else made and connected.
//!
//! `palisade __stage` reads [`StageSpec`] from standard input's first line, writes [`Targets`] as one line, waits for
//! the end of standard input and writes the datagrams that got somewhere as a JSON list.

use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};
use palisade_core::address::InstanceAddress;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, BufRead, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::sys::{RawAddress, Socket};
use super::targets::{HostFile, HostService, Outside, Peer, Targets, VICTIM_MARK};

/// Where the stage is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StageSpec {
    /// The namespace that services run in: `/run/netns/…` or `/proc/<pid>/ns/net`.
    pub(crate) host_netns: PathBuf,
    /// Its interface that leads outside.
    pub(crate) host_interface: String,
    /// The namespace of everybody else.
    pub(crate) internet_netns: PathBuf,
    /// Its interface, with an IPv4 and an IPv6 address of the same networks.
    pub(crate) internet_interface: String,
    /// Further addresses of the internet, added to its interface: what a service with restricted egress may use.
    pub(crate) allowed: Vec<IpAddr>,
    /// Private addresses that are needed on the host's loopback interface and may be missing there.
    pub(crate) private: Vec<Ipv6Addr>,
    /// The instance that is attacked from.
    pub(crate) own_address: InstanceAddress,
    /// See [`Targets`].
    pub(crate) egress_restricted: bool,
    /// A service that it wasn't given.
    pub(crate) sibling: Option<Peer>,
    /// One that it was given.
    pub(crate) granted: Option<Peer>,
    /// See [`Targets`].
    pub(crate) granted_other_tcp_port: Option<u16>,
    /// See [`Targets`].
    pub(crate) called_port: Option<u16>,
    /// See [`Targets`].
    pub(crate) pins: Option<PathBuf>,
    /// Files and folders that exist and that only the host may read, beside the usual ones.
    pub(crate) files: Vec<PathBuf>,
}

/// The first of the knocked ports; in the ephemeral range of every distribution.
const KNOCKED_FIRST: u16 = 39_400;
const KNOCKED_COUNT: u16 = 21;
const HOST_TCP_PORT: u16 = 39_450;
const HOST_UDP_PORT: u16 = 39_451;
const OUTSIDE_TCP_PORT: u16 = 39_460;
const OUTSIDE_UDP_PORT: u16 = 39_461;
const METADATA4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const METADATA6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// The process's number follows.
const FOLDER: &str = "/run/palisade-stage-";
const TICK: Duration = Duration::from_millis(100);

/// What hosts have and services must not get.
const SECRET_PLACES: [&str; 9] = [
    "/etc/shadow",
    "/etc/sudoers",
    "/etc/ssh/ssh_host_ed25519_key",
    "/root",
    "/home",
    "/run/palisade",
    "/var/lib/palisade",
    "/var/lib/docker",
    "/var/lib/postgresql",
];
const DECISIVE_FILES: [&str; 5] = ["/etc/passwd", "/etc/shadow", "/etc/group", "/usr/bin/true", "/usr/lib/os-release"];
const CONTROL_SOCKETS: [&str; 6] = [
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/systemd/private",
    "/run/dbus/system_bus_socket",
    "/run/user/0/bus",
];

/// Stops what it started when it is dropped.
pub(crate) struct Stage {
    targets: Targets,
    delivered: Delivered,
    stop: Arc<AtomicBool>,
    victim: Child,
    _control_socket: UnixListener,
    folder: PathBuf,
}

/// Who got what: datagrams that arrived at a service of the host or of the internet.
type Delivered = Arc<Mutex<Vec<String>>>;

/// The verb.
pub(crate) fn main() -> io::Result<()> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let spec: StageSpec = serde_json::from_str(&line).map_err(io::Error::other)?;
    let stage = Stage::start(&spec)?;
    println!("{}", serde_json::to_string(stage.targets()).map_err(io::Error::other)?);
    io::copy(&mut io::stdin().lock().take(u64::MAX), &mut io::sink())?;
    println!("{}", serde_json::to_string(&stage.delivered()).map_err(io::Error::other)?);
    Ok(())
}

impl Stage {
    /// Puts everything in its place. The host's addresses must be there already.
    pub(crate) fn start(spec: &StageSpec) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let delivered = Delivered::default();
        let host = within(&spec.host_netns, || prepare_host(spec))??;
        let internet = within(&spec.internet_netns, || prepare_internet(spec))??;
        within(&spec.host_netns, || serve_host(&host, &stop, &delivered))??;
        within(&spec.internet_netns, || serve_internet(&internet, &stop, &delivered))??;
        let knocked: Vec<u16> = (KNOCKED_FIRST..KNOCKED_FIRST + KNOCKED_COUNT).collect();
        within(&spec.internet_netns, || knock(&host.addresses, &knocked, &stop))??;

        // What a host has that this one may lack: a file and a socket that are nobody else's business.
        clear_stale();
        let folder = PathBuf::from(format!("{FOLDER}{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let secret = folder.join("secret");
        fs::write(&secret, "for the host only\n")?;
        let control = folder.join("control.sock");
        let control_socket = UnixListener::bind(&control)?;
        let exists = |paths: &[&str]| paths.iter().map(PathBuf::from).filter(|path| path.exists()).collect::<Vec<_>>();
        let mut files = exists(&SECRET_PLACES);
        files.retain(|path| !path.is_dir() || fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()));
        files.extend(spec.files.iter().cloned());
        files.push(secret);
        let host_files = |paths: Vec<PathBuf>| paths.iter().map(|path| HostFile::at(path)).collect::<io::Result<_>>();
        let mut unix_sockets = exists(&CONTROL_SOCKETS);
        unix_sockets.push(control);

        let victim = victim()?;
        let targets = Targets {
            layers: vec![],
            own_address: spec.own_address,
            sibling: spec.sibling.clone(),
            granted: spec.granted.clone(),
            granted_other_tcp_port: spec.granted_other_tcp_port,
            called_port: spec.called_port,
            host: Some(host),
            outside: Some(internet),
            egress_restricted: spec.egress_restricted,
            knocked_ports: knocked,
            victim_pid: Some(victim.id() as i32),
            pins: spec.pins.clone(),
            files: host_files(files)?,
            host_files: host_files(exists(&DECISIVE_FILES))?,
            unix_sockets,
            scratch_network: true,
        };
        Ok(Self { targets, delivered, stop, victim, _control_socket: control_socket, folder })
    }
    /// What to attack.
    pub(crate) fn targets(&self) -> &Targets {
        &self.targets
    }
    /// Datagrams that reached a service of the host or the internet, as `receiver <- sender: text`.
    pub(crate) fn delivered(&self) -> Vec<String> {
        self.delivered.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.victim.kill();
        let _ = self.victim.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Folders of stages whose process was killed.
fn clear_stale() {
    let (parent, prefix) = FOLDER.rsplit_once('/').unwrap_or(("/", FOLDER));
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(prefix)).and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A process of the host with a secret in its environment.
fn victim() -> io::Result<Child> {
    let (name, value) = VICTIM_MARK.split_once('=').unwrap_or((VICTIM_MARK, ""));
    let mut command = Command::new("sleep");
    command.arg("3600").env(name, value).stdin(Stdio::null()).stdout(Stdio::null());
    // SAFETY: one system call that only concerns the child; it must not outlive us even if we are killed.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    command.spawn()
}

/// Runs `work` on a thread in the namespace; threads that it starts stay there.
fn within<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let file = File::open(netns)?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(&file, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("setting up the stage panicked")))
    })
}

fn ip(arguments: &[&str]) -> io::Result<()> {
    let output = Command::new("ip").args(arguments).output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    if output.status.success() || complaint.contains("File exists") {
        return Ok(());
    }
    Err(io::Error::other(format!("`ip {}` said: {}", arguments.join(" "), complaint.trim())))
}

/// Of the thread's namespace; where a setting doesn't exist, what depends on it doesn't either.
fn setting(path: &str, value: &str) {
    let _ = fs::write(Path::new("/proc/sys/net").join(path), value);
}

fn prepare_host(spec: &StageSpec) -> io::Result<HostService> {
    for address in &spec.private {
        ip(&["-6", "address", "replace", &format!("{address}/128"), "dev", "lo"])?;
    }
    ip(&["route", "replace", &format!("{METADATA4}/32"), "dev", &spec.host_interface])?;
    ip(&["-6", "route", "replace", &format!("{METADATA6}/128"), "dev", &spec.host_interface])?;
    // As systemd sets it: everybody may make ping sockets.
    setting("ipv4/ping_group_range", "0 2147483647");
    let mut host = HostService {
        tcp_port: HOST_TCP_PORT,
        udp_port: HOST_UDP_PORT,
        addresses: vec![],
        link_local: None,
        broadcast: None,
        interface: spec.host_interface.clone(),
        abstract_unix: format!("palisade-stage-{}", std::process::id()),
    };
    for found in getifaddrs()?.filter(|found| found.interface_name == spec.host_interface) {
        let Some(address) = found.address else { continue };
        if let Some(v4) = address.as_sockaddr_in() {
            host.addresses.push(v4.ip().into());
            host.broadcast = found.broadcast.and_then(|b| b.as_sockaddr_in().map(|v4| v4.ip()));
        } else if let Some(v6) = address.as_sockaddr_in6() {
            if v6.ip().is_unicast_link_local() {
                host.link_local = Some(SocketAddrV6::new(v6.ip(), 0, 0, v6.scope_id()));
            } else {
                host.addresses.push(v6.ip().into());
            }
        }
    }
    Ok(host)
}

fn prepare_internet(spec: &StageSpec) -> io::Result<Outside> {
    let interface = spec.internet_interface.as_str();
    for address in spec.allowed.iter().copied().chain([METADATA4.into(), METADATA6.into()]) {
        let (length, nodad): (u8, &[&str]) = if address.is_ipv4() { (32, &[]) } else { (128, &["nodad"]) };
        let address = format!("{address}/{length}");
        ip(&[&["address", "replace", &address, "dev", interface], nodad].concat())?;
    }
    // This internet forwards source-routed packets, as some routers do.
    for name in ["all", interface] {
        setting(&format!("ipv4/conf/{name}/accept_source_route"), "1");
        setting(&format!("ipv6/conf/{name}/seg6_enabled"), "1");
        setting(&format!("ipv6/conf/{name}/accept_source_route"), "1");
    }
    let own = getifaddrs()?.filter(|found| found.interface_name == interface).filter_map(|found| {
        let address = found.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
    });
    let special = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => *v4 == METADATA4,
        IpAddr::V6(v6) => *v6 == METADATA6 || v6.is_unicast_link_local(),
    };
    Ok(Outside {
        addresses: own.filter(|ip| !special(ip)).collect(),
        allowed: spec.allowed.clone(),
        metadata: vec![METADATA4.into(), METADATA6.into()],
        tcp_port: OUTSIDE_TCP_PORT,
        udp_port: OUTSIDE_UDP_PORT,
    })
}

fn serve_host(host: &HostService, stop: &Arc<AtomicBool>, delivered: &Delivered) -> io::Result<()> {
    let mut listeners: Vec<SocketAddr> = host.addresses.iter().map(|ip| SocketAddr::new(*ip, host.tcp_port)).collect();
    for ip in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)] {
        listeners.push(SocketAddr::new(ip.into(), host.tcp_port));
    }
    listeners.push(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), host.tcp_port));
    if let Some(mut address) = host.link_local {
        address.set_port(host.tcp_port);
        listeners.push(address.into());
    }
    for address in listeners {
        serve_tcp(TcpListener::bind(address)?, stop)?;
    }
    serve_udp(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, host.udp_port))?, "host", stop, delivered)?;
    let six = Socket::new(libc::AF_INET6, libc::SOCK_DGRAM, 0)?;
    six.set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    six.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), host.udp_port).into())?;
    serve_udp(six.into_udp(), "host", stop, delivered)?;

    let name = |kind: &str| UnixAddress::from_abstract_name(format!("{}-{kind}", host.abstract_unix));
    let stream = UnixListener::bind_addr(&name("stream")?)?;
    let datagram = UnixDatagram::bind_addr(&name("datagram")?)?;
    let sequenced = Socket::new(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0)?;
    sequenced.bind(&RawAddress::abstract_unix(&format!("{}-sequenced", host.abstract_unix)))?;
    sequenced.listen()?;
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        // Held open: a connection waits in the queue, which is enough for whoever made it.
        let _held = (stream, datagram, sequenced);
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(TICK);
        }
    });
    Ok(())
}

fn serve_internet(internet: &Outside, stop: &Arc<AtomicBool>, delivered: &Delivered) -> io::Result<()> {
    for ip in internet.addresses.iter().chain(&internet.metadata) {
        serve_tcp(TcpListener::bind((*ip, internet.tcp_port))?, stop)?;
        for port in [internet.udp_port, 53] {
            serve_udp(UdpSocket::bind((*ip, port))?, "internet", stop, delivered)?;
        }
    }
    Ok(())
}

fn serve_tcp(listener: TcpListener, stop: &Arc<AtomicBool>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((mut stream, _)) => drop(stream.write_all(b"palisade-stage\n")),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    });
    Ok(())
}

fn serve_udp(socket: UdpSocket, name: &'static str, stop: &Arc<AtomicBool>, delivered: &Delivered) -> io::Result<()> {
    socket.set_read_timeout(Some(TICK))?;
    let (stop, delivered) = (Arc::clone(stop), Arc::clone(delivered));
    std::thread::spawn(move || {
        let mut data = [0; 2048];
        while !stop.load(Ordering::Relaxed) {
            let Ok((len, from)) = socket.recv_from(&mut data) else { continue };
            let text = String::from_utf8_lossy(&data[..len]);
            let line = format!("{name} {:?} <- {from}: {text}", socket.local_addr().ok());
            delivered.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            let _ = socket.send_to(format!("palisade-stage saw {from}").as_bytes(), from);
        }
    });
    Ok(())
}

/// One thread for each port, since a port that nothing answers for costs the whole wait.
fn knock(addresses: &[IpAddr], ports: &[u16], stop: &Arc<AtomicBool>) -> io::Result<()> {
    for port in ports.iter().copied() {
        let (addresses, stop) = (addresses.to_vec(), Arc::clone(stop));
        let four = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let six = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                for ip in &addresses {
                    let socket = if ip.is_ipv4() { &four } else { &six };
                    let _ = socket.send_to(b"palisade-knock", (*ip, port));
                    let _ = TcpStream::connect_timeout(&SocketAddr::new(*ip, port), TICK);
                }
                std::thread::sleep(Duration::from_millis(60));
            }
        });
    }
    Ok(())
}
