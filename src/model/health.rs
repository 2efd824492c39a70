//! The state of a check, and of an instance.

/// The state of a check or, the worst of its checks, of an instance. In order of gravity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// The instance is in use.
    Passing,
    /// In use, with fewer weights.
    Warning,
    /// Not in use.
    Critical,
}

impl Health {
    /// As Consul writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    /// Reads Consul's word; an unknown word is critical, as Consul itself treats it.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "passing" => Self::Passing,
            "warning" => Self::Warning,
            _ => Self::Critical,
        }
    }
}
