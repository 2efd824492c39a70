//! Consul's servers, as its catalog shows them: who they are, and of which version. An agent's version is judged alike.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::client::{Client, path};
use crate::ports::Unavailable;

/// The oldest version, major and minor, that says whether ACLs have cut an answer short (`X-Consul-Results-Filtered-By-ACLs`,
/// Consul's changelog of 1.11.0). What an older one does not show could be there all the same, so nothing may be removed.
const OLDEST: (u32, u32) = (1, 11);

/// The oldest version that is tested.
const OLDEST_TESTED: (u32, u32) = (1, 20);

/// A server.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Server {
    /// The ID of its node.
    #[serde(rename = "ID")]
    pub node_id: String,
    /// The name of its node.
    pub node: String,
    service_meta: ServerMeta,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ServerMeta {
    version: String,
}

/// What the versions of servers mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Versions {
    /// Lictor is tested with such servers, or nobody knows their versions.
    Fine,
    /// Lictor works with them, and is not tested with them. A sentence.
    Untested(String),
    /// Lictor must not work with them. A sentence with what to do.
    TooOld(String),
}

impl Versions {
    /// Goes on with versions that are new enough, and logs a warning about untested ones.
    ///
    /// # Errors
    ///
    /// A Consul that is too old is not set up for Lictor.
    pub(super) fn accept(self) -> Result<(), Unavailable> {
        match self {
            Self::Fine => Ok(()),
            Self::Untested(why) => {
                tracing::warn!("{why}");
                Ok(())
            }
            Self::TooOld(why) => Err(Unavailable::not_set_up(why)),
        }
    }
}

/// Reads the servers of the datacenter that requests are for.
///
/// # Errors
///
/// As any read, and where ACLs have cut the answer short.
pub async fn servers(client: &Client) -> Result<Vec<Server>, Unavailable> {
    let query = path(&["catalog", "service", "consul"], &[("consistent", "")]);
    Ok(client.get(query).await?.value)
}

/// The IDs of the servers' nodes.
pub(super) fn ids(servers: Vec<Server>) -> BTreeSet<String> {
    servers.into_iter().map(|server| server.node_id).filter(|id| !id.is_empty()).collect()
}

/// Judges the versions of servers.
#[must_use]
pub fn judge(servers: &[Server]) -> Versions {
    oldest("server", servers.iter().map(|server| (server.node.as_str(), server.service_meta.version.as_str())))
}

/// Judges the version of an agent. Its servers are at least as new: Consul has servers upgraded before agents.
pub(super) fn judge_agent(name: &str, version: &str) -> Versions {
    oldest("agent", [(name, version)].into_iter())
}

/// Judges the oldest of programs of a role, by their names and versions.
fn oldest<'a>(role: &str, all: impl Iterator<Item = (&'a str, &'a str)>) -> Versions {
    let known = all.filter_map(|(name, shown)| Some((major_minor(shown)?, name, shown)));
    let Some((version, name, shown)) = known.min_by_key(|(version, ..)| *version) else { return Versions::Fine };
    let (major, minor) = if version < OLDEST { OLDEST } else { OLDEST_TESTED };
    if version < OLDEST {
        Versions::TooOld(format!(
            "the Consul {role} {name} is {shown}, which does not say when ACLs have cut an answer short: upgrade it to \
             {major}.{minor} or later"
        ))
    } else if version < OLDEST_TESTED {
        Versions::Untested(format!(
            "the Consul {role} {name} is {shown}, and Lictor is tested with {major}.{minor} and later"
        ))
    } else {
        Versions::Fine
    }
}

fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::reasons::OutageKind;

    #[test]
    fn the_oldest_server_counts() {
        let server = |version: &str| Server {
            node_id: String::new(),
            node: format!("node of {version}"),
            service_meta: ServerMeta { version: version.to_owned() },
        };
        for (versions, words) in [
            (&["1.22.7", "1.20.6"][..], "fine"),
            (&["1.22.7+ent"], "fine"),
            (&["2.0.0"], "fine"),
            (&["", "who knows"], "fine"),
            (&[], "fine"),
            (
                &["1.22.7", "1.19.2"],
                "untested: the Consul server node of 1.19.2 is 1.19.2, and Lictor is tested with 1.20",
            ),
            (&["1.11.0"], "untested: "),
            (&["1.22.7", "1.10.12", "1.19.2"], "too old: the Consul server node of 1.10.12 is 1.10.12, which"),
            (&["0.9.4"], "too old: "),
        ] {
            let servers: Vec<Server> = versions.iter().copied().map(server).collect();
            let said = match judge(&servers) {
                Versions::Fine => "fine".to_owned(),
                Versions::Untested(words) => format!("untested: {words}"),
                Versions::TooOld(words) => format!("too old: {words}"),
            };
            assert!(said.starts_with(words), "{versions:?}: {said}");
        }
    }

    #[test]
    fn an_agent_that_is_too_old_is_not_set_up() {
        let refused = judge_agent("worker-1", "1.10.12").accept().unwrap_err();
        assert!(refused.message.starts_with("the Consul agent worker-1 is 1.10.12, which"), "{refused}");
        assert_eq!(refused.kind, OutageKind::NotSetUp);
        for version in ["1.11.0", "1.22.7", ""] {
            assert!(judge_agent("worker-1", version).accept().is_ok(), "{version}");
        }
    }
}
