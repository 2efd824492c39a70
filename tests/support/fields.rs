//! The fields of the resource, as the schema of its CRD has them.

use lictor::cluster::api;
use serde_json::Value;

/// The schema of a whole resource.
pub(crate) fn schema() -> Value {
    let crd = serde_saphyr::from_str::<Value>(&api::crd_yaml());
    let mut crd = crd.unwrap_or_else(|error| panic!("the CRD is not YAML: {error}"));
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take()
}

/// Shows each field below a part of the resource, such as `spec`: its path, in which `[]` is each item of a list and
/// `*` each value of a map, its schema, and whether it must be there.
pub(crate) fn each(part: &str, mut see: impl FnMut(&str, &Value, bool)) {
    below(part, &schema()["properties"][part], &mut see);
}

fn below(path: &str, schema: &Value, see: &mut impl FnMut(&str, &Value, bool)) {
    let required = |name: &str| {
        schema["required"].as_array().is_some_and(|names| names.iter().any(|required| required.as_str() == Some(name)))
    };
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        below(&path, schema, see);
        see(&path, schema, required(name));
    }
    for (kind, mark) in [("items", "[]"), ("additionalProperties", ".*")] {
        if schema[kind].is_object() {
            below(&format!("{path}{mark}"), &schema[kind], see);
        }
    }
}
