//! An agent: what was registered with it, and how it carries that on to the catalog (`agent/local/state.go`).
//!
//! It owns its node: what the catalog has there and the agent does not know goes. A check that is registered
//! again keeps its status; over a restart a check keeps only what an update has told.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::store::{Address, Change, Check, Entity, Node, Service, Store};

/// The agent's local state.
#[derive(Clone, Debug)]
pub struct Agent {
    pub node: String,
    /// Drawn anew when the agent loses its data.
    pub id: String,
    services: BTreeMap<String, LocalService>,
    checks: BTreeMap<String, LocalCheck>,
    /// What is still to be deleted from the catalog, with what it was.
    gone_services: BTreeMap<String, Option<Arc<Service>>>,
    gone_checks: BTreeMap<String, Option<Arc<Check>>>,
    changes: Vec<Change>,
}

#[derive(Clone, Debug)]
struct LocalService {
    service: Arc<Service>,
    in_sync: bool,
}

#[derive(Clone, Debug)]
struct LocalCheck {
    check: Arc<Check>,
    /// The status and output of the last update, which are kept on disk.
    told: Option<(String, String)>,
    in_sync: bool,
    /// Its output has changed and nothing else: that alone is not carried on for minutes.
    deferred: bool,
}

impl Agent {
    pub fn new(node: &str, id: String) -> Self {
        Self {
            node: node.to_owned(),
            id,
            services: BTreeMap::new(),
            checks: BTreeMap::new(),
            gone_services: BTreeMap::new(),
            gone_checks: BTreeMap::new(),
            changes: Vec::new(),
        }
    }

    /// The same agent under another node's name, with everything still to be carried on to the catalog.
    pub fn renamed(self, node: &str) -> Self {
        let mut renamed = Self { services: self.services, ..Self::new(node, self.id) };
        for (id, local) in self.checks {
            let check = Check { node: node.to_owned(), ..(*local.check).clone() };
            renamed.checks.insert(id, LocalCheck { check: Arc::new(check), ..local });
        }
        renamed.unsettle();
        renamed
    }

    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values().map(|local| &local.service)
    }

    pub fn checks(&self) -> impl Iterator<Item = &Arc<Check>> {
        self.checks.values().map(|local| &local.check)
    }

    pub fn service(&self, id: &str) -> Option<&Arc<Service>> {
        self.services.get(id).map(|local| &local.service)
    }

    /// Registers a service, and with it a check if there is one.
    pub fn register(&mut self, mut service: Service, check: Option<Check>) {
        if service.weights.passing == 0 {
            service.weights = super::store::Weights::default();
        }
        let families: [&str; 2] =
            if service.address.contains(':') { ["lan_ipv6", "wan_ipv6"] } else { ["lan_ipv4", "wan_ipv4"] };
        for family in families {
            let own = Address { address: service.address.clone(), port: service.port };
            service.tagged_addresses.entry(family.to_owned()).or_insert(own);
        }
        let (id, name, tags) = (service.id.clone(), service.service.clone(), service.tags.clone());
        let service = Arc::new(service);
        let gone = self.gone_services.remove(&id).flatten();
        let known = self.services.get(&id).map(|local| &local.service).or(gone.as_ref());
        // What is registered again as it was counts as in sync, even if it never was: Consul's own haste.
        let in_sync = known.is_some_and(|known| same_service(&service, known));
        let before = self.services.insert(id.clone(), LocalService { service: service.clone(), in_sync });
        let node = self.node.clone();
        let entity = |service| Entity::Service { node: node.clone(), service };
        self.note(before.map(|local| entity(local.service)), Some(entity(service)));
        if let Some(check) = check {
            let check =
                Check { node: self.node.clone(), service_id: id, service_name: name, service_tags: tags, ..check };
            self.add_check(check);
        }
    }

    /// Adds a check, or changes it: it keeps the status that it had.
    pub fn add_check(&mut self, mut check: Check) {
        let known = self.checks.get(&check.check_id).cloned();
        if let Some(known) = &known {
            check.status.clone_from(&known.check.status);
            check.output.clone_from(&known.check.output);
        } else if check.status.is_empty() {
            "critical".clone_into(&mut check.status);
        }
        let gone = self.gone_checks.remove(&check.check_id).flatten();
        let told = known.as_ref().and_then(|known| known.told.clone());
        let deferred = known.as_ref().is_some_and(|known| known.deferred);
        let before = known.as_ref().map(|known| &known.check).or(gone.as_ref());
        let in_sync = !deferred && before.is_some_and(|before| same_check(&check, before));
        let check = Arc::new(check);
        let local = LocalCheck { check: check.clone(), told, in_sync, deferred };
        self.checks.insert(check.check_id.clone(), local);
        self.note(known.map(|known| Entity::Check(known.check)), Some(Entity::Check(check)));
    }

    /// Updates a check; answers whether it is there.
    pub fn update(&mut self, id: &str, status: &str, output: &str) -> bool {
        let Some(local) = self.checks.get_mut(id) else { return false };
        local.told = Some((status.to_owned(), output.to_owned()));
        if local.check.status == status && local.check.output == output {
            return true;
        }
        let before = local.check.clone();
        let after = Arc::new(Check { status: status.to_owned(), output: output.to_owned(), ..(*before).clone() });
        if before.status == status {
            local.deferred = true;
        } else {
            local.in_sync = false;
        }
        local.check = after.clone();
        self.note(Some(Entity::Check(before)), Some(Entity::Check(after)));
        true
    }

    /// Deregisters a check; answers whether it was there.
    pub fn remove_check(&mut self, id: &str) -> bool {
        let Some(local) = self.checks.remove(id) else { return false };
        self.gone_checks.insert(id.to_owned(), Some(local.check.clone()));
        self.note(Some(Entity::Check(local.check)), None);
        true
    }

    /// Deregisters a service and its checks; answers whether it was there.
    pub fn deregister(&mut self, id: &str) -> bool {
        let Some(local) = self.services.remove(id) else { return false };
        let checks: Vec<String> =
            self.checks().filter(|check| check.service_id == id).map(|check| check.check_id.clone()).collect();
        for check in checks {
            self.remove_check(&check);
        }
        self.gone_services.insert(id.to_owned(), Some(local.service.clone()));
        let before = Entity::Service { node: self.node.clone(), service: local.service };
        self.note(Some(before), None);
        true
    }

    /// Restarts with its data: a check is what the last update told, and critical where there was none.
    pub fn restart(&mut self) {
        self.gone_services.clear();
        self.gone_checks.clear();
        for local in self.checks.values_mut() {
            local.deferred = false;
            let (status, output) = local.told.clone().unwrap_or_else(|| ("critical".to_owned(), String::new()));
            local.check = Arc::new(Check { status, output, ..(*local.check).clone() });
        }
        self.unsettle();
    }

    fn unsettle(&mut self) {
        self.services.values_mut().for_each(|local| local.in_sync = false);
        self.checks.values_mut().for_each(|local| local.in_sync = false);
    }

    /// Whether there is anything to carry on to the catalog.
    pub fn is_in_sync(&self) -> bool {
        self.gone_services.is_empty()
            && self.gone_checks.is_empty()
            && self.services.values().all(|local| local.in_sync)
            && self.checks.values().all(|local| local.in_sync)
    }

    /// The whole comparison with the catalog, about once a minute.
    pub fn compare(&mut self, store: &Store) {
        for service in store.services_on(&self.node) {
            match self.services.get_mut(&service.id) {
                Some(local) => {
                    if local.service.enable_tag_override {
                        local.service = Arc::new(Service { tags: service.tags.clone(), ..(*local.service).clone() });
                    }
                    local.in_sync = same_service(&local.service, service);
                }
                None => {
                    self.gone_services.entry(service.id.clone()).or_default();
                }
            }
        }
        for check in store.checks_on(&self.node) {
            match self.checks.get_mut(&check.check_id) {
                Some(local) => {
                    let output = if local.deferred { &check.output } else { &local.check.output };
                    let local_check = Check { output: output.clone(), ..(*local.check).clone() };
                    local.in_sync = same_check(&local_check, check);
                }
                None if check.check_id == "serfHealth" => {}
                None => {
                    self.gone_checks.entry(check.check_id.clone()).or_default();
                }
            }
        }
        for (id, local) in &mut self.services {
            local.in_sync &= store.service(&self.node, id).is_some();
        }
        for (id, local) in &mut self.checks {
            local.in_sync &= store.check(&self.node, id).is_some();
        }
    }

    /// Carries on to the catalog what is out of sync.
    pub fn sync(&mut self, store: &mut Store) {
        store.index += 1;
        let own =
            Node { id: self.id.clone(), node: self.node.clone(), address: "127.0.0.1".to_owned(), ..Node::default() };
        if store.node(&self.node).is_none_or(|node| node.id != self.id) {
            store.set_node(own);
            let alive = Check {
                node: self.node.clone(),
                check_id: "serfHealth".to_owned(),
                name: "Serf Health Status".to_owned(),
                status: "passing".to_owned(),
                ..Check::default()
            };
            store.set_check(alive).expect("its node is there");
        }
        for id in std::mem::take(&mut self.gone_checks).into_keys() {
            store.delete_check(&self.node, &id);
        }
        for id in std::mem::take(&mut self.gone_services).into_keys() {
            store.delete_service(&self.node, &id);
        }
        for local in self.services.values_mut().filter(|local| !local.in_sync) {
            store.set_service(&self.node, (*local.service).clone()).expect("its node is there");
            local.in_sync = true;
        }
        for local in self.checks.values_mut().filter(|local| !local.in_sync) {
            // A check is registered together with its service, which the catalog may have lost.
            if let Some(of) = self.services.get(&local.check.service_id) {
                store.set_service(&self.node, (*of.service).clone()).expect("its node is there");
            }
            store.set_check((*local.check).clone()).expect("its service is there");
            local.in_sync = true;
        }
    }

    fn note(&mut self, before: Option<Entity>, after: Option<Entity>) {
        if before != after {
            self.changes.push(Change { before, after });
        }
    }
}

/// Whether the two say the same; indexes are the catalog's own.
fn same_service(local: &Service, remote: &Service) -> bool {
    let Service { create_index, modify_index, .. } = *remote;
    Service { create_index, modify_index, ..local.clone() } == *remote
}

fn same_check(local: &Check, remote: &Check) -> bool {
    let said = |check: &Check| {
        (check.name.clone(), check.status.clone(), check.notes.clone(), check.output.clone(), check.service_id.clone())
    };
    said(local) == said(remote)
}
