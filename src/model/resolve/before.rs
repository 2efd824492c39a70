//! Which port goes on where `spec.port` is left out and the source has several.
//!
//! A source with one port needs no `spec.port`. When somebody adds a port to it, as an app's team adds `metrics` or a mesh
//! injects a container, the author of the resource has changed nothing: the port that is registered goes on, by its
//! name. What it was is told by the status and, where that says nothing, by what is registered.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::iter::Empty;
use std::net::IpAddr;

use super::ports::find;
use crate::model::facts::{ContainerPort, Pod, Service, ServicePort, Slice};
use crate::model::ids::meta;
use crate::model::port::{PortInUse, PortRef};
use crate::model::registration::Registration;
use crate::model::resource::{Resource, Source};

/// Holds what a resource came to before, as far as it says so itself or Consul holds it.
#[derive(Clone, Copy, Debug)]
pub struct Before<'a, R> {
    /// The port that its status names.
    pub(super) told: Option<&'a PortInUse>,
    /// True if the status is about its present spec.
    pub(super) is_present: bool,
    pub(super) registered: R,
    /// Set once the status has told something.
    pub(super) noted: Option<&'a Cell<bool>>,
}

impl Before<'static, Empty<&'static Registration>> {
    /// That of a resource which nothing is known of.
    #[must_use]
    pub fn nothing() -> Self {
        Self { told: None, is_present: false, registered: std::iter::empty(), noted: None }
    }
}

impl<'a, R: Iterator<Item = &'a Registration> + Clone> Before<'a, R> {
    /// That of a resource which has these registrations in Consul, those under way included.
    pub fn of(resource: Option<&'a Resource>, registered: R) -> Self {
        let told = resource.and_then(|resource| resource.status.port_in_use.as_ref());
        let is_present = resource.is_some_and(|of| of.status.observed_generation == of.generation);
        Self { told, is_present, registered, noted: None }
    }

    /// Has noted whether what the status says decides about anything.
    #[must_use]
    pub fn noting(self, goes_by_status: &'a Cell<bool>) -> Self {
        Self { noted: Some(goes_by_status), ..self }
    }

    /// The port that the status names, of this very source.
    pub(super) fn told(&self, source: &Source) -> Option<&'a PortInUse> {
        if let Some(noted) = self.noted {
            noted.set(true);
        }
        self.told.filter(|told| *told.source == *source.to_string())
    }

    /// The port of a Service that goes on; none where nothing tells.
    ///
    /// In this order: what the status says of the present spec; what stands in the slices at the addresses and port numbers
    /// that are registered; what the status says of an earlier spec; what stands in the slices under the port numbers that
    /// are registered. Numbers come second since a name may get another number at any time.
    pub(super) fn port_of_service<'s>(
        &self,
        source: &Source,
        service: &'s Service,
        slices: impl Iterator<Item = &'s Slice> + Clone,
    ) -> Option<&'s ServicePort> {
        let told = || self.told(source).and_then(|told| find(service, &told.port));
        told()
            .filter(|_| self.is_present)
            .or_else(|| self.by_address(service, slices.clone()))
            .or_else(told)
            .or_else(|| self.by_number(source, service, slices))
    }

    fn by_address<'s>(&self, service: &'s Service, slices: impl Iterator<Item = &'s Slice>) -> Option<&'s ServicePort> {
        let registered: BTreeSet<(IpAddr, u16)> = self.registered.clone().filter_map(end).collect();
        let mut votes = BTreeSet::new();
        for slice in slices {
            for (index, number) in numbers(service, slice) {
                let has = slice.endpoints.iter().map(|endpoint| (endpoint.address, number));
                votes.extend(has.filter(|at| registered.contains(at)).map(|at| (index, at)));
            }
        }
        most(service, votes.into_iter().map(|(index, _)| (index, 1)))
    }

    /// Finds a port by its number. What is registered may be at none of these addresses any more. What came from
    /// another source tells nothing.
    fn by_number<'s>(
        &self,
        source: &Source,
        service: &'s Service,
        slices: impl Iterator<Item = &'s Slice>,
    ) -> Option<&'s ServicePort> {
        let mut registered: BTreeMap<u16, usize> = BTreeMap::new();
        self.from(source).for_each(|there| *registered.entry(there.port).or_default() += 1);
        let all: BTreeSet<(usize, u16)> = slices.flat_map(|slice| numbers(service, slice)).collect();
        most(service, all.into_iter().filter_map(|(index, number)| Some((index, *registered.get(&number)?))))
    }
}

impl<'a, R: Iterator<Item = &'a Registration> + Clone> Before<'a, R> {
    /// The ports of pods that go on, the first one first that a pod has; in the same order as those of a Service.
    pub(super) fn ports_of_pods<'p>(&self, source: &Source, pods: impl Iterator<Item = &'p Pod>) -> Vec<PortRef> {
        let told = || self.told(source).map(|told| told.port.clone());
        let mut at: BTreeMap<(IpAddr, u16), PortRef> = BTreeMap::new();
        for pod in pods {
            for port in &pod.ports {
                let ends = pod.addresses.iter().map(|address| (*address, port.number));
                at.extend(ends.map(|end| (end, of_container(port))));
            }
        }
        let named = self.registered.clone().filter_map(|there| at.get(&end(there)?).cloned());
        let numbers = self.from(source).map(|there| PortRef::Number(there.port));
        let present = told().filter(|_| self.is_present);
        present.into_iter().chain(by_votes(named)).chain(told()).chain(by_votes(numbers)).collect()
    }

    /// Gives what is registered of a source.
    fn from(&self, source: &Source) -> impl Iterator<Item = &'a Registration> + use<'a, R> {
        let source = source.to_string();
        self.registered.clone().filter(move |there| there.meta.get(meta::SOURCE).is_some_and(|of| **of == *source))
    }
}

/// Gives the address and port at which a registration answers.
fn end(there: &Registration) -> Option<(IpAddr, u16)> {
    Some((there.address.parse().ok()?, there.port))
}

/// Ports by how often they are there, the most frequent one first.
pub(super) fn by_votes(ports: impl Iterator<Item = PortRef>) -> Vec<PortRef> {
    let mut counted: BTreeMap<PortRef, usize> = BTreeMap::new();
    ports.for_each(|port| *counted.entry(port).or_default() += 1);
    let mut all: Vec<(Reverse<usize>, PortRef)> = counted.into_iter().map(|(port, n)| (Reverse(n), port)).collect();
    all.sort_unstable();
    all.into_iter().map(|(_, port)| port).collect()
}

/// Says how the resource's status is to call a port of a container.
pub(super) fn of_container(port: &ContainerPort) -> PortRef {
    if port.name.is_empty() { PortRef::Number(port.number) } else { PortRef::Name(port.name.clone()) }
}

/// Says how the resource's status is to call a port of a Service.
pub(super) fn of_service(source: &Source, port: &ServicePort) -> PortInUse {
    let number = PortRef::Number(port.number);
    let port = if port.name.is_empty() { number } else { PortRef::Name(port.name.clone()) };
    PortInUse { source: source.to_string().into(), port }
}

/// Lists the ports of a Service that a slice has, each with its number there.
fn numbers<'a>(service: &'a Service, slice: &'a Slice) -> impl Iterator<Item = (usize, u16)> + 'a {
    let port = |there: &ServicePort| {
        let mut ports = slice.ports.iter();
        ports.find(|port| (&port.name, port.protocol) == (&there.name, there.protocol)).map(|port| port.number)
    };
    service.ports.iter().enumerate().filter_map(move |(index, there)| Some((index, port(there)?)))
}

/// The port of a Service with the most votes; of several TCP's, and then the one that the Service has first.
fn most(service: &Service, votes: impl Iterator<Item = (usize, usize)>) -> Option<&ServicePort> {
    let mut counted: BTreeMap<usize, usize> = BTreeMap::new();
    votes.for_each(|(index, votes)| *counted.entry(index).or_default() += votes);
    let all = counted.into_iter().filter_map(|(index, votes)| Some((service.ports.get(index)?, index, votes)));
    all.min_by_key(|(port, index, votes)| (Reverse(*votes), port.protocol, *index)).map(|(port, ..)| port)
}
