//! From what was found on both sides to the way of a pod, an address or a service, step by step.
//!
//! Pure. The conditions are those that Lictor wrote; what should be registered is the engine's own decision.

use std::collections::BTreeSet;

use super::asked::Asked;
use super::picks::{Pick, pick};
use super::seen::{Away, Cluster, Seen, Subject};
use super::way::{Mark, Way};
use crate::cli::preview::differences;
use crate::cluster::look::SeenPod;
use crate::consul::instances::Shown;
use crate::engine::decide::{Action, Decision, OfOthers, decide};
use crate::model::desired::{Desired, Placement};
use crate::model::health::Health;
use crate::model::ids::{READINESS, ResourceKey, Str, meta};
use crate::model::registration::Registration;
use crate::model::render::missing_values;
use crate::model::resolve::{Before, Instance, resolve};
use crate::model::resource::{Readiness, Source, Spec};
use crate::model::status::{ConditionKind, ENDPOINTS_MISSING, PENDING, Truth};
use crate::state::world::Entry;

/// The most instances that are named one by one.
const NAMED: usize = 10;

/// The most characters of a check's output.
const OUTPUT: usize = 200;

/// Explains what was found.
pub(super) fn explain(asked: &Asked, seen: &Seen) -> Way {
    let mut way = Way::default();
    match &seen.kubernetes {
        Ok(cluster) => {
            missing(&cluster.lacking, &mut way);
            match asked {
                Asked::Pod(name) => of_pods(name, cluster, seen, &mut way),
                Asked::Address(address) => of_address(Subject::at(*address), cluster, seen, &mut way),
                Asked::Resource(name) => of_resources(asked, cluster, seen, &mut way, |key, _| *key.name == **name),
                Asked::Service(name) => {
                    let is_it = |key: &ResourceKey, names: &BTreeSet<String>| {
                        *key.name == **name || names.iter().any(|of| of.to_lowercase() == name.to_lowercase())
                    };
                    of_resources(asked, cluster, seen, &mut way, is_it);
                }
            }
        }
        Err(Away { words, lacking }) => {
            way.away("Kubernetes", words);
            missing(lacking, &mut way);
            consul_alone(asked, seen, &mut way);
        }
    }
    way
}

/// Lines for the rights that whoever asks lacks.
fn missing(lacking: &[String], way: &mut Way) {
    for right in lacking {
        way.away("missing right in Kubernetes", right);
    }
}

/// The resources that a question is about, before Consul is asked: the names to ask for are theirs.
pub(super) fn concerned(asked: &Asked, cluster: &Cluster) -> Vec<ResourceKey> {
    let picked = |subjects: Vec<Subject>| {
        let keys = cluster
            .world
            .keys()
            .filter(|key| subjects.iter().any(|subject| !matches!(pick(cluster, key, subject), Pick::No(_))));
        keys.cloned().collect()
    };
    match asked {
        Asked::Pod(name) => picked(subjects(name, cluster)),
        Asked::Address(address) => picked(at_address(Subject::at(*address), cluster)),
        Asked::Resource(name) => cluster.world.keys().filter(|key| *key.name == **name).cloned().collect(),
        Asked::Service(_) => cluster.world.keys().cloned().collect(),
    }
}

/// The pods of a name; where pods cannot be read, one of which only the name is known.
fn subjects(name: &str, cluster: &Cluster) -> Vec<Subject> {
    match &cluster.pods {
        Ok(pods) => pods.iter().cloned().map(Subject::of_pod).collect(),
        Err(_) => vec![Subject::named(name)],
    }
}

/// The pods at an address, or else the address itself.
fn at_address(address: Subject, cluster: &Cluster) -> Vec<Subject> {
    let pods: Vec<Subject> = cluster.pods.iter().flatten().cloned().map(Subject::of_pod).collect();
    if pods.is_empty() { vec![address] } else { pods }
}

fn of_pods(name: &str, cluster: &Cluster, seen: &Seen, way: &mut Way) {
    if let Err(words) = &cluster.pods {
        way.away("pod", words);
    }
    let subjects = subjects(name, cluster);
    match &subjects[..] {
        [] => {
            way.stop(
                Mark::Fail,
                format!("pod {name:?}"),
                "NoSuchPod",
                format!("there is no such pod in {}", seen.place),
            );
            left_in_consul(&Subject::named(name), seen, way);
        }
        [one] => of_subject(one, cluster, seen, way),
        several => two_match(several.iter().map(Subject::called), way),
    }
}

fn of_address(address: Subject, cluster: &Cluster, seen: &Seen, way: &mut Way) {
    if let Err(words) = &cluster.pods {
        way.away("pods", words);
    }
    let subjects = at_address(address, cluster);
    if let [Subject { pod: None, .. }] = &subjects[..] {
        way.note(subjects[0].called(), format!("no pod of {} has it", seen.place));
    }
    match &subjects[..] {
        [one] => of_subject(one, cluster, seen, way),
        several => two_match(several.iter().map(Subject::called), way),
    }
}

fn two_match(all: impl Iterator<Item = String>, way: &mut Way) {
    let all: Vec<String> = all.collect();
    way.stop(Mark::Fail, "matches", "TwoMatches", format!("{} match: {}", all.len(), all.join(", ")));
}

fn of_subject(subject: &Subject, cluster: &Cluster, seen: &Seen, way: &mut Way) {
    if let Some(pod) = &subject.pod {
        state_of_pod(pod, &subject.called(), way);
    }
    let namespace = subject.namespace.as_deref();
    let all: Vec<&ResourceKey> = cluster.resources(namespace).map(|entry| &entry.resource.key).collect();
    if all.is_empty() {
        let place = namespace.map_or(seen.place.clone(), |namespace| format!("namespace {namespace}"));
        way.stop(Mark::Fail, "ConsulServices", "NoConsulService", format!("there is none in {place}"));
        return left_in_consul(subject, seen, way);
    }
    let picks: Vec<(&ResourceKey, Pick)> = all.into_iter().map(|key| (key, pick(cluster, key, subject))).collect();
    let is_picked = picks.iter().any(|(_, pick)| matches!(pick, Pick::Yes(_)));
    for (key, pick) in picks {
        let what = format!("ConsulService {key}");
        match pick {
            Pick::Yes(how) => {
                way.ok(what, format!("it picks {}: {how}", subject.called()));
                of_picked(key, subject, cluster, seen, way);
            }
            // Another one picks it.
            Pick::No(_) | Pick::Unknown(_) if is_picked => {}
            Pick::No(why) => way.note(what, format!("it does not pick {}: {why}", subject.called())),
            Pick::Unknown(why) => {
                way.line(Mark::Unknown, what, format!("whether it picks {} is not known: {why}", subject.called()));
                if let Some(entry) = cluster.world.resource(key) {
                    conditions(entry, cluster, false, way);
                }
            }
        }
    }
    if !is_picked {
        let place = namespace.map_or(seen.place.clone(), |namespace| format!("namespace {namespace}"));
        let words = format!("no ConsulService of {place} picks {}", subject.called());
        way.stops_as_said(Mark::Fail, "picked", "NotPicked", words);
        left_in_consul(subject, seen, way);
    }
}

fn state_of_pod(pod: &SeenPod, called: &str, way: &mut Way) {
    let node = pod.node.as_ref().map_or("on no node yet".to_owned(), |node| format!("on node {node}"));
    let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
    let words = pod.words.as_ref().map_or(String::new(), |words| format!(" ({words})"));
    if pod.is_deleting {
        return way.may_stop(Mark::Wait, called, "Terminating", format!("it is {node} and is being deleted"));
    }
    if matches!(&*pod.phase, "Succeeded" | "Failed") {
        return way.stop(Mark::Fail, called, "PodEnded", format!("it has ended ({})", pod.phase));
    }
    if addresses.is_empty() {
        let words = format!("it is {node}, {}, and has no IP address yet{words}", pod.phase);
        return way.stop(Mark::Fail, called, "NoAddress", words);
    }
    let at = format!("it is {node}, with address {}", addresses.join(", "));
    if pod.is_ready {
        way.ok(called, format!("{at}, and ready"));
    } else {
        way.line(Mark::Wait, called, format!("{at}, and not ready{words}"));
    }
}

/// The way through a resource that picks somebody.
fn of_picked(key: &ResourceKey, subject: &Subject, cluster: &Cluster, seen: &Seen, way: &mut Way) {
    let Some(entry) = cluster.world.resource(key) else { return };
    let shown = seen.consul.as_deref().unwrap_or_default();
    let held: Vec<&Shown> = cluster.of(key, shown).filter(|of| subject.is(&of.id, &of.registration)).collect();
    let decision = decision(key, cluster, shown);
    let desired: Vec<(&Str, &Registration)> = match &decision.action {
        Action::Apply { desired, .. } => {
            let all = desired.iter().map(|(row, wanted)| (&row.id, &**wanted));
            all.filter(|(id, wanted)| subject.is(id, wanted)).collect()
        }
        Action::Freeze | Action::Disown => Vec::new(),
    };
    let is_there = |(id, wanted): &(&Str, &Registration)| {
        let there = held.iter().find(|of| of.id == **id);
        there.is_some_and(|there| differences(&there.registration, wanted).is_empty())
    };
    let is_fine = !desired.is_empty() && desired.iter().all(is_there) && seen.consul.is_ok();
    conditions(entry, cluster, is_fine, way);
    values(key, entry, subject, cluster, shown, way);
    if let Some(problem) = decision.source.problems.iter().find(|problem| subject.is_called(&problem.instance)) {
        let what = format!("instance ({})", problem.reason.as_str());
        way.stop(Mark::Fail, what, problem.reason.as_str(), format!("{}: {}", problem.instance, problem.message));
    }
    if desired.is_empty() {
        not_desired(entry, subject, &decision, way);
    }
    for (_, wanted) in &desired {
        way.ok("desired", in_words(wanted, cluster.world.effective_spec(key).map(|spec| &**spec)));
    }
    match &seen.consul {
        Ok(shown) => in_consul(entry, subject, &desired, &held, shown, way),
        Err(words) => way.away("Consul", words),
    }
}

/// The decision about a resource, by what the catalog shows of it.
fn decision(key: &ResourceKey, cluster: &Cluster, shown: &[Shown]) -> Decision {
    let own = cluster.of(key, shown);
    let identity = cluster.identity(own.clone());
    // Where it goes, nobody asks here.
    let placement = Placement::Agent { node: "".into() };
    let registered = own.map(|of| (&of.id, &of.registration));
    decide(&cluster.world, &identity, Some(&placement), key, registered, OfOthers::default())
}

/// Lines for the conditions that Lictor wrote. What is fine all the same is not held up by them.
fn conditions(entry: &Entry, cluster: &Cluster, is_fine: bool, way: &mut Way) {
    let (resource, status) = (&entry.resource, &entry.resource.status);
    let class = cluster.asks.get(&resource.key).map(|asks| &*asks.class).filter(|class| !class.is_empty());
    let of_class = class.map_or(String::new(), |class| format!(" of class {class:?}"));
    if status.conditions.is_empty() {
        let words = format!(
            "no Lictor{of_class} has written a status: none runs that watches namespace {}",
            resource.key.namespace
        );
        return way.may_stop(Mark::Fail, "status", "NoStatus", words);
    }
    if resource.deleting {
        way.may_stop(Mark::Wait, "ConsulService", "Deleting", "it is being deleted");
    }
    if status.observed_generation != resource.generation {
        let words = format!(
            "Lictor{of_class} has not acted on the present spec yet: the status is about generation {} and the spec is of {}",
            status.observed_generation, resource.generation
        );
        way.may_stop(Mark::Wait, "status", "NotSeenYet", words);
    }
    for kind in [ConditionKind::Accepted, ConditionKind::Resolved, ConditionKind::Registered] {
        let Some(condition) = status.condition(kind) else { continue };
        let (reason, words) = (&*condition.reason, &*condition.message);
        let is_plain = reason == kind.as_str();
        let what = if is_plain { reason.to_owned() } else { format!("{} ({reason})", kind.as_str()) };
        match condition.truth {
            Truth::True if is_plain => way.ok(what, words),
            Truth::True => way.note(what, words),
            Truth::False | Truth::Unknown if is_fine && kind == ConditionKind::Registered => way.note(what, words),
            // These only follow from an earlier one.
            _ if matches!(reason, "NotAccepted" | "NotResolved") => way.line(Mark::Wait, what, words),
            Truth::False if !matches!(reason, PENDING | ENDPOINTS_MISSING) => {
                way.may_stop(Mark::Fail, what, reason, words);
            }
            Truth::False | Truth::Unknown => way.may_stop(Mark::Wait, what, reason, words),
        }
    }
}

/// Notes for the values that the texts of an instance lack.
fn values(key: &ResourceKey, entry: &Entry, subject: &Subject, cluster: &Cluster, shown: &[Shown], way: &mut Way) {
    let Some(spec) = cluster.world.effective_spec(key).filter(|spec| !spec.variables().is_empty()) else { return };
    let registered = cluster.of(key, shown).map(|of| &of.registration);
    let resolution = resolve(spec, &cluster.world.facts(key), &Before::of(Some(&entry.resource), registered));
    let is_it = |instance: &&Instance| subject.is_called(&instance.called());
    for instance in resolution.instances.iter().filter(is_it) {
        for missing in missing_values(spec, instance) {
            way.note("value (ValuesMissing)", format!("{}: {}", missing.text, missing.why));
        }
    }
}

/// Says why somebody whom a resource picks is not to be registered.
fn not_desired(entry: &Entry, subject: &Subject, decision: &Decision, way: &mut Way) {
    let is_unready = match &decision.action {
        Action::Apply { unready, .. } => {
            let pod = subject.pod.iter().flat_map(|pod| &pod.addresses).chain(&subject.address);
            pod.map(ToString::to_string).any(|address| unready.contains(&*address))
        }
        Action::Freeze | Action::Disown => false,
    };
    let words =
        subject.pod.as_ref().and_then(|pod| pod.words.as_ref()).map_or(String::new(), |why| format!(" ({why})"));
    if is_unready {
        let words = format!("the pod is not ready{words}, and readiness: Deregister leaves out what is not");
        return way.stop(Mark::Fail, "readiness", "NotReady", words);
    }
    let unresolved = decision.source.resolved.as_ref().and_then(|resolved| resolved.as_ref().err());
    if let (Some(why), true) = (unresolved, way.is_clear()) {
        return way.stop(Mark::Fail, format!("Resolved ({})", why.reason), why.reason, why.message.clone());
    }
    if let (Err(refusal), true) = (&entry.resource.spec, way.is_clear()) {
        return way.stop(Mark::Fail, format!("Accepted ({})", refusal.reason), refusal.reason, refusal.message.clone());
    }
    let is_clear = way.is_clear();
    let reason = if is_clear && subject.pod.is_some() { "NotInSlice" } else { "NotDesired" };
    way.stops_as_said(Mark::Fail, "desired", reason, "no instance of it");
}

/// A registration in a line.
fn in_words(wanted: &Registration, spec: Option<&Spec>) -> String {
    let tags: Vec<&str> = wanted.tags.iter().map(|tag| &**tag).collect();
    let tags = if tags.is_empty() { String::new() } else { format!(", tags {}", tags.join(", ")) };
    let keys = spec.into_iter().flat_map(|spec| spec.meta.keys());
    let pairs: Vec<String> = keys.filter_map(|key| Some(format!("{key}={}", wanted.meta.get(key)?))).collect();
    let pairs = if pairs.is_empty() { String::new() } else { format!(", meta {}", pairs.join(", ")) };
    let readiness = match (wanted.readiness, spec.map(|spec| spec.readiness)) {
        (Some(health), _) => format!(", {} by its readiness", health.as_str()),
        (None, Some(Readiness::Ignore)) => ", whatever its readiness".to_owned(),
        (None, _) => String::new(),
    };
    let checks: Vec<&str> = wanted.checks.names().iter().map(|name| &**name).collect();
    let checks = if checks.is_empty() { String::new() } else { format!(", checks {}", checks.join(", ")) };
    format!("{} at {}{tags}{pairs}{readiness}{checks}", wanted.service, place(wanted))
}

/// An address with its port.
fn place(of: &Registration) -> String {
    if of.address.contains(':') {
        format!("[{}]:{}", of.address, of.port)
    } else {
        format!("{}:{}", of.address, of.port)
    }
}

/// Lines for what the catalog shows of somebody.
fn in_consul(
    entry: &Entry,
    subject: &Subject,
    desired: &[(&Str, &Registration)],
    held: &[&Shown],
    shown: &[Shown],
    way: &mut Way,
) {
    for (id, wanted) in desired {
        match held.iter().find(|of| of.id == **id) {
            None => absent(entry, id, wanted, shown, way),
            Some(there) => present(there, Some(wanted), subject, way),
        }
    }
    for there in held.iter().filter(|of| desired.iter().all(|(id, _)| **id != of.id)) {
        present(there, None, subject, way);
    }
}

/// Says of an instance that should be there that it is not, and why.
fn absent(entry: &Entry, id: &Str, wanted: &Registration, shown: &[Shown], way: &mut Way) {
    let target_and_port = |id: &str| id.rsplitn(3, ':').take(2).map(str::to_owned).collect::<Vec<_>>();
    let ours = target_and_port(id);
    let problems = &entry.resource.status.problems;
    if let Some(problem) = problems.iter().find(|of| *of.instance == **id || target_and_port(&of.instance) == ours) {
        let what = format!("Consul ({})", problem.reason.as_str());
        return way.stop(Mark::Fail, what, problem.reason.as_str(), problem.message.clone());
    }
    let others =
        shown.iter().filter(|of| of.registration.address == wanted.address && of.registration.port == wanted.port);
    for other in others {
        way.note("Consul", format!("somebody else has {} on node {} at this address", other.id, other.node));
    }
    let words = format!("service {:?} has no instance at {}", &*wanted.service, place(wanted));
    way.stops_as_said(Mark::Wait, "Consul", "NotWritten", words);
}

/// Lines for an instance that is there.
fn present(there: &Shown, wanted: Option<&Registration>, subject: &Subject, way: &mut Way) {
    let service = &there.registration.service;
    let differs = wanted.map(|wanted| differences(&there.registration, wanted)).unwrap_or_default();
    let what = format!("Consul node {}", there.node);
    match wanted {
        None => way.note(what, format!("it has {} in service {service:?}, which is not desired now", there.id)),
        Some(_) if differs.is_empty() => way.ok(what, format!("it has {} in service {service:?}", there.id)),
        Some(_) => {
            let words =
                format!("it has {} in service {service:?}, but not as desired: {}", there.id, differs.join("; "));
            way.stops_as_said(Mark::Wait, what, "Differs", words);
        }
    }
    for check in &there.checks {
        let (what, said) = (format!("check {}", check.name), check.health.as_str());
        let output = check.output.lines().next().map(cut).filter(|output| !output.is_empty());
        let said = output.map_or(said.to_owned(), |output| format!("{said}: {output}"));
        let is_readiness = check.name == READINESS && !check.of_node;
        match check.health {
            Health::Passing => way.ok(what, check.health.as_str()),
            Health::Warning => way.note(what, said),
            Health::Critical if is_readiness => {
                let why = subject.pod.as_ref().and_then(|pod| pod.words.as_ref());
                let why = why.map_or(String::new(), |why| format!(" ({why})"));
                let words = format!("critical: the pod is not ready{why}, and readiness: Mirror makes it critical");
                way.stop(Mark::Fail, what, "NotReady", words);
            }
            Health::Critical if check.of_node => way.stop(Mark::Fail, what, "NodeFails", said),
            Health::Critical => way.stop(Mark::Fail, what, "CheckFails", said),
        }
    }
}

fn cut(text: &str) -> String {
    let text = text.trim();
    if text.chars().count() <= OUTPUT {
        text.to_owned()
    } else {
        text.chars().take(OUTPUT - 1).chain(['…']).collect()
    }
}

/// Notes what Consul has of somebody whom no resource picks.
fn left_in_consul(subject: &Subject, seen: &Seen, way: &mut Way) {
    let shown = match &seen.consul {
        Ok(shown) => shown,
        Err(words) => return way.away("Consul", words),
    };
    let mut count = 0;
    for of in shown.iter().filter(|of| subject.is(&of.id, &of.registration)) {
        count += 1;
        let owner = of.registration.meta.get(meta::OWNER);
        let owner = owner.map_or("of nobody that Lictor knows".to_owned(), |owner| format!("of ConsulService {owner}"));
        let words =
            format!("it has {} in service {:?}, {owner}, {}", of.id, &*of.registration.service, of.health().as_str());
        way.note(format!("Consul node {}", of.node), words);
    }
    if count == 0 {
        way.note("Consul", format!("it has no instance of {}", subject.called()));
    }
}

/// Notes what Consul has where Kubernetes could not be asked.
fn consul_alone(asked: &Asked, seen: &Seen, way: &mut Way) {
    let shown = match &seen.consul {
        Ok(shown) => shown,
        Err(words) => return way.away("Consul", words),
    };
    let is_it = |of: &&Shown| match asked {
        Asked::Pod(name) => Subject::named(name).is(&of.id, &of.registration),
        Asked::Address(address) => Subject::at(*address).is(&of.id, &of.registration),
        Asked::Resource(name) => {
            let owner = of.registration.meta.get(meta::OWNER).and_then(|owner| ResourceKey::parse(owner));
            owner.is_some_and(|owner| *owner.name == **name)
        }
        Asked::Service(_) => true,
    };
    let found: Vec<&Shown> = shown.iter().filter(is_it).collect();
    if found.is_empty() {
        way.note("Consul", format!("it has no instance of {asked}"));
    }
    for of in found.iter().take(NAMED) {
        let words = format!(
            "it has {} in service {:?} at {}, {}",
            of.id,
            &*of.registration.service,
            place(&of.registration),
            of.health().as_str()
        );
        way.note(format!("Consul node {}", of.node), words);
    }
    if found.len() > NAMED {
        way.note("Consul", format!("it has {} more", found.len() - NAMED));
    }
}

fn of_resources(
    asked: &Asked,
    cluster: &Cluster,
    seen: &Seen,
    way: &mut Way,
    is_it: impl Fn(&ResourceKey, &BTreeSet<String>) -> bool,
) {
    let found: Vec<&ResourceKey> = cluster.world.keys().filter(|key| is_it(key, &cluster.names(key))).collect();
    match &found[..] {
        [] => {
            let there: Vec<String> = cluster.world.keys().map(ToString::to_string).take(NAMED).collect();
            let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
            let words = match asked {
                Asked::Service(_) => {
                    format!("no ConsulService of {} has this name or registers under it; there: {there}", seen.place)
                }
                _ => format!("there is none in {}; there: {there}", seen.place),
            };
            way.stop(Mark::Fail, asked.to_string(), "NotFound", words);
            if let (Asked::Service(name), Ok(shown)) = (asked, &seen.consul) {
                let count = shown.iter().filter(|of| of.registration.service.eq_ignore_ascii_case(name)).count();
                way.note("Consul", format!("service {name:?} has {count} instances"));
            }
            if let Err(words) = &seen.consul {
                way.away("Consul", words);
            }
        }
        [key] => of_resource(key, cluster, seen, way),
        several => {
            two_match(several.iter().map(|key| format!("csvc/{} in namespace {}", key.name, key.namespace)), way);
        }
    }
}

/// The way of all instances of a resource.
fn of_resource(key: &ResourceKey, cluster: &Cluster, seen: &Seen, way: &mut Way) {
    let Some(entry) = cluster.world.resource(key) else { return };
    let shown = seen.consul.as_deref().unwrap_or_default();
    let decision = decision(key, cluster, shown);
    let source = cluster.world.effective_spec(key).map(|spec| spec.source.clone());
    let source = source.or_else(|| cluster.asks.get(key)?.source.clone());
    let source = source.map_or("its source cannot be read".to_owned(), |source| match source {
        Source::Service { name } => format!("its source is Service {name:?}"),
        Source::Pods { .. } => "its source is a selector of pods".to_owned(),
        Source::Static { .. } => "its source is static addresses".to_owned(),
    });
    let names: Vec<String> = cluster.names(key).into_iter().collect();
    let names = if names.is_empty() { String::new() } else { format!(", its name in Consul {}", names.join(", ")) };
    way.ok(format!("ConsulService {key}"), format!("{source}{names}"));
    let desired = match &decision.action {
        Action::Apply { desired, .. } => desired.clone(),
        Action::Freeze | Action::Disown => Desired::new(),
    };
    let held: Vec<&Shown> = cluster.of(key, shown).collect();
    let there = |id: &Str| held.iter().find(|of| of.id == *id).copied();
    let is_fine = |id: &Str, wanted: &Registration| {
        there(id).is_some_and(|there| {
            differences(&there.registration, wanted).is_empty() && there.health() != Health::Critical
        })
    };
    let all_fine = !desired.is_empty() && desired.iter().all(|(row, wanted)| is_fine(&row.id, wanted));
    conditions(entry, cluster, all_fine && seen.consul.is_ok(), way);
    for problem in decision.source.problems.iter().take(NAMED) {
        way.may_stop(
            Mark::Fail,
            format!("instance ({})", problem.reason.as_str()),
            problem.reason.as_str(),
            format!("{}: {}", problem.instance, problem.message),
        );
    }
    if let Err(words) = &seen.consul {
        return way.away("Consul", words);
    }
    let nobody = Subject { namespace: None, name: None, pod: None, address: None };
    for (row, wanted) in desired.iter().filter(|(row, wanted)| !is_fine(&row.id, wanted)).take(NAMED) {
        way.note("desired", in_words(wanted, cluster.world.effective_spec(key).map(|spec| &**spec)));
        match there(&row.id) {
            None => absent(entry, &row.id, wanted, shown, way),
            Some(there) => present(there, Some(wanted), &nobody, way),
        }
    }
    let extra: Vec<&&Shown> = held.iter().filter(|of| desired.keys().all(|row| row.id != of.id)).collect();
    for there in extra.iter().take(NAMED) {
        present(there, None, &nobody, way);
    }
    let fine = desired.iter().filter(|(row, wanted)| is_fine(&row.id, wanted)).count();
    let words = format!("it has {fine} of {} desired instances as desired and not critical", desired.len());
    if desired.is_empty() {
        way.stops_as_said(
            Mark::Fail,
            "Consul",
            "NoInstances",
            "nothing is to be registered: the source has no instance",
        );
    } else {
        way.line(if all_fine { Mark::Ok } else { Mark::Note }, "Consul", words);
    }
}

#[cfg(test)]
mod tests;
