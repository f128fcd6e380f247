//! An audit for people.

use palisade_core::audit::Row;
use palisade_core::finding::Severity;
use palisade_core::prove::Family;

use super::Report;
use crate::load::counted;

/// The table of ports, then what is wrong. `all`: also ports that only this host reaches.
pub(super) fn lay_out(report: &Report, all: bool) -> String {
    let mut text = heading(report);
    let (reached, rest): (Vec<_>, Vec<_>) = report.audit.ports.iter().partition(|row| row.is_reached());
    let (local, kept): (Vec<_>, Vec<_>) = rest.into_iter().partition(|row| row.is_local());
    if reached.is_empty() {
        text += "\nNothing can be reached from outside.\n";
    } else {
        text += "\nCan be reached from outside:\n";
        text += &table(&reached);
    }
    if !kept.is_empty() {
        text += "\nListens on every address, and the firewall lets nobody through:\n";
        text += &table(&kept);
    }
    if !local.is_empty() && all {
        text += "\nFor this host only:\n";
        text += &table(&local);
    } else if !local.is_empty() {
        text += &format!("\n{} for this host only (--all shows them)\n", counted(local.len(), "more port"));
    }
    report.audit.findings.iter().for_each(|finding| text += &format!("\n{finding}\n"));
    if !report.accepted.is_empty() {
        text += "\nAccepted:\n";
        for accepted in &report.accepted {
            let until = accepted.until.map(|until| format!(", until {until}")).unwrap_or_default();
            let (id, subject) = (accepted.finding.id, &accepted.finding.subject);
            text += &format!("  {id} {subject}: {}{until}\n", accepted.reason);
        }
    }
    if !report.facts.unknown.is_empty() {
        text += "\nNot known:\n";
        report.facts.unknown.iter().for_each(|unknown| text += &format!("  {unknown}\n"));
    }
    text
}

fn heading(report: &Report) -> String {
    let counts = [(Severity::Error, "error"), (Severity::Warning, "warning"), (Severity::Note, "note")];
    let counts = counts.map(|(severity, what)| (report.count(severity), what));
    let told: Vec<_> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| counted(*count, what)).collect();
    let told = if told.is_empty() { "nothing wrong".to_owned() } else { told.join(", ") };
    let stack = report.stack.as_ref().map(|stack| format!(" with stack {stack}")).unwrap_or_default();
    let worlds: Vec<_> =
        report.facts.worlds.iter().map(|world| format!("{} ({})", world.name, world.interface)).collect();
    let asked = if worlds.is_empty() { "nobody, as no interface has an address".to_owned() } else { worlds.join(", ") };
    format!(
        "{}{stack}: {told}\nAsked for {asked} by {} packets in {}.{} s\n",
        report.facts.host,
        report.packets(),
        report.took.as_secs(),
        report.took.subsec_millis() / 100
    )
}

fn table(rows: &[&Row]) -> String {
    let mut lines = vec![["  PORT", "FROM", "WHO", "MEANT", "FOUND"].map(str::to_owned)];
    for row in rows {
        let outside: Vec<_> = row.outside.iter().map(ToString::to_string).collect();
        let outside = if outside.is_empty() { String::new() } else { format!(" (at {})", outside.join(", ")) };
        let from =
            row.reached_from.iter().map(|(world, families)| format!("{world} {}", short(families.iter().copied())));
        let from = from.collect::<Vec<_>>().join("; ");
        let from = if from.is_empty() { row.bound.iter().cloned().collect::<Vec<_>>().join(" ") } else { from };
        lines.push([
            format!("  {}{outside}", row.port),
            from,
            row.who.clone(),
            row.declared.clone().unwrap_or_else(|| "-".to_owned()),
            row.findings.join(", "),
        ]);
    }
    crate::commands::table(lines)
}

/// `v4+v6`.
fn short(families: impl Iterator<Item = Family>) -> String {
    let each = families.map(|family| match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    });
    each.collect::<Vec<_>>().join("+")
}
