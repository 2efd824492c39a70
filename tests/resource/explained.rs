//! `kubectl explain` has words for every field.

use anyhow::{Result, ensure};
use lictor_testbed::wait;
use serde_json::Value;

use crate::fixture::{Fixture, SOON};

#[tokio::test]
async fn every_field_is_explained() -> Result<()> {
    let fixture = Fixture::make().await?;
    // What `kubectl explain` reads.
    let read = || async {
        let text = fixture.plane.kubectl(&["get", "--raw", "/openapi/v3/apis/lictor.dev/v1alpha1"]).await?;
        let document: Value = serde_json::from_str(&text)?;
        let schema = &document["components"]["schemas"]["dev.lictor.v1alpha1.ConsulService"]["properties"];
        Ok(schema.get("spec").is_some().then(|| schema.clone()))
    };
    let schema = wait::until("the resource is in the OpenAPI document", SOON, read).await?;
    let mut missing = Vec::new();
    for part in ["spec", "status"] {
        unexplained(part, &schema[part], &mut missing);
    }
    ensure!(missing.is_empty(), "fields without a description: {missing:#?}");

    let explained = fixture.plane.kubectl(&["explain", "consulservices.spec.checks.http.path"]).await?;
    ensure!(explained.contains("it begins with '/'"), "{explained}");
    fixture.clear_away().await;
    Ok(())
}

/// The paths of fields at and below `schema` that have no description.
fn unexplained(path: &str, schema: &Value, missing: &mut Vec<String>) {
    if schema["description"].as_str().is_none_or(str::is_empty) {
        missing.push(path.to_owned());
    }
    let below = [&schema["properties"], &schema["items"]["properties"], &schema["additionalProperties"]["properties"]];
    for (name, field) in below.into_iter().filter_map(Value::as_object).flatten() {
        unexplained(&format!("{path}.{name}"), field, missing);
    }
}
