//! A request on its way to an instance, and to another one if the first wasn't reached.

use super::clock::TICK_MS;
use super::head::{self, Origin};
use super::http1::{self, Bounds, ExchangeError, Framing, Timeouts};
use super::pool::Instance;
use super::routes::Lane;
use super::upload::Upload;
use super::{Body, Proxy, Refused, h2c, upgrade};
use crate::limit::Slot;
use crate::server::Client;
use hyper::body::Body as _;
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode, Version};
use palisade_core::edge::UpstreamProtocol;
use std::rc::Rc;

/// So often a request may find that its connection of HTTP/2 has ended before it was sent; then the instance is passed over.
const RETURNS_MAX: u32 = 3;

/// A request that is to be sent on.
pub(super) struct Forwarded<'a> {
    pub(super) client: &'a Client,
    pub(super) lane: &'a Lane,
    pub(super) origin: Origin<'a>,
    pub(super) parts: &'a Parts,
}

impl Forwarded<'_> {
    fn bounds(&self, proxy: &Proxy) -> Bounds {
        Bounds { body_bytes_max: self.lane.route.body_bytes_max, bytes_per_s_min: proxy.limits.body_bytes_per_s_min }
    }

    /// What is left of the time that the upstream has for its first word, of which reaching an instance is a part.
    fn left_ms(&self, proxy: &Proxy, begun_ms: u64) -> Result<u64, Refused> {
        let upstream_ms = self.lane.route.upstream_timeout_ms;
        // The clock may have been almost a tick behind at the beginning.
        let left_ms = upstream_ms.saturating_add(TICK_MS).saturating_sub(proxy.clock.now_ms() - begun_ms);
        if left_ms > 0 { Ok(left_ms.min(upstream_ms)) } else { Err(StatusCode::GATEWAY_TIMEOUT.into()) }
    }

    fn timeouts(&self, proxy: &Proxy, left_ms: u64) -> Timeouts {
        let upstream_ms = self.lane.route.upstream_timeout_ms;
        Timeouts { upstream_ms, left_ms, client_ms: proxy.limits.body_timeout_ms }
    }
}

impl Proxy {
    /// Whatever an instance answers; or why none does. A connection that goes on after its answer takes the client's `slot` along.
    pub(super) async fn forward(
        &self,
        request: Forwarded<'_>,
        body: Upload,
        upgrade: Option<hyper::upgrade::OnUpgrade>,
        slot: &mut Option<Slot>,
    ) -> Result<Response<Body>, Refused> {
        if body.size_hint().lower() > request.lane.route.body_bytes_max {
            return Err(Refused::closing(StatusCode::PAYLOAD_TOO_LARGE));
        }
        match request.lane.route.protocol {
            UpstreamProtocol::Http1 => self.forward_http1(request, body, upgrade, slot).await,
            UpstreamProtocol::H2c => self.forward_h2c(request, body).await,
        }
    }

    async fn forward_http1(
        &self,
        request: Forwarded<'_>,
        mut body: Upload,
        upgrade: Option<hyper::upgrade::OnUpgrade>,
        slot: &mut Option<Slot>,
    ) -> Result<Response<Body>, Refused> {
        let parts = request.parts;
        let protocol = upgrade.as_ref().and_then(|_| head::wanted_protocol(parts));
        let framing = Framing::of(parts, &body);
        let repeatable = parts.method.is_idempotent();
        let mut may_repeat = repeatable;
        let mut tried: Vec<Rc<Instance>> = Vec::new();
        let begun_ms = self.clock.now_ms();
        loop {
            let instance = self.pick(request.lane, &tried)?;
            let active = instance.take();
            let within_ms = request.left_ms(self, begun_ms)? / request.lane.group.untried(&tried);
            let (connection, pooled) = match instance.connect(repeatable, within_ms).await {
                Ok(connected) => connected,
                Err(error) => {
                    self.complain(request.lane, &instance, &error);
                    tried.push(instance);
                    continue;
                }
            };
            let mut head = self.scratch.borrow_mut().pop().unwrap_or_default();
            head::write_request(&mut head, parts, &request.origin, framing, protocol);
            let sending = http1::Sending::new(head, framing, body, request.bounds(self), &self.clock);
            let timeouts = request.timeouts(self, request.left_ms(self, begun_ms)?);
            let exchange = http1::exchange(connection, sending, &parts.method, active, &self.clock, timeouts);
            match exchange.await {
                Ok(answered) if answered.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    let (mut response, upstream) = answered.into_upgraded();
                    let (Some(upgrade), Some((connection, active)), Some(_)) = (upgrade, upstream, protocol) else {
                        return Err(StatusCode::BAD_GATEWAY.into());
                    };
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                    upgrade::join(request.client, upgrade, connection, (active, slot.take()));
                    return Ok(response);
                }
                Ok(mut answered) => {
                    self.keep(answered.take_scratch());
                    return Ok(answered.into_response());
                }
                Err(failed) => {
                    let (error, mut sending) = *failed;
                    let unanswered = matches!(error, ExchangeError::NoAnswer(_)) && !sending.body_touched();
                    // The instance closed a connection that it thought idle.
                    let was_idle = unanswered && pooled && repeatable;
                    if !was_idle && !error.is_clients() {
                        self.complain(request.lane, &instance, &error);
                    }
                    match sending.take_body() {
                        Some(untouched) if was_idle || unanswered && may_repeat => body = untouched,
                        _ => return Err(error.refused()),
                    }
                    if !pooled {
                        may_repeat = false;
                        tried.push(instance);
                    }
                }
            }
        }
    }

    async fn forward_h2c(&self, request: Forwarded<'_>, mut body: Upload) -> Result<Response<Body>, Refused> {
        let mut may_repeat = request.parts.method.is_idempotent();
        let mut returns = 0;
        let mut tried: Vec<Rc<Instance>> = Vec::new();
        let begun_ms = self.clock.now_ms();
        loop {
            let instance = self.pick(request.lane, &tried)?;
            let active = instance.take();
            let within_ms = request.left_ms(self, begun_ms)? / request.lane.group.untried(&tried);
            let (stream, pooled) = match instance.stream(within_ms).await {
                Ok(stream) => stream,
                Err(error) => {
                    self.complain(request.lane, &instance, &error);
                    tried.push(instance);
                    continue;
                }
            };
            let mut head = Request::new(());
            *head.method_mut() = request.parts.method.clone();
            *head.version_mut() = Version::HTTP_2;
            *head.uri_mut() = head::absolute(request.parts, &request.origin).ok_or(StatusCode::BAD_REQUEST)?;
            *head.headers_mut() = head::for_http2(request.parts, &request.origin);
            let timeouts = request.timeouts(self, request.left_ms(self, begun_ms)?);
            let exchange = h2c::exchange(stream, head, body, request.bounds(self), active, &self.clock, timeouts);
            match exchange.await {
                Ok(response) => {
                    let (mut parts, body) = response.into_parts();
                    head::drop_connection_fields(&mut parts.headers);
                    parts.headers.remove(header::UPGRADE);
                    return Ok(Response::from_parts(parts, Body::h2c(body)));
                }
                Err(h2c::Failed { error: ExchangeError::Http2(_), sent: false, untouched: Some(unsent) }) => {
                    // The connection ended before it was its turn; another one of the same instance will do.
                    body = unsent;
                    returns += 1;
                    if returns >= RETURNS_MAX {
                        tried.push(instance);
                    }
                }
                Err(h2c::Failed { error, untouched, .. }) => {
                    if !error.is_clients() {
                        self.complain(request.lane, &instance, &error);
                    }
                    match untouched {
                        Some(untouched) if may_repeat && matches!(error, ExchangeError::Http2(_)) => body = untouched,
                        _ => return Err(error.refused()),
                    }
                    may_repeat = false;
                    // A connection that others had used may have ended for no reason of the instance.
                    if !pooled {
                        tried.push(instance);
                    }
                }
            }
        }
    }

    fn pick(&self, lane: &Lane, tried: &[Rc<Instance>]) -> Result<Rc<Instance>, Refused> {
        lane.group.pick(tried).ok_or_else(|| match tried.is_empty() {
            true => StatusCode::SERVICE_UNAVAILABLE.into(),
            false => StatusCode::BAD_GATEWAY.into(),
        })
    }

    /// Says what is wrong with an upstream, but not for each of ten thousand requests.
    fn complain(&self, lane: &Lane, instance: &Instance, error: &dyn std::error::Error) {
        const EVERY_MS: u64 = 1_000;
        let now = self.clock.now_ms();
        if now >= self.quiet_until_ms.get() {
            self.quiet_until_ms.set(now + EVERY_MS);
            eprintln!("palisade-edge: {} at {}: {}", lane.route.to, instance.address(), crate::chain(error));
        }
    }

    fn keep(&self, mut scratch: Vec<u8>) {
        const KEPT_MAX: usize = 16;
        const BYTES_MAX: usize = 16 << 10;
        let mut kept = self.scratch.borrow_mut();
        if kept.len() < KEPT_MAX && scratch.capacity() <= BYTES_MAX {
            scratch.clear();
            kept.push(scratch);
        }
    }
}
