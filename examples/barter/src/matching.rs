//! Finds what matches a listing: by meaning where vectors exist, by words where they don't, and says which it was.

use serde::Serialize;
use std::collections::BTreeMap;
use tokio_postgres::Client;

use crate::db::DbError;
use crate::listing::Listing;
use crate::ollama::State;
use crate::ranking::{blend, cosine, same_location};
use crate::store::{self, Embedding};

/// So many of the newest listings are compared by meaning. One comparison costs about a microsecond and 1.5 kB, so this
/// bounds what one request can use; a larger barter ring would want an index of vectors.
const CANDIDATES_MAX: i64 = 2_000;

/// How a match was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RankedBy {
    /// Cosine of the embeddings.
    Similarity,
    /// PostgreSQL's full-text rank.
    Text,
}

/// One match.
#[derive(Debug, Serialize)]
pub struct Match {
    /// What matches.
    pub listing: Listing,
    /// 0 to 1; the order of the matches.
    pub score: f32,
    /// Similarity or text rank alone.
    pub likeness: f32,
    /// Whether both are at the same place.
    pub same_location: bool,
    /// How it was found.
    pub ranked_by: RankedBy,
}

/// What matches a listing.
#[derive(Debug, Serialize)]
pub struct Matches {
    /// The listing that matches were asked for.
    pub listing: Listing,
    /// How matches were found: `similarity` also when some could only be found by words.
    pub ranked_by: RankedBy,
    /// Whether the ranking is worse than it should be.
    pub degraded: bool,
    /// Why, when it is.
    pub reason: Option<String>,
    /// Best first.
    pub matches: Vec<Match>,
}

struct Ranked {
    id: i64,
    score: f32,
    likeness: f32,
    same_location: bool,
    ranked_by: RankedBy,
}

/// The best matches of a listing, or `None` if there is no such listing.
pub async fn find(client: &Client, ollama: &State, id: i64, count_max: usize) -> Result<Option<Matches>, DbError> {
    let Some((listing, embedding)) = store::find(client, id).await? else { return Ok(None) };
    let kind = listing.kind.opposite();
    let mut ranked = Vec::new();
    if let Some(Embedding { model_id, vector }) = &embedding {
        for candidate in store::vectors(client, kind, model_id, CANDIDATES_MAX).await? {
            let Some(likeness) = cosine(vector, &candidate.measure) else { continue };
            ranked.push(rank(&listing, candidate.id, &candidate.location, likeness, RankedBy::Similarity));
        }
    }
    let model_id = embedding.as_ref().map(|embedding| embedding.model_id.as_str());
    let words = format!("{} {}", listing.title, listing.text);
    for candidate in store::text_matches(client, kind, &words, model_id, CANDIDATES_MAX).await? {
        ranked.push(rank(&listing, candidate.id, &candidate.location, candidate.measure, RankedBy::Text));
    }
    ranked.sort_by(|a, b| b.score.total_cmp(&a.score).then(b.id.cmp(&a.id)));
    ranked.truncate(count_max);

    let ids: Vec<i64> = ranked.iter().map(|ranked| ranked.id).collect();
    let mut listings: BTreeMap<i64, Listing> =
        store::find_all(client, &ids).await?.into_iter().map(|listing| (listing.id, listing)).collect();
    let matches = ranked
        .into_iter()
        .filter_map(|Ranked { id, score, likeness, same_location, ranked_by }| {
            Some(Match { listing: listings.remove(&id)?, score, likeness, same_location, ranked_by })
        })
        .collect();
    let pending = match model_id {
        Some(model_id) => store::count_pending(client, Some(kind), Some(model_id)).await?,
        None => 0,
    };
    let reason = reason(ollama, embedding.is_some(), pending);
    let ranked_by = if embedding.is_some() { RankedBy::Similarity } else { RankedBy::Text };
    Ok(Some(Matches { listing, ranked_by, degraded: reason.is_some(), reason, matches }))
}

fn rank(listing: &Listing, id: i64, location: &str, likeness: f32, ranked_by: RankedBy) -> Ranked {
    let same_location = same_location(&listing.location, location);
    Ranked { id, score: blend(likeness, same_location), likeness, same_location, ranked_by }
}

/// Why the ranking isn't as good as it could be, if so.
fn reason(ollama: &State, embedded: bool, pending: i64) -> Option<String> {
    match (ollama, embedded, pending) {
        (State::Down { reason }, true, _) => {
            Some(format!("Ollama is away, so newer listings are found by their words only: {reason}"))
        }
        (State::Down { reason }, false, _) => Some(format!("Ollama is away, so words are compared only: {reason}")),
        (_, false, _) => Some("this listing has no embedding yet, so words are compared only".into()),
        (_, true, 0) => None,
        (_, true, 1) => Some("1 listing has no embedding yet and is found by its words only".into()),
        (_, true, count) => Some(format!("{count} listings have no embedding yet and are found by their words only")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_full_ranking_is_not_degraded() {
        let up = State::Up { model_id: "m@1".into() };
        let down = State::Down { reason: "connection refused".into() };
        assert_eq!(reason(&up, true, 0), None);
        assert!(reason(&up, true, 2).unwrap().starts_with("2 listings"));
        assert!(reason(&up, false, 0).unwrap().contains("no embedding yet"));
        for embedded in [true, false] {
            assert!(reason(&down, embedded, 0).unwrap().ends_with("connection refused"));
        }
    }
}
