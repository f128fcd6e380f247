//! One notation for two models: the same thing written in another way is the same thing.
//!
//! Only ways of writing are changed here. Where the two mean different things is said in `explained`.

use serde_json::{Map, Value, json};

/// Keys whose values are durations.
const DURATIONS: [&str; 8] =
    ["interval", "timeout", "start_period", "start_interval", "stop_grace_period", "delay", "monitor", "window"];
/// Keys whose values are sizes.
const SIZES: [&str; 6] = ["mem_limit", "memory", "shm_size", "memswap_limit", "mem_reservation", "size"];
/// Keys of services that say nothing when nothing stands there.
const NOTHING_WHEN_EMPTY: [&str; 15] = [
    "command",
    "entrypoint",
    "ports",
    "volumes",
    "configs",
    "secrets",
    "deploy",
    "build",
    "expose",
    "dns",
    "tmpfs",
    "depends_on",
    "labels",
    "environment",
    "extra_hosts",
];

/// A model of either program in the one notation.
pub(super) fn plain(mut model: Value, project: &str) -> Value {
    let top = model.as_object_mut().unwrap();
    // The file format's version is none of the project's; the name is an option for one of them.
    top.remove("version");
    top.remove("name");
    for (_, service) in sections(top, "services") {
        plain_service(service);
    }
    default_network(top);
    for kind in ["networks", "volumes", "secrets", "configs"] {
        for (name, resource) in sections(top, kind) {
            plain_resource(resource, &format!("{project}_{name}"));
        }
        if top.get(kind).is_some_and(is_empty) {
            top.remove(kind);
        }
    }
    model
}

fn sections<'a>(top: &'a mut Map<String, Value>, key: &str) -> impl Iterator<Item = (&'a String, &'a mut Value)> {
    top.get_mut(key).and_then(Value::as_object_mut).into_iter().flatten()
}

fn plain_service(service: &mut Value) {
    let Some(keys) = service.as_object_mut() else { return };
    for key in ["environment", "labels", "sysctls", "storage_opt"] {
        change(keys, key, pairs);
    }
    change(keys, "build", build);
    for key in ["command", "entrypoint"] {
        change(keys, key, command);
    }
    change(keys, "healthcheck", healthcheck);
    change(keys, "ports", |list| each(list, port));
    change(keys, "volumes", |list| by_target(each(list, mount)));
    change(keys, "devices", |list| each(list, device));
    change(keys, "volumes_from", |list| each(list, volumes_from));
    change(keys, "expose", |list| each(list, text));
    change(keys, "depends_on", dependencies);
    change(keys, "networks", networks);
    change(keys, "extra_hosts", hosts);
    for key in ["secrets", "configs"] {
        change(keys, key, |list| each(list, |item| file_reference(item, key)));
    }
    for key in ["tmpfs", "dns", "dns_search"] {
        change(keys, key, one_or_list);
    }
    change(keys, "logging", |mut logging| {
        if let Some(options) = logging.get_mut("options") {
            *options = pairs(options.take());
        }
        logging
    });
    change(keys, "deploy", without_empty);
    numbers(service, "");
    let keys = service.as_object_mut().unwrap();
    keys.retain(|key, value| !(NOTHING_WHEN_EMPTY.contains(&key.as_str()) && is_empty(value)));
    keys.retain(|_, value| *value != Value::Bool(false));
}

fn change(keys: &mut Map<String, Value>, key: &str, into: impl FnOnce(Value) -> Value) {
    if let Some(value) = keys.get_mut(key) {
        *value = into(value.take());
    }
}

fn each(list: Value, into: impl Fn(Value) -> Value) -> Value {
    match list {
        Value::Array(items) => Value::Array(items.into_iter().map(into).collect()),
        other => other,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// Without what holds nothing, at any depth.
fn without_empty(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().map(|(key, value)| (key, without_empty(value)));
            Value::Object(kept.filter(|(_, value)| !is_empty(value)).collect())
        }
        other => other,
    }
}

/// Numbers and truths as their text; nothing stays nothing.
fn text(value: Value) -> Value {
    match value {
        Value::Number(number) => Value::String(number.to_string()),
        Value::Bool(truth) => Value::String(truth.to_string()),
        other => other,
    }
}

/// `[A=1, B]` is `{A: "1", B: null}`.
fn pairs(value: Value) -> Value {
    match value {
        Value::Array(items) => {
            let pair = |item: Value| {
                let item = item.as_str().unwrap_or_default().to_owned();
                match item.split_once('=') {
                    Some((name, value)) => (name.to_owned(), Value::String(value.to_owned())),
                    None => (item, Value::Null),
                }
            };
            Value::Object(items.into_iter().map(pair).collect())
        }
        Value::Object(map) => Value::Object(map.into_iter().map(|(key, value)| (key, text(value))).collect()),
        other => other,
    }
}

fn build(value: Value) -> Value {
    let mut build = match value {
        Value::String(context) => json!({ "context": context }),
        other => other,
    };
    if let Some(keys) = build.as_object_mut() {
        for key in ["args", "labels"] {
            change(keys, key, pairs);
        }
        keys.entry("dockerfile").or_insert_with(|| json!("Dockerfile"));
        change(keys, "extra_hosts", hosts);
    }
    without_empty(build)
}

/// A line as its words.
fn command(value: Value) -> Value {
    match value {
        Value::String(line) => words(&line).into(),
        other => each(other, text),
    }
}

/// The words of a line as a shell without variables splits them.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        if quote.is_none() && letter.is_whitespace() {
            words.extend(word.take());
            continue;
        }
        let current = word.get_or_insert_default();
        match (quote, letter) {
            (Some(open), letter) if letter == open => quote = None,
            (None, '\'' | '"') => quote = Some(letter),
            (Some('"'), '\\') => match letters.next() {
                Some(next @ ('"' | '\\')) => current.push(next),
                next => current.extend(Some('\\').into_iter().chain(next)),
            },
            (None, '\\') => current.extend(letters.next()),
            (_, letter) => current.push(letter),
        }
    }
    words.extend(word);
    words
}

fn healthcheck(mut value: Value) -> Value {
    if let Some(test) = value.get_mut("test")
        && let Value::String(line) = &*test
    {
        *test = json!(["CMD-SHELL", line]);
    }
    value
}

/// `"127.0.0.1:8080:80/udp"`, written out; the range of the host for one port stays one.
fn port(value: Value) -> Value {
    let mut port = match value {
        Value::String(short) => {
            let (rest, protocol) = short.rsplit_once('/').unwrap_or((&short, "tcp"));
            let mut parts = rest.rsplitn(3, ':');
            let mut port = Map::new();
            port.insert("target".to_owned(), json!(parts.next()));
            port.extend(parts.next().filter(|part| !part.is_empty()).map(|part| ("published".to_owned(), json!(part))));
            port.extend(
                parts
                    .next()
                    .map(|part| ("host_ip".to_owned(), json!(part.trim_start_matches('[').trim_end_matches(']')))),
            );
            port.insert("protocol".to_owned(), json!(protocol));
            Value::Object(port)
        }
        Value::Number(number) => json!({ "target": number }),
        other => other,
    };
    if let Some(keys) = port.as_object_mut() {
        for key in ["target", "published"] {
            change(keys, key, text);
        }
        keys.entry("mode").or_insert_with(|| json!("ingress"));
        keys.entry("protocol").or_insert_with(|| json!("tcp"));
    }
    port
}

/// `source:target:options`, written out; a path of the host is made if it isn't there, unless that is forbidden.
fn mount(value: Value) -> Value {
    let mut mount = match value {
        Value::String(short) => {
            let parts: Vec<&str> = short.split(':').collect();
            let (source, target, options) = match parts[..] {
                [target] => (None, target, ""),
                [source, target] => (Some(source), target, ""),
                [source, target, ref options @ ..] => (Some(source), target, *options.first().unwrap_or(&"")),
                [] => (None, "", ""),
            };
            let bind = source.is_some_and(|source| source.starts_with('/'));
            let mut mount = json!({ "type": if bind { "bind" } else { "volume" }, "target": target });
            if let Some(source) = source {
                mount["source"] = json!(source);
            }
            for option in options.split(',') {
                match option {
                    "ro" => mount["read_only"] = json!(true),
                    "z" | "Z" => mount["bind"]["selinux"] = json!(option),
                    "nocopy" => mount["volume"]["nocopy"] = json!(true),
                    "cached" | "delegated" | "consistent" => mount["consistency"] = json!(option),
                    "" | "rw" => {}
                    propagation => mount["bind"]["propagation"] = json!(propagation),
                }
            }
            mount
        }
        other => other,
    };
    if let Some(keys) = mount.as_object_mut() {
        if let Some(bind) = keys.get_mut("bind").and_then(Value::as_object_mut)
            && bind.get("create_host_path") == Some(&Value::Bool(true))
        {
            bind.remove("create_host_path");
        }
        change(keys, "target", |target| json!(target.as_str().map(clean)));
    }
    without_empty(mount)
}

/// Which mount is listed first means nothing.
fn by_target(mut mounts: Value) -> Value {
    if let Some(mounts) = mounts.as_array_mut() {
        mounts.sort_by_key(|mount| mount["target"].as_str().unwrap_or_default().to_owned());
    }
    mounts
}

/// `/dev/a:/dev/b:rw`, written out.
fn device(value: Value) -> Value {
    let Some(short) = value.as_str() else { return value };
    let mut parts = short.split(':');
    let source = parts.next().unwrap_or_default();
    let (target, permissions) = (parts.next().unwrap_or(source), parts.next().unwrap_or("rwm"));
    json!({ "source": source, "target": target, "permissions": permissions })
}

/// A service: so says a word before it, and that it is written to says a word behind it.
fn volumes_from(value: Value) -> Value {
    let Some(short) = value.as_str() else { return value };
    let short = short.strip_prefix("service:").unwrap_or(short);
    json!(short.strip_suffix(":rw").unwrap_or(short))
}

/// A path without a slash at its end.
fn clean(path: &str) -> &str {
    if path.len() > 1 { path.trim_end_matches('/') } else { path }
}

fn dependencies(value: Value) -> Value {
    let names = match value {
        Value::Array(names) => {
            let names = names.into_iter().filter_map(|name| name.as_str().map(str::to_owned));
            names.map(|name| (name, json!({}))).collect()
        }
        Value::Object(map) => map,
        _ => Map::new(),
    };
    let one = |(name, mut how): (String, Value)| {
        if how.get("condition").is_none() {
            how["condition"] = json!("service_started");
        }
        if how.get("required").is_none() {
            how["required"] = json!(true);
        }
        (name, how)
    };
    Value::Object(names.into_iter().map(one).collect())
}

/// Names, or names with settings: a network without settings is one.
fn networks(value: Value) -> Value {
    match value {
        Value::Array(names) => {
            let names = names.into_iter().filter_map(|name| name.as_str().map(str::to_owned));
            Value::Object(names.map(|name| (name, Value::Null)).collect())
        }
        Value::Object(map) => {
            let settings = |value: Value| if is_empty(&value) { Value::Null } else { value };
            Value::Object(map.into_iter().map(|(name, value)| (name, settings(value))).collect())
        }
        other => other,
    }
}

/// `name=address`, sorted.
fn hosts(value: Value) -> Value {
    let mut hosts: Vec<String> = match value {
        Value::Array(items) => items.iter().filter_map(Value::as_str).map(|item| item.replacen(':', "=", 1)).collect(),
        Value::Object(map) => {
            map.iter().map(|(name, ip)| format!("{name}={}", ip.as_str().unwrap_or_default())).collect()
        }
        _ => Vec::new(),
    };
    hosts.sort();
    hosts.into()
}

/// A name is a mapping with it; a secret is at its usual place.
fn file_reference(value: Value, kind: &str) -> Value {
    let mut reference = match value {
        Value::String(source) => json!({ "source": source }),
        other => other,
    };
    if kind == "secrets" && reference.get("target").is_none() {
        reference["target"] = json!(format!("/run/secrets/{}", reference["source"].as_str().unwrap_or_default()));
    }
    reference
}

fn one_or_list(value: Value) -> Value {
    if value.is_string() { json!([value]) } else { value }
}

/// Durations in nanoseconds, sizes in bytes, other numbers where they are meant as such.
fn numbers(value: &mut Value, key: &str) {
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut().filter(|(key, _)| !matches!(key.as_str(), "environment" | "labels")) {
                numbers(value, key);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| numbers(item, key)),
        Value::String(text) if DURATIONS.contains(&key) => {
            if let Some(nanos) = nanoseconds(text) {
                *value = json!(nanos);
            }
        }
        Value::String(text) if SIZES.contains(&key) => {
            if let Some(bytes) = bytes(text) {
                *value = json!(bytes);
            }
        }
        Value::Number(number) if key == "cpus" => *value = json!(number.as_f64()),
        Value::String(text) if key == "cpus" => *value = json!(text.parse::<f64>().ok()),
        _ => {}
    }
}

/// `1m30s`.
fn nanoseconds(text: &str) -> Option<u64> {
    let (mut rest, mut sum) = (text, 0.0);
    while !rest.is_empty() {
        let unit = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let end = rest[unit..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |end| unit + end);
        let factor = match &rest[unit..end] {
            "ns" => 1.0,
            "us" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        sum += rest[..unit].parse::<f64>().ok()? * factor;
        rest = &rest[end..];
    }
    Some(sum.round() as u64)
}

/// `64m`.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let power = match text[digits..].to_ascii_lowercase().trim_end_matches('b') {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return None,
    };
    Some((text[..digits].parse::<f64>().ok()? * 1024_f64.powi(power)) as u64)
}

/// Who says nothing of networks is in the default one.
fn default_network(top: &mut Map<String, Value>) {
    let mut used = false;
    for (_, service) in sections(top, "services") {
        let Some(keys) = service.as_object_mut() else { continue };
        if !keys.contains_key("network_mode") && keys.get("networks").is_none_or(is_empty) {
            keys.insert("networks".to_owned(), json!({ "default": null }));
        }
        used |= keys.get("networks").is_some_and(|networks| networks.get("default").is_some());
    }
    if used {
        let networks = top.entry("networks").or_insert_with(|| json!({}));
        if let Some(networks) = networks.as_object_mut() {
            networks.entry("default").or_insert_with(|| json!({}));
        }
    }
}

/// A network, volume, secret or config: `false` says nothing, and neither does a name that follows from the project's.
fn plain_resource(resource: &mut Value, usual_name: &str) {
    if resource.is_null() {
        *resource = json!({});
    }
    let Some(keys) = resource.as_object_mut() else { return };
    keys.retain(|_, value| *value != Value::Bool(false) && !is_empty(value));
    if keys.get("name").and_then(Value::as_str) == Some(usual_name) {
        keys.remove("name");
    }
    for key in ["labels", "driver_opts"] {
        change(keys, key, pairs);
    }
}

#[test]
fn what_is_written_in_two_ways_is_the_same() {
    let one = json!({"version": "3.9", "services": {"a": {
        "image": "x", "command": "sh -c 'a b' \"c\\\"d\" e\\ f", "environment": ["A=1", "B"], "mem_limit": "1.5g", "expose": [80],
        "ports": ["127.0.0.1:8080:80/tcp", "90"], "volumes": ["/a:/b:ro", "v:/v:rw"], "depends_on": ["b"],
        "healthcheck": {"test": "true", "interval": "90s"}, "extra_hosts": ["h:1.2.3.4"], "secrets": ["s"], "build": ".",
    }}, "volumes": {"v": {}}, "secrets": {"s": {"file": "/s"}}});
    let other = json!({"name": "shop", "services": {"a": {
        "image": "x", "command": ["sh", "-c", "a b", "c\"d", "e f"], "environment": {"A": 1, "B": null}, "mem_limit": "1610612736", "expose": ["80"],
        "ports": [{"target": 80, "published": "8080", "host_ip": "127.0.0.1", "mode": "ingress", "protocol": "tcp"}, {"target": 90}],
        "volumes": [{"type": "bind", "source": "/a", "target": "/b/", "read_only": true, "bind": {"create_host_path": true}},
            {"type": "volume", "source": "v", "target": "/v", "volume": {}}],
        "depends_on": {"b": {"condition": "service_started", "required": true}}, "networks": {"default": null}, "entrypoint": null,
        "healthcheck": {"test": ["CMD-SHELL", "true"], "interval": "1m30s"}, "extra_hosts": {"h": "1.2.3.4"},
        "secrets": [{"source": "s", "target": "/run/secrets/s"}], "build": {"context": ".", "dockerfile": "Dockerfile"},
    }}, "networks": {"default": {"name": "shop_default", "ipam": {}}}, "volumes": {"v": {"name": "shop_v"}},
        "secrets": {"s": {"file": "/s", "name": "shop_s"}}});
    assert_eq!(plain(one, "shop"), plain(other, "shop"));
}
