//! One way to write to a socket: a single part by send(2), as what writev(2) writes is checked once more as any file's is.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;

/// Writes what fits of these parts.
pub(crate) fn poll_send<W: AsyncWrite + Unpin>(
    stream: &mut W,
    context: &mut Context<'_>,
    parts: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    match parts {
        [only] => Pin::new(stream).poll_write(context, only),
        parts => Pin::new(stream).poll_write_vectored(context, parts),
    }
}
