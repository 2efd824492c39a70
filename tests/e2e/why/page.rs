//! The table of `docs/why.md`, made of the very list that is planted.

use std::fmt::Write as _;

use super::troubles::Trouble;

/// Between these the page is generated.
const BEGIN: &str = "<!-- generated from tests/e2e/why/troubles.rs; `LICTOR_UPDATE=1 cargo test --test e2e \
                     why::the_page_is_current` writes it anew -->\n";
const END: &str = "<!-- end of what is generated -->\n";

/// The page with a table of these troubles in it.
pub(crate) fn document(page: &str, troubles: &[Trouble]) -> String {
    let (head, rest) = page.split_once(BEGIN).unwrap_or((page, ""));
    let tail = rest.split_once(END).map_or("", |(_, tail)| tail);
    let mut table =
        String::from("| what is wrong | what is typed | what decides in the answer |\n| --- | --- | --- |\n");
    for trouble in troubles {
        let lines: Vec<String> = trouble.lines.iter().map(|line| format!("`{}`", shown(line))).collect();
        let _ = writeln!(
            table,
            "| {} | `lictor why {}` | exit code {}<br>{} |",
            trouble.planted,
            trouble.typed,
            trouble.code,
            lines.join("<br>")
        );
    }
    format!("{head}{BEGIN}{table}\n{} troubles, each in both modes of registration.\n{END}{tail}", troubles.len())
}

/// A line as code in a table: the marks have one space behind them there.
fn shown(line: &str) -> String {
    line.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
