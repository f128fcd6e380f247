//! The worker's account with an authority: made once, kept in a file of its own, used for every order.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use instant_acme::{Account, AccountCredentials, ExternalAccountKey, NewAccount};
use palisade_core::edge::{AcmeDirectory, ExternalAccount};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::client::Https;
use super::order::kind;
use super::store::{self, StoreError};

/// Names of files don't get longer than this.
const NAME_BYTES_MAX: usize = 200;

/// Why there is no account.
#[derive(Debug, thiserror::Error)]
pub(super) enum AccountError {
    #[error("can't read the account's key (eab) in {0}")]
    ExternalKey(PathBuf, #[source] io::Error),
    #[error("the account's key (eab) in {0} is not base64url")]
    ExternalKeyForm(PathBuf, #[source] base64::DecodeError),
    #[error("can't read the account in {0}; without it a new one is made: remove it if it is damaged")]
    Read(PathBuf, #[source] io::Error),
    #[error("the account in {0} is damaged: remove it, and a new one is made")]
    Damaged(PathBuf, #[source] serde_json::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("can't use the account")]
    Use(#[source] instant_acme::Error),
    #[error("can't make an account")]
    Make(#[source] instant_acme::Error),
    #[error("the authority refuses everything from this account: it was closed")]
    Closed,
}

/// What is kept of an account. It holds its private key.
#[derive(Serialize, Deserialize)]
struct Kept {
    email: Option<String>,
    external: Option<String>,
    credentials: AccountCredentials,
}

/// The account with a directory, which is made if there is none yet, or none of this external account.
pub(super) async fn open(
    state: &Path,
    directory: &AcmeDirectory,
    email: Option<&str>,
    client: &Https,
) -> Result<Account, AccountError> {
    let path = file(state, &directory.url);
    let external = directory.eab.as_ref().map(|external| external.key_id.clone());
    if let Some(mut kept) = read(&path)?.filter(|kept| kept.external == external) {
        let builder = Account::builder_with_http(Box::new(client.clone()));
        // The library takes the credentials; they are needed once more if the address has changed.
        let again = serde_json::to_value(&kept.credentials).and_then(serde_json::from_value::<AccountCredentials>);
        let again = again.map_err(|error| AccountError::Damaged(path.clone(), error))?;
        let account = builder.from_credentials(again).await.map_err(AccountError::Use)?;
        if kept.email.as_deref() != email {
            set_email(&account, email).await?;
            kept.email = email.map(str::to_owned);
            write(&path, &kept)?;
        }
        return Ok(account);
    }
    let key = directory.eab.as_ref().map(external_key).transpose()?;
    let contact = contact(email);
    let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
    let builder = Account::builder_with_http(Box::new(client.clone()));
    let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let made = builder.create(&new, directory.url.clone(), key.as_ref()).await;
    let (account, credentials) = made.map_err(AccountError::Make)?;
    write(&path, &Kept { email: email.map(str::to_owned), external, credentials })?;
    Ok(account)
}

fn contact(email: Option<&str>) -> Option<String> {
    email.map(|email| format!("mailto:{email}"))
}

/// An account may do nothing that is always allowed any more: then it isn't what was asked that was refused ([`AccountError::Closed`]).
pub(super) async fn set_email(account: &Account, email: Option<&str>) -> Result<(), AccountError> {
    let contact = contact(email);
    let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
    account.update_contacts(&contact).await.map_err(|error| match &error {
        instant_acme::Error::Api(problem) if kind(problem) == Some("unauthorized") => AccountError::Closed,
        _ => AccountError::Use(error),
    })
}

/// Forgets an account that its authority doesn't know any more, or has closed. It is put aside, not removed.
pub(super) fn forget(state: &Path, directory: &str) {
    let path = file(state, directory);
    let _ = fs::rename(&path, path.with_extension("json.unknown"));
}

fn read(path: &Path) -> Result<Option<Kept>, AccountError> {
    match fs::read(path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map(Some).map_err(|error| AccountError::Damaged(path.to_owned(), error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(AccountError::Read(path.to_owned(), error)),
    }
}

fn write(path: &Path, kept: &Kept) -> Result<(), AccountError> {
    let bytes = serde_json::to_vec(kept).map_err(|error| AccountError::Damaged(path.to_owned(), error))?;
    Ok(store::replace(path, &bytes, None)?)
}

fn external_key(external: &ExternalAccount) -> Result<ExternalAccountKey, AccountError> {
    let path = &external.key_file;
    let text = fs::read_to_string(path).map_err(|error| AccountError::ExternalKey(path.clone(), error))?;
    let key = decoded(&text).map_err(|error| AccountError::ExternalKeyForm(path.clone(), error))?;
    Ok(ExternalAccountKey::new(external.key_id.clone(), &key))
}

/// Authorities write such keys in both alphabets, with or without padding.
fn decoded(text: &str) -> Result<Vec<u8>, base64::DecodeError> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let text: String = text
        .trim()
        .chars()
        .map(|c| {
            if c == '+' {
                '-'
            } else if c == '/' {
                '_'
            } else {
                c
            }
        })
        .collect();
    GeneralPurpose::new(&alphabet::URL_SAFE, config).decode(text)
}

fn file(state: &Path, directory: &str) -> PathBuf {
    let name = directory.strip_prefix("https://").unwrap_or(directory);
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '_' };
    let name: String = name.chars().map(plain).take(NAME_BYTES_MAX).collect();
    state.join("accounts").join(format!("{name}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_either_alphabet_are_read() {
        for text in ["-_8", "-_8=\n", "+/8=", " +/8"] {
            assert_eq!(decoded(text).ok().as_deref(), Some([0xfb, 0xff].as_slice()), "{text}");
        }
        assert!(decoded("{").is_err());
    }

    #[test]
    fn each_directory_has_a_file_of_its_own() {
        let name = |url| file(Path::new("/s"), url);
        assert_eq!(name("https://acme.example/dir"), Path::new("/s/accounts/acme.example_dir.json"));
        assert_eq!(name("https://../../etc:1/x"), Path::new("/s/accounts/.._.._etc_1_x.json"));
    }
}
