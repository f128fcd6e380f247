//! The two ends of the data path: a server and a client that count and time what they do.
//!
//! Worlds (namespaces, cgroups, containers) are made by `palisade-bench`, which starts this program in them.
//!
//! - `palisade-load serve PORT CPU` answers on PORT (TCP and UDP) until a client tells it to stop; a client says on
//!   PORT+1 what it is going to do, so that the server knows how to answer and can tell its own use of the processor.
//! - `palisade-load drive WORK HOST PORT COUNT CPU` does WORK COUNT times and prints one `name value` line a figure.
//!   HOST may be `@FILE`: one address a line, used in turn.
//! - `palisade-load answer HOST PORT CPU` says that it listens, greets whoever connects with a byte and waits until it has
//!   closed. When its input ends it prints how many there were and what they took, and goes.
//! - `palisade-load visit HOST PORT COUNT CPU` connects, is greeted and closes, COUNT times.
//! - `palisade-load enter NETNS CGROUP CPU PROGRAM ARGUMENTS…` becomes PROGRAM in that namespace, cgroup and on that
//!   processor; `-` leaves one as it is.
//! - `palisade-load hold` does nothing, for a container that others are started in.
#![forbid(unsafe_code)]

use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Size of a request and of its answer.
const MESSAGE_LEN: usize = 64;
const CHUNK_LEN: usize = 64 << 10;
/// Client and server wait for each other that often, lest the server's queue (128) overflows.
const CONNECTIONS_AHEAD: u64 = 64;
/// How long a client keeps trying to find the server.
const PATIENCE: Duration = Duration::from_secs(10);

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["serve", port, cpu] => serve(port, cpu),
        ["drive", work, host, port, count, cpu] => drive(work, host, port, count, cpu),
        ["answer", host, port, cpu] => answer(host, port, cpu),
        ["visit", host, port, count, cpu] => visit(host, port, count, cpu),
        ["enter", netns, cgroup, cpu, ref command @ ..] if !command.is_empty() => enter(netns, cgroup, cpu, command),
        ["hold"] => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        _ => Err("usage: palisade-load serve|drive|answer|visit|enter|hold …".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("palisade-load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn pin(cpu: &str) -> Outcome<()> {
    if cpu != "-" {
        let mut set = CpuSet::new();
        set.set(cpu.parse()?)?;
        sched_setaffinity(Pid::from_raw(0), &set)?;
    }
    Ok(())
}

fn enter(netns: &str, cgroup: &str, cpu: &str, command: &[&str]) -> Outcome<()> {
    if cgroup != "-" {
        let path = format!("{cgroup}/cgroup.procs");
        fs::write(&path, "0").map_err(|error| format!("joining {path}: {error}"))?;
    }
    if netns != "-" {
        setns(File::open(netns).map_err(|error| format!("opening {netns}: {error}"))?, CloneFlags::CLONE_NEWNET)?;
    }
    pin(cpu)?;
    Err(format!("starting {}: {}", command[0], Command::new(command[0]).args(&command[1..]).exec()).into())
}

/// Nanoseconds of processor time that this process has used.
fn own_cpu_ns() -> u64 {
    getrusage(UsageWho::RUSAGE_SELF)
        .map_or(0, |usage| (usage.user_time().num_nanoseconds() + usage.system_time().num_nanoseconds()) as u64)
}

/// What clients can ask for, and the byte that says so.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    /// A request and its answer over one TCP connection.
    Request = b'r' as isize,
    /// The same with datagrams.
    Datagram = b'd' as isize,
    /// 64 KiB at a time in one direction.
    Stream = b's' as isize,
    /// Connect and close.
    Connect = b'c' as isize,
}

impl Work {
    fn from_byte(byte: u8) -> Option<Self> {
        [Work::Request, Work::Datagram, Work::Stream, Work::Connect].into_iter().find(|work| *work as u8 == byte)
    }
    fn parse(name: &str) -> Outcome<Self> {
        Ok(match name {
            "request" => Work::Request,
            "datagram" => Work::Datagram,
            "stream" => Work::Stream,
            "connect" => Work::Connect,
            _ => return Err(format!("unknown work `{name}`").into()),
        })
    }
}

fn serve(port: &str, cpu: &str) -> Outcome<()> {
    pin(cpu)?;
    let port: u16 = port.parse()?;
    let any = Ipv4Addr::UNSPECIFIED;
    let data = TcpListener::bind((any, port))?;
    let datagrams = UdpSocket::bind((any, port))?;
    let control = TcpListener::bind((any, port + 1))?;
    loop {
        let (mut control, _) = control.accept()?;
        let mut order = [0; 9];
        // A client that only looked whether somebody is there.
        if control.read_exact(&mut order).is_err() {
            continue;
        }
        let Some(work) = Work::from_byte(order[0]) else { return Ok(()) };
        let count = u64::from_le_bytes(order[1..].try_into()?);
        let before = own_cpu_ns();
        control.write_all(b"k")?;
        match work {
            Work::Request => answer_requests(&data)?,
            Work::Datagram => answer_datagrams(&datagrams)?,
            Work::Stream => swallow(&data)?,
            Work::Connect => accept_connections(&data, &mut control, count)?,
        }
        control.write_all(&(own_cpu_ns() - before).to_le_bytes())?;
    }
}

fn answer(host: &str, port: &str, cpu: &str) -> Outcome<()> {
    pin(cpu)?;
    let listener = TcpListener::bind((host, port.parse()?))?;
    println!("listening");
    let before = own_cpu_ns();
    let greeted = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&greeted);
    std::thread::spawn(move || {
        let _ = io::stdin().read(&mut [0]);
        println!("greeted {}", count.load(Ordering::SeqCst));
        println!("cpu_ns {}", own_cpu_ns() - before);
        std::process::exit(0);
    });
    loop {
        let (mut stream, _) = listener.accept()?;
        greeted.fetch_add(1, Ordering::SeqCst);
        stream.write_all(b"k")?;
        let _ = stream.read(&mut [0])?;
    }
}

fn visit(host: &str, port: &str, count: &str, cpu: &str) -> Outcome<()> {
    let to = SocketAddr::new(host.parse()?, port.parse()?);
    let count: u64 = count.parse()?;
    pin(cpu)?;
    let visit = || TcpStream::connect(to).and_then(|mut stream| stream.read_exact(&mut [0]));
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = visit() {
        if Instant::now() > deadline {
            return Err(format!("nobody at {to}: {error}").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // The first tenth warms caches and is not counted.
    for _ in 0..count / 10 {
        visit()?;
    }
    let (before, started) = (own_cpu_ns(), Instant::now());
    for _ in 0..count {
        visit()?;
    }
    println!("per_second {}", count as f64 / started.elapsed().as_secs_f64());
    println!("cpu_ns {}", own_cpu_ns() - before);
    Ok(())
}

fn answer_requests(data: &TcpListener) -> io::Result<()> {
    let (mut stream, _) = data.accept()?;
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE_LEN];
    while stream.read_exact(&mut message).is_ok() {
        stream.write_all(&message)?;
    }
    Ok(())
}

fn answer_datagrams(socket: &UdpSocket) -> io::Result<()> {
    let mut message = [0; MESSAGE_LEN];
    loop {
        let (len, from) = socket.recv_from(&mut message)?;
        if len == 1 {
            return Ok(());
        }
        socket.send_to(&message[..len], from)?;
    }
}

fn swallow(data: &TcpListener) -> io::Result<()> {
    let (mut stream, _) = data.accept()?;
    let mut chunk = vec![0; CHUNK_LEN];
    while stream.read(&mut chunk)? > 0 {}
    Ok(())
}

fn accept_connections(data: &TcpListener, control: &mut TcpStream, count: u64) -> io::Result<()> {
    let mut byte = [0];
    for done in 1..=count {
        let (mut stream, _) = data.accept()?;
        // The client sends nothing, so this waits until it has closed.
        let _ = stream.read(&mut byte)?;
        drop(stream);
        if done % CONNECTIONS_AHEAD == 0 {
            control.write_all(b".")?;
        }
    }
    Ok(())
}

/// Busy time of all processors in ticks, from the first line of /proc/stat.
fn machine_busy_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<u64> =
        stat.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, …
    [0, 1, 2, 5, 6].iter().filter_map(|at| fields.get(*at)).sum()
}

/// Tells the server what comes. Behind a proxy a connection proves nothing, so the server's answer has to come, too.
fn agree(to: SocketAddrV4, work: Work, count: u64) -> Outcome<TcpStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let attempt = || -> io::Result<TcpStream> {
            let mut control =
                TcpStream::connect_timeout(&SocketAddr::V4(SocketAddrV4::new(*to.ip(), to.port() + 1)), PATIENCE)?;
            control.set_nodelay(true)?;
            control.write_all(&[work as u8])?;
            control.write_all(&count.to_le_bytes())?;
            control.read_exact(&mut [0])?;
            Ok(control)
        };
        match attempt() {
            Ok(control) => return Ok(control),
            Err(error) if Instant::now() > deadline => return Err(format!("no server at {to}: {error}").into()),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn drive(work: &str, host: &str, port: &str, count: &str, cpu: &str) -> Outcome<()> {
    let work = Work::parse(work)?;
    let port = port.parse()?;
    let count: u64 = count.parse()?;
    let hosts: Vec<SocketAddrV4> = match host.strip_prefix('@') {
        Some(file) => fs::read_to_string(file)?
            .lines()
            .map(|line| line.parse().map(|ip| SocketAddrV4::new(ip, port)))
            .collect::<Result<_, _>>()?,
        None => vec![SocketAddrV4::new(host.parse()?, port)],
    };
    let to = *hosts.first().ok_or("no address")?;
    pin(cpu)?;
    // The first tenth warms caches and is not counted.
    let warm = count / 10;
    let mut control = agree(to, work, count + warm)?;
    let (mut busy, mut cpu_ns, mut started) = (0, 0, Instant::now());
    let mut begin = || (busy, cpu_ns, started) = (machine_busy_ticks(), own_cpu_ns(), Instant::now());
    let mut latencies_ns = Vec::with_capacity(count as usize);
    match work {
        Work::Request => request(to, warm, count, &mut begin, &mut latencies_ns)?,
        Work::Datagram => datagram(to, warm, count, &mut begin, &mut latencies_ns)?,
        Work::Stream => stream(to, warm, count, &mut begin)?,
        Work::Connect => connect(&hosts, warm, count, &mut begin, &mut control)?,
    }
    // The stream ends when the server has read it all.
    let mut theirs = [0; 8];
    control.read_exact(&mut theirs)?;
    let wall_ns = started.elapsed().as_nanos() as u64;
    let mine = own_cpu_ns() - cpu_ns;
    let machine_ns = (machine_busy_ticks() - busy) * 10_000_000;
    // The server counts from the first message on, warming included.
    let theirs = u64::from_le_bytes(theirs) * count / (count + warm);
    println!("per_second {}", count as f64 * 1e9 / wall_ns as f64);
    println!("cpu_ns_each {}", (mine + theirs) as f64 / count as f64);
    println!("machine_cpu_ns_each {}", machine_ns as f64 / count as f64);
    if !latencies_ns.is_empty() {
        latencies_ns.sort_unstable();
        let at = |q: f64| latencies_ns[((latencies_ns.len() - 1) as f64 * q) as usize];
        println!("p50_ns {}", at(0.5));
        println!("p99_ns {}", at(0.99));
    }
    // Tells the server to go.
    drop(control);
    let mut last = TcpStream::connect((*to.ip(), port + 1))?;
    last.write_all(b"q--------")?;
    Ok(())
}

fn request(
    to: SocketAddrV4,
    warm: u64,
    count: u64,
    begin: &mut impl FnMut(),
    latencies_ns: &mut Vec<u64>,
) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    let mut message = [7; MESSAGE_LEN];
    for done in 0..warm + count {
        if done == warm {
            begin();
        }
        let sent = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        if done >= warm {
            latencies_ns.push(sent.elapsed().as_nanos() as u64);
        }
    }
    Ok(())
}

fn datagram(
    to: SocketAddrV4,
    warm: u64,
    count: u64,
    begin: &mut impl FnMut(),
    latencies_ns: &mut Vec<u64>,
) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut message = [7; MESSAGE_LEN];
    for done in 0..warm + count {
        if done == warm {
            begin();
        }
        let sent = Instant::now();
        socket.send(&message)?;
        socket.recv(&mut message)?;
        if done >= warm {
            latencies_ns.push(sent.elapsed().as_nanos() as u64);
        }
    }
    socket.send(&message[..1])?;
    Ok(())
}

fn stream(to: SocketAddrV4, warm: u64, count: u64, begin: &mut impl FnMut()) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    let chunk = vec![7; CHUNK_LEN];
    for done in 0..warm + count {
        if done == warm {
            begin();
        }
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Write)?;
    stream.read(&mut [0]).map(drop)
}

fn connect(
    hosts: &[SocketAddrV4],
    warm: u64,
    count: u64,
    begin: &mut impl FnMut(),
    control: &mut TcpStream,
) -> io::Result<()> {
    let mut turn = hosts.iter().cycle();
    for done in 0..warm + count {
        if done == warm {
            begin();
        }
        drop(TcpStream::connect(turn.next().expect("a cycle has no end"))?);
        if (done + 1) % CONNECTIONS_AHEAD == 0 {
            control.read_exact(&mut [0])?;
        }
    }
    Ok(())
}
