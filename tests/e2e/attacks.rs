//! What people try who may do something, but not that; and the page `docs/security.md`, which is made of it.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use lictor_testbed::wait;
use serde_json::{Value, json};

use crate::fixture::{Fixture, SOON, arg};
use crate::policies::{File, apply_later, policy};
use crate::scenarios::LINES;
use crate::table::check_page;

/// Somebody who tries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attacker {
    /// Whoever may write a `ConsulService` in one namespace.
    Author,
    /// Whoever may write an `EndpointSlice`, a Service or a Pod in one namespace.
    SliceWriter,
    /// Whoever has a Consul token with `service:write` on a name that is shared with Lictor.
    ConsulUser,
    /// Whoever reaches pods by the network.
    Network,
}

impl Attacker {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Author, "An author of resources"),
        (Self::SliceWriter, "A writer of EndpointSlices"),
        (Self::ConsulUser, "A token with `service:write` on a shared name"),
        (Self::Network, "Somebody on the pod network"),
    ];
}

/// One attempt, and the answer that it gets.
struct Attempt {
    by: Attacker,
    what: &'static str,
    answer: &'static str,
    how: How,
}

/// How an attempt is made in a test.
enum How {
    /// The API server refuses this spec in these words.
    Refused(&'static str, &'static str),
    /// Without a policy, Lictor refuses this spec for this reason, in these words.
    NotAccepted(&'static str, &'static str, &'static str),
    /// Under [`RULE`], Lictor refuses this spec in these words.
    OutsideOfPolicy(&'static str, &'static str),
    /// This scenario makes it.
    Scenario(&'static str),
    /// A test of this name in this file makes it.
    Test(&'static str, &'static str),
}

use Attacker::{Author, ConsulUser, Network, SliceWriter};
use How::{NotAccepted, OutsideOfPolicy, Refused, Scenario, Test};

const fn attempt(by: Attacker, what: &'static str, answer: &'static str, how: How) -> Attempt {
    Attempt { by, what, answer, how }
}

/// The rule of the attempts that only a policy refuses. A test of the policy takes each limit out of such a rule in turn,
/// and sees the attempt allowed.
const RULE: &str = "
tags: [\"v*\"]
metaKeys: [team]
checks: [tcp]
minCheckInterval: 10s
staticNetworks: []
retain: false
budget: {resources: 2, checks: 1, bytes: 600}
";

/// More than the budget of bytes.
const LARGE: &str = concat!(
    "meta: {team: \"",
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "\"}"
);

const NO_INSTANCE: &str = "`Accepted=False`, nothing is registered";
const BY_SCHEMA: &str = "the API server refuses it";

const ATTEMPTS: &[Attempt] = &[
    attempt(
        Author,
        "registers under the name of Consul's own servers",
        BY_SCHEMA,
        Refused("name: Consul", "belongs to Consul's own servers"),
    ),
    attempt(
        Author,
        "registers under a name that Consul takes for another one",
        BY_SCHEMA,
        Refused("name: \"pay_serv\\u0130ce\"", "printable ASCII"),
    ),
    attempt(
        Author,
        "registers under the name of a companion of Consul, such as Vault",
        NO_INSTANCE,
        NotAccepted("name: VAULT", "NotAllowed", "companions"),
    ),
    attempt(
        Author,
        "registers under the name of another namespace's resource",
        "`NameConflict`, nothing is registered",
        Scenario("names::a_name_of_two_namespaces"),
    ),
    attempt(
        Author,
        "takes a name by an edit from a resource that has it",
        "the resource that has the name keeps it",
        Scenario("names::the_older_one_has_the_name"),
    ),
    attempt(
        Author,
        "takes a name by an old status",
        "the resource that has the name keeps it",
        Scenario("handover::an_old_status_takes_no_name"),
    ),
    attempt(
        Author,
        "takes a name after a restore, with an older resource",
        "the resource with instances keeps the name",
        Scenario("handover::a_restore_takes_no_name"),
    ),
    attempt(
        Author,
        "registers a machine's metadata service",
        BY_SCHEMA,
        Refused("source: {static: [{address: 169.254.169.254, port: 80}]}", "others can reach"),
    ),
    attempt(
        Author,
        "registers a cloud's metadata service that is not link-local",
        BY_SCHEMA,
        Refused("source: {static: [{address: \"fd00:ec2::254\", port: 80}]}", "metadata service"),
    ),
    attempt(
        Author,
        "registers where a cloud tells a pod its credentials",
        BY_SCHEMA,
        Refused("source: {static: [{address: \"fd00:ec2::23\", port: 80}]}", "cloud's metadata service"),
    ),
    attempt(
        Author,
        "registers such an address behind a NAT64",
        BY_SCHEMA,
        Refused("source: {static: [{address: \"64:ff9b::a9fe:a9fe\", port: 80}]}", "behind a NAT64"),
    ),
    attempt(
        Author,
        "registers such an address behind a NAT64, in a form that the schema does not know",
        NO_INSTANCE,
        NotAccepted(
            "source: {static: [{address: \"64:ff9b:1:a9fe:a9:fe00::\", port: 80}]}",
            "NotAllowed",
            "others cannot reach it",
        ),
    ),
    attempt(
        Author,
        "registers loopback, to reach what listens beside Consul's agent",
        BY_SCHEMA,
        Refused("source: {static: [{address: 127.0.0.1, port: 8500}]}", "others can reach"),
    ),
    attempt(
        Author,
        "registers a multicast address, so that many machines answer",
        BY_SCHEMA,
        Refused("source: {static: [{address: 224.0.0.1, port: 80}]}", "others can reach"),
    ),
    attempt(
        Author,
        "registers an address of its choice",
        NO_INSTANCE,
        NotAccepted("source: {static: [{address: 203.0.113.7, port: 80}]}", "NotAllowed", "--allow-static"),
    ),
    attempt(
        Author,
        "gives an instance a tagged address of its choice",
        NO_INSTANCE,
        NotAccepted("taggedAddresses: {wan: {address: 203.0.113.7, port: 80}}", "NotAllowed", "--allow-static"),
    ),
    attempt(
        Author,
        "sends a check a token of Consul's, or another header of its API",
        BY_SCHEMA,
        Refused("checks: [{name: a, http: {headers: [{name: X-Consul-Token, value: a}]}}]", "X-Consul-"),
    ),
    attempt(
        Author,
        "sends a check to another host, by the path of the check",
        BY_SCHEMA,
        Refused("checks: [{name: a, http: {path: \"@db.example.com/\"}}]", "those of the instance"),
    ),
    attempt(
        Author,
        "splits the request of a check with a line break",
        BY_SCHEMA,
        Refused("checks: [{name: a, http: {path: \"/a\\r\\nHost: b\"}}]", "line breaks"),
    ),
    attempt(
        Author,
        "writes the mark by which Lictor knows its instances",
        BY_SCHEMA,
        Refused("meta: {lictor-owner: other/web}", "Lictor itself sets"),
    ),
    attempt(
        Author,
        "writes meta that Consul uses itself",
        BY_SCHEMA,
        Refused("meta: {consul-network-segment: a}", "belong to Consul"),
    ),
    attempt(
        Author,
        "asks for another partition",
        "`NotSupported`, nothing is registered",
        Scenario("refusals::what_is_not_supported"),
    ),
    attempt(
        Author,
        "picks more pods than are allowed",
        "`TooManyInstances`: as many as are allowed",
        Scenario("limits::too_many_instances"),
    ),
    attempt(
        Author,
        "writes resources whose status changes all the time",
        "finalizers and other resources go first",
        Scenario("reports::a_finalizer_waits_for_no_status"),
    ),
    attempt(
        Author,
        "makes Consul refuse a registration again and again",
        "`Refused` at its resource; others are not affected",
        Scenario("refusals::a_write_that_fails_each_time"),
    ),
    attempt(
        Author,
        "under a policy: another name",
        NO_INSTANCE,
        OutsideOfPolicy("name: payments", "the name \"payments\""),
    ),
    attempt(
        Author,
        "under a policy: the same name in capitals",
        NO_INSTANCE,
        OutsideOfPolicy("name: PAYMENTS", "the name \"PAYMENTS\""),
    ),
    attempt(
        Author,
        "under a policy: a tag that configures a proxy",
        NO_INSTANCE,
        OutsideOfPolicy("tags: [traefik.enable=true]", "the tag \"traefik.enable=true\""),
    ),
    attempt(
        Author,
        "under a policy: a tag that configures a proxy, by a label of its pods",
        NO_INSTANCE,
        OutsideOfPolicy("tags: [\"${pod.labels['tag']}\"]", "falls to a *"),
    ),
    attempt(
        Author,
        "under a policy: a meta key",
        NO_INSTANCE,
        OutsideOfPolicy("meta: {cost: \"1\"}", "the meta key \"cost\""),
    ),
    attempt(
        Author,
        "under a policy: an address of its choice",
        NO_INSTANCE,
        OutsideOfPolicy("source: {static: [{address: 203.0.113.7, port: 80}]}", "spec.source.static: 203.0.113.7"),
    ),
    attempt(
        Author,
        "under a policy: a kind of check",
        NO_INSTANCE,
        OutsideOfPolicy("checks: [{name: a, http: {}}]", "is of the kind http"),
    ),
    attempt(
        Author,
        "under a policy: a check that runs all the time",
        NO_INSTANCE,
        OutsideOfPolicy("checks: [{name: a, tcp: {}, interval: 1s, timeout: 1s}]", "runs every 1s"),
    ),
    attempt(
        Author,
        "under a policy: more checks",
        NO_INSTANCE,
        OutsideOfPolicy("checks: [{name: a, tcp: {}}, {name: b, tcp: {}}]", "has 2 checks"),
    ),
    attempt(
        Author,
        "under a policy: many resources, each with few checks and few bytes",
        NO_INSTANCE,
        Scenario("policies::a_namespace_has_so_many_checks"),
    ),
    attempt(
        Author,
        "under a policy: more checks by an edit or after a restart, at the cost of newer resources",
        "the edit is refused, and all resources keep what they had",
        Scenario("policies::a_namespace_has_so_many_checks"),
    ),
    attempt(
        Author,
        "under a policy: instances that stay when the resource is deleted",
        NO_INSTANCE,
        OutsideOfPolicy("deletionPolicy: Retain", "Retain"),
    ),
    attempt(
        Author,
        "under a policy: instances that stay, by an edit before the deletion",
        "the edit is refused, and the instances go with the resource",
        Scenario("policies::instances_do_not_stay_by_an_edit_that_is_refused"),
    ),
    attempt(Author, "under a policy: a large resource", NO_INSTANCE, OutsideOfPolicy(LARGE, "bytes")),
    attempt(
        Author,
        "under a policy: one resource above the budget",
        NO_INSTANCE,
        Scenario("policies::a_policy_decides_what_may_be_asked_for"),
    ),
    attempt(
        Author,
        "under a policy: shares a name with another namespace",
        "`NameConflict`: the resource that has the name keeps it",
        Scenario("policies::a_rule_narrows_names_instances_and_classes"),
    ),
    attempt(
        Author,
        "under a policy: more instances",
        "`TooManyInstances`: as many as are allowed",
        Scenario("policies::a_rule_narrows_names_instances_and_classes"),
    ),
    attempt(
        Author,
        "under a policy: chooses an operator of another class",
        NO_INSTANCE,
        Scenario("policies::a_rule_narrows_names_instances_and_classes"),
    ),
    attempt(
        Author,
        "under a policy: joins a name that machines or other tools have",
        "`Accepted=False`, nothing is registered",
        Scenario("policies::nobody_begins_to_use_a_name_that_others_have"),
    ),
    attempt(
        Author,
        "writes many large resources, to fill the memory",
        "`TooLarge`: the older ones are not affected",
        Scenario("attacks::a_namespace_has_so_many_bytes"),
    ),
    attempt(
        Author,
        "writes very many small resources, to fill the memory",
        "`TooLarge`: each counts as at least 1 KiB",
        Test("src/state/world/tests/policed.rs", "a_multitude_of_small_resources_counts_as_well"),
    ),
    attempt(
        Author,
        "uses tags that differ for each of many pods, to fill the memory",
        "`TooLarge`: what is registered stays",
        Scenario("attacks::texts_of_instances_have_a_budget"),
    ),
    attempt(
        Author,
        "uses more than 64 labels and annotations in its templates, each kept for every pod",
        "`TooLarge`, nothing is registered",
        Scenario("attacks::a_namespace_has_so_many_bytes"),
    ),
    attempt(
        Author,
        "uses another annotation again and again, so that Lictor lists pods all the time",
        "the watch of pods continues meanwhile",
        Scenario("watches::one_author_keeps_no_other_from_being_heard"),
    ),
    attempt(
        SliceWriter,
        "writes addresses of a cloud's metadata, multicast and broadcast into a slice",
        "left out, and a condition says so; the other endpoints are registered",
        Scenario("verified::addresses_of_nobody_and_of_clouds"),
    ),
    attempt(
        SliceWriter,
        "writes addresses outside of the pods' networks",
        "left out with `--endpoint-networks`",
        Scenario("verified::addresses_of_nobody_and_of_clouds"),
    ),
    attempt(
        SliceWriter,
        "writes slices with host names",
        "nothing is registered, and a condition says so",
        Scenario("families::host_names_are_no_addresses"),
    ),
    attempt(
        SliceWriter,
        "invents a Node for each endpoint, so that Lictor creates a Consul node for each",
        "registered on at most 64 shared nodes",
        Scenario("nodes::names_that_are_no_nodes"),
    ),
    attempt(
        SliceWriter,
        "gives an endpoint a pod whose uid has 20 KB",
        "registered, with an ID from the address",
        Scenario("refusals::a_target_that_names_no_pod"),
    ),
    attempt(
        SliceWriter,
        "gives pods thousands of labels and annotations, to fill the memory",
        "Lictor stores only what a resource uses",
        Test("src/cluster/decode/tests.rs", "of_a_pod_only_the_labels_and_annotations_that_are_wanted_are_kept"),
    ),
    attempt(
        SliceWriter,
        "fills a namespace without resources with slices and Services, to fill the memory",
        "Lictor does not store them",
        Test("src/state/world/tests/demand.rs", "what_is_in_namespaces_without_resources_is_not_held"),
    ),
    attempt(
        SliceWriter,
        "names addresses that no pod of the namespace has",
        "left out with `--verify-endpoints`",
        Scenario("verified::endpoints_need_a_pod"),
    ),
    attempt(
        SliceWriter,
        "removes all endpoints from the slices at once",
        "the ready instances stay for a while",
        Scenario("rewriting::all_slices_go_and_come_back"),
    ),
    attempt(
        ConsulUser,
        "registers an instance beside ours",
        "Lictor does not change it",
        Scenario("foreign::instances_of_others_are_untouched"),
    ),
    attempt(
        ConsulUser,
        "deletes an instance of ours",
        "Lictor registers it again",
        Scenario("drift::what_was_deleted_by_hand_is_put_back"),
    ),
    attempt(
        ConsulUser,
        "edits an instance of ours, or its check",
        "Lictor corrects it",
        Scenario("drift::what_was_edited_by_hand_is_put_right"),
    ),
    attempt(
        ConsulUser,
        "changes the mark of an instance of ours",
        "Lictor corrects the mark",
        Scenario("foreign::a_row_whose_mark_was_changed"),
    ),
    attempt(
        ConsulUser,
        "takes one of our IDs under another cluster's mark",
        "Lictor does not change that instance; `IdTaken` says who holds the ID",
        Scenario("foreign::a_cluster_of_our_name_on_the_same_node"),
    ),
    attempt(
        ConsulUser,
        "registers on a node of ours, which removes the mark of the node",
        "Lictor writes the mark again, and does not change what is theirs",
        Scenario("foreign::a_registration_that_empties_our_node"),
    ),
    attempt(
        ConsulUser,
        "registers an instance with our whole mark",
        "Lictor removes it as an orphan",
        Scenario("drift::an_orphan_goes"),
    ),
    attempt(
        ConsulUser,
        "registers many such instances, so that Lictor removes many",
        "Lictor first confirms the removals with a fresh list from Kubernetes",
        Scenario("watches::a_kind_that_cannot_be_listed_leaves_the_watches_alone"),
    ),
    attempt(
        ConsulUser,
        "writes another cluster's mark to the marker node",
        "Lictor writes nothing, and says so",
        Scenario("foreign::a_cluster_of_our_name_in_the_catalog"),
    ),
    attempt(
        ConsulUser,
        "runs an agent under the name of a node of ours",
        "the instances move to shared nodes",
        Scenario("nodes::an_agent_with_our_nodes_name"),
    ),
    attempt(
        Network,
        "opens connections to the admin port and sends no request, or headers without an end",
        "Lictor closes the connection",
        Test("src/admin/serve.rs", "one_request_is_answered_and_headers_without_end_are_not_waited_for"),
    ),
    attempt(
        Network,
        "opens more connections to the admin port than the limit",
        "Lictor serves 256 at once; the others wait until one is closed",
        Test("src/admin/serve.rs", "connections_beyond_the_limit_wait_for_their_turn"),
    ),
    attempt(
        Network,
        "answers in place of Consul, without an end",
        "Lictor reads the answer up to a limit",
        Test("src/consul/transport.rs", "an_answer_is_read_up_to_a_limit"),
    ),
    attempt(
        Network,
        "answers many requests at once in this way",
        "Lictor reads at most 128 MiB of all answers together",
        Test("src/consul/transport.rs", "answers_have_a_limit_together"),
    ),
    attempt(
        Network,
        "reads the token on its way to Consul",
        "a warning at the start and in `/readyz`, if the token goes to another machine over plain HTTP or without verification",
        Test("src/consul/transport/settings.rs", "what_others_can_read_on_the_way_is_said"),
    ),
    attempt(
        ConsulUser,
        "starts a cluster whose name begins with the name of another one, to get its nodes",
        "Lictor refuses a new cluster with such a name",
        Test("tests/consul_registries.rs", "a_cluster_whose_nodes_could_be_those_of_another_does_not_begin"),
    ),
];

/// A policy of one rule, [`RULE`], which allows one name.
fn rule(fixture: &Fixture, names: [&str; 2]) -> Result<String> {
    let mut fields: Value = serde_saphyr::from_str(RULE).context("the rule")?;
    fields["names"] = json!(names);
    Ok(policy(fixture, fields))
}

/// The spec of an attempt, over the Service `web`.
fn spec(fixture: &Fixture, name: &str, yaml: &str) -> Result<Value> {
    let more: Value = serde_saphyr::from_str(yaml).with_context(|| yaml.to_owned())?;
    let mut spec = fixture.spec(json!({ "name": name }));
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    Ok(spec)
}

pub(crate) async fn attempts_of_an_author(fixture: &Fixture) -> Result<()> {
    fixture.web(1).await?;
    let tried = fixture.service_named("tried");
    // First without a policy, then under one.
    for is_under_policy in [false, true] {
        let file = File::new(fixture, &rule(fixture, [&fixture.service, &tried])?)?;
        let launch = fixture.operator().with_checks();
        let launch = if is_under_policy { launch.flag("--policy", arg(file.path())?) } else { launch };
        let operator = launch.ready().await?;
        fixture.apply_web(json!({})).await?;
        let before = fixture.wait_for("the one that is allowed", |found| found.len() == 1).await?;
        fixture.wait_flawless("web").await?;
        for Attempt { what, how, .. } in ATTEMPTS {
            match how {
                Refused(yaml, words) if !is_under_policy => {
                    let refused = fixture.apply("tried", &spec(fixture, &tried, yaml)?).await;
                    let Err(refusal) = refused else { anyhow::bail!("{what}: the API server takes {yaml}") };
                    ensure!(format!("{refusal:#}").contains(words), "{what}: {refusal:#}");
                }
                NotAccepted(yaml, reason, words) if !is_under_policy => {
                    try_one(fixture, &tried, what, yaml, reason, words).await?;
                }
                OutsideOfPolicy(yaml, words) if is_under_policy => {
                    try_one(fixture, &tried, what, yaml, "NotAllowed", words).await?;
                }
                _ => {}
            }
        }
        // All of it went by without a trace.
        let after = fixture.instances().await?;
        ensure!(after == before, "what others have has changed: {before:?}, {after:?}");
        for name in [tried.as_str(), "vault", "VAULT", "payments", "PAYMENTS"] {
            let found = fixture.consul().instances(name).await?;
            ensure!(found.is_empty(), "an attempt was registered: {found:?}");
        }
        operator.kill()?;
    }
    Ok(())
}

/// Makes the resource `tried`, and waits for the refusal.
async fn try_one(fixture: &Fixture, name: &str, what: &str, yaml: &str, reason: &str, words: &str) -> Result<()> {
    fixture.apply("tried", &spec(fixture, name, yaml)?).await.context(what.to_owned())?;
    fixture.wait_for_words("tried", "Accepted", words).await.with_context(|| what.to_owned())?;
    fixture.wait_for_condition("tried", "Accepted", "False", reason).await.with_context(|| what.to_owned())?;
    fixture.delete("tried").await?;
    fixture.wait_gone("tried").await
}

pub(crate) async fn a_namespace_has_so_many_bytes(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(1).await?;
    fixture.operator().flag("--max-namespace-bytes", "65536").ready().await?;
    let second = fixture.service_named("second");
    let large = |name: &str| {
        let tags: Vec<String> = (0..60).map(|number| format!("{number:0>640}")).collect();
        fixture.spec(json!({ "name": name, "tags": tags }))
    };
    fixture.apply("web", &large(&fixture.service)).await?;
    fixture.wait_for_pods(&[&pods[0]]).await?;
    fixture.wait_flawless("web").await?;
    apply_later(fixture, "later", &fixture.spec(json!({ "name": second }))).await?;
    fixture.wait_flawless("later").await?;
    fixture.apply("later", &large(&second)).await?;
    let message = fixture.wait_for_condition("later", "Accepted", "False", "TooLarge").await?;
    ensure!(message.contains("more than 65536 bytes together"), "{message}");
    fixture.wait_flawless("web").await?;
    ensure!(fixture.consul().instances(&second).await?.len() == 1, "what was registered stays");
    let tags: Vec<String> = (0..13)
        .map(|tag| (0..5).map(|n| format!("${{pod.labels['k{tag}-{n}']}}")).collect::<Vec<_>>().concat())
        .collect();
    fixture.apply("many", &fixture.spec(json!({ "name": second, "tags": tags }))).await?;
    fixture.wait_for_condition("many", "Accepted", "False", "TooLarge").await?;
    // There is room once the older one is gone.
    fixture.delete("web").await?;
    fixture.wait_gone("web").await?;
    fixture.wait_for_condition("later", "Accepted", "True", "Accepted").await?;
    wait::until("all tags of the one that has room now", SOON, || async {
        let found = fixture.consul().instances(&second).await?;
        Ok(found.iter().any(|found| found.tags.len() == 60).then_some(()))
    })
    .await
}

pub(crate) async fn texts_of_instances_have_a_budget(fixture: &Fixture) -> Result<()> {
    let pods = fixture.web(12).await?;
    fixture.operator().flag("--max-namespace-bytes", "65536").ready().await?;
    let with = |tags: usize| {
        let tags: Vec<String> = (0..tags).map(|number| format!("{number:0>940}-${{pod.name}}")).collect();
        fixture.spec(json!({ "tags": tags }))
    };
    fixture.apply("web", &with(1)).await?;
    fixture.wait_for_pods(&pods.iter().collect::<Vec<_>>()).await?;
    fixture.wait_flawless("web").await?;
    let before = fixture.instances().await?;
    fixture.apply("web", &with(60)).await?;
    let message = fixture.wait_for_condition("web", "Resolved", "False", "TooLarge").await?;
    ensure!(message.contains("524288 bytes together") && message.contains("--max-namespace-bytes"), "{message}");
    let found = fixture.instances().await?;
    ensure!(found == before, "what is registered has changed: {found:?}");
    // Who dies goes all the same. There is no room for the texts of the others either.
    fixture.namespace.force_delete("web-11").await?;
    fixture.wait_for("the others", |found| found.len() == 11 && found.iter().all(|i| i.tags.len() == 1)).await?;
    fixture.apply("web", &with(30)).await?;
    fixture.wait_for("shorter ones", |found| found.iter().all(|i| i.tags.len() == 30)).await?;
    fixture.wait_flawless("web").await
}

/// A field of a policy's rule, and what shows that it is looked at.
struct Limit {
    field: &'static str,
    what: &'static str,
    /// The test that fails if the field is not looked at: it takes the field out of a rule, and sees what only the field refused
    /// or narrowed.
    test: &'static str,
    scenario: &'static str,
}

const fn limit(field: &'static str, what: &'static str, test: &'static str, scenario: &'static str) -> Limit {
    Limit { field, what, test, scenario }
}

const REFUSES: &str = "each_limit_refuses_what_nothing_else_does";
const NARROWS: &str = "each_limit_narrows_what_nothing_else_does";
const BY_AUTHOR: &str = "attacks::attempts_of_an_author";

/// The tests of the limits are in this file.
const OF_LIMITS: &str = "src/model/policy/tests.rs";

const LIMITS: &[Limit] = &[
    limit("namespaces", "another namespace", REFUSES, "policies::a_policy_decides_what_may_be_asked_for"),
    limit(
        "namespaceSelector",
        "a namespace of other labels",
        "labels_of_the_namespace_decide_and_nothing_is_guessed_without_them",
        "policies::labels_of_a_namespace_decide",
    ),
    limit("names", "another name, also in other case; a name of a companion of Consul", REFUSES, BY_AUTHOR),
    limit("tags", "another tag, also by a value or of one static address", REFUSES, BY_AUTHOR),
    limit("metaKeys", "another meta key, also of one static address", REFUSES, BY_AUTHOR),
    limit("checks", "another kind of check", REFUSES, BY_AUTHOR),
    limit("minCheckInterval", "a check that runs more often", REFUSES, BY_AUTHOR),
    limit("staticNetworks", "a static or tagged address outside", REFUSES, BY_AUTHOR),
    limit("retain", "`deletionPolicy: Retain`", REFUSES, BY_AUTHOR),
    limit(
        "classes",
        "a resource of another class",
        "a_rule_lets_operators_of_its_classes_act",
        "policies::a_rule_narrows_names_instances_and_classes",
    ),
    limit(
        "sharedNames",
        "the name of another namespace's resource",
        NARROWS,
        "policies::a_rule_narrows_names_instances_and_classes",
    ),
    limit(
        "foreignNames",
        "a name that others have in Consul",
        "a_name_that_others_have_is_refused_to_who_begins_to_use_it",
        "policies::nobody_begins_to_use_a_name_that_others_have",
    ),
    limit("budget.resources", "one resource more", REFUSES, "policies::a_policy_decides_what_may_be_asked_for"),
    limit("budget.instances", "one instance more", NARROWS, "policies::a_rule_narrows_names_instances_and_classes"),
    limit("budget.checks", "one check more", REFUSES, BY_AUTHOR),
    limit("budget.bytes", "one byte more", REFUSES, BY_AUTHOR),
    limit(
        "budget.namespaceInstances",
        "one instance more in the namespace",
        NARROWS,
        "policies::a_namespace_has_so_many_instances",
    ),
    limit(
        "budget.namespaceChecks",
        "one check more in the namespace",
        REFUSES,
        "policies::a_namespace_has_so_many_checks",
    ),
    limit("budget.namespaceBytes", "more bytes in the namespace", REFUSES, "policies::a_namespace_has_so_many_checks"),
];

const HEAD: &str = include_str!("attacks/security.md");

/// The page: its text, and the table of all attempts.
fn document() -> String {
    let mut text = format!(
        "<!-- generated from tests/e2e/attacks/security.md and tests/e2e/attacks.rs; `LICTOR_UPDATE=1 cargo test --test \
         e2e attacks::the_page_is_current` writes it anew -->\n{HEAD}"
    );
    for (attacker, title) in Attacker::ALL {
        let _ = write!(text, "\n### {title}\n\n| attempt | answer | tested by |\n| --- | --- | --- |\n");
        for Attempt { what, answer, how, .. } in ATTEMPTS.iter().filter(|attempt| attempt.by == attacker) {
            let tested_by = match how {
                Refused(..) | NotAccepted(..) | OutsideOfPolicy(..) => "`attacks::attempts_of_an_author`".to_owned(),
                Scenario(name) => format!("`{name}`"),
                Test(file, name) => format!("`{name}` in `{file}`"),
            };
            let _ = writeln!(text, "| {what} | {answer} | {tested_by} |");
        }
    }
    let _ = writeln!(text, "\n{} attempts.", ATTEMPTS.len());
    let _ = write!(
        text,
        "\n## What each field of a rule refuses\n\nFor each field of a [policy](policy.md)'s rule, a test in `{OF_LIMITS}` \
         removes the field from a rule that\nallows just one resource. What only this field refused or limited is then \
         allowed. So the test fails if Lictor ignores the\nfield. A scenario shows the field on real servers.\n\n| \
         field | refuses | test of the field | on real servers |\n| --- | --- | --- | --- |\n"
    );
    for Limit { field, what, test, scenario } in LIMITS {
        let _ = writeln!(text, "| `{field}` | {what} | `{test}` | `{scenario}` |");
    }
    text
}

#[test]
fn the_page_is_current() {
    check_page("docs/security.md", &document());
}

/// Each test that the page names is there.
#[test]
fn every_test_of_the_page_is_there() -> Result<()> {
    for Attempt { what, how, .. } in ATTEMPTS {
        match how {
            Refused(..) | NotAccepted(..) | OutsideOfPolicy(..) => {}
            Scenario(wanted) => {
                let is_there = LINES.iter().any(|line| format!("{}::{}", line.room, line.name) == *wanted);
                ensure!(is_there, "{what}: there is no scenario {wanted}");
            }
            Test(file, name) => {
                let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
                let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                ensure!(text.contains(&format!("fn {name}(")), "{what}: there is no {name} in {file}");
            }
        }
    }
    ensure!(ATTEMPTS.len() >= 40, "{} attempts", ATTEMPTS.len());
    Ok(())
}

/// Each field that a rule may have is in the table, with a test that is there.
#[test]
fn each_field_of_a_rule_has_its_test() -> Result<()> {
    let read = |file: &str| {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    let (page, tests) = (read("docs/policy.md")?, read(OF_LIMITS)?);
    let (_, table) = page.split_once("| field | what it allows |").context("docs/policy.md has no table of fields")?;
    let rows = table.lines().skip(2).map_while(|line| line.strip_prefix("| `")?.split('`').next());
    let told: Vec<&str> = rows.filter(|field| *field != "name").collect();
    let mut known: Vec<&str> = LIMITS.iter().map(|limit| limit.field).collect();
    known.sort_unstable_by_key(|field| told.iter().position(|told| told == field));
    ensure!(told == known, "docs/policy.md has {told:?}, and the table {known:?}");
    for Limit { field, test, scenario, .. } in LIMITS {
        ensure!(tests.contains(&format!("fn {test}(")), "{field}: there is no {test} in {OF_LIMITS}");
        let is_there = LINES.iter().any(|line| format!("{}::{}", line.room, line.name) == **scenario);
        ensure!(is_there, "{field}: there is no scenario {scenario}");
    }
    Ok(())
}
