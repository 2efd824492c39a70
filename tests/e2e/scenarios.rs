//! The one list of scenarios: the tests of both modes and the table are made from it.

use crate::table::{Cell, Cells, Line, check_page, document};

/// Makes the tests and the table's lines from one list. Where a mode has a reason in place of `yes`, its test is
/// ignored with that reason.
macro_rules! scenarios {
    (
        in both modes: $($(#[doc = $says:literal])+ $room:ident::$name:ident(agent: $agent:tt, catalog: $catalog:tt);)+
        once: $($(#[doc = $once_says:literal])+ $once_room:ident::$once_name:ident;)+
    ) => {
        mod agent { $(case!(Agent $agent $room $name);)+ }
        mod catalog { $(case!(Catalog $catalog $room $name);)+ }
        mod once {
            $(#[test] fn $once_name() { crate::$once_room::$once_name(); })+
        }

        /// All scenarios, as they stand in the table.
        pub(crate) const LINES: &[Line] = &[
            $(Line {
                name: stringify!($name),
                room: stringify!($room),
                says: &[$($says),+],
                cells: Cells::ByMode { agent: cell!($agent), catalog: cell!($catalog) },
            },)+
            $(Line {
                name: stringify!($once_name),
                room: stringify!($once_room),
                says: &[$($once_says),+],
                cells: Cells::Once,
            },)+
        ];
    };
}

macro_rules! case {
    ($mode:ident yes $room:ident $name:ident) => {
        #[test]
        fn $name() {
            fn scenario(fixture: &crate::fixture::Fixture) -> futures::future::LocalBoxFuture<'_, anyhow::Result<()>> {
                Box::pin(crate::$room::$name(fixture))
            }
            crate::fixture::run(stringify!($name), crate::fixture::Mode::$mode, scenario);
        }
    };
    ($mode:ident $reason:literal $room:ident $name:ident) => {
        #[test]
        #[ignore = $reason]
        fn $name() {
            panic!("not a scenario of this mode: {}", $reason);
        }
    };
}

macro_rules! cell {
    (yes) => {
        Cell::Runs
    };
    ($reason:literal) => {
        Cell::MissingValue($reason)
    };
}

scenarios! {
    in both modes:
    /// Ready pods behind a Service appear, with address, port, node and every mark of ours; the status says so.
    appearing::pods_appear(agent: yes, catalog: yes);
    /// A pod that is not ready is critical, and passing again once it is ready; the counts follow.
    appearing::readiness_goes_both_ways(agent: yes, catalog: yes);
    /// `readiness: Deregister` takes what is not ready out; `readiness: Ignore` makes no check at all.
    appearing::readiness_by_policy(agent: yes, catalog: yes);
    /// Three slices of one Service are one set of instances; removing one of them removes just its endpoints.
    appearing::slices_are_united(agent: yes, catalog: yes);
    /// A Service without endpoints is a truth, not an error; what comes back appears again.
    appearing::zero_and_back(agent: yes, catalog: yes);
    /// A pod that has begun to terminate leaves at once, long before it is gone.
    appearing::a_terminating_pod_leaves_at_once(agent: yes, catalog: yes);
    /// A pod that comes back under its name, on another node with another address, is a new instance in the old one's place.
    appearing::same_pod_name_new_address(agent: yes, catalog: yes);
    /// The last pod of a Service is drained: it passes while it serves, until another one passes, asked every 10 ms.
    appearing::the_last_one_serves_to_its_end(agent: yes, catalog: yes);
    /// With `publishNotReadyAddresses` pods pass before they are ready, as the cluster's DNS has them.
    appearing::peers_find_each_other_before_they_are_ready(agent: yes, catalog: yes);
    /// Slices by hand: the ports of one address in two slices, a node that does not exist, two numbers of one address,
    /// one pod behind two Services.
    appearing::slices_by_hand(agent: yes, catalog: yes);

    /// Pods that a selector matches appear with no Service anywhere; labels decide, also when they or the selector are edited.
    selected::pods_are_picked(agent: yes, catalog: yes);
    /// A selector and a tag ask for labels that nobody has asked for before: what they pick is never missing meanwhile.
    selected::another_label_is_asked_for(agent: yes, catalog: yes);
    /// Such pods are critical while not ready; those that terminate or have ended leave at once, though they keep their address.
    selected::pods_live_and_die(agent: yes, catalog: yes);
    /// Pods in their node's network are each an instance; one without an address is none yet; one without the port is told of.
    selected::pods_without_what_it_takes(agent: yes, catalog: yes);
    /// A rollout of pods gets containers with ports of their own, from a mesh, as a native sidecar and from nobody known: the
    /// app's port goes on, and where it should be named `PortNotNamed` says so.
    selected::containers_are_added_by_somebody_else(agent: yes, catalog: yes);

    /// Static addresses are registered as given, each with tags and meta of its own, and edits of each are followed.
    elsewhere::static_addresses(agent: yes, catalog: yes);
    /// A static address outside of what the administrator allows: what to ask is said, nothing is registered, what was stays.
    elsewhere::addresses_that_are_not_allowed(agent: yes, catalog: yes);

    /// A name with dots is registered and ready; Consul's DNS does not answer it, and a condition and a warning say so once.
    names::a_name_that_dns_does_not_answer(agent: yes, catalog: yes);

    /// What authors try, without a policy and under one: each attempt is refused in words, nothing is registered, and nobody else's
    /// instances change. `docs/security.md` has the list.
    attacks::attempts_of_an_author(agent: yes, catalog: yes);
    /// Large resources of one namespace, and one that names many labels: what is too large is refused, the older ones go on, and once there
    /// is room the next one is registered.
    attacks::a_namespace_has_so_many_bytes(agent: yes, catalog: yes);
    /// Tags with a pod's name in them, for each of twelve pods, take more memory than a namespace may: what is registered stays as it is, and
    /// shorter ones are registered.
    attacks::texts_of_instances_have_a_budget(agent: yes, catalog: yes);
    /// A policy decides about names, tags, meta keys, addresses, `Retain` and the number of resources; each refusal names its rule.
    policies::a_policy_decides_what_may_be_asked_for(agent: yes, catalog: yes);
    /// The labels of a namespace decide which rule is for it: from the start, from a changed file on, and when they change; what is
    /// registered stays.
    policies::labels_of_a_namespace_decide(agent: yes, catalog: yes);
    /// A tightened policy removes nothing that lives, also over a restart, and what dies goes; a file that cannot be used changes
    /// nothing, and is told of; a loosened one is followed.
    policies::a_tightened_policy_removes_nothing_that_lives(agent: yes, catalog: yes);
    /// The checks and the bytes of a namespace have a budget: a new resource above it is refused and nothing is registered; there is
    /// room once an older one has fewer checks. The older one does not grow over the newer one, over a restart too. A tighter budget
    /// removes nothing, and `lictor policy check` says it before.
    policies::a_namespace_has_so_many_checks(agent: yes, catalog: yes);
    /// The instances of a namespace have a budget over all its resources: those that are registered stay, over a restart and under a
    /// tighter budget too, new ones are left out, and are registered when there is room.
    policies::a_namespace_has_so_many_instances(agent: yes, catalog: yes);
    /// `lictor plan` and `lictor policy check` say of a budget for the instances of a namespace what Lictor then does, with the words of
    /// the status: before its start, under a budget that is to come, and of a refused resource of which instances are registered.
    policies::budgets_of_a_namespace_are_foreseen(agent: yes, catalog: yes);
    /// The same for a budget for the checks of a namespace, where only Consul says what a refused resource has.
    policies::budgets_of_checks_are_foreseen_after_a_restart(agent: yes, catalog: yes);
    /// `retain: false`: who edits a resource to `Retain` before it is deleted has no instances stay, while Lictor watches, and when it
    /// sees the edit and the deletion only after a restart. Instances whose `Retain` was allowed stay, also under a tightened policy.
    policies::instances_do_not_stay_by_an_edit_that_is_refused(agent: yes, catalog: yes);
    /// Instances whose `Retain` was allowed stay also if Lictor restarts between the tightened policy and the deletion. An edit to
    /// `Deregister` ends that for good.
    policies::what_was_allowed_to_stay_stays_after_a_restart(agent: yes, catalog: yes);
    /// A rule comes to forbid that namespaces share a name, to allow fewer instances and to let another class act: `lictor policy check`
    /// says each before, the newcomer to the name has it no more, and what is registered stays.
    policies::a_rule_narrows_names_instances_and_classes(agent: yes, catalog: yes);
    /// `foreignNames: false`: a resource does not begin to use a name that machines have. One that uses its name already goes on when a
    /// machine joins it, over a restart too.
    policies::nobody_begins_to_use_a_name_that_others_have(agent: yes, catalog: yes);

    /// `--verify-endpoints`: an endpoint is an instance as long as its namespace has a pod at its address, and is told of otherwise.
    verified::endpoints_need_a_pod(agent: yes, catalog: yes);
    /// A slice with addresses of nobody and of clouds: those are not registered and told of, the others are. `--endpoint-networks`
    /// narrows it further; what is registered outside of the networks stays.
    verified::addresses_of_nobody_and_of_clouds(agent: yes, catalog: yes);
    /// A proxy in the environment does not stop what is on the same machine; one of the kubeconfig is used, and named when it fails.
    /// The metrics are served at an address of their own.
    proxies::a_proxy_on_the_way_to_kubernetes(agent: yes, catalog: yes);
    /// Pods, Services, slices and nodes are listed and watched only while a resource needs them, as a proxy before the apiserver sees.
    watches::only_what_is_needed_is_watched(agent: yes, catalog: yes);
    /// A removal waits for a fresh list, and `EndpointSlice`s cannot be listed: it waits on, all watches stay, and what they tell is
    /// followed. Once they can be listed, the removal is made.
    watches::a_kind_that_cannot_be_listed_leaves_the_watches_alone(agent: yes, catalog: yes);
    /// One author asks for another annotation with each edit, faster than a list of pods takes: another author's deleted pods leave
    /// Consul as if nobody did, and the last edit has its value.
    watches::one_author_keeps_no_other_from_being_heard(agent: yes, catalog: yes);

    /// A pod of two families is one instance, at its Service's primary one; `dualStack` adds the other; DNS answers A and AAAA so.
    families::both_families(agent: yes, catalog: yes);
    /// A Service of IPv6 alone: registered, found by AAAA, and gone again.
    families::ipv6_alone(agent: yes, catalog: yes);
    /// Slices of IPv6 alone behind a headless Service without a selector, which is of both families: registered; beside IPv4
    /// those that name no pod are passed over, and said.
    families::the_other_family_alone(agent: yes, catalog: yes);
    /// Slices of host names are answered with a condition, and passed over beside addresses, which is said.
    families::host_names_are_no_addresses(agent: yes, catalog: yes);

    /// A port is picked by name, by the Service's own number, or by being alone.
    ports::a_port_is_picked(agent: yes, catalog: yes);
    /// A named port with another number in each slice is registered with each one's own.
    ports::numbers_differ_behind_one_name(agent: yes, catalog: yes);
    /// A Service of sixty slices, which Kubernetes' controller rewrites at its default rate: while ports are added, renamed and
    /// changed, pods scaled and rolled out, and a Node is deleted and back, no living instance is missing at any moment.
    rewriting::slices_are_rewritten_one_by_one(agent: yes, catalog: yes);
    /// All slices of a Service are deleted at once, the Service is deleted and made anew, the controller starts anew in the middle of
    /// its writes, a Node is deleted and registered again at once: no living instance is missing at any moment.
    rewriting::all_slices_go_and_come_back(agent: yes, catalog: yes);
    /// A Service's port is renamed and its slices follow one by one: no instance is missing at any moment.
    ports::a_renamed_port_is_followed_slice_by_slice(agent: yes, catalog: yes);
    /// Somebody adds a port to a Service whose resource names none: the one that is registered goes on by its name, through a
    /// rollout, another number, a restart and no pods at all, and `PortNotNamed` says so.
    ports::a_port_is_added_by_somebody_else(agent: yes, catalog: yes);
    /// A port that does not match: condition and Event, what was registered stays, others are not affected.
    ports::a_port_that_does_not_match(agent: yes, catalog: yes);
    /// One number of two protocols is TCP's; where that does not decide, the names to choose from are said.
    ports::one_number_of_two_protocols(agent: yes, catalog: yes);

    /// Tags, meta, weights and tagged addresses are read back from Consul as they were written.
    content::all_of_it_is_read_back(agent: yes, catalog: yes);
    /// An edit of the spec becomes an edit in Consul, and what is taken out of the spec goes.
    content::an_edit_is_followed(agent: yes, catalog: yes);
    /// Every edit of a resource, and back: whoever asks every 10 ms finds all of the old instances passing, or all of the new.
    edits::every_edit(agent: yes, catalog: yes);
    /// The same for every edit that was made while the operator was down.
    edits::every_edit_while_down(agent: yes, catalog: yes);
    /// Endpoints that change their node change it without a gap, also while the operator is down.
    edits::an_endpoint_changes_its_node(agent: yes, catalog: yes);

    /// Tags and meta hold values of pod and node, in both sources, and follow when these are edited.
    texts::values_of_pods_and_nodes(agent: yes, catalog: yes);
    /// A value that is missing, too long or not fit for Consul is empty, and said; the resource is ready all the same.
    texts::values_that_are_not_there(agent: yes, catalog: yes);
    /// A text that cannot be read is not accepted; what was registered stays, and others are not affected.
    texts::texts_that_cannot_be_read(agent: yes, catalog: yes);

    /// With `enableTagOverride` the tags that Consul's users set are kept.
    content::tags_of_consuls_users_are_kept(agent: yes, catalog: yes);

    /// A check that Consul or consul-esm runs beside readiness passes while somebody answers, and goes when it leaves the spec.
    content::checks_that_consul_runs(agent: yes, catalog: yes);
    /// Each field of `spec` is read back from Consul after the resource was made and after each edit, and nothing is
    /// left of it: `docs/fields.md`.
    fields::each_field_is_read_back(agent: yes, catalog: yes);

    /// A name in Consul is one namespace's: the other is told whose, keeps what it had, and takes over when the first one goes.
    names::a_name_of_two_namespaces(agent: yes, catalog: yes);
    /// Of two resources that want a name at the start the older has it; none takes a name by an edit from one that has it.
    names::the_older_one_has_the_name(agent: yes, catalog: yes);
    /// A holder is deleted, renamed or given to another class, also while the operator is down: the next one's instances are there before its own go.
    handover::a_name_changes_hands_without_a_gap(agent: yes, catalog: yes);
    /// The operator is killed when the next one's instances are there and the holder's have not gone: they go after the restart.
    handover::a_hand_over_survives_a_crash(agent: yes, catalog: yes);
    /// A newcomer that is paused, or whose Service does not exist, reserves no name, and a holder that goes does not wait for it.
    handover::what_cannot_come_is_not_waited_for(agent: yes, catalog: yes);
    /// A resource comes back from another class, the older one and with an old status: the name stays whose it is, over two restarts.
    handover::an_old_status_takes_no_name(agent: yes, catalog: yes);
    /// All resources are made anew without status and in one second: who has instances under the name keeps it.
    handover::a_restore_takes_no_name(agent: yes, catalog: yes);
    /// One whose new name is another's goes on under its old one as its endpoints change, over restarts, down to none and back.
    handover::a_loser_follows_its_endpoints(agent: yes, catalog: yes);
    /// `--allow-shared-names` lets two namespaces share a name.
    names::names_that_are_shared(agent: yes, catalog: yes);
    /// Several resources of one namespace share a name, and one of them goes without the others.
    names::blue_and_green(agent: yes, catalog: yes);

    /// The annotation freezes edits, pods, drift and deletion, over a restart too, until it is gone.
    pausing::a_paused_resource_is_frozen(agent: yes, catalog: yes);
    /// A source of more instances than `--max-instances`: said with how many are left out, what was registered stays, others are not affected.
    limits::too_many_instances(agent: yes, catalog: yes);
    /// Most pods stop being ready at once while their endpoints stay: said in the resource, `/readyz` and a metric, and with
    /// `--hold-mass-unready` the rest is kept passing until Kubernetes was asked again.
    unready::most_stop_being_ready_at_once(agent: yes, catalog: yes);
    /// A rolling restart whose surge exceeds `--max-instances`: the old instances pass until they leave, and new ones take their places.
    limits::a_rollout_at_the_limit(agent: yes, catalog: yes);

    /// A deleted resource is gone from Consul before it is gone from Kubernetes.
    ending::a_deletion(agent: yes, catalog: yes);
    /// What is deleted while the operator is down is gone when it is back.
    ending::a_deletion_while_down(agent: yes, catalog: yes);
    /// `deletionPolicy: Retain` leaves the instances, without our mark; a new resource of the name takes them up again.
    ending::retain_and_creation_after_it(agent: yes, catalog: yes);
    /// A hundred resources go with their namespace, which is not stuck.
    ending::a_hundred_resources_with_their_namespace(agent: yes, catalog: yes);

    /// A row with our full ownership whose resource does not exist goes, planted while we ran or while we were down.
    drift::an_orphan_goes(agent: yes, catalog: yes);
    /// What a crash left behind, its resource removed by force, goes at the next start.
    drift::the_orphan_of_a_crash_goes(agent: yes, catalog: yes);
    /// An instance that somebody deleted is put back.
    drift::what_was_deleted_by_hand_is_put_back(agent: yes, catalog: yes);
    /// An instance or its check that somebody edited is put right.
    drift::what_was_edited_by_hand_is_put_right(agent: yes, catalog: yes);
    /// Consul, or what is in front of it, fails each read of one node: the other nodes are kept up to date meanwhile, and that one is once it can be read.
    outages::a_node_that_cannot_be_read(agent: "an agent's instances are all on its own node", catalog: yes);
    /// A Consul that restarts empty is filled again.
    drift::consul_restarted_empty(agent: yes, catalog: yes);

    /// Instances of our service's name that are not ours stay as they are, to the index, from beginning to end.
    foreign::instances_of_others_are_untouched(agent: yes, catalog: yes);
    /// A row under one of our IDs with another cluster's mark is untouched, and the resource says who holds it.
    foreign::a_cluster_of_our_name_on_the_same_node(agent: yes, catalog: "on a node that carries our mark nobody else makes rows with our IDs: `foreign::a_row_whose_mark_was_changed`");
    /// The mark on a row of ours is changed to another cluster's: it is put right, and what dies is gone all the same.
    foreign::a_row_whose_mark_was_changed(agent: yes, catalog: yes);
    /// Somebody registers on a node of ours as Consul's documentation shows it: our mark is put back beside what is theirs, and what dies meanwhile goes.
    foreign::a_registration_that_empties_our_node(agent: "an agent's node carries no mark of ours, and the agent itself restores it", catalog: yes);
    /// A Consul agent has the name of a node of ours, or joins under it: its instances are on shared nodes, and the doctor says so before the start.
    nodes::an_agent_with_our_nodes_name(agent: "an agent's instances stand on its own node", catalog: yes);
    /// A slice names 60 Nodes that nobody has registered: no Consul node stands for them. An instance moves when its Node joins, stays
    /// when it goes, and moves back after a restart; no reader misses one.
    nodes::names_that_are_no_nodes(agent: "an agent's instances stand on its own node", catalog: yes);
    /// Consul nodes have names of at most 63 characters, so that SRV is answered; what stands under a longer one moves, and no reader misses an instance.
    nodes::long_names_answer_srv(agent: "an agent's node has the name that its administrator gives it", catalog: yes);
    /// Over UDP, Consul's DNS leaves instances out of SRV answers: the doctor says so, and what to set. With that set, it says nothing.
    nodes::dns_leaves_instances_out(agent: yes, catalog: yes);
    /// Where another cluster's marker stands under our name, nothing is written at all.
    foreign::a_cluster_of_our_name_in_the_catalog(agent: "an agent has no marker node: two clusters of one name on one agent are told apart row by row", catalog: yes);
    /// `--namespace`: resources elsewhere are not acted on, and rows whose owners are elsewhere are never orphans.
    foreign::other_namespaces_are_untouched(agent: yes, catalog: yes);
    /// `--class`: resources of another class, or of none, are not acted on; one that is given to another class is let go.
    foreign::other_classes_are_untouched(agent: yes, catalog: yes);

    /// Another Consul agent than before: what the first one holds is said, and goes as soon as the second one has it, through the
    /// first agent where that is named, and through the catalog where that is gone; no instance that lives is ever missing.
    moves::another_agent(agent: yes, catalog: "there is one catalog, whichever of its servers or agents answers");
    /// A move to the other mode: each instance is there before the old one goes, also where Lictor dies on the way.
    moves::to_another_mode(agent: yes, catalog: yes);
    /// From mode to mode, from Consul to Consul, from name to name and back to the first mode, with 100 instances: a reader that asks every
    /// 10 ms never misses one, and nothing is left behind. `make test-long` moves 600.
    moves::a_chain_of_moves(agent: yes, catalog: "it goes from mode to mode by itself");
    /// A move to another Consul: each instance is in the new one before it leaves the old one, and nothing is left there.
    moves::to_another_consul(agent: yes, catalog: yes);
    /// A move to another name of the cluster: each instance is there under the new one before the old one goes.
    moves::to_another_name(agent: yes, catalog: yes);
    /// A move from a Consul that is away: the new one is kept true all the same, and the old one is cleared when it is back.
    moves::the_old_consul_is_away(agent: yes, catalog: yes);
    /// A move from the very place where Lictor registers, by another address: refused in one sentence, and nothing is removed.
    moves::the_same_place_is_no_move(agent: yes, catalog: yes);
    /// A cluster is built anew under its name: `lictor takeover` shows what the old one left, takes nothing while that still
    /// writes, and then all of it; the living alone are left, and what lives in both is never missing.
    moves::a_cluster_built_anew(agent: yes, catalog: yes);
    /// The same where somebody has deleted the marker node of the old cluster, beside an operator of the new one.
    moves::a_cluster_built_anew_and_the_marker_deleted(agent: "an agent has no marker node", catalog: yes);

    /// Killed again and again while everything changes, then left alone: true; and what was ready all the time was never missing.
    outages::killed_in_a_loop_under_change(agent: yes, catalog: yes);
    /// Consul is not there at the start: said, waited for, and then true.
    outages::consul_absent_at_start(agent: yes, catalog: yes);
    /// An outage whose words differ at each request, by ports and request IDs: one status and one Event for each resource, one line in the log.
    outages::an_outage_is_told_once_however_it_is_worded(agent: yes, catalog: yes);
    /// Of three servers one is killed, and another one is cut off from the others and answers that there is no leader: the next address is asked each time, and nothing is lost.
    outages::one_server_of_three_is_cut_off(agent: "an agent has one address: what was registered with one is not deregistered with another", catalog: yes);
    /// Of three servers the leader is killed, each is restarted in turn, one is taken out, and a snapshot is restored, all under change of two clusters: nothing that lives is missing on any server that answers, and nothing stale is left. `make test-long` makes each fault ten times.
    servers::three_servers_fail_under_change(agent: "an agent has one address: what was registered with one is not deregistered with another", catalog: yes);
    /// What answers at Consul's address is no Consul, wants TLS, does not speak it, or is too old: one sentence with what to change, and nothing is removed.
    outages::what_answers_is_no_consul(agent: yes, catalog: yes);
    /// Consul hangs while pods come and go: not ready, and true once it goes on.
    outages::consul_hangs(agent: yes, catalog: yes);
    /// Writes that are carried out without an answer, or answered without being carried out: true all the same.
    outages::answers_are_lost(agent: yes, catalog: yes);
    /// After SIGTERM no request begins but what completes a write under way; what is registered stays.
    outages::sigterm_and_not_one_request_more(agent: yes, catalog: yes);
    /// Kubernetes is not there at the start: said, not ready, tried again, and then true.
    outages::kubernetes_absent_at_start(agent: yes, catalog: yes);
    /// Kubernetes goes away: the last true state is kept up, nothing is taken away, and what was missed is made good.
    outages::kubernetes_goes_away(agent: yes, catalog: yes);
    /// A permission is taken away: said, and nothing is removed; given back, what was missed is made good.
    outages::a_permission_is_taken_away(agent: yes, catalog: yes);
    /// Where Kubernetes limits requests, Lictor lists again no earlier than `Retry-After` says.
    outages::kubernetes_limits_requests(agent: yes, catalog: yes);
    /// The CRD is not there: how to install it is said, and it works when it comes; an object that does not decode
    /// keeps its last good state; when the CRD is deleted, what is registered stays.
    outages::the_crd_comes_later(agent: yes, catalog: "Consul is not concerned: a second control plane of its own would show nothing new");
    /// Where the CRD may not be read, discovery tells a deleted resource from a deleted CRD, with which nothing goes; where
    /// neither may be read, many instances stay until Lictor can tell.
    outages::the_crd_goes_where_it_may_not_be_read(agent: yes, catalog: yes);

    /// Nothing changes for half a minute: Consul sees no request but reads, and no index of ours moves.
    quiet::no_change_no_write(agent: yes, catalog: yes);
    /// A status written by hand is put right, and that wakes no write to Consul.
    quiet::a_status_write_wakes_no_write(agent: yes, catalog: yes);
    /// A restart is no change: nothing is written but, in the catalog, the marker's term.
    quiet::a_restart_writes_nothing(agent: yes, catalog: yes);
    /// One pod's change is one small write, and no other instance moves.
    quiet::one_change_is_one_write(agent: yes, catalog: yes);
    /// Each change of a resource is decided once, a rename too; a Node concerns only the resources with an endpoint on it. Counted.
    quiet::one_change_is_one_decision(agent: yes, catalog: yes);

    /// A Service that does not exist: condition and Event; it works when it comes. A mistyped new name removes nothing.
    refusals::a_service_that_does_not_exist(agent: yes, catalog: yes);
    /// Consul refuses one registration: its own words are in the condition, the other resource is registered.
    refusals::consul_refuses_one(agent: yes, catalog: yes);
    /// A write that fails each time, lost or answered with 500, while others pass: it is told at its resource, others go on, and Lictor stays ready.
    refusals::a_write_that_fails_each_time(agent: yes, catalog: yes);
    /// Endpoints whose `targetRef` has no name or uid in Kubernetes' own form, such as a uid of 20 KB: they are registered by their addresses.
    refusals::a_target_that_names_no_pod(agent: yes, catalog: yes);
    /// What this Consul or this version does not have is not accepted, and said to be so: Enterprise's namespaces and partitions; in the catalog also checks.
    refusals::what_is_not_supported(agent: yes, catalog: yes);
    /// A check that Consul refuses: its own words are told, what was registered stays, others are not affected.
    refusals::a_check_that_consul_does_not_know(agent: yes, catalog: "the catalog looks at no check: what Lictor may not write there is not accepted, `refusals::what_is_not_supported`");
    /// A tagged address that the administrator does not allow is not accepted, and what was registered stays.
    refusals::an_address_that_is_not_allowed(agent: yes, catalog: yes);

    /// `kubectl wait --for=condition=Ready` returns, and `kubectl get csvc` shows what it should.
    reports::kubectl_shows_it(agent: yes, catalog: yes);
    /// The log tells when and why each instance left: not ready, terminating, gone, retained, edited, deleted, an orphan, of another class,
    /// confirmed by a fresh list; with resource, instance and Consul node.
    left::the_log_tells_when_and_why(agent: yes, catalog: yes);
    /// The metrics are there by name, and the gauges are right.
    reports::metrics_are_there(agent: yes, catalog: yes);
    /// The status of 60 resources changes all the time, and writes to the apiserver are slow: the finalizer of a new resource that retains its
    /// instances is written before more than a few of the statuses.
    reports::a_finalizer_waits_for_no_status(agent: yes, catalog: yes);

    /// Two replicas, the leader killed in turn under change: the other one writes soon, and nothing that lives is missing for a moment.
    replicas::one_takes_over_from_one_that_is_killed(agent: yes, catalog: yes);
    /// A leader that is told to stop gives the Lease back, and the next one goes on.
    replicas::one_hands_over_when_it_is_told_to_stop(agent: yes, catalog: yes);
    /// A leader that was stopped past its Lease and wakes begins no request to Consul.
    replicas::one_that_slept_past_its_time_begins_no_request(agent: yes, catalog: yes);
    /// Where each request to Kubernetes takes half of the Lease, one replica leads and acts; where requests are too slow to keep the Lease, it names nobody.
    replicas::one_leads_where_kubernetes_is_slow(agent: yes, catalog: yes);
    /// Lists that take longer than the Lease's duration cost no lead.
    replicas::a_long_list_costs_no_lead(agent: yes, catalog: yes);
    /// Where each write takes Consul 2 s, a replica that leads writes all the same.
    replicas::one_acts_where_consul_is_slow(agent: yes, catalog: yes);
    /// A leader that loses the Lease for a moment goes on with what it knows of Consul, unless another one has written.
    replicas::a_lead_lost_for_a_moment(agent: "nothing in an agent says who has written, so it is read again", catalog: yes);
    /// A write of the old leader that arrives after the new one has written is rolled back.
    replicas::a_late_write_of_the_old_leader_is_fenced_off(agent: "agents have no means to fence a write that is under way; the resync puts it right", catalog: yes);

    /// `lictor plan` says what `run` would do, changes nothing, and ends with 0, 1 or 2.
    commands::a_plan_is_what_would_be_done(agent: yes, catalog: yes);
    /// `lictor why` says the cause of each trouble of a long list, of refusals, conditions and outages; `docs/why.md` has the list.
    why::the_cause_of_each_trouble_is_said(agent: yes, catalog: yes);
    /// The least Role and the least policy of Consul with which `lictor why` answers; with less it says which right is missing.
    why::who_asks_needs_to_read_and_no_more(agent: yes, catalog: yes);
    /// `lictor doctor` registers a test instance, deregisters it, and says what is missing.
    commands::a_doctor_says_what_is_missing(agent: yes, catalog: yes);
    /// `lictor detach` takes the finalizers off while an operator runs, which stands by; `--deregister` leaves nothing.
    commands::detaching_leaves_nothing_behind(agent: yes, catalog: yes);
    /// A certificate of X.509 version 1, an encrypted key, a key of another certificate, authorities that are none, no PEM, nothing: one sentence with file, fault and remedy, for Consul and for Kubernetes.
    credentials::certificates_that_cannot_be_used(agent: yes, catalog: yes);
    /// A client certificate expires while Lictor runs: what is registered stays, and `/readyz` names the file and its time.
    credentials::a_client_certificate_expires(agent: yes, catalog: yes);
    /// Authorities, certificates and keys of Consul and of Lictor are replaced ten times under change, with half a file, a wrong key and a certificate of a stranger between: Consul is never unavailable, and after the last good ones no write fails.
    rotation::certificates_rotate_under_change(agent: yes, catalog: yes);
    /// The token's file changes under change, with half a token and none between: no write fails. The next token ends: what is registered stays, and the one after that is used.
    rotation::a_token_changes_and_one_ends(agent: yes, catalog: yes);
    /// A login by Consul's Kubernetes auth method in place of a token: each replica has a token of its own, which it gives back at its
    /// end; `plan`, `doctor`, `policy check` and `detach` leave none behind either.
    login::a_login_in_place_of_a_token(agent: "an agent keeps the token that an instance was registered with, and that of a login ends", catalog: yes);
    /// A login with a namespace or partition where Consul is no Enterprise, to an unknown datacenter, with an empty file, or beside a
    /// token that is given: one sentence says what to change.
    login::what_a_login_cannot_go_with(agent: "an agent keeps the token that an instance was registered with, and that of a login ends", catalog: yes);
    /// The token of the login is deleted while Lictor runs: it logs in again, and no write fails. A token for another audience, a broken
    /// one, a service account that is gone and no binding rule: each has its sentence, what is registered stays, and Lictor goes on.
    login::a_login_is_refused_to_who_comes(agent: "an agent keeps the token that an instance was registered with, and that of a login ends", catalog: yes);
    /// The auth method may not read service accounts, may not review tokens, has a token or an authority that is wrong, does not reach
    /// Kubernetes, or is deleted while Lictor runs: likewise.
    login::a_login_is_refused_by_its_method(agent: "an agent keeps the token that an instance was registered with, and that of a login ends", catalog: yes);
    /// Tokens that live for a minute, under change: each is renewed in time, one that is deleted is replaced, none is left behind.
    login::logins_of_one_minute(agent: "an agent keeps the token that an instance was registered with, and that of a login ends", catalog: yes);

    once:
    /// A wrong flag, value or file is one line on stderr and an exit code above 1.
    bad_input::one_line_and_an_exit_code_above_one;
}

#[test]
fn the_table_is_current() {
    check_page("docs/scenarios.md", &document(LINES));
}
