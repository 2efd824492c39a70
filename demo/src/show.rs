//! How the story is printed: a heading for each step, commands behind a `$`, their output indented.

use std::io::IsTerminal;
use std::time::Duration;

/// Bold on a terminal, unless <https://no-color.org> is asked for.
fn bold(text: &str) -> String {
    if std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        format!("\u{1b}[1m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}

/// Begins a step.
pub fn heading(text: &str) {
    println!("{}\n", bold(&format!("── {text} ──")));
}

/// Says something in plain words: a paragraph.
pub fn say(text: &str) {
    println!("{text}\n");
}

/// A command as a user would type it, and what it printed.
pub fn command(command: &str, output: &str) {
    println!("  {}", bold(&format!("$ {command}")));
    for line in output.trim_end().lines() {
        println!("  {line}");
    }
    println!();
}

/// A time in the unit that suits it.
pub fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 1.0 { format!("{:.0} ms", seconds * 1000.0) } else { format!("{seconds:.1} s") }
}
