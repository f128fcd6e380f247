//! One order at one authority: from the account to a certificate that fits its key.
//!
//! Each step that costs something at the authority is noted before the next, so that whoever is killed in between goes on where it was.

use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeType, Identifier, NewOrder, Order, OrderStatus,
    Problem, RetryPolicy,
};
use palisade_core::edge::{Acme, AcmeDirectory, Challenge, WorkerSettings};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::crypto::aws_lc_rs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::account::{self, AccountError};
use super::challenge::{self, Answer, AnswerError};
use super::client::{ClientError, Https};
use super::events::rfc3339;
use super::memory::{Memory, Pending};
use super::schedule::{self, Trouble};
use super::store::StoreError;
use crate::tls::{Facts, PemError};

/// An authority looks at a domain from several places, and then signs.
const PATIENCE: Duration = Duration::from_secs(180);
/// An order that isn't finished by then is given up: authorities forget theirs after days.
const PENDING_S_MAX: u64 = 12 * 3600;
/// A whole order is tried so often when the authority has mislaid a nonce: some do so under load, more often in a row than the library bears.
const TRIES: u32 = 5;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    #[error("can't reach the authority")]
    Client(#[from] ClientError),
    #[error(transparent)]
    Account(#[from] AccountError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Answer(#[from] AnswerError),
    #[error("can't {0}")]
    Acme(&'static str, #[source] instant_acme::Error),
    #[error("the authority offers no {0} for this domain")]
    NoChallenge(&'static str),
    #[error("the authority didn't accept the challenge: {0}")]
    Invalid(String),
    #[error("can't make a key and a request for a certificate")]
    Request(#[source] rcgen::Error),
    #[error("the authority's certificate can't be used")]
    Certificate(#[from] PemError),
    #[error("the authority's certificate is of no use: {0}")]
    Untimely(String),
    #[error(
        "this host's clock says {ours}, the authority's {theirs}: nothing was ordered; set the clock (`timedatectl`), then it goes on by itself"
    )]
    Clock { ours: String, theirs: String },
}

/// A certificate as it goes into a file.
pub(super) struct Obtained {
    /// Private key and chain.
    pub pem: String,
    pub facts: Facts,
}

/// What all attempts for one domain share.
pub(super) struct Attempt<'a> {
    pub settings: &'a WorkerSettings,
    pub acme: &'a Acme,
    pub domain: &'a str,
    /// The certificate that is to be replaced, in DER, if this directory has issued it.
    pub replaces: Option<&'a [u8]>,
}

impl Attempt<'_> {
    /// Orders at one authority. Tells also when it wants to be asked again, if it said so.
    pub(super) async fn at(
        &self,
        directory: &AcmeDirectory,
        memory: &mut Memory,
    ) -> (Result<Obtained, OrderError>, Option<u64>) {
        let client = match Https::new(directory.root.as_deref()) {
            Ok(client) => client,
            Err(error) => return (Err(error.into()), None),
        };
        let mut replaces = self.replaces;
        let mut left = TRIES;
        loop {
            left -= 1;
            client.take_again();
            let result = self.once(directory, memory, &client, replaces).await;
            let retried = match &result {
                Err(error) if left > 0 => {
                    if error.is("accountDoesNotExist") {
                        account::forget(&self.settings.state, &directory.url);
                        memory.pending = None;
                        true
                    } else if replaces.take().is_some_and(|_| error.is_about_replacing()) {
                        true
                    } else {
                        error.is("badNonce")
                    }
                }
                _ => false,
            };
            if !retried {
                let again = client.take_again().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
                return (result, again.map(|since| since.as_secs()));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn once(
        &self,
        directory: &AcmeDirectory,
        memory: &mut Memory,
        client: &Https,
        replaces: Option<&[u8]>,
    ) -> Result<Obtained, OrderError> {
        let state = &self.settings.state;
        let account = account::open(state, directory, self.acme.email.as_deref(), client).await?;
        right_clock(client)?;
        let (mut order, key) = match self.resumed(&account, directory, memory).await? {
            Some(resumed) => resumed,
            None => self.new_order(&account, directory, memory, replaces).await?,
        };
        let result = self.drive(&mut order, &key).await;
        // An order that the authority has turned down is over; any other may go on.
        if result.as_ref().is_err_and(|error| error.is_final()) || order.state().status == OrderStatus::Invalid {
            memory.pending = None;
            memory.write(state, self.domain, now_s())?;
        }
        result
    }

    /// The order that was on its way when its process ended, or whose certificate couldn't be kept, if the authority still has it.
    async fn resumed(
        &self,
        account: &Account,
        directory: &AcmeDirectory,
        memory: &mut Memory,
    ) -> Result<Option<(Order, KeyPair)>, OrderError> {
        let Some(pending) = memory.pending.clone() else { return Ok(None) };
        let fresh = now_s().abs_diff(pending.since_s) < PENDING_S_MAX;
        let key = KeyPair::from_pem(&pending.key).ok().filter(|_| pending.directory == directory.url);
        if let Some(key) = key {
            match account.order(pending.url).await {
                Ok(mut order) => match order.state().status {
                    OrderStatus::Invalid => {}
                    // What was issued has been counted: it is fetched, however old it is.
                    OrderStatus::Valid => return Ok(Some((order, key))),
                    _ if fresh => return Ok(Some((order, key))),
                    _ => {}
                },
                Err(error) => {
                    let error = OrderError::Acme("look at the order from before", error);
                    // Who doesn't answer now may still have it.
                    if !error.is_final() || error.is("accountDoesNotExist") {
                        return Err(error);
                    }
                }
            }
        }
        memory.pending = None;
        Ok(None)
    }

    async fn new_order(
        &self,
        account: &Account,
        directory: &AcmeDirectory,
        memory: &mut Memory,
        replaces: Option<&[u8]>,
    ) -> Result<(Order, KeyPair), OrderError> {
        let names = [Identifier::Dns(self.domain.to_owned())];
        let mut new = NewOrder::new(&names);
        let replaced = replaces.and_then(identifier);
        if let Some(replaced) = replaced {
            new = new.replaces(replaced);
        }
        let key = KeyPair::generate().map_err(OrderError::Request)?;
        let order = account.new_order(&new).await.map_err(|error| OrderError::Acme("order a certificate", error))?;
        memory.pending = Some(Pending {
            directory: directory.url.clone(),
            url: order.url().to_owned(),
            key: key.serialize_pem(),
            since_s: now_s(),
        });
        memory.write(&self.settings.state, self.domain, now_s())?;
        Ok((order, key))
    }

    async fn drive(&self, order: &mut Order, key: &KeyPair) -> Result<Obtained, OrderError> {
        let patience = RetryPolicy::new().timeout(PATIENCE);
        // They stay until all is over: an order that is gone on with may be looked at twice.
        let _answers = match order.state().status {
            OrderStatus::Pending => self.prove(order, &patience).await?,
            _ => Vec::new(),
        };
        if order.state().status == OrderStatus::Ready {
            let mut params = CertificateParams::new([self.domain.to_owned()]).map_err(OrderError::Request)?;
            params.distinguished_name = DistinguishedName::new();
            let request = params.serialize_request(key).map_err(OrderError::Request)?;
            let finalized = order.finalize_csr(request.der()).await;
            finalized.map_err(|error| OrderError::Acme("finish the order", error))?;
        }
        let chain = order
            .poll_certificate(&patience)
            .await
            .map_err(|error| OrderError::Acme("fetch the certificate", error))?;
        let pem = format!("{}{chain}", key.serialize_pem());
        let provider = aws_lc_rs::default_provider();
        let (_, facts) =
            crate::tls::read_bytes(pem.as_bytes(), Path::new("the authority's answer"), self.domain, &provider)?;
        // A clock of ours that is a minute behind is no reason to refuse.
        match facts.untimely(now_s().max(facts.not_before_s)) {
            Some(text) => Err(OrderError::Untimely(text)),
            None => Ok(Obtained { pem, facts }),
        }
    }

    /// Shows that the domain is ours, as long as the answers live.
    async fn prove(&self, order: &mut Order, patience: &RetryPolicy) -> Result<Vec<Answer>, OrderError> {
        let (kind, name) = match self.acme.challenge {
            Challenge::Http01 => (ChallengeType::Http01, "http-01"),
            Challenge::TlsAlpn01 => (ChallengeType::TlsAlpn01, "tls-alpn-01"),
        };
        let mut answers = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(|error| OrderError::Acme("ask for the challenge", error))?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let mut challenge = authorization.challenge(kind.clone()).ok_or(OrderError::NoChallenge(name))?;
            answers.push(challenge::answer(
                &self.settings.folder,
                self.acme.challenge,
                self.domain,
                &challenge.token,
                &challenge.key_authorization(),
                super::owner(self.settings),
            )?);
            challenge.set_ready().await.map_err(|error| OrderError::Acme("start the challenge", error))?;
        }
        match order.poll_ready(patience).await {
            Ok(OrderStatus::Ready | OrderStatus::Valid | OrderStatus::Processing) => Ok(answers),
            Ok(_) => Err(OrderError::Invalid(why(order).await.unwrap_or_else(|| "it doesn't say why".to_owned()))),
            Err(instant_acme::Error::Api(problem)) => match why(order).await {
                Some(why) => Err(OrderError::Invalid(why)),
                None => Err(OrderError::Acme("pass the challenge", problem.into())),
            },
            Err(error) => Err(OrderError::Acme("pass the challenge", error)),
        }
    }
}

/// What the authority found wrong with the challenges.
async fn why(order: &mut Order) -> Option<String> {
    let mut said = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let Ok(mut authorization) = authorization else { continue };
        if authorization.refresh().await.is_err() {
            continue;
        }
        said.extend(authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref()).map(words));
    }
    (!said.is_empty()).then(|| said.join("; "))
}

fn words(problem: &Problem) -> String {
    let kind = problem.r#type.as_deref().map(|kind| kind.rsplit(':').next().unwrap_or(kind));
    match (&problem.detail, kind) {
        (Some(detail), Some(kind)) => format!("{detail} ({kind})"),
        (Some(detail), None) => detail.clone(),
        (None, kind) => kind.unwrap_or("no reason").to_owned(),
    }
}

impl OrderError {
    fn problem(&self) -> Option<&Problem> {
        let error = match self {
            Self::Acme(_, error) | Self::Account(AccountError::Use(error) | AccountError::Make(error)) => error,
            _ => return None,
        };
        match error {
            instant_acme::Error::Api(problem) => Some(problem),
            _ => None,
        }
    }

    /// One of RFC 8555's kinds (section 6.7).
    pub(super) fn is(&self, kind: &str) -> bool {
        let found = self.problem().and_then(|problem| problem.r#type.as_deref());
        found.and_then(|found| found.rsplit(':').next()) == Some(kind)
    }

    fn is_about_replacing(&self) -> bool {
        match self {
            Self::Acme("order a certificate", instant_acme::Error::Api(_)) => !self.is("rateLimited"),
            // The library asks for an answer that mirrors the certificate, and for a directory that knows renewal windows.
            Self::Acme("order a certificate", instant_acme::Error::Other(error)) => !error.is::<ClientError>(),
            Self::Acme("order a certificate", instant_acme::Error::Unsupported(_)) => true,
            _ => false,
        }
    }

    /// The authority was reached and has said no to this order.
    fn is_final(&self) -> bool {
        matches!(self, Self::Invalid(_) | Self::NoChallenge(_) | Self::Certificate(_) | Self::Untimely(_))
            || self.problem().is_some_and(|problem| {
                !self.is("badNonce") && !self.is("rateLimited") && problem.status.is_none_or(|status| status < 500)
            })
    }

    /// What it means for the next attempt.
    pub(super) fn trouble(&self) -> Trouble {
        match self {
            Self::Store(_) | Self::Answer(_) | Self::Account(AccountError::Store(_)) | Self::Clock { .. } => {
                Trouble::Host
            }
            _ if self.problem().is_some() || self.is_final() => Trouble::Refused,
            _ => Trouble::Unreachable,
        }
    }

    /// Another authority would find the same: it is about the domain, or about this host.
    pub(super) fn is_everywhere(&self) -> bool {
        let domain = ["unauthorized", "dns", "connection", "tls", "incorrectResponse"];
        matches!(self, Self::Invalid(_) | Self::Request(_))
            || self.trouble() == Trouble::Host
            || (matches!(self, Self::Acme(..)) && domain.iter().any(|kind| self.is(kind)))
    }
}

/// With a wrong clock a new certificate would be over when it comes, or its authority would be asked again and again.
fn right_clock(client: &Https) -> Result<(), OrderError> {
    let theirs = client.date().and_then(|date| date.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs());
    match (now_s(), theirs) {
        (ours, Some(theirs)) if schedule::is_wrong(ours, theirs) => {
            Err(OrderError::Clock { ours: rfc3339(ours), theirs: rfc3339(theirs) })
        }
        _ => Ok(()),
    }
}

/// How RFC 9773 names a certificate.
pub(super) fn identifier(certificate: &[u8]) -> Option<CertificateIdentifier<'static>> {
    let certificate = rustls_pki_types::CertificateDer::from(certificate);
    CertificateIdentifier::try_from(&certificate).ok().map(CertificateIdentifier::into_owned)
}

pub(super) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
