//! The troubles: how each is planted, what is typed, and what of the answer decides.

use anyhow::{Context, Result};
use futures::future::LocalBoxFuture;
use lictor_testbed::NewEndpoint;
use serde_json::json;

use super::ground::Ground;
use crate::rows::{Row, remove};

/// How a trouble is planted.
type Plant = for<'a> fn(&'a Ground<'a>) -> LocalBoxFuture<'a, Result<()>>;

/// A trouble.
pub(crate) struct Trouble {
    /// What is wrong, for the page.
    pub(crate) planted: &'static str,
    /// What is typed after `lictor why`. `shop` is the namespace.
    pub(crate) typed: &'static str,
    /// The exit code.
    pub(crate) code: i32,
    /// The lines of the answer that decide, or how they begin.
    pub(crate) lines: &'static [&'static str],
    pub(crate) plant: Plant,
}

/// Makes troubles of a list.
macro_rules! troubles {
    ($($planted:literal, $typed:literal, $code:literal, [$($line:literal),+], |$ground:ident| $plant:block;)+) => {
        vec![$(Trouble {
            planted: $planted,
            typed: $typed,
            code: $code,
            lines: &[$($line),+],
            plant: |$ground| Box::pin(async move {
                $plant
                Ok(())
            }),
        }),+]
    };
}

/// Those that are planted while an operator runs.
pub(crate) fn running() -> Vec<Trouble> {
    [pods(), sources(), specs(), others()].into_iter().flatten().collect()
}

fn pods() -> Vec<Trouble> {
    troubles! {
        "nothing", "pod/fine-0 -n shop", 0,
        ["ok    pod shop/fine-0: it is on node shop-a, with address 10.0.0.1, and ready",
         "ok    ConsulService shop/fine: it picks pod shop/fine-0: an EndpointSlice of Service \"fine\" has it: 10.0.0.1, port 8080 (http), ready",
         "ok    desired: fine_shop at 10.0.0.1:8080, tags a, passing by its readiness",
         "ok    check readiness: passing",
         "well: it is in Consul as desired"],
        |ground| { ground.app("fine", json!({ "tags": ["a"] })).await?; };

        "the pod does not exist", "pod/nosuch-0 -n shop", 1,
        ["why:  NoSuchPod: there is no such pod in namespace shop"],
        |_ground| {};

        "the namespace has no `ConsulService`", "pod/alone-0 -n empty", 1,
        ["why:  NoConsulService: there is none in namespace empty"],
        |ground| { ground.empty().create_pod(ground.new_pod("alone")).await?; };

        "the Service does not select the pod: its label has a typing error", "pod/label-0 -n shop", 1,
        ["note  ConsulService shop/label: it does not pick pod shop/label-0: its Service \"label\" does not select the pod: it selects app=label, and the pod has app=lable",
         "why:  NotPicked: no ConsulService of namespace shop picks pod shop/label-0"],
        |ground| {
            ground.service("label").await?;
            ground.pod(ground.new_pod("label").label("app", "lable")).await?;
            ground.resource("label", json!({})).await?;
        };

        "`source.pods` asks for a label that the pod does not have", "pod/tier-0 -n shop", 1,
        ["note  ConsulService shop/tier: it does not pick pod shop/tier-0: its selector does not match the pod: it asks for tier=front, and the pod has no label tier",
         "why:  NotPicked: no ConsulService of namespace shop picks pod shop/tier-0"],
        |ground| {
            ground.pod(ground.new_pod("tier")).await?;
            ground.resource("tier", json!({ "source": { "pods": { "matchLabels": { "tier": "front" } } } })).await?;
        };

        "the pod has no address yet", "pod/pending-0 -n shop", 1,
        ["why:  NoAddress: it is on node shop-a, Pending, and has no IP address yet"],
        |ground| {
            ground.service("pending").await?;
            ground.pod(ground.new_pod("pending").unreported()).await?;
            ground.resource("pending", json!({})).await?;
        };

        "the pod is not ready", "pod/unready-0 -n shop", 1,
        ["FAIL  check readiness: critical: the pod is not ready",
         "why:  NotReady: critical: the pod is not ready"],
        |ground| {
            ground.service("unready").await?;
            ground.pod(ground.new_pod("unready").not_ready()).await?;
            ground.resource("unready", json!({})).await?;
        };

        "the pod is not ready, and the resource has `readiness: Deregister`", "pod/left-out-0 -n shop", 1,
        ["FAIL  readiness: the pod is not ready",
         "why:  NotReady: the pod is not ready"],
        |ground| {
            ground.service("left-out").await?;
            ground.pod(ground.new_pod("left-out").not_ready()).await?;
            ground.resource("left-out", json!({ "readiness": "Deregister" })).await?;
        };

        "the pod has ended", "pod/job-0 -n shop", 1,
        ["why:  PodEnded: it has ended (Succeeded)"],
        |ground| {
            ground.app("job", json!({})).await?;
            ground.fixture.namespace.set_phase("job-0", "Succeeded").await?;
        };

        "the pod is being deleted", "pod/leaving-0 -n shop", 1,
        ["why:  Terminating: it is on node shop-a and is being deleted"],
        |ground| {
            ground.app("leaving", json!({})).await?;
            let node = format!("{}-b", ground.fixture.namespace.name());
            let other = lictor_testbed::NewPod::new("leaving-1", &node).label("app", "leaving").port("http", 8080);
            ground.pod(other).await?;
            ground.registered("leaving", 2).await?;
            ground.fixture.namespace.delete_pod("leaving-0", 600).await?;
        };
    }
}

fn sources() -> Vec<Trouble> {
    troubles! {
        "the Service that the resource names does not exist", "csvc/nameless -n shop", 1,
        ["why:  ServiceNotFound: Service \"nameles\" does not exist in this namespace"],
        |ground| {
            ground.service("nameless").await?;
            ground.pod(ground.new_pod("nameless")).await?;
            ground.resource("nameless", json!({ "source": { "service": { "name": "nameles" } } })).await?;
        };

        "the same, asked for the pod", "pod/nameless-0 -n shop", 1,
        ["note  ConsulService shop/nameless: it does not pick pod shop/nameless-0: its Service \"nameles\" does not exist",
         "why:  NotPicked: no ConsulService of namespace shop picks pod shop/nameless-0"],
        |_ground| {};

        "the Service is of type `ExternalName`", "csvc/external -n shop", 1,
        ["why:  ExternalName: Service \"external\" is of type ExternalName, which has no endpoints to register"],
        |ground| {
            let spec = json!({ "type": "ExternalName", "externalName": "db.example" });
            let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "external" }, "spec": spec });
            ground.fixture.namespace.apply_yaml(&service.to_string()).await?;
            ground.resource("external", json!({})).await?;
        };

        "the Service has two ports, and `spec.port` names none", "pod/ports-0 -n shop", 1,
        ["why:  PortNotFound: Service \"ports\" has several ports: set spec.port to one of them; its ports: 80 (http), 90 (metrics)"],
        |ground| {
            let ports = [("http", 80, "8080"), ("metrics", 90, "9090")];
            ground.fixture.namespace.apply_service("ports", &[("app", "ports")], &ports).await?;
            ground.pod(ground.new_pod("ports")).await?;
            ground.resource("ports", json!({})).await?;
        };

        "`spec.port` names a port that the pod does not have", "pod/grpc-0 -n shop", 1,
        ["why:  PortNotFound: none of the 1 pods that the selector matches has the port; pod \"grpc-0\": it has no port named \"grpc\", so it is not registered; its ports: 8080 (http)"],
        |ground| {
            ground.pod(ground.new_pod("grpc")).await?;
            let source = json!({ "pods": { "matchLabels": { "app": "grpc" } } });
            ground.resource("grpc", json!({ "source": source, "port": "grpc" })).await?;
        };

        "the Service selects no pod at all", "csvc/nobody -n shop", 1,
        ["ok    Resolved: the source was found",
         "why:  NoInstances: nothing is to be registered: the source has no instance"],
        |ground| {
            ground.service("nobody").await?;
            ground.resource("nobody", json!({})).await?;
        };

        "there are more pods than the administrator allows", "csvc/many -n shop", 1,
        ["why:  TooManyInstances: the source has 4 instances, but only 3 are allowed"],
        |ground| {
            ground.app("many", json!({})).await?;
            for number in 1..4 {
                let node = format!("{}-b", ground.fixture.namespace.name());
                let pod = lictor_testbed::NewPod::new(&format!("many-{number}"), &node);
                ground.pod(pod.label("app", "many").port("http", 8080)).await?;
            }
        };

        "an `EndpointSlice` has an address that no pod has", "10.9.9.9 -n shop", 1,
        ["note  address 10.9.9.9: no pod of namespace shop has it",
         "ok    ConsulService shop/by-hand: it picks address 10.9.9.9: an EndpointSlice of Service \"by-hand\" has it: 10.9.9.9, port 8080 (http), ready",
         "why:  NotVerified: 0 of 0 instances are registered, 1 more are left out; 10.9.9.9: no pod of this namespace has the address 10.9.9.9"],
        |ground| {
            let namespace = &ground.fixture.namespace;
            namespace.apply_service("by-hand", &[], &[("http", 80, "8080")]).await?;
            let endpoints = [NewEndpoint::new([10, 9, 9, 9].into())];
            namespace.apply_slice("by-hand-1", "by-hand", &[("http", 8080)], &endpoints).await?;
            ground.resource("by-hand", json!({})).await?;
        };

        "a check goes to a port of the Service that the pod does not have", "pod/admin-0 -n shop", 1,
        ["why:  CheckPortNotFound: admin-0: it does not have the port of check \"admin\", so it is registered without this check"],
        |ground| {
            let ports = [("http", 80, "8080"), ("admin", 90, "admin")];
            ground.fixture.namespace.apply_service("admin", &[("app", "admin")], &ports).await?;
            ground.pod(ground.new_pod("admin")).await?;
            let checks = json!([{ "name": "admin", "tcp": {}, "port": "admin" }]);
            ground.resource("admin", json!({ "port": "http", "checks": checks })).await?;
        };

        "a tag has the value of a label that the pod does not have", "pod/version-0 -n shop", 0,
        ["note  Resolved (ValuesMissing): 1 of 1 instances lack a value: version-0, tag \"v${pod.labels['version']}\": pod.labels['version'] is not there",
         "note  value (ValuesMissing): tag \"v${pod.labels['version']}\": pod.labels['version'] is not there",
         "well: it is in Consul as desired"],
        |ground| { ground.app("version", json!({ "tags": ["v${pod.labels['version']}"] })).await?; };
    }
}

fn specs() -> Vec<Trouble> {
    troubles! {
        "a template names a value that there is not", "pod/template-0 -n shop", 1,
        ["why:  InvalidTemplate: spec.tags: ${pod.ip} does not exist"],
        |ground| { ground.app("template", json!({ "tags": ["${pod.ip}"] })).await?; };

        "an address that the administrator does not allow", "203.0.113.7 -n shop", 1,
        ["ok    ConsulService shop/static: it picks address 203.0.113.7: spec.source.static has it",
         "why:  NotAllowed: spec.source.static: 203.0.113.7 is not in a range that is allowed"],
        |ground| {
            let source = json!({ "static": [{ "address": "203.0.113.7", "port": 80 }] });
            ground.resource("static", json!({ "source": source })).await?;
        };

        "a field of Consul Enterprise", "pod/partition-0 -n shop", 1,
        ["why:  NotSupported: spec.partition \"a\": Consul has partitions only in its Enterprise edition"],
        |ground| { ground.app("partition", json!({ "partition": "a" })).await?; };

        "the templates name more labels than are allowed", "pod/labels-0 -n shop", 1,
        ["why:  TooLarge: tags and meta name 70 labels and annotations of pods: at most 64"],
        |ground| {
            let tag = |number| format!("${{pod.labels['a{number}']}}${{pod.labels['b{number}']}}");
            let tags: Vec<String> = (0..35).map(tag).collect();
            ground.app("labels", json!({ "tags": tags })).await?;
        };

        "a name that Consul's DNS does not answer", "csvc/dotted -n shop", 0,
        ["note  Accepted (NotInDNS): the spec is accepted, but Consul's DNS does not answer the name",
         "well: it is in Consul as desired"],
        |ground| {
            let name = ground.fixture.service_named("my.dotted");
            ground.app("dotted", json!({ "name": name })).await?;
        };

        "the resource is paused", "pod/paused-0 -n shop", 1,
        ["why:  Paused: the annotation lictor.dev/paused pauses this resource: remove the annotation to continue"],
        |ground| {
            ground.resource("paused", json!({})).await?;
            ground.fixture.annotate("paused", "lictor.dev/paused", Some("true")).await?;
            ground.fixture.wait_for_condition("paused", "Registered", "Unknown", "Paused").await?;
            ground.service("paused").await?;
            ground.pod(ground.new_pod("paused")).await?;
        };

        "the resource has a class that no Lictor manages", "pod/blue-0 -n shop", 1,
        ["why:  NoStatus: no Lictor of class \"blue\" has written a status: none runs that watches namespace shop"],
        |ground| { ground.app("blue", json!({ "class": "blue" })).await?; };

        "the namespace is not watched", "pod/unwatched-0 -n unwatched", 1,
        ["why:  NoStatus: no Lictor has written a status: none runs that watches namespace unwatched"],
        |ground| { ground.app_in(&ground.unwatched, "unwatched", "unwatched").await?; };

        "the name in Consul is another namespace's", "pod/conflict-0 -n shop", 1,
        ["why:  NameConflict: the name in Consul belongs to a ConsulService of another namespace"],
        |ground| {
            ground.app_in(&ground.other, "first", "conflict").await?;
            ground.registered("conflict", 1).await?;
            ground.app("conflict", json!({})).await?;
        };
    }
}

fn others() -> Vec<Trouble> {
    troubles! {
        "a check of Consul fails", "pod/sick-0 -n shop", 1,
        ["ok    check readiness: passing", "FAIL  check live: critical", "why:  CheckFails: critical"],
        |ground| {
            let checks = json!([{ "name": "live", "http": { "path": "/live" }, "interval": "1s", "timeout": "1s" }]);
            ground.app("sick", json!({ "checks": checks })).await?;
        };

        "Consul refuses to register it", "pod/refused-0 -n shop", 1,
        ["FAIL  Registered (Refused): 0 of 1 instances are registered",
         "why:  Refused: "],
        |ground| { ground.app("refused", json!({})).await?; };

        "the name is nowhere", "nowhere -n shop", 1,
        ["note  Consul: service \"nowhere\" has 0 instances",
         "why:  NotFound: no ConsulService of namespace shop has this name or registers under it"],
        |_ground| {};

        "two resources register under the name", "twins_shop -n shop", 1,
        ["why:  TwoMatches: 2 match: csvc/twin-a in namespace shop, csvc/twin-b in namespace shop"],
        |ground| {
            let name = ground.fixture.service_named("twins");
            ground.app("twin-a", json!({ "name": name })).await?;
            ground.app("twin-b", json!({ "name": name })).await?;
        };
    }
}

/// Those that are planted once the operator has stopped; what they need of it is made before, by [`before_the_stop`].
pub(crate) fn stopped() -> Vec<Trouble> {
    troubles! {
        "Lictor does not run, and the spec was edited", "pod/edited-0 -n shop", 1,
        ["wait  status: Lictor has not acted on the present spec yet: the status is about generation 1 and the spec is of 2",
         "why:  NotSeenYet: Lictor has not acted on the present spec yet"],
        |ground| { ground.resource("edited", json!({ "tags": ["b"] })).await?; };

        "Lictor does not run, and the resource is new", "pod/newer-0 -n shop", 1,
        ["why:  NoStatus: no Lictor has written a status: none runs that watches namespace shop"],
        |ground| { ground.app("newer", json!({})).await?; };

        "Lictor does not run, and somebody deregistered the instance", "pod/lost-0 -n shop", 1,
        ["wait  Consul: service \"lost_shop\" has no instance at 10.0.0.1:8080",
         "why:  NotWritten: service \"lost_shop\" has no instance at 10.0.0.1:8080"],
        |ground| {
            let found = ground.registered("lost", 1).await?;
            remove(ground.fixture, &found[0]).await?;
        };

        "Lictor does not run, and somebody edited the tags in Consul", "pod/other-tags-0 -n shop", 1,
        ["why:  Differs: it has "],
        |ground| {
            let found = ground.registered("other-tags", 1).await?;
            let service = ground.fixture.service_named("other-tags");
            let row = Row { service, tags: vec!["by-hand".to_owned()], ..Row::of(ground.fixture, &found[0]) };
            row.put(ground.fixture).await?;
        };

        "Lictor does not run, and the pod is gone", "pod/left-0 -n shop", 1,
        ["note  Consul node ", "why:  NoSuchPod: there is no such pod in namespace shop"],
        |ground| {
            ground.registered("left", 1).await?;
            ground.fixture.namespace.force_delete("left-0").await?;
        };
    }
}

/// What [`stopped`] needs of an operator.
pub(crate) async fn before_the_stop(ground: &Ground<'_>) -> Result<()> {
    for name in ["edited", "lost", "other-tags", "left"] {
        ground.app(name, json!({ "tags": ["a"] })).await.context(name)?;
    }
    for name in ["edited", "lost", "other-tags", "left"] {
        ground.registered(name, 1).await.context(name)?;
        ground.fixture.wait_ready(name).await?;
    }
    Ok(())
}

/// The one that is planted by cutting the operator off from Consul.
pub(crate) fn cut_off() -> Vec<Trouble> {
    troubles! {
        "Lictor cannot reach Consul, and there is a new pod", "pod/late-0 -n shop", 1,
        ["FAIL  Registered (ConsulUnavailable): Consul cannot be reached; writes wait until Consul is available again",
         "wait  Consul: service \"late_shop\" has no instance at 10.0.0.1:8080",
         "why:  ConsulUnavailable: Consul cannot be reached; writes wait until Consul is available again"],
        |ground| {
            ground.cut_off();
            ground.app("late", json!({})).await?;
        };
    }
}

/// Those in which whoever asks cannot reach somebody, or may not ask.
pub(crate) fn away() -> Vec<Trouble> {
    troubles! {
        "whoever asks cannot reach Consul", "pod/fine-0 -n shop --consul-address http://127.0.0.1:1", 2,
        ["ok    pod shop/fine-0: it is on node shop-a, with address 10.0.0.1, and ready",
         "ok    Registered: Consul holds every desired instance",
         "?     Consul: Consul at http://127.0.0.1:1: ",
         "why:  Away: not everybody could be asked"],
        |_ground| {};

        "whoever asks cannot reach Kubernetes", "pod/fine-0 -n shop --kubeconfig kubeconfigs/away", 2,
        ["?     Kubernetes: cannot list ConsulServices of namespace shop: ", "note  Consul node ",
         "why:  Away: not everybody could be asked"],
        |ground| { ground.write_kubeconfig_of_nobody()?; };

        "whoever asks may not list anything in Kubernetes", "pod/fine-0 -n shop --kubeconfig kubeconfigs/nobody", 2,
        ["?     Kubernetes: cannot list ConsulServices of namespace shop: ",
         "?     missing right in Kubernetes: list consulservices.lictor.dev in namespace shop",
         "?     missing right in Kubernetes: list pods in namespace shop"],
        |ground| { ground.write_kubeconfig("nobody", &json!([])).await?; };

        "whoever asks may not list pods", "pod/fine-0 -n shop --kubeconfig kubeconfigs/no-pods", 2,
        ["?     missing right in Kubernetes: list pods in namespace shop",
         "ok    ConsulService shop/fine: it picks pod fine-0: an EndpointSlice of Service \"fine\" has it: 10.0.0.1, port 8080 (http), ready"],
        |ground| {
            let rule = |group: &str, resources: &[&str]| {
                json!({ "apiGroups": [group], "resources": resources, "verbs": ["list"] })
            };
            let rules = json!([
                rule("lictor.dev", &["consulservices"]),
                rule("discovery.k8s.io", &["endpointslices"]),
                rule("", &["services"]),
            ]);
            ground.write_kubeconfig("no-pods", &rules).await?;
        };
    }
}
