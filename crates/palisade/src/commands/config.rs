//! `config`: all files as one, as Compose would write them. Needs neither root nor a host.

use palisade_core::compose::canonical::{Value, View};
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::cli::{ConfigArgs, ModelFormat, StackArgs};
use crate::exit::{Answer, Failure};
use crate::load;

/// Prints the model, or a list out of it.
pub(crate) fn run(args: &StackArgs, config: &ConfigArgs) -> Result<Answer, Failure> {
    let mut args = args.clone();
    if config.profiles {
        // A profile that nobody asks for is known only while its services are there.
        args.profiles = vec!["*".to_owned()];
    }
    let view = View { secrets: config.show_secrets, empty_values: config.format == ModelFormat::Json };
    let model = load::canonical(&args, view).map_err(load::Unusable::into_failure)?;
    let text = if config.services {
        lines(names(&model, "services"))
    } else if config.volumes {
        lines(names(&model, "volumes"))
    } else if config.profiles {
        lines(profiles(&model))
    } else if config.images {
        lines(images(&model))
    } else if config.format == ModelFormat::Json {
        model.to_json()
    } else {
        model.to_yaml()
    };
    match &config.output {
        _ if config.quiet => Ok(()),
        Some(path) => {
            write(path, &text).map_err(|error| Failure::new(format!("can't write {}", path.display()), error))
        }
        // Whoever closes the pipe has read enough.
        None => match std::io::stdout().write_all(text.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::new("can't write", error)),
            _ => Ok(()),
        },
    }?;
    Ok(Answer::Yes)
}

/// The file may hold secrets: only a new one's rights can be chosen, so that an old one's stay.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}

fn lines(names: impl IntoIterator<Item = String>) -> String {
    names.into_iter().map(|name| name + "\n").collect()
}

fn names(model: &Value, kind: &str) -> BTreeSet<String> {
    model.get(kind).map(Value::entries).unwrap_or_default().iter().map(|(name, _)| name.clone()).collect()
}

fn services(model: &Value) -> &[(String, Value)] {
    model.get("services").map(Value::entries).unwrap_or_default()
}

fn profiles(model: &Value) -> BTreeSet<String> {
    let all = services(model).iter().filter_map(|(_, service)| service.get("profiles"));
    all.flat_map(Value::items).filter_map(|name| name.as_text().map(str::to_owned)).collect()
}

/// An image that is built and not named gets the project's and the service's name.
fn images(model: &Value) -> BTreeSet<String> {
    let project = model.get("name").and_then(Value::as_text).unwrap_or_default();
    let image = |(name, service): &(String, Value)| {
        let given = service.get("image").and_then(Value::as_text).map(str::to_owned);
        given.or_else(|| service.get("build").map(|_| format!("{project}-{name}")))
    };
    services(model).iter().filter_map(image).collect()
}
