//! Pieces of schema that several fields share, or that no derive can make, and the last touch to the
//! generated whole.
//!
//! Bounds here are there for two reasons: Consul has the limit, or the apiserver must be able to bound what
//! a rule costs.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::Value;

/// Consul keeps 64 pairs of metadata for an instance; Lictor writes some of them.
const MAX_META: u32 = 48;
const MAX_TAGS: u32 = 64;
/// What one static address adds to the resource's own: less, as there may be 256 of them.
const MAX_OWN: u32 = 16;

pub(super) fn tags(_: &mut SchemaGenerator) -> Schema {
    tag_list(MAX_TAGS)
}

pub(super) fn own_tags(_: &mut SchemaGenerator) -> Schema {
    tag_list(MAX_OWN)
}

fn tag_list(max: u32) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": max,
        "x-kubernetes-list-type": "set",
        "items": {
            "type": "string",
            "minLength": 1,
            "maxLength": 255,
            "x-kubernetes-validations": [
                {
                    "rule": r"!self.matches('[\\x00-\\x1f\\x7f-\\x9f]')",
                    "message": "a tag holds no control characters or line breaks",
                },
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
        "additionalProperties": { "type": "string", "maxLength": 512 },
        "x-kubernetes-validations": [
            {
                "rule": "self.all(k, k.matches('^[A-Za-z0-9_-]{1,128}$'))",
                "message": "meta keys hold letters, digits, '-' and '_', at most 128 of them: for 'app.kubernetes.io/version' write 'version' or 'app-version'",
            },
            {
                "rule": "self.all(k, !k.startsWith('consul-'))",
                "message": "meta keys that begin with 'consul-' belong to Consul: write the key without that beginning",
            },
            {
                "rule": "self.all(k, !k.startsWith('lictor-') && !(k in ['managed-by', 'external-source', 'k8s-namespace', 'k8s-pod', 'k8s-node']))",
                "message": "Lictor itself sets managed-by, external-source, k8s-namespace, k8s-pod, k8s-node and all keys that begin with 'lictor-': leave them out, or write another key, such as 'source' or 'my-pod'",
            },
        ],
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
                "message": "an IP address, such as 203.0.113.7 or 2001:db8::7; names of hosts are not taken",
            },
            {
                "rule": "!isIP(self) || ip.isCanonical(self)",
                "message": "write the IPv6 address in its short form, in lower case: 2001:db8::7, not 2001:DB8:0:0:0:0:0:7",
            },
            {
                "rule": "!isIP(self) || ip(self).isGlobalUnicast()",
                "message": "an address that others can reach: not the loopback, link-local, multicast or unspecified one",
            },
        ],
    })
}

/// A duration as Go and Kubernetes write it, without fractions.
pub(super) fn duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "maxLength": 32, "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$" })
}

/// Kubernetes' label selector, one that picks something.
pub(super) fn pod_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "x-kubernetes-map-type": "atomic",
        "x-kubernetes-validations": [
            {
                "rule": "(has(self.matchLabels) && size(self.matchLabels) > 0) || (has(self.matchExpressions) && size(self.matchExpressions) > 0)",
                "message": "an empty selector would pick every pod of the namespace: give matchLabels or matchExpressions",
            },
        ],
        "properties": {
            "matchLabels": {
                "description": "Labels that a pod must have, all of them.",
                "type": "object",
                "maxProperties": 32,
                "additionalProperties": { "type": "string", "maxLength": 63, "pattern": LABEL_VALUE },
                "x-kubernetes-validations": [
                    {
                        "rule": format!("self.all(k, k.matches('{LABEL_KEY}'))"),
                        "message": "not a label's key: such as 'app' or 'app.kubernetes.io/name'",
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
                            "description": "The label.",
                            "type": "string",
                            "maxLength": 317,
                            "pattern": LABEL_KEY,
                        },
                        "operator": {
                            "description": "What is asked of the label's value.",
                            "type": "string",
                            "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                        },
                        "values": {
                            "description": "The values, for In and NotIn.",
                            "type": "array",
                            "maxItems": 64,
                            "x-kubernetes-list-type": "atomic",
                            "items": { "type": "string", "maxLength": 63, "pattern": LABEL_VALUE },
                        },
                    },
                },
            },
        },
    })
}

/// Syntax of labels:
/// <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set>.
const LABEL_KEY: &str = "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";
const LABEL_VALUE: &str = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";

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
                    "description": "Which condition.",
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
                    "description": "Why, in one word.",
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
