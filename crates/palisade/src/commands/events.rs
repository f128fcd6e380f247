//! `events`: what the guard refused and which line of the file would allow it, starts, ends, and health changes.
//!
//! They are written by the agent; here they are only read and put into words.

use palisade_core::address::AddressBook;
use palisade_core::hints::{self, Explanation, Refusal};
use palisade_core::stack::{Proto, Stack};
use palisade_guard::Reason;
use palisade_host::agent::Event;
use palisade_host::layout::Layout;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::cli::{Format, StackArgs};
use crate::exit::{Answer, Failure};
use crate::state::State;
use crate::{load, signals};

/// How often the log is looked at while it is followed.
const POLL: Duration = Duration::from_millis(100);

/// Prints what happened, and what happens next if that is wished.
pub(crate) fn run(args: &StackArgs, follow: bool, format: Format) -> Result<Answer, Failure> {
    let layout = args.layout(load::project(args)?);
    let state = State::read(&layout).map_err(|error| {
        if error.is_permission() {
            Failure::lacking("only root can read the events", "run it with sudo")
        } else {
            Failure::new("can't read what was applied", error)
        }
    })?;
    if follow {
        signals::catch();
    }
    let words = Words { stack: state.stack, addresses: state.addresses };
    match show(&layout, &words, follow, format, &mut io::stdout().lock()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new("can't show the events", error)),
        _ => Ok(Answer::Yes),
    }
}

fn show(layout: &Layout, words: &Words, follow: bool, format: Format, out: &mut impl Write) -> io::Result<()> {
    let current = layout.events();
    let mut old = current.clone().into_os_string();
    old.push(".1");
    if let Some(mut older) = open(&PathBuf::from(old))? {
        print_lines(&mut older, &mut Vec::new(), words, format, out)?;
    }
    let mut log: Option<BufReader<File>> = None;
    let mut partial = Vec::new();
    loop {
        // The log is put aside when it is long: what is left of it comes first, then the new one.
        let replaced = match (&log, fs::metadata(&current)) {
            (Some(log), Ok(now)) => log.get_ref().metadata()?.ino() != now.ino(),
            (None, Ok(_)) => true,
            (_, Err(_)) => false,
        };
        if let Some(log) = &mut log {
            print_lines(log, &mut partial, words, format, out)?;
        }
        if replaced {
            log = open(&current)?;
            continue;
        }
        out.flush()?;
        if !follow || signals::interrupted() {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
}

fn open(path: &std::path::Path) -> io::Result<Option<BufReader<File>>> {
    match File::open(path) {
        Ok(file) => Ok(Some(BufReader::new(file))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Prints the lines that are complete by now; keeps the beginning of one that isn't.
fn print_lines(
    log: &mut impl BufRead,
    partial: &mut Vec<u8>,
    words: &Words,
    format: Format,
    out: &mut impl Write,
) -> io::Result<()> {
    while log.read_until(b'\n', partial)? > 0 && partial.ends_with(b"\n") {
        // A line of another version is no reason to hide the rest.
        if let Ok(event) = serde_json::from_slice::<Event>(partial) {
            match format {
                Format::Text => writeln!(out, "{}", words.text(&event))?,
                Format::Json => writeln!(out, "{}", words.json(&event))?,
            }
        }
        partial.clear();
    }
    Ok(())
}

/// What is needed to put a refusal into words.
struct Words {
    stack: Option<Stack>,
    addresses: AddressBook,
}

impl Words {
    fn explained(&self, event: &Event) -> Option<Explanation> {
        if event.kind != "refused" {
            return None;
        }
        let guard: palisade_guard::Event = serde_json::from_value(event.details.clone()).ok()?;
        let refusal = Refusal {
            client: event.instance.as_ref().map(|id| id.service.clone()),
            proto: if i32::from(guard.proto) == nix::libc::IPPROTO_UDP { Proto::Udp } else { Proto::Tcp },
            address: guard.address,
            port: guard.port,
            reason: reason(guard.reason)?,
        };
        Some(hints::explain(self.stack.as_ref()?, &self.addresses, &refusal))
    }

    fn json(&self, event: &Event) -> Value {
        json!({
            "version": 1,
            "time": event.time,
            "kind": event.kind,
            "instance": event.instance.as_ref().map(ToString::to_string),
            "details": event.details,
            "explanation": self.explained(event),
        })
    }

    fn text(&self, event: &Event) -> String {
        let instance = event.instance.as_ref().map_or_else(|| "host".to_owned(), ToString::to_string);
        let head = format!("{} {instance}", event.time);
        if let Some(Explanation { what, hint, place }) = self.explained(event) {
            let program = event.details["command"].as_str().unwrap_or_default();
            let pid = event.details["pid"].as_u64().filter(|pid| *pid > 0);
            let by = pid.map(|pid| format!(" [{program}, process {pid}]")).unwrap_or_default();
            let more = event.details["suppressed"].as_u64().filter(|number| *number > 0);
            let more = more.map(|number| format!(" ({number} more of the kind before)")).unwrap_or_default();
            let hint = hint.map(|hint| format!("\n    hint: {hint}")).unwrap_or_default();
            let place = place.filter(|_| !hint.is_empty()).map(|place| format!(" ({place})")).unwrap_or_default();
            return format!("{head} refused: {what}{by}{more}{hint}{place}");
        }
        match &event.details {
            Value::Object(fields) => {
                let fields = fields.iter().filter(|(_, value)| !value.is_null() && *value != "");
                let fields: Vec<_> = fields
                    .map(|(key, value)| format!("{key}={}", value.as_str().map_or_else(|| value.to_string(), one_line)))
                    .collect();
                format!("{head} {} {}", event.kind, fields.join(" ")).trim_end().to_owned()
            }
            _ => format!("{head} {}", event.kind),
        }
    }
}

fn one_line(text: &str) -> String {
    text.trim().replace('\n', " / ")
}

fn reason(reason: Reason) -> Option<hints::Reason> {
    Some(match reason {
        Reason::None => return None,
        Reason::NotAPeer => hints::Reason::NotAPeer,
        Reason::UndeclaredPort => hints::Reason::UndeclaredPort,
        Reason::HostLoopback => hints::Reason::HostLoopback,
        Reason::HostPort => hints::Reason::HostPort,
        Reason::UnknownPrivate => hints::Reason::OtherStack,
        Reason::Metadata => hints::Reason::Metadata,
        Reason::Egress => hints::Reason::Egress,
        Reason::AmbiguousLocalhost => hints::Reason::AmbiguousLocalhost,
        Reason::NoBackend => hints::Reason::NoBackend,
        Reason::ForeignAddress => hints::Reason::ForeignAddress,
        Reason::SocketType => hints::Reason::SocketType,
        Reason::AbstractUnix => hints::Reason::AbstractUnix,
        Reason::UndeclaredListener => hints::Reason::UndeclaredListener,
        Reason::NoPolicy => hints::Reason::NoPolicy,
        Reason::Ipv6LocalDatagram => hints::Reason::Ipv6LocalDatagram,
        Reason::FromOutside => hints::Reason::FromOutside,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, instance: &str, details: Value) -> Event {
        let instance = palisade_core::names::InstanceId::parse(instance);
        Event { time: "2026-11-23T04:05:06.000000Z".into(), kind: kind.into(), instance, details }
    }

    #[test]
    fn events_without_words_of_their_own_show_their_details() {
        let words = Words { stack: None, addresses: AddressBook::default() };
        let health = event("health", "db.1", json!({ "from": "starting", "to": "unhealthy", "output": "no\nroute" }));
        assert_eq!(
            words.text(&health),
            "2026-11-23T04:05:06.000000Z db.1 health from=starting output=no / route to=unhealthy"
        );
        assert_eq!(words.text(&event("stopped", "db.1", Value::Null)), "2026-11-23T04:05:06.000000Z db.1 stopped");
        assert_eq!(words.json(&health)["instance"], "db.1");
    }

    #[test]
    fn a_half_written_line_waits_for_its_end() {
        let words = Words { stack: None, addresses: AddressBook::default() };
        let line = serde_json::to_vec(&event("stopped", "db.1", Value::Null)).unwrap();
        let mut partial = Vec::new();
        let mut out = Vec::new();
        print_lines(&mut &line[..10], &mut partial, &words, Format::Text, &mut out).unwrap();
        assert!(out.is_empty());
        let rest = [&line[10..], b"\nnot an event\n"].concat();
        print_lines(&mut rest.as_slice(), &mut partial, &words, Format::Text, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "2026-11-23T04:05:06.000000Z db.1 stopped\n");
    }
}
