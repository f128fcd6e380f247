//! What was found out about the edge, for people.

use super::{Burst, Later, NotTried, Served};

/// For people.
pub(crate) fn text(served: &Served) -> String {
    let listed = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let mut text = format!(
        "The edge, asked from outside: led to HTTPS (308): {}; certificates believed: {}\n",
        listed(&served.redirected),
        listed(&served.believed)
    );
    for (what, status) in &served.answered {
        text += &format!("  {what} is answered with {status}");
        match served.upgraded.get(what) {
            Some(101) => text += ", WebSockets pass",
            Some(status) => text += &format!(", a WebSocket with {status}"),
            None => {}
        }
        if let Some(Burst { tried, passed, later, .. }) = served.limited.get(what) {
            text += &format!(", {passed} of {tried} requests at once passed");
            if let Some(Later { after_ms, tried, passed, .. }) = later {
                text += &format!(", {passed} of {tried} after {}.{} s", after_ms / 1_000, after_ms % 1_000 / 100);
            }
        }
        if let Some(Burst { tried, passed, .. }) = served.at_once.get(what) {
            text += &format!(", {passed} of {tried} WebSockets at once");
        }
        if served.unforged.contains(what) {
            text += ", and its application saw through a forged X-Forwarded-For";
        }
        text.push('\n');
    }
    for NotTried { what, why } in &served.not_tried {
        text += &format!("  not tried: {what} ({why})\n");
    }
    text
}
