//! One input of the fuzzer as several files.
//!
//! A line `#@ NAME` begins a file; what stands before the first one is `compose.yaml`. Names that begin with `compose`
//! are given with `-f`, `.env` is that, and others are there for whoever names them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use palisade_core::compose::{InputFile, LoadInputs};

use crate::SECRET;

/// What a line begins with that begins a file.
pub const MARK: &str = "#@ ";
const DIRECTORY: &str = "/srv/fuzz";
/// More of them make inputs slow and find nothing.
const FILES_MAX: usize = 16;

/// Names with contents, in their order.
#[derive(Clone, Debug, Default)]
pub struct Files(pub Vec<(String, Vec<u8>)>);

impl Files {
    /// Takes an input apart.
    pub fn parse(input: &[u8]) -> Self {
        let mut files = vec![("compose.yaml".to_owned(), Vec::new())];
        for line in input.split_inclusive(|byte| *byte == b'\n') {
            let name = line.strip_prefix(MARK.as_bytes()).and_then(|name| std::str::from_utf8(name).ok());
            match name.map(str::trim).filter(|name| !name.is_empty() && !name.contains('\0')) {
                Some(name) if files.len() < FILES_MAX => files.push((name.to_owned(), Vec::new())),
                _ => files.last_mut().expect("there is a first one").1.extend_from_slice(line),
            }
        }
        Self(files)
    }

    /// Bytes of all of them.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.0.iter().map(|(name, contents)| name.len() + contents.len()).sum()
    }

    /// Whether that text stands in one of them.
    pub fn contain(&self, text: &str) -> bool {
        let text = text.as_bytes();
        self.0.iter().any(|(_, contents)| contents.windows(text.len()).any(|window| window == text))
    }

    /// Hands the files to `take` as the command line would.
    pub fn with_inputs<T>(&self, take: impl FnOnce(&LoadInputs<'_>) -> T) -> T {
        let directory = Path::new(DIRECTORY);
        let paths: Vec<PathBuf> = self.0.iter().map(|(name, _)| directory.join(name)).collect();
        let inputs = |wanted: fn(&str) -> bool| -> Vec<InputFile<'_>> {
            let both = self.0.iter().zip(&paths).filter(|((name, _), _)| wanted(name));
            both.map(|((name, contents), path)| InputFile { name, path, contents }).collect()
        };
        let others: BTreeMap<PathBuf, Vec<u8>> =
            paths.iter().cloned().zip(self.0.iter().map(|(_, contents)| contents.clone())).collect();
        let environment = [("SECRET", SECRET), ("EMPTY", ""), ("PORT", "8080"), ("HOME", "/home/ada")];
        take(&LoadInputs {
            files: &inputs(|name| name.starts_with("compose")),
            project_dir: directory,
            project_name: None,
            profiles: &["some".to_owned()],
            environment: &environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            env_files: &inputs(|name| name == ".env"),
            others: &others,
        })
    }
}
