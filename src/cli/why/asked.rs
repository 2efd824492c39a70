//! What somebody asks about, as it is typed.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::model::ids::is_pod_name;

/// Something that somebody asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The pod of this name.
    Pod(String),
    /// What answers at this address.
    Address(IpAddr),
    /// The resource of this name.
    Resource(String),
    /// The service of this name in Consul, or the resource of this name.
    Service(String),
}

impl FromStr for Asked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some(("pod" | "pods" | "po", name)) if is_pod_name(name) => Ok(Self::Pod(name.to_owned())),
            Some(("csvc" | "consulservice" | "consulservices", name)) if is_pod_name(name) => {
                Ok(Self::Resource(name.to_owned()))
            }
            Some(_) => Err("give pod/NAME, csvc/NAME, an IP address, or the name of a service".to_owned()),
            None if text.is_empty() => Err("the name is empty".to_owned()),
            None => Ok(text.parse().map_or_else(|_| Self::Service(text.to_owned()), Self::Address)),
        }
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => write!(f, "pod {name:?}"),
            Self::Address(address) => write!(f, "address {address}"),
            Self::Resource(name) => write!(f, "ConsulService {name:?}"),
            Self::Service(name) => write!(f, "service {name:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_a_pod_a_resource_an_address_or_a_service() {
        for (text, expected) in [
            ("pod/web-0", Some(Asked::Pod("web-0".to_owned()))),
            ("po/web-0", Some(Asked::Pod("web-0".to_owned()))),
            ("csvc/web", Some(Asked::Resource("web".to_owned()))),
            ("10.0.0.1", Some(Asked::Address(IpAddr::from([10, 0, 0, 1])))),
            ("fd00::1", "fd00::1".parse().ok().map(Asked::Address)),
            ("user_service", Some(Asked::Service("user_service".to_owned()))),
            ("pod/", None),
            ("pod/a b", None),
            ("deployment/web", None),
            ("", None),
        ] {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
    }
}
