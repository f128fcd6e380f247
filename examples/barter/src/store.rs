//! The SQL of the application: storing and reading listings and their vectors.
//!
//! No decision about ranking beyond PostgreSQL's own text rank is made here.

use tokio_postgres::{Client, Row};

use crate::db::DbError;
use crate::listing::{Kind, Listing, NewListing};

/// Columns of a [`Listing`], in the order that [`listing`] reads them.
const COLUMNS: &str = "id, kind, title, text, location, \
    to_char(created_at AT TIME ZONE 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), embedding IS NOT NULL";

/// A vector and the model that made it.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// Model with digest.
    pub model_id: String,
    /// Its vector.
    pub vector: Vec<f32>,
}

/// A listing that could match, with how alike it is in words or the vector to find out.
pub struct Candidate<T> {
    /// The listing.
    pub id: i64,
    /// Where it is.
    pub location: String,
    /// Vector or text rank.
    pub measure: T,
}

fn listing(row: &Row) -> Result<Listing, DbError> {
    let id = row.get(0);
    let kind = Kind::parse(row.get(1)).ok_or(DbError::Row { id, column: "kind" })?;
    Ok(Listing {
        id,
        kind,
        title: row.get(2),
        text: row.get(3),
        location: row.get(4),
        created_at: row.get(5),
        embedded: row.get(6),
    })
}

/// Stores a new listing.
pub async fn insert(client: &Client, new: &NewListing, embedding: Option<&Embedding>) -> Result<Listing, DbError> {
    let sql = format!(
        "INSERT INTO listing (kind, title, text, location, embedding, embedding_model)
         VALUES ($1, $2, $3, $4, $5, $6) RETURNING {COLUMNS}"
    );
    let vector = embedding.map(|embedding| &embedding.vector);
    let model = embedding.map(|embedding| &embedding.model_id);
    let row =
        client.query_one(&sql, &[&new.kind.as_str(), &new.title, &new.text, &new.location, &vector, &model]).await?;
    listing(&row)
}

/// The newest listings below `before`.
pub async fn page(
    client: &Client,
    kind: Option<Kind>,
    before: Option<i64>,
    count_max: i64,
) -> Result<Vec<Listing>, DbError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM listing
         WHERE ($1::text IS NULL OR kind = $1) AND ($2::bigint IS NULL OR id < $2) ORDER BY id DESC LIMIT $3"
    );
    let rows = client.query(&sql, &[&kind.map(Kind::as_str), &before, &count_max]).await?;
    rows.iter().map(listing).collect()
}

/// One listing with its vector.
pub async fn find(client: &Client, id: i64) -> Result<Option<(Listing, Option<Embedding>)>, DbError> {
    let sql = format!("SELECT {COLUMNS}, embedding_model, embedding FROM listing WHERE id = $1");
    let Some(row) = client.query_opt(&sql, &[&id]).await? else { return Ok(None) };
    let embedding = match (row.get(7), row.get(8)) {
        (Some(model_id), Some(vector)) => Some(Embedding { model_id, vector }),
        _ => None,
    };
    Ok(Some((listing(&row)?, embedding)))
}

/// Listings by number, in no particular order.
pub async fn find_all(client: &Client, ids: &[i64]) -> Result<Vec<Listing>, DbError> {
    let rows = client.query(&format!("SELECT {COLUMNS} FROM listing WHERE id = ANY($1)"), &[&ids]).await?;
    rows.iter().map(listing).collect()
}

/// The newest listings of a kind that have a vector by this model.
pub async fn vectors(
    client: &Client,
    kind: Kind,
    model_id: &str,
    count_max: i64,
) -> Result<Vec<Candidate<Vec<f32>>>, DbError> {
    let rows = client
        .query(
            "SELECT id, location, embedding FROM listing
             WHERE kind = $1 AND embedding_model = $2 ORDER BY id DESC LIMIT $3",
            &[&kind.as_str(), &model_id, &count_max],
        )
        .await?;
    Ok(rows.iter().map(|row| Candidate { id: row.get(0), location: row.get(1), measure: row.get(2) }).collect())
}

/// Listings of a kind that share a word with `text`, best first, with PostgreSQL's text rank from 0 to 1. With
/// `model_id`, only those that have no vector by it.
pub async fn text_matches(
    client: &Client,
    kind: Kind,
    text: &str,
    model_id: Option<&str>,
    count_max: i64,
) -> Result<Vec<Candidate<f32>>, DbError> {
    // `plainto_tsquery` joins words with "and"; a match by words means any of them. 32 maps ranks to 0…1.
    let rows = client
        .query(
            "WITH wanted AS (SELECT replace(plainto_tsquery('english', $2)::text, '&', '|')::tsquery AS query)
             SELECT id, location, ts_rank(search, query, 32) FROM listing, wanted
             WHERE kind = $1 AND search @@ query AND ($3::text IS NULL OR embedding_model IS DISTINCT FROM $3)
             ORDER BY 3 DESC, id DESC LIMIT $4",
            &[&kind.as_str(), &text, &model_id, &count_max],
        )
        .await?;
    Ok(rows.iter().map(|row| Candidate { id: row.get(0), location: row.get(1), measure: row.get(2) }).collect())
}

/// How many listings (of a kind) have no vector by this model; `None`: no vector at all.
pub async fn count_pending(client: &Client, kind: Option<Kind>, model_id: Option<&str>) -> Result<i64, DbError> {
    let row = client
        .query_one(
            "SELECT count(*) FROM listing WHERE ($1::text IS NULL OR kind = $1)
             AND (embedding_model IS NULL OR embedding_model <> $2)",
            &[&kind.map(Kind::as_str), &model_id],
        )
        .await?;
    Ok(row.get(0))
}

/// The oldest listings after `after` without a vector by this model: number, title, text.
pub async fn pending(
    client: &Client,
    model_id: &str,
    after: i64,
    count_max: i64,
) -> Result<Vec<(i64, String, String)>, DbError> {
    let rows = client
        .query(
            "SELECT id, title, text FROM listing
             WHERE embedding_model IS DISTINCT FROM $1 AND id > $2 ORDER BY id LIMIT $3",
            &[&model_id, &after, &count_max],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}

/// Stores a listing's vector.
pub async fn set_embedding(client: &Client, id: i64, embedding: &Embedding) -> Result<(), DbError> {
    client
        .execute(
            "UPDATE listing SET embedding = $2, embedding_model = $3 WHERE id = $1",
            &[&id, &embedding.vector, &embedding.model_id],
        )
        .await?;
    Ok(())
}
