//! How long it takes to read and check the files of 1,000 services, beside docker-compose with the same files.

use anyhow::{Context, Result, bail};
use nix::libc;
use palisade_core::compose::{self, InputFile, LoadInputs};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::Options;
use crate::report::{duration, table};
use crate::scratch::Scratch;
use crate::stats::{median, ratio};

mod files;

const SERVICES: usize = 1000;
const MERGED: usize = 20;
/// docker-compose takes so much longer that it needn't run as often.
const PER_ROUND: usize = 3;

/// The same services in files of one kind.
struct Shape {
    what: String,
    paths: Vec<PathBuf>,
    texts: Vec<String>,
}

#[derive(Default)]
struct Found {
    library_ns: Vec<f64>,
    process_ns: Vec<f64>,
    compose_ns: Vec<f64>,
    peak_kib: f64,
}

pub(crate) fn measure(options: &Options, scratch: &Scratch) -> Result<String> {
    let palisade = std::env::current_exe()?.with_file_name("palisade");
    if !palisade.exists() {
        bail!("{} is not there: `cargo build --release -p palisade`", palisade.display());
    }
    let compose = Command::new("docker-compose").arg("version").stdout(Stdio::null()).status().is_ok();
    let shapes = [
        ("one file", 1, 0),
        ("20 files, every service changed by the next", MERGED, 1),
        ("20 files, every service changed by up to six more", MERGED, 3),
    ];
    let shapes = shapes.map(|(what, count, every)| shape(scratch, what, files::texts(SERVICES, count, every)));
    let shapes = shapes.into_iter().collect::<Result<Vec<_>>>()?;
    let mut found: Vec<Found> = shapes.iter().map(|_| Found::default()).collect();
    // A process starts with the peak of the one that starts it, so this comes before anything that needs memory here.
    for (shape, found) in shapes.iter().zip(&mut found) {
        found.peak_kib = run(&mut check(&palisade, shape))?.1;
    }
    for round in 0..options.rounds {
        for (shape, found) in shapes.iter().zip(&mut found) {
            let (mut library_ns, mut process_ns) = (Vec::new(), Vec::new());
            for _ in 0..PER_ROUND {
                library_ns.push(by_library(shape)?);
                process_ns.push(run(&mut check(&palisade, shape))?.0);
            }
            found.library_ns.extend(median(&library_ns));
            found.process_ns.extend(median(&process_ns));
            if compose && options.docker {
                let mut command = with_files(Path::new("docker-compose"), shape);
                found.compose_ns.push(run(command.args(["config", "-q"]))?.0);
            }
        }
        eprintln!("loading: round {} of {}", round + 1, options.rounds);
    }
    let head =
        ["files", "size", "the library", "`palisade check`", "… memory at its peak", "`docker-compose config -q`"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for (shape, found) in shapes.iter().zip(&found) {
        let time = |values: &[f64]| median(values).map_or("–".to_owned(), duration);
        let times = ratio(&found.process_ns, &found.compose_ns, false);
        let bytes: usize = shape.texts.iter().map(String::len).sum();
        rows.push(vec![
            shape.what.clone(),
            format!("{} KiB", bytes >> 10),
            time(&found.library_ns),
            time(&found.process_ns),
            format!("{:.0} MiB", found.peak_kib / 1024.0),
            time(&found.compose_ns) + &times.map_or(String::new(), |times| format!(" (**{times:.0}** times as long)")),
        ]);
    }
    Ok(table(&rows))
}

fn shape(scratch: &Scratch, what: &str, texts: Vec<String>) -> Result<Shape> {
    let folder = scratch.folder.join(what.replace([' ', ','], "-"));
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let mut paths = Vec::new();
    for (number, text) in texts.iter().enumerate() {
        let path = folder.join(format!("compose.{number:02}.yaml"));
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        paths.push(path);
    }
    Ok(Shape { what: what.into(), paths, texts })
}

/// Nanoseconds of reading, without those of taking the result apart.
fn by_library(shape: &Shape) -> Result<f64> {
    let environment: BTreeMap<_, _> =
        files::ENVIRONMENT.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let names: Vec<String> = shape.paths.iter().map(|path| path.display().to_string()).collect();
    let files = names.iter().zip(&shape.paths).zip(&shape.texts);
    let files: Vec<_> = files.map(|((name, path), text)| InputFile { name, path, contents: text.as_bytes() }).collect();
    let inputs = LoadInputs {
        files: &files,
        project_dir: shape.paths[0].parent().context("the files are in a folder")?,
        project_name: Some("loading"),
        profiles: &[],
        environment: &environment,
        env_files: &[],
        others: &BTreeMap::new(),
    };
    let started = Instant::now();
    let loaded = compose::load(&inputs).map_err(|rejected| anyhow::anyhow!("{rejected}"))?;
    let took_ns = started.elapsed().as_nanos() as f64;
    if loaded.stack.services.len() != SERVICES {
        bail!("{} services were read instead of {SERVICES}", loaded.stack.services.len());
    }
    Ok(took_ns)
}

fn check(palisade: &Path, shape: &Shape) -> Command {
    let mut command = with_files(palisade, shape);
    command.args(["--project-name", "loading", "check"]);
    command
}

fn with_files(program: &Path, shape: &Shape) -> Command {
    let mut command = Command::new(program);
    command.args(shape.paths.iter().flat_map(|path| [Path::new("-f"), path]));
    command.envs(files::ENVIRONMENT).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Nanoseconds from start to end, and the most memory it had in KiB.
fn run(command: &mut Command) -> Result<(f64, f64)> {
    let started = Instant::now();
    let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    let (status, peak_kib) = wait(&child)?;
    let took_ns = started.elapsed().as_nanos() as f64;
    if status != 0 {
        bail!("{command:?} ended with wait status {status}");
    }
    Ok((took_ns, peak_kib))
}

fn wait(child: &Child) -> Result<(i32, f64)> {
    let mut status = 0;
    // SAFETY: all bytes zero are a valid `rusage`: it is numbers only.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both point to values that outlive the call, and nobody else waits for this child.
    let waited = unsafe { libc::wait4(child.id() as i32, &raw mut status, 0, &raw mut usage) };
    nix::errno::Errno::result(waited).context("waiting for a process")?;
    Ok((status, usage.ru_maxrss as f64))
}
