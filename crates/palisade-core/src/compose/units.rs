//! Durations, byte sizes and processor shares as Compose writes them.
//!
//! Text in, numbers out; messages are made by the callers.

/// `1m30s`, `1.5h`, `250ms` as milliseconds; less than one is rounded up.
pub(crate) fn duration_ms(text: &str) -> Option<u64> {
    Some(duration_us(text)?.div_ceil(1000))
}

/// The same as microseconds; less than one is rounded up.
pub(crate) fn duration_us(text: &str) -> Option<u64> {
    Some(duration_ns(text)?.div_ceil(1000))
}

/// A hundred years in nanoseconds: what is more is a slip, and would overflow clocks.
const DURATION_NS_MAX: u128 = 3_200_000_000_000_000_000;

/// The same as nanoseconds; less than one is rounded up.
pub(crate) fn duration_ns(text: &str) -> Option<u64> {
    nanoseconds(text).filter(|nanos| *nanos <= DURATION_NS_MAX).map(|nanos| nanos as u64)
}

/// The same as whole seconds, with days (`365d`) besides; less than one is rounded up.
pub(crate) fn days_s(text: &str) -> Option<u64> {
    let Some((days, rest)) = text.split_once('d') else { return Some(duration_ms(text)?.div_ceil(1000)) };
    if days.is_empty() || !days.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let rest = if rest.is_empty() { 0 } else { duration_ms(rest)?.div_ceil(1000) };
    let seconds = days.parse::<u64>().ok()?.checked_mul(86_400)?.checked_add(rest)?;
    (seconds <= (DURATION_NS_MAX / 1_000_000_000) as u64).then_some(seconds)
}

/// It is written like a duration, and is longer than any may be.
pub(crate) fn is_too_long(text: &str) -> bool {
    nanoseconds(text).is_some_and(|nanos| nanos > DURATION_NS_MAX)
}

fn nanoseconds(text: &str) -> Option<u128> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut nanos = 0_u128;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, behind) = rest.split_at(digits);
        let unit = behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len());
        let factor = match &behind[..unit] {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        nanos = nanos.checked_add(times(number, factor)?)?;
        rest = &behind[unit..];
    }
    (!text.is_empty()).then_some(nanos)
}

/// A decimal number of so many; what is left is rounded up.
fn times(number: &str, factor: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // More digits than these are beyond any factor.
    let fraction = fraction.get(..18).unwrap_or(fraction);
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let part = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<u128>().ok() };
    let scale = 10_u128.pow(fraction.len() as u32);
    part(whole)?.checked_mul(factor)?.checked_add((part(fraction)? * factor).div_ceil(scale))
}

/// `512m`, `1.5g`, `64KiB` or plain bytes; each letter is a factor of `base` (1024 for memory, 1000 for logs).
pub(crate) fn bytes(text: &str, base: u64) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let power = match text[digits..].trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        _ => return None,
    };
    let bytes = number * (base as f64).powi(power);
    (bytes < 9e18).then_some(bytes as u64)
}

/// Permission bits, and whether they are written as a decimal number: one without quotes that doesn't begin with a zero.
pub(crate) fn mode(text: &str, plain: bool) -> Option<(u32, bool)> {
    let text = text.trim();
    let decimal = plain && !text.starts_with('0');
    let digits = text.trim_start_matches("0o");
    let mode = if decimal { digits.parse().ok() } else { u32::from_str_radix(digits, 8).ok() };
    mode.filter(|mode| *mode <= 0o7777).map(|mode| (mode, decimal))
}

/// `0.5` processors as thousandths.
pub(crate) fn cpu_milli(text: &str) -> Option<u64> {
    let valid = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == '.');
    let number: f64 = valid.then(|| text.parse().ok())??;
    (number <= 1e6).then(|| (number * 1000.0).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in [
            ("1m30s", Some(90_000)),
            ("1.5s", Some(1500)),
            ("250ms", Some(250)),
            ("1us", Some(1)),
            ("2h", Some(7_200_000)),
            ("0s", Some(0)),
            ("0", Some(0)),
            ("10", None),
            ("", None),
            ("10 s", None),
            ("-1s", None),
            ("ms", None),
            ("1d", None),
            ("99999999999h", None),
            ("1.2.3s", None),
            (".s", None),
            (".5s", Some(500)),
        ] {
            assert_eq!(duration_ms(text), ms, "{text}");
        }
        for (text, seconds) in [
            ("365d", Some(31_536_000)),
            ("1d12h", Some(129_600)),
            ("10m", Some(600)),
            ("0", Some(0)),
            ("1.5s", Some(2)),
            ("d", None),
            ("1.5d", None),
            ("1d2d", None),
            ("99999999d", None),
            ("7", None),
        ] {
            assert_eq!(days_s(text), seconds, "{text}");
        }
        assert!(is_too_long("9999999h") && !is_too_long("1h") && !is_too_long("10"));
        assert_eq!(
            (duration_ns("1.5ms"), duration_ns("0.1ns"), duration_us("1.5ms")),
            (Some(1_500_000), Some(1), Some(1500))
        );
    }

    #[test]
    fn sizes_and_shares() {
        assert_eq!(bytes("512m", 1024), Some(512 << 20));
        assert_eq!(bytes("1.5g", 1024), Some(3 << 29));
        assert_eq!(bytes("64KiB", 1024), Some(64 << 10));
        assert_eq!(bytes("10m", 1000), Some(10_000_000));
        assert_eq!(bytes("1024", 1024), Some(1024));
        assert_eq!((bytes("m", 1024), bytes("1x", 1024), bytes("-1", 1024)), (None, None, None));
        assert_eq!(
            (cpu_milli("0.5"), cpu_milli("2"), cpu_milli("-1"), cpu_milli("x")),
            (Some(500), Some(2000), None, None)
        );
    }
}
