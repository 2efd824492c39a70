//! Endpoints that are missing: in no slice of their Service, though nobody saw them end.
//!
//! When the ports of a Service change, Kubernetes' controller spreads the endpoints over the slices anew, in random
//! order, and overwrites the slices in place, one after the other (`finalize` in k8s.io/endpointslice 0.37.2), by default
//! at 20 requests a second: until the last slice is written, many living endpoints are in none. When all slices are
//! deleted, it makes them again at the same rate. And it leaves out the pods of a Node that does not exist, and looks for
//! the Node again after 1 s, 2 s, 4 s and so on (`reconcileByAddressType` there).
//!
//! So the registration of a missing endpoint stays while the slices are being rewritten, and for some seconds more. Where
//! the Service is deleted it stays for some seconds, since a Service may be deleted and made anew. It goes at once where
//! the endpoint was seen terminating, where its pod is watched and gone, and where another instance with its address and
//! port is desired.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::World;
use crate::model::desired::Desired;
use crate::model::facts::{Endpoint, Family, Slice};
use crate::model::ids::{ClusterName, ResourceKey, Str, instance_id, meta};
use crate::model::registration::{Registration, Row, RowKey};
use crate::model::resource::{Source, Spec};
use crate::state::event::{Kind, ObjectKey, Scope};

/// The time after the last write to a Service's slices until they count as settled. Between two writes of the
/// controller lie 50 ms at its default rate; it begins to make deleted slices again after 1 s
/// (`endpointSliceChangeMinSyncDelay`).
pub(super) const SETTLED: Duration = Duration::from_secs(5);

/// The longest time that the registration of a missing endpoint stays.
pub const MOST: Duration = Duration::from_secs(60);

/// The registrations of a resource that stay although their endpoints are missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// The rows whose endpoints are missing.
    pub rows: BTreeSet<RowKey>,
    /// The time when the first of them goes, unless something changes.
    pub until: Option<Instant>,
    /// The Service whose endpoints they are.
    service: Str,
    /// True if the Service was deleted.
    is_gone: bool,
}

impl Missing {
    /// Says what to tell the user; none where nothing is missing.
    #[must_use]
    pub fn message(&self) -> Option<String> {
        let (count, service) = (self.rows.len(), &self.service);
        let stay = match count {
            0 => return None,
            1 => "1 instance stays".to_owned(),
            _ => format!("{count} instances stay"),
        };
        if self.is_gone {
            let settled = SETTLED.as_secs();
            return Some(format!(
                "{stay} registered for {settled} s after Service {service:?} was deleted: somebody may create it again"
            ));
        }
        let most = MOST.as_secs();
        Some(format!(
            "{stay} registered although no EndpointSlice of Service {service:?} has the endpoint: the slices may be \
             incomplete while Kubernetes rewrites them. Lictor removes what is still missing when the slices are stable, \
             after {most} s at the latest"
        ))
    }
}

/// Holds what is remembered of slices and Nodes for as long as it matters.
#[derive(Debug, Default)]
pub(super) struct History {
    services: BTreeMap<ObjectKey, Slices>,
    /// The times when what is remembered of a Service is looked through for what is too old.
    due: VecDeque<(Instant, ObjectKey)>,
    /// The times when the slices of each scope were first listed. What was before, nobody knows.
    listed: BTreeMap<Scope, Instant>,
    /// Says for each scope when its Services were listed first.
    services_listed: BTreeMap<Scope, Instant>,
    /// The times when Nodes were registered, of those that were within the last [`MOST`].
    nodes: BTreeMap<Str, Instant>,
    /// The times at which Services were deleted, of those that were within the last [`SETTLED`] and are not back.
    gone: BTreeMap<ObjectKey, Instant>,
}

/// Holds what is remembered of a Service's slices.
#[derive(Debug)]
struct Slices {
    /// The time when one of them was last written.
    written: Instant,
    /// The time when one of them last got other ports.
    ports: Option<Instant>,
    /// The endpoints that left a slice, whether another one has them or not.
    left: BTreeMap<EndpointId, Left>,
}

/// An address, and the uid of the pod behind it: another pod at the same address is another endpoint.
type EndpointId = (IpAddr, Option<Str>);

#[derive(Clone, Copy, Debug)]
struct Left {
    at: Instant,
    /// True if it was seen terminating.
    terminating: bool,
}

fn id(endpoint: &Endpoint) -> EndpointId {
    (endpoint.address, endpoint.pod.as_ref().map(|pod| pod.uid.clone()))
}

impl History {
    /// A slice of a Service was written or deleted.
    pub(super) fn slice_moved(&mut self, service: &ObjectKey, old: Option<&Slice>, new: Option<&Slice>, now: Instant) {
        let known = self.services.entry(service.clone()).or_insert_with(|| {
            self.due.push_back((now + MOST, service.clone()));
            Slices { written: now, ports: None, left: BTreeMap::new() }
        });
        known.written = now;
        if new.is_some_and(|new| old.is_none_or(|old| old.ports != new.ports)) {
            known.ports = Some(now);
        }
        let endpoints = |slice: Option<&Slice>| slice.into_iter().flat_map(|slice| &slice.endpoints).map(id).collect();
        let there: BTreeSet<EndpointId> = endpoints(new);
        for id in &there {
            known.left.remove(id);
        }
        for endpoint in old.into_iter().flat_map(|slice| &slice.endpoints) {
            let id = id(endpoint);
            if there.contains(&id) {
                continue;
            }
            let left = known.left.entry(id).or_insert(Left { at: now, terminating: false });
            left.at = now;
            left.terminating |= endpoint.terminating;
        }
    }

    pub(super) fn slices_listed(&mut self, scope: &Scope, now: Instant) {
        self.listed.insert(scope.clone(), now);
    }

    pub(super) fn services_listed(&mut self, scope: &Scope, now: Instant) {
        self.services_listed.insert(scope.clone(), now);
    }

    /// Says when a Service that is not there was deleted. One that was not in the first list may have been just before.
    fn gone(&self, service: &ObjectKey) -> Option<Instant> {
        let listed = || last_listed(&self.services_listed, &service.namespace);
        self.gone.get(service).copied().or_else(listed)
    }

    pub(super) fn node_registered(&mut self, name: &Str, now: Instant) {
        self.nodes.retain(|_, at| now < *at + MOST);
        self.nodes.insert(name.clone(), now);
    }

    pub(super) fn service_moved(&mut self, service: &ObjectKey, is_there: bool, now: Instant) {
        if is_there {
            self.gone.remove(service);
        } else {
            self.gone.insert(service.clone(), now);
        }
    }

    /// Forgets what does not matter any more.
    pub(super) fn forget_old(&mut self, now: Instant) {
        self.gone.retain(|_, at| now < *at + SETTLED);
        while self.due.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, service)) = self.due.pop_front() else { return };
            let Some(known) = self.services.get_mut(&service) else { continue };
            known.left.retain(|_, left| now < left.at + MOST);
            if known.left.is_empty() && known.written + MOST <= now {
                self.services.remove(&service);
            } else {
                self.due.push_back((now + MOST, service));
            }
        }
    }

    /// Forgets the slices of a scope, which are not watched any more.
    pub(super) fn forget_scope(&mut self, scope: &Scope) {
        self.listed.remove(scope);
        self.services_listed.remove(scope);
        self.services.retain(|service, _| !scope.covers(&service.namespace));
        self.due.retain(|(_, service)| !scope.covers(&service.namespace));
    }
}

/// Says when the last scope was listed that covers a namespace.
fn last_listed(listed: &BTreeMap<Scope, Instant>, namespace: &Str) -> Option<Instant> {
    let covering = [Scope::All, Scope::Namespace(namespace.clone())];
    covering.iter().filter_map(|scope| listed.get(scope)).copied().max()
}

/// Says what is known of the Node of a missing endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NodeState {
    /// It is there, or Nodes are not watched.
    Settled,
    /// It is not there.
    Gone,
    /// It was registered a short time ago.
    Back(Instant),
}

/// Holds what is known of a missing endpoint and of its Service's slices.
#[derive(Clone, Copy, Debug)]
struct Absence {
    /// The time since when the endpoint is missing.
    since: Instant,
    /// The time when a slice was last written.
    written: Instant,
    /// The time when a slice last got other ports, if the slices do not all have the same.
    mixed: Option<Instant>,
    /// True if there is no slice at all where Kubernetes' controller keeps at least an empty one.
    no_slices: bool,
    /// The time at which the Service was deleted.
    gone: Option<Instant>,
    node: NodeState,
}

impl Absence {
    /// Says until when the registration stays.
    fn until(&self) -> Instant {
        if let Some(gone) = self.gone {
            return gone + SETTLED;
        }
        let most = self.since + MOST;
        let mut until = self.written + SETTLED;
        if let Some(ports) = self.mixed {
            until = until.max(ports + MOST);
        }
        if self.no_slices {
            until = most;
        }
        match self.node {
            NodeState::Settled => {}
            NodeState::Gone => until = most,
            NodeState::Back(at) => until = until.max(at + MOST),
        }
        until.min(most)
    }
}

/// The slices of a Service as they are now.
struct Now<'a> {
    at: BTreeMap<IpAddr, Vec<(&'a Slice, &'a Endpoint)>>,
    /// True if those that have endpoints have different ports.
    are_mixed: bool,
    are_none: bool,
}

impl<'a> Now<'a> {
    fn of(slices: impl Iterator<Item = &'a Slice>) -> Self {
        let mut now = Self { at: BTreeMap::new(), are_mixed: false, are_none: true };
        let mut first = None;
        for slice in slices.filter(|slice| slice.family != Family::Fqdn) {
            now.are_none = false;
            if !slice.endpoints.is_empty() {
                now.are_mixed |= *first.get_or_insert(&slice.ports) != &slice.ports;
            }
            for endpoint in &slice.endpoints {
                now.at.entry(endpoint.address).or_default().push((slice, endpoint));
            }
        }
        now
    }
}

/// Says whether a slice has a port of this number.
fn has_port(slice: &Slice, number: u16) -> bool {
    slice.ports.iter().any(|port| port.number == number)
}

/// A registration that is not desired.
struct Undesired<'a> {
    owner: &'a ResourceKey,
    cluster: &'a ClusterName,
    row: &'a RowKey,
    registration: &'a Registration,
    address: IpAddr,
}

impl Undesired<'_> {
    /// Says whether it is of the endpoint of this pod at its address.
    fn is_of(&self, uid: Option<&Str>) -> bool {
        let target = uid.map_or_else(|| self.registration.address.clone(), Clone::clone);
        // The port that is registered may have been edited by hand; the one in the ID was not.
        let port = self.row.id.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(self.registration.port);
        instance_id(self.cluster, self.owner, &self.registration.service, &target, port) == self.row.id
    }

    /// Says whether slices have its endpoint, or another one in its place, which is desired. One that terminates had the
    /// address before: its pod may be listed for as long as it takes to remove it.
    fn is_in(&self, now: &Now<'_>, desired: &BTreeSet<(&str, u16)>) -> bool {
        now.at.get(&self.address).into_iter().flatten().any(|(slice, endpoint)| {
            let takes_its_place = !endpoint.terminating && has_port(slice, self.registration.port);
            let is_desired = || desired.contains(&(&*self.registration.address, self.registration.port));
            takes_its_place && is_desired() || self.is_of(endpoint.pod.as_ref().map(|pod| &pod.uid))
        })
    }

    /// Says whether a slice has its endpoint, and it terminates.
    fn terminates_in(&self, now: &Now<'_>) -> bool {
        let at_address = now.at.get(&self.address).into_iter().flatten();
        at_address
            .map(|(_, endpoint)| endpoint)
            .any(|endpoint| endpoint.terminating && self.is_of(endpoint.pod.as_ref().map(|pod| &pod.uid)))
    }
}

impl World {
    /// The registrations of a resource that stay as they are although their endpoints are missing, of those that `desired`
    /// does not have, or has at an address of the other family.
    #[must_use]
    pub fn missing<'a>(
        &self,
        owner: &ResourceKey,
        cluster: &ClusterName,
        desired: &Desired,
        rows: impl Iterator<Item = (&'a RowKey, &'a Row)>,
        now: Instant,
    ) -> Missing {
        let Some(spec) = self.effective_spec(owner) else { return Missing::default() };
        let Source::Service { name } = &spec.source else { return Missing::default() };
        let of = ObjectKey { namespace: owner.namespace.clone(), name: name.clone() };
        let (selects, gone) = match (self.services.get(&of), self.history.gone(&of)) {
            (Some(service), _) if !service.external_name => (service.selects, None),
            (None, Some(gone)) if now < gone + SETTLED => (false, Some(gone)),
            _ => return Missing::default(),
        };
        let source = spec.source.to_string();
        let undesired = rows.filter_map(|(row, known)| {
            let registration = &*known.registration;
            // Somebody may have taken it off by hand.
            let is_from_here = registration.meta.get(meta::SOURCE).is_none_or(|from| **from == *source);
            let address: IpAddr = registration.address.parse().ok().filter(|_| is_from_here)?;
            // Where slices of the one family are rewritten, those of the other may have its pod all the time.
            let is_same = |wanted: &Arc<Registration>| {
                wanted.address.parse().is_ok_and(|wanted: IpAddr| wanted.is_ipv4() == address.is_ipv4())
            };
            if desired.get(row).is_some_and(is_same) {
                return None;
            }
            Some(Undesired { owner, cluster, row, registration, address })
        });
        let mut undesired = undesired.peekable();
        if undesired.peek().is_none() {
            return Missing::default();
        }
        let keys = self.slices_of.get(&of).into_iter().flatten();
        let slices = Now::of(keys.filter_map(|key| self.slices.get(key)));
        let mut missing = Missing { service: name.clone(), is_gone: gone.is_some(), ..Missing::default() };
        let places: BTreeSet<(&str, u16)> = desired.values().map(|wanted| (&*wanted.address, wanted.port)).collect();
        let is_missing = |row: &Undesired<'_>| {
            if gone.is_some() { !row.terminates_in(&slices) } else { !row.is_in(&slices, &places) }
        };
        for row in undesired.filter(|row| is_missing(row) && !self.has_pod_ended(spec, row)) {
            let no_slices = slices.are_none && selects;
            let Some(absence) = self.absence(&of, &row, slices.are_mixed, no_slices) else { continue };
            let until = Absence { gone, ..absence }.until();
            if until > now {
                missing.until = Some(missing.until.map_or(until, |first| first.min(until)));
                missing.rows.insert(row.row.clone());
            }
        }
        missing
    }

    /// Says what is known of a missing endpoint; none where it was seen terminating.
    fn absence(&self, of: &ObjectKey, row: &Undesired<'_>, mixed: bool, no_slices: bool) -> Option<Absence> {
        let listed = last_listed(&self.history.listed, &of.namespace)?;
        let known = self.history.services.get(of);
        let at_address = known.into_iter().flat_map(|known| known.left.range((row.address, None)..));
        let mut at_address = at_address.take_while(|((address, _), _)| *address == row.address);
        let left = at_address.find(|((_, uid), _)| row.is_of(uid.as_ref())).map(|(_, left)| left);
        if left.is_some_and(|left| left.terminating) {
            return None;
        }
        Some(Absence {
            since: left.map_or(listed, |left| left.at),
            written: known.map_or(listed, |known| known.written),
            mixed: mixed.then(|| known.and_then(|known| known.ports).unwrap_or(listed)),
            no_slices,
            gone: None,
            node: self.node_state(row.owner, row.registration),
        })
    }

    fn node_state(&self, owner: &ResourceKey, registration: &Registration) -> NodeState {
        let is_watched = self.always_needs(Kind::Node) || self.needs(owner, Kind::Node);
        let Some(name) = registration.meta.get(meta::NODE).filter(|_| is_watched) else { return NodeState::Settled };
        match self.history.nodes.get(name) {
            _ if self.node(name).is_none() => NodeState::Gone,
            Some(at) => NodeState::Back(*at),
            None => NodeState::Settled,
        }
    }

    /// Says whether the pod behind a registration is watched, and is gone or on its way out.
    fn has_pod_ended(&self, spec: &Spec, row: &Undesired<'_>) -> bool {
        if !spec.needs().pods {
            return false;
        }
        let namespace = &row.owner.namespace;
        let Some(name) = row.registration.meta.get(meta::POD) else {
            return spec.limits.verify_endpoints && !self.pods_at.contains_key(&(namespace.clone(), row.address));
        };
        let pod = self.pods.get(&ObjectKey { namespace: namespace.clone(), name: name.clone() });
        pod.is_none_or(|pod| pod.leaving || !row.is_of(Some(&pod.uid)) || !pod.addresses.contains(&row.address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl World {
        /// Says whether anything is remembered of slices.
        pub(in crate::state::world) fn remembers(&self) -> bool {
            !self.history.services.is_empty() || !self.history.due.is_empty() || !self.history.gone.is_empty()
        }
    }

    #[test]
    fn a_registration_stays_until_the_slices_have_settled() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let left = |since, written| Absence {
            since: at(since),
            written: at(written),
            mixed: None,
            no_slices: false,
            gone: None,
            node: NodeState::Settled,
        };
        for (absence, until, why) in [
            (left(100, 100), 105, "nothing else was written"),
            (left(100, 130), 135, "others are still being written"),
            (left(100, 158), 160, "a minute at most"),
            (Absence { mixed: Some(at(101)), ..left(100, 103) }, 160, "the ports are changing"),
            (Absence { mixed: Some(at(70)), ..left(100, 100) }, 130, "they have been different for long"),
            (Absence { mixed: Some(at(20)), ..left(100, 100) }, 105, "they are different for good"),
            (Absence { no_slices: true, ..left(100, 100) }, 160, "the controller makes one at least"),
            (Absence { gone: Some(at(100)), ..left(90, 103) }, 105, "the Service may be made anew"),
            (Absence { node: NodeState::Gone, ..left(100, 100) }, 160, "it may be registered again"),
            (Absence { node: NodeState::Back(at(80)), ..left(100, 110) }, 140, "the controller is to find it"),
        ] {
            assert_eq!(absence.until(), at(until), "{why}");
        }
    }
}
