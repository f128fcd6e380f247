//! Brings images to the engine, by the engine's own command line tool.
//!
//! Build arguments go through its environment, so that none of them stands in the arguments of a process.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use palisade_core::action::Fetch;
use serde_json::Value;

use super::is_podman;

/// An image that did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The tool isn't installed.
    #[error("`{program}` is not installed, and it is what {does} images")]
    NoTool {
        /// "docker", "podman".
        program: &'static str,
        /// "pulls", "builds".
        does: &'static str,
    },
    /// The tool could not be run.
    #[error("cannot run `{program}`")]
    Run {
        /// "docker", "podman".
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It said no; what it said was shown as it came, or is in `said`.
    #[error("`{program} {verb}` failed with {status}{}", behind_colon(said))]
    Failed {
        /// "docker", "podman".
        program: &'static str,
        /// "pull", "build".
        verb: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// Its last words, if they weren't shown.
        said: String,
    },
    /// `build` has something that the tool has no option for.
    #[error("`build` has `{key}`, which the engine's builder can't be given")]
    Unknown {
        /// Which.
        key: String,
    },
}

fn behind_colon(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

/// Fetches it. With `show` the tool's own output is seen: bars on a terminal, lines elsewhere.
pub fn fetch(socket: &Path, image: &str, how: &Fetch, show: bool) -> Result<(), FetchError> {
    let program = if is_podman(socket) { "podman" } else { "docker" };
    let mut command = Command::new(program);
    command.env("DOCKER_HOST", format!("unix://{}", socket.display())).stdin(Stdio::null());
    let (verb, does) = match how {
        Fetch::Pull { platform } => {
            command.arg("pull");
            if let Some(platform) = platform {
                command.args(["--platform", platform]);
            }
            command.arg("--").arg(image);
            ("pull", "pulls")
        }
        Fetch::Build(build) => {
            command.arg("build").args(["--tag", image]);
            build_options(&mut command, build)?;
            ("build", "builds")
        }
    };
    let inline = match how {
        Fetch::Build(build) => build.get("dockerfile_inline").and_then(Value::as_str),
        Fetch::Pull { .. } => None,
    };
    if inline.is_some() {
        command.stdin(Stdio::piped());
    }
    if show {
        // What is asked for stays on standard output; progress is for whoever watches.
        command.stdout(io::stderr()).stderr(Stdio::inherit());
    } else {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
    }
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => FetchError::NoTool { program, does },
        _ => FetchError::Run { program, source },
    };
    let mut child = command.spawn().map_err(failed)?;
    if let (Some(text), Some(mut input)) = (inline, child.stdin.take()) {
        // A tool that doesn't read it says why in its own words.
        let _ = io::Write::write_all(&mut input, text.as_bytes());
    }
    let output = child.wait_with_output().map_err(|source| FetchError::Run { program, source })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let said = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().to_owned();
    Err(FetchError::Failed { program, verb, status: output.status, said })
}

/// The options of `docker build` for what `build` says, in its canonical long form.
fn build_options(command: &mut Command, build: &Value) -> Result<(), FetchError> {
    let mut context = PathBuf::from(".");
    for (key, value) in build.as_object().into_iter().flatten() {
        let text = value.as_str().unwrap_or_default();
        match key.as_str() {
            "context" => context = PathBuf::from(text),
            "dockerfile" => {
                let base = build.get("context").and_then(Value::as_str).unwrap_or(".");
                command.arg("--file").arg(Path::new(base).join(text));
            }
            "dockerfile_inline" => drop(command.args(["--file", "-"])),
            "args" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    if let Some(text) = scalar(value) {
                        command.args(["--build-arg", name]).env(name, text);
                    } else {
                        // Nothing behind it: the value of the variable where it is built.
                        command.args(["--build-arg", name]);
                    }
                }
            }
            "labels" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    command.arg("--label").arg(format!("{name}={}", scalar(value).unwrap_or_default()));
                }
            }
            "additional_contexts" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    command.arg("--build-context").arg(format!("{name}={}", scalar(value).unwrap_or_default()));
                }
            }
            "ssh" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    let path = scalar(value).filter(|path| !path.is_empty()).map(|path| format!("={path}"));
                    command.arg("--ssh").arg(format!("{name}{}", path.unwrap_or_default()));
                }
            }
            "provenance" => drop(command.args(["--provenance", text])),
            "sbom" => drop(command.args(["--sbom", text])),
            "entitlements" => each(command, "--allow", value),
            "target" => drop(command.args(["--target", text])),
            "network" => drop(command.args(["--network", text])),
            "shm_size" => drop(command.args(["--shm-size", &scalar(value).unwrap_or_default()])),
            "isolation" => drop(command.args(["--isolation", text])),
            "no_cache" => drop(value.as_bool().unwrap_or_default().then(|| command.arg("--no-cache"))),
            "pull" => drop(value.as_bool().unwrap_or_default().then(|| command.arg("--pull"))),
            "cache_from" => each(command, "--cache-from", value),
            "cache_to" => each(command, "--cache-to", value),
            "extra_hosts" => each(command, "--add-host", value),
            "tags" => each(command, "--tag", value),
            "platforms" => each(command, "--platform", value),
            "ulimits" => {
                for (name, limit) in value.as_object().into_iter().flatten() {
                    let of = |key: &str| limit.get(key).and_then(scalar);
                    let text = match (scalar(limit), of("soft"), of("hard")) {
                        (Some(both), ..) => both,
                        (None, soft, hard) => format!("{}:{}", soft.unwrap_or_default(), hard.unwrap_or_default()),
                    };
                    command.arg("--ulimit").arg(format!("{name}={text}"));
                }
            }
            other => return Err(FetchError::Unknown { key: other.to_owned() }),
        }
    }
    // With `--file -` the Dockerfile is standard input, and the context is the folder all the same.
    command.arg("--").arg(context);
    Ok(())
}

fn each(command: &mut Command, option: &str, value: &Value) {
    for item in value.as_array().into_iter().flatten().filter_map(scalar) {
        command.args([option, &item]);
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_arguments_are_not_seen_in_the_process_list() {
        let mut command = Command::new("docker");
        let build = serde_json::json!({
            "context": "/src", "dockerfile": "docker/Dockerfile", "args": {"TOKEN": "hush", "FROM_OUTSIDE": null},
            "target": "prod", "no_cache": true, "pull": false, "cache_from": ["a", "b"],
        });
        build_options(&mut command, &build).unwrap();
        let arguments: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        let line = arguments.join(" ");
        assert!(!line.contains("hush"), "{line}");
        for part in [
            "--build-arg TOKEN",
            "--build-arg FROM_OUTSIDE",
            "--file /src/docker/Dockerfile",
            "--target prod",
            "--no-cache",
            "--cache-from a --cache-from b",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(!line.contains("--pull") && line.ends_with("-- /src"), "{line}");
        let envs: Vec<_> =
            command.get_envs().filter_map(|(name, value)| Some((name.to_str()?, value?.to_str()?))).collect();
        assert_eq!(envs, [("TOKEN", "hush")]);
        let unknown = build_options(&mut command, &serde_json::json!({"privileged": true})).unwrap_err();
        assert!(unknown.to_string().contains("`privileged`"));
    }
}
