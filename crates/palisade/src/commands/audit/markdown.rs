//! An audit as a to-do list: what holds is ticked, with what showed it; what doesn't, or
//! couldn't be read, isn't, and says why and what to do.

use palisade_core::audit::checked::{Checked, checked};
use palisade_core::audit::rules::RULES;
use palisade_core::finding::{Finding, Severity};

use super::Report;

pub(super) fn lay_out(report: &Report) -> String {
    let stack = report.stack.as_ref().map(|stack| format!(", stack {}", plain(stack.as_str()))).unwrap_or_default();
    let mut text = format!("# Audit of {}{stack}\n\n", plain(&report.facts.host));
    text += &format!(
        "{} errors, {} warnings, {} notes; {} ports with a listener, {} packets sent.\n",
        report.count(Severity::Error),
        report.count(Severity::Warning),
        report.count(Severity::Note),
        report.audit.ports.len(),
        report.packets()
    );
    text += "\n## To do\n\n";
    let mut any = false;
    for finding in &report.audit.findings {
        text += &to_do(finding);
        any = true;
    }
    if !any {
        text += "Nothing.\n";
    }
    if !report.accepted.is_empty() {
        text += "\n## Accepted\n\n";
        for accepted in &report.accepted {
            let until = accepted.until.map(|until| format!(", until {until}")).unwrap_or_default();
            let message = plain(&accepted.finding.message);
            text += &format!("- [x] `{}` {message} ({}{until})\n", accepted.finding.id, plain(&accepted.reason));
        }
    }
    text += "\n## Done\n\n";
    let found = |id: &str| {
        let open = report.audit.findings.iter().map(|finding| finding.id);
        open.chain(report.accepted.iter().map(|accepted| accepted.finding.id)).any(|found| found == id)
    };
    let (mut left, mut open) = (Vec::new(), String::new());
    for rule in RULES.iter().filter(|rule| !found(rule.id)) {
        match checked(rule, &report.facts, report.known()) {
            Checked::Seen(seen) => {
                text += &format!("- [x] {} (`{}`)\n", sentence(rule.good), rule.id);
                seen.iter().for_each(|seen| text += &format!("  - seen: {}\n", plain(seen)));
            }
            Checked::NotRead(why) => {
                let why: Vec<_> = why.iter().map(|why| plain(why)).collect();
                open += &format!(
                    "- [ ] {} (`{}`)\n  - could not be read: {}\n",
                    sentence(rule.good),
                    rule.id,
                    why.join("; ")
                );
            }
            Checked::Nothing => left.push(format!("`{}`", rule.id)),
        }
    }
    if !open.is_empty() {
        text += &format!("\n## Not known to be so\n\n{open}");
    }
    if !left.is_empty() {
        text += &format!("\nNot looked for, as there is nothing of the kind: {}.\n", left.join(", "));
    }
    if !report.facts.unknown.is_empty() {
        text += "\n## Not known\n\n";
        report.facts.unknown.iter().for_each(|unknown| text += &format!("- {}\n", plain(&unknown.why)));
    }
    text
}

fn to_do(finding: &Finding) -> String {
    let severity = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    };
    let mut text = format!(
        "- [ ] **{}** ({severity}, `{}`, {})\n",
        sentence(&plain(&finding.message)),
        finding.id,
        plain(&finding.subject)
    );
    finding.why.iter().for_each(|why| text += &format!("  - why: {}\n", plain(why)));
    finding.place.iter().for_each(|place| text += &format!("  - at: {}\n", plain(&place.to_string())));
    finding.evidence.iter().for_each(|seen| text += &format!("  - seen: {}\n", plain(seen)));
    finding.remedy.iter().for_each(|remedy| text += &format!("  - do: {}\n", remedy.replace('\n', " ")));
    text
}

fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// Text that stays text: names of processes may look like links, tags or headings.
fn plain(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '#' | '|' | '!' | '~') {
            escaped.push('\\');
        }
        escaped.push(if c == '\n' { ' ' } else { c });
    }
    escaped
}
