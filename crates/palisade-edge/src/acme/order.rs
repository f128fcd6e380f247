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

/// What is done when an order is made, in [`OrderError::Acme`].
const ORDER: &str = "order a certificate";
/// Kinds of RFC 8555 that any authority would find.
const ABOUT_DOMAINS: [&str; 5] = ["unauthorized", "dns", "connection", "tls", "incorrectResponse"];

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
    #[error("the authority didn't accept the challenge: {text}")]
    Invalid {
        text: String,
        /// RFC 8555's, as far as they are known.
        kinds: Vec<String>,
    },
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
        // Another account is made once: who doesn't want the new one either means something else.
        let mut is_new = false;
        loop {
            left -= 1;
            client.take_again();
            let result = self.once(directory, memory, &client, replaces).await;
            let retried = match &result {
                Err(error) if left > 0 => {
                    if error.is_without_account() && !is_new {
                        account::forget(&self.settings.state, &directory.url);
                        memory.orders.remove(&directory.url);
                        is_new = true;
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
            None => match self.new_order(&account, directory, memory, replaces).await {
                Err(error) if error.is("unauthorized") => {
                    account::set_email(&account, self.acme.email.as_deref()).await?;
                    return Err(error);
                }
                ordered => ordered?,
            },
        };
        let result = self.drive(&mut order, &key).await;
        // An order that the authority has turned down is over; any other may go on.
        if result.as_ref().is_err_and(|error| error.is_final()) || order.state().status == OrderStatus::Invalid {
            memory.orders.remove(&directory.url);
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
        let Some(pending) = memory.orders.get(&directory.url).cloned() else { return Ok(None) };
        let fresh = now_s().abs_diff(pending.since_s) < PENDING_S_MAX;
        if let Ok(key) = KeyPair::from_pem(&pending.key) {
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
        memory.orders.remove(&directory.url);
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
        let order = account.new_order(&new).await.map_err(|error| OrderError::Acme(ORDER, error))?;
        let pending = Pending { url: order.url().to_owned(), key: key.serialize_pem(), since_s: now_s() };
        memory.orders.insert(directory.url.clone(), pending);
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
            Ok(_) => Err(why(order)
                .await
                .unwrap_or_else(|| OrderError::Invalid { text: "it doesn't say why".to_owned(), kinds: Vec::new() })),
            Err(instant_acme::Error::Api(problem)) => match why(order).await {
                Some(why) => Err(why),
                None => Err(OrderError::Acme("pass the challenge", problem.into())),
            },
            Err(error) => Err(OrderError::Acme("pass the challenge", error)),
        }
    }
}

/// What the authority found wrong with the challenges.
async fn why(order: &mut Order) -> Option<OrderError> {
    let (mut said, mut kinds) = (Vec::new(), Vec::new());
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let Ok(mut authorization) = authorization else { continue };
        if authorization.refresh().await.is_err() {
            continue;
        }
        for problem in authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref()) {
            said.push(words(problem));
            kinds.extend(kind(problem).map(str::to_owned));
        }
    }
    (!said.is_empty()).then(|| OrderError::Invalid { text: said.join("; "), kinds })
}

/// The last word of a kind, which is a URN.
pub(super) fn kind(problem: &Problem) -> Option<&str> {
    problem.r#type.as_deref()?.rsplit(':').next()
}

fn words(problem: &Problem) -> String {
    match (&problem.detail, kind(problem)) {
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
        self.problem().and_then(self::kind) == Some(kind)
    }

    /// The authority knows no such account, or none that it answers.
    fn is_without_account(&self) -> bool {
        self.is("accountDoesNotExist") || matches!(self, Self::Account(AccountError::Closed))
    }

    /// Nothing was answered by a clock of which the authority's certificate isn't valid.
    fn is_about_clock(&self) -> bool {
        let error = match self {
            Self::Acme(_, error) | Self::Account(AccountError::Use(error) | AccountError::Make(error)) => error,
            _ => return false,
        };
        let instant_acme::Error::Other(error) = error else { return false };
        matches!(error.downcast_ref(), Some(ClientError::Clock(..)))
    }

    fn is_about_replacing(&self) -> bool {
        match self {
            Self::Acme(ORDER, instant_acme::Error::Api(_)) => !self.is("rateLimited"),
            // The library asks for an answer that mirrors the certificate, and for a directory that knows renewal windows.
            Self::Acme(ORDER, instant_acme::Error::Other(error)) => !error.is::<ClientError>(),
            Self::Acme(ORDER, instant_acme::Error::Unsupported(_)) => true,
            _ => false,
        }
    }

    /// The authority was reached and has said no to this order.
    fn is_final(&self) -> bool {
        matches!(self, Self::Invalid { .. } | Self::NoChallenge(_) | Self::Certificate(_) | Self::Untimely(_))
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
            _ if self.is_about_clock() => Trouble::Host,
            Self::Account(AccountError::Closed) => Trouble::Refused,
            _ if self.problem().is_some() || self.is_final() => Trouble::Refused,
            _ => Trouble::Unreachable,
        }
    }

    /// Another authority would find the same: it is about the domain, or about this host.
    pub(super) fn is_everywhere(&self) -> bool {
        match self {
            // What the domain allows (caa) and what the authority doesn't give or can't do now is about this one.
            Self::Invalid { kinds, .. } => {
                !kinds.is_empty() && kinds.iter().all(|kind| ABOUT_DOMAINS.contains(&kind.as_str()))
            }
            Self::Request(_) => true,
            // An order comes before any look at the domain: what isn't allowed is for this account not to do.
            Self::Acme(ORDER, _) if self.is("unauthorized") => false,
            Self::Acme(..) => ABOUT_DOMAINS.iter().any(|kind| self.is(kind)),
            // It may be the authority whose certificate has ended.
            _ => self.trouble() == Trouble::Host && !self.is_about_clock(),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(kind: &str) -> instant_acme::Error {
        let text = format!(r#"{{"type": "urn:ietf:params:acme:error:{kind}", "status": 403}}"#);
        instant_acme::Error::Api(serde_json::from_str(&text).unwrap())
    }

    fn invalid(kinds: &[&str]) -> OrderError {
        OrderError::Invalid { text: String::new(), kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect() }
    }

    #[test]
    fn what_any_authority_would_find_is_about_the_domain() {
        for error in [
            invalid(&["connection"]),
            invalid(&["dns", "unauthorized"]),
            OrderError::Acme("pass the challenge", problem("unauthorized")),
            OrderError::Acme(ORDER, problem("dns")),
        ] {
            assert!(error.is_everywhere() && error.trouble() == Trouble::Refused, "{error:?}");
        }
        for error in [
            invalid(&["caa"]),
            invalid(&["connection", "serverInternal"]),
            invalid(&[]),
            OrderError::Acme(ORDER, problem("unauthorized")),
            OrderError::Acme(ORDER, problem("rejectedIdentifier")),
            OrderError::Account(AccountError::Closed),
        ] {
            assert!(!error.is_everywhere() && error.trouble() == Trouble::Refused, "{error:?}");
        }
    }

    #[test]
    fn a_certificate_that_isnt_good_at_this_time_is_the_hosts_trouble_or_one_authoritys() {
        let clock = || {
            let error = ClientError::Clock("acme.example:443".to_owned(), std::io::ErrorKind::InvalidData.into());
            instant_acme::Error::Other(error.into())
        };
        for error in [OrderError::Account(AccountError::Make(clock())), OrderError::Acme(ORDER, clock())] {
            assert!(error.trouble() == Trouble::Host && !error.is_everywhere(), "{error:?}");
        }
        let away = ClientError::Connect("acme.example:443".to_owned(), std::io::ErrorKind::TimedOut.into());
        let away = OrderError::Acme(ORDER, instant_acme::Error::Other(away.into()));
        assert_eq!((away.trouble(), away.is_everywhere()), (Trouble::Unreachable, false));
    }
}
