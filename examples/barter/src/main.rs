//! The barter service's program: reads the environment, serves until it is told to stop, maps failures to exit codes.
//!
//! What the service does is in the library beside it.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Notify, broadcast};

use barter::config::Config;
use barter::db::Pool;
use barter::http::{self, BaseUrl, chain};
use barter::ollama::Ollama;
use barter::web::App;
use barter::{embedder, migrate, signals, web};

const USAGE: &str = "\
usage: barter [serve]    serve HTTP until SIGTERM or SIGINT
       barter health     ask the running service; exit code 0 if it can work, 1 if not

environment:
  BIND, PORT                     where to listen (0.0.0.0, 8081)
  DATABASE_URL                   PostgreSQL, or:
  PGHOST PGPORT PGUSER PGDATABASE PGPASSWORD (postgres, 5432, barter, barter, none)
  PGPASSWORD_FILE                file with the password, read for each connection
  OLLAMA_URL, OLLAMA_MODEL       http://ollama:11434, all-minilm
";

/// Requests get this long to finish after a stop signal. Compose kills after 10 s unless told otherwise.
const DRAIN: Duration = Duration::from_secs(8);

enum Verb {
    Serve,
    Health,
    Print(&'static str),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let verb = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] | ["serve"] => Verb::Serve,
        ["health"] => Verb::Health,
        ["-h" | "--help" | "help"] => Verb::Print(USAGE),
        ["-V" | "--version"] => Verb::Print(concat!("barter ", env!("CARGO_PKG_VERSION"), "\n")),
        _ => {
            eprint!("barter: unknown arguments\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("barter: {}", chain(&error));
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("barter: can't start: {error}");
            return ExitCode::from(3);
        }
    };
    let done = match verb {
        Verb::Print(text) => {
            print!("{text}");
            Ok(())
        }
        Verb::Serve => runtime.block_on(serve(config)),
        Verb::Health => runtime.block_on(health(&config)),
    };
    // Name look-ups block a thread and can't be cancelled; don't wait for them.
    runtime.shutdown_timeout(Duration::from_millis(100));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("barter: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config) -> Result<(), String> {
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|error| format!("can't listen on {}: {error}", config.listen))?;
    let address = listener.local_addr().map_err(|error| format!("can't tell where it listens: {error}"))?;
    let app = Arc::new(App {
        pool: Pool::new(config.database),
        ollama: Ollama::new(config.ollama, config.model),
        wake: Notify::new(),
        posted: broadcast::Sender::new(64),
    });
    eprintln!("barter: listening on {address}");

    let (stop, stopped) = tokio::sync::watch::channel(false);
    let drain_from = stopped.clone();
    let server = axum::serve(listener, web::router(app.clone()))
        .with_graceful_shutdown(async move { wait(drain_from).await })
        .into_future();
    let mut server = tokio::spawn(server);
    // Health and the page answer, with 503, while the database is still coming up.
    let background = async {
        migrate::migrate_with_patience(&app.pool).await.map_err(|error| chain(&error))?;
        embedder::run(&app.pool, &app.ollama, &app.wake).await;
        Ok::<(), String>(())
    };
    let failure = tokio::select! {
        signal = signals::stop_asked() => {
            eprintln!("barter: {signal}: finishing open requests");
            None
        }
        ended = background => ended.err(),
        ended = &mut server => return Err(format!("the server stopped on its own: {ended:?}")),
    };
    // The receivers may be gone already; then there is nobody to tell.
    let _ = stop.send(true);
    if tokio::time::timeout(DRAIN, server).await.is_err() {
        eprintln!("barter: some requests were not done after {DRAIN:?}; stopping anyway");
    }
    match failure {
        Some(message) => Err(message),
        None => {
            eprintln!("barter: stopped");
            Ok(())
        }
    }
}

async fn wait(mut stopped: tokio::sync::watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop as well.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

async fn health(config: &Config) -> Result<(), String> {
    let host = match config.listen.ip() {
        ip if ip.is_unspecified() => "127.0.0.1".to_string(),
        ip => ip.to_string(),
    };
    let base = BaseUrl::new(&host, config.listen.port());
    let response = http::request(&base, hyper::Method::GET, "/health", None, Duration::from_secs(5))
        .await
        .map_err(|error| chain(&error))?;
    let body = String::from_utf8_lossy(&response.body);
    if response.status.is_success() {
        println!("{body}");
        Ok(())
    } else {
        Err(format!("{}: {body}", response.status))
    }
}
