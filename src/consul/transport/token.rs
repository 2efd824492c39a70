//! The ACL token that requests carry.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use reqwest::header::HeaderValue;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::settings::ConsulSettings;

/// The time between two looks at the token's file.
const TOKEN_CHECK: Duration = Duration::from_secs(1);

/// Says where the token comes from, and holds the last one that did.
pub(super) enum TokenSource {
    Value(String),
    File { path: PathBuf, last: Mutex<Option<Seen>> },
}

/// Holds what was in the token's file, and when.
pub(super) struct Seen {
    looked: Instant,
    changed: (SystemTime, u64),
    token: HeaderValue,
}

impl TokenSource {
    pub(super) fn new(settings: &ConsulSettings) -> Option<Self> {
        match (&settings.token_file, &settings.token) {
            (Some(path), _) => Some(Self::File { path: path.clone(), last: Mutex::default() }),
            (None, Some(value)) => Some(Self::Value(value.clone())),
            (None, None) => None,
        }
    }

    /// The token as it is now; an error is for the user, and never holds the token.
    pub(super) async fn header(&self) -> Result<HeaderValue, String> {
        match self {
            Self::Value(value) => sensitive(value).ok_or_else(|| "the Consul token is not plain text".to_owned()),
            Self::File { path, last } => {
                let mut last = last.lock().await;
                if let Some(seen) = last.as_ref().filter(|seen| seen.looked.elapsed() < TOKEN_CHECK) {
                    return Ok(seen.token.clone());
                }
                let unreadable = |error: io::Error| {
                    format!("the file {} of the Consul token is unreadable: {error}", path.display())
                };
                let metadata = tokio::fs::metadata(path).await.map_err(unreadable)?;
                let changed = (metadata.modified().map_err(unreadable)?, metadata.len());
                let token = match last.as_ref().filter(|seen| seen.changed == changed) {
                    Some(seen) => seen.token.clone(),
                    None => sensitive(&tokio::fs::read_to_string(path).await.map_err(unreadable)?)
                        .ok_or_else(|| format!("the file {} holds no Consul token", path.display()))?,
                };
                *last = Some(Seen { looked: Instant::now(), changed, token: token.clone() });
                Ok(token)
            }
        }
    }
}

/// A header's value that no log shows.
fn sensitive(token: &str) -> Option<HeaderValue> {
    let token = token.trim();
    let mut value = HeaderValue::from_str(token).ok().filter(|_| !token.is_empty())?;
    value.set_sensitive(true);
    Some(value)
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

    #[tokio::test(start_paused = true)]
    async fn a_tokens_file_is_read_again_when_it_changes() {
        let path = std::env::temp_dir().join(format!("lictor-token-{}", std::process::id()));
        let settings = ConsulSettings { token_file: Some(path.clone()), ..ConsulSettings::new("x:1") };
        let source = TokenSource::new(&settings).unwrap();
        assert!(source.header().await.unwrap_err().contains("unreadable"));
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(source.header().await.unwrap(), "one");
        std::fs::write(&path, "another\n").unwrap();
        assert_eq!(source.header().await.unwrap(), "one", "looked at once a second");
        tokio::time::advance(TOKEN_CHECK).await;
        assert_eq!(source.header().await.unwrap(), "another");
        std::fs::remove_file(&path).unwrap();
    }
}
