//! HTTP/3: QUIC connections, whose requests are handed to the same code as those of HTTP/2.
//!
//! A connection of HTTP/3 is translated into one of HTTP/2 within the process. So routes, limits, logs and time-outs are those of every other request,
//! and there is no second way through the proxy that could forget one. It costs a copy, for HTTP/3 only. One worker has the endpoint: QUIC tells
//! connections apart by identifiers of its own, which the kernel knows nothing of when it spreads datagrams over sockets.

mod request;

use crate::address::Address;
use crate::server::{LocalExecutor, Taken, Worker};
use crate::tls::Certificates;
use bytes::Bytes;
use h3::quic;
use hyper::client::conn::http2;
use hyper::header::HeaderValue;
use hyper_util::rt::TokioIo;
use palisade_core::edge::ConnectionLimits;
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicServerConfig};
use quinn::{Endpoint, EndpointConfig, IdleTimeout, Incoming, TokioRuntime, TransportConfig, VarInt};
use request::Asking;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// What is agreed on in the handshake.
const PROTOCOL: &[u8] = b"h3";
/// Requests of one connection at once.
const STREAMS_MAX: u32 = 128;
/// Streams of the protocol itself (control, and two of QPACK), and some that are there to be ignored.
const CONTROL_STREAMS_MAX: u32 = 8;
/// What a client may send ahead on one stream, and on all.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// What waits to be acknowledged by one client.
const SEND_WINDOW: u64 = 1 << 20;
/// From so many connections on, or a quarter of all places, a client has to show first that its address is its own: until then it
/// costs a packet, neither memory nor a place.
const VALIDATED_FROM: usize = 64;
/// Between the two halves of a translated connection.
const PIPE_BYTES: usize = 64 << 10;
/// Between two attempts to get the port.
const BIND_PAUSE: Duration = Duration::from_millis(500);
/// After a client was told that nothing more is answered, for what it still has to hear.
const FAREWELL: Duration = Duration::from_secs(5);

/// Where and how QUIC is spoken, before any worker starts.
pub(crate) struct Listening {
    addresses: Vec<SocketAddr>,
    config: quinn::ServerConfig,
}

/// For these addresses.
///
/// # Errors
///
/// The library can't encrypt the first packets of QUIC.
pub(crate) fn prepare(
    addresses: &[SocketAddr],
    certificates: &Arc<Certificates>,
    limits: &ConnectionLimits,
) -> Result<Listening, NoInitialCipherSuite> {
    let tls = QuicServerConfig::try_from(certificates.server_config(&[PROTOCOL]))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    let mut transport = TransportConfig::default();
    let idle = VarInt::try_from(limits.idle_timeout_ms).map_or(IdleTimeout::from(VarInt::MAX), IdleTimeout::from);
    transport
        .max_concurrent_bidi_streams(STREAMS_MAX.into())
        .max_concurrent_uni_streams(CONTROL_STREAMS_MAX.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(SEND_WINDOW)
        .max_idle_timeout(Some(idle))
        .datagram_receive_buffer_size(None);
    config.transport_config(Arc::new(transport));
    Ok(Listening { addresses: addresses.to_vec(), config })
}

/// What `Alt-Svc` says of it (RFC 7838) on answers over TLS.
pub(crate) fn alternative(https_port: u16) -> HeaderValue {
    HeaderValue::try_from(format!("h3=\":{https_port}\"; ma=86400")).expect("it is of visible characters")
}

impl Listening {
    /// Serves until the worker drains; then no new connection is taken, and those that are there end with their requests.
    pub(crate) fn serve(self, worker: &Rc<Worker>) {
        for address in self.addresses {
            tokio::task::spawn_local(listen(Rc::clone(worker), address, self.config.clone()));
        }
    }
}

/// A former edge may have the port until its last connection has ended: two can't share it. Clients speak the other versions meanwhile.
async fn listen(worker: Rc<Worker>, address: SocketAddr, config: quinn::ServerConfig) {
    let mut said = false;
    loop {
        let bound = UdpSocket::bind(address).and_then(|socket| {
            Endpoint::new(EndpointConfig::default(), Some(config.clone()), socket, Arc::new(TokioRuntime))
        });
        match bound {
            Ok(endpoint) => return accept(worker, endpoint).await,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if !std::mem::replace(&mut said, true) {
                    eprintln!("palisade-edge: HTTP/3 has to wait: port {} is in use over UDP", address.port());
                }
            }
            Err(error) => {
                return eprintln!("palisade-edge: HTTP/3 isn't served: can't listen on {address} over UDP: {error}");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(BIND_PAUSE) => {}
            () = worker.until_draining() => return,
        }
    }
}

async fn accept(worker: Rc<Worker>, endpoint: Endpoint) {
    let validated_from = VALIDATED_FROM.min(worker.limits().connections as usize / 4);
    let drained = worker.until_draining();
    tokio::pin!(drained);
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = &mut drained => break,
        };
        let Some(incoming) = incoming else { return };
        let open = endpoint.open_connections();
        if open >= validated_from && !incoming.remote_address_validated() {
            // One that has come back already is refused by an error.
            let _ = incoming.retry();
        } else if let Some(taken) = worker.place() {
            tokio::task::spawn_local(connection(Rc::clone(&worker), incoming, taken));
        } else {
            incoming.refuse();
        }
    }
    endpoint.set_server_config(None);
    // The socket is needed until the last connection has ended.
    endpoint.wait_idle().await;
}

/// One client, until it or the worker has had enough.
async fn connection(worker: Rc<Worker>, incoming: Incoming, taken: Taken) {
    let _taken = taken;
    let _kept = worker.keep();
    let header_timeout = Duration::from_millis(worker.limits().header_timeout_ms);
    let Ok(connecting) = incoming.accept() else { return };
    let Ok(Ok(connection)) = timeout(header_timeout, connecting).await else { return };
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let translated = tokio::task::spawn_local(worker.serve_translated(connection.remote_address(), theirs));
    let serving = serve(&worker, connection.clone(), ours).await;
    translated.abort();
    let code = if serving.is_some() { h3::error::Code::H3_NO_ERROR } else { h3::error::Code::H3_INTERNAL_ERROR };
    connection.close(VarInt::from_u32(u32::try_from(code.value()).unwrap_or(0)), b"");
}

async fn serve(worker: &Rc<Worker>, connection: quinn::Connection, pipe: tokio::io::DuplexStream) -> Option<()> {
    let peer = Address::from(connection.remote_address().ip().to_canonical());
    let limits = worker.limits();
    let mut builder = http2::Builder::new(LocalExecutor);
    builder.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
    builder.max_header_list_size(u32::MAX >> 8);
    let (sender, inner) = builder.handshake(TokioIo::new(pipe)).await.ok()?;
    let inner = tokio::task::spawn_local(async move { drop(inner.await) });
    tokio::pin!(inner);
    let mut h3 = h3::server::builder();
    // A frame that is there to be ignored, at the end of a stream, hides the end from some clients (aioquic).
    h3.max_field_section_size(limits.header_bytes_max.into()).send_grease(false);
    let mut h3: h3::server::Connection<_, Bytes> = h3.build(h3_quinn::Connection::new(connection)).await.ok()?;
    let asking = Rc::new(Asking { worker: Rc::clone(worker), peer });
    let mut requests = JoinSet::new();
    loop {
        tokio::select! {
            accepted = h3.accept() => match accepted {
                Ok(Some(resolver)) => {
                    requests.spawn_local(request::answer(resolver, sender.clone(), Rc::clone(&asking)));
                }
                // The client says that it has no more.
                Ok(None) => {
                    while requests.join_next().await.is_some() {}
                    return Some(());
                }
                Err(_) => return None,
            },
            // What has ended needs no memory.
            Some(_) = requests.join_next(), if !requests.is_empty() => {}
            // The worker drains, or has cut the connection: every request that it took is answered or given up.
            _ = &mut inner => break,
        }
    }
    h3.shutdown(0).await.ok()?;
    let farewell = async {
        while requests.join_next().await.is_some() {}
        // Until the client closes: what it was sent last would be lost otherwise.
        while let Ok(Some(_)) = h3.accept().await {}
    };
    let _ = timeout(FAREWELL, farewell).await;
    Some(())
}

/// Both directions of a request's stream.
type Both = h3_quinn::BidiStream<Bytes>;
/// What a client sends.
type Receiving = <Both as quic::BidiStream<Bytes>>::RecvStream;
/// What it is sent.
type Sending = <Both as quic::BidiStream<Bytes>>::SendStream;
