//! Numbers and words of what is written. That programs take the files, and do what they say, is tested with the programs.

use super::haproxy::window;
use super::nginx::rate_text;
use super::*;

#[test]
fn rates_are_those_of_the_file_or_said_not_to_be() {
    for (milli_per_s, expected) in [
        (10_000, ("10r/s", true)),
        (1_500, ("90r/m", true)),
        (16, ("1r/m", true)),
        (1, ("1r/m", false)),
        (1_234, ("75r/m", false)),
    ] {
        let (text, exact) = rate_text(milli_per_s);
        assert_eq!((text.as_str(), exact), expected, "{milli_per_s}");
    }
    // Each whole number of requests a minute comes back as it was: thousandths a second, cut off.
    for per_minute in 1..=600_u32 {
        let (text, exact) = rate_text(per_minute * 1_000 / 60);
        let told = text.strip_suffix("r/m").map(|n| n.parse::<u32>().unwrap());
        let told = told.or_else(|| text.strip_suffix("r/s").map(|n| n.parse::<u32>().unwrap() * 60));
        assert_eq!((told, exact), (Some(per_minute), true), "{text}");
    }
}

#[test]
fn a_window_holds_what_the_rate_allows() {
    assert_eq!(window(Rate { milli_per_s: 10_000, burst: 20 }), (2_100, 21));
    assert_eq!(window(Rate { milli_per_s: 16, burst: 0 }), (62_500, 1));
    assert_eq!(retry_after_s(Some(Rate { milli_per_s: 16, burst: 0 })), 63);
    assert_eq!(retry_after_s(Some(Rate { milli_per_s: 10_000, burst: 20 })), 1);
    assert_eq!(retry_after_s(None), 1);
}

#[test]
fn versions_and_patterns_are_read_and_written() {
    assert_eq!("1.26".parse(), Ok(Version(1, 26, 0)));
    assert_eq!("1.25.3".parse(), Ok(Version(1, 25, 3)));
    for wrong in ["1", "1.2.3.4", "new", "1.18.0", "-1.26", ""] {
        assert!(wrong.parse::<Version>().is_err(), "{wrong}");
    }
    assert_eq!(literal("/a.b/c+d-e"), "/a\\.b/c\\+d-e");
    assert_eq!(time(1_500), "1500ms");
    assert_eq!(time(2_000), "2s");
    assert_eq!(time(0), "1ms", "0 would be no limit");
    let list = wrapped("* one two three", 9);
    assert_eq!(list, ["* one two", "  three"]);
}
