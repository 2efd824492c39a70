//! The limit of instances for one resource: which of them count.

use std::collections::BTreeSet;

use super::{Instance, Resolution, text};
use crate::model::ids::Str;
use crate::model::reasons::{TOO_MANY_INSTANCES, Unresolved};
use crate::model::registration::Registration;
use crate::model::resource::Spec;

/// In which order instances are taken until the limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// It is registered: it stays, whatever the limit.
    Registered,
    /// Its address is registered, under another name or port: it replaces that registration.
    Replaces,
    /// It is new and ready.
    Ready,
    /// It is new and not ready.
    NotReady,
}

/// Cuts a resolution at the limit of its spec.
///
/// `id` answers the ID that an instance has in Consul; `registered` lists the IDs and registrations that the resource
/// has there, those under way included; `others` counts the instances of the other resources of its namespace. An instance
/// that is registered is never cut: while pods are replaced, old and new ones may exceed the limit together, and the service
/// must not drain. All inputs come from Consul and Kubernetes alone, so a restart decides the same.
#[must_use]
pub fn limit<'a>(
    resolution: Resolution,
    spec: &Spec,
    others: usize,
    id: impl Fn(&Instance) -> Str,
    registered: impl Iterator<Item = (&'a Str, &'a Registration)>,
) -> Resolution {
    let room = spec.limits.of_namespace.map_or(usize::MAX, |most| most.saturating_sub(others));
    let most = spec.limits.instances.min(room);
    let counts = |instance: &&Instance| spec.readiness.registers(instance.ready);
    let found = resolution.instances.iter().filter(counts).count();
    if found <= most {
        return resolution;
    }
    let (ids, addresses): (BTreeSet<&str>, BTreeSet<&str>) =
        registered.map(|(id, registration)| (&**id, &*registration.address)).unzip();
    let rank = |instance: &Instance| {
        if ids.contains(&*id(instance)) {
            Rank::Registered
        } else if addresses.contains(&*text(instance.address)) {
            Rank::Replaces
        } else if instance.ready {
            Rank::Ready
        } else {
            Rank::NotReady
        }
    };
    let numbered = resolution.instances.iter().enumerate().filter(|(_, instance)| counts(instance));
    let mut order: Vec<(Rank, usize)> = numbered.map(|(number, instance)| (rank(instance), number)).collect();
    // The numbers follow the targets: the order is the same each time.
    order.sort_unstable();
    let stay = order.partition_point(|(rank, _)| *rank == Rank::Registered);
    let left_out: BTreeSet<usize> = order[stay.max(most)..].iter().map(|(_, number)| *number).collect();
    let number = left_out.len();
    let message = match spec.limits.of_namespace.filter(|_| room < spec.limits.instances) {
        None => format!(
            "the source has {found} instances, but only {most} are allowed, so {number} are left out: registered instances \
             stay, then ready ones come first; make the source smaller, or ask the administrator of Lictor for more \
             (--max-instances)"
        ),
        Some(all) => format!(
            "the source has {found} instances, but the administrator's policy allows {all} in the namespace together \
             (budget.namespaceInstances) and other ConsulServices have {others}, so {number} are left out: registered \
             instances stay, then ready ones come first; make the sources smaller, or ask the administrator of Lictor for more"
        ),
    };
    let kept = resolution.instances.into_iter().enumerate().filter(|(number, _)| !left_out.contains(number));
    Resolution {
        instances: kept.map(|(_, instance)| instance).collect(),
        unresolved: Some(Unresolved { reason: TOO_MANY_INSTANCES, message }),
        ..resolution
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use super::*;

    use crate::model::registration::Weights;
    use crate::model::resource::{Limits, Readiness, Source};
    use crate::model::template::Values;

    fn address(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    fn spec(instances: usize, readiness: Readiness) -> Spec {
        Spec {
            service: "web".into(),
            source: Source::Service { name: "web".into() },
            port: None,
            tags: Vec::new(),
            meta: std::collections::BTreeMap::new(),
            weights: Weights::default(),
            tagged_addresses: Arc::default(),
            enable_tag_override: false,
            dual_stack: false,
            readiness,
            checks: Vec::new(),
            limits: Limits { instances, ..Limits::default() },
        }
    }

    /// Instances by the last part of their address: those above zero are ready, those below are not.
    fn found(numbers: &[i8]) -> Resolution {
        let instances = numbers.iter().map(|number| Instance {
            address: address(number.unsigned_abs()),
            port: 80,
            other_address: None,
            ready: *number > 0,
            node: None,
            pod: None,
            check_ports: Vec::new(),
            values: Values::new(),
            own: None,
        });
        Resolution { instances: instances.collect(), ..Resolution::default() }
    }

    /// Gives what is left of instances; `registered` are those that Consul holds, as (name, last part of the address).
    fn left(spec: &Spec, others: usize, numbers: &[i8], registered: &[(&str, u8)]) -> (Vec<u8>, Option<String>) {
        let rows: Vec<(Str, Registration)> = registered
            .iter()
            .map(|(name, number)| {
                let there = Registration::plain(name, &text(address(*number)), 80);
                (format!("{name}:{}", there.address).into(), there)
            })
            .collect();
        let id = |instance: &Instance| format!("web:{}", instance.address).into();
        let limited = limit(found(numbers), spec, others, id, rows.iter().map(|(id, there)| (id, there)));
        let last = |instance: &Instance| match instance.address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(_) => 0,
        };
        (limited.instances.iter().map(last).collect(), limited.unresolved.map(|why| why.message))
    }

    #[test]
    fn a_limit_cuts_and_never_what_is_registered() {
        use Readiness::{Deregister, Mirror};
        type Case<'a> = (&'a str, usize, Readiness, &'a [i8], &'a [(&'a str, u8)], &'a [u8]);
        let cases: [Case<'_>; 9] = [
            ("as many as are allowed", 3, Mirror, &[1, 2, 3], &[], &[1, 2, 3]),
            ("new ones in their order", 2, Mirror, &[1, 2, 3], &[], &[1, 2]),
            ("ready ones first", 2, Mirror, &[-1, -2, 3, -4], &[], &[1, 3]),
            ("what is registered stays", 2, Mirror, &[1, 2, 3, 4], &[("web", 3), ("web", 4)], &[3, 4]),
            ("also where it is not ready", 2, Mirror, &[1, 2, -3], &[("web", 3)], &[1, 3]),
            ("also above the limit", 1, Mirror, &[1, 2, 3], &[("web", 2), ("web", 3)], &[2, 3]),
            ("a rename takes the same ones", 1, Mirror, &[1, 2, 3], &[("old", 3)], &[3]),
            ("and does not exceed the limit", 1, Mirror, &[1, 2, 3], &[("old", 2), ("old", 3)], &[2]),
            (
                "what is not to be registered does not count",
                2,
                Deregister,
                &[-1, 2, -3, 4],
                &[("web", 1)],
                &[1, 2, 3, 4],
            ),
        ];
        for (case, most, readiness, numbers, registered, expected) in cases {
            let (kept, told) = left(&spec(most, readiness), 0, numbers, registered);
            assert_eq!(kept, expected, "{case}");
            let counted = numbers.iter().filter(|number| readiness.registers(**number > 0)).count();
            assert_eq!(told.is_some(), counted > most, "{case}");
            if let Some(told) = told {
                assert!(told.contains(&format!("{} are left out", numbers.len() - kept.len())), "{case}: {told}");
            }
        }
    }

    #[test]
    fn a_budget_of_the_namespace_leaves_what_others_do_not_have() {
        type Case<'a> = (&'a str, Option<usize>, usize, &'a [(&'a str, u8)], &'a [u8], &'a str);
        let cases: [Case<'_>; 6] = [
            ("no budget", None, 9, &[], &[1, 2, 3], ""),
            ("there is room", Some(5), 2, &[], &[1, 2, 3], ""),
            ("for two more", Some(5), 3, &[], &[1, 2], "allows 5 in the namespace together"),
            ("for none", Some(5), 7, &[], &[], "other ConsulServices have 7, so 3 are left out"),
            ("what is registered stays", Some(5), 5, &[("web", 3)], &[3], "so 2 are left out"),
            ("the limit of the resource is less", Some(9), 5, &[], &[1, 2, 3], ""),
        ];
        for (case, of_namespace, others, registered, expected, words) in cases {
            let mut spec = spec(3, Readiness::Mirror);
            spec.limits.of_namespace = of_namespace;
            let (kept, told) = left(&spec, others, &[1, 2, 3], registered);
            assert_eq!(kept, expected, "{case}");
            assert_eq!(told.is_some(), !words.is_empty(), "{case}: {told:?}");
            assert!(told.unwrap_or_default().contains(words), "{case}");
        }
    }
}
