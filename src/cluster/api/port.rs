//! A port by name or by number.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A port, by its name or by its number. On the wire Kubernetes' `IntOrString`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(untagged, expecting = "a port name, or a number from 1 to 65535")]
pub enum PortRef {
    /// 1 to 65535.
    Number(u16),
    /// As the Service or the pod calls it.
    Name(String),
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl JsonSchema for PortRef {
    fn schema_name() -> Cow<'static, str> {
        "PortRef".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "maxLength": 63,
            "x-kubernetes-validations": [
                in_range(),
                {
                    "rule": "type(self) == int || self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
                    "message": "a port name holds lower-case letters, digits and '-', and neither begins nor ends with '-'",
                },
                {
                    "rule": "type(self) == int || !self.matches('^[0-9]+$')",
                    "message": "a port number is written without quotes, as in 'port: 8080'",
                },
            ],
        })
    }
}

fn in_range() -> Value {
    json!({
        "rule": "type(self) != int || (self >= 1 && self <= 65535)",
        "message": "a port number is from 1 to 65535",
    })
}

/// The port of a check, of which there may be many: Kubernetes 1.31 does not see how short a text is that may be a number, too,
/// and so holds rules in words for too dear. The pattern says the same: a letter somewhere, and no '-' at either end.
pub(super) fn of_check(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "maxLength": 63,
        "pattern": "^([a-z]|[0-9][-0-9]*[a-z])([-a-z0-9]*[a-z0-9])?$",
        "x-kubernetes-validations": [in_range()],
    })
}

/// A port as Lictor itself tells of it, in the words of the Service or the pod.
pub(super) fn of_status(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "x-kubernetes-int-or-string": true })
}
