//! Whether the edge really serves what was obtained: told to look again, then asked as a client asks.

use palisade_core::edge::{Answer, EdgeAt, Order};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::tls::ACME_ALPN;

/// For one question to the edge.
const ANSWER: Duration = Duration::from_secs(20);
const LINE_BYTES_MAX: u64 = 1 << 20;

/// Tells the edge that certificates have changed.
pub(super) async fn tell(control: &Path) -> io::Result<()> {
    let asked = async {
        let mut stream = UnixStream::connect(control).await?;
        let mut order = serde_json::to_vec(&Order::ReloadCertificates)?;
        order.push(b'\n');
        stream.write_all(&order).await?;
        let mut line = String::new();
        BufReader::new(stream.take(LINE_BYTES_MAX)).read_line(&mut line).await?;
        match serde_json::from_str(&line)? {
            Answer::Refused(why) => Err(io::Error::other(why)),
            Answer::Done | Answer::Report(_) => Ok(()),
        }
    };
    timeout(ANSWER, asked).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Why a client wouldn't get this certificate from this instance of the edge. `None`: it would, or nobody can say.
pub(super) async fn wrong(edge: &EdgeAt, domain: &str, certificate: &[u8]) -> Option<String> {
    let at = edge.https?;
    // A wildcard is asked for by a name that it is for.
    let name = domain.strip_prefix("*.").map_or_else(|| domain.to_owned(), |parent| format!("palisade-look.{parent}"));
    let shown = timeout(ANSWER, async { leaf(TcpStream::connect(at).await?, &name, &[]).await });
    match shown.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(shown) if shown == certificate => None,
        Ok(_) => Some(format!("the edge at {at} serves another certificate than the file")),
        Err(error) => Some(format!("no certificate can be had from the edge at {at}: {error}")),
    }
}

/// The server's own certificate, whoever has signed it.
pub(super) async fn leaf<S>(stream: S, name: &str, alpn: &[&[u8]]) -> io::Result<Vec<u8>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    let mut config = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody { provider, challenge: alpn == [ACME_ALPN] }))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    shown.map(|leaf| leaf.to_vec()).ok_or_else(|| io::Error::other("the server shows no certificate"))
}

/// Takes any certificate, because it is only looked at: nothing is said over these connections. That the server has its key is still
/// verified, except for challenges: the library can't use a certificate with their extension.
#[derive(Debug)]
struct Anybody {
    provider: Arc<CryptoProvider>,
    challenge: bool,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if self.challenge {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if self.challenge {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
