//! From a check in a resource to one that is run.

use std::net::{IpAddr, Ipv4Addr};

use lictor::cluster::convert::{self, ChecksRunBy, Rules};
use lictor::model::check::{Checks, PlacedCheck};
use lictor::model::diff::Op;
use lictor::model::health::Health;
use lictor::model::ids::{Str, meta};
use lictor::model::port::PortRef;
use lictor::model::registration::{Registration, Row, RowKey};
use lictor::ports::Registry;
use lictor::state::event::ObjectKey;
use lictor_testbed::wait;
use serde_json::{Value, json};

use crate::registries::{SOON, full};

pub(crate) const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// `spec.checks` in YAML, read as Lictor reads it, for an instance with this port; an error is Lictor's refusal.
pub(crate) fn checks(yaml: &str, by: ChecksRunBy, port: u16, initial: Health) -> Result<Checks, String> {
    let checks: Value = serde_saphyr::from_str(yaml).unwrap();
    let object = json!({
        "metadata": { "name": "user", "namespace": "shop" },
        "spec": { "source": { "service": { "name": "user" } }, "checks": checks },
    });
    let rules = Rules { checks: by, ..Rules::default() };
    let read = convert::resource(ObjectKey::new("shop", "user"), serde_json::from_value(object).unwrap(), &rules);
    let spec = read.resource.spec.map_err(|refusal| refusal.message)?;
    let place = |check: &lictor::model::check::CheckSpec| {
        let port = match check.port {
            None => port,
            Some(PortRef::Number(number)) => number,
            Some(PortRef::Name(_)) => panic!("a named port needs a source"),
        };
        PlacedCheck { check: check.check.clone(), port }
    };
    Ok(Checks::new(spec.checks.iter().map(place).collect(), initial))
}

/// An instance on this machine with these checks and no readiness: what it is, Consul has found out itself.
pub(crate) fn instance(address: IpAddr, port: u16, checks: Checks) -> Registration {
    with_checks(&Registration { port, ..full(&address.to_string(), None) }, checks)
}

/// The same instance with other checks.
pub(crate) fn with_checks(registration: &Registration, checks: Checks) -> Registration {
    let mut registration = Registration { checks, ..registration.clone() };
    registration.meta.remove(meta::CHECKS);
    if let Some(digest) = registration.checks.digest() {
        registration.meta.insert(meta::CHECKS.into(), digest);
    }
    registration
}

/// What turns one registration into another.
pub(crate) fn edit(key: &RowKey, from: &Registration, to: &Registration) -> Op {
    let drop_checks = from.check_names().difference(&to.check_names()).map(|name| Str::from(*name)).collect();
    Op::Register { key: key.clone(), registration: to.clone().into(), drop_checks }
}

/// Waits until the registry reads of an instance what is wanted.
pub(crate) async fn read(registry: &dyn Registry, key: &RowKey, what: &str, fits: impl Fn(&Row) -> bool) -> Row {
    let look = || async { Ok(registry.read().await?.remove(key).filter(|row| row.shown && fits(row))) };
    match wait::until(what, SOON, look).await {
        Ok(row) => row,
        Err(error) => panic!("{error:#}; there is {:?}", registry.read().await.map(|mut rows| rows.remove(key))),
    }
}

/// Waits until an instance is in a state.
pub(crate) async fn health(registry: &dyn Registry, key: &RowKey, wanted: Health) -> Row {
    read(registry, key, &format!("{key} to be {wanted:?}"), |row| row.health == wanted).await
}
