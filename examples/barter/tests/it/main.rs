//! The whole application against a real PostgreSQL and the stand-in, all on loopback and started by the stack's own
//! scripts. Pieces that need neither are tested beside their code.

#[path = "../../../../crates/palisade/tests/it/free_ports.rs"]
mod free_ports;
mod processes;

use std::time::Duration;

use barter::http::{self, BaseUrl, Response};
use hyper::Method;
use processes::{App, Cluster, OllamaStandIn, eventually, free_port};
use serde_json::{Value, json};

const TIMEOUT: Duration = Duration::from_secs(10);

struct Client(BaseUrl);

impl Client {
    async fn send(&self, method: Method, path: &str, body: Option<String>) -> Response {
        http::request(&self.0, method, path, body, TIMEOUT).await.unwrap()
    }
    async fn get(&self, path: &str) -> (u16, Value) {
        let response = self.send(Method::GET, path, None).await;
        (response.status.as_u16(), serde_json::from_slice(&response.body).unwrap())
    }
    async fn post(&self, body: &str) -> (u16, Value) {
        let response = self.send(Method::POST, "/api/listings", Some(body.into())).await;
        (response.status.as_u16(), serde_json::from_slice(&response.body).unwrap())
    }
    async fn list(&self, kind: &str, title: &str, text: &str, location: &str) -> i64 {
        let body = json!({ "kind": kind, "title": title, "text": text, "location": location });
        let (status, listing) = self.post(&body.to_string()).await;
        assert_eq!(status, 201, "{listing}");
        listing["id"].as_i64().unwrap()
    }
    async fn matches(&self, id: i64) -> Value {
        let (status, matches) = self.get(&format!("/api/listings/{id}/matches")).await;
        assert_eq!(status, 200, "{matches}");
        matches
    }
}

fn matched_ids(matches: &Value) -> Vec<i64> {
    matches["matches"].as_array().unwrap().iter().map(|found| found["listing"]["id"].as_i64().unwrap()).collect()
}

#[tokio::test]
async fn listings_are_matched_by_meaning_by_words_without_ollama_and_by_meaning_again() {
    let Some(mut cluster) = Cluster::new("listings_are_matched") else { return };
    cluster.start();
    let ollama_port = free_port();
    let mut ollama = OllamaStandIn::start(ollama_port);
    let app = App::start(&cluster, ollama_port);
    let client = Client(app.base.clone());
    app.answers().await;
    let told = async |postgres: &str, ollama: &str| {
        let (status, health) = client.get("/health").await;
        (status, &health["postgres"], &health["ollama"]) == (200, &json!(postgres), &json!(ollama))
    };
    eventually("a healthy application", async || told("up", "up").await).await;
    eventually("the verb to say so", async || app.health_verb()).await;

    // By meaning: the related offer first, at the same place before elsewhere, and no wants.
    let want = client.list("want", "Bike for a child", "20 inch, repairs are no problem", "Leipzig").await;
    let piano = client.list("offer", "Piano lessons", "For beginners of any age", "Leipzig").await;
    let far = client.list("offer", "Child's bike", "20 inch, needs a repair", "Hamburg").await;
    let near = client.list("offer", "Child's bike", "20 inch, needs a repair", " leipzig ").await;
    client.list("want", "Another bike for a child", "", "Leipzig").await;
    eventually("all meanings", async || client.get("/health").await.1["embeddings_pending"] == 0).await;
    let matches = client.matches(want).await;
    assert_eq!(matched_ids(&matches), [near, far, piano], "{matches}");
    assert_eq!((&matches["degraded"], &matches["reason"]), (&json!(false), &Value::Null));
    assert_eq!(matches["ranked_by"], "similarity");
    assert!(matches["matches"][0]["same_location"].as_bool().unwrap());

    // Ollama goes away: posting still works, matches are found by words, and everything says so.
    ollama.stop();
    eventually("health to be degraded", async || told("up", "down").await).await;
    eventually("the verb, as a degraded service can still work", async || app.health_verb()).await;
    let late = client.list("want", "Piano", "wanted: lessons for a beginner", "Halle").await;
    let matches = client.matches(late).await;
    assert_eq!(matched_ids(&matches), [piano], "{matches}");
    assert_eq!((&matches["degraded"], &matches["ranked_by"]), (&json!(true), &json!("text")));
    assert!(matches["reason"].as_str().unwrap().starts_with("Ollama is away"), "{matches}");
    assert!(client.matches(want).await["degraded"].as_bool().unwrap(), "known listings say so too");
    let page = client.send(Method::GET, &format!("/?match={late}"), None).await;
    let page = String::from_utf8_lossy(&page.body).into_owned();
    assert!(page.contains("Matching by words only") && page.contains("Piano lessons"), "{page}");

    // It comes back: what was posted meanwhile gets its embedding.
    let _ollama = OllamaStandIn::start(ollama_port);
    eventually("the late listing to be embedded", async || !client.matches(late).await["degraded"].as_bool().unwrap())
        .await;
    let matches = client.matches(late).await;
    assert_eq!((&matches["ranked_by"], matched_ids(&matches)[0]), (&json!("similarity"), piano), "{matches}");
    assert_eq!(client.get("/health").await.1["embeddings_pending"], 0);

    // PostgreSQL goes away and comes back, with another password as if the secret had been lost.
    cluster.stop();
    eventually("health to be down", async || client.get("/health").await.0 == 503).await;
    assert!(!app.health_verb());
    let (status, error) = client.get("/api/listings").await;
    assert_eq!((status, &error["error"]), (503, &json!("database_unavailable")), "{error}");
    let before = cluster.password();
    cluster.lose_password();
    cluster.start();
    assert_ne!(cluster.password(), before);
    eventually("health to be ok again", async || client.get("/health").await.1["status"] == "ok").await;
    assert_eq!(matched_ids(&client.matches(want).await), [near, far, piano], "nothing was lost");

    assert_eq!(app.stop(), Some(0), "SIGTERM is a clean end");
}

#[tokio::test]
async fn bad_input_is_refused_with_a_reason_and_paging_leaves_nothing_out() {
    let Some(mut cluster) = Cluster::new("bad_input_is_refused") else { return };
    // The application is first, PostgreSQL comes later; Ollama never does.
    let app = App::start(&cluster, free_port());
    let client = Client(app.base.clone());
    app.answers().await;
    let (status, health) = client.get("/health").await;
    assert_eq!((status, &health["status"], &health["postgres"]), (503, &json!("down"), &json!("down")), "{health}");
    cluster.start();
    eventually("PostgreSQL to be found", async || client.get("/health").await.0 == 200).await;

    for (body, status, code) in [
        ("{", 400, "malformed_request"),
        ("\"offer\"", 400, "malformed_request"),
        ("[]", 422, "invalid_listing"),
        (r#"{"kind":"offer","titel":"x"}"#, 400, "malformed_request"),
        (r#"{"kind":5,"title":"x","location":"y"}"#, 400, "malformed_request"),
        (r#"{"kind":"gift","title":"","location":"y"}"#, 422, "invalid_listing"),
        (r#"{"kind":"offer","title":"a\u0000b","location":"y"}"#, 422, "invalid_listing"),
    ] {
        let (got, error) = client.post(body).await;
        assert_eq!((got, &error["error"]), (status, &json!(code)), "{body}: {error}");
    }
    let (_, error) = client.post(r#"{"kind":"gift","title":""}"#).await;
    assert_eq!(error["fields"].as_object().unwrap().keys().collect::<Vec<_>>(), ["kind", "location", "title"]);
    let (status, _) = client.post(&json!({ "text": "x".repeat(64 << 10) }).to_string()).await;
    assert_eq!(status, 413);
    for (path, status) in [
        ("/api/listings/999", 404),
        ("/api/listings/999/matches", 404),
        ("/api/listings/x/matches", 404),
        ("/api/listings?limit=0", 400),
        ("/api/listings?limit=101", 400),
        ("/api/listings?kind=gift", 400),
        ("/api/listings?page=2", 400),
        ("/nowhere", 404),
    ] {
        let (got, error) = client.get(path).await;
        assert_eq!(got, status, "{path}: {error}");
        assert!(error["message"].is_string(), "{path}: {error}");
    }
    assert_eq!(client.send(Method::DELETE, "/api/listings", None).await.status, 405);

    let hostile = "'; DROP TABLE listing; -- & | ! <-> :*";
    let mut posted = Vec::new();
    for number in 0..5 {
        posted.insert(0, client.list("offer", &format!("{hostile} {number}"), "<b>", "x").await);
    }
    let mut seen = Vec::new();
    let mut path = "/api/listings?limit=2".to_string();
    loop {
        let (status, page) = client.get(&path).await;
        assert_eq!(status, 200, "{page}");
        seen.extend(page["listings"].as_array().unwrap().iter().map(|listing| listing["id"].as_i64().unwrap()));
        let Some(before) = page["next_before"].as_i64() else { break };
        path = format!("/api/listings?limit=2&before={before}");
    }
    assert_eq!(seen, posted);
    assert_eq!(client.matches(posted[0]).await["degraded"], true);
    let page = client.send(Method::GET, "/?kind=offer", None).await;
    assert!(page.status.is_success() && !String::from_utf8_lossy(&page.body).contains("<b>"));
}

#[test]
fn a_cluster_whose_making_was_killed_is_made_again() {
    let Some(mut cluster) = Cluster::new("a_cluster_whose_making_was_killed") else { return };
    // At whatever point the kill comes, the next start has to work; these fall into initdb and what follows.
    for after_ms in [50, 300, 600] {
        cluster.start_and_kill(Duration::from_millis(after_ms));
    }
    cluster.start();
    assert_eq!(cluster.leftovers(), Vec::<String>::new());
    let mode = cluster.password_mode();
    assert_eq!(mode & 0o777, 0o640, "{mode:o}");
}
