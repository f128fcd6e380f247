//! From what services were seen to use to the narrowest policy that allows it, as a patch to the user's file.
//!
//! Watching them is the guard's business. What wasn't used while it watched is not in the lesson: a person decides.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use crate::edge::is_own;
use crate::names::ServiceName;
use crate::stack::{PortProto, Proto, Service, Stack};

/// Something that a service did while it was watched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// It connected or sent to a port of a peer.
    Peer {
        /// Whom.
        server: ServiceName,
        /// Where.
        port: PortProto,
    },
    /// It listens on, or bound, a port.
    Bind(PortProto),
    /// It connected or sent to somebody outside the host.
    Outside(IpAddr, PortProto),
}

/// What one service was seen to use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lesson {
    /// Ports of peers.
    pub connect: BTreeSet<(ServiceName, PortProto)>,
    /// Ports that it has and that the file doesn't declare.
    pub undeclared: BTreeSet<PortProto>,
    /// Who it talked to outside.
    pub outside: BTreeSet<(IpAddr, PortProto)>,
}

/// Sorts what was seen by service. Every service of the stack is in it, also one that used nothing.
pub fn lessons(stack: &Stack, uses: impl IntoIterator<Item = (ServiceName, Use)>) -> BTreeMap<ServiceName, Lesson> {
    let mut lessons: BTreeMap<_, Lesson> =
        stack.services.iter().map(|service| (service.name.clone(), Lesson::default())).collect();
    let declared: BTreeMap<&ServiceName, BTreeSet<PortProto>> = stack
        .services
        .iter()
        .map(|service| (&service.name, service.expose.iter().map(|port| port.value).collect()))
        .collect();
    for (name, seen) in uses {
        let Some(lesson) = lessons.get_mut(&name) else { continue };
        match seen {
            Use::Peer { server, port } if server != name => drop(lesson.connect.insert((server, port))),
            Use::Peer { .. } => {}
            Use::Bind(port) if !declared[&name].contains(&port) => drop(lesson.undeclared.insert(port)),
            Use::Bind(_) => {}
            Use::Outside(address, port) => drop(lesson.outside.insert((address, port))),
        }
    }
    lessons
}

/// The file with the lessons written into it, and what could not be written and has to be done by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// The whole new text.
    pub text: String,
    /// One sentence each, with the lines to write.
    pub by_hand: Vec<String>,
}

/// Writes `expose` and `x-palisade.connect` of every service into the text of the file that `file` names. Everything
/// else in it stays to the letter.
pub fn rewrite(text: &str, file: &str, stack: &Stack, lessons: &BTreeMap<ServiceName, Lesson>) -> Rewritten {
    let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
    let mut by_hand = Vec::new();
    // From the last service to the first: lines before the one at work keep their numbers.
    let mut services: Vec<&Service> =
        stack.services.iter().filter(|s| &*s.place.file == file && !is_own(&s.name)).collect();
    services.sort_by_key(|service| std::cmp::Reverse(service.place.line));
    for service in services {
        let Some(lesson) = lessons.get(&service.name) else { continue };
        let connect = inline_list(lesson.connect.iter().map(|(server, port)| format!("{server}:{}", short(*port))));
        let declared = service.expose.iter().map(|port| port.value);
        let expose = (!lesson.undeclared.is_empty()).then(|| {
            inline_list(
                declared.chain(lesson.undeclared.iter().copied()).collect::<BTreeSet<_>>().into_iter().map(short),
            )
        });
        let Some(block) = Block::of(&lines, service) else {
            let mut wanted = format!("services.{}: x-palisade.connect: {connect}", service.name);
            if let Some(expose) = expose {
                let _ = write!(wanted, ", expose: {expose}");
            }
            by_hand.push(wanted);
            continue;
        };
        if let Err(reason) = block.set_connect(&mut lines, &connect) {
            by_hand.push(format!("services.{}.x-palisade.connect: {connect} ({reason})", service.name));
        }
        if let Some(expose) = expose
            && let Err(reason) = block.set_expose(&mut lines, &expose)
        {
            by_hand.push(format!("services.{}.expose: {expose} ({reason})", service.name));
        }
    }
    by_hand.reverse();
    Rewritten { text: lines.join("\n"), by_hand }
}

fn short(port: PortProto) -> String {
    match port.proto {
        Proto::Tcp => port.port.to_string(),
        Proto::Udp => port.to_string(),
    }
}

fn inline_list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.map(|item| format!("\"{item}\"")).collect::<Vec<_>>().join(", "))
}

/// The lines of a service in block style: those below its key that are indented more.
struct Block {
    key: usize,
    end: usize,
    indent: usize,
}

const NOT_BLOCK_STYLE: &str = "it is written in a form that is not changed automatically";

fn indent_of(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

fn is_content(line: &str) -> bool {
    let line = line.trim_start();
    !line.is_empty() && !line.starts_with('#')
}

/// What stands behind `key:` on a line, without a comment.
fn value_of<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let rest = line.trim_start().strip_prefix(key)?.trim_start().strip_prefix(':')?;
    let rest = rest.split(" #").next().unwrap_or_default();
    (rest.is_empty() || rest.starts_with(' ')).then(|| rest.trim())
}

impl Block {
    fn of(lines: &[String], service: &Service) -> Option<Self> {
        let key = usize::try_from(service.place.line).ok()?.checked_sub(1)?;
        let line = lines.get(key)?;
        // Anything behind the key (an anchor, an alias, a flow mapping) is a form of its own.
        if !value_of(line, service.name.as_str())?.is_empty() {
            return None;
        }
        Self::below(lines, key)
    }

    fn below(lines: &[String], key: usize) -> Option<Self> {
        let outer = indent_of(&lines[key]);
        let first = lines[key + 1..].iter().find(|line| is_content(line))?;
        let indent = indent_of(first);
        if indent <= outer || first.trim_start().starts_with("- ") {
            return None;
        }
        let length = lines[key + 1..].iter().take_while(|line| !is_content(line) || indent_of(line) > outer).count();
        Some(Self { key, end: key + 1 + length, indent })
    }

    /// The line of one of its keys.
    fn find(&self, lines: &[String], key: &str) -> Option<usize> {
        (self.key + 1..self.end)
            .find(|line| indent_of(&lines[*line]) == self.indent && value_of(&lines[*line], key).is_some())
    }

    fn insert(&self, lines: &mut Vec<String>, text: &str) {
        lines.insert(self.key + 1, format!("{}{text}", " ".repeat(self.indent)));
    }

    /// Replaces a key's value if it stands on the key's own line.
    fn replace(lines: &mut [String], line: usize, key: &str, value: &str) -> Result<(), &'static str> {
        let old = value_of(&lines[line], key).unwrap_or_default();
        if !(old.starts_with('[') && old.ends_with(']')) {
            return Err(NOT_BLOCK_STYLE);
        }
        lines[line] = lines[line].replacen(old, value, 1);
        Ok(())
    }

    fn set_connect(&self, lines: &mut Vec<String>, connect: &str) -> Result<(), &'static str> {
        let Some(line) = self.find(lines, "x-palisade") else {
            // Two spaces deeper than the block's own keys.
            self.insert(lines, &format!("x-palisade:\n{}  connect: {connect}", " ".repeat(self.indent)));
            return Ok(());
        };
        let value = value_of(&lines[line], "x-palisade").unwrap_or_default().to_owned();
        if value.is_empty() {
            let inner = Self::below(lines, line).ok_or(NOT_BLOCK_STYLE)?;
            return match inner.find(lines, "connect") {
                Some(line) => Self::replace(lines, line, "connect", connect),
                None => {
                    inner.insert(lines, &format!("connect: {connect}"));
                    Ok(())
                }
            };
        }
        if value.starts_with('{') && !value.contains("connect") {
            lines[line] = lines[line].replacen('{', &format!("{{ connect: {connect},"), 1);
            return Ok(());
        }
        Err(NOT_BLOCK_STYLE)
    }

    fn set_expose(&self, lines: &mut Vec<String>, expose: &str) -> Result<(), &'static str> {
        match self.find(lines, "expose") {
            Some(line) => Self::replace(lines, line, "expose", expose),
            None => {
                self.insert(lines, &format!("expose: {expose}"));
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::Place;
    use crate::testing::{name, service, stack, tcp};

    fn at(text: &str, service_name: &str) -> Service {
        let line = text.lines().position(|line| line.trim_start().starts_with(&format!("{service_name}:"))).unwrap();
        let mut it = service(service_name);
        it.place = Place { file: "compose.yaml".into(), line: line as u32 + 1, column: 3 };
        it
    }

    #[test]
    fn what_was_used_is_written_and_the_rest_stays_to_the_letter() {
        let text = "services:\n  db: # the data\n    image: postgres\n\n  app:\n    image: app\n    x-palisade:\n      strict: true\n  web:\n    x-palisade: { egress: none }\n    expose: [\"80\"] # http\n  odd: { image: odd }\n  tight:\n    x-palisade:\n      connect: [\"db\"]  # all of it\n";
        let mut all: Vec<_> = ["db", "app", "web", "odd", "tight"].iter().map(|name| at(text, name)).collect();
        all[2].expose = vec![crate::place::Placed { value: tcp(80), place: all[2].place.clone() }];
        let stack = stack(all);
        let peer = |port| Use::Peer { server: name("db"), port: tcp(port) };
        let seen = [
            (name("app"), peer(5432)),
            (name("app"), Use::Peer { server: name("app"), port: tcp(1) }),
            (name("app"), Use::Bind(tcp(8081))),
            (name("web"), Use::Bind(tcp(80))),
            (name("web"), Use::Bind(PortProto { port: 53, proto: Proto::Udp })),
            (name("tight"), peer(5432)),
            (name("odd"), Use::Bind(tcp(9))),
        ];
        let lessons = lessons(&stack, seen);
        let new = rewrite(text, "compose.yaml", &stack, &lessons);
        assert_eq!(
            new.text,
            "services:\n  db: # the data\n    x-palisade:\n      connect: []\n    image: postgres\n\n  app:\n    expose: [\"8081\"]\n    image: app\n    x-palisade:\n      connect: [\"db:5432\"]\n      strict: true\n  web:\n    x-palisade: { connect: [], egress: none }\n    expose: [\"53/udp\", \"80\"] # http\n  odd: { image: odd }\n  tight:\n    x-palisade:\n      connect: [\"db:5432\"]  # all of it\n"
        );
        assert_eq!(new.by_hand, ["services.odd: x-palisade.connect: [], expose: [\"9\"]"]);
    }
}
