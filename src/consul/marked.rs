//! Rows by their mark, wherever in the catalog they stand.
//!
//! In: a cluster. Out: what carries its mark and an ID of its making. One filtered read of the catalog's services says
//! which names have any; only those are read.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};

use super::client::{Client, path};
use super::wire::{By, HealthEntry, Healths, Node, Pool};
use crate::model::ids::{Identity, meta};
use crate::model::registration::{Ownership, Row, RowKey};
use crate::ports::Unavailable;

/// The most services that are read at once.
const READS: usize = 8;

/// Reads what carries the mark of a cluster, each with its node. `filter` narrows down, in Consul's language, what is
/// looked at; a name that it leaves in is read whole all the same. `by` says who adds what to them.
pub(super) async fn marked_rows(
    client: &Client,
    identity: &Identity,
    by: By,
    filter: Option<&str>,
) -> Result<Vec<(Node, RowKey, Row)>, Unavailable> {
    // A cluster's name and uid are letters, digits and dashes: nothing in them means something in a filter.
    let (cluster, uid) = (identity.cluster.as_str(), &*identity.uid);
    let marked = |of: &str| {
        format!("{of}[\"{}\"] == \"{cluster}\" and {of}[\"{}\"] == \"{uid}\"", meta::CLUSTER, meta::CLUSTER_UID)
    };
    let filter = [Some(&*marked("ServiceMeta")), filter].into_iter().flatten().collect::<Vec<_>>().join(" and ");
    let names = path(&["catalog", "services"], &[("filter", &filter)]);
    let names = client.get::<BTreeMap<String, Option<Vec<String>>>>(names).await?.value;
    let marked = marked("Service.Meta");
    let mut reads = stream::iter(names.into_keys())
        .map(|name| {
            let query = path(&["health", "service", &name], &[("filter", &marked)]);
            client.get::<Vec<HealthEntry>>(query)
        })
        .buffered(READS);
    let (mut rows, mut pool) = (Vec::new(), Pool::default());
    while let Some(entries) = reads.try_next().await? {
        for HealthEntry { node, service, checks } in entries.value {
            let (Some(name), Some(id)) = (node.node.as_deref(), service.id.as_deref()) else { continue };
            let key = RowKey { node: pool.string(name), id: id.into() };
            let healths = Healths::new(checks);
            let registration = service.registration(by, &healths, &mut pool);
            let ownership = Ownership::of(identity, id, &registration.meta, false);
            let row = Row { ownership, health: healths.worst(id), registration: Arc::new(registration), shown: true };
            if row.is_ours() {
                rows.push((node, key, row));
            }
        }
    }
    Ok(rows)
}
