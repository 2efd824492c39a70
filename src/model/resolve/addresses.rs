//! Which addresses of endpoints and pods may be those of instances.
//!
//! Whoever may write EndpointSlices chooses their addresses, and what is registered is connected to: by clients, and by
//! the checks of Consul.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Instance, Resolution, text};
use crate::model::address::forbidden;
use crate::model::reasons::{Problem, ProblemReason};
use crate::model::resource::{Source, Spec};

/// Leaves out the instances whose addresses may not be registered, and says so of each. The others go on.
///
/// What is registered at an address outside of the administrator's networks stays: a network that is missing from the
/// flag must not take down what lives there. What is registered at an address that no instance may have goes.
pub(super) fn allowed(mut resolution: Resolution, spec: &Spec) -> Resolution {
    // The administrator allows static addresses one by one.
    let networks: &[IpNet] = match spec.source {
        Source::Static { .. } => &[],
        Source::Service { .. } | Source::Pods { .. } => &spec.limits.endpoint_networks,
    };
    let is_outside = |address: IpAddr| !networks.is_empty() && !networks.iter().any(|net| net.contains(&address));
    let (mut left_out, mut held) = (Vec::new(), BTreeSet::new());
    resolution.instances.retain_mut(|instance| {
        // It is one more address of the same instance, which may do without it.
        instance.other_address.take_if(|other| forbidden(*other).is_some() || is_outside(*other));
        let address = instance.address.to_canonical();
        if let Some(why) = forbidden(address) {
            left_out.push(problem(instance, format!("{address} {why}")));
            return false;
        }
        if is_outside(address) {
            held.insert(text(instance.address));
            let why = "is not in the networks in which the administrator of Lictor allows endpoints \
                       (--endpoint-networks); a registered instance stays";
            left_out.push(problem(instance, format!("{address} {why}")));
            return false;
        }
        true
    });
    // An endpoint that has several ports is one.
    left_out.dedup();
    resolution.left_out.extend(left_out);
    resolution.left_out.sort_by(|a, b| a.instance.cmp(&b.instance));
    resolution.hold = resolution.hold.and(held);
    resolution
}

fn problem(instance: &Instance, message: String) -> Problem {
    Problem { instance: instance.called(), reason: ProblemReason::NotAllowed, message }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::resolve::Hold;
    use crate::model::resource::Limits;
    use crate::model::template::Values;

    fn at(address: &str, other: Option<&str>) -> Instance {
        Instance {
            address: address.parse().unwrap(),
            port: 80,
            other_address: other.map(|other| other.parse().unwrap()),
            ready: true,
            node: None,
            pod: None,
            check_ports: Vec::new(),
            values: Values::new(),
            own: None,
        }
    }

    fn of(source: Source, networks: &[&str], instances: Vec<Instance>) -> Resolution {
        let endpoint_networks: Arc<[IpNet]> = networks.iter().map(|net| net.parse().unwrap()).collect();
        let limits = Limits { endpoint_networks, ..Limits::default() };
        let spec = Spec { source, limits, ..crate::model::resolve::tests::web() };
        allowed(Resolution { instances, ..Resolution::default() }, &spec)
    }

    fn service() -> Source {
        Source::Service { name: "web".into() }
    }

    #[test]
    fn addresses_of_nobody_are_left_out_and_the_others_go_on() {
        for bad in ["169.254.169.254", "100.100.100.200", "224.0.1.1", "255.255.255.255", "127.0.0.1", "::1", "fe80::1"]
        {
            let found = of(service(), &[], vec![at("10.0.0.1", None), at(bad, None)]);
            assert_eq!(found.instances, [at("10.0.0.1", None)], "{bad}");
            let [problem] = &found.left_out[..] else { panic!("{bad}: {:?}", found.left_out) };
            assert_eq!((problem.reason, &*problem.instance), (ProblemReason::NotAllowed, bad));
            assert_eq!(found.hold, Hold::Nothing, "{bad} is never right");
        }
    }

    #[test]
    fn the_networks_of_the_administrator_narrow_it() {
        let all = || vec![at("10.0.0.1", Some("fd00::1")), at("10.9.0.1", None), at("10.0.0.2", Some("fd99::2"))];
        let networks = ["10.0.0.0/24", "fd00::/64"];
        let found = of(service(), &networks, all());
        assert_eq!(found.instances, [at("10.0.0.1", Some("fd00::1")), at("10.0.0.2", None)]);
        assert_eq!(found.left_out.len(), 1);
        assert_eq!(found.hold, Hold::Addresses(["10.9.0.1".into()].into()));
        let source = Source::Static { addresses: Vec::new() };
        assert_eq!(of(source, &networks, all()).instances, all(), "those have a flag of their own");
        assert_eq!(of(service(), &[], all()).instances, all());
    }
}
