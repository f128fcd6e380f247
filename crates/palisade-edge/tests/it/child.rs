//! The edge's process: this binary again, as tests start it.

/// Started by [`crate::support::Edge`] only: it needs the settings, and it ends when the edge does.
#[test]
#[ignore = "this is the edge's process, which other tests start"]
fn edge() {
    let settings = std::env::var_os("EDGE_SETTINGS").expect("the settings are named");
    // Not what the harness makes of it: the exit code is the edge's.
    let code = palisade_edge::main(settings.as_ref());
    std::process::exit(if code == std::process::ExitCode::SUCCESS { 0 } else { 1 });
}

/// Started by [`crate::certificates`] only: the worker that obtains certificates.
#[test]
#[ignore = "this is the worker's process, which other tests start"]
fn certificates() {
    let settings = std::env::var_os("WORKER_SETTINGS").expect("the settings are named");
    let ended = palisade_edge::acme::worker_main(settings.as_ref());
    std::process::exit(if ended.is_ok() { 0 } else { 1 });
}
