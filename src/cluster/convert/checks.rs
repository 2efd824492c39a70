//! The checks that Consul is to run.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Rules, invalid, not_supported, port, refuse};
use crate::cluster::api::{self, TlsOptions};
use crate::model::check::{Check, CheckSpec, Probe, Tls, milliseconds};
use crate::model::ids::{READINESS, Str};
use crate::model::reasons::Refusal;

/// Consul runs a check at most once a second.
const LEAST_INTERVAL: u64 = 1_000;
/// The time-out of a check whose interval is longer, in milliseconds: as Consul's own for HTTP.
const DEFAULT_TIMEOUT: u64 = 10_000;

/// Says who runs the checks of registrations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChecksRunBy {
    /// The agent that has the registration: every check.
    Agent,
    /// consul-esm, after what the catalog says: some of what an agent does.
    Esm,
    /// The catalog alone runs none.
    #[default]
    Nobody,
}

/// The checks of a spec, in its order.
pub(super) fn checks(checks: Vec<api::Check>, rules: &Rules) -> Result<Vec<CheckSpec>, Refusal> {
    if !checks.is_empty() && rules.checks == ChecksRunBy::Nobody {
        return not_supported(
            "spec.checks with --registration=catalog, where nothing runs them (readiness works; remove the checks, or \
             have the administrator run consul-esm and start Lictor with --consul-esm)",
        );
    }
    let mut names = BTreeSet::new();
    checks
        .into_iter()
        .map(|given| {
            if given.name == READINESS || !names.insert(given.name.clone()) {
                return invalid(format!("spec.checks: the name {:?} is taken: choose another", given.name));
            }
            let check = check(given)?;
            match unknown_to_esm(&check.check).filter(|_| rules.checks == ChecksRunBy::Esm) {
                Some(what) => refuse(
                    "NotSupported",
                    format!("spec.checks {:?}: consul-esm, which runs the checks here, {what}", &*check.check.name),
                ),
                None => Ok(check),
            }
        })
        .collect()
}

/// Says what consul-esm (as of v0.11, `check.go`) does not do of a check, and what to do instead.
fn unknown_to_esm(check: &Check) -> Option<&'static str> {
    match &check.probe {
        Probe::Udp => return Some("has no udp checks: choose http, tcp or grpc"),
        Probe::H2Ping { .. } => return Some("has no h2ping checks: choose http, tcp or grpc"),
        Probe::Http { body, .. } if !body.is_empty() => return Some("sends no body: remove http.body"),
        Probe::Tcp { tls: Some(_) } => return Some("makes no TLS handshake in a tcp check: remove tcp.useTLS"),
        Probe::Http { .. } | Probe::Tcp { tls: None } | Probe::Grpc { .. } => {}
    }
    if check.success_before_passing > 0 {
        return Some("has one passing_threshold for all checks: remove successBeforePassing");
    }
    if check.failures_before_critical > 0 || check.failures_before_warning.is_some_and(|failures| failures > 0) {
        return Some(
            "has one critical_threshold for all checks: remove failuresBeforeWarning and failuresBeforeCritical",
        );
    }
    None
}

fn check(given: api::Check) -> Result<CheckSpec, Refusal> {
    let name = given.name;
    let Some(interval) = milliseconds(&given.interval).filter(|interval| *interval >= LEAST_INTERVAL) else {
        return invalid(format!(
            "spec.checks {name:?}: interval {:?}: write 1s or more, like 10s or 1m30s",
            given.interval
        ));
    };
    let timeout = match given.timeout.as_deref() {
        None => format!("{}ms", interval.min(DEFAULT_TIMEOUT)),
        Some(text) if milliseconds(text).is_some_and(|timeout| (1..=interval).contains(&timeout)) => text.to_owned(),
        Some(text) => {
            return invalid(format!(
                "spec.checks {name:?}: timeout {text:?}: write more than 0s and at most the interval"
            ));
        }
    };
    // Consul's own headers tell its API how to answer: a check that carries one asks an agent, not a service.
    let headers = given.http.iter().flat_map(|http| &http.headers);
    if let Some(header) = headers.into_iter().find(|header| header.name.to_ascii_lowercase().starts_with("x-consul-")) {
        return invalid(format!(
            "spec.checks {name:?}: the header {:?} is for Consul's own API: choose another name",
            header.name
        ));
    }
    // The path follows the instance's address in a URL: "@other:80" would make that address a user's name.
    if let Some(http) = given.http.as_ref().filter(|http| !http.path.starts_with('/')) {
        return invalid(format!("spec.checks {name:?}: the path {:?} does not begin with '/'", http.path));
    }
    let probe = match (given.http, given.tcp, given.grpc, given.udp, given.h2ping) {
        (Some(http), None, None, None, None) => Probe::Http {
            path: http.path.into(),
            method: http.method.into(),
            headers: http.headers.into_iter().map(|header| (header.name.into(), header.value.into())).collect(),
            body: http.body.unwrap_or_default().into(),
            tls: tls(http.scheme == api::Scheme::Https, http.tls),
        },
        (None, Some(tcp), None, None, None) => Probe::Tcp { tls: tls(tcp.use_tls, tcp.tls) },
        (None, None, Some(grpc), None, None) => {
            Probe::Grpc { service: grpc.service.unwrap_or_default().into(), tls: tls(grpc.use_tls, grpc.tls) }
        }
        (None, None, None, Some(api::UdpCheck {}), None) => Probe::Udp,
        (None, None, None, None, Some(h2ping)) => Probe::H2Ping { tls: tls(h2ping.use_tls, h2ping.tls) },
        _ => return invalid(format!("spec.checks {name:?}: set exactly one of http, tcp, grpc, udp, h2ping")),
    };
    let check = Check {
        name: name.into(),
        probe,
        interval: given.interval.into(),
        timeout: timeout.into(),
        success_before_passing: given.success_before_passing.unwrap_or_default(),
        failures_before_warning: given.failures_before_warning,
        failures_before_critical: given.failures_before_critical.unwrap_or_default(),
        notes: given.notes.map(Str::from).unwrap_or_default(),
    };
    Ok(CheckSpec { port: given.port.map(port).transpose()?, check: Arc::new(check) })
}

fn tls(on: bool, options: TlsOptions) -> Option<Tls> {
    let TlsOptions { tls_skip_verify, tls_server_name } = options;
    on.then(|| Tls { skip_verify: tls_skip_verify, server_name: tls_server_name.map(Str::from) })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_consul_esm_does_not_do_is_refused_where_it_runs_the_checks() {
        let given = |what: Value| {
            let mut check = json!({ "name": "c" });
            check.as_object_mut().unwrap().extend(what.as_object().unwrap().clone());
            vec![serde_json::from_value::<api::Check>(check).unwrap()]
        };
        let judged = |what: &Value, checks: ChecksRunBy| {
            super::checks(given(what.clone()), &Rules { checks, ..Rules::default() }).map_err(|refusal| refusal.message)
        };
        let fine = [
            json!({ "http": { "path": "/", "scheme": "https", "tlsSkipVerify": true, "tlsServerName": "a", "body": "" } }),
            json!({ "http": { "headers": [{ "name": "X", "value": "y" }], "method": "HEAD" }, "port": "other" }),
            json!({ "tcp": {}, "successBeforePassing": 0, "failuresBeforeWarning": 0, "failuresBeforeCritical": 0 }),
            json!({ "grpc": { "service": "s", "useTLS": true, "tlsServerName": "a" }, "timeout": "2s" }),
        ];
        let refused = [
            (json!({ "udp": {} }), "no udp"),
            (json!({ "h2ping": {} }), "no h2ping"),
            (json!({ "http": { "body": "x" } }), "http.body"),
            (json!({ "tcp": { "useTLS": true } }), "tcp.useTLS"),
            (json!({ "http": {}, "successBeforePassing": 1 }), "successBeforePassing"),
            (json!({ "grpc": {}, "failuresBeforeCritical": 2 }), "failuresBeforeCritical"),
        ];
        for what in &fine {
            assert!(judged(what, ChecksRunBy::Esm).is_ok(), "{what}");
        }
        for (what, words) in &refused {
            let message = judged(what, ChecksRunBy::Esm).unwrap_err();
            assert!(message.contains(words) && message.contains("consul-esm"), "{message}");
        }
        for what in fine.iter().chain(refused.iter().map(|(what, _)| what)) {
            assert!(judged(what, ChecksRunBy::Agent).is_ok(), "{what}");
            assert!(judged(what, ChecksRunBy::Nobody).unwrap_err().contains("--consul-esm"), "{what}");
        }
    }
}
