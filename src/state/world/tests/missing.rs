//! Endpoints that are in no slice for a moment, and for good.

use std::time::Duration;

use super::*;
use crate::model::desired::{Desired, Placement, desired};
use crate::model::health::Health;
use crate::model::ids::{ClusterName, Identity};
use crate::model::registration::{Ownership, Row, RowKey};
use crate::model::resolve::{Before, resolve};
use crate::state::world::missing::{MOST, SETTLED};

/// A World and what was registered from it, at a time that goes on.
struct Registered {
    world: World,
    owner: ResourceKey,
    identity: Identity,
    rows: BTreeMap<RowKey, Row>,
    now: Instant,
}

impl Registered {
    /// The resource `a/r` from these slices of Service `a/s`, each by its endpoints; all of it was listed just now, and
    /// is registered.
    fn begun(spec: Spec, slices: &[Vec<Endpoint>]) -> Self {
        Self::listed(spec, Some(Service { selects: true, ..service(80) }), slices)
    }

    /// The same with this Service, or none.
    fn listed(spec: Spec, service: Option<Service>, slices: &[Vec<Endpoint>]) -> Self {
        let owner = key("a", "r");
        let world = World::of([seen(&owner, "u", 1, Ok(spec))]);
        let identity = Identity { cluster: ClusterName::new("c").unwrap(), uid: "uid-1".into() };
        let mut this = Self { world, owner, identity, rows: BTreeMap::new(), now: Instant::now() };
        for kind in [Kind::Slice, Kind::Service, Kind::Pod, Kind::Node] {
            this.on_event(begins(kind));
        }
        if let Some(service) = service {
            this.on_event(Change::Service(Step::InitApply(key("a", "s"), service)));
        }
        for (number, endpoints) in (1..).zip(slices) {
            let slice = slice("s", endpoints.clone());
            this.on_event(Change::Slice(Step::InitApply(key("a", &format!("s-{number}")), slice)));
        }
        for kind in [Kind::Slice, Kind::Service, Kind::Pod, Kind::Node] {
            this.on_event(is_done(kind));
        }
        let register = |registration| Row {
            registration,
            ownership: Ownership::Ours(key("a", "r")),
            health: Health::Passing,
            shown: true,
        };
        this.rows = this.desired().into_iter().map(|(row, registration)| (row, register(registration))).collect();
        this
    }

    /// Gives the fixture of this spec, long ago.
    fn from(spec: Spec, slices: &[Vec<Endpoint>]) -> Self {
        let mut this = Self::begun(spec, slices);
        this.pass(2 * MOST);
        this
    }

    fn on_event(&mut self, change: Change) {
        self.world.on_event_at(change, self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn write(&mut self, number: u8, endpoints: Vec<Endpoint>) {
        self.on_event(Change::Slice(Step::Apply(key("a", &format!("s-{number}")), slice("s", endpoints))));
    }

    fn delete(&mut self, number: u8) {
        self.on_event(Change::Slice(Step::Delete(key("a", &format!("s-{number}")))));
    }

    fn desired(&self) -> Desired {
        let spec = self.world.effective_spec(&self.owner).unwrap();
        let instances = resolve(spec, &self.world.facts(&self.owner), &Before::nothing()).instances;
        let placement = Placement::Agent { node: "agent".into() };
        desired(&self.identity, &self.owner, &"u".into(), spec, &instances, &placement, |_| true)
    }

    /// The last parts of the addresses that stay although they are missing.
    fn missing(&self) -> Vec<u8> {
        let cluster = &self.identity.cluster;
        let missing = self.world.missing(&self.owner, cluster, &self.desired(), self.rows.iter(), self.now);
        assert_eq!(missing.until.is_some(), missing.message().is_some());
        let addresses = missing.rows.iter().map(|row| &self.rows[row].registration.address);
        let mut last: Vec<u8> = addresses.map(|address| address.rsplit('.').next().unwrap().parse().unwrap()).collect();
        last.sort_unstable();
        last
    }
}

fn by_hand(last: u8) -> Endpoint {
    endpoint(last, None)
}

fn of_pod(last: u8) -> Endpoint {
    endpoint(last, Some(&format!("p{last}")))
}

fn terminating(last: u8) -> Endpoint {
    Endpoint { terminating: true, ..of_pod(last) }
}

const NONE: [u8; 0] = [];
const MOMENT: Duration = Duration::from_millis(50);
const NEARLY_SETTLED: Duration = SETTLED.saturating_sub(MOMENT);
const NEARLY_MOST: Duration = MOST.saturating_sub(MOMENT);

#[test]
fn an_endpoint_between_two_slices_stays() {
    let mut known = Registered::from(spec("s"), &[vec![by_hand(1), by_hand(2)], vec![by_hand(3), by_hand(4)]]);
    assert_eq!(known.missing(), NONE);
    known.write(1, vec![by_hand(3), by_hand(1)]);
    known.pass(MOMENT);
    assert_eq!(known.missing(), [2]);
    known.write(2, vec![by_hand(2), by_hand(4)]);
    assert_eq!(known.missing(), NONE);
}

#[test]
fn one_that_does_not_come_back_goes() {
    let mut known = Registered::from(spec("s"), &[vec![of_pod(1), of_pod(2)], vec![of_pod(3)]]);
    known.write(1, vec![of_pod(1)]);
    known.pass(NEARLY_SETTLED);
    assert_eq!(known.missing(), [2]);
    // While others are written it stays, and not for ever.
    for number in 4..20 {
        known.write(2, vec![of_pod(3), of_pod(number)]);
        known.pass(NEARLY_SETTLED);
        assert_eq!(known.missing().contains(&2), u32::from(number - 2) * NEARLY_SETTLED < MOST, "{number}");
    }
}

#[test]
fn one_that_was_seen_to_end_goes_at_once() {
    let mut known = Registered::from(spec("s"), &[vec![of_pod(1), of_pod(2)]]);
    known.write(1, vec![of_pod(1), terminating(2)]);
    assert_eq!(known.missing(), NONE, "it is there, and terminates");
    known.write(1, vec![of_pod(1)]);
    assert_eq!(known.missing(), NONE, "it is not there, and terminated");
}

#[test]
fn another_endpoint_at_its_address_takes_its_place() {
    let mut known = Registered::from(spec("s"), &[vec![of_pod(1), of_pod(2)]]);
    known.write(1, vec![of_pod(1), endpoint(2, Some("another"))]);
    assert_eq!(known.missing(), NONE);
    known.write(1, vec![of_pod(1)]);
    assert_eq!(known.missing(), [2], "whoever it is that is missing, nobody saw it end");
}

#[test]
fn one_that_terminates_at_its_address_does_not_take_its_place() {
    let mut known = Registered::from(spec("s"), &[vec![of_pod(1), of_pod(2)]]);
    let before = Endpoint { terminating: true, ..endpoint(2, Some("before")) };
    known.write(1, vec![of_pod(1), of_pod(2), before.clone()]);
    assert_eq!(known.missing(), NONE);
    known.write(1, vec![of_pod(1), before]);
    assert_eq!(known.missing(), [2], "the pod before it had the address, and is still listed");
}

#[test]
fn slices_that_are_all_deleted_are_waited_for() {
    let mut known = Registered::from(spec("s"), &[vec![of_pod(1)], vec![of_pod(2)]]);
    known.delete(1);
    known.delete(2);
    known.pass(NEARLY_MOST);
    assert_eq!(known.missing(), [1, 2], "Kubernetes' controller makes one at least");
    known.write(1, Vec::new());
    assert_eq!(known.missing(), [1, 2]);
    known.pass(MOMENT);
    assert_eq!(known.missing(), NONE);
}

#[test]
fn a_service_that_is_made_anew_within_seconds_loses_nothing() {
    let mut known = Registered::from(spec("s"), &[vec![of_pod(1), of_pod(2)], vec![of_pod(3), terminating(4)]]);
    let deleted = |known: &mut Registered| known.on_event(Change::Service(Step::Delete(key("a", "s"))));
    deleted(&mut known);
    assert_eq!(known.missing(), [1, 2, 3], "one that terminates goes");
    known.write(1, vec![terminating(1), of_pod(2)]);
    known.delete(1);
    known.delete(2);
    known.pass(NEARLY_SETTLED);
    assert_eq!(known.missing(), [2, 3], "the slices go with the Service");
    let anew = Service { selects: true, ..service(80) };
    known.on_event(Change::Service(Step::Apply(key("a", "s"), anew)));
    known.pass(SETTLED);
    assert_eq!(known.missing(), [2, 3], "its slices are to come");
    known.write(3, vec![of_pod(2), of_pod(3)]);
    assert_eq!(known.missing(), NONE);
    deleted(&mut known);
    known.pass(SETTLED);
    assert_eq!(known.missing(), NONE, "it does not come back");
}

#[test]
fn a_service_that_is_not_there_at_the_start_may_be_made_anew() {
    let before = Registered::from(spec("s"), &[vec![of_pod(1), of_pod(2)]]);
    // Lictor restarts, and in this moment somebody deletes the Service and makes it anew.
    let mut after = Registered::listed(spec("s"), None, &[]);
    after.rows = before.rows;
    assert_eq!(after.missing(), [1, 2]);
    after.pass(NEARLY_SETTLED);
    assert_eq!(after.missing(), [1, 2]);
    after.pass(MOMENT);
    assert_eq!(after.missing(), NONE, "it was deleted for good");
}

#[test]
fn what_another_source_registered_is_not_missing() {
    let mut known = Registered::from(spec("s"), &[vec![of_pod(1)]]);
    known.on_event(Change::Service(Step::Apply(key("a", "t"), service(80))));
    let edited = seen(&known.owner, "u", 2, Ok(spec("t")));
    known.on_event(Change::Resource(Step::Apply(key("a", "r"), edited)));
    assert_eq!(known.missing(), NONE);
}

#[test]
fn what_is_not_there_at_the_start_stays_for_some_seconds() {
    let before = Registered::from(spec("s"), &[vec![of_pod(1), of_pod(2)]]);
    let mut after = Registered::begun(spec("s"), &[vec![of_pod(1)]]);
    after.rows = before.rows;
    assert_eq!(after.missing(), [2]);
    after.pass(SETTLED);
    assert_eq!(after.missing(), NONE);
}

#[test]
fn one_whose_pod_is_watched_and_gone_goes_at_once() {
    let mut known = Registered::from(tagged("${pod.labels['app']}", spec("s")), &[]);
    for last in [1, 2] {
        known.on_event(Change::Pod(Step::Apply(key("a", &format!("p{last}")), pod(&format!("p{last}"), last, "s"))));
    }
    known.write(1, vec![of_pod(1), of_pod(2)]);
    let rows = known.desired().into_iter().map(|(row, registration)| {
        let ownership = Ownership::Ours(key("a", "r"));
        (row, Row { registration, ownership, health: Health::Passing, shown: true })
    });
    known.rows = rows.collect();
    assert_eq!(known.rows.len(), 2);
    known.on_event(Change::Pod(Step::Delete(key("a", "p2"))));
    known.write(1, Vec::new());
    assert_eq!(known.missing(), [1]);
}

#[test]
fn the_endpoints_of_a_node_that_is_gone_are_waited_for() {
    let on_node = |last| Endpoint { node: Some("n0".into()), ..of_pod(last) };
    let mut known = Registered::from(tagged("${node.zone}", spec("s")), &[vec![on_node(1), of_pod(2)]]);
    known.on_event(Change::Node(Step::Apply(key("", "n0"), node("z"))));
    known.pass(2 * MOST);
    known.on_event(Change::Node(Step::Delete(key("", "n0"))));
    known.write(1, Vec::new());
    known.pass(2 * SETTLED);
    assert_eq!(known.missing(), [1]);
    // The controller looks for the Node ever more seldom: it has not seen yet that it is back.
    known.on_event(Change::Node(Step::Apply(key("", "n0"), node("z"))));
    known.pass(2 * SETTLED);
    assert_eq!(known.missing(), [1]);
    known.pass(MOST);
    assert_eq!(known.missing(), NONE);
}

#[test]
fn an_endpoint_that_only_the_other_family_has_stays_at_its_address() {
    let mut known = Registered::from(spec("s"), &[vec![of_pod(1), of_pod(2)]]);
    let second = Endpoint { address: IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 2]), ..of_pod(2) };
    let second = Slice { family: Family::V6, ..slice("s", vec![second]) };
    known.on_event(Change::Slice(Step::Apply(key("a", "s-v6"), second)));
    assert_eq!(known.missing(), NONE);
    known.write(1, vec![of_pod(1)]);
    assert_eq!(known.missing(), [2], "the slice of the first family is being rewritten");
    known.pass(SETTLED);
    assert_eq!(known.missing(), NONE, "it moves to the other address");
}

#[test]
fn nothing_is_remembered_for_longer_than_it_matters() {
    let mut known = Registered::from(spec("s"), &[vec![of_pod(1), of_pod(2)]]);
    known.write(1, Vec::new());
    assert!(known.world.remembers());
    for _ in 0..3 {
        known.pass(MOST);
        known.on_event(begins(Kind::Resource));
    }
    assert!(!known.world.remembers());
}
