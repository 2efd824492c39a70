//! Which address family an endpoint counts in.
//!
//! A Service has one or two families. An endpoint counts in the first one, and its address of the second one only stands
//! beside it. But nothing that lives may be passed over for its family alone: a headless Service without a selector is of
//! both families unless it says otherwise (`initIPFamilyFields` in Kubernetes' pkg/registry/core/service/storage/alloc.go),
//! on any cluster, and whichever family the slices are of that somebody writes for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::endpoints::Listed;
use crate::model::facts::{Family, Service, Slice};
use crate::model::ids::Str;
use crate::model::reasons::Remark;

/// The endpoints of a Service by what becomes of them.
pub(super) struct Choice<'a> {
    /// Those that count, each in one family.
    pub(super) endpoints: Vec<Listed<'a>>,
    /// The addresses of pods in the family that they do not count in.
    pub(super) others: BTreeMap<&'a Str, IpAddr>,
    /// The number of the second family that are passed over: they name no pod, so nobody can tell which of the first
    /// they are.
    without_pod: usize,
    /// The number of slices that hold host names.
    pub(super) host_names: usize,
}

/// Chooses among the slices of a Service.
///
/// One of the second family counts if its pod has no endpoint in the first one or, where it names no pod, if the first
/// one has none at all. Kubernetes' controller writes the slices of one family after those of the other, in any order: of
/// a Service with a selector, a pod that is not ready yet is waited for in the first one.
pub(super) fn choose<'a>(slices: impl Iterator<Item = &'a Slice>, service: &Service) -> Choice<'a> {
    let (host_names, slices): (Vec<&Slice>, Vec<&Slice>) = slices.partition(|slice| slice.family == Family::Fqdn);
    let is_first = |slice: &&Slice| service.family.is_none_or(|family| slice.family == family);
    let (first, second): (Vec<&Slice>, Vec<&Slice>) = slices.into_iter().partition(is_first);
    let mut endpoints: Vec<Listed<'a>> = Listed::all(first.into_iter()).collect();
    let (pods, is_empty): (BTreeSet<&Str>, bool) =
        (endpoints.iter().filter_map(Listed::uid).collect(), endpoints.is_empty());
    let (mut others, mut without_pod) = (BTreeMap::new(), 0);
    for listed in Listed::all(second.into_iter()) {
        let endpoint = listed.endpoint;
        match listed.uid() {
            Some(uid) if pods.contains(uid) => {
                if !endpoint.terminating || endpoint.serving {
                    others.insert(uid, endpoint.address);
                }
            }
            Some(_) => {
                if !service.selects || endpoint.ready || endpoint.terminating {
                    endpoints.push(listed);
                }
            }
            None if is_empty => endpoints.push(listed),
            None => without_pod += usize::from(!endpoint.terminating),
        }
    }
    Choice { endpoints, others, without_pod, host_names: host_names.len() }
}

impl Choice<'_> {
    /// Says what is passed over.
    pub(super) fn remarks(&self, first: Option<Family>) -> Vec<Remark> {
        let (one, other) = if first == Some(Family::V6) { ("IPv6", "IPv4") } else { ("IPv4", "IPv6") };
        let without_pod = format!(
            "{} {other} endpoints are skipped: they name no pod (targetRef), and the Service has endpoints of {one}, its \
             first family",
            self.without_pod
        );
        let host_names = format!("{} slices of host names (FQDN) are skipped", self.host_names);
        let all = [(self.without_pod, without_pod), (self.host_names, host_names)];
        let said = all.into_iter().filter(|(many, _)| *many > 0);
        said.map(|(_, message)| Remark { reason: "EndpointsPassedOver", message }).collect()
    }
}
