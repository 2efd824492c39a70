//! The document `docs/checks.md`, made from what the listeners and Consul have recorded.

use std::fmt::Write as _;
use std::path::Path;

/// A check that was run.
pub(crate) struct Line {
    /// As the author writes it.
    pub(crate) check: String,
    /// What reached the listener.
    pub(crate) heard: String,
    /// Why it is refused where consul-esm runs the checks.
    pub(crate) refused_by_esm: Option<String>,
}

/// Something that a field or an answer makes Consul do.
pub(crate) struct Effect {
    pub(crate) of: String,
    pub(crate) seen: String,
}

/// The whole document.
pub(crate) fn document(lines: &[Line], answers: &[Effect], fields: &[Effect]) -> String {
    let mut text = String::from(
        "<!-- generated from what a real Consul did in the tests; `LICTOR_UPDATE=1 cargo test --test checks` writes it \
         anew -->\n\
         # Checks\n\n\
         What a check in `spec.checks` makes Consul do, as recorded by a server that was asked. Each of these was seen \
         to pass, to go critical when the server failed, and to pass again when it was well.\n\n\
         ## What arrives\n\n\
         An agent sends all of them. With `--registration=catalog --consul-esm` those with a no in the last column are \
         refused: `Accepted=False`, reason `NotSupported`. Every request over HTTP also has \
         `Accept: text/plain, text/*, */*`, `User-Agent: Consul Health Check` and the instance's address and port as its \
         `Host`, unless the resource names them.\n\n\
         | in the resource | what reached the instance | with consul-esm |\n| --- | --- | --- |\n",
    );
    for Line { check, heard, refused_by_esm } in lines {
        let esm = refused_by_esm.as_ref().map_or_else(|| "yes".to_owned(), |why| format!("no: it {why}"));
        let _ = writeln!(text, "| `{check}` | {heard} | {esm} |");
    }
    let mut table = |title: &str, head: &str, effects: &[Effect]| {
        let _ = write!(text, "\n## {title}\n\n| {head} |\n| --- | --- |\n");
        for Effect { of, seen } in effects {
            let _ = writeln!(text, "| `{of}` | {seen} |");
        }
    };
    table("What an answer means to an `http` check", "answer | the check is", answers);
    table("The fields of every check", "in the resource | what an agent did", fields);
    text.push_str(NOTES);
    text
}

/// What there is to know besides; each is tested beside the tables.
const NOTES: &str = "
## What to know besides

- A new check of an instance begins with what Kubernetes says: passing if the pod is ready, critical if not. An edit of
  a check keeps its state until the next run. Another kind under the same name is another check.
- The thresholds count from the second run on: the first run of a new check decides at once, and so does, where an agent
  runs it, the first after an edit of anything of its instance.
- A `udp` check is for servers that answer, whatever they say. One that never answers is asked once, and then never
  again: Consul waits for the answer without end, and the check stays as it was.
- An agent does not follow redirects. consul-esm does, also to other hosts, and has no setting for it: whoever answers a check can have it
  sent on. Let consul-esm connect to the networks of the instances and to Consul only, by a NetworkPolicy or a firewall.
- consul-esm begins with a new check, or an edited one, within about ten seconds. The time-out of an `http` check with
  `headers` is shown longer there by less than a millisecond: that makes consul-esm notice every change of the headers.
- With TLS, an agent trusts the authorities of its system or, with `enable_agent_tls_for_checks`, its own; consul-esm
  those of its `https_ca_file`.
";

/// Compares the file with what was recorded, or writes it.
pub(crate) fn check(wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/checks.md");
    if std::env::var_os("LICTOR_UPDATE").is_some() {
        std::fs::write(&path, wanted).unwrap();
        return;
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == wanted,
        "{} is not current: run this test with LICTOR_UPDATE=1. It would be:\n{wanted}",
        path.display()
    );
}
