//! Tags and meta pairs with an instance's values in them.

use std::collections::BTreeMap;

use lictor::model::resource::{Source, Spec};
use lictor::model::template::{Part, Template, Variable};

use super::found::Instance;

/// The values that texts of all instances hold.
pub(super) fn variables(spec: &Spec) -> impl Iterator<Item = &Variable> {
    let of_all = spec.tags.iter().chain(spec.meta.values());
    let own = match &spec.source {
        Source::Static { addresses } => &addresses[..],
        Source::Service { .. } | Source::Pods { .. } => &[],
    };
    let own = own.iter().flat_map(|address| address.own.tags.iter().chain(address.own.meta.values()));
    of_all.chain(own).flat_map(|text| match text {
        Template::Plain(_) => Vec::new(),
        Template::Parts(parts) => {
            let values = parts.iter().filter_map(|part| match part {
                Part::Text(_) => None,
                Part::Value(variable) => Some(variable),
            });
            values.collect()
        }
    })
}

/// The tags and pairs of an instance, and whether a value is missing in one of them.
pub(super) fn filled(spec: &Spec, instance: &Instance) -> (Vec<String>, BTreeMap<String, String>, bool) {
    let mut blank = false;
    let mut fill = |text: &Template| match text {
        Template::Plain(text) => text.to_string(),
        Template::Parts(parts) => {
            let mut filled = String::new();
            for part in parts.iter() {
                match part {
                    Part::Text(text) => filled.push_str(text),
                    Part::Value(variable) => {
                        let value = value(variable, instance);
                        blank |= value.is_none();
                        filled.push_str(&value.unwrap_or_default());
                    }
                }
            }
            filled
        }
    };
    let mut tags: Vec<String> = Vec::new();
    let mut meta = BTreeMap::new();
    let own = instance.own.clone().unwrap_or_default();
    for tag in spec.tags.iter().chain(&own.tags) {
        let tag = fill(tag);
        if !tag.is_empty() && !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    for (key, text) in spec.meta.iter().filter(|(key, _)| !own.meta.contains_key(*key)).chain(&own.meta) {
        meta.insert(key.to_string(), fill(text));
    }
    (tags, meta, blank)
}

fn value(variable: &Variable, instance: &Instance) -> Option<String> {
    let text = |value: &lictor::model::ids::Str| value.to_string();
    match variable {
        Variable::PodName => instance.pod.as_ref().map(|(name, _)| text(name)),
        Variable::PodNamespace => instance.pod.as_ref().map(|_| text(&instance.namespace)),
        Variable::PodUid => instance.pod.as_ref().map(|(_, uid)| text(uid)),
        Variable::Label(key) => instance.facts.as_ref()?.labels.get(key).map(text),
        Variable::Annotation(key) => instance.facts.as_ref()?.annotations.get(key).map(text),
        Variable::NodeName => instance.node.as_ref().map(text),
        Variable::Zone => instance.place.as_ref()?.zone.as_ref().map(text),
        Variable::Region => instance.place.as_ref()?.region.as_ref().map(text),
        Variable::Port(name) => instance.named_ports.get(&**name).map(ToString::to_string),
    }
}
