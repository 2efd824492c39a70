//! Pieces of schema that several fields share, or that no derive can make, and the last touch to the
//! generated whole.
//!
//! Bounds here are there for two reasons: Consul has the limit, or the apiserver must be able to bound what
//! a rule costs.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::core::Rule;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// Consul keeps 64 pairs of metadata for an instance. Lictor's own are among them, and there is room for more of
/// those: lowering this number later would refuse what is in use.
const MAX_META: u32 = 48;
const MAX_TAGS: u32 = 64;
/// Consul has no limit for a tag: Traefik and Fabio read whole rules out of one.
const MAX_TAG: u32 = 1024;
/// The most that one static address may add to the resource's own: less, as there may be 256 of them.
const MAX_OWN: u32 = 8;
/// The most bytes of a tag of one static address.
const MAX_OWN_TAG: u32 = 512;
/// The most bytes that all static addresses together may add: etcd takes objects of 1.5 MiB, with what Kubernetes
/// notes about the owners of fields.
const MAX_OWN_IN_ALL: u32 = 256 * 1024;

/// A duration as Go and Kubernetes write it, without fractions.
pub(super) const DURATION: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";
/// Each `${` that is not `$${` begins something of the form of a value. Which values there are is a matter of the version
/// of Lictor.
const TEMPLATE: &str = r#"^([^$]|[$]+[^${]|[$]{2,}[{]|[$][{] *[a-zA-Z][a-zA-Z.]*(\[('[^']+'|"[^"]+")\])? *[}])*[$]*$"#;

/// A DNS label; bounded in length by the field.
pub(super) fn dns_label(what: &str) -> Rule {
    Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message(&*format!("{what} holds lower-case letters, digits and '-', and neither begins nor ends with '-'"))
}

/// At most so many bytes: the schema's own limits count characters.
pub(super) fn bytes(max: u32) -> Rule {
    Rule::new(format!("size(bytes(self)) <= {max}"))
        .message(&*format!("at most {max} bytes; a letter beyond ASCII has two to four bytes"))
}

/// Keeps what static addresses have of their own within what an object may be large.
pub(super) fn own_in_all() -> Rule {
    Rule::new(format!(
        "self.map(a, (has(a.tags) ? a.tags.map(t, size(bytes(t))).sum() : 0) + \
         (has(a.meta) ? a.meta.map(k, size(k) + size(bytes(a.meta[k]))).sum() : 0)).sum() <= {MAX_OWN_IN_ALL}"
    ))
    .message(&*format!(
        "the tags and meta of all addresses together are more than {MAX_OWN_IN_ALL} bytes: split the addresses among \
         several resources with the same spec.name"
    ))
}

/// The metadata of a static address and of the resource are together one instance's.
pub(super) fn meta_in_all() -> Rule {
    Rule::new(format!(
        "!has(self.source.static) || !has(self.meta) || self.source.static.all(a, !has(a.meta) || \
         size(self.meta) + a.meta.filter(k, !(k in self.meta)).size() <= {MAX_META})"
    ))
    .message(&*format!(
        "spec.meta and the meta of a static address have more than {MAX_META} keys together: Consul keeps 64 pairs for \
         an instance, and Lictor needs some of them"
    ))
}

pub(super) fn tags(_: &mut SchemaGenerator) -> Schema {
    tag_list(MAX_TAGS, MAX_TAG)
}

pub(super) fn own_tags(_: &mut SchemaGenerator) -> Schema {
    tag_list(MAX_OWN, MAX_OWN_TAG)
}

fn tag_list(max: u32, length: u32) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": max,
        "x-kubernetes-list-type": "set",
        "items": {
            "type": "string",
            "minLength": 1,
            "maxLength": length,
            "x-kubernetes-validations": [
                {
                    "rule": r"!self.matches('[\\x00-\\x1f\\x7f-\\x9f]')",
                    "message": "a tag holds no control characters or line breaks",
                },
                bytes(length),
                template(),
            ],
        },
    })
}

pub(super) fn meta(_: &mut SchemaGenerator) -> Schema {
    meta_map(MAX_META)
}

pub(super) fn own_meta(_: &mut SchemaGenerator) -> Schema {
    meta_map(MAX_OWN)
}

fn meta_map(max: u32) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": max,
        "x-kubernetes-map-type": "atomic",
        "additionalProperties": {
            "type": "string",
            "maxLength": 512,
            "x-kubernetes-validations": [bytes(512), template()],
        },
        "x-kubernetes-validations": [
            {
                "rule": "self.all(k, k.matches('^[A-Za-z0-9_-]{1,128}$'))",
                "message": "meta keys hold letters, digits, '-' and '_', at most 128 of them: for 'app.kubernetes.io/version' write 'version' or 'app-version'",
            },
            {
                "rule": "self.all(k, !k.lowerAscii().startsWith('consul-'))",
                "message": "meta keys that begin with 'consul-' belong to Consul: write the key without that beginning",
            },
            {
                "rule": "self.all(k, !k.lowerAscii().startsWith('lictor-') && !(k.lowerAscii() in ['managed-by', 'external-source', 'k8s-namespace', 'k8s-pod', 'k8s-node']))",
                "message": "Lictor itself sets managed-by, external-source, k8s-namespace, k8s-pod, k8s-node and all keys that begin with 'lictor-': leave them out, or write another key, such as 'source' or 'my-pod'",
            },
        ],
    })
}

fn template() -> Value {
    json!({
        // In CEL a string in quotes has escapes of its own; one between three of them may hold both kinds of quotes.
        "rule": format!("self.matches(r\"\"\"{TEMPLATE}\"\"\")"),
        "message": "'${' must begin a value: write a value like ${pod.name} or ${pod.labels['app']}, or write $${ for a literal ${, as in $${1}",
    })
}

/// An address in the one form that IP addresses are written in, so that a list keyed by it holds each just
/// once.
pub(super) fn ip_address(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 45,
        "x-kubernetes-validations": [
            {
                "rule": "isIP(self)",
                "message": "must be an IP address, such as 203.0.113.7 or 2001:db8::7: no host names, no zones (%eth0), no IPv4 addresses in the form of IPv6",
            },
            {
                "rule": "!isIP(self) || ip.isCanonical(self)",
                "message": "write the IPv6 address in its short form, in lower case: 2001:db8::7, not 2001:DB8:0:0:0:0:0:7",
            },
            {
                "rule": "!isIP(self) || (ip(self).isGlobalUnicast() && !cidr('::/96').containsIP(ip(self)))",
                "message": "must be an address that others can reach, not a loopback, link-local, multicast, broadcast or unspecified one",
            },
            {
                "rule": format!(
                    "!(self in [{}]) && (!isIP(self) || !cidr('{AMAZONS}').containsIP(ip(self)))",
                    METADATA.map(|address| format!("'{address}'")).join(", ")
                ),
                "message": "this is the address of a cloud's metadata service, which gives machines their credentials: it cannot be an instance",
            },
            {
                "rule": format!("!self.matches('{BEHIND_NAT64}')"),
                "message": "behind a NAT64 this is a loopback, link-local, multicast, broadcast or unspecified address, or that of a cloud's metadata service: it cannot be an instance",
            },
        ],
    })
}

/// The addresses where clouds answer with a machine's own metadata, apart from those that are link-local, such as
/// 169.254.169.254, and from Amazon's: Google's, Oracle's, Scaleway's, Akamai's, Alibaba's and Azure's.
const METADATA: [&str; 8] = [
    "fd20:ce::254",
    "fd00:c1::a9fe:a9fe",
    "fd00:42::42",
    "fd00:a9fe:a9fe::1",
    "fd00:100::100:200",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
];

/// The addresses by IPv4 that are refused, as a NAT64 shows them in its last 32 bits, in the one form that a rule before this
/// one leaves. What the shorter forms of `64:ff9b:1::/48` lead to only the code refuses.
const BEHIND_NAT64: &str = "^64:ff9b:(:|1::|(:|1:([0-9a-f]{0,4}:)*)(7f[0-9a-f]{2}:[0-9a-f]{1,4}|a9fe:[0-9a-f]{1,4}|e[0-9a-f]{3}:[0-9a-f]{1,4}|ffff:ffff|6464:64c8|a83f:8110|c000:c0))$";

/// The network in which Amazon answers machines and pods.
const AMAZONS: &str = "fd00:ec2::/32";

pub(super) fn duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 32,
        "x-kubernetes-validations": [
            {
                "rule": format!("self.matches('{DURATION}')"),
                "message": "a duration has whole numbers with the units h, m, s and ms, such as 10s, 1m30s or 500ms",
            },
        ],
    })
}

/// Kubernetes' label selector, one that picks something.
pub(super) fn pod_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "x-kubernetes-map-type": "atomic",
        "x-kubernetes-validations": [
            {
                "rule": "(has(self.matchLabels) && size(self.matchLabels) > 0) || (has(self.matchExpressions) && size(self.matchExpressions) > 0)",
                "message": "an empty selector would match every pod of the namespace: give matchLabels or matchExpressions",
            },
            {
                "rule": "!has(self.matchExpressions) || !self.matchExpressions.exists(a, a.operator == 'DoesNotExist' && ((has(self.matchLabels) && a.key in self.matchLabels) || self.matchExpressions.exists(b, b.key == a.key && b.operator in ['In', 'Exists'])))",
                "message": "no pod can match: DoesNotExist and another requirement ask for the same key",
            },
            {
                "rule": "!has(self.matchLabels) || !has(self.matchExpressions) || !self.matchExpressions.exists(a, a.key in self.matchLabels && has(a.values) && (self.matchLabels[a.key] in a.values) == (a.operator == 'NotIn'))",
                "message": "no pod can match: matchLabels and matchExpressions ask for different values of the same label",
            },
        ],
        "properties": {
            "matchLabels": {
                "description": "Labels that a pod must have, all of them.",
                "type": "object",
                "maxProperties": 32,
                "additionalProperties": label_value(),
                "x-kubernetes-validations": [
                    {
                        "rule": format!("self.all(k, k.matches('{LABEL_KEY}') && k.indexOf('/') <= 253)"),
                        "message": NOT_A_KEY,
                    },
                ],
            },
            "matchExpressions": {
                "description": "Requirements that a pod's labels must meet, all of them.",
                "type": "array",
                "maxItems": 32,
                "x-kubernetes-list-type": "atomic",
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "x-kubernetes-validations": [
                        {
                            "rule": "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
                            "message": "In and NotIn need values; Exists and DoesNotExist take none",
                        },
                    ],
                    "properties": {
                        "key": {
                            "description": "The label's key.",
                            "type": "string",
                            "maxLength": 317,
                            "x-kubernetes-validations": [
                                {
                                    "rule": format!("self.matches('{LABEL_KEY}') && self.indexOf('/') <= 253"),
                                    "message": NOT_A_KEY,
                                },
                            ],
                        },
                        "operator": {
                            "description": "`In`: the label has one of the values. `NotIn`: it has none of them, or is missing. `Exists`: it is there. `DoesNotExist`: it is missing.",
                            "type": "string",
                            "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                        },
                        "values": {
                            "description": "The values, for `In` and `NotIn`.",
                            "type": "array",
                            "maxItems": 64,
                            "x-kubernetes-list-type": "atomic",
                            "items": label_value(),
                        },
                    },
                },
            },
        },
    })
}

/// Syntax of labels:
/// <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set>.
const LABEL_KEY: &str = "^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";
const NOT_A_KEY: &str = "must be a label's key, such as 'app' or 'app.kubernetes.io/name'";
const LABEL_VALUE: &str = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";

fn label_value() -> Value {
    json!({
        "type": "string",
        "maxLength": 63,
        "x-kubernetes-validations": [
            {
                "rule": format!("self.matches('{LABEL_VALUE}')"),
                "message": "a label's value holds letters, digits, '-', '_' and '.', and begins and ends with a letter or digit",
            },
        ],
    })
}

/// What is in force at the deletion of a resource. The words are those of the field, and not of the type.
pub(super) fn deletion_in_force(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": ["Deregister", "Retain"] })
}

/// Kubernetes' standard conditions, with its own limits.
pub(super) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": {
                    "description": "Which condition: `Ready`, `Accepted`, `Resolved` or `Registered`.",
                    "type": "string",
                    "maxLength": 316,
                    "pattern": "^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$",
                },
                "status": {
                    "description": "Whether it holds.",
                    "type": "string",
                    "enum": ["True", "False", "Unknown"],
                },
                "observedGeneration": {
                    "description": "The generation of the resource that it is about.",
                    "type": "integer",
                    "format": "int64",
                    "minimum": 0,
                },
                "lastTransitionTime": {
                    "description": "When its status last changed.",
                    "type": "string",
                    "format": "date-time",
                },
                "reason": {
                    "description": "Why, in one word for programs.",
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                },
                "message": { "description": "Why, for people.", "type": "string", "maxLength": 32768 },
            },
        },
    })
}

/// Writes `1.0` as `1`: the API's type for a bound is a float, but people and drift checks read whole
/// numbers.
pub(super) fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(whole) = number.as_f64().filter(|f| f.fract() == 0.0) {
                #[expect(clippy::cast_possible_truncation, reason = "bounds of ports, counts and the like")]
                let whole = whole as i64;
                *number = whole.into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(fields) => fields.values_mut().for_each(whole_numbers),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// Makes of the derived schema what Kubernetes reads best: an absent field is the one way to leave a field
/// out, formats are those it knows, and descriptions are broken into lines by whoever shows them.
pub(super) fn tidy(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    schema.title = None;
    match schema.format.as_deref() {
        Some("uint8" | "uint16") => schema.format = Some("int32".to_owned()),
        Some("uint32") => schema.format = Some("int64".to_owned()),
        _ => {}
    }
    if let Some(description) = &mut schema.description {
        let paragraphs: Vec<_> = description.split("\n\n").map(|p| p.replace('\n', " ")).collect();
        *description = paragraphs.join("\n\n");
    }
    schema.properties.iter_mut().flat_map(|p| p.values_mut()).for_each(tidy);
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => tidy(items),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(tidy),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        tidy(values);
    }
}
