//! What the fuzz targets share: an input as files, loading them, and what must hold of every outcome.

pub mod allocations;
pub mod edge;
pub mod files;
pub mod seeds;
pub mod trees;

use std::time::Duration;

use palisade_core::compose::{self, Loaded, Rejected};
use palisade_core::diagnostic::{Diagnostic, Severity, SourceMap, Style, render_all};

pub use files::Files;

/// The value of the variable `SECRET`. No message may hold it.
pub const SECRET: &str = "qzSECRETzq";

/// Processor time that loading and telling about one input may take.
const TIME_MAX: Duration = Duration::from_secs(1);
/// Memory that it may take, besides some for each byte of the input.
const MEMORY_BYTES_MAX: usize = 256 << 20;

/// Loads the files and checks what holds whatever they are.
pub fn load(files: &Files) -> Result<Loaded, Box<Rejected>> {
    let started = processor_time();
    allocations::start();
    let outcome = files.with_inputs(compose::load);
    let peak = allocations::peak_bytes();
    let (diagnostics, sources) = match &outcome {
        Ok(loaded) => (&loaded.diagnostics, &loaded.sources),
        Err(rejected) => (&rejected.diagnostics, &rejected.sources),
    };
    let has_errors = diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error);
    assert_eq!(has_errors, outcome.is_err(), "an error rejects the file, and only an error does: {diagnostics:?}");
    diagnostics.iter().for_each(|diagnostic| spans_are_inside(diagnostic, sources));
    let plain = render_all(diagnostics, sources, Style::default());
    // In colours it is looked at only that it ends.
    let _ = render_all(diagnostics, sources, Style { color: true, width: 40 });
    if !files.contain(SECRET) {
        assert!(!plain.contains(SECRET), "a variable's value is shown:\n{plain}");
    }
    let unseen = plain.chars().find(|char| is_unseen(*char));
    assert_eq!(unseen, None, "a message holds a character that a terminal would obey:\n{plain:?}");
    if let Ok(loaded) = &outcome {
        serde_json::to_string(&loaded.stack).expect("a stack can be written down");
    }
    let took = processor_time() - started;
    assert!(took < TIME_MAX, "it took {took:?}");
    let memory_bytes_max = MEMORY_BYTES_MAX + 1000 * files.len();
    assert!(peak < memory_bytes_max, "it took {} MiB", peak >> 20);
    outcome
}

fn spans_are_inside(diagnostic: &Diagnostic, sources: &SourceMap) {
    for label in diagnostic.primary.iter().chain(&diagnostic.secondary) {
        let span = label.span;
        assert!(span.start <= span.end, "{diagnostic:?}");
        // The source map has no text for a span that isn't whole characters of its file.
        assert!(span.start == span.end || !sources.text(span).is_empty(), "{diagnostic:?}");
        sources.place(span);
    }
}

/// Control characters, and those that change the direction of what stands around them or can't be seen at all.
fn is_unseen(char: char) -> bool {
    matches!(char, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{61c}')
        || char.is_control() && char != '\n'
}

/// Processor time of this thread: other programs of the machine are not in it.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to the timespec that it is given, and this clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
