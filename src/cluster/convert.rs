//! From a `ConsulService` as it stands on the wire to the model's spec, or to the reason why it cannot be
//! acted on.
//!
//! The schema refuses most of what is wrong before it gets here. What is checked again is what the schema
//! cannot see (bytes, the administrator's rules) and what would do harm if an older CRD let it through.

mod checks;
mod source;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

pub use self::checks::ChecksRunBy;
use super::api::{self, ConsulService, ConsulServiceSpec, ConsulServiceStatus};
use super::status;
use crate::model::ids::{Str, meta};
use crate::model::policy::TOO_LARGE;
use crate::model::port::PortRef;
use crate::model::reasons::Refusal;
use crate::model::registration::Weights;
use crate::model::render::MAX_META_VALUE;
use crate::model::resource::{
    DeletionPolicy, Limits, PAUSED, Readiness, Resource, Source, Spec, StaticAddress, finalizer,
};
use crate::model::template::{Template, Variable};
use crate::state::event::{ObjectKey, SeenResource};

/// A `ConsulService`, its parts not decoded yet.
#[derive(kube::Resource, Deserialize, Clone, Debug)]
#[resource(inherit = ConsulService)]
pub struct ResourceObject {
    /// The standard metadata.
    pub metadata: ObjectMeta,
    /// The spec as Kubernetes has it; [`resource`] decodes it.
    #[serde(default)]
    pub spec: Value,
    /// The status as Kubernetes has it.
    #[serde(default)]
    pub status: Value,
}

/// Holds what the administrator says about resources.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The class of the resources that are ours; none and empty is the default class.
    pub class: Option<String>,
    /// Says who runs the checks of registrations.
    pub checks: ChecksRunBy,
    /// Says what else resources may do.
    pub limits: Limits,
}

/// Consul's limit for a name, in bytes.
const MAX_NAME: usize = 255;
/// The most bytes of a spec in JSON. The schema takes less; what an older one let through is not even read.
const MAX_SPEC: usize = 512 * 1024;
/// The most labels and annotations of pods that the templates of a resource may name: each is looked for in every pod of
/// the namespace. The schema does not say it: several texts may name the same one, and to count those that differ takes
/// `distinct`, which CEL has only since Kubernetes 1.34 (`pkg/cel/environment/base.go` of k8s.io/apiserver 0.35.0: cel-go's
/// lists are introduced there).
const MAX_KEYS: usize = 64;
/// Consul's limit for an instance's pairs of metadata.
const MAX_META_PAIRS: usize = 64;

/// The pairs that are ours to set.
const OUR_META: [&str; 11] = [
    meta::MANAGED_BY,
    meta::CLUSTER,
    meta::CLUSTER_UID,
    meta::OWNER,
    meta::OWNER_UID,
    meta::SOURCE,
    meta::CHECKS,
    meta::NAMESPACE,
    meta::POD,
    meta::NODE,
    meta::EXTERNAL_SOURCE,
];

/// Reads a resource. Nothing of the spec is read of one of another class: it is not ours to judge.
#[must_use]
pub fn resource(key: ObjectKey, object: ResourceObject, rules: &Rules) -> SeenResource {
    let ResourceObject { metadata, spec, status } = object;
    let our_class = class(rules.class.as_deref());
    let ours = class(spec.get("class").and_then(Value::as_str)) == our_class;
    let deletion = match spec.get("deletionPolicy").and_then(Value::as_str) {
        None | Some("Deregister") => Some(DeletionPolicy::Deregister),
        Some("Retain") => Some(DeletionPolicy::Retain),
        Some(_) => None,
    };
    let bytes = length(&spec);
    let spec = match serde_json::from_value::<ConsulServiceSpec>(spec) {
        _ if !ours => refuse("OtherClass", "another class: not ours"),
        _ if bytes > MAX_SPEC => {
            refuse(TOO_LARGE, format!("the spec has {bytes} bytes in JSON: at most {MAX_SPEC}; split the resource"))
        }
        Ok(spec) => self::spec(spec, &key.name, rules).map(Arc::new),
        Err(error) => refuse("Undecodable", format!("this version of Lictor cannot read the spec: {error}")),
    };
    // A status that cannot be read is one that we replace.
    let status = serde_json::from_value::<Option<ConsulServiceStatus>>(status).unwrap_or_default();
    let (status, since) = status::read(status.unwrap_or_default());
    let paused = metadata.annotations.as_ref().and_then(|annotations| annotations.get(PAUSED));
    let resource = Resource {
        key,
        uid: metadata.uid.unwrap_or_default().into(),
        created: metadata.creation_timestamp.map(|at| at.0.as_second()).unwrap_or_default(),
        generation: metadata.generation.unwrap_or_default(),
        resource_version: metadata.resource_version.unwrap_or_default().into(),
        finalizers: metadata.finalizers.unwrap_or_default().into_iter().map(Str::from).collect(),
        deleting: metadata.deletion_timestamp.is_some(),
        ours,
        finalizer: finalizer(our_class),
        paused: paused.is_some_and(|value| value != "false"),
        deletion,
        bytes,
        spec,
        status: Arc::new(status),
    };
    SeenResource { resource, since }
}

/// Says of a spec, whether it can be acted on or not, of which class it is and where its instances come from; the source is
/// none where that cannot be read.
pub(crate) fn class_and_source(spec: &Value) -> (String, Option<Source>) {
    let source = spec.get("source").cloned().unwrap_or_default();
    let source = serde_json::from_value(source).ok().and_then(|source| source::source(source).ok());
    (class(spec.get("class").and_then(Value::as_str)).to_owned(), source)
}

/// The length of a value in JSON, in bytes.
fn length(value: &Value) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // A value has a form in JSON, and counting does not fail.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}

fn class(name: Option<&str>) -> &str {
    name.unwrap_or_default()
}

fn refuse<T>(reason: &'static str, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { reason, message: message.into() })
}

fn invalid<T>(message: impl Into<String>) -> Result<T, Refusal> {
    refuse("Invalid", message)
}

fn not_supported<T>(what: &str) -> Result<T, Refusal> {
    refuse("NotSupported", format!("{what}: not supported by this version of Lictor"))
}

/// The spec of the resource `name`, in the model's own types.
fn spec(spec: ConsulServiceSpec, name: &str, rules: &Rules) -> Result<Spec, Refusal> {
    for (field, value) in [("namespace", &spec.namespace), ("partition", &spec.partition)] {
        if let Some(value) = value.as_ref().filter(|value| *value != "default") {
            return refuse(
                "NotSupported",
                format!(
                    "spec.{field} {value:?}: Consul has {field}s only in its Enterprise edition, and this version of \
                     Lictor registers in the default one: remove the field"
                ),
            );
        }
    }
    let spec = Spec {
        service: service_name(spec.name.as_deref().unwrap_or(name))?,
        source: source::source(spec.source)?,
        port: spec.port.map(port).transpose()?,
        tags: tags("spec.tags", &spec.tags)?,
        meta: pairs("spec.meta", &spec.meta)?,
        weights: weights(spec.weights.unwrap_or_default())?,
        tagged_addresses: Arc::new(source::tagged_addresses(&spec.tagged_addresses)?),
        enable_tag_override: spec.enable_tag_override,
        dual_stack: spec.dual_stack,
        readiness: match spec.readiness {
            api::Readiness::Mirror => Readiness::Mirror,
            api::Readiness::Deregister => Readiness::Deregister,
            api::Readiness::Ignore => Readiness::Ignore,
        },
        checks: checks::checks(spec.checks, rules)?,
        limits: rules.limits.clone(),
    };
    room_for_own_pairs(&spec)?;
    few_keys(&spec)?;
    Ok(spec)
}

/// The schema cannot count the keys of all texts together.
fn few_keys(spec: &Spec) -> Result<(), Refusal> {
    let is_keyed = |variable: &&Variable| matches!(variable, Variable::Label(_) | Variable::Annotation(_));
    let keys = spec.variables().into_iter().filter(is_keyed).count();
    if keys <= MAX_KEYS {
        return Ok(());
    }
    refuse(
        TOO_LARGE,
        format!(
            "tags and meta name {keys} labels and annotations of pods: at most {MAX_KEYS}; put what belongs together into \
             one annotation, or split the resource"
        ),
    )
}

/// A static address has pairs of its own besides those of all.
fn room_for_own_pairs(spec: &Spec) -> Result<(), Refusal> {
    let Source::Static { addresses } = &spec.source else { return Ok(()) };
    let most = MAX_META_PAIRS - OUR_META.len();
    let pairs = |address: &StaticAddress| {
        spec.meta.len() + address.own.meta.keys().filter(|key| !spec.meta.contains_key(*key)).count()
    };
    match addresses.iter().find(|address| pairs(address) > most) {
        None => Ok(()),
        Some(address) => invalid(format!(
            "spec.source.static: {} has {} meta pairs together with those of spec.meta: Consul and Lictor's own leave \
             room for {most}",
            address.address,
            pairs(address)
        )),
    }
}

fn service_name(name: &str) -> Result<Str, Refusal> {
    if name.is_empty() || name.len() > MAX_NAME {
        return invalid(format!("the name in Consul has {} bytes: it must have 1 to {MAX_NAME}", name.len()));
    }
    // Consul compares names in lower case, as Go makes it, letter by letter: there "İ" becomes a plain "i". Other libraries
    // make two letters of it. Of ASCII there are no two opinions.
    if !name.chars().all(|c| c == ' ' || c.is_ascii_graphic()) || name.trim() != name {
        return invalid(format!(
            "the name in Consul, {name:?}, holds something else than printable ASCII characters, or begins or ends with a \
             space"
        ));
    }
    // Consul's own servers are behind this name: nothing of Kubernetes may stand beside them.
    if name.eq_ignore_ascii_case("consul") {
        return invalid(format!("the name {name:?} belongs to Consul's own servers: set spec.name to another"));
    }
    Ok(name.into())
}

fn port(port: api::PortRef) -> Result<PortRef, Refusal> {
    match port {
        api::PortRef::Number(0) => invalid("spec.port: a port number is from 1 to 65535"),
        api::PortRef::Number(number) => Ok(PortRef::Number(number)),
        api::PortRef::Name(name) => Ok(PortRef::Name(name.into())),
    }
}

fn tags(field: &str, tags: &[String]) -> Result<Vec<Template>, Refusal> {
    tags.iter().map(|tag| template(field, tag)).collect()
}

fn template(field: &str, text: &str) -> Result<Template, Refusal> {
    Template::parse(text).or_else(|why| refuse("InvalidTemplate", format!("{field}: {why}")))
}

/// The author's pairs of `field`.
fn pairs(field: &str, author: &BTreeMap<String, String>) -> Result<BTreeMap<Str, Template>, Refusal> {
    let most = MAX_META_PAIRS - OUR_META.len();
    if author.len() > most {
        return invalid(format!("{field} has {} pairs: Consul and Lictor's own leave room for {most}", author.len()));
    }
    let pair = |(key, value): (&String, &String)| {
        if is_reserved(key) {
            return invalid(format!("{field} has the key {key:?}, which Consul or Lictor itself sets: choose another"));
        }
        let text = template(&format!("{field}, key {key:?}"), value)?;
        match &text {
            Template::Plain(value) if value.len() > MAX_META_VALUE => {
                let length = value.len();
                invalid(format!("{field}: the value of {key:?} has {length} bytes: at most {MAX_META_VALUE}"))
            }
            _ => Ok((Str::from(&**key), text)),
        }
    };
    author.iter().map(pair).collect()
}

fn is_reserved(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    key.starts_with("consul-") || key.starts_with("lictor-") || OUR_META.contains(&&*key)
}

fn weights(weights: api::Weights) -> Result<Weights, Refusal> {
    match weights {
        api::Weights { passing: 0, .. } => {
            invalid("spec.weights.passing: at least 1; Consul turns 0 into 1 for both weights")
        }
        api::Weights { passing, warning } => Ok(Weights { passing, warning }),
    }
}

#[cfg(test)]
mod tests;
