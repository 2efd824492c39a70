//! What is checked once everything has settled: Consul holds just what is wanted, and every resource says so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lictor::cluster::api::ConsulServiceStatus;
use lictor::engine::Snapshot;
use lictor::model::ids::{ResourceKey, Str};
use lictor::model::resource::{Source, Spec};
use lictor::state::event::ObjectKey;

use crate::cluster::Object;
use crate::consul::agent::Agent as LocalAgent;
use crate::consul::store::{Service, fold};
use crate::expected::{Expected, Place, Rows, SHARD, Want, could_go_on, lives_without_port, node_of, owner, place};
use crate::moves::FORMER_NODE;
use crate::oracle::{asked, is_marked};
use crate::setup::{AGENT_NODE, CLUSTER, CLUSTER_UID, MARKER, Mode, UNWATCHED};
use crate::sim::State;
use crate::takeover::FORMER_UID;

/// How a place that a resource wants came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    /// As wanted.
    Registered,
    /// Somebody else has the ID.
    Taken,
    /// Not at all, since as many are registered as are allowed.
    LeftOut,
    /// Each write of it fails.
    Failing,
    /// Not at all.
    Missing,
}

/// Holds both servers against each other.
pub fn check(state: &mut State, snapshot: Option<&Snapshot>) {
    let mut found = Vec::new();
    let mut wants = state.wants();
    trace(state);
    divert(state, &mut wants);
    names(state, &mut wants, &mut found);
    let mut go_on = with_what_goes_on(state, &wants);
    divert(state, &mut go_on);
    let stands = rows(state, &go_on, &mut found);
    nodes(state, &mut found);
    left_behind(state, &mut found);
    kept_pods(state, &wants, &mut found);
    finalizers(state, &mut found);
    for (key, want) in &wants {
        let (what, source) = (ends_as(want), ends_from(&state.cluster.resources[key]));
        for what in [what, source] {
            state.stats.count(what);
        }
        status(state, &state.cluster.resources[key], want, &stands, &mut found);
        goes_on(state, &state.cluster.resources[key], want, &mut found);
    }
    if let Some(snapshot) = snapshot {
        loop_at_rest(state, snapshot, &mut found);
    }
    for (promise, what) in found {
        state.violate(promise, what);
    }
}

type Found = Vec<(&'static str, String)>;

/// For whoever reads the trace of a failure: how things stand.
fn trace(state: &mut State) {
    if !state.is_traced() {
        return;
    }
    let resources = state.cluster.resources.values().map(|object| {
        let Object { key, generation, deleting, paused, other_class, finalizers, status, .. } = object;
        let (asked, name) = (asked(object), &status.service_name);
        let conditions = status.conditions.iter().map(|c| (c.type_.as_str(), c.status.as_str(), c.reason.as_str()));
        let conditions: Vec<_> = conditions.collect();
        format!(
            "{key} at {generation} asks for {asked:?} and is told {name:?} {conditions:?} at {:?}; deleting {deleting}, paused \
             {paused}, other class {other_class}, {finalizers:?}",
            status.observed_generation
        )
    });
    let rows = state.consul.store.services().map(|(node, service)| {
        let mine = if is_marked(service) { "ours" } else { "not marked" };
        format!("{} on {node} as {} at {}, {mine}", service.id, service.service, service.address)
    });
    let lines: Vec<String> = resources.chain(rows).collect();
    for line in lines {
        state.trace(|| line);
    }
}

/// For the statistics: how a resource came out.
fn ends_as(want: &Want) -> &'static str {
    match want {
        Want::Rows(Rows { most: Some(_), .. }) => "in the end: more than are allowed",
        Want::Rows(Rows { left_out, .. }) if !left_out.is_empty() => "in the end: with some left out",
        Want::Rows(Rows { passed_over: true, .. }) => "in the end: with some passed over",
        Want::Rows(Rows { not_named: true, .. }) => "in the end: with a port that is not named",
        Want::Rows(Rows { blanks: true, .. }) => "in the end: with values missing",
        Want::Rows(_) => "in the end: registered",
        Want::NoService => "in the end: without a Service",
        Want::Unclear { .. } => "in the end: unclear",
        Want::Refused => "in the end: refused",
        Want::Paused => "in the end: paused",
        Want::Lost => "in the end: without its name",
        Want::Deleting => "in the end: being deleted",
        Want::Elsewhere => "in the end: another operator's",
    }
}

/// For the statistics: where its instances come from.
fn ends_from(object: &Object) -> &'static str {
    match object.spec.as_ref().map(|spec| &spec.source) {
        Ok(Source::Service { .. }) => "in the end: from a Service",
        Ok(Source::Pods { .. }) => "in the end: from pods",
        Ok(Source::Static { .. }) => "in the end: from static addresses",
        Err(_) => "in the end: from nothing",
    }
}

/// Where somebody else has the node that instances would go to, they go to a shard. Where their Node has gone, they stay
/// where they are: on its node, or on a shard if a later life of Lictor has put them there.
fn divert(state: &State, wants: &mut BTreeMap<ResourceKey, Want>) {
    let others = state.consul.store.nodes().filter(|node| !state.is_own_node(node));
    let others: BTreeSet<String> = others.map(|node| fold(&node.node)).collect();
    if state.setup.mode == Mode::Agent {
        return;
    }
    let gone =
        state.cluster.gone_nodes.iter().filter(|name| !state.cluster.nodes.contains_key(&ObjectKey::new("", name)));
    let gone: BTreeSet<String> = gone.map(|name| node_of(name)).collect();
    let there: BTreeSet<Place> = ours(state).into_iter().map(|(place, _, _)| place).collect();
    for want in wants.values_mut() {
        let Want::Rows(Rows { rows, .. }) = want else { continue };
        let diverted = std::mem::take(rows).into_iter().map(|((node, id), expected)| {
            let has_left = gone.contains(&node) && !there.contains(&(node.clone(), id.clone()));
            let node = if others.contains(&node) || has_left { SHARD.to_owned() } else { node };
            ((node, id), expected)
        });
        *rows = diverted.collect();
    }
}

/// A name is one namespace's, where it is not to be shared; the others were told so. What cannot be registered reserves
/// nothing. As long as nothing can be read in Consul nobody knows whose a name is, and nobody is told.
fn names(state: &State, wants: &mut BTreeMap<ResourceKey, Want>, found: &mut Found) {
    if state.setup.limits.shares_name || state.setup.name_taken {
        return;
    }
    let in_use = state.instances().filter_map(|(_, service)| Some((owner(&service.id)?, fold(&service.service))));
    let in_use: BTreeSet<(ResourceKey, String)> = in_use.collect();
    // With an agent one stays its own to Lictor whose mark somebody has changed.
    let remarked = state.consul.agent.iter().flat_map(LocalAgent::services);
    let remarked = remarked.filter(|service| state.oracle.is_disputed(AGENT_NODE, &service.id));
    let remarked = remarked.filter_map(|service| Some((owner(&service.id)?, fold(&service.service))));
    let remarked: BTreeSet<(ResourceKey, String)> = remarked.collect();
    let mut namespaces: BTreeMap<String, BTreeSet<Str>> = BTreeMap::new();
    for (key, want) in wants {
        let object = &state.cluster.resources[key];
        let Some(name) = asked(object).filter(|_| !object.deleting) else { continue };
        let others = || state.cluster.resources.values().filter(|other| other.key.namespace != key.namespace);
        let uses = |other: &Object| in_use.contains(&(other.key.clone(), name.clone()));
        // One that is frozen or refused may have the name from before, and one that has instances under it has it.
        let may_have_it_still = |other: &Object| {
            let asks = asked(other).as_ref() == Some(&name);
            other.paused
                || other.spec.is_err()
                || (uses(other) || remarked.contains(&(other.key.clone(), name.clone()))) && !asks
                || asks && other.deleting
                || goes_on_as(other, &name)
        };
        let may_have = |other: &Object| asked(other).as_ref() == Some(&name) || may_have_it_still(other);
        if was_told_of_conflict(object) && others().any(may_have) {
            if *want != Want::Paused {
                *want = Want::Lost;
            }
            if !others().any(may_have_it_still) {
                namespaces.entry(name).or_default();
            }
            continue;
        }
        let is_able = !matches!(want, Want::NoService | Want::Unclear { .. } | Want::Paused);
        if is_able || uses(object) || goes_on_as(object, &name) {
            namespaces.entry(name.clone()).or_default().insert(key.namespace.clone());
        }
    }
    for (name, namespaces) in namespaces {
        if namespaces.len() != 1 {
            found.push(("one name, one namespace", format!("{name} is had by {namespaces:?}")));
        }
    }
}

fn was_told_of_conflict(object: &Object) -> bool {
    condition(&object.status, "Accepted").is_some_and(|said| said == ("False", "NameConflict"))
}

/// Whether a resource says that it is registered under this name.
fn goes_on_as(object: &Object, name: &str) -> bool {
    object.status.service_name.as_deref().map(fold).as_deref() == Some(name)
}

/// What a resource without its name does with what it has.
enum GoesOn {
    /// It goes on by this spec.
    By(Box<Spec>),
    /// It stays as it is: what it came from nobody knows any more.
    AsItIs,
    /// It has nothing.
    Nothing,
}

/// What a resource without its name goes on with: what it asks for under the name that it has, as long as it comes from
/// where its instances came from; otherwise with the Service that they came from.
fn goes_on_with(state: &State, key: &ResourceKey) -> GoesOn {
    let object = &state.cluster.resources[key];
    let own =
        || state.instances().map(|(_, service)| &**service).filter(|there| owner(&there.id).as_ref() == Some(key));
    // One that was never told that a name is its own may have instances all the same, as after a restore.
    let told = object.status.service_name.as_deref();
    let name = told.or_else(|| own().map(|there| there.service.as_str()).min());
    let (Some(name), Ok(spec)) = (name, &object.spec) else { return GoesOn::Nothing };
    // Rather by the name that nobody takes from it; where that came from elsewhere, all stays as it is.
    let is_other = |service: &Service| fold(&service.service) != fold(name);
    if asked(object) == Some(fold(name)) && own().any(is_other) {
        return GoesOn::AsItIs;
    }
    let of_name = own().filter(|there| !is_other(there));
    let sources: BTreeSet<&str> = of_name.filter_map(|there| Some(there.meta.get("lictor-source")?.as_str())).collect();
    let mut spec = Box::new((**spec).clone());
    spec.service = name.into();
    let source = match &spec.source {
        Source::Service { name } => format!("service/{name}"),
        Source::Pods { .. } => "pods".to_owned(),
        Source::Static { .. } => "static".to_owned(),
    };
    if !sources.contains(source.as_str()) {
        let Some(service) = sources.iter().find_map(|source| source.strip_prefix("service/")) else {
            return if own().all(is_other) { GoesOn::Nothing } else { GoesOn::AsItIs };
        };
        spec.source = Source::Service { name: service.into() };
    }
    GoesOn::By(spec)
}

/// The same wants, but of those without their name what they go on with.
fn with_what_goes_on(state: &State, wants: &BTreeMap<ResourceKey, Want>) -> BTreeMap<ResourceKey, Want> {
    let mut all = wants.clone();
    for (key, want) in all.iter_mut().filter(|(_, want)| **want == Want::Lost) {
        match goes_on_with(state, key) {
            GoesOn::By(spec) => {
                *want = Want::by(&state.cluster, state.setup.mode, &state.cluster.resources[key], &spec);
            }
            GoesOn::AsItIs => *want = Want::Refused,
            GoesOn::Nothing => {}
        }
    }
    all
}

/// What is in the catalog of ours, by place.
fn ours(state: &State) -> Vec<(Place, &str, &Service)> {
    let marked = state.consul.store.services().filter(|(node, service)| {
        is_marked(service)
            && !state.oracle.is_foreign(node, &service.id)
            && owner(&service.id).is_some_and(|owner| &*owner.namespace != UNWATCHED)
    });
    marked.map(|(node, service)| (place(node, &service.id), node, &**service)).collect()
}

/// True, and nothing stale.
fn rows(state: &State, wants: &BTreeMap<ResourceKey, Want>, found: &mut Found) -> BTreeMap<Place, Stands> {
    let expected: BTreeMap<&Place, &Expected> = wants.values().filter_map(Want::rows).flatten().collect();
    let mut stands: BTreeMap<Place, Stands> =
        expected.keys().map(|place| ((*place).clone(), Stands::Missing)).collect();
    let (mut unwanted, mut kept) = (Vec::new(), BTreeSet::new());
    for (place, node, service) in ours(state) {
        if let Some(wanted) = expected.get(&place) {
            if stands.insert(place, Stands::Registered) == Some(Stands::Registered) {
                found.push(("true", format!("{} is registered twice", service.id)));
            }
            compare(state, node, service, wanted, found);
        } else if !may_stay(state, wants, node, service) {
            unwanted.push((node, service));
        } else if health(state, &place) == "passing" {
            kept.extend(owner(&service.id));
        }
    }
    // Resources and addresses of which something cannot be registered, and what cannot be.
    let (mut blocked, mut stuck) = (BTreeSet::new(), BTreeSet::new());
    for (place, stand) in stands.iter_mut().filter(|(_, stand)| **stand == Stands::Missing) {
        let (_, id) = place;
        let taken = state.consul.store.services().any(|(on, service)| {
            crate::expected::place(on, &service.id) == *place
                && service.meta.keys().any(|key| key.starts_with("lictor-"))
        });
        // On a node of ours, a mark that somebody has put on a row of ours is put right.
        if taken && state.setup.mode == Mode::Agent {
            *stand = Stands::Taken;
        } else if state.setup.failing.is_some_and(|failing| failing.includes(id)) {
            *stand = Stands::Failing;
        }
    }
    for rows in wants.values().filter_map(Want::limited) {
        leave_out(state, rows, &mut stands, found);
    }
    for (place, stand) in &stands {
        let (node, id) = place;
        if *stand == Stands::Missing && !state.setup.name_taken {
            found.push(("true", format!("{id} is not registered on {node}")));
        }
        if !matches!(stand, Stands::Registered | Stands::LeftOut) {
            blocked.insert((owner(id), expected[place].service.address.clone()));
            stuck.insert(id.clone());
        }
    }
    // What is to be replaced stays until its replacement is there, if it ever is.
    let mut awaited = awaited(&expected, &stands);
    awaited.extend(without_port(state, wants, &expected, &stands, &kept));
    let is_to_be_replaced = |service: &Service| {
        blocked.contains(&(owner(&service.id), service.address.clone()))
            || stuck.contains(&service.id)
            || owner(&service.id).is_some_and(|key| {
                awaited.contains_key(&key) && went_by_an_edit(state, service, awaited[&key].as_ref())
            })
    };
    if state.setup.mode == Mode::Catalog {
        changed_marks(state, wants, is_to_be_replaced, found);
    }
    for (node, service) in unwanted {
        if !is_to_be_replaced(service) {
            found.push(("nothing stale", format!("{} on {node} at {}", service.id, service.address)));
        }
    }
    stands
}

/// The resources of which something is to pass and nothing does, since Consul takes none of it, with their sources: what an
/// edit took away stays until then.
fn awaited(
    expected: &BTreeMap<&Place, &Expected>,
    stands: &BTreeMap<Place, Stands>,
) -> BTreeMap<ResourceKey, Option<String>> {
    let mut awaited = BTreeMap::new();
    let mut passing = BTreeSet::new();
    for (place, wanted) in expected.iter().filter(|(_, wanted)| wanted.readiness != Some("critical")) {
        let Some(key) = owner(&place.1) else { continue };
        if stands[*place] == Stands::Registered {
            passing.insert(key.clone());
        }
        awaited.insert(key, wanted.service.meta.get("lictor-source").cloned());
    }
    awaited.retain(|key, _| !passing.contains(key));
    awaited
}

/// The resources of which an endpoint lives that has not the port, and nothing passes of the others, or of what is `kept`;
/// with their sources. What an edit took away stays until something does.
fn without_port(
    state: &State,
    wants: &BTreeMap<ResourceKey, Want>,
    expected: &BTreeMap<&Place, &Expected>,
    stands: &BTreeMap<Place, Stands>,
    kept: &BTreeSet<ResourceKey>,
) -> BTreeMap<ResourceKey, Option<String>> {
    let passes = |(place, wanted): (&&Place, &&Expected)| {
        wanted.readiness != Some("critical") && stands[*place] == Stands::Registered
    };
    let lacks_port = |(key, want): (&ResourceKey, &Want)| {
        let Want::Rows(Rows { left_out, .. }) = want else { return None };
        let mut own = expected.iter().filter(|(place, _)| owner(&place.1).as_ref() == Some(key));
        let is_so = left_out.contains("PortNotFound") && !kept.contains(key) && !own.any(passes);
        let source = state.cluster.resources[key].spec.as_ref().ok().map(|spec| spec.source.to_string());
        is_so.then(|| (key.clone(), source))
    };
    wants.iter().filter_map(lacks_port).collect()
}

/// Whether an instance went by an edit for all that Lictor knows: it came from another source than the present one, or
/// its pod lives.
fn went_by_an_edit(state: &State, service: &Service, source: Option<&String>) -> bool {
    let is_there = || {
        let mut pods = state.cluster.pods.values().filter(|pod| !pod.leaving).flat_map(|pod| &pod.addresses);
        pods.any(|address| address.to_string() == service.address)
    };
    match source.map(String::as_str) {
        Some("static") => true,
        Some("pods") if service.meta.get("lictor-source") == source => is_there(),
        _ => service.meta.get("lictor-source") != source,
    }
}

/// Where more are wanted than are allowed: as many as are allowed are there, and of the others it is no matter which.
fn leave_out(state: &State, limited: &Rows, stands: &mut BTreeMap<Place, Stands>, found: &mut Found) {
    let Some(most) = limited.most else { return };
    let places = || limited.rows.keys();
    let registered = places().filter(|place| stands[*place] == Stands::Registered).count();
    let missing = places().filter(|place| stands[*place] == Stands::Missing).count();
    // One whose endpoint came back into a slice, or is ready again, may be registered still, and another one may have taken
    // its place.
    if registered > most && !state.cluster.was_rewritten && !limited.only_ready {
        found.push(("true", format!("{registered} are registered, and {most} are allowed")));
    }
    // What somebody else has may be among those that Lictor chose.
    if limited.rows.len() - missing >= most {
        let stands = stands.iter_mut().filter(|(place, _)| limited.rows.contains_key(*place));
        stands.filter(|(_, stand)| **stand == Stands::Missing).for_each(|(_, stand)| *stand = Stands::LeftOut);
    }
}

/// On nodes of ours, no row with an ID like ours is left with somebody else's mark.
fn changed_marks(
    state: &State,
    wants: &BTreeMap<ResourceKey, Want>,
    is_to_be_replaced: impl Fn(&Service) -> bool,
    found: &mut Found,
) {
    for node in state.consul.store.nodes().filter(|node| state.is_own_node(node)) {
        for service in state.consul.store.services_on(&node.node) {
            let has_mark = service.meta.keys().any(|key| key.starts_with("lictor-cluster"));
            let fails = state.setup.failing.is_some_and(|failing| failing.includes(&service.id));
            // One without its name keeps what it has, where nothing tells what that came from.
            let is_lost = |owner: &ResourceKey| matches!(wants.get(owner), Some(Want::Lost));
            if owner(&service.id).is_some_and(|owner| !is_lost(&owner))
                && has_mark
                && !fails
                && !is_marked(service)
                && !is_to_be_replaced(service)
                && !may_stay(state, wants, &node.node, service)
            {
                found.push(("nothing stale", format!("{} on {} has another mark", service.id, node.node)));
            }
        }
    }
}

/// Whether what is not wanted may be there all the same: nobody can tell what it should be.
fn may_stay(state: &State, wants: &BTreeMap<ResourceKey, Want>, node: &str, service: &Service) -> bool {
    // Only the agent itself can let go of it.
    if node == FORMER_NODE && state.former_is_out_of_reach() {
        return true;
    }
    let Some(key) = owner(&service.id) else { return false };
    match wants.get(&key) {
        Some(Want::Unclear { living, .. }) => {
            let source = state.cluster.resources[&key].spec.as_ref().ok().map(|spec| spec.source.to_string());
            let mut there = ours(state)
                .into_iter()
                .filter(|(_, _, there)| owner(&there.id).as_ref() == Some(&key) && living.contains(&there.address));
            let passes = there.any(|(place, _, _)| health(state, &place) == "passing");
            living.contains(&service.address) || !passes && went_by_an_edit(state, service, source.as_ref())
        }
        Some(Want::Refused | Want::Paused | Want::Elsewhere) => true,
        // It has nothing under the name that is another's. What its instances came from may not be known any more.
        Some(Want::Lost) => asked(&state.cluster.resources[&key]) != Some(fold(&service.service)),
        // Where the Service was found once and then deleted, nothing stays; the status says which it is.
        Some(Want::NoService) => {
            let object = &state.cluster.resources[&key];
            condition(&object.status, "Resolved").is_some_and(|(_, reason)| reason == "ServiceNotFound")
        }
        // It lives, and has no port yet.
        Some(Want::Rows(_)) => {
            let object = &state.cluster.resources[&key];
            let spec = match goes_on_with(state, &key) {
                GoesOn::By(spec) if was_told_of_conflict(object) => Some(*spec),
                _ => object.spec.as_deref().ok().cloned(),
            };
            spec.zip(service.address.parse().ok())
                .is_some_and(|(spec, address)| lives_without_port(&state.cluster, object, &spec, address, None))
        }
        Some(Want::Deleting) | None => false,
    }
}

fn compare(state: &State, node: &str, there: &Service, wanted: &Expected, found: &mut Found) {
    let mut service = wanted.service.clone();
    (service.create_index, service.modify_index) = (there.create_index, there.modify_index);
    if service.enable_tag_override {
        service.tags.clone_from(&there.tags);
    }
    if service != *there {
        found.push(("true", format!("on {node} there is\n    {there:?} instead of\n    {service:?}")));
    }
    let check = state.consul.store.check(node, &format!("{}:readiness", there.id));
    if check.map(|check| check.status.as_str()) != wanted.readiness {
        let status = check.map(|check| &check.status);
        found.push((
            "true",
            format!("the readiness of {} on {node} is {status:?} instead of {:?}", there.id, wanted.readiness),
        ));
    }
    if let Some(local) = state.consul.agent.as_ref().map(|agent| agent.service(&there.id))
        && local.is_none_or(|local| local.address != there.address)
    {
        found.push(("true", format!("the agent does not know {}", there.id)));
    }
}

/// Consul's nodes of our making: none is empty, and each has its machine's address.
fn nodes(state: &State, found: &mut Found) {
    let homes: BTreeMap<String, IpAddr> = state
        .cluster
        .nodes
        .iter()
        .filter_map(|(key, node)| Some((crate::expected::node_of(&key.name), node.address?)))
        .collect();
    for node in state.consul.store.nodes() {
        let is = |key: &str, value: &str| node.meta.get(key).is_some_and(|there| there == value);
        if node.node == MARKER || state.setup.mode == Mode::Agent || !state.is_own_node(node) {
            continue;
        }
        if !is("managed-by", "lictor") || !is("lictor-cluster", CLUSTER) || !is("lictor-cluster-uid", CLUSTER_UID) {
            found.push(("true", format!("the node {} lacks our mark: {:?}", node.node, node.meta)));
        }
        if state.consul.store.services_on(&node.node).next().is_none() {
            found.push(("nothing stale", format!("the node {} is empty", node.node)));
        }
        let there = homes.get(&node.node).copied();
        if let Some(address) = there
            && address.to_string() != node.address
        {
            found.push((
                "true",
                format!("the node {} has the address {} instead of {address}", node.node, node.address),
            ));
        }
    }
    let expects_marker = state.setup.mode == Mode::Catalog;
    if expects_marker && state.consul.store.node(MARKER).is_none() {
        found.push(("true", "the marker is not there".to_owned()));
    }
}

/// Nothing has the mark any more of the cluster that was there before.
fn left_behind(state: &State, found: &mut Found) {
    let has_mark =
        |meta: &BTreeMap<String, String>| meta.get("lictor-cluster-uid").is_some_and(|uid| uid == FORMER_UID);
    let services = state.consul.store.services().filter(|(_, service)| has_mark(&service.meta));
    let nodes = state.consul.store.nodes().filter(|node| has_mark(&node.meta));
    let left = services.map(|(_, service)| service.id.clone()).chain(nodes.map(|node| node.node.clone()));
    found.extend(left.map(|left| ("nothing stale", format!("{left} has the mark of the cluster before"))));
}

/// What a resource without its name keeps of pods, although it asks for another source, has a pod.
fn kept_pods(state: &mut State, wants: &BTreeMap<ResourceKey, Want>, found: &mut Found) {
    let mut kept = Vec::new();
    for key in wants.iter().filter(|(_, want)| **want == Want::Lost).map(|(key, _)| key) {
        let is_of_pods = |service: &Service| service.meta.get("lictor-source").is_some_and(|from| from == "pods");
        let can_go = |node: &str| node != FORMER_NODE || !state.former_is_out_of_reach();
        let own: Vec<&Service> = ours(state)
            .into_iter()
            .filter(|(_, node, service)| can_go(node) && owner(&service.id).as_ref() == Some(key))
            .map(|(_, _, service)| service)
            .collect();
        let names: BTreeSet<String> = own.iter().map(|service| fold(&service.service)).collect();
        let is_as_it_is = matches!(goes_on_with(state, key), GoesOn::AsItIs) && !cannot_go(state, key);
        if is_as_it_is && names.len() == 1 && own.iter().all(|service| is_of_pods(service)) {
            kept.extend(own.iter().map(|service| (key.clone(), service.id.clone(), service.address.clone())));
        }
    }
    for (key, id, address) in kept {
        state.stats.count("in the end: kept of pods without its name");
        let mut pods = state.cluster.pods.iter().filter(|(pod, _)| pod.namespace == key.namespace);
        if !pods.any(|(_, pod)| pod.addresses.iter().any(|there| there.to_string() == address)) {
            found.push(("nothing stale", format!("{id} at {address} has no pod")));
        }
    }
}

/// Whether a resource has an instance of which each removal fails: somebody else has made it under an ID of ours.
fn cannot_go(state: &State, key: &ResourceKey) -> bool {
    let fails = |id: &str| state.setup.failing.is_some_and(|failing| failing.includes(id));
    state.instances().any(|(_, service)| fails(&service.id) && owner(&service.id).as_ref() == Some(key))
}

fn finalizers(state: &State, found: &mut Found) {
    let leaves = |object: &&Object| (object.deleting || object.other_class) && object.has_finalizer();
    for object in state.cluster.resources.values().filter(leaves) {
        let fails = cannot_go(state, &object.key);
        let waits = fails || state.former_is_out_of_reach() && state.former_holds(&object.key);
        let is_frozen = object.paused && !object.other_class;
        if state.setup.watches(&object.key.namespace) && !state.setup.name_taken && !is_frozen && !waits {
            found.push(("nothing stale", format!("{} was let go and still has our finalizer", object.key)));
        }
    }
    let with_rows: BTreeSet<ResourceKey> =
        ours(state).iter().filter_map(|(_, _, service)| owner(&service.id)).collect();
    for key in with_rows {
        let is_without = |object: &Object| !object.deleting && !object.other_class && !object.has_finalizer();
        let without = state.cluster.resources.get(&key).is_some_and(is_without);
        if without {
            found.push(("nothing stale", format!("{key} is registered and has no finalizer")));
        }
    }
}

/// A resource that does not name its port goes on with the one that is registered, or that it was told to be in use.
fn goes_on(state: &State, object: &Object, want: &Want, found: &mut Found) {
    if state.setup.name_taken || !matches!(want, Want::Rows(_) | Want::Unclear { .. }) {
        return;
    }
    let key = &object.key;
    let ours = ours(state).into_iter().filter(|(_, _, service)| owner(&service.id).as_ref() == Some(key));
    let end = |service: &Service| Some((service.address.parse().ok()?, u16::try_from(service.port).ok()?));
    let rows: Vec<(IpAddr, u16)> = ours.filter_map(|(_, _, service)| end(service)).collect();
    if let Some(row) = could_go_on(&state.cluster, object, &rows) {
        found.push(("nothing lost", format!("{key} does not go on with the port that is registered: {row}")));
    }
    if let Some(told) = state.oracle.port_told(key)
        && object.status.port_in_use.is_none()
    {
        found.push(("nothing lost", format!("{key} does not know any more that its port is {told:?}")));
    }
}

/// A condition's status and reason.
fn condition<'a>(status: &'a ConsulServiceStatus, kind: &str) -> Option<(&'a str, &'a str)> {
    let found = status.conditions.iter().find(|condition| condition.type_ == kind);
    found.map(|condition| (condition.status.as_str(), condition.reason.as_str()))
}

/// Nothing hidden: a resource says how things stand with it.
fn status(state: &State, object: &Object, want: &Want, stands: &BTreeMap<Place, Stands>, found: &mut Found) {
    if object.deleting || object.other_class {
        return;
    }
    let status = &object.status;
    let key = &object.key;
    let mut wrong = |what: String| found.push(("nothing hidden", format!("the status of {key} {what}")));
    if status.observed_generation != Some(object.generation) {
        wrong(format!("is about generation {:?} instead of {}", status.observed_generation, object.generation));
    }
    if let Ok(spec) = &object.spec
        // One that was never registered has no name yet.
        && !matches!(want, Want::Lost | Want::Paused | Want::NoService | Want::Unclear { .. })
        && !state.setup.name_taken
        && status.service_name.as_deref() != Some(&*spec.service)
    {
        wrong(format!("is about {:?} instead of {}", status.service_name, spec.service));
    }
    let mut says = |kind: &str, truth: &str, reasons: &[&str]| {
        let said = condition(status, kind);
        if said.is_none_or(|(said, reason)| said != truth || !reasons.contains(&reason)) {
            wrong(format!("says {kind} {said:?} instead of {truth} {reasons:?}"));
        }
    };
    if state.setup.name_taken {
        let others = ["ServiceNotFound", "PortNotFound", "TooManyInstances", "NotSupported", "NameConflict", "Paused"];
        says("Ready", "False", &[&["ConsulUnavailable"], &others[..]].concat());
        return;
    }
    match want {
        Want::Refused => says("Accepted", "False", &["NotSupported"]),
        Want::Lost => says("Accepted", "False", &["NameConflict"]),
        Want::Paused => says("Registered", "Unknown", &["Paused"]),
        Want::NoService => says("Resolved", "False", &["ServiceNotFound"]),
        Want::Unclear { reason, .. } => says("Resolved", "False", &[reason]),
        Want::Deleting | Want::Elsewhere => {}
        Want::Rows(wanted) => {
            let rows = &wanted.rows;
            let of = |stand: Stands| rows.keys().filter(|place| stands[*place] == stand).count();
            let refused = (of(Stands::Failing) > 0 || cannot_go(state, key)).then_some("Refused");
            let taken = (of(Stands::Taken) > 0).then_some("IdTaken");
            let elsewhere = state.former_is_out_of_reach() && state.former_holds(key);
            let elsewhere = elsewhere.then_some("OnAnotherAgent");
            let lacks = refused.into_iter().chain(taken).chain(elsewhere);
            let lacks: Vec<&str> = lacks.chain(wanted.left_out.iter().copied()).collect();
            match wanted.most {
                Some(_) => says("Resolved", "False", &["TooManyInstances"]),
                None => says("Resolved", "True", &[remark(wanted)]),
            }
            if wanted.most.is_some() && of(Stands::Taken) + of(Stands::Failing) > 0 {
                // Those may be among the ones that are left out.
            } else if lacks.is_empty() && wanted.most.is_some() {
                says("Ready", "False", &["TooManyInstances"]);
                says("Registered", "True", &["Registered"]);
            } else if lacks.is_empty() {
                says("Ready", "True", &["Ready"]);
            } else {
                says("Registered", "False", &lacks);
            }
            let registered = || rows.iter().filter(|(place, _)| stands[*place] == Stands::Registered);
            let names = |called: &str| {
                let is_it = |row: &Expected| {
                    row.service.address == called || row.service.meta.get("k8s-pod").is_some_and(|pod| pod == called)
                };
                registered().any(|(_, row)| is_it(row))
            };
            let denied: Vec<&str> = status
                .problems
                .iter()
                .filter(|problem| problem.reason == "PortNotFound" && names(&problem.instance))
                .map(|problem| problem.instance.as_str())
                .collect();
            if !denied.is_empty() {
                wrong(format!("says of {denied:?}, which are registered, that they are not"));
            }
            let mut counts = BTreeMap::from([("passing", 0), ("warning", 0), ("critical", 0)]);
            for place in rows.keys().filter(|place| stands[*place] == Stands::Registered) {
                *counts.entry(health(state, place)).or_default() += 1;
            }
            let said = status.instances.unwrap_or_default();
            let said = [said.desired, said.registered, said.passing, said.warning, said.critical];
            let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            let desired = wanted.most.map_or(rows.len(), |most| most.max(of(Stands::Registered)));
            let truth = [desired, of(Stands::Registered), counts["passing"], counts["warning"], counts["critical"]];
            if said != truth.map(number) {
                wrong(format!(
                    "counts {said:?} instead of {truth:?} (desired, registered, passing, warning, critical)"
                ));
            }
        }
    }
}

/// The reason of a source that was found.
fn remark(wanted: &Rows) -> &'static str {
    let remarks = [
        (wanted.passed_over, "EndpointsPassedOver"),
        (wanted.not_named, "PortNotNamed"),
        (wanted.blanks, "ValuesMissing"),
    ];
    remarks.into_iter().find(|(is_so, _)| *is_so).map_or("Resolved", |(_, reason)| reason)
}

/// The worst of an instance's checks.
fn health(state: &State, wanted: &Place) -> &'static str {
    // Somebody else's may have the same ID on another shard.
    let mut there = state.consul.store.services().filter(|(_, service)| is_marked(service));
    let on = there.find(|(node, service)| place(node, &service.id) == *wanted);
    let Some((node, service)) = on else { return "critical" };
    let checks = state.consul.store.checks_on(node).filter(|check| fold(&check.service_id) == fold(&service.id));
    let order = ["passing", "warning", "critical"];
    let worst = checks.filter_map(|check| order.iter().position(|status| *status == check.status)).max();
    order[worst.unwrap_or_default()]
}

fn loop_at_rest(state: &State, snapshot: &Snapshot, found: &mut Found) {
    if state.setup.name_taken {
        return;
    }
    if let Some(why) = &snapshot.not_ready {
        found.push(("nothing hidden", format!("Lictor is not ready: {why}")));
    }
    // What fails each time is tried again now and then. So is what another agent holds that cannot be asked, and before that
    // Kubernetes is asked again.
    let is_elsewhere = state.former_is_out_of_reach() && snapshot.elsewhere > 0;
    let is_tried = state.setup.failing.is_some() || is_elsewhere;
    let outstanding = if is_tried { 0 } else { snapshot.dirty + snapshot.outstanding };
    let held = if is_elsewhere { 0 } else { snapshot.held };
    if outstanding + held > 0 {
        found.push(("nothing wasted", format!("Lictor is not at rest: {snapshot:?}")));
    }
}
