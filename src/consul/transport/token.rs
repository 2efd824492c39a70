//! The ACL token that requests carry.

use std::path::PathBuf;
use std::sync::{Arc, Mutex as Lock, PoisonError};
use std::time::Duration;

use reqwest::header::HeaderValue;

use super::login::{Keeper, Token};
use super::settings::ConsulSettings;
use super::{Http, TransportError, sensitive};

/// Says where the token comes from.
pub(super) enum TokenSource {
    Value(String),
    File(TokenFile),
    Login(Arc<Keeper>),
}

/// A token that one request carries.
pub(super) enum Carried {
    /// One that is given.
    Given(HeaderValue),
    /// One of a login, which is not logged out before the request has ended.
    Login(Token),
}

impl Carried {
    pub(super) fn header(&self) -> &HeaderValue {
        match self {
            Self::Given(header) => header,
            Self::Login(token) => token.header(),
        }
    }
}

/// A file with the token, and the last one from it that is known to work or was the first.
pub(super) struct TokenFile {
    path: PathBuf,
    held: Lock<Option<HeaderValue>>,
}

impl TokenSource {
    /// The source that the settings name. A login goes the way of this client.
    pub(super) fn new(settings: &ConsulSettings, http: &Http) -> Option<Self> {
        match (&settings.login, &settings.token_file, &settings.token) {
            (Some(login), ..) => Some(Self::Login(Keeper::new(login.clone(), http.without_token(), &settings.logins))),
            (None, Some(path), _) => Some(Self::File(TokenFile { path: path.clone(), held: Lock::default() })),
            (None, None, Some(value)) => Some(Self::Value(value.clone())),
            (None, None, None) => None,
        }
    }

    /// The token as it is now, for a request that waits at most as long as `limit` for it.
    pub(super) async fn token(&self, limit: Duration) -> Result<Carried, TransportError> {
        match self {
            Self::Login(keeper) => Ok(Carried::Login(keeper.token(limit).await?)),
            Self::Value(_) | Self::File(_) => self.header().await.map(Carried::Given).map_err(TransportError::NotSent),
        }
    }

    /// Notes that Consul does not know a token. True if another one may be had at once.
    pub(super) fn unknown(&self, carried: &Carried) -> bool {
        match (self, carried) {
            (Self::Login(keeper), Carried::Login(token)) => {
                keeper.unknown(token);
                true
            }
            _ => false,
        }
    }

    /// The token that is given, as it is now; an error is for the user, and never holds the token.
    pub(super) async fn header(&self) -> Result<HeaderValue, String> {
        match self {
            Self::Login(_) => Err("the token for Consul comes from a login".to_owned()),
            Self::Value(value) => sensitive(value).ok_or_else(|| "the Consul token is not plain text".to_owned()),
            Self::File(file) => match file.held() {
                Some(token) => Ok(token),
                None => file.read().await.inspect(|token| file.hold(token.clone())),
            },
        }
    }
}

impl TokenFile {
    /// The token that is in use; none as long as the file has held none.
    pub(super) fn held(&self) -> Option<HeaderValue> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has requests carry this one from now on.
    pub(super) fn hold(&self, token: HeaderValue) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
    }

    /// The token that the file holds now.
    pub(super) async fn read(&self) -> Result<HeaderValue, String> {
        let text = tokio::fs::read_to_string(&self.path)
            .await
            .map_err(|error| format!("the file {} of the Consul token is unreadable: {error}", self.path.display()))?;
        sensitive(&text).ok_or_else(|| format!("the file {} holds no Consul token", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_never_shows() {
        let settings = ConsulSettings { token: Some("secret".to_owned()), ..ConsulSettings::new("x:1") };
        assert!(!format!("{settings:?}").contains("secret"));
        assert!(!format!("{:?}", sensitive("secret")).contains("secret"));
        assert!(sensitive(" \n").is_none() && sensitive("a\nb").is_none());
    }

    #[tokio::test]
    async fn the_first_token_of_a_file_is_used_until_another_one_works() {
        let path = std::env::temp_dir().join(format!("lictor-token-{}", std::process::id()));
        let source = TokenSource::File(TokenFile { path: path.clone(), held: Lock::default() });
        assert!(source.header().await.unwrap_err().contains("unreadable"));
        std::fs::write(&path, " \n").unwrap();
        assert!(source.header().await.unwrap_err().contains("holds no Consul token"));
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(source.header().await.unwrap(), "one");
        std::fs::write(&path, "another\n").unwrap();
        assert_eq!(source.header().await.unwrap(), "one", "nobody has tried the other one yet");
        let TokenSource::File(file) = &source else { panic!("no file") };
        file.hold(file.read().await.unwrap());
        assert_eq!(source.header().await.unwrap(), "another");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(source.header().await.unwrap(), "another", "a file that is gone takes nothing away");
    }
}
