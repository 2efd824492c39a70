//! kubeconform takes what the chart makes: the check that many run in their own pipelines, where no apiserver is. Its
//! schemas are made from what the apiserver of these tests publishes, so that they are of the same version, and know the
//! kinds of others that the chart uses.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};

use anyhow::{Context, Result, ensure};
use lictor_testbed::WorkDir;
use lictor_testbed::programs::tools::Tool;
use serde_json::{Map, Value, json};

use crate::helm::{Helm, all_values, say, with};
use crate::manifests::servers;

/// kubeconform, and the folder with a schema for each kind.
struct Kubeconform {
    program: std::path::PathBuf,
    schemas: WorkDir,
}

impl Kubeconform {
    async fn new() -> Result<Self> {
        let published: Value = serde_json::from_str(&servers().await?.get("/openapi/v2").await?)?;
        let definitions = published["definitions"].as_object().context("no definitions")?;
        let schemas = WorkDir::create("schemas")?;
        for (name, definition) in definitions {
            for kind in definition["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
                let part = |name: &str| kind[name].as_str().unwrap_or_default().to_owned();
                let (group, version) = (part("group"), part("version"));
                // kubeconform takes what stands before the slash, and of "v1" all, for the group.
                let group = if group.is_empty() { &version } else { &group };
                let file = format!("{}-{group}-{version}.json", part("kind").to_lowercase());
                schemas.write(&file, schema_of(name, definitions).to_string())?;
            }
        }
        Ok(Self { program: Tool::Kubeconform.ensure().await?, schemas })
    }

    /// What it says of the objects of a YAML stream; fails with what it finds wrong.
    async fn check(&self, yaml: &str) -> Result<String> {
        let objects = self.schemas.write("objects.yaml", yaml)?;
        let place = self.schemas.path().join("{{.ResourceKind}}-{{.Group}}-{{.ResourceAPIVersion}}.json");
        let mut args = ["-strict", "-summary", "-schema-location"].map(OsString::from).to_vec();
        args.extend([place.into_os_string(), objects.into_os_string()]);
        say(&self.program, args).await
    }
}

/// The schema of one kind, with all definitions that it refers to. As the apiserver does with `--validate=strict`, it
/// refuses fields that are not there; and it knows the two formats that stand for several types.
fn schema_of(name: &str, definitions: &Map<String, Value>) -> Value {
    let (mut used, mut left) = (BTreeSet::new(), vec![name.to_owned()]);
    let mut schemas = Map::new();
    while let Some(name) = left.pop() {
        if used.insert(name.clone()) {
            let mut schema = definitions[&name].clone();
            close(&mut schema, &mut left);
            schemas.insert(name, schema);
        }
    }
    json!({ "$ref": format!("#/definitions/{name}"), "definitions": schemas })
}

/// Makes a schema refuse unknown fields, and gathers the names of those that it refers to.
fn close(schema: &mut Value, refers_to: &mut Vec<String>) {
    match schema {
        Value::Object(fields) => {
            if let Some(name) = fields.get("$ref").and_then(Value::as_str) {
                refers_to.extend(name.strip_prefix("#/definitions/").map(ToOwned::to_owned));
            }
            // "int-or-string" is the only format of several types that the apiserver publishes as "string".
            if fields.get("format").is_some_and(|format| format == "int-or-string") {
                *schema = json!({ "type": ["string", "integer"] });
                return;
            }
            let keeps_unknown = fields.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
            if fields.get("properties").is_some_and(Value::is_object) && !keeps_unknown {
                fields.entry("additionalProperties").or_insert(Value::Bool(false));
            }
            for field in fields.values_mut() {
                close(field, refers_to);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| close(item, refers_to)),
        _ => {}
    }
}

#[tokio::test]
async fn kubeconform_takes_everything() -> Result<()> {
    let (helm, kubeconform) = (Helm::new().await?, Kubeconform::new().await?);
    for file in all_values() {
        let said = kubeconform.check(&helm.template(&with(&file)).await?).await;
        let said = said.with_context(|| file.display().to_string())?;
        ensure!(said.contains("Invalid: 0, Errors: 0, Skipped: 0"), "{}: {said}", file.display());
    }
    Ok(())
}

/// The guard guards: an unknown field, a wrong type and an unknown kind are found.
#[tokio::test]
async fn kubeconform_finds_what_is_wrong() -> Result<()> {
    let (helm, kubeconform) = (Helm::new().await?, Kubeconform::new().await?);
    let deployment = helm.template(&["-s", "templates/deployment.yaml"].map(OsStr::new)).await?;
    kubeconform.check(&deployment).await?;
    for (from, to, words) in [
        ("  replicas:", "  replicaz:", "replicaz"),
        ("  replicas: ", "  replicas: many-", "got string, want integer"),
        ("kind: Deployment", "kind: Deployments", "could not find schema for Deployments"),
    ] {
        ensure!(deployment.contains(from), "{from} is not in {deployment}");
        let said = kubeconform.check(&deployment.replacen(from, to, 1)).await.expect_err(to);
        ensure!(format!("{said:#}").contains(words), "{to}: {said:#}");
    }
    Ok(())
}
