//! `--policy`: what the administrator lets resources ask for.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{Patch, PatchParams};
use lictor_testbed::{Instance, wait};
use serde_json::{Value, json};

use crate::commands::{plan_with, says};
use crate::fixture::{Fixture, Mode, SOON, apply, arg, merged, wait_for_condition, wait_for_metric};
use crate::names::{neighbour, wait_gone};

/// A policy file of one scenario.
pub(crate) struct File(PathBuf);

impl File {
    pub(crate) fn new(fixture: &Fixture, text: &str) -> Result<Self> {
        let file = Self(std::env::temp_dir().join(format!("{}-policy.yaml", fixture.cluster)));
        file.write(text)?;
        Ok(file)
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    fn write(&self, text: &str) -> Result<()> {
        // As a kubelet does it: the file is another one at once.
        let next = self.0.with_extension("next");
        std::fs::write(&next, text)?;
        Ok(std::fs::rename(next, &self.0)?)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A policy with one rule, for the namespace of a scenario.
pub(crate) fn policy(fixture: &Fixture, fields: Value) -> String {
    let mut rule = json!({ "name": "ours", "namespaces": [fixture.namespace.name()] });
    if let (Some(rule), Value::Object(fields)) = (rule.as_object_mut(), fields) {
        rule.extend(fields);
    }
    json!({ "rules": [rule] }).to_string()
}

fn addresses(found: &[Instance]) -> Vec<&str> {
    found.iter().map(|i| i.address.as_str()).collect()
}

/// Writes a policy file, starts an operator under it, and has one resource registered that it allows.
async fn under(fixture: &Fixture, file: &Path) -> Result<std::sync::Arc<lictor_testbed::Operator>> {
    let operator = fixture.operator().flag("--policy", arg(file)?).ready().await?;
    Ok(operator)
}

pub(crate) async fn a_policy_decides_what_may_be_asked_for(fixture: &Fixture) -> Result<()> {
    fixture.web(1).await?;
    let names = json!([fixture.service, fixture.service_named("second")]);
    let fields = json!({ "names": names, "tags": ["v*"], "metaKeys": ["team"], "staticNetworks": [], "retain": false,
        "budget": { "resources": 2 } });
    let file = File::new(fixture, &policy(fixture, fields))?;
    under(fixture, &file.0).await?;
    fixture.apply_web(json!({ "tags": ["v1"], "meta": { "team": "a" } })).await?;
    fixture.wait_for("the one that is allowed", |found| found.len() == 1).await?;
    fixture.wait_flawless("web").await?;

    let second = fixture.service_named("second");
    let refused = [
        (json!({ "name": "vault" }), "companions"),
        (json!({ "name": fixture.service_named("third") }), "third"),
        (json!({ "name": second, "tags": ["traefik.enable=true"] }), "the tag \"traefik.enable=true\""),
        (json!({ "name": second, "tags": ["${pod.labels['tag']}"] }), "falls to a *"),
        (json!({ "name": second, "meta": { "cost": "1" } }), "the meta key \"cost\""),
        (json!({ "name": second, "deletionPolicy": "Retain" }), "Retain"),
        (json!({ "name": second, "taggedAddresses": { "wan": { "address": "198.51.100.7", "port": 1 } } }), "wan"),
    ];
    for (more, words) in refused {
        fixture.apply("second", &fixture.spec(more)).await?;
        let message = fixture.wait_for_words("second", "Accepted", words).await?;
        ensure!(words == "companions" || message.contains("rule \"ours\""), "it does not name the rule: {message}");
        fixture.wait_for_condition("second", "Accepted", "False", "NotAllowed").await?;
    }
    fixture.wait_for_event("second", "NotAllowed").await?;
    fixture.apply("third", &fixture.spec(json!({ "name": second }))).await?;
    fixture.wait_for_words("third", "Accepted", "no room for another ConsulService").await?;
    ensure!(fixture.consul().instances(&second).await?.is_empty(), "what is not allowed is registered");
    // There is room for it once an older one is gone.
    fixture.delete("second").await?;
    fixture.wait_flawless("third").await
}

pub(crate) async fn instances_do_not_stay_by_an_edit_that_is_refused(fixture: &Fixture) -> Result<()> {
    fixture.web(1).await?;
    let file = File::new(fixture, &policy(fixture, json!({ "retain": false })))?;
    let operator = under(fixture, &file.0).await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for("the one that is allowed", |found| found.len() == 1).await?;
    fixture.wait_flawless("web").await?;
    fixture.apply_web(json!({ "deletionPolicy": "Retain" })).await?;
    fixture.wait_for_words("web", "Accepted", "deletionPolicy: Retain").await?;
    ensure!(fixture.instances().await?.len() == 1, "what is registered stays");
    fixture.delete("web").await?;
    fixture.wait_gone("web").await?;
    ensure!(fixture.instances().await?.is_empty(), "they stay by an edit that was refused");

    // The edit and the deletion are only seen after a restart.
    fixture.apply_web(json!({})).await?;
    fixture.wait_for("the one that is allowed", |found| found.len() == 1).await?;
    fixture.wait_flawless("web").await?;
    operator.kill()?;
    fixture.apply_web(json!({ "deletionPolicy": "Retain" })).await?;
    fixture.delete("web").await?;
    let operator = under(fixture, &file.0).await?;
    fixture.wait_gone("web").await?;
    ensure!(fixture.instances().await?.is_empty(), "they stay by an edit that Lictor did not see");

    // What was allowed before counts under a policy that is tightened.
    file.write(&policy(fixture, json!({})))?;
    fixture.apply_web(json!({ "deletionPolicy": "Retain" })).await?;
    fixture.wait_for("the one that is allowed", |found| found.len() == 1).await?;
    fixture.wait_flawless("web").await?;
    file.write(&policy(fixture, json!({ "retain": false })))?;
    fixture.wait_for_condition("web", "Accepted", "False", "NotAllowed").await?;
    fixture.delete("web").await?;
    fixture.wait_gone("web").await?;
    ensure!(fixture.instances().await?.len() == 1, "what was allowed to stay is gone");
    fixture.apply_web(json!({})).await?;
    fixture.wait_flawless("web").await?;
    fixture.delete("web").await?;
    fixture.wait_gone("web").await?;
    operator.terminate(SOON).await.map(drop)
}

pub(crate) async fn what_was_allowed_to_stay_stays_after_a_restart(fixture: &Fixture) -> Result<()> {
    fixture.web(1).await?;
    let (loose, tight) = (policy(fixture, json!({})), policy(fixture, json!({ "retain": false })));
    let file = File::new(fixture, &loose)?;
    let mut operator = under(fixture, &file.0).await?;
    let told = async || -> Result<Value> {
        Ok(fixture.resources().get("web").await?.data["status"]["deletionPolicy"].clone())
    };
    // The first time Lictor sees the tightened policy before it ends; the second time only after its next start.
    for is_seen in [true, false] {
        file.write(&loose)?;
        fixture.apply_web(json!({ "deletionPolicy": "Retain" })).await?;
        fixture.wait_for("the one that is allowed", |found| found.len() == 1).await?;
        fixture.wait_flawless("web").await?;
        ensure!(told().await? == "Retain", "the status does not tell that they stay");
        file.write(&tight)?;
        if is_seen {
            fixture.wait_for_condition("web", "Accepted", "False", "NotAllowed").await?;
        }
        operator.kill()?;
        operator = under(fixture, &file.0).await?;
        fixture.wait_for_condition("web", "Accepted", "False", "NotAllowed").await?;
        ensure!(told().await? == "Retain", "the status does not tell any more that they stay");
        fixture.delete("web").await?;
        fixture.wait_gone("web").await?;
        ensure!(fixture.instances().await?.len() == 1, "what was allowed to stay is gone");
    }

    // An author who thinks better of it has no instances stay after that.
    fixture.apply_web(json!({})).await?;
    fixture.wait_flawless("web").await?;
    ensure!(told().await?.is_null(), "the status tells that they stay");
    fixture.apply_web(json!({ "deletionPolicy": "Retain" })).await?;
    fixture.wait_for_condition("web", "Accepted", "False", "NotAllowed").await?;
    operator.kill()?;
    operator = under(fixture, &file.0).await?;
    fixture.delete("web").await?;
    fixture.wait_gone("web").await?;
    ensure!(fixture.instances().await?.is_empty(), "they stay by an edit that was refused");
    operator.terminate(SOON).await.map(drop)
}

pub(crate) async fn a_rule_narrows_names_instances_and_classes(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(3).await?;
    let (other, theirs) = neighbour(fixture).await?;
    let rule = |fields: Value| {
        let both = json!({ "namespaces": [fixture.namespace.name(), other.name()] });
        policy(fixture, merged(both, fields))
    };
    let file = File::new(fixture, &rule(json!({})))?;
    let next = File(file.0.with_extension("tight"));
    let (path, next_path) = (arg(&file.0)?, arg(&next.0)?);
    let own = fixture.namespace.name();
    let flags = ["--policy", path, next_path, "--allow-shared-names", "--namespace", own, "--namespace", other.name()];
    let running = fixture.operator().flag("--policy", path).flag("--namespace", other.name());
    running.switch("--allow-shared-names").ready().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&pods.iter().collect::<Vec<_>>()).await?;
    fixture.wait_flawless("web").await?;
    // Of two that are made in one second, nobody knows which is older by more than its uid.
    let made = fixture.resources().get("web").await?.metadata.creation_timestamp;
    wait::until("a later second", SOON, || async {
        apply(&theirs, "web", &fixture.spec(json!({}))).await?;
        let is_later = theirs.get("web").await?.metadata.creation_timestamp > made;
        if !is_later {
            wait_gone(&theirs, "web").await?;
        }
        Ok(is_later.then_some(()))
    })
    .await?;
    fixture.wait_for("those of both namespaces", |found| found.len() == 4).await?;

    let narrow = rule(json!({ "sharedNames": false, "budget": { "instances": 2 } }));
    next.write(&narrow)?;
    let told = says(fixture, "policy check", &flags, 1)?;
    let line =
        |namespace: &str| told.lines().find(|line| line.starts_with(&format!("{namespace}/web"))).unwrap_or_default();
    let (ours, newcomer) = (line(fixture.namespace.name()), line(other.name()));
    ensure!(ours.contains("allowed  allowed  at most 2 instances"), "{told}");
    ensure!(newcomer.contains("allowed  refused") && newcomer.contains("another namespace"), "{told}");
    ensure!(told.contains("1 allowed now would be refused") && told.contains("1 would have another limit"), "{told}");
    file.write(&narrow)?;
    wait_for_condition(&theirs, "web", "Accepted", "False", "NameConflict").await?;
    fixture.wait_for_condition("web", "Resolved", "False", "TooManyInstances").await?;
    ensure!(addresses(&fixture.instances().await?).len() >= 3, "what is registered has gone");
    fixture.namespace.force_delete("web-2").await?;
    let third = fixture.web_pod("web-3", "b").await?;
    fixture.namespace.force_delete("web-1").await?;
    let ips = [&pods[0], &third, &pods[1], &pods[2]].map(|pod| pod.ip.to_string());
    fixture
        .wait_for("the one that is left and the next", |found| {
            let is_there = ips.each_ref().map(|ip| found.iter().any(|i| i.address == **ip));
            is_there == [true, true, false, false]
        })
        .await?;

    let blue = rule(json!({ "classes": ["blue"] }));
    next.write(&blue)?;
    let told = says(fixture, "policy check", &flags, 1)?;
    ensure!(told.contains("the class \"\"") && told.contains("would be refused"), "{told}");
    file.write(&blue)?;
    fixture.wait_for_words("web", "Accepted", "the classes \"blue\"").await.map(drop)
}

/// Makes a resource in a later second than `web`: of two that are made in one second, nobody knows which is older by more than
/// its uid.
pub(crate) async fn apply_later(fixture: &Fixture, name: &str, spec: &Value) -> Result<()> {
    let made = fixture.resources().get("web").await?.metadata.creation_timestamp;
    wait::until("a later second", SOON, || async {
        fixture.apply(name, spec).await?;
        if fixture.resources().get(name).await?.metadata.creation_timestamp > made {
            return Ok(Some(()));
        }
        fixture.delete(name).await?;
        fixture.wait_gone(name).await?;
        Ok(None)
    })
    .await
}

pub(crate) async fn a_namespace_has_so_many_checks(fixture: &Fixture) -> Result<()> {
    fixture.web(1).await?;
    let with = |budget: Value| policy(fixture, json!({ "budget": budget }));
    let file = File::new(fixture, &with(json!({ "namespaceChecks": 2 })))?;
    let path = arg(file.path())?;
    let start = || fixture.operator().with_checks().flag("--policy", path);
    let operator = start().ready().await?;
    let check = |name: &str| json!({ "name": name, "tcp": {} });
    fixture.apply_web(json!({ "checks": [check("a"), check("b")] })).await?;
    fixture.wait_for("the older one", |found| found.len() == 1).await?;
    let second = fixture.service_named("second");
    let newer = fixture.spec(json!({ "name": second, "checks": [check("a")] }));
    // Of two that are made in one second, nobody knows which is older. Whichever it is, the one that is registered comes first.
    fixture.apply("second", &newer).await?;
    let message = fixture.wait_for_words("second", "Accepted", "no room for its checks").await?;
    ensure!(message.contains("rule \"ours\"") && message.contains("2 checks (budget.namespaceChecks)"), "{message}");
    fixture.wait_for_condition("second", "Accepted", "False", "NotAllowed").await?;
    fixture.wait_for_event("second", "NotAllowed").await?;
    fixture.wait_flawless("web").await?;
    ensure!(fixture.consul().instances(&second).await?.is_empty(), "what is not allowed is registered");
    fixture.delete("second").await?;
    fixture.wait_gone("second").await?;
    apply_later(fixture, "second", &newer).await?;
    fixture.wait_for_condition("second", "Accepted", "False", "NotAllowed").await?;
    fixture.apply_web(json!({ "checks": [check("a")] })).await?;
    fixture.wait_for_condition("second", "Accepted", "True", "Accepted").await?;
    wait::until("the newer one", SOON, || async {
        Ok((fixture.consul().instances(&second).await?.len() == 1).then_some(()))
    })
    .await?;
    fixture.wait_flawless("second").await?;

    // The older one does not grow over it: it goes on with the check that it has, over a restart too.
    let checks = async |service: &str| -> Result<usize> {
        let found = fixture.consul().get(&format!("/v1/health/checks/{service}")).await?;
        let of_user = |check: &&Value| check["Name"] == "a" || check["Name"] == "b";
        Ok(found.as_array().into_iter().flatten().filter(of_user).count())
    };
    fixture.apply_web(json!({ "checks": [check("a"), check("b")] })).await?;
    fixture.wait_for_words("web", "Accepted", "no room for its checks").await?;
    ensure!((checks(&fixture.service).await?, checks(&second).await?) == (1, 1), "more than the budget are registered");
    operator.kill()?;
    let operator = start().ready().await?;
    fixture.wait_for_a_look(&operator).await?;
    fixture.wait_for_words("web", "Accepted", "no room for its checks").await?;
    fixture.wait_for_condition("second", "Accepted", "True", "Accepted").await?;
    ensure!((checks(&fixture.service).await?, checks(&second).await?) == (1, 1), "a restart shares otherwise");
    fixture.apply_web(json!({ "checks": [check("a")] })).await?;
    fixture.wait_flawless("web").await?;

    // A tighter budget refuses the newer one, as `lictor policy check` says before, and what is registered stays.
    let next = File(file.0.with_extension("tight"));
    let tight = with(json!({ "namespaceBytes": 1024 }));
    next.write(&tight)?;
    let consul_esm: &[&str] = if fixture.mode == Mode::Catalog { &["--consul-esm"] } else { &[] };
    let args = [&["--policy", arg(&file.0)?, arg(&next.0)?], consul_esm].concat();
    let told = says(fixture, "policy check", &args, 1)?;
    let line = told.lines().find(|line| line.contains("/second")).unwrap_or_default();
    ensure!(line.contains("allowed  refused") && line.contains("no room for its spec"), "{told}");
    file.write(&tight)?;
    fixture.wait_for_words("second", "Accepted", "no room for its spec").await?;
    fixture.wait_for_condition("web", "Accepted", "True", "Accepted").await?;
    ensure!(fixture.consul().instances(&second).await?.len() == 1, "what is registered has gone");
    Ok(())
}

pub(crate) async fn a_namespace_has_so_many_instances(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(2).await?;
    let with = |most: usize| policy(fixture, json!({ "budget": { "namespaceInstances": most } }));
    let file = File::new(fixture, &with(3))?;
    let operator = under(fixture, &file.0).await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&pods.iter().collect::<Vec<_>>()).await?;
    let second = fixture.service_named("second");
    let count = async |service: &str| -> Result<usize> { Ok(fixture.consul().instances(service).await?.len()) };
    fixture.apply("second", &fixture.spec(json!({ "name": second }))).await?;
    let message = fixture.wait_for_condition("second", "Resolved", "False", "TooManyInstances").await?;
    ensure!(message.contains("allows 3") && message.contains("have 2"), "{message}");
    fixture.consul().wait_for(&second, "the one that has room", |found| found.len() == 1, SOON).await?;
    operator.kill()?;
    let operator = under(fixture, &file.0).await?;
    fixture.wait_for_a_look(&operator).await?;
    ensure!((count(&fixture.service).await?, count(&second).await?) == (2, 1), "a restart shares otherwise");
    file.write(&with(1))?;
    fixture.wait_for_condition("web", "Resolved", "False", "TooManyInstances").await?;
    fixture.wait_for_a_look(&operator).await?;
    ensure!((count(&fixture.service).await?, count(&second).await?) == (2, 1), "what is registered has gone");
    file.write(&with(3))?;
    fixture.delete("web").await?;
    fixture.wait_gone("web").await?;
    fixture.consul().wait_for(&second, "both", |found| found.len() == 2, SOON).await?;
    fixture.wait_flawless("second").await
}

/// Gives the number of instances under each of these names.
async fn counts<const N: usize>(fixture: &Fixture, services: [&str; N]) -> Result<[usize; N]> {
    let mut counts = [0; N];
    for (count, service) in counts.iter_mut().zip(services) {
        *count = fixture.consul().instances(service).await?.len();
    }
    Ok(counts)
}

/// What a plan says of resources: their names, and a message of each.
type Notes = Vec<(String, String)>;

/// Runs `lictor plan` under a policy. Gives the number of instances that it registers under each of these names, and what its
/// notes say of each resource.
fn planned(fixture: &Fixture, file: &Path, services: [&str; 2], code: i32) -> Result<([usize; 2], Notes)> {
    let found = plan_with(fixture, &["--policy", arg(file)?], code)?;
    let is_of = |step: &&Value, service: &str| step["service"] == service && step["action"] == "create";
    let steps = found["steps"].as_array().context("steps")?;
    let notes = found["notes"].as_array().context("notes")?.iter().filter_map(|note| {
        let (resource, message) = (note["resource"].as_str()?, note["message"].as_str()?);
        Some((resource.rsplit('/').next()?.to_owned(), message.to_owned()))
    });
    Ok((services.map(|service| steps.iter().filter(|step| is_of(step, service)).count()), notes.collect()))
}

pub(crate) async fn budgets_of_a_namespace_are_foreseen(fixture: &Fixture) -> Result<()> {
    fixture.web(2).await?;
    let names = |names: &[&str], most: usize| {
        let names: Vec<String> = names.iter().map(|name| fixture.service_named(name)).collect();
        policy(fixture, json!({ "names": names, "budget": { "namespaceInstances": most } }))
    };
    let with = |most: usize| names(&["web", "second"], most);
    let file = File::new(fixture, &with(3))?;
    let next = File(file.0.with_extension("next-policy"));
    let (web, second) = (fixture.service_named("web"), fixture.service_named("second"));
    let services = [&*web, &*second];
    fixture.apply_web(json!({ "name": web })).await?;
    fixture.apply("second", &fixture.spec(json!({ "name": second }))).await?;
    // Kubernetes' own controllers take a moment.
    let all = || async {
        Ok(planned(fixture, &file.0, services, 1).ok().filter(|(found, _)| found.iter().sum::<usize>() == 3))
    };
    let (foreseen, _) = wait::until("a plan for as many as the budget allows", SOON, all).await?;
    let operator = under(fixture, &file.0).await?;
    wait::until("what the plan says", SOON, || async {
        let found = counts(fixture, services).await?;
        ensure!(found == foreseen, "the plan was {foreseen:?}, and there are {found:?}");
        Ok(Some(()))
    })
    .await?;
    fixture.wait_for_a_look(&operator).await?;
    ensure!(counts(fixture, services).await? == foreseen, "more have come");
    // What the plan says of a budget that leaves some out is what the status says, also of one that is to come.
    let same = async |file: &Path| -> Result<()> {
        let (steps, notes) = planned(fixture, file, services, 0)?;
        ensure!(steps == [0, 0] && !notes.is_empty(), "{steps:?} {notes:?}");
        for (name, message) in notes {
            fixture.wait_for_words(&name, "Ready", &message).await?;
        }
        Ok(())
    };
    same(&file.0).await?;
    next.write(&with(1))?;
    let told = says(fixture, "policy check", &["--policy", arg(&file.0)?, arg(&next.0)?], 1)?;
    ensure!(told.matches("at most 1 instances in the namespace").count() == 2, "{told}");
    let (_, foreseen) = planned(fixture, &next.0, services, 0)?;
    file.write(&with(1))?;
    for (name, message) in &foreseen {
        fixture.wait_for_words(name, "Ready", message).await?;
    }
    same(&file.0).await?;
    next.write(&with(4))?;
    let told = says(fixture, "policy check", &["--policy", arg(&file.0)?, arg(&next.0)?], 1)?;
    ensure!(told.matches("at most 4 instances in the namespace").count() == 2, "{told}");

    // What is registered of a resource that is refused counts, over a restart too, although its status desires nothing.
    file.write(&names(&["second"], 3))?;
    fixture.wait_for_condition("web", "Accepted", "False", "NotAllowed").await?;
    operator.kill()?;
    under(fixture, &file.0).await?;
    wait::until("a status without instances that are desired", SOON, || async {
        let desired = &fixture.resources().get("web").await?.data["status"]["instances"]["desired"];
        ensure!(*desired == 0, "{desired} are desired");
        Ok(Some(()))
    })
    .await?;
    same(&file.0).await?;
    next.write(&names(&["second"], 2))?;
    let told = says(fixture, "policy check", &["--policy", arg(&file.0)?, arg(&next.0)?], 1)?;
    let line = told.lines().find(|line| line.contains("/second")).unwrap_or_default();
    ensure!(line.contains("at most 2 instances in the namespace"), "{told}");
    Ok(())
}

pub(crate) async fn budgets_of_checks_are_foreseen_after_a_restart(fixture: &Fixture) -> Result<()> {
    fixture.web(1).await?;
    let file = File::new(fixture, &policy(fixture, json!({ "budget": { "namespaceChecks": 2 } })))?;
    let path = file.0.to_string_lossy();
    let start = || fixture.operator().with_checks().flag("--policy", &path);
    let operator = start().ready().await?;
    let with = |name: &str, checks: &[&str]| {
        let checks: Vec<Value> = checks.iter().map(|name| json!({ "name": name, "tcp": {} })).collect();
        fixture.spec(json!({ "name": fixture.service_named(name), "checks": checks }))
    };
    for name in ["web", "second"] {
        fixture.apply(name, &with(name, &["a"])).await?;
        fixture.wait_flawless(name).await?;
    }
    fixture.apply("web", &with("web", &["a", "b"])).await?;
    fixture.wait_for_words("web", "Accepted", "no room for its checks").await?;
    // The present spec of `web` is refused, so after a restart only Consul says that it has a check.
    operator.kill()?;
    fixture.apply("third", &with("third", &["a"])).await?;
    let operator = start().ready().await?;
    fixture.wait_for_a_look(&operator).await?;
    let mut expected = Vec::new();
    for (name, status) in [("second", "True"), ("third", "False"), ("web", "False")] {
        let reason = if status == "True" { "Accepted" } else { "NotAllowed" };
        let message = fixture.wait_for_condition(name, "Accepted", status, reason).await?;
        expected.extend((status == "False").then(|| (name.to_owned(), message)));
    }
    let consul_esm: &[&str] = if fixture.mode == Mode::Catalog { &["--consul-esm"] } else { &[] };
    let found = plan_with(fixture, &[&["--policy", arg(&file.0)?], consul_esm].concat(), 0)?;
    let args = [&["--policy", arg(&file.0)?, arg(&file.0)?], consul_esm].concat();
    let told = says(fixture, "policy check", &args, 0)?;
    for (name, message) in &expected {
        let is_of = |note: &&Value| note["resource"].as_str().is_some_and(|of| of.ends_with(&format!("/{name}")));
        let note = found["notes"].as_array().into_iter().flatten().find(is_of);
        let said = note.and_then(|note| note["message"].as_str()).unwrap_or_default();
        ensure!(said.contains(message), "the status of {name} says {message:?}, and the plan {found:#}");
        let line = told.lines().find(|line| line.contains(&format!("/{name} "))).unwrap_or_default();
        ensure!(line.contains("refused  refused"), "{told}");
    }
    let second = told.lines().find(|line| line.contains("/second ")).unwrap_or_default();
    ensure!(second.contains("allowed  allowed"), "{told}");
    Ok(())
}

pub(crate) async fn a_tightened_policy_removes_nothing_that_lives(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(3).await?;
    let file = File::new(fixture, &policy(fixture, json!({})))?;
    let tight = policy(fixture, json!({ "names": ["other"] }));
    let operator = under(fixture, &file.0).await?;
    fixture.apply_web(json!({ "tags": ["before"] })).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1], &pods[2]]).await?;
    fixture.wait_flawless("web").await?;

    // What it would change is told before.
    let next = File(file.0.with_extension("tight"));
    next.write(&tight)?;
    let told = says(fixture, "policy check", &["--policy", arg(&file.0)?, arg(&next.0)?], 1)?;
    let web = told.lines().find(|line| line.contains("/web")).unwrap_or_default();
    ensure!(web.contains("ours") && web.contains("allowed  refused") && web.contains("the name"), "{told}");
    ensure!(
        says(fixture, "policy check", &["--policy", arg(&file.0)?, arg(&file.0)?], 0)?
            .contains("0 allowed now would be refused")
    );
    next.write("rules: [")?;
    let told = says(fixture, "policy check", &[arg(&next.0)?], 2)?;
    ensure!(told.lines().count() == 1 && told.contains("tight"), "{told}");

    file.write(&tight)?;
    let message = fixture.wait_for_condition("web", "Accepted", "False", "NotAllowed").await?;
    ensure!(message.contains("what is registered stays"), "{message}");
    // What was allowed goes on: pods die and come, and edits are not followed.
    fixture.apply_web(json!({ "tags": ["after"] })).await?;
    fixture.namespace.force_delete("web-2").await?;
    let next = fixture.web_pod("web-3", "b").await?;
    let found = fixture.wait_for_pods(&[&pods[0], &pods[1], &next]).await?;
    ensure!(found.iter().all(|i| i.tags == ["before"]), "an edit was followed that is not allowed: {found:?}");

    // After a restart nothing is registered or changed any more, and who dies goes all the same.
    operator.kill()?;
    let operator = under(fixture, &file.0).await?;
    fixture.web_pod("web-4", "b").await?;
    fixture.namespace.force_delete("web-1").await?;
    let kept = [pods[0].ip.to_string(), next.ip.to_string()];
    let is_kept = |found: &[Instance]| {
        let mut found = addresses(found);
        let mut kept = [kept[0].as_str(), kept[1].as_str()];
        found.sort_unstable();
        kept.sort_unstable();
        found == kept
    };
    fixture.wait_for("those that live", is_kept).await?;
    fixture.wait_for_a_look(&operator).await?;
    let found = fixture.instances().await?;
    ensure!(is_kept(&found) && found.iter().all(|i| i.tags == ["before"]), "{found:?}");

    // A file that cannot be used changes nothing; /readyz and the metric tell of it.
    file.write("rules: [")?;
    wait_for_metric(&operator, "lictor_policy_stale", |stale| stale > 0.0).await?;
    let readyz = operator.get("/readyz").await?;
    ensure!(readyz.contains("last good policy") && readyz.starts_with("ok"), "{readyz}");
    fixture.wait_for_condition("web", "Accepted", "False", "NotAllowed").await?;
    file.write(&policy(fixture, json!({})))?;
    fixture
        .wait_for("all, as they are asked for", |found| found.len() == 3 && found.iter().all(|i| i.tags == ["after"]))
        .await?;
    wait_for_metric(&operator, "lictor_policy_stale", |stale| stale == 0.0).await?;
    fixture.wait_flawless("web").await
}

/// Gives the namespace of a scenario a label, or takes it off.
async fn label(fixture: &Fixture, tier: Option<&str>) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(fixture.namespace.client().clone());
    let patch = json!({ "metadata": { "labels": { "tier": tier } } });
    namespaces.patch(fixture.namespace.name(), &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

pub(crate) async fn labels_of_a_namespace_decide(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(1).await?;
    let gold = json!({ "name": "gold", "namespaceSelector": { "matchLabels": { "tier": "gold" } } });
    let others = json!({ "name": "others", "namespaces": ["*"], "names": ["none"] });
    let by_label = json!({ "rules": [gold, others] }).to_string();
    let file = File::new(fixture, &by_label)?;
    let operator = under(fixture, &file.0).await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_words("web", "Accepted", "rule \"others\"").await?;
    ensure!(fixture.instances().await?.is_empty(), "what is not allowed is registered");
    label(fixture, Some("gold")).await?;
    fixture.wait_for_pods(&[&pods[0]]).await?;
    fixture.wait_flawless("web").await?;
    label(fixture, None).await?;
    let message = fixture.wait_for_condition("web", "Accepted", "False", "NotAllowed").await?;
    ensure!(message.contains("rule \"others\""), "{message}");
    ensure!(fixture.instances().await?.len() == 1, "a changed label has removed what lives");

    // A file that asks for no labels, and again one that does.
    file.write(&json!({ "rules": [others] }).to_string())?;
    label(fixture, Some("gold")).await?;
    fixture.wait_for_a_look(&operator).await?;
    fixture.wait_for_condition("web", "Accepted", "False", "NotAllowed").await?;
    file.write(&by_label)?;
    fixture.wait_for_condition("web", "Accepted", "True", "Accepted").await?;

    // At a start nothing is decided before the labels are known.
    operator.kill()?;
    let other = fixture.web_pod("web-1", "b").await?;
    under(fixture, &file.0).await?;
    fixture.wait_for_pods(&[&pods[0], &other]).await?;
    fixture.wait_flawless("web").await?;
    ensure!(fixture.events("web", "NotListed").await?.is_empty(), "it was told of before the labels were known");
    Ok(())
}

pub(crate) async fn nobody_begins_to_use_a_name_that_others_have(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(1).await?;
    let file = File::new(fixture, &policy(fixture, json!({ "foreignNames": false })))?;
    let operator = under(fixture, &file.0).await?;
    let theirs = fixture.service_named("theirs");
    let node = format!("{}-machine", fixture.service);
    let machine = json!({ "Node": node, "Address": "192.0.2.30",
        "Service": { "ID": "machine", "Service": theirs, "Port": 80 } });
    fixture.consul().put("/v1/catalog/register", &machine).await?;
    fixture.wait_for_a_look(&operator).await?;
    fixture.apply_web(json!({})).await?;
    fixture.apply("second", &fixture.spec(json!({ "name": theirs.to_uppercase() }))).await?;
    fixture.wait_for_pods(&[&pods[0]]).await?;
    fixture.wait_flawless("web").await?;
    let message = fixture.wait_for_condition("second", "Accepted", "False", "NotAllowed").await?;
    ensure!(message.contains("rule \"ours\"") && message.contains("others"), "{message}");
    ensure!(fixture.consul().instances(&theirs).await?.len() == 1, "it has joined the name");
    let told = says(fixture, "policy check", &["--policy", arg(&file.0)?, arg(&file.0)?], 0)?;
    let second = told.lines().find(|line| line.contains("/second")).unwrap_or_default();
    ensure!(second.contains("refused  refused"), "{told}");

    // Whoever joins a name that a resource uses stops nothing: it follows its pods and edits, over a restart too.
    let beside = json!({ "Node": node, "Address": "192.0.2.30",
        "Service": { "ID": "beside", "Service": fixture.service, "Address": "192.0.2.30", "Port": 80 } });
    fixture.consul().put("/v1/catalog/register", &beside).await?;
    fixture.wait_for_a_look(&operator).await?;
    operator.kill()?;
    let operator = under(fixture, &file.0).await?;
    fixture.apply_web(json!({ "tags": ["after"] })).await?;
    let more = fixture.web_pod("web-7", "b").await?;
    let own = [pods[0].ip.to_string(), more.ip.to_string()];
    fixture
        .wait_for("both pods beside the machine", |found| {
            found.len() == 3 && own.iter().all(|ip| found.iter().any(|i| i.address == *ip && i.tags == ["after"]))
        })
        .await?;
    fixture.wait_flawless("web").await?;
    fixture.wait_for_condition("second", "Accepted", "False", "NotAllowed").await?;

    // Once the others are gone, the name is free.
    fixture.consul().put("/v1/catalog/deregister", &json!({ "Node": node, "ServiceID": "machine" })).await?;
    fixture.consul().wait_for(&theirs, "the pods", |found| found.len() == 2, SOON).await?;
    fixture.wait_flawless("second").await?;
    operator.terminate(SOON).await?;
    fixture.consul().put("/v1/catalog/deregister", &json!({ "Node": node })).await.map(drop)
}
