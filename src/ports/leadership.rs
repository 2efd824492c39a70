//! Whether this replica acts.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// The time until which this replica may begin requests; none while another one leads.
pub type Leads = watch::Receiver<Option<Instant>>;

/// Leads for ever: where there is just one replica.
#[must_use]
pub fn always() -> Leads {
    // As good as never: what tokio itself takes for far away.
    watch::Sender::new(Some(Instant::now() + Duration::from_secs(86_400 * 365 * 30))).subscribe()
}
