//! The least ACL policy of Consul with which Lictor works, by what it does there.
//!
//! In: how registrations are made, and which services there may be. Out: rules, each of which Lictor cannot do without
//! (`tests/chart/rights.rs`).

use std::fmt;

use crate::model::ids::ClusterName;
use crate::model::nodes::{marker_name, node_prefix};

/// A rule of an ACL policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    resource: &'static str,
    name: String,
    policy: &'static str,
    /// Says what it is for.
    why: &'static str,
}

/// The services that resources may register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Services {
    /// The one of this name.
    Name(String),
    /// All whose names begin so.
    Prefix(String),
}

impl Services {
    /// Reads a name, or a prefix that ends with `*`; none where it is neither.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        match text.strip_suffix('*') {
            Some(prefix) => fits(prefix).then(|| Self::Prefix(prefix.to_owned())),
            None => (fits(text) && !text.is_empty()).then(|| Self::Name(text.to_owned())),
        }
    }
}

/// The rules for registering with one agent.
#[must_use]
pub fn of_agent(services: &[Services]) -> Vec<Rule> {
    let agent = Rule {
        resource: "agent_prefix",
        name: String::new(),
        policy: "read",
        why: "Lictor asks the agent for its name and its services.",
    };
    [vec![agent], reads(services), writes(services)].concat()
}

/// The rules for registering in the catalog.
#[must_use]
pub fn of_catalog(cluster: &ClusterName, services: &[Services]) -> Vec<Rule> {
    let nodes = Rule {
        resource: "node_prefix",
        name: node_prefix(cluster),
        policy: "write",
        why: "Lictor creates a Consul node for each Kubernetes node.",
    };
    let marker = Rule {
        resource: "node",
        name: marker_name(cluster).to_string(),
        policy: "write",
        why: "The marker node of the cluster. It also keeps a former leader from writing.",
    };
    [reads(services), vec![nodes, marker], writes(services)].concat()
}

fn reads(services: &[Services]) -> Vec<Rule> {
    let why = "Lictor reads all nodes and services, so that it never takes a list that ACLs have filtered for the complete one.";
    let read = |resource| Rule { resource, name: String::new(), policy: "read", why };
    // Who may write may read, and a policy has one rule for a name.
    let are_written = services.contains(&Services::Prefix(String::new()));
    let all = [Some(read("node_prefix")), (!are_written).then(|| read("service_prefix"))];
    all.into_iter().flatten().collect()
}

fn writes(services: &[Services]) -> Vec<Rule> {
    let rule = |services: &Services| {
        let (resource, name) = match services {
            Services::Name(name) => ("service", name.clone()),
            Services::Prefix(prefix) => ("service_prefix", prefix.clone()),
        };
        Rule { resource, name, policy: "write", why: "The services that resources may register." }
    };
    let mut rules: Vec<Rule> = Vec::new();
    for rule in services.iter().map(rule) {
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    }
    rules
}

/// Writes rules in Consul's language.
#[must_use]
pub fn hcl(rules: &[Rule]) -> String {
    let (mut text, mut why) = (String::new(), "");
    for rule in rules {
        if rule.why != why {
            let between = if text.is_empty() { "" } else { "\n" };
            text.extend([between, "# ", rule.why, "\n"]);
            why = rule.why;
        }
        text.push_str(&rule.to_string());
    }
    text
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} \"{}\" {{\n  policy = \"{}\"\n}}", self.resource, self.name, self.policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_a_name_or_a_prefix() {
        for (text, expected) in [
            ("user_service", Some(Services::Name("user_service".to_owned()))),
            ("shop-*", Some(Services::Prefix("shop-".to_owned()))),
            ("*", Some(Services::Prefix(String::new()))),
            ("", None),
            ("a*b", None),
            ("a\" {}", None),
            ("${a}", None),
        ] {
            assert_eq!(Services::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn a_policy_says_of_each_rule_what_it_is_for() {
        let cluster = ClusterName::new("prod").unwrap();
        let services = [Services::Name("web".to_owned()), Services::Prefix("shop-".to_owned())];
        let expected = "\
# Lictor reads all nodes and services, so that it never takes a list that ACLs have filtered for the complete one.
node_prefix \"\" {
  policy = \"read\"
}
service_prefix \"\" {
  policy = \"read\"
}

# Lictor creates a Consul node for each Kubernetes node.
node_prefix \"prod-\" {
  policy = \"write\"
}

# The marker node of the cluster. It also keeps a former leader from writing.
node \"lictor-prod\" {
  policy = \"write\"
}

# The services that resources may register.
service \"web\" {
  policy = \"write\"
}
service_prefix \"shop-\" {
  policy = \"write\"
}
";
        assert_eq!(hcl(&of_catalog(&cluster, &services)), expected);
    }

    #[test]
    fn who_may_write_all_services_needs_no_rule_to_read_them() {
        let all = [Services::Prefix(String::new()), Services::Prefix(String::new())];
        let rules: Vec<_> = of_agent(&all).into_iter().map(|rule| (rule.resource, rule.policy)).collect();
        assert_eq!(rules, [("agent_prefix", "read"), ("node_prefix", "read"), ("service_prefix", "write")]);
    }
}
