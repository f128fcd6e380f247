//! An audit in the Static Analysis Results Interchange Format, version 2.1.0 (OASIS), for code scanning and dashboards.

use palisade_core::audit::rules::RULES;
use palisade_core::finding::{Finding, Severity};
use serde_json::{Value, json};

use super::Report;

pub(super) fn lay_out(report: &Report) -> Value {
    let rules = RULES.iter().map(|rule| {
        json!({
            "id": rule.id,
            "shortDescription": { "text": rule.title },
            "fullDescription": { "text": rule.why },
            "defaultConfiguration": { "level": level(rule.severity) },
        })
    });
    let open = report.audit.findings.iter().map(|finding| result(report, finding));
    let accepted = report.accepted.iter().map(|accepted| {
        let mut value = result(report, &accepted.finding);
        value["suppressions"] = json!([{ "kind": "external", "justification": accepted.reason }]);
        value
    });
    let unknown =
        report.facts.unknown.iter().map(|unknown| json!({ "level": "note", "message": { "text": unknown.why } }));
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "Palisade",
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": rules.collect::<Vec<_>>(),
            } },
            "invocations": [{
                "executionSuccessful": true,
                "toolExecutionNotifications": unknown.collect::<Vec<_>>(),
            }],
            "results": open.chain(accepted).collect::<Vec<_>>(),
        }],
    })
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    }
}

fn result(report: &Report, finding: &Finding) -> Value {
    let mut message = format!("{}.", finding.message);
    if let Some(why) = finding.why {
        message.push_str(&format!(" {}.", why.trim_end_matches('.')));
    }
    if let Some(remedy) = &finding.remedy {
        message.push_str(&format!(" To do: {remedy}"));
    }
    let mut location = json!({ "logicalLocations": [{
        "name": finding.subject,
        "fullyQualifiedName": format!("{}/{}", report.facts.host, finding.subject),
        "kind": "resource",
    }] });
    if let Some(place) = &finding.place {
        location["physicalLocation"] = json!({
            "artifactLocation": { "uri": &*place.file },
            "region": { "startLine": place.line, "startColumn": place.column },
        });
    }
    let mut result = json!({
        "ruleId": finding.id,
        "level": level(finding.severity),
        "message": { "text": message },
        "locations": [location],
        // The same finding of tomorrow is the same alert.
        "partialFingerprints": { "palisade/v1": format!("{}:{}:{}", report.facts.host, finding.id, finding.subject) },
        "properties": { "evidence": finding.evidence },
    });
    // What the stack's own checks find has no entry among the rules.
    if let Some(index) = RULES.iter().position(|rule| rule.id == finding.id) {
        result["ruleIndex"] = index.into();
    }
    result
}
