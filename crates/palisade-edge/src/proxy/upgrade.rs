//! Connections that go on in another protocol: bytes pass both ways, for as long as both sides like.

use super::http1::Connection;
use super::pool::Active;
use crate::server::Client;
use bytes::{Buf, BytesMut};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are passed at once.
const PART_BYTES: usize = 16 << 10;

/// Connects the two as soon as the client has been told.
pub(super) fn join(client: &Client, upgrade: OnUpgrade, upstream: Connection, active: Active) {
    let pulse = std::sync::Arc::clone(&client.pulse);
    client.tunnel(async move {
        // The request counts as long as its connection lives.
        let _active = active;
        let Ok(upgraded) = upgrade.await else { return };
        let (mut client, (mut upstream, ahead)) = (TokioIo::new(upgraded), upstream.into_parts());
        let (mut down, mut up) = (Way { kept: ahead, ..Way::default() }, Way::default());
        std::future::poll_fn(|context| {
            let to_client = down.poll(context, &mut upstream, &mut client);
            let to_upstream = up.poll(context, &mut client, &mut upstream);
            match (to_client, to_upstream) {
                (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => Poll::Ready(()),
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(()),
                (Poll::Pending, Poll::Pending) => Poll::Pending,
                _ => {
                    // One side has ended: the other may not stay for ever.
                    pulse.half_ended();
                    Poll::Pending
                }
            }
        })
        .await;
    });
}

/// One direction. It has room only while something waits in it.
#[derive(Default)]
struct Way {
    kept: BytesMut,
    ended: bool,
    over: bool,
}

impl Way {
    /// Ready when the source has ended and the sink knows.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        source: &mut (impl AsyncRead + Unpin),
        sink: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        let mut part = [0; PART_BYTES];
        let mut wrote = false;
        while !self.over {
            while !self.kept.is_empty() {
                let written = ready!(Pin::new(&mut *sink).poll_write(context, &self.kept))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.kept.advance(written);
                wrote = true;
            }
            if self.ended {
                ready!(Pin::new(&mut *sink).poll_shutdown(context))?;
                self.over = true;
                break;
            }
            self.kept = BytesMut::new();
            let mut buffer = ReadBuf::new(&mut part);
            match Pin::new(&mut *source).poll_read(context, &mut buffer) {
                Poll::Ready(read) => read?,
                Poll::Pending => {
                    // TLS holds back what isn't flushed.
                    if wrote {
                        ready!(Pin::new(&mut *sink).poll_flush(context))?;
                    }
                    return Poll::Pending;
                }
            }
            let mut filled = buffer.filled();
            self.ended = filled.is_empty();
            while !filled.is_empty() {
                match Pin::new(&mut *sink).poll_write(context, filled) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(written)) => filled = &filled[written..],
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        self.kept.extend_from_slice(filled);
                        return Poll::Pending;
                    }
                }
                wrote = true;
            }
        }
        Poll::Ready(Ok(()))
    }
}
