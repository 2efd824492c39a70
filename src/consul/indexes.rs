//! Where the catalog stands: whether anything in it has changed, at the same cost however much there is.

use futures::try_join;

use super::client::{Client, path};
use crate::ports::{Indexes, Unavailable};

/// A text that is no node's name, and that no node has in its meta.
const NOBODY: &str = "lictor:nobody";

/// Asks where the catalog stands, by what shows nothing and has the index of all: the services on nodes with a meta pair that
/// no node has (`state.Store.ServicesByNodeMeta` goes by the tables of services and of nodes), and the checks of a node that is not
/// there (`state.Store.NodeChecks` goes by the table of checks).
pub(super) async fn indexes(client: &Client) -> Result<Indexes, Unavailable> {
    let instances = path(&["catalog", "services"], &[("consistent", ""), ("node-meta", NOBODY)]);
    let checks = path(&["health", "node", NOBODY], &[("consistent", "")]);
    let (instances, checks) = try_join!(client.index(instances), client.index(checks))?;
    Ok(Indexes { instances, checks })
}
