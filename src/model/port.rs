//! The port of a source, as specs and statuses name it.

use super::ids::Str;

/// The port of a source that is registered although the spec names none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortInUse {
    /// The source, as in meta `lictor-source`.
    pub source: Str,
    /// Its port, as a spec would name it: a Service's by the Service's own number where it has no name.
    pub port: PortRef,
}

/// A port of the source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortRef {
    /// By the name of the Service's port, or of the container's.
    Name(Str),
    /// By the Service's own port number, as an Ingress does; of a pod, the pod's own.
    Number(u16),
}
