//! Tables as Markdown, and where they go.

use anyhow::{Context, Result};
use nix::sys::utsname::uname;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Kernel, processor, date and how busy the machine was: figures mean nothing without them.
pub(crate) fn circumstances(rounds: usize) -> String {
    let kernel = uname().map(|names| names.release().to_string_lossy().into_owned()).unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let model = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
    let date = Command::new("date").arg("+%Y-%m-%d").output().map(|o| o.stdout).unwrap_or_default();
    format!(
        "{}, Linux {kernel}, {processors} × {}, medians of {rounds} interleaved rounds, load average of the last \
         minute when done: {}.\n",
        String::from_utf8_lossy(&date).trim(),
        model.trim_start_matches([' ', '\t', ':']),
        load_average(),
    )
}

/// Of the last minute.
pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// A table: first row the head.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        text.push_str(&format!("| {} |\n", row.join(" | ")));
        if index == 0 {
            text.push_str(&format!("|{}\n", "---|".repeat(row.len())));
        }
    }
    text
}

/// Replaces what stands between `<!-- name -->` and `<!-- /name -->`.
pub(crate) fn replace(file: &Path, name: &str, text: &str) -> Result<()> {
    let old = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let (begin, end) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let missing = || format!("{} has no `{begin}` … `{end}`", file.display());
    let (before, rest) = old.split_once(&begin).with_context(missing)?;
    let (_, after) = rest.split_once(&end).with_context(missing)?;
    fs::write(file, format!("{before}{begin}\n{}\n{end}{after}", text.trim_end()))
        .with_context(|| format!("writing {}", file.display()))
}

/// Nanoseconds in a unit that reads well.
pub(crate) fn duration(ns: f64) -> String {
    match ns {
        ns if ns < 1e3 => format!("{ns:.0} ns"),
        ns if ns < 1e6 => format!("{:.1} µs", ns / 1e3),
        ns if ns < 1e9 => format!("{:.1} ms", ns / 1e6),
        ns => format!("{:.2} s", ns / 1e9),
    }
}
