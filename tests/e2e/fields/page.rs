//! The page `docs/fields.md`, made of the very list that is held against Consul.

use std::fmt::Write as _;

use super::lines::{Line, Step, Wanted};
use super::reading::NOTHING;
use crate::fixture::Mode;

const HEAD: &str = "<!-- generated from tests/e2e/fields/; `LICTOR_UPDATE=1 cargo test --test e2e fields::the_page_is_current` writes \
                    it anew -->\n\
                    # Fields\n\n\
                    This page shows what Consul has for each field of `spec`, after the resource was created and after it was \
                    edited, in each mode of registration. A test makes all of it: it applies the resource to a real Kubernetes API \
                    server, and runs the operator's own program. The last two columns are read from a real Consul's \
                    `/v1/health/service` (`Agent`: from its `/v1/agent/checks`). After the resource is deleted, the test checks that \
                    only what `deletionPolicy` says is left.\n\n\
                    An agent does not show what a check sends, and how often it may fail. For such fields, the column shows what \
                    reached the server, or how many runs it took. If Lictor refuses the field with a condition, the cell links to the \
                    [message](#refused), and what was registered stays.\n\n\
                    The column \"in the resource\" shows only the fields that matter. If `source` is not shown, it is one static \
                    address. `ADDRESS` and `PORT` are those of the instance, and `OTHER` is another port of it. The pods `web-0` \
                    (ready) and `web-1` (not ready) are behind the Service `web`. The pod `green-0` is behind the Services `green` and \
                    `two`. Lictor ran without `--class`, and in `catalog` mode with `--consul-esm`.\n\n\
                    | field | | in the resource | `agent` | `catalog` |\n| --- | --- | --- | --- | --- |\n";

/// The whole page.
pub(crate) fn document(lines: &[Line]) -> String {
    let mut text = HEAD.to_owned();
    let mut refusals = Vec::new();
    for line in lines {
        let mut field = format!("[`{}`](reference.md#{})", &line.field["spec.".len()..], anchor(line.field));
        for (number, step) in line.steps.iter().enumerate() {
            let given = step.yaml.strip_prefix('{').and_then(|yaml| yaml.strip_suffix('}')).unwrap_or(step.yaml);
            let given = if given.is_empty() { "*left out*".to_owned() } else { format!("`{given}`") };
            let agent = cell(line, step, Mode::Agent, &mut refusals);
            let catalog = cell(line, step, Mode::Catalog, &mut refusals);
            let catalog = if agent == catalog { "the same".to_owned() } else { catalog };
            let _ = writeln!(text, "| {field} | {} | {given} | {agent} | {catalog} |", line.step_name(number));
            field.clear();
        }
    }
    text.push_str("\n## Refused\n\n`Accepted` is `False`, for the reason `NotSupported`:\n\n");
    for (number, why) in refusals.iter().enumerate() {
        let _ = writeln!(text, "{}. {why}", number + 1);
    }
    let steps: usize = lines.iter().map(|line| line.steps.len()).sum();
    let _ = writeln!(text, "\n{} fields, {} edits, in two modes.", lines.len(), steps - lines.len());
    text
}

fn cell(line: &Line, step: &Step, mode: Mode, refusals: &mut Vec<String>) -> String {
    match (step.wanted(mode), line.reading.path(mode)) {
        (Wanted::Shown(shown), Some(path)) if *shown != NOTHING => format!("`{path}: {shown}`"),
        (Wanted::Shown(shown), _) => (*shown).to_owned(),
        (Wanted::Refused(why), _) => {
            let number = refusals.iter().position(|known| known == why).unwrap_or_else(|| {
                refusals.push(why.clone());
                refusals.len() - 1
            });
            format!("refused, [{}](#refused)", number + 1)
        }
    }
}

/// Where the reference has a field.
fn anchor(field: &str) -> String {
    field.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase()
}
