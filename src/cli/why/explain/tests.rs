use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::cli::why::way::Ending;
use crate::cluster::convert::{ResourceObject, Rules, class_and_source, resource};
use crate::cluster::look::{Asks, SeenService};
use crate::consul::instances::ShownCheck;
use crate::model::facts::{Endpoint, Family, PodRef, Protocol, Service, ServicePort, Slice, SlicePort};
use crate::model::ids::{ClusterName, check_id};
use crate::state::event::{Change, Event, ObjectKey, Scope, Step};
use crate::state::world::World;

const UID: &str = "0b4f2a6e-9c1d-4e3f-8a7b-5c6d7e8f9a0b";

fn namespace() -> Scope {
    Scope::Namespace("shop".into())
}

fn listed<T>(name: &str, object: T, change: impl Fn(Step<T>) -> Change) -> Vec<Change> {
    let key = ObjectKey::new("shop", name);
    vec![change(Step::Init), change(Step::InitApply(key, object)), change(Step::InitDone)]
}

/// A resource `web` over the Service `web`, with these conditions as (type, status, reason).
fn web(more: &Value, conditions: &[(&str, &str, &str)]) -> ResourceObject {
    let mut spec = json!({ "source": { "service": { "name": "web" } } });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let conditions = conditions.iter().map(|(kind, status, reason)| {
        let time = "2026-01-01T00:00:00Z";
        json!({ "type": kind, "status": status, "reason": reason, "message": "said", "lastTransitionTime": time })
    });
    let conditions: Vec<Value> = conditions.collect();
    let meta = json!({ "namespace": "shop", "name": "web", "uid": "r", "generation": 1 });
    let status = json!({ "observedGeneration": 1, "serviceName": "web", "conditions": conditions });
    serde_json::from_value(json!({ "metadata": meta, "spec": spec, "status": status })).unwrap()
}

const FINE: [(&str, &str, &str); 3] =
    [("Accepted", "True", "Accepted"), ("Resolved", "True", "Resolved"), ("Registered", "True", "Registered")];

fn pod(ready: bool) -> SeenPod {
    SeenPod {
        key: ResourceKey::new("shop", "web-0"),
        uid: UID.into(),
        labels: [("app".into(), "web".into())].into(),
        addresses: vec!["10.0.0.1".parse().unwrap()],
        node: Some("n".into()),
        phase: "Running".to_owned(),
        is_ready: ready,
        words: None,
        is_deleting: false,
    }
}

/// The pod behind the Service, and the resource.
fn cluster(resource_object: ResourceObject, ready: bool) -> Cluster {
    let mut world = World::new([namespace()], false);
    let key = ResourceKey::new("shop", "web");
    let (class, source) = class_and_source(&resource_object.spec);
    let seen = resource(key.clone(), resource_object, &Rules::default());
    let endpoint = Endpoint {
        address: "10.0.0.1".parse().unwrap(),
        ready,
        serving: ready,
        terminating: false,
        node: Some("n".into()),
        pod: Some(PodRef { name: "web-0".into(), uid: UID.into() }),
    };
    let port = SlicePort { name: "http".into(), protocol: Protocol::Tcp, number: 8080 };
    let slice = Slice { service: "web".into(), family: Family::V4, ports: vec![port], endpoints: vec![endpoint] };
    let port = ServicePort { name: "http".into(), protocol: Protocol::Tcp, number: 80 };
    let service = Service { family: Some(Family::V4), selects: true, external_name: false, ports: vec![port] };
    let changes = [
        listed("web", seen, Change::Resource),
        listed("web", service, Change::Service),
        listed("web-1", slice, Change::Slice),
    ];
    for change in changes.into_iter().flatten() {
        world.apply(Event { scope: namespace(), change }, Instant::now());
    }
    let selector = Some([("app".into(), "web".into())].into());
    Cluster {
        world,
        asks: [(key.clone(), Asks { class, source })].into(),
        pods: Ok(vec![pod(ready)]),
        services: Ok(vec![SeenService { key, selector }]),
        lacking: Vec::new(),
        name: ClusterName::new("c").unwrap(),
    }
}

/// What Consul shows of it once it is registered, with this state of its readiness.
fn registered(cluster: &Cluster, health: Health) -> Shown {
    let key = ResourceKey::new("shop", "web");
    let Action::Apply { desired, .. } = decision(&key, cluster, &[]).action else { panic!("nothing is desired") };
    let (row, wanted) = desired.into_iter().next().unwrap();
    let check = ShownCheck { name: READINESS.to_owned(), health, output: String::new(), of_node: false };
    assert_eq!(check_id(&row.id, READINESS), format!("{}:readiness", row.id));
    Shown { node: "n".into(), id: row.id, registration: (*wanted).clone(), checks: vec![check], modify_index: 1 }
}

fn explained(
    asked: &str,
    mut cluster: Cluster,
    consul: Result<Vec<Shown>, String>,
) -> (Ending, Option<String>, String) {
    cluster.know(consul.as_deref().unwrap_or_default());
    let seen = Seen { place: namespace().to_string(), kubernetes: Ok(cluster), consul };
    let way = explain(&asked.parse().unwrap(), &seen);
    (way.ending(), way.cause().map(|cause| cause.reason.clone()), way.text())
}

/// As [`explained`], with rows known, so that there is a decision.
fn known(resource: ResourceObject, ready: bool) -> Cluster {
    let mut cluster = cluster(resource, ready);
    cluster.know(&[]);
    cluster
}

#[test]
fn what_is_in_consul_as_desired_has_no_cause() {
    for asked in ["pod/web-0", "10.0.0.1", "web", "csvc/web", "WEB"] {
        let cluster = known(web(&json!({ "tags": ["a"] }), &FINE), true);
        let there = registered(&cluster, Health::Passing);
        let (ending, cause, text) = explained(asked, cluster, Ok(vec![there]));
        assert_eq!((ending, cause), (Ending::AsDesired, None), "{asked}:\n{text}");
    }
}

/// What the resource asks for, what is said of it, whether the pod is ready, what Consul has, and the cause.
type Row<'a> = (&'a Value, &'a [(&'a str, &'a str, &'a str)], bool, &'a dyn Fn(Shown) -> Vec<Shown>, &'a str);

#[test]
fn each_step_may_be_the_cause() {
    let (no_tags, tags) = (json!({}), json!({ "tags": ["a"] }));
    let deregister = json!({ "readiness": "Deregister" });
    let refused = [FINE[0], FINE[1], ("Registered", "False", "Refused")];
    let edited = |mut there: Shown| {
        there.registration.port = 81;
        there
    };
    let unready = |mut there: Shown| {
        there.registration.readiness = Some(Health::Critical);
        there
    };
    let table: [Row<'_>; 7] = [
        (&tags, &FINE, true, &|_| Vec::new(), "NotWritten"),
        (&tags, &refused, true, &|_| Vec::new(), "Refused"),
        (&tags, &FINE, true, &|there| vec![edited(there)], "Differs"),
        (&tags, &FINE, false, &|there| vec![unready(there)], "NotReady"),
        (&deregister, &FINE, false, &|_| Vec::new(), "NotReady"),
        (&no_tags, &[], true, &|_| Vec::new(), "NoStatus"),
        (
            &json!({ "tags": ["${pod.ip}"] }),
            &[("Accepted", "False", "InvalidTemplate")],
            true,
            &|_| Vec::new(),
            "InvalidTemplate",
        ),
    ];
    for (more, conditions, ready, shown, expected) in table {
        let cluster = known(web(more, conditions), ready);
        let fine = known(web(&no_tags, &FINE), true);
        let health = if ready { Health::Passing } else { Health::Critical };
        let there = registered(if more.get("tags") == Some(&json!(["a"])) { &cluster } else { &fine }, health);
        let (ending, cause, text) = explained("pod/web-0", cluster, Ok(shown(there)));
        assert_eq!((ending, cause.as_deref()), (Ending::NotAsDesired, Some(expected)), "{text}");
    }
}

#[test]
fn a_condition_about_others_holds_up_nobody_else() {
    let refused = [FINE[0], FINE[1], ("Registered", "False", "Refused")];
    let cluster = known(web(&json!({}), &refused), true);
    let there = registered(&cluster, Health::Passing);
    let (ending, cause, text) = explained("pod/web-0", cluster, Ok(vec![there]));
    assert_eq!((ending, cause), (Ending::AsDesired, None), "{text}");
    assert!(text.contains("note  Registered (Refused): said"), "{text}");
}

#[test]
fn who_is_away_is_said_and_the_rest_is_told() {
    let (ending, _, text) = explained("pod/web-0", known(web(&json!({}), &FINE), true), Err("refused".to_owned()));
    assert_eq!(ending, Ending::Unknown);
    assert!(text.contains("?     Consul: refused") && text.contains("ok    desired: web at 10.0.0.1:8080"), "{text}");
    let there = registered(&known(web(&json!({}), &FINE), true), Health::Passing);
    let away = Away { words: "refused".to_owned(), lacking: vec!["list pods".to_owned()] };
    let seen = Seen { place: String::new(), kubernetes: Err(away), consul: Ok(vec![there]) };
    let way = explain(&"pod/web-0".parse().unwrap(), &seen);
    assert_eq!(way.ending(), Ending::Unknown);
    assert!(way.text().contains("note  Consul node n: it has "), "{}", way.text());
    assert!(way.text().contains("?     missing right in Kubernetes: list pods\n"), "{}", way.text());
}

#[test]
fn a_name_that_is_nowhere_is_said_with_what_is_there() {
    let (ending, cause, text) = explained("nowhere", known(web(&json!({}), &FINE), true), Ok(Vec::new()));
    assert_eq!((ending, cause.as_deref()), (Ending::NotAsDesired, Some("NotFound")), "{text}");
    assert!(text.contains("; there: shop/web\n"), "{text}");
}
