//! The reference of the resource, made of the CRD and of [`examples`].

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use crate::examples::{self, Example};
use crate::fixture::{self, Fixture};
use crate::{check_page, file, schema};

/// A field, as the CRD has it.
struct Field {
    schema: Value,
    required: bool,
}

#[test]
fn the_reference_is_what_the_crd_says() {
    check_page("docs/reference.md", &page());
}

#[test]
fn every_field_has_an_example() {
    let (fields, examples) = (fields("spec"), examples::of_spec());
    let without: Vec<_> = fields.keys().filter(|path| !examples.iter().any(|example| example.path == **path)).collect();
    assert!(without.is_empty(), "fields without an example in tests/resource/examples.rs: {without:#?}");
    for Example { path, yaml } in examples {
        assert!(fields.contains_key(path), "an example of a field that there is not: {path}");
        let value: Value = serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{path}: {error}\n{yaml}"));
        assert!(has(&value, path.trim_start_matches("spec.")), "the example of {path} does not have it:\n{yaml}");
    }
    let status: Value = serde_saphyr::from_str(examples::STATUS).unwrap();
    for path in self::fields("status").keys() {
        assert!(has(&status, path.trim_start_matches("status.")), "the example of a status does not have {path}");
    }
}

#[tokio::test]
async fn the_apiserver_takes_every_example() -> Result<()> {
    let fixture = Fixture::make().await?;
    for Example { path, yaml } in examples::of_spec() {
        fixture.accepts(&fixture::spec(yaml)).await.with_context(|| format!("the example of {path}"))?;
    }
    let refused = |status: Box<kube::core::Status>| anyhow!("{}", status.message);
    let mut made = fixture
        .send("POST", &fixture.path(), &fixture::resource("user", &fixture::smallest()))
        .await?
        .map_err(refused)?;
    made["status"] = serde_saphyr::from_str(examples::STATUS)?;
    let status = format!("{}/user/status?fieldValidation=Strict", fixture.path());
    fixture.send("PUT", &status, &made).await?.map_err(refused).context("the example of a status")?;
    fixture.clear_away().await;
    Ok(())
}

/// The pages that are written by hand and show resources, or fields of their specs.
const PAGES: [&str; 4] = ["README.md", "docs/introduction.md", "docs/getting-started.md", "docs/resource.md"];

#[tokio::test]
async fn the_apiserver_takes_what_the_pages_show() -> Result<()> {
    let fixture = Fixture::make().await?;
    for page in PAGES {
        let text = std::fs::read_to_string(file(page))?;
        let blocks: Vec<&str> = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        ensure!(!blocks.is_empty(), "{page} shows nothing");
        for yaml in blocks {
            let value: Value = serde_saphyr::from_str(yaml).with_context(|| format!("{page}:\n{yaml}"))?;
            let spec = if value["kind"].is_string() { value["spec"].clone() } else { fixture::spec(yaml) };
            fixture.accepts(&spec).await.with_context(|| format!("{page} shows:\n{yaml}"))?;
        }
    }
    fixture.clear_away().await;
    Ok(())
}

/// The fields below `part` by their paths.
fn fields(part: &str) -> BTreeMap<String, Field> {
    let mut found = BTreeMap::new();
    schema::each(part, |path, schema, required| {
        found.insert(path.to_owned(), Field { schema: schema.clone(), required });
    });
    found
}

/// Whether there is something at a path.
fn has(value: &Value, path: &str) -> bool {
    let (first, rest) = path.split_once('.').unwrap_or((path, ""));
    let (name, list) = first.strip_suffix("[]").map_or((first, false), |name| (name, true));
    let inner: Vec<&Value> = match value {
        Value::Object(fields) if name == "*" => fields.values().collect(),
        Value::Object(fields) => fields.get(name).into_iter().collect(),
        _ => Vec::new(),
    };
    inner.into_iter().any(|inner| match inner {
        Value::Array(items) if list => items.iter().any(|item| has(item, rest)),
        inner => rest.is_empty() || has(inner, rest),
    })
}

fn page() -> String {
    let (of_spec, of_status) = (fields("spec"), fields("status"));
    let examples = examples::of_spec();
    let mut text = format!(
        "<!-- generated from the CRD; `LICTOR_UPDATE=1 cargo test --test resource reference` writes it anew -->\n\
         # Reference\n\n\
         Every field of a `ConsulService` (`{}/{}`, short name `csvc`). `kubectl explain csvc.spec` says the same, \
         without the examples. In paths, `[]` stands for each item of a list, and `*` for each value of a map. \
         [The resource](resource.md) tells how the fields work together, and [What is refused](refusals.md) shows the \
         limits at work.\n\n",
        "lictor.dev", "v1alpha1"
    );
    text.push_str("| field | type | default | |\n| --- | --- | --- | --- |\n");
    for Example { path, .. } in &examples {
        let Field { schema, required } = &of_spec[*path];
        let default = default_of(schema).map(|default| format!("`{default}`")).unwrap_or_default();
        let first = first_sentence(&description(schema));
        let needed = if *required { "required" } else { &default };
        let _ = writeln!(text, "| [`{}`](#{}) | {} | {needed} | {first} |", &path[5..], slug(path), type_of(schema));
    }
    text.push_str("\n## `spec`\n\n");
    let whole = schema::schema();
    let whole = [&whole, &whole["properties"]["spec"]].into_iter().flat_map(rules).collect::<Vec<_>>();
    list("Of the whole, it is refused with the words:", &whole, &mut text);
    for Example { path, yaml } in &examples {
        describe(path, &of_spec[*path], &mut text);
        let _ = write!(text, "```yaml\n{}\n```\n\n", yaml.trim());
    }
    let _ =
        write!(text, "## `status`\n\nWritten by Lictor. For example:\n\n```yaml\n{}\n```\n\n", examples::STATUS.trim());
    for (path, field) in &of_status {
        describe(path, field, &mut text);
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// The anchor of a heading that is a path in code.
fn slug(path: &str) -> String {
    path.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase()
}

fn describe(path: &str, Field { schema, required }: &Field, text: &mut String) {
    let _ = write!(text, "### `{path}`\n\n*{}", type_of(schema));
    if *required {
        text.push_str(", required");
    }
    if let Some(default) = default_of(schema) {
        let _ = write!(text, ", by default* `{default}`");
    } else {
        text.push('*');
    }
    let _ = write!(text, "\n\n{}\n\n", description(schema));
    list("Limits:", &limits(schema), text);
    list("Refused with the words:", &all_rules(schema), text);
}

fn list(title: &str, lines: &[String], text: &mut String) {
    if lines.is_empty() {
        return;
    }
    let _ = write!(text, "{title}\n\n");
    for line in lines {
        let _ = writeln!(text, "- {line}");
    }
    text.push('\n');
}

fn description(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().to_owned()
}

fn first_sentence(text: &str) -> String {
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let end = paragraph.match_indices(". ").map(|(at, _)| at).next();
    crate::cell(end.map_or(paragraph, |end| &paragraph[..=end]))
}

fn default_of(schema: &Value) -> Option<String> {
    match &schema["default"] {
        Value::Null => (schema["type"] == "boolean").then(|| "false".to_owned()),
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

fn type_of(schema: &Value) -> String {
    if schema["x-kubernetes-int-or-string"] == true {
        return "integer or string".to_owned();
    }
    match schema["type"].as_str().unwrap_or_default() {
        "array" => format!("list of {}s", type_of(&schema["items"])),
        "object" if schema["additionalProperties"].is_object() => {
            format!("map of {}s", type_of(&schema["additionalProperties"]))
        }
        plain => plain.to_owned(),
    }
}

/// The limits that the schema has without a rule.
fn limits(schema: &Value) -> Vec<String> {
    let mut limits = Vec::new();
    if let Some(choices) = schema["enum"].as_array() {
        let choices: Vec<_> = choices.iter().filter_map(Value::as_str).map(|choice| format!("`{choice}`")).collect();
        limits.push(format!("one of {}", choices.join(", ")));
    }
    for (least, most, of) in [
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " items"),
        ("minProperties", "maxProperties", " pairs"),
    ] {
        match (schema[least].as_i64(), schema[most].as_i64()) {
            (None, None) => {}
            (Some(least), None) => limits.push(format!("at least {least}{of}")),
            (None, Some(most)) => limits.push(format!("at most {most}{of}")),
            (Some(least), Some(most)) => limits.push(format!("{least} to {most}{of}")),
        }
    }
    match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => limits.push("no two alike".to_owned()),
        Some("map") => {
            let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let keys: Vec<_> = keys.map(|key| format!("`{key}`")).collect();
            limits.push(format!("no two with the same {}", keys.join(" and ")));
        }
        _ => {}
    }
    for inner in ["items", "additionalProperties"] {
        if schema[inner].is_object() && schema[inner]["properties"].is_null() {
            limits.extend(self::limits(&schema[inner]).into_iter().map(|limit| format!("each: {limit}")));
        }
    }
    limits
}

/// What the rules of the schema, and of each item or value, say to whoever breaks them.
fn all_rules(schema: &Value) -> Vec<String> {
    [schema, &schema["items"], &schema["additionalProperties"]].into_iter().flat_map(rules).collect()
}

/// What the rules of the schema say to whoever breaks them.
fn rules(schema: &Value) -> impl Iterator<Item = String> {
    let rules = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
    rules.filter_map(|rule| rule["message"].as_str()).map(|message| message.replace('*', "\\*").replace('<', "&lt;"))
}
