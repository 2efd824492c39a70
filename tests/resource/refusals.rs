//! The page of everything that is refused: by the apiserver at once, or by Lictor with a condition.

use std::fmt::Write as _;

use anyhow::{Result, anyhow, ensure};
use kube::core::Status;

use crate::conditioned::{self, How};
use crate::fixture::{self, Fixture};
use crate::{check_page, code, file, refused};

/// A line of the first table.
struct Answer {
    row: refused::Row,
    message: String,
}

#[tokio::test]
async fn what_is_refused_is_refused_in_the_words_of_the_page() -> Result<()> {
    let fixture = Fixture::make().await?;
    let mut sections = Vec::new();
    for (title, rows) in refused::sections() {
        let mut answers = Vec::new();
        for row in rows {
            let spec = if row.whole { serde_saphyr::from_str(&row.yaml)? } else { fixture::spec(&row.yaml) };
            let message = match fixture.create(row.resource, &spec).await? {
                Ok(_) => return Err(anyhow!("{title}: {} is not refused: {}", row.what, row.yaml)),
                Err(status) => told(&status, row.resource),
            };
            let words = row.words;
            ensure!(message.contains(words), "{title}: {}: not refused with {words:?}, but:\n{message}", row.what);
            answers.push(Answer { row, message });
        }
        sections.push((title, answers));
    }
    fixture.clear_away().await;
    // Another apiserver may choose other words for what it checks by itself.
    if std::env::var_os("KUBECONFIG").is_none() || std::env::var_os("LICTOR_UPDATE").is_some() {
        check_page("docs/refusals.md", &page(&sections));
    }
    Ok(())
}

#[test]
fn what_gets_a_condition_gets_that_of_the_page() {
    let mut wrong = Vec::new();
    for row in conditioned::rows() {
        let How::Conversion(setup) = row.how else { continue };
        assert_eq!(row.condition, "Accepted", "{}: the spec alone decides on nothing else", row.what);
        let told = conditioned::refusal(&row, setup).map(|refusal| (refusal.reason, refusal.message));
        if told.as_ref().map(|(reason, message)| (*reason, message.as_str())) != Some((row.reason, row.message)) {
            wrong.push(format!("{}: {told:#?}", row.what));
        }
    }
    assert!(wrong.is_empty(), "not as the page says:\n{}", wrong.join("\n"));
}

#[test]
fn what_is_said_to_be_tested_end_to_end_is() {
    let scenarios = std::fs::read_to_string(file("docs/scenarios.md")).unwrap();
    for row in conditioned::rows() {
        if let How::EndToEnd(scenario) = row.how {
            assert!(scenarios.contains(&format!("`{scenario}`")), "{}: there is no scenario {scenario}", row.what);
        }
    }
}

#[test]
fn every_reason_is_in_the_page_of_conditions() {
    let conditions = std::fs::read_to_string(file("docs/conditions.md")).unwrap();
    for row in conditioned::rows() {
        assert!(
            conditions.contains(&format!("| `{}` |", row.reason)),
            "docs/conditions.md does not say {}",
            row.reason
        );
    }
}

#[tokio::test]
async fn what_gets_a_condition_gets_by_the_apiserver() -> Result<()> {
    let fixture = Fixture::make().await?;
    for row in conditioned::rows() {
        fixture.accepts(&fixture::spec(&row.yaml)).await?;
    }
    fixture.clear_away().await;
    Ok(())
}

/// The apiserver's words, as `kubectl` prints them, but for the name of the resource. What is wrong with several
/// fields comes in any order, so it is sorted.
fn told(status: &Status, resource: &str) -> String {
    let causes = status.details.as_ref().map(|details| &details.causes[..]).unwrap_or_default();
    if causes.is_empty() {
        let about = format!("ConsulService.lictor.dev \"{resource}\" is invalid: ");
        return status.message.strip_prefix(&about).unwrap_or(&status.message).to_owned();
    }
    let causes = causes.iter().filter(|cause| !cause.message.contains(NOT_CHECKED));
    let mut lines: Vec<_> = causes.map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
    lines.sort();
    lines.join("; ")
}

/// What the apiserver adds where a field breaks a limit that comes before all rules. The page says so once.
const NOT_CHECKED: &str = "some validation rules were not checked because the object was invalid; correct the existing \
                           errors to complete validation";

fn page(sections: &[(&str, Vec<Answer>)]) -> String {
    let conditioned = conditioned::rows();
    let at_once: usize = sections.iter().map(|(_, answers)| answers.len()).sum();
    let mut text = format!(
        "<!-- generated from tests/resource/; `LICTOR_UPDATE=1 cargo test --test resource refusals` writes it anew -->\n\
         # What is refused\n\n\
         The API server refuses {at_once} of these examples: `kubectl apply` fails, and nothing changes. It accepts the other {}, \
         and [Lictor answers with a condition](#by-lictor-with-a-condition). Each example is tested; the answers of the API \
         server are those of a real one.\n\n\
         The tables show only the fields of `spec` that matter, in one line. Long texts are cut. `kubectl` puts the \
         resource's name before each answer. If a field is missing, has the wrong type, is too long or is not one of the \
         allowed values, the API server checks nothing else, and adds: \"{NOT_CHECKED}\".\n\n\
         ## By the API server, at once\n",
        conditioned.len()
    );
    for (title, answers) in sections {
        let _ = write!(text, "\n### {title}\n\n| | for example | the answer |\n| --- | --- | --- |\n");
        for Answer { row, message } in answers {
            let shown = row.shown.clone().unwrap_or_else(|| row.yaml.replace('\n', "  "));
            let shown = if row.resource == "user" || row.shown.is_some() {
                shown
            } else {
                format!("metadata: {{name: {}}}  {shown}", row.resource)
            };
            let _ = writeln!(text, "| {} | {} | {} |", row.what, code(&shortened(&shown)), words(message));
        }
    }
    text.push_str(
        "\n## By Lictor, with a condition\n\n\
         What only Lictor can judge: what depends on its flags, on its version and on what else there is. What was \
         registered stays. [Conditions](conditions.md) says what to do about each.\n\n\
         | | for example | with | condition | reason | message |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    for row in conditioned {
        let flags = row.with.map(code).unwrap_or_default();
        let (shown, message) = (code(&shortened(&row.yaml.replace('\n', "  "))), words(row.message));
        let (what, condition, reason) = (row.what, row.condition, row.reason);
        let _ = writeln!(text, "| {what} | {shown} | {flags} | `{condition}=False` | `{reason}` | {message} |");
    }
    text
}

/// A message in a cell of a table, as it is: nothing in it is Markdown or HTML.
fn words(message: &str) -> String {
    let mut text = String::new();
    for c in shortened(message).chars() {
        match c {
            '<' => text.push_str("&lt;"),
            '*' | '_' | '`' | '[' | ']' | '|' | '\\' | '$' => {
                text.push('\\');
                text.push(c);
            }
            c if c.is_control() => text.extend(c.escape_default()),
            c => text.push(c),
        }
    }
    text
}

/// A text without the length of what is long only to be too long.
fn shortened(text: &str) -> String {
    const MOST: usize = 24;
    let mut short = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let run = rest.chars().take_while(|c| *c == first).count();
        let (same, others) = rest.split_at(run * first.len_utf8());
        if run > MOST {
            let _ = write!(short, "{first}{first}{first}…");
        } else {
            short.push_str(same);
        }
        rest = others;
    }
    short
}
