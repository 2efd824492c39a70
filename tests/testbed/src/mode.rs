//! The modes of `lictor run --registration`.

use clap::ValueEnum;

/// A place of registrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// One Consul agent.
    Agent,
    /// The catalog of Consul's servers.
    Catalog,
}

impl Mode {
    /// The value of the flag.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Catalog => "catalog",
        }
    }
}
