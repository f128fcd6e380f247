//! Speaking with the edge: its control sockets, and the files from which instances that start learn what others were told.
//!
//! Who takes requests is decided by whoever asks, and read from the kernel; here it is only told. The edge's own half is
//! in `palisade-edge`.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use palisade_core::address::InstanceAddress;
use palisade_core::causes::chain;
use palisade_core::edge::{
    Answer, CONTROL_SOCKET, EDGES_FILE, EdgeAt, HTTPS_PORT, INSTANCES, Order, READY_VERB, Report, SERVICE_NAME,
    Settings, TOLD, UPSTREAMS_FILE, Upstream, Upstreams, control_for_worker,
};
use palisade_core::instance::InstanceSpec;
use palisade_core::stack::{FileSource, HealthTest};

use crate::layout::Layout;
use crate::runtime;
use crate::whole_file;

/// So long an instance of the edge may take to answer. It answers at once unless the machine is overloaded.
const ANSWER: Duration = Duration::from_secs(10);
/// What every instance has answered to, in the edge's folder.
const ACKNOWLEDGED: &str = "acknowledged.json";
/// An answer's length at most.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// The edge could not be told something, or asked.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// One instance of it.
    #[error("instance {number} of the edge can't {what}")]
    Asked {
        /// Which.
        number: u8,
        /// "take new upstreams" …
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It answered that it didn't.
    #[error("instance {number} of the edge refuses to {what}: {why}")]
    Refused {
        /// Which.
        number: u8,
        /// "take new upstreams" …
        what: &'static str,
        /// Its own words.
        why: String,
    },
    /// A file or folder by which it is told.
    #[error("{operation} {path} failed")]
    File {
        /// "writing" …
        operation: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn file_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EdgeError {
    move |source| EdgeError::File { operation, path: path.to_owned(), source }
}

/// Only one at a time tells the edge something, so that what it is told last is what is so.
#[derive(Debug)]
pub struct Teller<'a> {
    layout: &'a Layout,
    _lock: Flock<File>,
}

impl<'a> Teller<'a> {
    /// Waits until nobody else tells it anything.
    pub fn lock(layout: &'a Layout) -> Result<Self, EdgeError> {
        let folder = layout.edge();
        make_folder(&folder, 0o700)?;
        make_folder(&folder.join(TOLD), 0o755)?;
        make_folder(&folder.join(INSTANCES), 0o755)?;
        let path = folder.join("lock");
        let file = File::create(&path).map_err(file_error("opening", &path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| file_error("locking", &path)(error.into()))?;
        Ok(Self { layout, _lock: lock })
    }

    /// Tells every instance that runs who takes requests from now on, and leaves it for those that start later. Returns when
    /// all have answered: then no new request goes to anybody else.
    pub fn set_upstreams(&self, upstreams: &Upstreams) -> Result<(), EdgeError> {
        let folder = self.layout.edge();
        let done = folder.join(ACKNOWLEDGED);
        let _ = fs::remove_file(&done);
        self.set_edges()?;
        // First for those that start: whoever has read the old file by now has its socket, and is told below.
        write(&folder.join(TOLD).join(UPSTREAMS_FILE), upstreams)?;
        let what = "take new upstreams";
        for number in instances(self.layout) {
            match ask(self.layout, number, &Order::SetUpstreams(upstreams.clone()), what)? {
                None | Some(Answer::Done) => {}
                Some(answer) => return Err(unexpected(number, what, answer)),
            }
        }
        write(&done, upstreams)
    }

    /// Leaves for who obtains certificates which instances of the edge there are.
    pub fn set_edges(&self) -> Result<(), EdgeError> {
        let edges: Vec<EdgeAt> = specs(self.layout).iter().map(edge_at).collect();
        write(&self.layout.edge().join(TOLD).join(EDGES_FILE), &edges)
    }

    /// That is what was told last, and everybody has answered.
    pub fn is_told(&self, upstreams: &Upstreams) -> bool {
        let done = fs::read(self.layout.edge().join(ACKNOWLEDGED)).ok();
        done.and_then(|bytes| serde_json::from_slice::<Upstreams>(&bytes).ok()).as_ref() == Some(upstreams)
    }
}

/// How an instance of the edge is, with whom to ban: whoever asks is the one to do it. `None`: it doesn't run.
pub fn report(layout: &Layout, number: u8) -> Result<Option<Report>, EdgeError> {
    reported(layout, number, &Order::Report, ANSWER)
}

/// How an instance of the edge is, but for whom it limits. `None`: it doesn't run.
pub fn look(layout: &Layout, number: u8) -> Result<Option<Report>, EdgeError> {
    reported(layout, number, &Order::Look, ANSWER)
}

/// The instance's health check is the edge's own question: whether it serves as it should.
pub fn asks_itself(spec: &InstanceSpec) -> bool {
    let test = spec.healthcheck.as_ref().map(|check| &check.test);
    matches!(test, Some(HealthTest::Own(arguments)) if arguments.first().is_some_and(|verb| verb == READY_VERB))
}

/// Whether an instance of the edge serves as it should, and what is missing.
pub fn health(layout: &Layout, number: u8, within: Duration) -> (bool, String) {
    match reported(layout, number, &Order::Look, within) {
        Ok(Some(report)) => (report.missing.is_empty(), report.missing.join("; ")),
        Ok(None) => (false, "it doesn't answer: nobody is at its control socket".to_owned()),
        Err(error) => (false, chain(&error)),
    }
}

fn reported(layout: &Layout, number: u8, order: &Order, within: Duration) -> Result<Option<Report>, EdgeError> {
    let what = "report";
    match ask_within(layout, number, order, what, within)? {
        None => Ok(None),
        Some(Answer::Report(report)) => Ok(Some(*report)),
        Some(answer) => Err(unexpected(number, what, answer)),
    }
}

/// Has every instance that runs look at the certificates again. One that refuses has looked as well: it names what is wrong with
/// any domain's, which whoever puts them in place knows better. All are asked, whoever doesn't answer.
pub fn reload_certificates(layout: &Layout) -> Result<(), EdgeError> {
    let what = "look at its certificates";
    let answered = |number| match ask(layout, number, &Order::ReloadCertificates, what)? {
        None | Some(Answer::Done | Answer::Refused(_)) => Ok(()),
        Some(answer) => Err(unexpected(number, what, answer)),
    };
    let answers: Vec<_> = instances(layout).into_iter().map(answered).collect();
    answers.into_iter().collect()
}

/// What each instance of the edge that was started serves, by its specification.
pub fn specs(layout: &Layout) -> Vec<(InstanceSpec, Settings)> {
    let folder = layout.run().join("instances");
    let mut specs = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Some(name) = entry.file_name().into_string().ok().filter(|name| is_of_edge(name)) else { continue };
        let spec = runtime::read_json::<InstanceSpec>(&entry.path().join("spec.json"));
        match spec.map(|spec| spec.and_then(|spec| settings_of(&spec).map(|settings| (spec, settings)))) {
            Ok(Some(known)) => specs.push(known),
            Ok(None) => {}
            Err(error) => eprintln!("can't read what {name} is: {error}"),
        }
    }
    specs.sort_by(|(a, _), (b, _)| a.id.cmp(&b.id));
    specs
}

/// What an instance of the edge serves.
pub fn settings_of(spec: &InstanceSpec) -> Option<Settings> {
    if spec.id.service.as_str() != SERVICE_NAME {
        return None;
    }
    let inline = spec.files.iter().find_map(|file| match &file.file.source {
        FileSource::Inline(text) => Some(text),
        FileSource::Path(_) => None,
    })?;
    serde_json::from_str(&inline.0).ok()
}

/// Whom the edge's instances pass requests on to, those that were started and the one that `more` is for.
pub fn upstreams_wanted(layout: &Layout, more: Option<&Settings>) -> BTreeSet<Upstream> {
    let specs = specs(layout);
    let all = specs.iter().map(|(_, settings)| settings).chain(more);
    all.flat_map(|settings| &settings.edge.routes).map(|route| route.value.to.clone()).collect()
}

fn is_of_edge(instance: &str) -> bool {
    instance.strip_prefix(SERVICE_NAME).is_some_and(|rest| rest.starts_with('.'))
}

fn edge_at((spec, _): &(InstanceSpec, Settings)) -> EdgeAt {
    let address: InstanceAddress = spec.address;
    EdgeAt { control: control_for_worker(spec.id.number), https: Some((address.ip(), HTTPS_PORT).into()) }
}

/// Numbers of instances that have, or had, a control socket.
fn instances(layout: &Layout) -> Vec<u8> {
    let folders = fs::read_dir(layout.edge().join(INSTANCES)).into_iter().flatten().flatten();
    let mut numbers: Vec<u8> = folders.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// Asks one instance. `None`: it doesn't run.
fn ask(layout: &Layout, number: u8, order: &Order, what: &'static str) -> Result<Option<Answer>, EdgeError> {
    ask_within(layout, number, order, what, ANSWER)
}

fn ask_within(
    layout: &Layout,
    number: u8,
    order: &Order,
    what: &'static str,
    within: Duration,
) -> Result<Option<Answer>, EdgeError> {
    let asked = || -> io::Result<Option<Answer>> {
        let stream = match connect(layout, number) {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        stream.set_read_timeout(Some(within))?;
        stream.set_write_timeout(Some(within))?;
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        (&stream).write_all(&line)?;
        let mut text = String::new();
        match BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut text)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(Some(serde_json::from_str(&text)?)),
        }
    };
    match asked() {
        // It ended while it was asked: whoever comes after it reads the file.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            ) =>
        {
            Ok(None)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let source = io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", within.as_secs()));
            Err(EdgeError::Asked { number, what, source })
        }
        other => other.map_err(|source| EdgeError::Asked { number, what, source }),
    }
}

/// By way of the opened folder: a path to a socket may have no more than 107 characters.
fn connect(layout: &Layout, number: u8) -> io::Result<UnixStream> {
    let folder = File::open(layout.edge().join(INSTANCES).join(number.to_string()))?;
    UnixStream::connect(format!("/proc/self/fd/{}/{CONTROL_SOCKET}", folder.as_raw_fd()))
}

fn unexpected(number: u8, what: &'static str, answer: Answer) -> EdgeError {
    let why = match answer {
        Answer::Refused(why) => why,
        Answer::Done | Answer::Report(_) => "it answered something else".to_owned(),
    };
    EdgeError::Refused { number, what, why }
}

fn write(path: &Path, value: &impl serde::Serialize) -> Result<(), EdgeError> {
    let bytes = serde_json::to_vec(value).map_err(|error| file_error("writing", path)(error.into()))?;
    if fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    // The edge is another user.
    whole_file::replace_for_others(path, &bytes, 0o644).map_err(file_error("writing", path))
}

fn make_folder(path: &Path, mode: u32) -> Result<(), EdgeError> {
    let made = fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    made.and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode))).map_err(file_error("making", path))
}
