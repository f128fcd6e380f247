//! Gives every listing its vector, sooner or later: those posted while Ollama was away get theirs when it is back, and
//! all get a new one when the model changes.
//!
//! It is the only task that writes vectors of stored listings; requests are never held up by it.

use std::time::Duration;

use tokio::sync::Notify;

use crate::db::{DbError, Pool};
use crate::http::chain;
use crate::listing::embedding_input;
use crate::ollama::{Ollama, State};
use crate::store::{self, Embedding};

/// Between two looks at Ollama.
const INTERVAL: Duration = Duration::from_secs(2);
/// Listings in one request to Ollama.
const BATCH: i64 = 16;
/// The first request after a start also loads the model.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs for ever; `wake` makes it look at once.
pub async fn run(pool: &Pool, ollama: &Ollama, wake: &Notify) {
    loop {
        if let State::Up { model_id } = ollama.probe().await {
            match catch_up(pool, ollama, &model_id).await {
                Ok(0) | Err(DbError::Starting) => {}
                Ok(count) => eprintln!("barter: {count} listings got their embedding"),
                Err(error) => eprintln!("barter: can't fill in embeddings now: {}", chain(&error)),
            }
        }
        let _ = tokio::time::timeout(INTERVAL, wake.notified()).await;
    }
}

/// Embeds what has no vector by this model, batch after batch, until nothing is left or Ollama fails.
async fn catch_up(pool: &Pool, ollama: &Ollama, model_id: &str) -> Result<usize, DbError> {
    let (mut count, mut after) = (0, 0);
    loop {
        let batch = store::pending(&*pool.get().await?, model_id, after, BATCH).await?;
        let Some((last, ..)) = batch.last() else { return Ok(count) };
        after = *last;
        let texts: Vec<String> = batch.iter().map(|(_, title, text)| embedding_input(title, text)).collect();
        // A failure is already logged and part of Ollama's state; the next look tries again.
        let Ok((used_model_id, vectors)) = ollama.embed(&texts, TIMEOUT).await else { return Ok(count) };
        // Not held while Ollama thinks: requests need the connections.
        let client = pool.get().await?;
        for ((id, ..), vector) in batch.iter().zip(vectors) {
            store::set_embedding(&client, *id, &Embedding { model_id: used_model_id.clone(), vector }).await?;
            count += 1;
        }
    }
}
