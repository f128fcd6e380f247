//! `x-palisade.allow`: risks that somebody has looked at and accepted.

use super::table::{self, TABLE};
use crate::compose::file::FileAllow;
use crate::compose::keys;
use crate::compose::read::{Reader, Text};
use crate::compose::suggest::nearest;
use crate::compose::yaml::{Data, Node};
use crate::diagnostic::{Diagnostic, Span, Spanned, quoted};

const HINT: &str = "write `allow: [{id: latest-tag, reason: \"…\"}]`, or `allow: {latest-tag: \"…\"}`";

impl Reader<'_> {
    /// A list of ids, of `{id, reason}`, or a mapping from ids to reasons.
    pub(crate) fn allow(&mut self, node: &Node) -> Vec<FileAllow> {
        let mut allowed = Vec::new();
        match &node.data {
            Data::Map(entries) => {
                for entry in entries {
                    let reason = if entry.value.is_null() { None } else { self.text(&entry.value, "a reason") };
                    allowed.extend(self.accepted(&entry.key, quoted(&entry.key), entry.key_span, reason));
                }
            }
            Data::List(items) => {
                for item in items {
                    let (id, reason) = match &item.data {
                        Data::Map(_) => {
                            let Some(mut fields) = self.fields(item, &keys::ALLOW) else { continue };
                            let id = fields.value("id").cloned();
                            let reason = fields.value("reason").and_then(|node| self.text(node, "a reason"));
                            fields.finish();
                            let Some(id) = id else {
                                let diagnostic = Diagnostic::error("missing-key", "this says no risk's `id`");
                                self.push(diagnostic.at(item.span, "").hint(HINT));
                                continue;
                            };
                            (id, reason)
                        }
                        _ => (item.clone(), None),
                    };
                    let Some(id) = self.text(&id, "a risk's name") else { continue };
                    allowed.extend(self.accepted(&id.value, id.quoted(), id.span, reason));
                }
            }
            _ => {
                let what = format!("`allow` is a list of risks, but this is {}", node.kind());
                self.push(Diagnostic::error("type", what).at(node.span, "expected a list").hint(HINT));
            }
        }
        allowed
    }

    fn accepted(&mut self, id: &str, shown: String, span: Span, reason: Option<Text>) -> Option<FileAllow> {
        let Some(risk) = table::by_id(id) else {
            let hint = match nearest(id, TABLE.iter().map(|risk| risk.id)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => {
                    let ids: Vec<_> = TABLE.iter().map(|risk| risk.id).collect();
                    format!("the risks are `{}`", ids.join("`, `"))
                }
            };
            self.push(Diagnostic::error("unknown-risk", format!("there is no risk {shown}")).at(span, "").hint(hint));
            return None;
        };
        let reason = reason.map(|reason| reason.value.trim().to_owned()).filter(|reason| !reason.is_empty());
        if reason.is_none() {
            let message = format!("`{id}` is accepted without a reason");
            let diagnostic = Diagnostic::note("no-reason", message).at(span, "");
            self.push(diagnostic.hint(format!("say why, for whoever reads this next: `{{id: {id}, reason: \"…\"}}`")));
        }
        Some(FileAllow { risk: Spanned::new(risk.id, span), reason })
    }
}
