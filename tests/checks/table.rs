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
         This page shows what Consul does for each check in `spec.checks`, as recorded by the server that Consul \
         asked. The test has seen each check pass, become critical when the server failed, and pass again when the \
         server worked.\n\n\
         ## What arrives\n\n\
         An agent runs all of these checks. With `--registration=catalog --consul-esm`, Lictor refuses those with a \
         \"no\" in the last column: `Accepted=False`, reason `NotSupported`. Every HTTP request also has `Accept: \
         text/plain, text/*, */*`, `User-Agent: Consul Health Check`, and the instance's address and port as its \
         `Host`, unless the resource sets these headers.\n\n\
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
## What else to know

- A new check begins with the readiness of the pod: passing if the pod is ready, critical if not. An edited check keeps its
  state until the next run. A check of another kind under the same name is a new check.
- The thresholds count from the second run on. The first run of a new check decides at once. If an agent runs the check, the
  first run after an edit of its instance also decides at once.
- Use a `udp` check only for servers that answer. Any answer passes. If a server never answers, Consul asks it once and waits
  for the answer without end. The check stays as it was.
- An agent does not follow redirects. consul-esm does, also to other hosts, and has no setting for it. So the server that answers a
  check can redirect it. Let consul-esm connect only to the networks of the instances and to Consul, with a NetworkPolicy or a
  firewall.
- consul-esm starts a new or edited check within about ten seconds. For an `http` check with `headers`, Consul shows a timeout
  that is longer by less than a millisecond. With that, consul-esm notices every change of the headers.
- With TLS, an agent trusts the CA certificates of its system. With `enable_agent_tls_for_checks` it trusts its own CA.
  consul-esm trusts the CA certificates in its `https_ca_file`.
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
