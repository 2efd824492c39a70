//! Waiting for a condition by looking at it again and again.

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long to wait between two looks at a condition.
pub const PAUSE: Duration = Duration::from_millis(25);

/// Looks again and again until `look` gives a value.
///
/// `Ok(None)` and errors both mean "not yet". Fails after `timeout` with `what` and the last error.
pub async fn until<T, F, L>(what: impl Display, timeout: Duration, look: L) -> Result<T>
where
    L: FnMut() -> F,
    F: Future<Output = Result<Option<T>>>,
{
    until_every(PAUSE, what, timeout, look).await
}

/// The same with another pause between two looks, for looks that are dear, such as a program that is run.
pub async fn until_every<T, F, L>(pause: Duration, what: impl Display, timeout: Duration, mut look: L) -> Result<T>
where
    L: FnMut() -> F,
    F: Future<Output = Result<Option<T>>>,
{
    let deadline = Instant::now() + timeout;
    loop {
        let looked = look().await;
        if let Ok(Some(value)) = looked {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            match looked {
                Err(error) => bail!("{what}: not within {timeout:?}; last error: {error:#}"),
                Ok(_) => bail!("{what}: not within {timeout:?}"),
            }
        }
        tokio::time::sleep(pause).await;
    }
}
