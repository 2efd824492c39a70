//! The form of a policy file: YAML, or JSON, which is YAML.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::Deserialize;

use crate::model::check::milliseconds;
use crate::model::ids::Str;
use crate::model::pattern::Pattern;
use crate::model::policy::{Budget, Rule};
use crate::model::selector::{Requirement, Selector};

/// A file as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    rules: Vec<FileRule>,
}

/// A rule as it is written. What is left out allows everything.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileRule {
    name: String,
    namespaces: Option<Vec<String>>,
    namespace_selector: Option<FileSelector>,
    names: Option<Vec<String>>,
    tags: Option<Vec<String>>,
    meta_keys: Option<Vec<String>>,
    checks: Option<Vec<String>>,
    min_check_interval: Option<String>,
    static_networks: Option<Vec<String>>,
    retain: Option<bool>,
    classes: Option<Vec<String>>,
    shared_names: Option<bool>,
    foreign_names: Option<bool>,
    #[serde(default)]
    budget: FileBudget,
}

/// A label selector as it is written: that of Kubernetes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileSelector {
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
    #[serde(default)]
    match_expressions: Vec<FileRequirement>,
}

/// Says what a label selector asks of one label.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRequirement {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

/// A budget as it is written.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileBudget {
    resources: Option<usize>,
    instances: Option<usize>,
    checks: Option<usize>,
    bytes: Option<usize>,
    namespace_instances: Option<usize>,
    namespace_checks: Option<usize>,
    namespace_bytes: Option<usize>,
}

/// The kinds of checks that there are.
const KINDS: [&str; 5] = ["http", "tcp", "grpc", "udp", "h2ping"];

/// Says why a policy file cannot be used, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadPolicy(String);

/// Reads the text of a policy file.
///
/// # Errors
///
/// Fails if it is no YAML, names a field that there is not, or has a rule that can never decide.
pub fn parse(text: &str) -> Result<Vec<Rule>, BadPolicy> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| BadPolicy(one_line(&error.to_string())))?;
    if file.rules.is_empty() {
        return Err(bad("it has no rules, so it would allow nothing anywhere: write at least one"));
    }
    let mut names = BTreeSet::new();
    let mut rules: Vec<Rule> = Vec::new();
    for given in file.rules {
        let name = given.name.clone();
        let rule = rule(given).map_err(|BadPolicy(why)| BadPolicy(format!("rule {name:?}: {why}")))?;
        if !names.insert(name.clone()) {
            return Err(BadPolicy(format!("rule {name:?}: another rule has this name")));
        }
        // A rule that can never decide is a mistake of whoever wrote it.
        if let Some(before) = before(&rules, &rule) {
            return Err(BadPolicy(format!(
                "rule {name:?}: it never decides: rule {before:?} before it is for {}",
                if rules.iter().any(is_for_all) { "all namespaces" } else { "its namespaces" }
            )));
        }
        rules.push(rule);
    }
    Ok(rules)
}

fn is_for_all(rule: &Rule) -> bool {
    rule.labels.is_none() && rule.namespaces.iter().any(Pattern::matches_all)
}

/// The name of a rule, of those before one, that leaves it nothing to decide: each of its namespaces is another one's.
fn before<'a>(rules: &'a [Rule], rule: &Rule) -> Option<&'a str> {
    let of = |namespaces: &Pattern| {
        let mut unconditional = rules.iter().filter(|before| before.labels.is_none());
        unconditional.find(|before| before.namespaces.iter().any(|pattern| pattern.covers(namespaces)))
    };
    let all: Option<Vec<&Rule>> = rule.namespaces.iter().map(of).collect();
    all?.first().map(|before| &*before.name)
}

fn rule(given: FileRule) -> Result<Rule, BadPolicy> {
    if given.name.is_empty() || given.name.len() > 63 || given.name.chars().any(char::is_control) {
        return Err(bad("name: 1 to 63 bytes, without control characters"));
    }
    let all = || vec!["*".to_owned()];
    let labels = given.namespace_selector.map(selector).transpose()?;
    let namespaces = match given.namespaces {
        None if labels.is_some() => all(),
        None => return Err(bad("it is for no namespace: give it namespaces, or a namespaceSelector")),
        Some(namespaces) if namespaces.is_empty() => {
            return Err(bad("namespaces: empty, so it is for no namespace: name some, or write \"*\""));
        }
        Some(namespaces) => namespaces,
    };
    if let Some(namespace) = namespaces.iter().find(|namespace| namespace.contains('{')) {
        return Err(bad(&format!("namespaces: {namespace:?}: a namespace's pattern names no values")));
    }
    if let Some(namespace) = namespaces.iter().find(|namespace| !may_be_namespace(namespace)) {
        return Err(bad(&format!(
            "namespaces: {namespace:?} matches no namespace: its name is 1 to 63 lower-case letters, digits and hyphens"
        )));
    }
    if let Some(class) = given.classes.iter().flatten().find(|class| !class.is_empty() && !is_label(class)) {
        return Err(bad(&format!(
            "classes: {class:?} is no class: write lower-case letters, digits and hyphens, or \"\" for the default class"
        )));
    }
    if let Some(kind) = given.checks.iter().flatten().find(|kind| !KINDS.contains(&kind.as_str())) {
        return Err(bad(&format!("checks: {kind:?} is no kind of check: write {}", KINDS.join(", "))));
    }
    let least_interval = given.min_check_interval.as_deref().map(|text| {
        milliseconds(text).ok_or_else(|| bad(&format!("minCheckInterval: {text:?}: write it like 10s or 1m30s")))
    });
    let budget = given.budget;
    let budget = Budget {
        resources: budget.resources,
        instances: budget.instances,
        checks: budget.checks,
        bytes: budget.bytes,
        namespace_instances: budget.namespace_instances,
        namespace_checks: budget.namespace_checks,
        namespace_bytes: budget.namespace_bytes,
    };
    Ok(Rule {
        name: given.name.into(),
        namespaces: patterns("namespaces", &namespaces)?,
        labels,
        names: given.names.map(|names| texts("names", &lower(&names), is_in_name)).transpose()?,
        tags: given.tags.map(|tags| texts("tags", &tags, |c| !c.is_control())).transpose()?,
        meta_keys: given.meta_keys.map(|keys| texts("metaKeys", &keys, is_in_key)).transpose()?,
        checks: given.checks.map(|kinds| kinds.into_iter().map(Str::from).collect()),
        least_interval: least_interval.transpose()?,
        networks: given.static_networks.map(networks).transpose()?,
        retain: given.retain,
        classes: given.classes.map(|classes| classes.into_iter().map(Str::from).collect()),
        shared_names: given.shared_names,
        foreign_names: given.foreign_names,
        budget,
    })
}

fn selector(given: FileSelector) -> Result<Selector, BadPolicy> {
    let mut requirements = Vec::new();
    for (key, value) in given.match_labels {
        requirements.push(Requirement::In(key.into(), [value.into()].into()));
    }
    for FileRequirement { key, operator, values } in given.match_expressions {
        let wants_values = matches!(operator, Operator::In | Operator::NotIn);
        if wants_values == values.is_empty() {
            let right = if wants_values { "name at least one value" } else { "leave the values out" };
            return Err(bad(&format!("namespaceSelector: the expression about {key:?}: {right}")));
        }
        let (key, values) = (key.into(), values.into_iter().map(Into::into).collect());
        requirements.push(match operator {
            Operator::In => Requirement::In(key, values),
            Operator::NotIn => Requirement::NotIn(key, values),
            Operator::Exists => Requirement::Exists(key),
            Operator::DoesNotExist => Requirement::DoesNotExist(key),
        });
    }
    for requirement in &requirements {
        let (key, values) = parts(requirement);
        if !is_label_key(key) {
            return Err(bad(&format!("namespaceSelector: {key:?} is no label's key, so that no namespace has it")));
        }
        if let Some(value) = values.iter().find(|value| !is_label_value(value)) {
            return Err(bad(&format!(
                "namespaceSelector: {:?} is no label's value, so that none is ever that",
                &**value
            )));
        }
    }
    if let Some(key) = contradiction(&requirements) {
        return Err(bad(&format!(
            "namespaceSelector: no namespace is picked: what it asks of {key:?} contradicts itself"
        )));
    }
    if requirements.is_empty() {
        return Err(bad("namespaceSelector: it asks for nothing: leave it out, and write namespaces: [\"*\"]"));
    }
    Ok(Selector(requirements))
}

fn parts(requirement: &Requirement) -> (&str, Vec<&Str>) {
    match requirement {
        Requirement::In(key, values) | Requirement::NotIn(key, values) => (key, values.iter().collect()),
        Requirement::Exists(key) | Requirement::DoesNotExist(key) => (key, Vec::new()),
    }
}

/// A key of which requirements ask for what cannot be together.
fn contradiction(requirements: &[Requirement]) -> Option<&str> {
    let keys = requirements.iter().map(|requirement| parts(requirement).0);
    let is_impossible = |key: &&str| {
        let of_key = || requirements.iter().filter(move |requirement| parts(requirement).0 == *key);
        let is_absent = of_key().any(|requirement| matches!(requirement, Requirement::DoesNotExist(_)));
        let is_there = of_key().any(|requirement| matches!(requirement, Requirement::In(..) | Requirement::Exists(_)));
        let mut left: Option<BTreeSet<&Str>> = None;
        for requirement in of_key() {
            if let Requirement::In(_, values) = requirement {
                let is_asked = |value: &&Str| left.as_ref().is_none_or(|left| left.contains(value));
                left = Some(values.iter().filter(is_asked).collect());
            }
        }
        let is_out = |value: &&Str| {
            of_key().any(|requirement| matches!(requirement, Requirement::NotIn(_, values) if values.contains(*value)))
        };
        is_absent && is_there || left.is_some_and(|left| left.iter().all(is_out))
    };
    keys.into_iter().find(is_impossible)
}

/// Says whether a pattern can match the name of a namespace.
fn may_be_namespace(pattern: &str) -> bool {
    let fixed = pattern.chars().filter(|c| *c != '*').count();
    let is_fit = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '*';
    !pattern.is_empty()
        && fixed <= 63
        && pattern.chars().all(is_fit)
        && !pattern.starts_with('-')
        && !pattern.ends_with('-')
}

/// Says whether a text is a DNS label.
fn is_label(text: &str) -> bool {
    may_be_namespace(text) && !text.contains('*')
}

/// Says whether a text may be the key of a label: `NAME` or `DOMAIN/NAME`.
fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((domain, name)) => {
            domain.len() <= 253 && domain.split('.').all(is_label) && !name.is_empty() && is_label_value(name)
        }
        None => !key.is_empty() && is_label_value(key),
    }
}

fn is_label_value(value: &str) -> bool {
    let is_end = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    value.len() <= 63
        && value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && is_end(value.chars().next())
        && is_end(value.chars().next_back())
}

/// Names in Consul are printable ASCII.
fn is_in_name(c: char) -> bool {
    matches!(c, ' '..='~')
}

fn is_in_key(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '*' | '{' | '}')
}

/// Reads patterns of texts that hold only such characters.
fn texts(field: &str, given: &[String], fits: fn(char) -> bool) -> Result<Vec<Pattern>, BadPolicy> {
    if let Some(text) = given.iter().find(|text| text.is_empty() || !text.chars().all(fits)) {
        let what = if text.is_empty() { "it is empty" } else { "it holds a character that none may have" };
        return Err(bad(&format!("{field}: {text:?} matches nothing: {what}")));
    }
    patterns(field, given)
}

/// Consul compares names without case.
fn lower(names: &[String]) -> Vec<String> {
    names.iter().map(|name| name.to_ascii_lowercase()).collect()
}

fn patterns(field: &str, given: &[String]) -> Result<Vec<Pattern>, BadPolicy> {
    let pattern = |text: &String| Pattern::parse(text).map_err(|why| BadPolicy(format!("{field}: {why}")));
    given.iter().map(pattern).collect()
}

fn networks(given: Vec<String>) -> Result<Vec<IpNet>, BadPolicy> {
    let network = |text: String| {
        text.parse().map_err(|_| bad(&format!("staticNetworks: {text:?} is not a network like 203.0.113.0/24")))
    };
    given.into_iter().map(network).collect()
}

fn bad(why: &str) -> BadPolicy {
    BadPolicy(why.to_owned())
}

/// The first line of the words of the reader of YAML, which go on with a picture of the place.
fn one_line(words: &str) -> String {
    words.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it is not YAML").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read() {
        let text = "
rules:
- name: payments
  namespaces: [pay-*, billing]
  names: ['{namespace}-*', Payments]
  tags: [v*]
  metaKeys: [team]
  checks: [http]
  minCheckInterval: 10s
  staticNetworks: [203.0.113.0/24]
  retain: false
  classes: ['']
  sharedNames: true
  foreignNames: false
  budget: {resources: 5, instances: 100, checks: 2, bytes: 4096, namespaceInstances: 70, namespaceChecks: 8,
    namespaceBytes: 9000}
- name: others
  namespaces: ['*']
";
        let rules = parse(text).unwrap();
        let pattern = |text: &str| Pattern::parse(text).unwrap();
        let first = Rule {
            name: "payments".into(),
            namespaces: vec![pattern("pay-*"), pattern("billing")],
            labels: None,
            names: Some(vec![pattern("{namespace}-*"), pattern("payments")]),
            tags: Some(vec![pattern("v*")]),
            meta_keys: Some(vec![pattern("team")]),
            checks: Some(vec!["http".into()]),
            least_interval: Some(10_000),
            networks: Some(vec!["203.0.113.0/24".parse().unwrap()]),
            retain: Some(false),
            classes: Some(vec!["".into()]),
            shared_names: Some(true),
            foreign_names: Some(false),
            budget: Budget {
                resources: Some(5),
                instances: Some(100),
                checks: Some(2),
                bytes: Some(4096),
                namespace_instances: Some(70),
                namespace_checks: Some(8),
                namespace_bytes: Some(9000),
            },
        };
        let second = Rule { name: "others".into(), namespaces: vec![pattern("*")], ..Rule::default() };
        assert_eq!(rules, [first, second]);
    }

    #[test]
    fn what_can_be_meant_is_taken() {
        let rule = |fields: &str| format!("rules: [{{name: a, namespaces: [x], {fields}}}]");
        for text in [
            "rules: [{name: a, namespaces: ['pay-*', '*']}]".to_owned(),
            "rules: [{name: a, namespaces: [pay-eu]}, {name: b, namespaces: ['pay-*']}]".to_owned(),
            "rules: [{name: a, namespaces: ['pay-*']}, {name: b, namespaces: [pay-eu, lab]}]".to_owned(),
            "rules: [{name: a, namespaces: [x], namespaceSelector: {matchLabels: {t: g}}}, {name: b, namespaces: [x]}]"
                .to_owned(),
            rule("classes: ['', blue-1]"),
            rule("names: ['{namespace}_*', 'a.b/c d', Web]"),
            rule("tags: ['v*', 'é']"),
            rule("metaKeys: ['*', team_x]"),
            rule("namespaceSelector: {matchLabels: {'example.com/tier': gold, empty: ''}}"),
            rule(
                "namespaceSelector: {matchExpressions: [{key: a, operator: NotIn, values: [x]}, {key: a, operator: DoesNotExist}]}",
            ),
            rule(
                "namespaceSelector: {matchLabels: {a: x}, matchExpressions: [{key: a, operator: In, values: [x, y]}]}",
            ),
        ] {
            assert!(parse(&text).is_ok(), "{text}: {:?}", parse(&text).err().map(|why| why.to_string()));
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_in_one_line() {
        let rule = |fields: &str| format!("rules: [{{name: a, namespaces: [x], {fields}}}]");
        let table = [
            (String::new(), ""),
            ("rules: []".to_owned(), "no rules"),
            ("rule: []".to_owned(), "rule"),
            ("rules: [{namespaces: [x]}]".to_owned(), "name"),
            ("rules: [{name: a}]".to_owned(), "namespaces"),
            ("rules: [{name: a, namespaces: []}]".to_owned(), "no namespace"),
            ("rules: [{name: a, namespaces: ['{namespace}']}]".to_owned(), "names no values"),
            ("rules: [{name: '', namespaces: [x]}]".to_owned(), "1 to 63"),
            ("rules: [{name: a, namespaces: [x]}, {name: a, namespaces: [y]}]".to_owned(), "another rule"),
            ("rules: [{name: a, namespaces: ['*']}, {name: b, namespaces: [y]}]".to_owned(), "never decides"),
            ("rules: [{name: a, namespaces: [Pay]}]".to_owned(), "\"Pay\" matches no namespace"),
            ("rules: [{name: a, namespaces: ['']}]".to_owned(), "matches no namespace"),
            ("rules: [{name: a, namespaces: [pay_x]}]".to_owned(), "matches no namespace"),
            ("rules: [{name: a, namespaces: ['pay-']}]".to_owned(), "matches no namespace"),
            (format!("rules: [{{name: a, namespaces: [{}]}}]", "p".repeat(64)), "matches no namespace"),
            (
                "rules: [{name: a, namespaces: ['pay-*']}, {name: b, namespaces: [pay-eu]}]".to_owned(),
                "rule \"b\": it never decides: rule \"a\" before it is for its namespaces",
            ),
            (
                "rules: [{name: a, namespaces: [x]}, {name: b, namespaces: ['pay-*']}, {name: c, namespaces: [x, pay-1]}]"
                    .to_owned(),
                "rule \"c\": it never decides",
            ),
            (rule("classes: [Blue X]"), "\"Blue X\" is no class"),
            (rule("names: [café]"), "\"café\" matches nothing"),
            (rule("names: ['']"), "it is empty"),
            (rule("tags: ['']"), "it is empty"),
            (rule("metaKeys: [a b]"), "matches nothing"),
            (rule("namespaceSelector: {matchLabels: {'a b': x}}"), "no label's key"),
            (rule("namespaceSelector: {matchLabels: {'A/b/c': x}}"), "no label's key"),
            (rule("namespaceSelector: {matchLabels: {a: 'x y'}}"), "no label's value"),
            (
                rule("namespaceSelector: {matchLabels: {a: x}, matchExpressions: [{key: a, operator: In, values: [y, z]}]}"),
                "contradicts itself",
            ),
            (
                rule("namespaceSelector: {matchLabels: {a: x}, matchExpressions: [{key: a, operator: NotIn, values: [x]}]}"),
                "contradicts itself",
            ),
            (
                rule("namespaceSelector: {matchExpressions: [{key: a, operator: Exists}, {key: a, operator: DoesNotExist}]}"),
                "contradicts itself",
            ),
            (rule("tag: [v*]"), "tag"),
            (rule("tags: v*"), ""),
            (rule("tags: ['{pod}']"), "{namespace}"),
            (rule("checks: [ping]"), "h2ping"),
            (rule("minCheckInterval: fast"), "10s"),
            (rule("staticNetworks: [10.0.0.1]"), "203.0.113.0/24"),
            (rule("budget: {pods: 3}"), "pods"),
            (rule("budget: {resources: -1}"), ""),
            ("rules: [".to_owned(), ""),
        ];
        for (text, words) in table {
            let why = parse(&text).unwrap_err().to_string();
            assert!(why.contains(words) && !why.is_empty() && !why.contains('\n'), "{text}: {why}");
        }
    }
}
