//! Whole resources: a name and other metadata that Kubernetes takes, and a spec.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use lictor::cluster::api;
use lictor::model::resource::PAUSED;
use serde_json::{Map, Value, json};

use crate::author;
use crate::schema::Generator;

/// Makes resources.
pub(crate) struct Resources {
    seed: u64,
    spec: JSONSchemaProps,
    /// What the rules of the schema say to whoever breaks them.
    pub(crate) rules: Vec<String>,
}

/// A resource, before Kubernetes has seen it.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) name: String,
    pub(crate) labels: Value,
    pub(crate) annotations: Value,
    pub(crate) spec: Value,
}

impl Resources {
    pub(crate) fn new(seed: u64) -> Self {
        let version = api::crd().spec.versions.into_iter().next().expect("a version");
        let root = version.schema.and_then(|schema| schema.open_api_v3_schema).expect("a schema");
        let mut rules = Vec::new();
        collect_rules(&serde_json::to_value(&root).expect("a schema is JSON"), &mut rules);
        let spec = root.properties.and_then(|mut fields| fields.remove("spec")).expect("a spec");
        Self { seed, spec, rules }
    }

    /// A source of chance for a purpose of its own.
    pub(crate) fn chance(&self, purpose: u64) -> Generator {
        Generator::new(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(purpose))
    }

    /// The resource of this number, as it is after so many edits.
    pub(crate) fn draw(&self, number: u64, edits: u64) -> Draft {
        let mut generator = self.chance((number << 20) + edits + 1);
        // Were everybody a little careless, no long list would be without an error.
        generator.careful = generator.chance(75);
        self.draw_by(generator, number)
    }

    /// One that breaks none of the schema's rules.
    pub(crate) fn draw_carefully(&self, number: u64) -> Draft {
        let mut generator = self.chance((number << 20) + 1);
        generator.careful = true;
        self.draw_by(generator, number)
    }

    fn draw_by(&self, mut generator: Generator, number: u64) -> Draft {
        let mut naming = self.chance(number << 20);
        let name = match naming.rng.u8(..10) {
            0 => format!("f{number}.{}.example.com", naming.rng.u8(..)),
            1 => format!("f{number}-{}", "x".repeat(253 - format!("f{number}-").len())),
            _ => format!("f{number}"),
        };
        let mut spec = generator.value(&self.spec, "");
        author::mend(&mut generator, &mut spec);
        Draft { name, labels: labels(&mut generator), annotations: annotations(&mut generator), spec }
    }
}

impl Draft {
    /// As it stands in a file.
    pub(crate) fn object(&self) -> Value {
        json!({
            "apiVersion": "lictor.dev/v1alpha1",
            "kind": "ConsulService",
            "metadata": { "name": self.name, "labels": self.labels, "annotations": self.annotations },
            "spec": self.spec,
        })
    }
}

/// Whether a resource with these annotations is frozen.
pub(crate) fn is_paused(annotations: &Value) -> bool {
    annotations.get(PAUSED).is_some_and(|value| value != "false")
}

fn labels(generator: &mut Generator) -> Value {
    let many = generator.rng.usize(..3);
    let pair = |at: usize| (author::LABELS[at].0.to_owned(), Value::from(author::LABELS[at].1[0]));
    (0..many).map(pair).collect::<Map<_, _>>().into()
}

fn annotations(generator: &mut Generator) -> Value {
    let mut annotations = Map::new();
    if generator.chance(10) {
        annotations.insert(PAUSED.to_owned(), generator.pick(&["true", "", "false", "no", "until\nMonday"]).into());
    }
    if generator.chance(20) {
        let most = generator.pick(&[&10, &1_000, &20_000]);
        annotations.insert("example.com/any".to_owned(), generator.any_text(0, *most).into());
    }
    annotations.into()
}

/// The messages of all rules at and below a place of the schema.
fn collect_rules(schema: &Value, into: &mut Vec<String>) {
    match schema {
        Value::Object(fields) => {
            let rules = fields.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten();
            into.extend(rules.filter_map(|rule| rule["message"].as_str().map(str::to_owned)));
            fields.values().for_each(|field| collect_rules(field, into));
        }
        Value::Array(items) => items.iter().for_each(|item| collect_rules(item, into)),
        _ => {}
    }
}
