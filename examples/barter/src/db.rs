//! A small pool of PostgreSQL connections: made when needed, kept while they work, never more than a few.
//!
//! No queries of the application stand here; see `store.rs` and `migrate.rs`.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::{Client, NoTls};

use crate::config::{Database, PasswordError};
use crate::http::chain;

/// Connections at most; a small machine's PostgreSQL allows 100 for everybody.
const CONNECTIONS_MAX: usize = 8;
/// How long a request waits for a free one.
const WAIT: Duration = Duration::from_secs(3);
/// Connecting includes looking up the name, which `connect_timeout` doesn't bound.
const CONNECT: Duration = Duration::from_secs(6);

/// Why the database can't be used, or didn't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// Migrations haven't run yet.
    #[error("the database is not ready yet")]
    Starting,
    /// Every connection is busy.
    #[error("no database connection became free within {0:?}")]
    Busy(Duration),
    /// The password file isn't there yet, or isn't readable.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// No connection.
    #[error("can't connect to PostgreSQL")]
    Connect(#[source] tokio_postgres::Error),
    /// No connection in time.
    #[error("PostgreSQL did not take a connection within {0:?}")]
    ConnectTimeout(Duration),
    /// A statement failed.
    #[error("a PostgreSQL statement failed")]
    Query(#[from] tokio_postgres::Error),
    /// A stored row isn't what this version writes.
    #[error("listing {id} has an unusable {column}")]
    Row {
        /// The listing.
        id: i64,
        /// What of it.
        column: &'static str,
    },
}

impl DbError {
    /// Whether trying again later may help, as opposed to a fault of this program.
    pub fn is_temporary(&self) -> bool {
        match self {
            DbError::Query(error) => match error.as_db_error() {
                // Connection trouble, lack of resources, operator intervention (shutdown, timeout).
                Some(error) => matches!(&error.code().code()[..2], "08" | "53" | "57"),
                None => true,
            },
            DbError::Row { .. } => false,
            _ => true,
        }
    }
}

/// The pool. Clones share it.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    database: Database,
    idle: Mutex<Vec<Client>>,
    permits: Arc<Semaphore>,
    migrated: AtomicBool,
}

/// A connection that goes back to the pool when it is dropped.
pub struct Pooled {
    // Present until drop.
    client: Option<Client>,
    shared: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    /// Connects nowhere yet.
    pub fn new(database: Database) -> Self {
        Self {
            shared: Arc::new(Shared {
                database,
                idle: Mutex::new(Vec::new()),
                permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
                migrated: AtomicBool::new(false),
            }),
        }
    }

    /// From now on requests may use the database.
    pub fn set_migrated(&self) {
        self.shared.migrated.store(true, Ordering::Release);
    }

    /// A connection to a database whose tables are as this version wants them.
    pub async fn get(&self) -> Result<Pooled, DbError> {
        if !self.shared.migrated.load(Ordering::Acquire) {
            return Err(DbError::Starting);
        }
        self.get_unmigrated().await
    }

    /// A connection, whatever the tables are like.
    pub async fn get_unmigrated(&self) -> Result<Pooled, DbError> {
        let permit = tokio::time::timeout(WAIT, self.shared.permits.clone().acquire_owned()).await;
        // The semaphore is never closed, so both failures mean "none in time".
        let Ok(Ok(permit)) = permit else { return Err(DbError::Busy(WAIT)) };
        let idle = {
            let mut idle = self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain(|client| !client.is_closed());
            idle.pop()
        };
        let client = match idle {
            Some(client) => client,
            None => self.connect().await?,
        };
        Ok(Pooled { client: Some(client), shared: self.shared.clone(), _permit: permit })
    }

    async fn connect(&self) -> Result<Client, DbError> {
        let config = self.shared.database.connection()?;
        let (client, connection) = tokio::time::timeout(CONNECT, config.connect(NoTls))
            .await
            .map_err(|_| DbError::ConnectTimeout(CONNECT))?
            .map_err(DbError::Connect)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("barter: a PostgreSQL connection ended: {}", chain(&error));
            }
        });
        Ok(client)
    }
}

impl Deref for Pooled {
    type Target = Client;
    fn deref(&self) -> &Client {
        self.client.as_ref().expect("present until drop")
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut Client {
        self.client.as_mut().expect("present until drop")
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let Some(client) = self.client.take().filter(|client| !client.is_closed()) {
            self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).push(client);
        }
    }
}
