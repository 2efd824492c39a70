//! The document `docs/readers.md`, made of what the readers saw.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Completion, Failed};
use serde_json::Value;

use crate::Results;
use crate::coredns::BLOCK;
use crate::install::{PACKAGE, PYTHON, PYTHON_CONSUL};
use crate::readers::{READERS, Reader};
use crate::setting::{Setting, WHOLE};
use crate::steps::Seen;

const HINT: &str = "docs/readers.md is not current: run this test with LICTOR_UPDATE=1";

/// Compares a reader's row with what it saw, once it was asked in every setting.
pub(crate) fn check_row(reader: &Reader, seen: &BTreeMap<Setting, Seen>) -> Result<()> {
    let row = row(reader, seen)?;
    let current = is_update() || there()?.contains(&row);
    ensure!(current, "{HINT}. The row would be:\n{row}");
    Ok(())
}

/// Compares the file with what was seen, or writes it.
pub(crate) fn check(results: &Results) -> Result<Completion, Failed> {
    compare(results).map_err(|error| format!("{error:#}").into())
}

fn compare(results: &Results) -> Result<Completion> {
    let mut wanted = BEGIN.to_owned();
    for (number, reader) in READERS.iter().enumerate() {
        match results.get(&number).filter(|seen| reader.was_asked_everywhere(seen)) {
            Some(seen) => wanted.push_str(&row(reader, seen)?),
            None if is_update() => {
                bail!("docs/readers.md is written only if every reader was asked, unlike {}", reader.title)
            }
            None => return Ok(Completion::ignored_with(format!("{} was not asked", reader.title))),
        }
    }
    wanted.push_str(&END.replace("SETTINGS", WHOLE).replace("BLOCK", BLOCK));
    if is_update() {
        std::fs::write(path(), wanted)?;
        return Ok(Completion::Completed);
    }
    ensure!(there()? == wanted, "{HINT}. It would be:\n{wanted}");
    Ok(Completion::Completed)
}

fn is_update() -> bool {
    std::env::var_os("LICTOR_UPDATE").is_some()
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/readers.md")
}

fn there() -> Result<String> {
    std::fs::read_to_string(path()).context("reading docs/readers.md")
}

fn row(reader: &Reader, seen: &BTreeMap<Setting, Seen>) -> Result<String> {
    let at = |setting| seen.get(&setting).context("a setting in which it was not asked");
    let (agent, catalog) = (at(Setting::Agent)?, at(Setting::Catalog)?);
    ensure!(agent == catalog, "{} sees another thing in each mode: {seen:?}", reader.title);
    let whole = if reader.dns {
        let whole = at(Setting::Whole)?;
        let alike = Seen { hundred: agent.hundred, ..whole.clone() };
        ensure!(alike == *agent, "{} sees another thing once DNS is set: {seen:?}", reader.title);
        whole.hundred.to_string()
    } else {
        "-".to_owned()
    };
    let handed_out = |handed_out| if handed_out { "yes" } else { "no" };
    let unready = if agent.unready { "**yes**" } else { "no" };
    let ports = if reader.ports { "yes" } else { "no" };
    Ok(format!(
        "| {} | {} | {unready} | {} | {ports} | {} | {} | {whole} | {} |\n",
        reader.title,
        version(reader.version)?,
        handed_out(agent.warning),
        agent.six,
        agent.hundred,
        reader.note
    ))
}

/// The pinned version of a package; words with a space stand for themselves.
fn version(package: &str) -> Result<String> {
    if let Some(name) = package.strip_prefix("npm ") {
        let package: Value = serde_json::from_str(PACKAGE)?;
        return Ok(package["dependencies"][name].as_str().context("an npm package without a pin")?.to_owned());
    }
    if package.contains(' ') || package.ends_with("own") {
        return Ok(package.to_owned());
    }
    let requirement =
        PYTHON.lines().chain(PYTHON_CONSUL.lines()).find_map(|line| line.strip_prefix(package)?.strip_prefix("=="));
    if let Some(version) = requirement {
        return Ok(version.to_owned());
    }
    let module = if package == "consul" { "github.com/hashicorp/consul" } else { package };
    let folder = match package {
        "consul" => "consul",
        "github.com/hashicorp/consul-template" => "consul-template",
        "github.com/coredns/coredns" => "coredns",
        _ => "reader",
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testbed/programs").join(folder).join("go.mod");
    let pins = std::fs::read_to_string(&path)?;
    let mut lines = pins.lines().map(|line| line.trim().trim_start_matches("require "));
    let version = lines.find_map(|line| line.strip_prefix(module)?.strip_prefix(" v")?.split_whitespace().next());
    Ok(version.with_context(|| format!("{package} is not in {}", path.display()))?.to_owned())
}

const BEGIN: &str = "\
<!-- generated from what real programs saw in the tests; `LICTOR_UPDATE=1 cargo test --test readers` writes it anew -->
# Readers

This page shows what programs and libraries see when they read Lictor's instances from Consul. The test `tests/readers` asks each of them, in both modes.
Of three ready instances, each sees all three. After a rolling restart, it sees only the three new ones. There is one exception: in `catalog` mode, a
client that asks for SRV over UDP may see [two of three](#large-answers).

| column | question |
| --- | --- |
| not ready | Does the reader hand out an instance that is not ready? Its check is critical. |
| warning | Does the reader hand out an instance with a check that warns? |
| ports | Does the reader learn the port of each instance? If not, the client must know it, and all instances must have the same one. |
| IPv6 | How does the reader show an IPv6 address? |
| of 100 | How many of 100 instances does the reader see, with Consul's defaults? |
| of 100, set | How many does it see with [these settings of DNS](#large-answers)? `-`: the reader does not use DNS. |

| reader | version | not ready | warning | ports | IPv6 | of 100 | of 100, set | what to set, what to know |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
";

const END: &str = "
## Not ready

With `readiness: Mirror`, the default, an instance that is not ready stays in Consul, with a critical check. DNS leaves it out. Clients of
Consul's API must ask for passing instances. If a client cannot do this, set `readiness: Deregister` in the resource. Then an instance is in Consul
only while its pod is ready.

In three cases an instance has no check, unless the resource has `checks`: with `readiness: Deregister`, with `readiness: Ignore`, and with a `static`
source. Consul's DNS and `/v1/health/service` hand out such an instance. A reader of the list of checks (`/v1/health/state/…`), such as Fabio, does not
see it. For such a reader, use `Mirror` or add a check.

## Large answers

Over UDP without EDNS, Consul answers at most three records. With EDNS, the client says how many bytes an answer may have. Consul leaves out the
other records. By default, it does not say that there are more. A resolver then takes these records for the whole answer, and may also give them to
clients that ask over TCP.

[`lictor doctor`](operations.md#is-everything-there) notes the services of which this happens with SRV answers.

If a service has more than three instances and is found by DNS, set this in the Consul servers and agents that answer DNS:

```hcl
SETTINGS```

The second setting matters in `catalog` mode: see [Consul's DNS](operations.md#consuls-dns). Without it, the test's clients that ask for SRV over UDP
see two of three instances.

With `enable_truncate`, BIND 9.18 fails if a service has more than 100 instances. Set `max-records-per-type 0` in BIND.

## DNS of the cluster

Pods can look up names of Consul if the cluster's DNS forwards them to Consul. With CoreDNS, add this block next to the block of the cluster. Replace the
address with that of your Consul:

```
BLOCK```

Do not use the plugin `cache` in this block. Consul's answers have a TTL of 0, so nobody should keep them, but `cache` keeps them for 5 seconds. It also
keeps the answer that a name does not exist. So clients would call pods that are gone. With `force_tcp`, CoreDNS always gets the whole answer
from Consul. For unbound, set `stub-tcp-upstream: yes`.

## Readers without a test

These were tried once, by hand, with Consul 1.22.7. No test repeats it.

| reader | version | what to know, what to set |
| --- | --- | --- |
| Spring Cloud Consul | 5.0.4 | It hands out instances that are not ready. Set `spring.cloud.consul.discovery.query-passing=true`, or `readiness: Deregister` in the resource |
| Micronaut's discovery client | 4.7.2 | It asks for `user-service` if you ask for `user_service`. Use a Consul name with hyphens. IPv6 does not work |
| HAProxy `server-template` with SRV | 2.6.12 | It divides weights by 256: use multiples of 256. Set `accepted_payload_size 8192`, or it sees three of many |
| hickory-resolver (Rust) | 0.26.3 | It refuses a name that has an underscore. Make the name with `Name::from_ascii`, or use a Consul name with hyphens. Set `enable_truncate = true` in Consul |
| go-kit `sd/consul` | 0.13.0 | It writes an IPv6 address without brackets, so nobody can connect to it |
| unbound, stub zone | 1.17.1 | It sees 74 `A` or 19 `SRV` records of many. Set `enable_truncate = true` in Consul, or `stub-tcp-upstream: yes` |
| PowerDNS Recursor, forward zone | 4.8.8 | As unbound. Set `enable_truncate = true` in Consul. It keeps answers for 1 second |
| BIND, forward zone | 9.18.49 | As unbound. Set `enable_truncate = true` in Consul, and `max-records-per-type 0` in BIND |
| dnsmasq, `server=/consul/` | 2.90 | Nothing to set. It keeps no answers |
";
