//! The HTTP side: routes, limits, and errors that say what to do. HTML is written in `page.rs`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{FormRejection, JsonRejection, PathRejection, QueryRejection};
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{DefaultBodyLimit, Form, Path, Query, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Notify, broadcast};

use crate::db::{DbError, Pool};
use crate::http::chain;
use crate::listing::{Draft, Kind, Listing, Mistakes, NewListing};
use crate::ollama::{self, Ollama};
use crate::page::{self, Page};
use crate::store::{self, Embedding};
use crate::{db, matching};

/// Largest request body: the longest listing in four-byte characters, escaped for a form, still fits.
const BODY_BYTES_MAX: usize = 32 << 10;
/// Longest time a request may take, its body included.
const REQUEST: Duration = Duration::from_secs(20);
/// How long a new listing waits for its embedding before it is stored without.
const EMBED: Duration = Duration::from_secs(2);
const HEALTH: Duration = Duration::from_secs(2);
const PAGE_LISTINGS: i64 = 20;
const LISTINGS_MAX: i64 = 100;
const MATCHES: usize = 10;
const MATCHES_MAX: i64 = 50;
/// Nothing that a listener sends is looked at.
const LISTENER_BYTES_MAX: usize = 1 << 10;

/// What the handlers share.
pub struct App {
    /// PostgreSQL.
    pub pool: Pool,
    /// Ollama.
    pub ollama: Ollama,
    /// Wakes the embedder.
    pub wake: Notify,
    /// New listings, as JSON, for those who listen.
    pub posted: broadcast::Sender<Arc<str>>,
}

/// Every route of the service.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(show_page).post(post_form))
        .route("/style.css", get(style))
        .route("/health", get(health))
        .route("/api/listings", get(list).post(post))
        .route("/api/live", any(live))
        .route("/api/listings/{id}", get(show))
        .route("/api/listings/{id}/matches", get(matches))
        .fallback(async || ApiError::not_found("no such page"))
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this address doesn't take that method")
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn(guard_request))
        .with_state(app)
}

/// Bounds a request's time, and tells browsers to be careful with what we send.
async fn guard_request(request: Request, next: Next) -> Response {
    let mut response = tokio::time::timeout(REQUEST, next.run(request)).await.unwrap_or_else(|_| {
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the request took too long").into_response()
    });
    const HEADERS: [(HeaderName, &str); 4] = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// An error as JSON: `{"error": code, "message": for people, "fields": {…}}`.
#[derive(Debug)]
struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    fields: Mistakes,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), fields: Mistakes::new() }
    }
    fn not_found(message: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }
    fn malformed(status: StatusCode, message: String) -> Self {
        Self::new(status, "malformed_request", message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut body = json!({ "error": self.code, "message": self.message });
        if !self.fields.is_empty() {
            body["fields"] = json!(self.fields);
        }
        let mut response = (self.status, Json(body)).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response
    }
}

impl From<Mistakes> for ApiError {
    fn from(fields: Mistakes) -> Self {
        let message = "the listing has mistakes; see `fields`".into();
        Self { status: StatusCode::UNPROCESSABLE_ENTITY, code: "invalid_listing", message, fields }
    }
}

impl From<DbError> for ApiError {
    /// Details are for the log, not for strangers.
    fn from(error: DbError) -> Self {
        eprintln!("barter: a request failed: {}", chain(&error));
        if error.is_temporary() {
            Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "database_unavailable",
                "the database can't be reached right now",
            )
        } else {
            Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "something went wrong on our side")
        }
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        // What is valid JSON but not a listing is the same kind of mistake as JSON that isn't valid.
        let status = match rejection.status() {
            StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
            other => other,
        };
        Self::malformed(status, rejection.body_text())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::malformed(rejection.status(), rejection.body_text())
    }
}

impl From<PathRejection> for ApiError {
    fn from(_: PathRejection) -> Self {
        Self::not_found("a listing's number is a whole number")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    kind: Option<Kind>,
    before: Option<i64>,
    limit: Option<i64>,
}

#[derive(Serialize)]
struct ListAnswer {
    listings: Vec<Listing>,
    /// For the next request's `before`; `null` on the last page.
    next_before: Option<i64>,
}

fn limit_of(given: Option<i64>, default: i64, max: i64) -> Result<i64, ApiError> {
    match given.unwrap_or(default) {
        limit if (1..=max).contains(&limit) => Ok(limit),
        _ => {
            Err(ApiError::malformed(StatusCode::BAD_REQUEST, format!("the limit must be a number between 1 and {max}")))
        }
    }
}

async fn page_of(
    client: &tokio_postgres::Client,
    kind: Option<Kind>,
    before: Option<i64>,
    limit: i64,
) -> Result<ListAnswer, DbError> {
    // One more than asked for shows whether there is a next page.
    let mut listings = store::page(client, kind, before, limit + 1).await?;
    let more = listings.len() as i64 > limit;
    listings.truncate(limit as usize);
    let next_before = listings.last().filter(|_| more).map(|listing| listing.id);
    Ok(ListAnswer { listings, next_before })
}

async fn list(
    State(app): State<Arc<App>>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<ListAnswer>, ApiError> {
    let Query(ListQuery { kind, before, limit }) = query?;
    let limit = limit_of(limit, PAGE_LISTINGS, LISTINGS_MAX)?;
    Ok(Json(page_of(&*app.pool.get().await?, kind, before, limit).await?))
}

async fn show(State(app): State<Arc<App>>, id: Result<Path<i64>, PathRejection>) -> Result<Json<Listing>, ApiError> {
    let Path(id) = id?;
    let found = store::find(&*app.pool.get().await?, id).await?;
    found.map(|(listing, _)| Json(listing)).ok_or_else(|| ApiError::not_found("no such listing"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MatchQuery {
    limit: Option<i64>,
}

async fn matches(
    State(app): State<Arc<App>>,
    id: Result<Path<i64>, PathRejection>,
    query: Result<Query<MatchQuery>, QueryRejection>,
) -> Result<Json<matching::Matches>, ApiError> {
    let (Path(id), Query(MatchQuery { limit })) = (id?, query?);
    let limit = limit_of(limit, MATCHES as i64, MATCHES_MAX)? as usize;
    let found = matching::find(&*app.pool.get().await?, &app.ollama.state(), id, limit).await?;
    found.map(Json).ok_or_else(|| ApiError::not_found("no such listing"))
}

async fn post(State(app): State<Arc<App>>, draft: Result<Json<Draft>, JsonRejection>) -> Result<Response, ApiError> {
    let Json(draft) = draft?;
    let listing = store_listing(&app, &draft.validate()?).await?;
    let location = format!("/api/listings/{}", listing.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(listing)).into_response())
}

/// Stores a listing, with its vector if Ollama is quick and without otherwise.
async fn store_listing(app: &App, new: &NewListing) -> Result<Listing, DbError> {
    let embedding = match app.ollama.state() {
        // Nobody waits for something that wasn't there a moment ago.
        ollama::State::Down { .. } => None,
        _ => app
            .ollama
            .embed(&[new.embedding_input()], EMBED)
            .await
            .ok()
            .and_then(|(model_id, vectors)| Some(Embedding { model_id, vector: vectors.into_iter().next()? })),
    };
    let listing = store::insert(&*app.pool.get().await?, new, embedding.as_ref()).await?;
    if embedding.is_none() {
        app.wake.notify_one();
    }
    if app.posted.receiver_count() > 0
        && let Ok(text) = serde_json::to_string(&listing)
    {
        // Whoever has stopped listening since then misses it.
        let _ = app.posted.send(text.into());
    }
    Ok(listing)
}

/// A WebSocket (RFC 6455) that gets each new listing, one JSON text a message.
async fn live(State(app): State<Arc<App>>, upgrade: WebSocketUpgrade) -> Response {
    let posted = app.posted.subscribe();
    upgrade.max_message_size(LISTENER_BYTES_MAX).on_upgrade(|socket| tell(socket, posted))
}

async fn tell(mut socket: WebSocket, mut posted: broadcast::Receiver<Arc<str>>) {
    loop {
        tokio::select! {
            listing = posted.recv() => match listing {
                Ok(text) => if socket.send(Message::text(&*text)).await.is_err() { return },
                // Too slow: what was missed can be read at `/api/listings`.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            },
            // Pings are answered by the library while it is read.
            message = socket.recv() => if !matches!(message, Some(Ok(_))) { return },
        }
    }
}

#[derive(Deserialize, Default)]
struct PageQuery {
    kind: Option<String>,
    before: Option<i64>,
    #[serde(rename = "match")]
    match_id: Option<i64>,
}

async fn show_page(State(app): State<Arc<App>>, query: Result<Query<PageQuery>, QueryRejection>) -> Response {
    // A mistyped address shows the first page; this is for people.
    let query = query.map(|Query(query)| query).unwrap_or_default();
    render(&app, query, Draft::default(), Mistakes::new()).await
}

async fn post_form(State(app): State<Arc<App>>, form: Result<Form<Draft>, FormRejection>) -> Response {
    let draft = match form {
        Ok(Form(draft)) => draft,
        Err(rejection) => return ApiError::malformed(rejection.status(), rejection.body_text()).into_response(),
    };
    match draft.validate() {
        Err(mistakes) => render(&app, PageQuery::default(), draft, mistakes).await,
        Ok(new) => match store_listing(&app, &new).await {
            // A redirect, so that reloading the page doesn't post again.
            Ok(listing) => Redirect::to(&format!("/?match={}#matches", listing.id)).into_response(),
            Err(error) => unavailable(error),
        },
    }
}

async fn render(app: &App, query: PageQuery, draft: Draft, mistakes: Mistakes) -> Response {
    let kind = query.kind.as_deref().and_then(Kind::parse);
    let status = if mistakes.is_empty() { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
    let content = async {
        let client = app.pool.get().await?;
        let state = app.ollama.state();
        let matches = match query.match_id {
            Some(id) => matching::find(&client, &state, id, MATCHES).await?,
            None => None,
        };
        let ListAnswer { listings, next_before } = page_of(&client, kind, query.before, PAGE_LISTINGS).await?;
        let degraded = matches!(state, ollama::State::Down { .. });
        Ok(Page { kind, listings, next_before, matches, match_asked: query.match_id, draft, mistakes, degraded })
    };
    match content.await {
        Ok(page) => (status, Html(page.to_html())).into_response(),
        Err(error) => unavailable(error),
    }
}

fn unavailable(error: DbError) -> Response {
    let error = ApiError::from(error);
    let html = page::unavailable(&error.message);
    (error.status, [(header::RETRY_AFTER, "2")], Html(html)).into_response()
}

async fn style() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8"), (header::CACHE_CONTROL, "max-age=3600")], page::STYLE)
}

/// The state of each dependency: 503 without PostgreSQL, 200 and `degraded` without Ollama.
async fn health(State(app): State<Arc<App>>) -> Response {
    let (postgres, ollama) = tokio::join!(tokio::time::timeout(HEALTH, check_postgres(&app.pool)), app.ollama.probe());
    let postgres = match postgres {
        Ok(result) => result.map_err(|error| chain(&error)),
        Err(_) => Err(format!("no answer within {HEALTH:?}")),
    };
    let ollama_reason = match &ollama {
        ollama::State::Down { reason } => Some(reason),
        _ => None,
    };
    let (status, word) = match (&postgres, ollama_reason) {
        (Err(_), _) => (StatusCode::SERVICE_UNAVAILABLE, "down"),
        (Ok(_), Some(_)) => (StatusCode::OK, "degraded"),
        (Ok(_), None) => (StatusCode::OK, "ok"),
    };
    let up = |up: bool| if up { "up" } else { "down" };
    let body = json!({
        "status": word,
        "postgres": up(postgres.is_ok()),
        "postgres_reason": postgres.as_ref().err(),
        "ollama": up(ollama_reason.is_none()),
        "ollama_reason": ollama_reason,
        "model": app.ollama.model(),
        "embeddings_pending": postgres.ok(),
        "version": env!("CARGO_PKG_VERSION"),
    });
    (status, Json(body)).into_response()
}

/// How many listings wait for a vector, if PostgreSQL answers at all.
async fn check_postgres(pool: &db::Pool) -> Result<i64, DbError> {
    store::count_pending(&*pool.get().await?, None, None).await
}
