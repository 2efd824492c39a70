//! What the authors of resources write.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use lictor::model::ids::Str;
use lictor::model::port::PortRef;
use lictor::model::registration::{TaggedAddress, Weights};
use lictor::model::resource::{PerAddress, Readiness, Source, Spec, StaticAddress};
use lictor::model::selector::{Requirement, Selector};
use lictor::model::template::Template;

use super::pods::{APP, JOB, VERSION};
use super::services::SERVICES;
use crate::sim::State;

/// Names that both namespaces want.
const COMMON: [&str; 3] = ["user", "User", "api"];

fn text(text: &str) -> Template {
    Template::parse(text).expect("a template")
}

impl State {
    pub(super) fn draw_spec(&mut self, namespace: &Str) -> Arc<Spec> {
        let service: Str = match self.pick(&COMMON) {
            Some(name) if self.chance(45) => name.into(),
            _ => format!("{namespace}_{}", self.pick(&["db", "DB", "user"]).unwrap_or_default()).into(),
        };
        let source = self.draw_source(namespace);
        let port = match self.random.script.u8(..8) {
            0 | 6 => None,
            1 | 7 => Some(PortRef::Number(80)),
            2 => Some(PortRef::Name("grpc".into())),
            3 => Some(PortRef::Number(8080)),
            _ => Some(PortRef::Name("http".into())),
        };
        let port = port.filter(|_| !matches!(source, Source::Static { .. }));
        let mut tagged = BTreeMap::new();
        if self.chance(15) {
            tagged.insert("wan".into(), TaggedAddress { address: "198.51.100.1".into(), port: 443 });
        }
        let dual_stack = self.chance(20) && !matches!(source, Source::Static { .. });
        Arc::new(Spec {
            service,
            source,
            port,
            tags: self.draw_tags(),
            meta: self.draw_meta(),
            weights: if self.chance(20) { Weights { passing: 10, warning: 2 } } else { Weights::default() },
            tagged_addresses: Arc::new(tagged),
            enable_tag_override: self.chance(10),
            dual_stack,
            readiness: match self.random.script.u8(..5) {
                0 => Readiness::Deregister,
                1 => Readiness::Ignore,
                _ => Readiness::Mirror,
            },
            checks: Vec::new(),
            limits: self.setup.limits.clone(),
        })
    }

    fn draw_source(&mut self, namespace: &Str) -> Source {
        match self.random.script.u8(..10) {
            0..6 => {
                let own = self.cluster.services.keys().filter(|key| key.namespace == *namespace);
                let existing: Vec<Str> = own.map(|key| key.name.clone()).collect();
                let name = if self.chance(88) { self.pick(&existing) } else { None };
                Source::Service { name: name.unwrap_or_else(|| SERVICES[0].into()) }
            }
            6..9 => {
                let app: Str = self.pick(&[SERVICES[0], SERVICES[1], JOB]).unwrap_or_default().into();
                let mut all = vec![Requirement::In(APP.into(), [app].into())];
                match self.random.script.u8(..6) {
                    0 => all.push(Requirement::Exists(VERSION.into())),
                    1 => all.push(Requirement::NotIn(VERSION.into(), ["1".into()].into())),
                    2 => all = vec![Requirement::DoesNotExist(VERSION.into())],
                    _ => {}
                }
                Source::Pods { selector: Selector(all) }
            }
            _ => Source::Static { addresses: self.draw_addresses() },
        }
    }

    fn draw_addresses(&mut self) -> Vec<StaticAddress> {
        let mut all = Vec::new();
        for last in 1..4 {
            if last == 1 || self.random.script.bool() {
                let tags = if self.chance(30) { vec![text("own"), text("blue")] } else { Vec::new() };
                let meta = if self.chance(30) { [("version".into(), text("own"))].into() } else { BTreeMap::new() };
                let (address, own) = (IpAddr::from([203, 0, 113, last]), Arc::new(PerAddress { tags, meta }));
                all.push(StaticAddress { address, port: 7000 + u16::from(last), own });
            }
        }
        all
    }

    fn draw_tags(&mut self) -> Vec<Template> {
        let mut tags = Vec::new();
        for tag in ["blue", "green"] {
            if self.random.script.bool() {
                tags.push(text(tag));
            }
        }
        let valued = [
            "v${pod.labels['version']}",
            "${pod.annotations['team']}",
            "${pod.annotations['tier']}",
            "${node.zone}",
            "in-${node.region}",
            "${ports['grpc']}",
            "${pod.namespace}/${pod.name}",
        ];
        if self.chance(35)
            && let Some(tag) = self.pick(&valued)
        {
            tags.push(text(tag));
        }
        tags
    }

    fn draw_meta(&mut self) -> BTreeMap<Str, Template> {
        let mut meta = BTreeMap::new();
        if self.random.script.bool() {
            meta.insert("version".into(), text(self.pick(&["1", "2", "${pod.labels['version']}"]).unwrap_or_default()));
        }
        if self.chance(20) {
            let valued = ["${node.name}", "${node.zone}", "${pod.annotations['team']} ${pod.uid}"];
            meta.insert("where".into(), text(self.pick(&valued).unwrap_or_default()));
        }
        meta
    }
}
