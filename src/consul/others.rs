//! The names that others have in Consul.
//!
//! In: a cluster. Out: the names of all services of which others have instances, by one read of the catalog's services.

use std::collections::{BTreeMap, BTreeSet};

use super::client::{Client, path};
use crate::model::ids::{Identity, Str, id_prefix, meta};
use crate::ports::Unavailable;

/// Names the services that have an instance with neither the mark of a cluster nor an ID of its making: a mark can be
/// edited, and what a resource leaves behind has none.
pub(super) async fn names_of_others(client: &Client, identity: &Identity) -> Result<BTreeSet<Str>, Unavailable> {
    // A cluster's name is letters, digits and dashes: nothing in it means something in a filter or an expression.
    let (cluster, prefix) = (&identity.cluster, id_prefix(&identity.cluster));
    let filter = format!("ServiceMeta[\"{}\"] != \"{cluster}\" and ServiceID not matches \"^{prefix}\"", meta::CLUSTER);
    let query = path(&["catalog", "services"], &[("filter", &filter)]);
    let names = client.get::<BTreeMap<String, Option<Vec<String>>>>(query).await?.value;
    Ok(names.into_keys().map(Str::from).collect())
}
