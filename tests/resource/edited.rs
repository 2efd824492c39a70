//! What may be made may also be edited to, by a server-side apply.
//!
//! Of what loses its last field, the apiserver makes a null (<https://github.com/kubernetes/kubernetes/issues/135841>),
//! which the schema then refuses. What is owned as a whole (`x-kubernetes-map-type: atomic`) is not taken apart.

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use crate::examples::{self, Example};
use crate::fixture::{self, Fixture};

#[tokio::test]
async fn whatever_may_be_empty_may_be_emptied() -> Result<()> {
    let fixture = Fixture::make().await?;
    let mut emptied = 0;
    for Example { path, yaml } in examples::of_spec() {
        let full = fixture::spec(yaml);
        let mut applied = false;
        for place in places(&full) {
            let mut spec = full.clone();
            let there = spec.pointer_mut(&place).context("a place of its own")?;
            *there = if there.is_array() { Value::Array(Vec::new()) } else { Value::Object(serde_json::Map::new()) };
            if fixture.create("fresh", &spec).await?.is_err() {
                continue;
            }
            if !applied {
                let made = fixture.apply("edited", &full, "&force=true").await?;
                made.map_err(|status| anyhow!("the example of {path}: {}", status.message))?;
                applied = true;
            }
            let edited = fixture.apply("edited", &spec, "&force=true&dryRun=All").await?;
            let edited = edited.map_err(|status| anyhow!("{path}, with nothing at {place}: {}", status.message))?;
            let left = edited.pointer(&place);
            ensure!(left.is_none_or(|left| !left.is_null()), "{path}: a null at {place}: {edited}");
            emptied += 1;
        }
    }
    ensure!(emptied > 50, "{emptied} edits were made: is this test blind?");
    fixture.clear_away().await;
    Ok(())
}

/// Where there are lists, maps and objects with something in them.
fn places(spec: &Value) -> Vec<String> {
    let inner: Vec<(String, &Value)> = match spec {
        Value::Object(fields) => fields.iter().map(|(name, value)| (format!("/{name}"), value)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(number, item)| (format!("/{number}"), item)).collect(),
        _ => Vec::new(),
    };
    let mut places = Vec::new();
    for (name, value) in inner {
        let holds_something = match value {
            Value::Object(fields) => !fields.is_empty(),
            Value::Array(items) => !items.is_empty(),
            _ => false,
        };
        if holds_something {
            places.push(name.clone());
        }
        places.extend(self::places(value).into_iter().map(|below| format!("{name}{below}")));
    }
    places
}
