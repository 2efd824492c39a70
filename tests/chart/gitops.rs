//! What the pages about Argo CD and Flux say.

use anyhow::{Context, Result, ensure};
use lictor_testbed::WorkDir;
use lictor_testbed::programs::tools::Tool;
use serde_json::{Value, json};

use crate::helm::{Helm, documents, say, with};
use crate::read;

/// The objects in the blocks of YAML of a page.
fn blocks(page: &str) -> Result<Vec<Value>> {
    let page = read(page);
    let blocks = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    Ok(blocks.map(documents).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// The health check, by the interpreter that is Argo CD's, too.
#[tokio::test]
async fn argo_cd_sees_how_a_resource_is() -> Result<()> {
    let check = "resource.customizations.health.lictor.dev_ConsulService";
    let all = blocks("docs/argo-cd.md")?;
    let check = all.iter().find_map(|block| block[check].as_str()).context("no health check")?;
    let ready = |status: &str, reason: &str| {
        json!({ "observedGeneration": 2, "conditions": [
            { "type": "Accepted", "status": "True", "reason": "Accepted", "message": "other" },
            { "type": "Ready", "status": status, "reason": reason, "message": "this" },
        ]})
    };
    let mut older = ready("True", "Ready");
    older["observedGeneration"] = 1.into();
    let (glua, folder) = (Tool::Glua.ensure().await?, WorkDir::create("argo-cd")?);
    for (status, health) in [
        (Value::Null, "Progressing: Lictor has not seen this version yet"),
        (older, "Progressing: Lictor has not seen this version yet"),
        (json!({ "observedGeneration": 2 }), "Progressing: Lictor has not set conditions yet"),
        (ready("True", "Ready"), "Healthy: this"),
        (ready("False", "Pending"), "Progressing: this"),
        (ready("False", "ConsulUnavailable"), "Progressing: this"),
        (ready("False", "NotListed"), "Progressing: this"),
        (ready("False", "MassUnready"), "Progressing: this"),
        (ready("False", "EndpointsMissing"), "Progressing: this"),
        (ready("False", "PodNotSeen"), "Progressing: this"),
        (ready("Unknown", "ConsulUnavailable"), "Progressing: this"),
        (ready("Unknown", "Paused"), "Suspended: this"),
        (ready("False", "ServiceNotFound"), "Degraded: this"),
        (ready("False", "NameConflict"), "Degraded: this"),
    ] {
        let object = json!({ "metadata": { "generation": 2 }, "status": status });
        let script = format!(
            "local obj = {}\nlocal function check()\n{check}\nend\nlocal health = check()\n\
             print(health.status .. ': ' .. health.message)\n",
            lua(&object)
        );
        let said = say(&glua, [folder.write("health.lua", script)?]).await?;
        ensure!(said.trim() == health, "{object}: {said}");
    }
    Ok(())
}

/// A value as Lua writes it.
fn lua(value: &Value) -> String {
    match value {
        Value::Null => "nil".to_owned(),
        Value::Array(items) => format!("{{ {} }}", items.iter().map(lua).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| format!("[{name:?}] = {}", lua(value)));
            format!("{{ {} }}", fields.collect::<Vec<_>>().join(", "))
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string(),
    }
}

/// The chart takes the values of both examples.
#[tokio::test]
async fn the_values_of_the_examples_are_taken() -> Result<()> {
    let (helm, folder) = (Helm::new().await?, WorkDir::create("gitops")?);
    for (page, values) in [("docs/argo-cd.md", "/spec/source/helm/valuesObject"), ("docs/flux.md", "/spec/values")] {
        let all = blocks(page)?;
        let values =
            all.iter().find_map(|block| block.pointer(values)).with_context(|| format!("{page}: no values"))?;
        helm.template(&with(&folder.write("values.yaml", values.to_string())?)).await.context(page)?;
    }
    Ok(())
}
