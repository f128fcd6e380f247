//! Speaks Ollama's HTTP API, and remembers whether it was there last time.
//!
//! What is embedded and when is decided in `embedder.rs` and `web.rs`.

use hyper::{Method, StatusCode};
use serde::Deserialize;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use crate::http::{self, BaseUrl, HttpError, Response, chain};

/// A probe only lists models.
const PROBE: Duration = Duration::from_secs(2);
/// Longest vector that is taken; the largest embedding models have 8,192 dimensions.
const DIMENSIONS_MAX: usize = 8_192;

/// Whether texts can be embedded now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody asked yet.
    Unknown,
    /// It answered and has the model.
    Up {
        /// The model with its digest. Vectors can only be compared when this is the same.
        model_id: String,
    },
    /// It can't embed.
    Down {
        /// Why, for people.
        reason: String,
    },
}

/// Why Ollama didn't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum OllamaError {
    /// No answer.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// An answer that says no.
    #[error("Ollama answered {status}: {message}")]
    Refused {
        /// Status code.
        status: StatusCode,
        /// Its `error`, shortened.
        message: String,
    },
    /// An answer that isn't what its API promises.
    #[error("Ollama's answer is not understood: {0}")]
    Nonsense(String),
    /// `ollama pull` is needed.
    #[error("Ollama has no model {0:?} (`ollama pull {0}` gets it)")]
    NoModel(String),
}

/// The client. Shared by reference.
pub struct Ollama {
    base: BaseUrl,
    model: String,
    state: RwLock<State>,
}

#[derive(Deserialize)]
struct Tags {
    models: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    name: String,
    digest: String,
}

#[derive(Deserialize)]
struct Embedded {
    embeddings: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

impl Ollama {
    /// Connects nowhere yet.
    pub fn new(base: BaseUrl, model: String) -> Self {
        Self { base, model, state: RwLock::new(State::Unknown) }
    }

    /// The model that was asked for.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// What the last probe or embedding showed.
    pub fn state(&self) -> State {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks Ollama whether it is there and has the model.
    pub async fn probe(&self) -> State {
        let state = match self.find_model().await {
            Ok(model_id) => State::Up { model_id },
            Err(error) => State::Down { reason: chain(&error) },
        };
        self.set(state.clone());
        state
    }

    /// One vector for each text, together with the model that made them; within `timeout`.
    pub async fn embed(&self, texts: &[String], timeout: Duration) -> Result<(String, Vec<Vec<f32>>), OllamaError> {
        let model_id = match self.state() {
            State::Up { model_id } => model_id,
            _ => self.find_model().await?,
        };
        let body = serde_json::json!({ "model": self.model, "input": texts }).to_string();
        let vectors = http::request(&self.base, Method::POST, "/api/embed", Some(body), timeout)
            .await
            .map_err(OllamaError::Http)
            .and_then(|response| read_embeddings(response, texts.len()));
        self.set(match &vectors {
            Ok(_) => State::Up { model_id: model_id.clone() },
            Err(error) => State::Down { reason: chain(error) },
        });
        Ok((model_id, vectors?))
    }

    async fn find_model(&self) -> Result<String, OllamaError> {
        let response = http::request(&self.base, Method::GET, "/api/tags", None, PROBE).await?;
        let tags: Tags = read(response)?;
        let latest = format!("{}:latest", self.model);
        let model = tags.models.into_iter().find(|model| model.name == self.model || model.name == latest);
        let model = model.ok_or_else(|| OllamaError::NoModel(self.model.clone()))?;
        let digest: String = model.digest.chars().take(12).collect();
        Ok(format!("{}@{digest}", self.model))
    }

    fn set(&self, state: State) {
        let mut current = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if *current != state {
            match &state {
                State::Up { model_id } => eprintln!("barter: Ollama is there with {model_id}"),
                State::Down { reason } => eprintln!("barter: Ollama is away, matching by words only: {reason}"),
                State::Unknown => {}
            }
            *current = state;
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(response: Response) -> Result<T, OllamaError> {
    if response.status != StatusCode::OK {
        let message = serde_json::from_slice::<Refusal>(&response.body)
            .map_or_else(|_| String::from_utf8_lossy(&response.body).into_owned(), |refusal| refusal.error);
        return Err(OllamaError::Refused { status: response.status, message: message.chars().take(200).collect() });
    }
    serde_json::from_slice(&response.body).map_err(|error| OllamaError::Nonsense(error.to_string()))
}

fn read_embeddings(response: Response, texts: usize) -> Result<Vec<Vec<f32>>, OllamaError> {
    let Embedded { embeddings } = read(response)?;
    let dimensions = embeddings.first().map_or(0, Vec::len);
    if embeddings.len() != texts || dimensions == 0 || dimensions > DIMENSIONS_MAX {
        return Err(OllamaError::Nonsense(format!(
            "{} embeddings of {dimensions} dimensions for {texts} texts",
            embeddings.len()
        )));
    }
    if embeddings.iter().any(|vector| vector.len() != dimensions || vector.iter().any(|x| !x.is_finite())) {
        return Err(OllamaError::Nonsense("embeddings that differ in length or aren't numbers".into()));
    }
    Ok(embeddings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Response {
        Response { status: StatusCode::from_u16(status).unwrap(), body: body.to_string().into() }
    }

    #[test]
    fn good_embeddings_are_taken_and_bad_ones_are_not() {
        assert_eq!(read_embeddings(answer(200, r#"{"embeddings":[[1,2],[3,4]]}"#), 2).unwrap()[1], [3.0, 4.0]);
        for bad in [
            r#"{"embeddings":[[1,2]]}"#,
            r#"{"embeddings":[[1,2],[3]]}"#,
            r#"{"embeddings":[[],[]]}"#,
            r#"{"embeddings":[[1e39],[1]]}"#,
            r#"{"embedding":[1]}"#,
            "<html>",
        ] {
            assert!(matches!(read_embeddings(answer(200, bad), 2), Err(OllamaError::Nonsense(_))), "{bad}");
        }
    }

    #[test]
    fn a_refusal_says_what_ollama_said() {
        let error = read_embeddings(answer(404, r#"{"error":"model \"x\" not found"}"#), 1).unwrap_err();
        assert_eq!(error.to_string(), r#"Ollama answered 404 Not Found: model "x" not found"#);
    }
}
