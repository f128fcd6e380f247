//! A stand-in for Ollama where `ollama` isn't installed: the same HTTP API as far as the barter service needs it, with a
//! hashed-n-gram embedding in place of a language model.
//!
//! It says what it is wherever the API lets it: in its version, in its model's details, in its log. It runs no model,
//! downloads nothing and has none of Ollama's other endpoints.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use barter::embedding::{self, DIMENSIONS};
use barter::http::{self, BaseUrl};
use barter::signals;

const USAGE: &str = "\
usage: ollama-stand-in [serve]    serve Ollama's API with hashed n-grams instead of a model
       ollama-stand-in health     ask the running one; exit code 0 if it is there

environment:
  OLLAMA_HOST               where to listen (0.0.0.0:11434)
  OLLAMA_STAND_IN_MODEL     the one model name it answers to (all-minilm)
";

/// Changes whenever the same text would get another vector, so that stored vectors are not compared across versions.
const DIGEST: &str = "0001ba47e757a4d10000000000000000000000000000000000000000000000ff";
const VERSION: &str = concat!("0.0.0-barter-stand-in-", env!("CARGO_PKG_VERSION"));
const BODY_BYTES_MAX: usize = 4 << 20;
const DRAIN: Duration = Duration::from_secs(3);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let host = std::env::var("OLLAMA_HOST").unwrap_or_default();
    let Some(address) = listen_address(&host) else {
        eprintln!("ollama-stand-in: OLLAMA_HOST={host:?} is not an address with an optional port");
        return ExitCode::from(2);
    };
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] | ["serve"] => serve(address).await,
        ["health"] => health(address).await,
        ["-h" | "--help"] => {
            print!("{USAGE}");
            Ok(())
        }
        _ => {
            eprint!("ollama-stand-in: unknown arguments\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("ollama-stand-in: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Understands what Ollama does: an address, a port, both, with or without `http://`.
fn listen_address(host: &str) -> Option<SocketAddr> {
    let host = host.trim().trim_start_matches("http://").trim_end_matches('/');
    let whole = match host {
        "" => "0.0.0.0:11434".to_string(),
        port if port.starts_with(':') && !port.starts_with("::") => format!("0.0.0.0{port}"),
        host => host.replace("localhost", "127.0.0.1"),
    };
    whole
        .parse()
        .ok()
        .or_else(|| whole.parse().ok().map(|ip| SocketAddr::new(ip, 11434)))
        .or_else(|| format!("{whole}:11434").parse().ok())
}

async fn serve(address: SocketAddr) -> Result<(), String> {
    let model = std::env::var("OLLAMA_STAND_IN_MODEL").ok().filter(|name| !name.is_empty());
    let model: Arc<str> = model.unwrap_or_else(|| "all-minilm".into()).into();
    let listener = TcpListener::bind(address).await.map_err(|error| format!("can't listen on {address}: {error}"))?;
    let listening = listener.local_addr().map_err(|error| format!("can't tell where it listens: {error}"))?;
    eprintln!(
        "ollama-stand-in: listening on {listening}; answers for the model {model} with hashed n-grams, not with a language model"
    );
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let server = axum::serve(listener, router(model)).with_graceful_shutdown(async move {
        // An error means that the sender is gone, which is a stop as well.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    });
    let mut server = tokio::spawn(server.into_future());
    tokio::select! {
        _ = signals::stop_asked() => {}
        ended = &mut server => return Err(format!("the server stopped on its own: {ended:?}")),
    }
    // The receiver may be gone already; then there is nobody to tell.
    let _ = stop.send(true);
    // Whoever keeps a connection open longer has had their time.
    let _ = tokio::time::timeout(DRAIN, server).await;
    Ok(())
}

async fn health(address: SocketAddr) -> Result<(), String> {
    let host = if address.ip().is_unspecified() { "127.0.0.1".into() } else { address.ip().to_string() };
    let base = BaseUrl::new(&host, address.port());
    let answer = http::request(&base, hyper::Method::GET, "/api/version", None, Duration::from_secs(3)).await;
    match answer {
        Ok(response) if response.status.is_success() => Ok(()),
        Ok(response) => Err(format!("answered {}", response.status)),
        Err(error) => Err(http::chain(&error)),
    }
}

fn router(model: Arc<str>) -> Router {
    Router::new()
        .route("/", get(async || "Ollama is running"))
        .route("/api/version", get(async || Json(json!({ "version": VERSION }))))
        .route("/api/tags", get(tags))
        .route("/api/embed", post(embed))
        .fallback(async || (StatusCode::NOT_FOUND, "404 page not found"))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(model)
}

async fn tags(State(model): State<Arc<str>>) -> Json<Value> {
    let name = if model.contains(':') { model.to_string() } else { format!("{model}:latest") };
    Json(json!({ "models": [{
        "name": name,
        "model": name,
        "modified_at": "1970-01-01T00:00:00Z",
        "size": 0,
        "digest": DIGEST,
        "details": {
            "parent_model": "", "format": "none", "family": "hashed-n-grams-stand-in",
            "families": ["hashed-n-grams-stand-in"], "parameter_size": "0", "quantization_level": "none",
        },
    }]}))
}

#[derive(Deserialize)]
struct EmbedRequest {
    #[serde(default)]
    model: String,
    #[serde(default)]
    input: Value,
    dimensions: Option<usize>,
}

fn refuse(status: StatusCode, message: impl Into<String>) -> Response {
    (status, Json(json!({ "error": message.into() }))).into_response()
}

async fn embed(State(model): State<Arc<str>>, request: Result<Json<EmbedRequest>, JsonRejection>) -> Response {
    let started = Instant::now();
    let request = match request {
        Ok(Json(request)) => request,
        Err(rejection) => return refuse(rejection.status(), rejection.body_text()),
    };
    let base_name = |name: &str| name.strip_suffix(":latest").unwrap_or(name).to_string();
    if request.model.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "model is required");
    }
    if base_name(&request.model) != base_name(&model) {
        return refuse(StatusCode::NOT_FOUND, format!("model {:?} not found, try pulling it first", request.model));
    }
    let texts: Option<Vec<&str>> = match &request.input {
        Value::Null => Some(Vec::new()),
        Value::String(text) => Some(vec![text]),
        Value::Array(items) => items.iter().map(Value::as_str).collect(),
        _ => None,
    };
    let Some(texts) = texts else { return refuse(StatusCode::BAD_REQUEST, "invalid input type") };
    let dimensions = request.dimensions.unwrap_or(DIMENSIONS);
    if !(1..=DIMENSIONS).contains(&dimensions) {
        return refuse(StatusCode::BAD_REQUEST, format!("dimensions must be between 1 and {DIMENSIONS}"));
    }
    let embeddings: Vec<Vec<f32>> = texts
        .iter()
        .map(|text| {
            let mut vector = embedding::embed(text);
            vector.truncate(dimensions);
            embedding::normalise(&mut vector);
            vector
        })
        .collect();
    let words: usize = texts.iter().map(|text| text.split_whitespace().count()).sum();
    Json(json!({
        "model": request.model,
        "embeddings": embeddings,
        "total_duration": started.elapsed().as_nanos() as u64,
        "load_duration": 0,
        "prompt_eval_count": words,
    }))
    .into_response()
}

#[cfg(test)]
mod tests {
    use super::listen_address;

    #[test]
    fn ollama_host_is_read_as_ollama_reads_it() {
        for (host, address) in [
            ("", "0.0.0.0:11434"),
            ("0.0.0.0", "0.0.0.0:11434"),
            ("127.0.0.1:5000", "127.0.0.1:5000"),
            ("http://127.0.0.1:5000/", "127.0.0.1:5000"),
            ("localhost", "127.0.0.1:11434"),
            (":5000", "0.0.0.0:5000"),
            ("::1", "[::1]:11434"),
            ("[::]:5000", "[::]:5000"),
            ("[::1]", "[::1]:11434"),
        ] {
            assert_eq!(listen_address(host), Some(address.parse().unwrap()), "{host:?}");
        }
        assert_eq!(listen_address("example.org"), None);
        assert_eq!(listen_address("127.0.0.1:99999"), None);
    }
}
