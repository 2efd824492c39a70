//! The checks that Consul runs against an instance.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::health::Health;
use super::ids::Str;
use super::port::PortRef;

/// A check as a resource asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckSpec {
    /// The port of the instance that it goes to; none for the instance's own.
    pub port: Option<PortRef>,
    /// The check itself.
    pub check: Arc<Check>,
}

/// Says what a check does, the same for all instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Unique in the resource.
    pub name: Str,
    /// Says how it finds out.
    pub probe: Probe,
    /// In Go's notation, such as `10s`; at least a second.
    pub interval: Str,
    /// In Go's notation; at most the interval.
    pub timeout: Str,
    /// Runs in a row that must succeed before it passes.
    pub success_before_passing: u8,
    /// Runs in a row that must fail before it warns; none for as many as before it is critical.
    pub failures_before_warning: Option<u8>,
    /// Runs in a row that must fail before it is critical; with 0 one is enough.
    pub failures_before_critical: u8,
    /// A note for people.
    pub notes: Str,
}

impl Check {
    /// Gives the name that the check has in its ID: its name and its kind. Of another kind it is another check, since
    /// an agent that is given another kind under an ID that it knows runs both, which contradict each other, until the
    /// check is deregistered (Consul's `Agent.addCheck`).
    #[must_use]
    pub fn id_name(&self) -> Str {
        format!("{}:{}", self.name, self.probe.kind()).into()
    }
}

/// Says how a check finds out. The target is always the instance's own address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A request over HTTP.
    Http {
        /// Path and query.
        path: Str,
        /// In upper case.
        method: Str,
        /// In order; a name may come more than once.
        headers: Vec<(Str, Str)>,
        /// The request's body.
        body: Str,
        /// Over TLS, where it is `https`.
        tls: Option<Tls>,
    },
    /// A TCP connection.
    Tcp {
        /// With a TLS handshake.
        tls: Option<Tls>,
    },
    /// The standard gRPC health service.
    Grpc {
        /// The service to ask about; empty for the server as a whole.
        service: Str,
        /// TLS, if it is used.
        tls: Option<Tls>,
    },
    /// A UDP datagram.
    Udp,
    /// An HTTP/2 ping.
    H2Ping {
        /// TLS, if it is used.
        tls: Option<Tls>,
    },
}

impl Probe {
    /// Consul's word for it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Http { .. } => "http",
            Self::Tcp { .. } => "tcp",
            Self::Grpc { .. } => "grpc",
            Self::Udp => "udp",
            Self::H2Ping { .. } => "h2ping",
        }
    }
}

/// Says how a check over TLS trusts the other side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Any certificate will do.
    pub skip_verify: bool,
    /// The name that the certificate must be for; none for the address.
    pub server_name: Option<Str>,
}

/// A check of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedCheck {
    /// The check itself.
    pub check: Arc<Check>,
    /// The port that it goes to.
    pub port: u16,
}

/// All checks that Consul runs against an instance.
///
/// Consul shows that a check is there, but not all of what it does. So two of these are equal if their names
/// are; what the checks do is in the digest that an instance's meta carries.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    names: Arc<BTreeSet<Str>>,
    placed: Arc<[PlacedCheck]>,
    initial: Option<Health>,
}

impl PartialEq for Checks {
    fn eq(&self, other: &Self) -> bool {
        self.names == other.names
    }
}

impl Eq for Checks {}

impl Checks {
    /// The checks to write, and their state until Consul has run them: what Kubernetes knows already.
    #[must_use]
    pub fn new(placed: Vec<PlacedCheck>, initial: Health) -> Self {
        let names = placed.iter().map(|placed| placed.check.id_name()).collect();
        Self { names: Arc::new(names), placed: placed.into(), initial: Some(initial) }
    }

    /// The checks that were read: only the names in their IDs are known.
    #[must_use]
    pub fn read(names: BTreeSet<Str>) -> Self {
        Self { names: Arc::new(names), ..Self::default() }
    }

    /// Their names, as they are in their IDs.
    #[must_use]
    pub fn names(&self) -> &BTreeSet<Str> {
        &self.names
    }

    /// Lists what to write; it is empty for checks that were read.
    #[must_use]
    pub fn placed(&self) -> &[PlacedCheck] {
        &self.placed
    }

    /// Their state until Consul has run them.
    #[must_use]
    pub fn initial(&self) -> Health {
        self.initial.unwrap_or(Health::Critical)
    }

    /// Stands for what the checks do; none where there are none. The same in every run of this version.
    #[must_use]
    pub fn digest(&self) -> Option<Str> {
        if self.placed.is_empty() {
            return None;
        }
        Some(format!("{:016x}", fingerprint(&self.placed)).into())
    }
}

/// A number that stands for a value, the same in every run of this version; a change of form between versions costs
/// one write. `Debug` prints all of what a check does.
#[must_use]
pub fn fingerprint(value: &impl fmt::Debug) -> u64 {
    format!("{value:?}")
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Reads Go's notation of a duration as far as the schema lets it through: `1h`, `1m30s`, `500ms`. None if it is none.
#[must_use]
pub fn milliseconds(text: &str) -> Option<u64> {
    let (mut rest, mut sum) = (text, 0_u64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|&digits| digits > 0)?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..];
        let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
        let (name, factor) = units.into_iter().find(|(name, _)| unit.starts_with(name))?;
        sum = sum.checked_add(number.checked_mul(factor)?)?;
        rest = &unit[name.len()..];
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(name: &str, port: u16, interval: &str) -> PlacedCheck {
        let check = Check {
            name: name.into(),
            probe: Probe::Tcp { tls: None },
            interval: interval.into(),
            timeout: "1s".into(),
            success_before_passing: 0,
            failures_before_warning: None,
            failures_before_critical: 0,
            notes: "".into(),
        };
        PlacedCheck { check: Arc::new(check), port }
    }

    #[test]
    fn equal_by_name_and_told_apart_by_digest() {
        let one = Checks::new(vec![placed("tcp", 80, "10s")], Health::Passing);
        let slower = Checks::new(vec![placed("tcp", 80, "20s")], Health::Critical);
        let elsewhere = Checks::new(vec![placed("tcp", 81, "10s")], Health::Passing);
        assert_eq!(one, slower);
        assert_eq!(one, Checks::read(["tcp:tcp".into()].into()));
        let digests: BTreeSet<_> = [&one, &slower, &elsewhere].map(Checks::digest).into();
        assert_eq!(digests.len(), 3);
        assert_eq!(Checks::default().digest(), None);
    }

    #[test]
    fn durations_are_gos() {
        let table = [("10s", Some(10_000)), ("1m30s", Some(90_000)), ("500ms", Some(500)), ("1h", Some(3_600_000))];
        for (text, expected) in table.into_iter().chain([("", None), ("10", None), ("s", None), ("1d", None)]) {
            assert_eq!(milliseconds(text), expected, "{text}");
        }
    }
}
