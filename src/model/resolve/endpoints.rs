//! The endpoints of a Service, each with the ports of all the slices that it stands in.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::ports::PortKey;
use crate::model::facts::{Endpoint, Slice};
use crate::model::ids::Str;

/// An endpoint as one of the slices has it.
#[derive(Clone, Copy)]
pub(super) struct Listed<'a> {
    pub(super) slice: &'a Slice,
    pub(super) endpoint: &'a Endpoint,
}

impl<'a> Listed<'a> {
    /// All endpoints of these slices.
    pub(super) fn all(slices: impl Iterator<Item = &'a Slice>) -> impl Iterator<Item = Self> {
        slices.flat_map(|slice| slice.endpoints.iter().map(move |endpoint| Self { slice, endpoint }))
    }

    /// The uid of the pod that it names.
    pub(super) fn uid(&self) -> Option<&'a Str> {
        self.endpoint.pod.as_ref().map(|pod| &pod.uid)
    }

    /// Gives the name that people call it by: the pod's name, or the address where there is no pod.
    pub(super) fn called(&self) -> String {
        let pod = self.endpoint.pod.as_ref();
        pod.map_or_else(|| self.endpoint.address.to_string(), |pod| pod.name.to_string())
    }
}

/// Endpoints by their addresses.
///
/// A slice has one set of ports. Where the ports of an endpoint differ from its neighbours', or somebody writes slices
/// by hand, it stands in several slices, each with some of its ports: an Endpoints object of two subsets becomes two
/// slices (`TestReconcile` of Kubernetes' pkg/controller/endpointslicemirroring: "Endpoints with 2 subsets, multiple ports
/// and addresses"). Its ports are those of all of them.
pub(super) struct Endpoints<'a>(BTreeMap<IpAddr, Vec<Listed<'a>>>);

impl<'a> Endpoints<'a> {
    pub(super) fn new(all: impl Iterator<Item = Listed<'a>>) -> Self {
        let mut at: BTreeMap<IpAddr, Vec<Listed<'a>>> = BTreeMap::new();
        for listed in all {
            at.entry(listed.endpoint.address).or_default().push(listed);
        }
        Self(at)
    }

    /// All of them, once for each slice.
    pub(super) fn iter(&self) -> impl Iterator<Item = Listed<'a>> {
        self.0.values().flatten().copied()
    }

    /// The number of a port of an endpoint: of its own slice or, where that has no such port, of another one.
    pub(super) fn number(&self, of: Listed<'a>, port: &PortKey) -> Option<u16> {
        let others = || self.same(of).find_map(|other| port.number_in(other.slice));
        port.number_in(of.slice).or_else(others)
    }

    /// Finds the port by the name alone; of several protocols TCP comes first.
    pub(super) fn named(&self, of: Listed<'a>, name: &Str) -> Option<u16> {
        let in_slice = |slice: &Slice| {
            let named = slice.ports.iter().filter(|port| port.name == *name);
            named.min_by_key(|port| port.protocol).map(|port| port.number)
        };
        in_slice(of.slice).or_else(|| self.same(of).find_map(|other| in_slice(other.slice)))
    }

    /// Says whether a slice names the pod behind an endpoint that names none.
    pub(super) fn names_its_pod(&self, of: Listed<'a>, port: &PortKey) -> bool {
        let number = port.number_in(of.slice);
        let is_it = |other: Listed<'_>| other.endpoint.pod.is_some() && port.number_in(other.slice) == number;
        of.endpoint.pod.is_none() && self.same(of).any(is_it)
    }

    /// Finds the endpoint in all slices. Pods in their node's network share its address: two pods are two endpoints.
    fn same(&self, of: Listed<'a>) -> impl Iterator<Item = Listed<'a>> {
        let here = self.0.get(&of.endpoint.address).into_iter().flatten().copied();
        here.filter(move |other| match (&of.endpoint.pod, &other.endpoint.pod) {
            (Some(one), Some(other)) => one.uid == other.uid,
            (None, _) | (_, None) => true,
        })
    }
}
