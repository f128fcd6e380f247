//! Connections that go on in another protocol: bytes pass both ways, for as long as both sides like.

use super::http1::Connection;
use super::pool::Active;
use crate::limit::Slot;
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

/// Connects the two as soon as the client has been told. Both the instance's and the client's request count as long as that lasts.
pub(super) fn join(client: &Client, upgrade: OnUpgrade, upstream: Connection, counts: (Active, Option<Slot>)) {
    let pulse = std::sync::Arc::clone(&client.pulse);
    client.tunnel(async move {
        let _counts = counts;
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
    /// The sink has taken something that it may hold back.
    unflushed: bool,
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
        while !self.over {
            while !self.kept.is_empty() {
                let written = ready!(Pin::new(&mut *sink).poll_write(context, &self.kept))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.kept.advance(written);
                self.unflushed = true;
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
                    if self.unflushed {
                        ready!(Pin::new(&mut *sink).poll_flush(context))?;
                        self.unflushed = false;
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
                self.unflushed = true;
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    /// As TLS: it takes more than the socket has room for.
    #[derive(Default)]
    struct Holding {
        held: usize,
        sent: usize,
        room: usize,
    }

    impl AsyncWrite for Holding {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.get_mut().held += bytes.len();
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            let this = self.get_mut();
            let now = this.held.min(std::mem::take(&mut this.room));
            this.held -= now;
            this.sent += now;
            if this.held == 0 { Poll::Ready(Ok(())) } else { Poll::Pending }
        }

        fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.poll_flush(context)
        }
    }

    #[test]
    fn what_the_sink_holds_back_is_sent_as_soon_as_there_is_room() {
        let context = &mut Context::from_waker(Waker::noop());
        // The source says something and then nothing more, but stays.
        let (mut source, mut speaker) = tokio::io::duplex(100);
        assert!(Pin::new(&mut speaker).poll_write(context, &[b'x'; 100]).is_ready());
        let (mut way, mut sink) = (Way::default(), Holding::default());
        for sent in [40, 80, 100, 100] {
            sink.room = 40;
            assert!(way.poll(context, &mut source, &mut sink).is_pending());
            assert_eq!(sink.sent, sent);
        }
        assert_eq!(sink.room, 40, "nobody asks any more");
    }
}
