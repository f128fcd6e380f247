//! What becomes of a request: which route it takes, which instance answers, and what both sides are told.

mod body;
mod clock;
mod forward;
mod h2c;
mod head;
mod http1;
mod owed;
mod plain_http;
mod pool;
mod routes;
mod target;
mod upgrade;
mod upload;

pub(crate) use body::Body;
pub(crate) use clock::{Clock, TICK_MS};
pub(crate) use owed::Owed;

use crate::access_log::Seen;
use crate::address::Address;
use crate::compress::{self, Encoders};
use crate::error_pages::ErrorPages;
use crate::forwarded::{self, Way};
use crate::limit::Refusal;
use crate::server::{Client, Scheme, Shared};
use body::Answering;
use forward::Forwarded;
use head::Origin;
use hyper::body::{Body as _, Incoming};
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HeaderMap, HeaderValue, RETRY_AFTER, STRICT_TRANSPORT_SECURITY,
};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Version};
use palisade_core::edge::{ConnectionLimits, Upstreams};
use pool::Group;
use routes::{Found, Lane, Routes};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use upload::Upload;

/// One worker's proxy.
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    pub(crate) clock: Rc<Clock>,
    routes: Routes,
    /// By upstream as written, `service:port`.
    groups: BTreeMap<String, Rc<Group>>,
    limits: ConnectionLimits,
    /// Plain HTTP is answered with a redirect.
    redirect: bool,
    https_port: u16,
    certificates: PathBuf,
    /// Answers by status class, from 1xx on.
    answered: [Cell<u64>; 5],
    /// Room for heads that are sent to upstreams.
    scratch: RefCell<Vec<Vec<u8>>>,
    encoders: Encoders,
    /// What is wrong with upstreams isn't said before.
    quiet_until_ms: Cell<u64>,
}

/// An answer of the edge's own instead of an upstream's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused {
    status: StatusCode,
    /// What else the client sends on this connection can't be trusted, or isn't wanted.
    close: bool,
    /// When the client may come again: `Retry-After`.
    retry_after_s: Option<u64>,
}

impl Refused {
    fn closing(status: StatusCode) -> Self {
        Self { status, close: true, retry_after_s: None }
    }
}

/// What an answer of the edge's own has to know of its request.
#[derive(Clone, Copy, Debug)]
struct Asked {
    version: Version,
    /// The answer has no body, only its length.
    head: bool,
}

impl From<StatusCode> for Refused {
    fn from(status: StatusCode) -> Self {
        Self { status, close: false, retry_after_s: None }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Denied => StatusCode::FORBIDDEN.into(),
            Refusal::TooMany { retry_after_s } => {
                let status = StatusCode::TOO_MANY_REQUESTS;
                Self { status, close: false, retry_after_s: Some(retry_after_s) }
            }
        }
    }
}

impl Proxy {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        let settings = &shared.settings;
        let clock = Rc::new(Clock::new());
        let mut groups: BTreeMap<String, Rc<Group>> = BTreeMap::new();
        let routes = Routes::new(&settings.edge, |upstream| {
            Rc::clone(groups.entry(upstream.to_string()).or_insert_with(|| Rc::new(Group::new(Rc::clone(&clock)))))
        });
        Self {
            shared: Arc::clone(shared),
            clock,
            routes,
            groups,
            limits: settings.edge.limits,
            redirect: settings.edge.redirect,
            https_port: settings.edge.https_port,
            certificates: settings.certificates.clone(),
            answered: Default::default(),
            scratch: RefCell::default(),
            encoders: Encoders::default(),
            quiet_until_ms: Cell::new(0),
        }
    }

    /// From now on new requests go to these. Connections to others are closed when what is on its way has ended.
    pub(crate) fn set_upstreams(&self, upstreams: &Upstreams) {
        for (name, group) in &self.groups {
            group.set(upstreams.get(name).map_or(&[], Vec::as_slice));
        }
    }

    /// Answers by status class.
    pub(crate) fn answered(&self) -> BTreeMap<String, u64> {
        let classes = self.answered.iter().enumerate().filter(|(_, count)| count.get() > 0);
        classes.map(|(class, count)| (format!("{}xx", class + 1), count.get())).collect()
    }

    /// A client was answered with this status.
    pub(crate) fn count(&self, status: u16) {
        if let Some(count) = self.answered.get(usize::from(status / 100).wrapping_sub(1)) {
            count.set(count.get() + 1);
        }
    }

    /// What has to be done from time to time: wakes what takes too long, and closes connections that nobody needs.
    pub(crate) fn sweep(&self) {
        self.clock.tick();
        for group in self.groups.values() {
            group.prune();
        }
    }

    /// Answers a request, whatever happens. What the client is `owed` then is counted, if somebody asks.
    pub(crate) async fn answer(
        &self,
        client: &Client,
        request: Request<Incoming>,
        owed: Option<Rc<Owed>>,
    ) -> Response<Body> {
        let answering = Answering::begin(&client.pulse);
        let version = request.version();
        let asked = Asked { version, head: *request.method() == Method::HEAD };
        let way = forwarded::way(&self.shared.settings.edge.trusted_proxies, client.peer.ip(), request.headers());
        let address = if way.client == client.peer.ip() { client.peer } else { Address::from(way.client) };
        let scheme = way.scheme.unwrap_or(client.scheme.as_str());
        let entry = self.shared.log.as_ref().map(|log| {
            let (method, uri, headers) = (request.method(), request.uri(), request.headers());
            let version = if client.pulse.is_translated() { Version::HTTP_3 } else { version };
            Box::new(log.begin(&Seen { client: &address, scheme, method, uri, version, headers }))
        });
        let response = self.respond(client, (&address, &way), scheme, asked, request).await;
        let mut response = response.unwrap_or_else(|refused| plain(refused, asked, &self.shared.pages));
        if let Some(mut entry) = entry {
            entry.answered(response.status().as_u16());
            response.body_mut().log(entry);
        }
        self.count(response.status().as_u16());
        response.body_mut().of(answering, owed);
        response
    }

    async fn respond(
        &self,
        client: &Client,
        (address, way): (&Address, &Way),
        scheme: &'static str,
        asked: Asked,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Refused> {
        // It belongs to the request, so it is taken while there is one.
        let upgrade = request.headers().contains_key(hyper::header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        let body = Upload::new(body, parts.version);
        if parts.version == Version::HTTP_2 && has_too_many(&parts.headers, self.limits.header_fields_max) {
            return Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE.into());
        }
        // Whatever can't be understood in one way only ends its connection.
        let path = target::path(&parts.method, &parts.uri).map_err(Refused::closing)?;
        let may_lack_domain = parts.version == Version::HTTP_10;
        let domain = target::domain(&parts.uri, &parts.headers, may_lack_domain).map_err(Refused::closing)?;
        if client.scheme == Scheme::Http
            && let Some(answer) = plain_http::challenge(&self.certificates, &parts.method, &parts.uri)
        {
            return Ok(answer);
        }
        let (domain, found) = self.routes.find(&domain, &path);
        let (hsts, answer) = match found {
            Found::NoDomain => return Err(StatusCode::MISDIRECTED_REQUEST.into()),
            _ if self.redirect && scheme == "http" => {
                return plain_http::redirect(domain, self.https_port, &parts.uri);
            }
            Found::NoPath(hsts) => (hsts, Err(StatusCode::NOT_FOUND.into())),
            Found::Route(lane) => {
                let named = way.host.as_deref();
                let origin = Origin { address, proxies: &way.proxies, scheme, domain, named };
                (lane.hsts.as_ref(), self.serve(client, lane, origin, &parts, body, upgrade).await)
            }
        };
        // Its own answers are of the domain as well.
        let mut response = answer.unwrap_or_else(|refused| plain(refused, asked, &self.shared.pages));
        if scheme == "https"
            && let Some(hsts) = hsts
        {
            response.headers_mut().insert(STRICT_TRANSPORT_SECURITY, hsts.clone());
        }
        Ok(response)
    }

    /// What comes of a request that has a route.
    async fn serve(
        &self,
        client: &Client,
        lane: &Lane,
        origin: Origin<'_>,
        parts: &Parts,
        body: Upload,
        upgrade: Option<OnUpgrade>,
    ) -> Result<Response<Body>, Refused> {
        let mut slot = self.shared.limits.request(lane.number, origin.address.ip(), self.shared.now_ms())?;
        let upgrade = upgrade.filter(|_| body.is_end_stream() && head::wanted_protocol(parts).is_some());
        let mut response = self.forward(Forwarded { client, lane, origin, parts }, body, upgrade, &mut slot).await?;
        response.body_mut().hold(slot);
        self.compress(&lane.route.compress, parts, &mut response);
        Ok(response)
    }

    fn compress(&self, types: &BTreeSet<String>, request: &Parts, response: &mut Response<Body>) {
        if types.is_empty() || !self.encoders.have_room() {
            return;
        }
        let (status, length) = (response.status(), response.body().size_hint().exact());
        let asked = (&request.method, &request.headers);
        if let Some(coding) = compress::decide(types, asked, status, response.headers_mut(), length) {
            response.body_mut().encode(self.encoders.begin(coding));
        }
    }
}

/// Whether there are more fields than that. The pieces into which HTTP/2 cuts cookies are one.
fn has_too_many(headers: &HeaderMap, fields_max: u16) -> bool {
    let fields_max = usize::from(fields_max);
    headers.len() > fields_max && headers.len() - headers.get_all(COOKIE).iter().skip(1).count() > fields_max
}

/// An answer of the edge's own.
fn plain(refused: Refused, asked: Asked, pages: &ErrorPages) -> Response<Body> {
    let Refused { status, close, retry_after_s } = refused;
    let (content_type, text) = match pages.get(status.as_u16()) {
        Some(page) => ("text/html; charset=utf-8", page),
        None => {
            let text = format!("{} {}\n", status.as_u16(), status.canonical_reason().unwrap_or("Error"));
            ("text/plain; charset=utf-8", text.into())
        }
    };
    let mut response = Response::new(Body::default());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
    if let Some(seconds) = retry_after_s {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if close && asked.version < Version::HTTP_2 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if !asked.head {
        *response.body_mut() = Body::full(text);
    }
    response
}
