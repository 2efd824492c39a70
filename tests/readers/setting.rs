//! Where the readers are asked.

use lictor_testbed::Mode;

/// A mode, and how Consul's DNS is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Setting {
    /// `agent` mode.
    Agent,
    /// `catalog` mode.
    Catalog,
    /// `catalog` mode, with the settings of DNS that the page asks for.
    Whole,
}

pub(crate) const SETTINGS: [Setting; 3] = [Setting::Agent, Setting::Catalog, Setting::Whole];

/// What the page asks for, so that nothing is left out of answers.
pub(crate) const WHOLE: &str = "\
dns_config {
  enable_truncate = true                   # a client sees that there is more, and asks again over TCP
  enable_additional_node_meta_txt = false  # no TXT records in SRV answers
}
";

impl Setting {
    /// In the names of the tests.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Catalog => "catalog",
            Self::Whole => "catalog, whole answers",
        }
    }

    pub(crate) fn mode(self) -> Mode {
        match self {
            Self::Agent => Mode::Agent,
            Self::Catalog | Self::Whole => Mode::Catalog,
        }
    }

    /// What is set in Consul, in its own language.
    pub(crate) fn dns(self) -> &'static str {
        if self == Self::Whole { WHOLE } else { "" }
    }
}
