//! What the environment says: where to listen, and where PostgreSQL and Ollama are.
//!
//! Nothing is connected to here. The password file is read anew for each connection, because PostgreSQL's service may
//! write it after this one started.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::http::BaseUrl;

/// The application's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// `BIND` and `PORT`.
    pub listen: SocketAddr,
    /// `DATABASE_URL` or `PGHOST`, `PGPORT`, `PGUSER`, `PGDATABASE`, `PGPASSWORD`, `PGPASSWORD_FILE`.
    pub database: Database,
    /// `OLLAMA_URL`.
    pub ollama: BaseUrl,
    /// `OLLAMA_MODEL`.
    pub model: String,
}

/// How to connect to PostgreSQL.
#[derive(Clone, Debug)]
pub struct Database {
    config: tokio_postgres::Config,
    password_file: Option<PathBuf>,
}

/// The environment holds something that can't be used. Values that may be secret are not shown.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A number, address or URL that isn't one.
    #[error("{name}={value:?} is not {expected}")]
    Invalid {
        /// The variable.
        name: &'static str,
        /// What it says.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// `DATABASE_URL` may hold a password: only the reason is told.
    #[error("DATABASE_URL is not a PostgreSQL connection string")]
    DatabaseUrl(#[source] tokio_postgres::Error),
}

/// The password file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// Not there yet, or not readable by this user.
    #[error("can't read PGPASSWORD_FILE {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Nothing in it.
    #[error("PGPASSWORD_FILE {path} is empty")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

impl Config {
    /// From the process's environment.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_vars(std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))))
    }

    /// From the given variables; an empty value counts as not given, as in `PORT=`.
    pub fn from_vars(vars: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let vars: BTreeMap<String, String> = vars.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let ip = parsed(&vars, "BIND", "an IP address", IpAddr::V4(Ipv4Addr::UNSPECIFIED))?;
        let port = parsed(&vars, "PORT", "a port number", 8081u16)?;
        let ollama = parsed(&vars, "OLLAMA_URL", "an http:// URL", BaseUrl::new("ollama", 11434))?;
        Ok(Self {
            listen: SocketAddr::new(ip, port),
            database: Database::from_vars(&vars)?,
            ollama,
            model: vars.get("OLLAMA_MODEL").cloned().unwrap_or_else(|| "all-minilm".into()),
        })
    }
}

fn parsed<T: FromStr>(
    vars: &BTreeMap<String, String>,
    name: &'static str,
    expected: &'static str,
    default: T,
) -> Result<T, ConfigError> {
    match vars.get(name) {
        None => Ok(default),
        Some(value) => value.parse().map_err(|_| ConfigError::Invalid { name, value: value.clone(), expected }),
    }
}

impl Database {
    fn from_vars(vars: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let mut config = match vars.get("DATABASE_URL") {
            Some(url) => url.parse().map_err(ConfigError::DatabaseUrl)?,
            None => {
                let mut config = tokio_postgres::Config::new();
                config.host(vars.get("PGHOST").map_or("postgres", String::as_str));
                config.port(parsed(vars, "PGPORT", "a port number", 5432)?);
                config.user(vars.get("PGUSER").map_or("barter", String::as_str));
                config.dbname(vars.get("PGDATABASE").map_or("barter", String::as_str));
                config
            }
        };
        if config.get_password().is_none()
            && let Some(password) = vars.get("PGPASSWORD")
        {
            config.password(password);
        }
        config.application_name("barter").connect_timeout(Duration::from_secs(5));
        // A query that hangs must not hold a connection of the pool for ever.
        if config.get_options().is_none() {
            config.options("-c statement_timeout=10s -c idle_in_transaction_session_timeout=30s");
        }
        let password_file = config.get_password().is_none().then(|| vars.get("PGPASSWORD_FILE").map(PathBuf::from));
        Ok(Self { config, password_file: password_file.flatten() })
    }

    /// What to connect with now, the password file's content included.
    pub fn connection(&self) -> Result<tokio_postgres::Config, PasswordError> {
        let mut config = self.config.clone();
        if let Some(path) = &self.password_file {
            let text =
                std::fs::read_to_string(path).map_err(|source| PasswordError::Read { path: path.clone(), source })?;
            let password = text.trim_end_matches(['\r', '\n']);
            if password.is_empty() {
                return Err(PasswordError::Empty { path: path.clone() });
            }
            config.password(password);
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_postgres::config::Host;

    fn config(vars: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::from_vars(vars.iter().map(|(k, v)| (k.to_string(), v.to_string())))
    }

    #[test]
    fn an_empty_environment_means_the_names_of_the_reference_stack() {
        let config = config(&[("PORT", "")]).unwrap();
        assert_eq!(config.listen.to_string(), "0.0.0.0:8081");
        assert_eq!(config.ollama.to_string(), "http://ollama:11434");
        assert_eq!(config.model, "all-minilm");
        let database = config.database.connection().unwrap();
        assert_eq!(database.get_hosts(), [Host::Tcp("postgres".into())]);
        assert_eq!((database.get_user(), database.get_dbname()), (Some("barter"), Some("barter")));
        assert_eq!(database.get_password(), None);
    }

    #[test]
    fn the_password_file_is_read_at_each_connection() {
        let path = std::env::temp_dir().join(format!("barter-password-{}", std::process::id()));
        let config = config(&[("PGPASSWORD_FILE", path.to_str().unwrap())]).unwrap();
        assert!(matches!(config.database.connection(), Err(PasswordError::Read { .. })));
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(config.database.connection(), Err(PasswordError::Empty { .. })));
        std::fs::write(&path, "later\n").unwrap();
        let connection = config.database.connection().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(connection.get_password(), Some("later".as_bytes()));
    }

    #[test]
    fn a_url_with_a_password_needs_no_file() {
        let config =
            config(&[("DATABASE_URL", "postgres://u:p%40ss@db:6000/things"), ("PGPASSWORD_FILE", "/nowhere")]).unwrap();
        let connection = config.database.connection().unwrap();
        assert_eq!(connection.get_hosts(), [Host::Tcp("db".into())]);
        assert_eq!(connection.get_ports(), [6000]);
        assert_eq!(connection.get_password(), Some("p@ss".as_bytes()));
    }

    #[test]
    fn mistakes_name_the_variable_and_no_secret() {
        let message = |vars: &[(&str, &str)]| config(vars).unwrap_err().to_string();
        assert_eq!(message(&[("PORT", "80810")]), r#"PORT="80810" is not a port number"#);
        assert_eq!(message(&[("BIND", "localhost")]), r#"BIND="localhost" is not an IP address"#);
        assert_eq!(message(&[("OLLAMA_URL", "https://x")]), r#"OLLAMA_URL="https://x" is not an http:// URL"#);
        let secret = config(&[("DATABASE_URL", "postgres://u:hunter2@db:port/x")]).unwrap_err();
        assert!(!format!("{secret:?}").contains("hunter2"), "{secret:?}");
    }
}
