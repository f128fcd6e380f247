//! Single values: with the types that YAML gives them, and durations as Go writes them.

use super::super::yaml::{Data, Node, Scalar};
use super::Value;

/// What only a person or an engine's plug-in understands, with the types that YAML gives it.
pub(super) fn generic(node: &Node) -> Value {
    match &node.data {
        Data::Null => Value::Null,
        Data::Scalar(scalar) => plain(scalar),
        Data::List(items) => Value::List(items.iter().map(|item| generic(item)).collect()),
        Data::Map(entries) => {
            Value::Map(entries.iter().map(|entry| (entry.key.to_string(), generic(&entry.value))).collect())
        }
    }
}

fn plain(scalar: &Scalar) -> Value {
    let text = scalar.text.as_str();
    let digits = text.trim_start_matches(['+', '-']);
    // `0440` is a number to some and a text to others: as text it stays what it is.
    let number = digits == "0" || digits.starts_with("0.") || digits.starts_with(|c| matches!(c, '1'..='9'));
    match text {
        _ if !scalar.plain => Value::text(text),
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ if !number => Value::text(text),
        _ => match (text.parse::<i64>(), text.parse::<f64>()) {
            (Ok(number), _) => Value::Int(number),
            (_, Ok(number)) if number.is_finite() => Value::Float(number),
            _ => Value::text(text),
        },
    }
}

/// As Go writes durations: `1m30s`, `1.5ms`.
pub(super) fn duration(nanos: u64) -> String {
    const SECOND: u64 = 1_000_000_000;
    const MINUTE: u64 = 60 * SECOND;
    let decimal = |nanos: u64, unit: u64, name: &str| {
        let (whole, rest) = (nanos / unit, nanos % unit);
        let digits = unit.ilog10() as usize;
        let fraction = format!("{rest:0digits$}");
        match fraction.trim_end_matches('0') {
            _ if rest == 0 => format!("{whole}{name}"),
            fraction => format!("{whole}.{fraction}{name}"),
        }
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => decimal(nanos, 1_000, "µs"),
        1_000_000..SECOND => decimal(nanos, 1_000_000, "ms"),
        SECOND..MINUTE => decimal(nanos, SECOND, "s"),
        _ => {
            let (hours, minutes, rest) =
                (nanos / (60 * MINUTE), nanos / MINUTE % 60, decimal(nanos % MINUTE, SECOND, "s"));
            if hours == 0 { format!("{minutes}m{rest}") } else { format!("{hours}h{minutes}m{rest}") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_keep_their_precision() {
        for (nanos, text) in [
            (0, "0s"),
            (5, "5ns"),
            (1_500, "1.5µs"),
            (1_500_000, "1.5ms"),
            (1_000_001, "1.000001ms"),
            (1_050_000_000, "1.05s"),
            (90_000_000_000, "1m30s"),
            (60_000_500_000, "1m0.0005s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            assert_eq!(duration(nanos), text);
        }
    }
}
