//! Which files are meant: by options, by variables, or by their names. It follows Compose in every step, so that the
//! same folder gives the same files.
//!
//! Compose files are not opened here; files of variables are, because they may name the Compose files.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

use palisade_core::compose::{self, FILE_BYTES_MAX, InputFile};
use palisade_core::diagnostic::Diagnostic;

use super::{STDIN, Unusable, cannot_read, read};
use crate::cli::StackArgs;

/// Names that Compose looks for, in its order.
const NAMES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];
/// What is merged over the file that was found, in Compose's order.
const OVERRIDES: [&str; 4] =
    ["compose.override.yml", "compose.override.yaml", "docker-compose.override.yml", "docker-compose.override.yaml"];

/// What was found.
#[derive(Debug)]
pub(super) struct Found {
    /// Absolute; standard input is called `-`.
    pub(super) files: Vec<PathBuf>,
    pub(super) project_dir: PathBuf,
    pub(super) env_files: Vec<EnvFile>,
    pub(super) profiles: Vec<String>,
    pub(super) warnings: Vec<Diagnostic>,
}

/// A file of variables.
#[derive(Clone, Debug)]
pub(super) struct EnvFile {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) contents: Vec<u8>,
}

/// Decides which files are meant by somebody who stands `here`.
pub(super) fn find(args: &StackArgs, here: &Path, environment: &BTreeMap<String, String>) -> Result<Found, Unusable> {
    let mut warnings = Vec::new();
    let given = args.project_directory.as_ref().map(|folder| here.join(folder));
    if let Some(folder) = given.as_ref().filter(|folder| !folder.is_dir()) {
        return Err(Unusable::NoFile(format!(
            "error: there is no folder {} (from --project-directory)",
            shown(folder, here)
        )));
    }
    let folder_of = |files: &[PathBuf]| {
        let folder = files.iter().find(|file| !is_stdin(file)).and_then(|file| file.parent()).map(Path::to_owned);
        given.clone().or(folder).unwrap_or_else(|| here.to_owned())
    };
    let mut files: Vec<PathBuf> = args.files.iter().map(|file| absolute(file, here)).collect();
    // What is set where the user stands may name the Compose files; what is set beside those comes after.
    let first = folder_of(&files);
    let chosen = chosen_env_files(args, here, environment)?;
    let mut env_files = match &chosen {
        Some(chosen) => chosen.clone(),
        None => dot_env(&first, here, environment)?,
    };
    let variable = |name: &str, env_files: &[EnvFile]| {
        let value = environment.get(name).cloned().or_else(|| variables(env_files, environment).remove(name));
        value.filter(|value| !value.is_empty())
    };
    let from_variable = variable("COMPOSE_FILE", &env_files).filter(|_| files.is_empty());
    if let Some(list) = &from_variable {
        let separator = variable("COMPOSE_PATH_SEPARATOR", &env_files).unwrap_or_else(|| ":".to_owned());
        files =
            list.split(&*separator).filter(|file| !file.is_empty()).map(|file| absolute(file.as_ref(), here)).collect();
    }
    if files.is_empty() {
        files = discover(&first, here, &mut warnings)?;
    }
    if files.iter().filter(|file| is_stdin(file)).count() > 1 {
        return Err(Unusable::NoFile("error: standard input (`-f -`) can be read only once".to_owned()));
    }
    if let Some(missing) = files.iter().find(|file| !is_stdin(file) && !file.exists()) {
        let name = shown(missing, here);
        let hint = match from_variable {
            Some(_) => "\n  hint: COMPOSE_FILE names it".to_owned(),
            None => String::new(),
        };
        return Err(Unusable::NoFile(format!("error: can't read {name}: it does not exist{hint}")));
    }
    let project_dir = folder_of(&files);
    if chosen.is_none() && project_dir != first {
        // A later one wins: that of the place where the user stands.
        let nearer = std::mem::replace(&mut env_files, dot_env(&project_dir, here, environment)?);
        env_files.extend(nearer);
    }
    let mut profiles = args.profiles.clone();
    if profiles.is_empty() {
        let list = variable("COMPOSE_PROFILES", &env_files).unwrap_or_default();
        profiles = list.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
    }
    Ok(Found { files, project_dir, env_files, profiles, warnings })
}

/// A path as short as it gets for somebody who stands `here`.
pub(super) fn shown(path: &Path, here: &Path) -> String {
    /// More steps up than this are harder to read than the whole path.
    const UP_MAX: usize = 2;
    if is_stdin(path) {
        return STDIN.to_owned();
    }
    for (up, above) in here.ancestors().enumerate().take(UP_MAX + 1) {
        // From the root everything is below.
        if let Ok(rest) = path.strip_prefix(above)
            && (above.parent().is_some() || up == 0)
        {
            let short: PathBuf = std::iter::repeat_n(Component::ParentDir, up).chain(rest.components()).collect();
            return short.display().to_string();
        }
    }
    path.display().to_string()
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn absolute(file: &Path, here: &Path) -> PathBuf {
    if is_stdin(file) { file.to_owned() } else { here.join(file).components().collect() }
}

/// The first file of a usual name in the folder or those above it, and the override beside it.
fn discover(folder: &Path, here: &Path, warnings: &mut Vec<Diagnostic>) -> Result<Vec<PathBuf>, Unusable> {
    for above in folder.ancestors() {
        let mut several = |names: &[&str]| {
            let found: Vec<_> = names.iter().map(|name| above.join(name)).filter(|path| path.exists()).collect();
            if let [taken, left @ ..] = found.as_slice()
                && !left.is_empty()
            {
                let left: Vec<_> = left.iter().map(|path| format!("`{}`", shown(path, here))).collect();
                let taken = shown(taken, here);
                let message = format!("`{taken}` is read, and {} beside it is not", left.join(", "));
                let hint = "keep one of them, or say which ones are meant with `-f`";
                warnings.push(Diagnostic::warning("several-files", message).hint(hint));
            }
            found.into_iter().next()
        };
        if let Some(file) = several(&NAMES) {
            return Ok(std::iter::once(file).chain(several(&OVERRIDES)).collect());
        }
    }
    Err(Unusable::NoFile(format!(
        "error: there is no {} in {} or the folders above it\n  hint: give the file with `palisade -f FILE …`",
        NAMES.join(", "),
        folder.display()
    )))
}

/// What `--env-file` or COMPOSE_ENV_FILES names; they must be there.
fn chosen_env_files(
    args: &StackArgs,
    here: &Path,
    environment: &BTreeMap<String, String>,
) -> Result<Option<Vec<EnvFile>>, Unusable> {
    let mut paths = args.env_files.clone();
    if paths.is_empty() {
        let list = environment.get("COMPOSE_ENV_FILES").map(String::as_str).unwrap_or_default();
        paths.extend(list.split(',').map(str::trim).filter(|file| !file.is_empty()).map(PathBuf::from));
    }
    if paths.is_empty() {
        return Ok(None);
    }
    let read_one = |path: &PathBuf| {
        let name = path.display().to_string();
        let path = here.join(path);
        match read(&path, FILE_BYTES_MAX) {
            Ok(contents) => Ok(EnvFile { name, path, contents }),
            Err(error) => Err(cannot_read(&name, &error)),
        }
    };
    paths.iter().map(read_one).collect::<Result<_, _>>().map(Some)
}

/// `.env` of the folder, if there is one and it is wanted.
fn dot_env(folder: &Path, here: &Path, environment: &BTreeMap<String, String>) -> Result<Vec<EnvFile>, Unusable> {
    let disabled = environment.get("COMPOSE_DISABLE_ENV_FILE").map(String::as_str).unwrap_or_default();
    match disabled {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => return Ok(Vec::new()),
        "" | "0" | "f" | "F" | "false" | "False" | "FALSE" => {}
        _ => {
            return Err(Unusable::NoFile(
                "error: COMPOSE_DISABLE_ENV_FILE is neither true nor false\n  hint: set it to `true` or `false`".into(),
            ));
        }
    }
    let path = folder.join(".env");
    let name = shown(&path, here);
    match read(&path, FILE_BYTES_MAX) {
        Ok(contents) => Ok(vec![EnvFile { name, path, contents }]),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => Ok(Vec::new()),
        Err(error) => Err(cannot_read(&name, &error)),
    }
}

/// What the files set. What is wrong with them is told when the stack is loaded.
fn variables(files: &[EnvFile], environment: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let files: Vec<_> =
        files.iter().map(|file| InputFile { name: &file.name, path: &file.path, contents: &file.contents }).collect();
    compose::variables(&files, environment)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("palisade-test-{}-{name}", std::process::id()));
            std::fs::create_dir_all(folder.join("a/b")).unwrap();
            Self(folder)
        }
        fn write(&self, name: &str, contents: &str) {
            std::fs::write(self.0.join(name), contents).unwrap();
        }
        fn found(&self, below: &str, args: &StackArgs, environment: &[(&str, &str)]) -> Found {
            let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
            find(args, &self.0.join(below), &environment).unwrap_or_else(|error| panic!("{:?}", error.into_failure()))
        }
        /// The files as somebody sees them who stands in the topmost folder.
        fn names(&self, found: &Found) -> Vec<String> {
            found.files.iter().map(|file| shown(file, &self.0)).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_nearest_file_of_the_first_name_is_found_with_its_override() {
        let folder = Folder::new("find");
        let none = StackArgs::default();
        folder.write("docker-compose.yml", "");
        assert_eq!(folder.names(&folder.found("a/b", &none, &[])), ["docker-compose.yml"]);
        folder.write("a/docker-compose.yaml", "");
        folder.write("a/compose.yml", "");
        folder.write("a/docker-compose.override.yml", "");
        folder.write("compose.override.yml", "");
        let found = folder.found("a/b", &none, &[]);
        assert_eq!(folder.names(&found), ["a/compose.yml", "a/docker-compose.override.yml"]);
        assert_eq!(found.project_dir, folder.0.join("a"));
        let told: Vec<_> = found.warnings.iter().map(|warning| warning.message.as_str()).collect();
        assert_eq!(told, ["`../compose.yml` is read, and `../docker-compose.yaml` beside it is not"]);
        let given = StackArgs { files: vec!["../compose.yml".into()], ..StackArgs::default() };
        assert_eq!(folder.names(&folder.found("a/b", &given, &[])), ["a/b/../compose.yml"], "no override beside -f");
    }

    #[test]
    fn variables_name_files_and_profiles_unless_options_do() {
        let folder = Folder::new("variables");
        for name in ["x.yaml", "y.yaml", "compose.yaml"] {
            folder.write(name, "");
        }
        folder.write(".env", "COMPOSE_FILE=x.yaml;y.yaml\nCOMPOSE_PATH_SEPARATOR=;\nCOMPOSE_PROFILES=a, b,\n");
        let none = StackArgs::default();
        let found = folder.found("", &none, &[]);
        assert_eq!(folder.names(&found), ["x.yaml", "y.yaml"]);
        assert_eq!(found.profiles, ["a", "b"]);
        let set = [("COMPOSE_FILE", "y.yaml"), ("COMPOSE_PROFILES", "*")];
        let found = folder.found("", &none, &set);
        assert_eq!((folder.names(&found), found.profiles), (vec!["y.yaml".to_owned()], vec!["*".to_owned()]));
        let args = StackArgs {
            files: vec!["-".into(), "compose.yaml".into()],
            profiles: vec!["c".into()],
            ..StackArgs::default()
        };
        let found = folder.found("", &args, &set);
        assert_eq!(folder.names(&found), [STDIN, "compose.yaml"]);
        assert_eq!((found.profiles, found.project_dir), (vec!["c".to_owned()], folder.0.clone()));
        let found = folder.found("", &none, &[("COMPOSE_DISABLE_ENV_FILE", "1")]);
        assert_eq!((folder.names(&found), found.env_files.len()), (vec!["compose.yaml".to_owned()], 0));
    }

    #[test]
    fn dot_env_of_the_project_and_of_where_the_user_stands_both_count() {
        let folder = Folder::new("dot-env");
        folder.write("a/compose.yaml", "");
        folder.write("a/.env", "");
        folder.write("a/b/.env", "");
        let env_files = |found: Found| found.env_files.into_iter().map(|file| file.name).collect::<Vec<_>>();
        assert_eq!(env_files(folder.found("a/b", &StackArgs::default(), &[])), ["../.env", ".env"]);
        let given = StackArgs { files: vec!["a/compose.yaml".into()], ..StackArgs::default() };
        assert_eq!(env_files(folder.found("", &given, &[])), ["a/.env"]);
        let apart = StackArgs { project_directory: Some("a/b".into()), ..given.clone() };
        assert_eq!(env_files(folder.found("", &apart, &[])), ["a/b/.env"]);
        let chosen = StackArgs { env_files: vec!["a/b/.env".into()], ..given.clone() };
        assert_eq!(env_files(folder.found("", &chosen, &[])), ["a/b/.env"]);
        assert_eq!(env_files(folder.found("", &given, &[("COMPOSE_ENV_FILES", "a/b/.env,a/.env")])).len(), 2);
    }

    #[test]
    fn paths_are_shown_from_where_the_user_stands() {
        let shown = |path: &str| shown(Path::new(path), Path::new("/srv/app/deploy"));
        assert_eq!(shown("/srv/app/deploy/x/y.yaml"), "x/y.yaml");
        assert_eq!(shown("/srv/app/base.yaml"), "../base.yaml");
        assert_eq!(shown("/srv/base.yaml"), "../../base.yaml");
        assert_eq!(shown("/etc/base.yaml"), "/etc/base.yaml");
        assert_eq!(shown("-"), "<stdin>");
    }
}
