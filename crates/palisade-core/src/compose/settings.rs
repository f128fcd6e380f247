//! What the processes of a service start with: groups, limits of their own, names, resolver, hooks.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::dotenv;
use super::file::FileService;
use super::keys;
use super::read::{Fields, Reader};
use super::units;
use super::yaml::{Data, Node};
use crate::diagnostic::{Diagnostic, quoted};
use crate::environment::Environment;
use crate::stack::{Dns, Hook, Ulimit};

/// What `setrlimit` knows, as Docker names it.
const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];
const ULIMIT_HINT: &str = "write a whole number, or -1 for unlimited";

impl Reader<'_> {
    pub(crate) fn settings(&mut self, fields: &mut Fields<'_>, service: &mut FileService) {
        if let Some(node) = fields.value("group_add") {
            service.settings.groups = self.groups(node);
        }
        if let Some(node) = fields.value("ulimits") {
            service.settings.ulimits = self.ulimits(node);
        }
        if let Some(node) = fields.value("oom_score_adj") {
            service.settings.oom_score_adj = self.parsed(node, "an `oom_score_adj`", "write -1000 to 1000", |text| {
                text.parse::<i16>().ok().filter(|score| (-1000..=1000).contains(score))
            });
        }
        if let Some(node) = fields.value("hostname") {
            service.settings.hostname = self.own_name(node, "a host name", 64);
        }
        if let Some(node) = fields.value("domainname") {
            service.settings.domainname = self.own_name(node, "a domain", 64);
        }
        if let Some(node) = fields.value("shm_size") {
            let hint = "write bytes or a number with a unit, like `256m`";
            let bytes = self.parsed(node, "a size", hint, |text| units::bytes(text, 1024));
            service.settings.shm_bytes = bytes.filter(|bytes| *bytes > 0);
        }
        self.dns(fields, service);
        if let Some(node) = fields.value("post_start") {
            service.settings.post_start = self.hooks(node, "`post_start`");
        }
        if let Some(node) = fields.value("pre_stop") {
            service.settings.pre_stop = self.hooks(node, "`pre_stop`");
        }
        self.namespaces(fields);
    }

    /// Keys of which only the value that says "as usual" is accepted.
    fn namespaces(&mut self, fields: &mut Fields<'_>) {
        const SHARED: &str = "it would share more of the host, or of another service, than the guard can watch";
        for (name, usual, hint) in [
            ("cgroup", &["private"][..], "remove it: the cgroup is how the guard tells services apart"),
            ("ipc", &["private", "shareable"], "remove it; services share memory through a volume of type `tmpfs`"),
            ("isolation", &["default"], "remove it: other values are for Windows"),
        ] {
            let Some(node) = fields.value(name) else { continue };
            let Some(text) = self.text(node, &quoted(name)) else { continue };
            if !text.value.is_empty() && !usual.contains(&text.value.as_str()) {
                let why = if name == "isolation" { "containers of Linux have no such isolation" } else { SHARED };
                self.push(
                    Diagnostic::error(
                        "refused-value",
                        format!("`{name}: {}` can't be honoured: {why}", shown(&text.quoted())),
                    )
                    .at(text.span, "")
                    .hint(hint),
                );
            }
        }
    }

    fn groups(&mut self, node: &Node) -> Vec<String> {
        let mut groups = Vec::new();
        for text in self.texts(node, "`group_add`").unwrap_or_default() {
            let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, ':' | ',');
            if text.value.is_empty() || text.value.contains(odd) {
                let message = format!("{} is not a group", text.quoted());
                self.invalid::<()>(&text, message, "write a group's name or number");
            } else if groups.iter().all(|known| text.value != *known) {
                groups.push(text.value.into());
            }
        }
        groups
    }

    fn ulimits(&mut self, node: &Node) -> BTreeMap<String, Ulimit> {
        let mut limits = BTreeMap::new();
        for entry in self.map(node, "`ulimits`").unwrap_or_default() {
            let name = entry.key.to_ascii_lowercase();
            if !ULIMITS.contains(&name.as_str()) {
                let near = super::suggest::nearest(&name, ULIMITS).map(|near| format!("did you mean `{near}`?"));
                let hint = near.unwrap_or_else(|| format!("limits are `{}`", ULIMITS.join("`, `")));
                self.push(
                    Diagnostic::error("unknown-key", format!("{} is not a limit of processes", quoted(&entry.key)))
                        .at(entry.key_span, "")
                        .hint(hint),
                );
                continue;
            }
            limits.extend(self.ulimit(&entry.value).map(|limit| (name, limit)));
        }
        limits
    }

    fn ulimit(&mut self, node: &Node) -> Option<Ulimit> {
        if !matches!(node.data, Data::Map(_)) {
            let both = self.parsed(node, "a limit", ULIMIT_HINT, ulimit)?;
            return Some(Ulimit { soft: both, hard: both });
        }
        let mut fields = self.fields(node, &keys::ULIMIT)?;
        let mut read = |name: &str| fields.value(name).map(|node| self.parsed(node, "a limit", ULIMIT_HINT, ulimit));
        let (soft, hard) = (read("soft"), read("hard"));
        fields.finish();
        let (Some(soft), Some(hard)) = (soft, hard) else {
            self.push(
                Diagnostic::error("missing-key", "this limit does not have both `soft` and `hard`")
                    .at(node.span, "")
                    .hint("give both, or one number for both"),
            );
            return None;
        };
        let (soft, hard) = (soft?, hard?);
        if hard.is_some_and(|hard| soft.is_none_or(|soft| soft > hard)) {
            self.push(
                Diagnostic::error("invalid-value", "`soft` is more than `hard`")
                    .at(node.span, "")
                    .hint("the soft limit counts, and may be raised up to the hard one"),
            );
            return None;
        }
        Some(Ulimit { soft, hard })
    }

    /// A name that the service sees as its own: the kernel takes 64 bytes.
    fn own_name(&mut self, node: &Node, what: &str, bytes_max: usize) -> Option<String> {
        let hint =
            "names are letters, digits, `.`, `_` and `-`, begin with a letter or digit, and have at most 64 of them";
        self.parsed(node, what, hint, |text| {
            (text.len() <= bytes_max && super::service::is_host_name(text)).then(|| text.to_owned())
        })
    }

    fn dns(&mut self, fields: &mut Fields<'_>, service: &mut FileService) {
        let mut dns = Dns::default();
        if let Some(node) = fields.value("dns") {
            for item in self.one_or_list(node, "`dns`").unwrap_or_default() {
                let hint = "write the address of a name server, like `192.0.2.53`";
                let server = self.parsed(item, "an IP address", hint, |text| text.parse().ok());
                dns.servers.extend(server.filter(|server| !dns.servers.contains(server)));
            }
        }
        if let Some(node) = fields.value("dns_search") {
            dns.search = self.resolver_words(node, "`dns_search`", "a domain", "write a domain, like `example.com`");
        }
        if let Some(node) = fields.value("dns_opt") {
            let hint = "`man 5 resolv.conf` lists the options, like `ndots:2`";
            dns.options = self.resolver_words(node, "`dns_opt`", "an option of the resolver", hint);
        }
        if dns != Dns::default() {
            service.settings.dns = Some(dns);
        }
    }

    /// Words for `resolv.conf`: they must not be able to add lines to it.
    fn resolver_words(&mut self, node: &Arc<Node>, list: &str, what: &str, hint: &str) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        for item in self.one_or_list(node, list).unwrap_or_default() {
            let word = self.parsed(item, what, hint, |text| {
                let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':');
                // Docker takes a single `.` for "no search".
                (!text.is_empty() && text.len() <= 253 && text.chars().all(fine)).then(|| text.to_owned())
            });
            words.extend(word.filter(|word| !words.contains(word)));
        }
        words
    }

    fn hooks(&mut self, node: &Node, what: &str) -> Vec<Hook> {
        let items = self.list(node, what).unwrap_or_default();
        items.iter().filter_map(|item| self.hook(item)).collect()
    }

    fn hook(&mut self, node: &Node) -> Option<Hook> {
        let mut fields = self.fields(node, &keys::HOOK)?;
        let command = fields.value("command").map(|node| (node.span, self.command(node, "`command`")));
        let user = fields.value("user").and_then(|node| self.user(node));
        let working_dir = fields.value("working_dir").and_then(|node| self.working_dir(node));
        let environment = fields.value("environment").map(|node| self.hook_environment(node)).unwrap_or_default();
        if let Some(entry) = fields.take("privileged")
            && self.bool(&entry.value, "`privileged`") == Some(true)
        {
            self.push(
                Diagnostic::error(
                    "refused-value",
                    "`privileged: true` can't be honoured: a hook runs inside the guard, like its service",
                )
                .at(entry.key_span, "")
                .hint("remove it, and do on the host what needs more rights"),
            );
        }
        fields.finish();
        let Some((span, command)) = command else {
            self.push(
                Diagnostic::error("missing-key", "this hook has no `command`")
                    .at(node.span, "")
                    .hint("say what to run: `command: [\"program\", \"argument\"]`"),
            );
            return None;
        };
        let command = command?;
        if command.first().is_none_or(String::is_empty) {
            self.push(Diagnostic::error("invalid-value", "the command is empty").at(span, ""));
            return None;
        }
        Some(Hook { command, user, working_dir, environment })
    }

    fn hook_environment(&mut self, node: &Node) -> Environment {
        let mut environment = Environment::default();
        for (name, value) in self.pairs(node, "`environment`").unwrap_or_default() {
            if !dotenv::is_name(&name) {
                self.push(
                    Diagnostic::error("invalid-value", "this is not a variable of the environment")
                        .at(node.span, "")
                        .hint("a name holds neither `=` nor spaces"),
                );
            } else if let Some(value) = value.or_else(|| self.origin(node.span).variables.get(&name)) {
                environment.insert(name, value);
            }
        }
        environment
    }
}

/// Without the quotes of messages.
fn shown(quoted: &str) -> &str {
    quoted.trim_matches('`')
}

/// `Some(None)` is unlimited.
fn ulimit(text: &str) -> Option<Option<u64>> {
    match text.trim() {
        "-1" | "unlimited" => Some(None),
        number => number.parse().ok().map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_processes() {
        assert_eq!(
            (ulimit("-1"), ulimit("1024"), ulimit("-2"), ulimit("many")),
            (Some(None), Some(Some(1024)), None, None)
        );
        assert!(ULIMITS.is_sorted());
    }
}
