//! Brings the database's tables to what this version wants: numbered steps, each applied once, all in one transaction.
//!
//! A step that was released is never edited; a change is a new step.

use std::time::Duration;

use crate::db::{DbError, Pool};
use crate::http::chain;

/// Number, name and SQL of each step. Numbers count from 1 without gaps.
const STEPS: [(i32, &str, &str); 1] = [(
    1,
    "listings",
    "CREATE TABLE listing (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        kind text NOT NULL CHECK (kind IN ('offer', 'want')),
        title text NOT NULL,
        text text NOT NULL,
        location text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        search tsvector NOT NULL GENERATED ALWAYS AS (
            setweight(to_tsvector('english', title), 'A') || setweight(to_tsvector('english', text), 'B')
        ) STORED,
        embedding real[],
        embedding_model text,
        CHECK ((embedding IS NULL) = (embedding_model IS NULL))
    );
    CREATE INDEX listing_by_kind ON listing (kind, id);
    CREATE INDEX listing_by_word ON listing USING gin (search);
    CREATE INDEX listing_by_model ON listing (embedding_model, id);",
)];

/// Any number, as long as every version uses the same one: two starting instances take turns.
const ADVISORY_LOCK: i64 = 0x62_61_72_74_65_72;

/// Why the tables can't be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A newer version was here; its tables may not be what this one expects.
    #[error("the database has schema version {found}, this program knows up to {known}: run the newer version")]
    Newer {
        /// In the database.
        found: i32,
        /// Highest step of this program.
        known: i32,
    },
    /// A step failed.
    #[error("can't migrate the database")]
    Database(#[from] DbError),
}

/// Applies the missing steps and returns how many there were.
pub async fn migrate(pool: &Pool) -> Result<usize, MigrateError> {
    let mut client = pool.get_unmigrated().await?;
    apply(&mut client).await.map_err(DbError::Query)?
}

async fn apply(client: &mut tokio_postgres::Client) -> Result<Result<usize, MigrateError>, tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&ADVISORY_LOCK]).await?;
    transaction
        .batch_execute(
            "CREATE TABLE IF NOT EXISTS barter_migration (
                version integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now()
            )",
        )
        .await?;
    let found: i32 = transaction.query_one("SELECT coalesce(max(version), 0) FROM barter_migration", &[]).await?.get(0);
    let known = STEPS.len() as i32;
    if found > known {
        return Ok(Err(MigrateError::Newer { found, known }));
    }
    let mut applied = 0;
    for (version, name, sql) in STEPS.iter().filter(|(version, ..)| *version > found) {
        transaction.batch_execute(sql).await?;
        transaction.execute("INSERT INTO barter_migration (version, name) VALUES ($1, $2)", &[version, name]).await?;
        applied += 1;
    }
    transaction.commit().await?;
    Ok(Ok(applied))
}

/// Tries until it works, with growing pauses, because PostgreSQL may still be starting. Only an answer that waiting
/// can't change is an error.
pub async fn migrate_with_patience(pool: &Pool) -> Result<(), MigrateError> {
    let mut pause = Duration::from_millis(100);
    loop {
        match migrate(pool).await {
            Ok(applied) => {
                eprintln!("barter: the database is ready ({applied} migrations applied)");
                pool.set_migrated();
                return Ok(());
            }
            Err(MigrateError::Database(error)) if error.is_temporary() || is_not_set_up_yet(&error) => {
                eprintln!("barter: the database is not there yet, trying again in {pause:?}: {}", chain(&error));
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

/// Unknown role, database or password: whoever sets PostgreSQL up may not have come to it yet.
fn is_not_set_up_yet(error: &DbError) -> bool {
    matches!(error, DbError::Connect(_))
}

#[cfg(test)]
mod tests {
    use super::STEPS;

    #[test]
    fn steps_are_numbered_from_one_without_gaps() {
        assert!(STEPS.iter().zip(1..).all(|((version, ..), expected)| *version == expected));
    }
}
