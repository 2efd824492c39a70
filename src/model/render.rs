//! The tags and meta pairs of one instance: the author's texts with the instance's values in them.

use std::collections::{BTreeMap, BTreeSet};

use super::ids::Str;
use super::resolve::Instance;
use super::resource::{PerAddress, Spec};
use super::template::Template;

/// Consul's limit for a value of metadata, in bytes.
pub const MAX_META_VALUE: usize = 512;

/// The longest tag, in bytes. Consul has no limit: Traefik and Fabio read whole rules out of tags.
pub const MAX_TAG: usize = 1024;

/// Says what is left of a text where a value is missing, or not fit for Consul.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MissingValue {
    /// Names the text: `tag "v${pod.labels['version']}"`, `meta "version"`.
    pub text: String,
    /// Says why the value is missing or not fit.
    pub why: String,
}

/// The tags of an instance, each once; one that comes out empty is left out.
pub fn tags(spec: &Spec, instance: &Instance, mut missing: impl FnMut(MissingValue)) -> Vec<Str> {
    let own = instance.own.iter().flat_map(|own| &own.tags);
    let mut seen = BTreeSet::new();
    let mut tags = Vec::with_capacity(spec.tags.len());
    for template in spec.tags.iter().chain(own) {
        let tag = fill(template, instance, MAX_TAG, |why| {
            missing(MissingValue { text: format!("tag {}", shown(template)), why });
        });
        if !tag.is_empty() && seen.insert(tag.clone()) {
            tags.push(tag);
        }
    }
    tags
}

/// The author's meta pairs of an instance.
pub fn pairs(spec: &Spec, instance: &Instance, mut missing: impl FnMut(MissingValue)) -> BTreeMap<Str, Str> {
    let none = PerAddress::default();
    let own = instance.own.as_deref().unwrap_or(&none);
    let of_all = spec.meta.iter().filter(|(key, _)| !own.meta.contains_key(*key));
    of_all
        .chain(&own.meta)
        .map(|(key, template)| {
            let why = |why| missing(MissingValue { text: format!("meta {key:?}"), why });
            (key.clone(), fill(template, instance, MAX_META_VALUE, why))
        })
        .collect()
}

/// The bytes of the texts that an instance holds for itself, since there are values of its own in them.
#[must_use]
pub fn own_bytes(spec: &Spec, instance: &Instance) -> usize {
    let none = PerAddress::default();
    let own = instance.own.as_deref().unwrap_or(&none);
    let tags = spec.tags.iter().chain(&own.tags).map(|tag| (tag, MAX_TAG));
    let pairs = spec.meta.values().chain(own.meta.values()).map(|pair| (pair, MAX_META_VALUE));
    tags.chain(pairs).map(|(text, most)| text.own_bytes(&instance.values).min(most)).sum()
}

/// Everything about an instance's texts that is not as its author may think.
#[must_use]
pub fn missing_values(spec: &Spec, instance: &Instance) -> BTreeSet<MissingValue> {
    let mut missing_values = BTreeSet::new();
    tags(spec, instance, |missing| _ = missing_values.insert(missing));
    pairs(spec, instance, |missing| _ = missing_values.insert(missing));
    missing_values
}

fn fill(template: &Template, instance: &Instance, most: usize, mut missing: impl FnMut(String)) -> Str {
    let unfilled = template.variables().filter(|variable| !instance.values.contains_key(variable));
    unfilled.for_each(|variable| missing(format!("{variable} is not there")));
    let text = template.render(&instance.values);
    // What has no values in it was judged when it was read.
    if matches!(template, Template::Plain(_)) {
        return text;
    }
    if text.len() > most {
        missing(format!("it has {} bytes: at most {most}", text.len()));
        return "".into();
    }
    if text.chars().any(char::is_control) {
        missing("it holds a line break or another control character".to_owned());
        return "".into();
    }
    text
}

/// A text as its author wrote it, near enough.
fn shown(template: &Template) -> String {
    use super::template::Part;
    match template {
        Template::Plain(text) => format!("{text:?}"),
        Template::Parts(parts) => {
            let parts = parts.iter().map(|part| match part {
                Part::Text(text) => text.to_string(),
                Part::Value(variable) => format!("${{{variable}}}"),
            });
            format!("\"{}\"", parts.collect::<String>())
        }
    }
}
