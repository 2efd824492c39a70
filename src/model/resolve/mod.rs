//! From a source's facts to instances: which endpoints count, at which port, with which values, once each.

mod addresses;
mod before;
mod endpoints;
mod families;
mod limit;
mod pods;
mod ports;
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::facts::{Endpoint, Facts, Pod, PodRef};
use super::ids::{Str, meta};
use super::port::{PortInUse, PortRef};
use super::reasons::{Problem, ProblemReason, Remark, Unresolved};
use super::registration::Registration;
use super::resource::{PerAddress, Readiness, Source, Spec, StaticAddress};
use super::template::{Values, Variable};
pub use before::Before;
pub use limit::limit;

/// One endpoint of a resource, resolved to a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The address at which it answers.
    pub address: IpAddr,
    /// 1 to 65535.
    pub port: u16,
    /// Its address of the other family, where it has one and that is asked for.
    pub other_address: Option<IpAddr>,
    /// True if Kubernetes calls it ready, or does not know it.
    pub ready: bool,
    /// The Kubernetes node that it runs on.
    pub node: Option<Str>,
    /// The pod behind it.
    pub pod: Option<PodRef>,
    /// The port that each check of the spec goes to, in their order; none where this endpoint has no such port.
    pub check_ports: Vec<Option<u16>>,
    /// The values that the spec's texts hold, as far as this instance has them.
    pub values: Values,
    /// The tags and meta that it has besides what all instances have.
    pub own: Option<Arc<PerAddress>>,
}

impl Instance {
    /// Gives what stands for this instance in its ID: the pod's uid, or the address where there is no pod.
    #[must_use]
    pub fn target(&self) -> Str {
        self.pod.as_ref().map_or_else(|| self.address.to_string().into(), |pod| pod.uid.clone())
    }

    /// Gives the name that people call it by: the pod's name, or the address where there is no pod.
    #[must_use]
    pub fn called(&self) -> String {
        self.pod.as_ref().map_or_else(|| self.address.to_string(), |pod| pod.name.to_string())
    }
}

/// Says what a source came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolution {
    /// The instances, each once, in the order of their targets.
    pub instances: Vec<Instance>,
    /// The problems of what is not among them although it lives.
    pub left_out: Vec<Problem>,
    /// The remarks about it although it could be resolved.
    pub remarks: Vec<Remark>,
    /// Says why the source could not be resolved; none where it could, be it to nothing.
    pub unresolved: Option<Unresolved>,
    /// Says which of the registrations made earlier stay although `instances` does not have them.
    pub hold: Hold,
    /// The port of the source that is registered, where the spec names none; while the source cannot be resolved, the one
    /// that was.
    pub port_in_use: Option<PortInUse>,
}

/// Registrations that stay until the new state is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    /// None: the instances are the whole truth.
    #[default]
    Nothing,
    /// Those that came from another source than this one: an earlier spec registered them, and nothing is
    /// known of this spec's source. Those of this very source went with it.
    OtherSources(Str),
    /// Those at these addresses: the endpoint lives, only how to register it is not known.
    Addresses(BTreeSet<Str>),
    /// Those that came from another source than this one, and those at these addresses: the resource may only keep what it
    /// has.
    Kept(Str, BTreeSet<Str>),
}

impl Hold {
    /// Says whether a registration stays.
    #[must_use]
    pub fn holds(&self, registration: &Registration) -> bool {
        match self {
            Self::Nothing => false,
            Self::OtherSources(source) => registration.meta.get(meta::SOURCE) != Some(source),
            Self::Addresses(addresses) => addresses.contains(&registration.address),
            Self::Kept(source, addresses) => {
                registration.meta.get(meta::SOURCE) != Some(source) || addresses.contains(&registration.address)
            }
        }
    }

    /// Holds what is there for a resource that may only keep it: what these living endpoints are, and what came from
    /// another source than its present one.
    #[must_use]
    pub fn keeping(self, source: &Source, living: impl Iterator<Item = Str>) -> Self {
        let held = match self {
            Self::Nothing | Self::OtherSources(_) => BTreeSet::new(),
            Self::Addresses(addresses) | Self::Kept(_, addresses) => addresses,
        };
        Self::Kept(source.to_string().into(), held.into_iter().chain(living).collect())
    }

    /// Holds what is at these addresses, too.
    fn and(self, more: BTreeSet<Str>) -> Self {
        match self {
            Self::Nothing => Self::of(more),
            Self::Addresses(addresses) => Self::Addresses(addresses.into_iter().chain(more).collect()),
            Self::Kept(source, addresses) => Self::Kept(source, addresses.into_iter().chain(more).collect()),
            Self::OtherSources(_) => self,
        }
    }

    fn of(addresses: BTreeSet<Str>) -> Self {
        if addresses.is_empty() { Self::Nothing } else { Self::Addresses(addresses) }
    }
}

/// Resolves the source of a spec, whatever the [`limit`].
pub fn resolve<'a>(
    spec: &Spec,
    facts: &impl Facts,
    before: &Before<'a, impl Iterator<Item = &'a Registration> + Clone>,
) -> Resolution {
    let mut resolution = match &spec.source {
        Source::Service { name } => service::resolve(name, spec, facts, before),
        Source::Pods { .. } => pods::resolve(spec, facts, before),
        Source::Static { addresses } => fixed(addresses, spec),
    };
    if resolution.port_in_use.is_none() && spec.port.is_none() {
        resolution.port_in_use = before.told(&spec.source).cloned();
    }
    addresses::allowed(resolution, spec)
}

/// Says what is left of an instance that the spec does not ask for any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remains {
    /// It lives on: it goes because of an edit.
    Living,
    /// It is on its way out and serves until then.
    Serving,
    /// Nothing is left of it.
    Nothing,
}

/// Says what is left of what a registration stands for. Of what came from another source nobody knows; it may live.
pub fn remains(spec: &Spec, there: &Registration, facts: &impl Facts) -> Remains {
    if there.meta.get(meta::SOURCE).is_none_or(|source| **source != spec.source.to_string()) {
        return Remains::Living;
    }
    match &spec.source {
        // What its slices do not have any more is gone.
        Source::Service { name } => {
            let address = there.address.parse::<IpAddr>().ok();
            let mut endpoints = facts.slices(name).flat_map(|slice| &slice.endpoints);
            let serves =
                |endpoint: &Endpoint| endpoint.terminating && endpoint.serving && Some(endpoint.address) == address;
            if endpoints.any(serves) { Remains::Serving } else { Remains::Nothing }
        }
        Source::Pods { .. } => {
            let pod = there.meta.get(meta::POD).and_then(|name| facts.pod(name));
            let is_at = |pod: &&Pod| pod.addresses.iter().any(|address| address.to_string() == *there.address);
            pod.filter(is_at).map_or(Remains::Nothing, |pod| match (pod.leaving, pod.ready) {
                (false, ready) if ready || spec.readiness != Readiness::Deregister => Remains::Living,
                (true, true) => Remains::Serving,
                _ => Remains::Nothing,
            })
        }
        Source::Static { .. } => Remains::Living,
    }
}

/// Says which of these addresses the source of a spec still has, and whether what is there terminates.
pub fn are_terminating(spec: &Spec, facts: &impl Facts, addresses: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, bool> {
    let mut found = BTreeMap::new();
    let mut add = |address: &IpAddr, terminates: bool| {
        if addresses.contains(address) {
            // One that lives goes before one that terminates.
            *found.entry(*address).or_insert(true) &= terminates;
        }
    };
    match &spec.source {
        Source::Service { name } => {
            let endpoints = facts.slices(name).flat_map(|slice| &slice.endpoints);
            endpoints.for_each(|endpoint| add(&endpoint.address, endpoint.terminating));
        }
        Source::Pods { .. } => {
            for (_, pod) in facts.matching() {
                pod.addresses.iter().for_each(|address| add(address, pod.leaving));
            }
        }
        Source::Static { addresses } => addresses.iter().for_each(|given| add(&given.address, false)),
    }
    found
}

/// Resolves static addresses: what runs elsewhere is where the author says.
fn fixed(addresses: &[StaticAddress], spec: &Spec) -> Resolution {
    let instances = addresses.iter().map(|given| Instance {
        address: given.address,
        port: given.port,
        other_address: None,
        ready: true,
        node: None,
        pod: None,
        check_ports: spec.checks.iter().map(|check| own_port(check.port.as_ref(), given.port)).collect(),
        values: Values::new(),
        own: Some(given.own.clone()),
    });
    Resolution { instances: instances.collect(), ..Resolution::default() }
}

/// The port of a check against what has no named ports.
fn own_port(port: Option<&PortRef>, own: u16) -> Option<u16> {
    match port {
        None => Some(own),
        Some(PortRef::Number(number)) => Some(*number),
        Some(PortRef::Name(_)) => None,
    }
}

/// A source that could not be resolved; what is registered at these addresses stays.
fn unresolved(why: Unresolved, addresses: BTreeSet<Str>) -> Resolution {
    Resolution {
        instances: Vec::new(),
        left_out: Vec::new(),
        remarks: Vec::new(),
        unresolved: Some(why),
        hold: Hold::of(addresses),
        port_in_use: None,
    }
}

/// Instances as they are found, and what is found wrong.
#[derive(Default)]
struct Found {
    instances: BTreeMap<(Str, u16), Instance>,
    left_out: BTreeMap<String, Problem>,
    remarks: Vec<Remark>,
    port_in_use: Option<PortInUse>,
    held: BTreeSet<Str>,
    without_port: usize,
}

impl Found {
    /// Leaves out an endpoint that lives.
    fn leave_out(&mut self, instance: String, reason: ProblemReason, message: String) {
        self.left_out.insert(instance.clone(), Problem { instance, reason, message });
    }

    fn leave_out_without_port(&mut self, instance: String, message: String) {
        self.without_port += 1;
        self.leave_out(instance, ProblemReason::PortNotFound, message);
    }

    /// Says whether one of them is ready.
    fn has_ready(&self) -> bool {
        self.instances.values().any(|instance| instance.ready)
    }

    /// Adds an endpoint, or joins it with its copy of another slice: while endpoints move between slices they
    /// stand in both, and the newer one says ready first.
    fn unite(&mut self, instance: Instance) {
        let key = (instance.target(), instance.port);
        self.instances.entry(key).and_modify(|known| known.ready |= instance.ready).or_insert(instance);
    }

    fn resolution(mut self) -> Resolution {
        // A pod that is registered by one of its endpoints does not lack the port for another one.
        if !self.left_out.is_empty() {
            let called: BTreeSet<String> = self.instances.values().map(Instance::called).collect();
            self.left_out
                .retain(|left, problem| problem.reason != ProblemReason::PortNotFound || !called.contains(left));
        }
        Resolution {
            instances: self.instances.into_values().collect(),
            left_out: self.left_out.into_values().collect(),
            remarks: self.remarks,
            unresolved: None,
            hold: Hold::of(self.held),
            port_in_use: self.port_in_use,
        }
    }
}

/// The values that the texts of a spec hold.
struct Wanted<'a> {
    variables: BTreeSet<&'a Variable>,
    of_pod: bool,
}

impl<'a> Wanted<'a> {
    fn by(spec: &'a Spec) -> Self {
        let variables = spec.variables();
        let of_pod = variables.iter().any(|variable| variable.is_of_pod());
        Self { variables, of_pod }
    }

    /// Says whether all that is asked of a pod is known of this one.
    fn knows(&self, pod: &Pod) -> bool {
        self.variables.iter().all(|variable| match variable {
            Variable::Label(key) => pod.labels.knows(key),
            Variable::Annotation(key) => pod.annotations.knows(key),
            _ => true,
        })
    }

    /// The values of one endpoint.
    fn values(
        &self,
        reference: Option<&PodRef>,
        pod: Option<&Pod>,
        node: Option<&Str>,
        port: impl Fn(&Str) -> Option<u16>,
        facts: &impl Facts,
    ) -> Values {
        let value = |variable: &Variable| match variable {
            Variable::PodName => reference.map(|pod| pod.name.clone()),
            Variable::PodNamespace => reference.map(|_| facts.namespace().clone()),
            Variable::PodUid => reference.map(|pod| pod.uid.clone()),
            Variable::Label(key) => pod?.labels.get(key).cloned(),
            Variable::Annotation(key) => pod?.annotations.get(key).cloned(),
            Variable::NodeName => node.cloned(),
            Variable::Zone => facts.node(node?)?.zone.clone(),
            Variable::Region => facts.node(node?)?.region.clone(),
            Variable::Port(name) => port(name).map(|number| number.to_string().into()),
        };
        self.variables.iter().filter_map(|variable| Some(((*variable).clone(), value(variable)?))).collect()
    }
}

fn text(address: IpAddr) -> Str {
    address.to_string().into()
}

#[cfg(test)]
mod tests;
