//! What becomes of a request: which route it takes, which instance answers, and what both sides are told.

mod body;
mod clock;
mod head;
mod http1;
mod pool;
mod routes;

pub(crate) use body::Body;
pub(crate) use clock::{Clock, TICK_MS};

use crate::server::Client;
use http1::ExchangeError;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use palisade_core::edge::{Settings, Upstreams};
use pool::{Group, Instance};
use routes::{Found, Routes};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// One worker's proxy.
pub(crate) struct Proxy {
    pub(crate) clock: Rc<Clock>,
    routes: Routes,
    /// By upstream as written, `service:port`.
    groups: BTreeMap<String, Rc<Group>>,
    /// Answers by status class, from 1xx on.
    answered: [Cell<u64>; 5],
    /// Room for heads that are sent to upstreams.
    scratch: RefCell<Vec<Vec<u8>>>,
}

impl Proxy {
    pub(crate) fn new(settings: &Settings) -> Self {
        let clock = Rc::new(Clock::new());
        let mut groups: BTreeMap<String, Rc<Group>> = BTreeMap::new();
        let routes = Routes::new(&settings.edge, |upstream| {
            Rc::clone(groups.entry(upstream.to_string()).or_insert_with(|| Rc::new(Group::new(Rc::clone(&clock)))))
        });
        Self { clock, routes, groups, answered: Default::default(), scratch: RefCell::default() }
    }

    /// From now on new requests go to these. Connections to others are closed when what is on its way has ended.
    pub(crate) fn set_upstreams(&self, upstreams: &Upstreams) {
        for (name, group) in &self.groups {
            group.set(upstreams.get(name).map_or(&[], Vec::as_slice));
        }
    }

    /// Answers by status class.
    pub(crate) fn answered(&self) -> BTreeMap<String, u64> {
        let classes = self.answered.iter().enumerate();
        classes
            .filter(|(_, count)| count.get() > 0)
            .map(|(class, count)| (format!("{}xx", class + 1), count.get()))
            .collect()
    }

    /// What has to be done from time to time: ends what takes too long, and closes connections that nobody needs.
    pub(crate) fn sweep(&self) {
        self.clock.tick();
        for group in self.groups.values() {
            group.prune();
        }
    }

    /// Answers a request, whatever happens.
    pub(crate) async fn answer(&self, client: &Client, request: Request<Incoming>) -> Response<Body> {
        let response = match self.forward(client, request).await {
            Ok(response) => response,
            Err(status) => plain(status),
        };
        if let Some(count) = self.answered.get(usize::from(response.status().as_u16() / 100).wrapping_sub(1)) {
            count.set(count.get() + 1);
        }
        response
    }

    async fn forward(&self, client: &Client, request: Request<Incoming>) -> Result<Response<Body>, StatusCode> {
        let host = head::host(&request)?;
        let lane = match self.routes.find(&host, request.uri().path()) {
            Found::Route(lane) => Rc::clone(lane),
            Found::NoPath => return Err(StatusCode::NOT_FOUND),
            Found::NoDomain => return Err(StatusCode::MISDIRECTED_REQUEST),
        };
        let (parts, mut body) = request.into_parts();
        let framing = http1::Framing::of(&parts, &body);
        let mut tried: Vec<Rc<Instance>> = Vec::new();
        loop {
            let Some(instance) = lane.group.pick(&tried) else {
                return Err(match tried.is_empty() {
                    true => StatusCode::SERVICE_UNAVAILABLE,
                    false => StatusCode::BAD_GATEWAY,
                });
            };
            let active = instance.take();
            let (connection, pooled) = match instance.connect(parts.method.is_idempotent()).await {
                Ok(connected) => connected,
                Err(error) => {
                    instance.failed(&error);
                    tried.push(instance);
                    continue;
                }
            };
            let mut head = self.scratch.borrow_mut().pop().unwrap_or_default();
            head::write_request(&mut head, &parts, &host, client, framing);
            let sending = http1::Sending::new(head, framing, body, lane.route.body_bytes_max);
            let exchange = http1::exchange(
                connection,
                sending,
                &parts.method,
                active,
                &self.clock,
                lane.route.upstream_timeout_ms,
            );
            match exchange.await {
                Ok(mut answered) => {
                    self.keep(answered.take_scratch());
                    return Ok(answered.into_response());
                }
                Err(failed) => {
                    let (error, sending) = *failed;
                    let untouched = pooled && !sending.body_touched() && parts.method.is_idempotent();
                    if matches!(error, ExchangeError::NoAnswer(_)) && untouched {
                        body = sending.into_body();
                        continue;
                    }
                    return Err(error.status());
                }
            }
        }
    }

    fn keep(&self, mut scratch: Vec<u8>) {
        let mut kept = self.scratch.borrow_mut();
        if kept.len() < 16 && scratch.capacity() <= 16 << 10 {
            scratch.clear();
            kept.push(scratch);
        }
    }
}

/// An answer of the edge's own.
fn plain(status: StatusCode) -> Response<Body> {
    let text = format!("{} {}\n", status.as_u16(), status.canonical_reason().unwrap_or("Error"));
    let mut response = Response::new(Body::full(text.clone().into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
    response
}
