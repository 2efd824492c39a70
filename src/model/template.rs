//! Texts with values in them, such as `v${pod.labels['app.kubernetes.io/version']}`.
//!
//! The whole grammar: a text holds `${variable}` any number of times, and `$${` where `${` itself is meant. The
//! variables are those of [`Variable`]; a key stands in single or double quotes, and holds none of its own kind.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::ids::Str;

/// A fact about an instance that a text may name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variable {
    /// The variable `pod.name`.
    PodName,
    /// The variable `pod.namespace`.
    PodNamespace,
    /// The variable `pod.uid`.
    PodUid,
    /// The variable `pod.labels['key']`.
    Label(Str),
    /// The variable `pod.annotations['key']`.
    Annotation(Str),
    /// `node.name`: the Kubernetes node.
    NodeName,
    /// `node.zone`: its label `topology.kubernetes.io/zone`.
    Zone,
    /// `node.region`: its label `topology.kubernetes.io/region`.
    Region,
    /// `ports['name']`: the number of another named port of the instance.
    Port(Str),
}

/// The variables that have no key.
const PLAIN: [(&str, Variable); 6] = [
    ("pod.name", Variable::PodName),
    ("pod.namespace", Variable::PodNamespace),
    ("pod.uid", Variable::PodUid),
    ("node.name", Variable::NodeName),
    ("node.zone", Variable::Zone),
    ("node.region", Variable::Region),
];

/// A variable that wants a key, and what it becomes with one.
type Keyed = (&'static str, fn(Str) -> Variable);
const KEYED: [Keyed; 3] =
    [("pod.labels", Variable::Label), ("pod.annotations", Variable::Annotation), ("ports", Variable::Port)];

impl Variable {
    /// Reads what stands between `${` and `}`.
    fn parse(text: &str) -> Option<Self> {
        if let Some((_, variable)) = PLAIN.iter().find(|(name, _)| *name == text) {
            return Some(variable.clone());
        }
        let (name, rest) = text.split_once('[')?;
        let (_, make) = KEYED.iter().find(|(keyed, _)| *keyed == name)?;
        let quoted = rest.strip_suffix(']')?;
        let quote = quoted.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
        let key = quoted.strip_prefix(quote)?.strip_suffix(quote)?;
        (!key.is_empty() && !key.contains(quote)).then(|| make(key.into()))
    }

    /// Says whether it is a fact about the pod that the endpoint itself does not tell.
    #[must_use]
    pub(super) fn is_of_pod(&self) -> bool {
        matches!(self, Self::Label(_) | Self::Annotation(_))
    }

    /// Says whether it is a fact about the node that the endpoint itself does not tell.
    #[must_use]
    pub(super) fn is_of_node(&self) -> bool {
        matches!(self, Self::Zone | Self::Region)
    }
}

impl fmt::Display for Variable {
    /// As in a text, without `${` and `}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(key) => write!(f, "pod.labels['{key}']"),
            Self::Annotation(key) => write!(f, "pod.annotations['{key}']"),
            Self::Port(name) => write!(f, "ports['{name}']"),
            plain => f.write_str(PLAIN.iter().find(|(_, variable)| variable == plain).map_or("", |(name, _)| name)),
        }
    }
}

/// The values of an instance; what is missing is not in it.
pub type Values = BTreeMap<Variable, Str>;

/// A text in which variables may stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Template {
    /// The text is the same for all instances.
    Plain(Str),
    /// With values of the instance in it.
    Parts(Arc<[Part]>),
}

/// A part of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// As it is.
    Text(Str),
    /// The value of this.
    Value(Variable),
}

/// Says why a text cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTemplate {
    /// It ends too soon.
    #[error("{0:?} has a ${{ without its }} (write $${{ for a literal ${{)")]
    Open(String),
    /// It names what is not there.
    #[error(
        "${{{0}}} does not exist: use pod.name, pod.namespace, pod.uid, pod.labels['key'], \
         pod.annotations['key'], node.name, node.zone, node.region or ports['name'], or write $${{{0}}} for the literal \
         text"
    )]
    Unknown(String),
}

impl Template {
    /// Reads a text.
    pub fn parse(text: &str) -> Result<Self, BadTemplate> {
        let (mut parts, mut plain, mut rest) = (Vec::new(), String::new(), text);
        while let Some(at) = rest.find("${") {
            let (before, after) = (&rest[..at], &rest[at + 2..]);
            if let Some(before) = before.strip_suffix('$') {
                plain.push_str(before);
                plain.push_str("${");
                rest = after;
                continue;
            }
            plain.push_str(before);
            let end = end_of_variable(after).ok_or_else(|| BadTemplate::Open(text.to_owned()))?;
            let variable = Variable::parse(after[..end].trim());
            let variable = variable.ok_or_else(|| BadTemplate::Unknown(after[..end].to_owned()))?;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain).into()));
            }
            parts.push(Part::Value(variable));
            rest = &after[end + 1..];
        }
        plain.push_str(rest);
        if parts.is_empty() {
            return Ok(Self::Plain(plain.into()));
        }
        if !plain.is_empty() {
            parts.push(Part::Text(plain.into()));
        }
        Ok(Self::Parts(parts.into()))
    }

    /// The values that it holds.
    pub fn variables(&self) -> impl Iterator<Item = &Variable> {
        let parts = match self {
            Self::Plain(_) => &[][..],
            Self::Parts(parts) => parts,
        };
        parts.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Value(variable) => Some(variable),
        })
    }

    /// The bytes that an instance with these values holds for itself: none where the text is the same for all.
    #[must_use]
    pub fn own_bytes(&self, values: &Values) -> usize {
        let bytes = |part: &Part| match part {
            Part::Text(text) => text.len(),
            Part::Value(variable) => values.get(variable).map_or(0, |value| value.len()),
        };
        match self {
            Self::Plain(_) => 0,
            Self::Parts(parts) => parts.iter().map(bytes).sum(),
        }
    }

    /// The text for an instance with these values; what is missing is empty.
    #[must_use]
    pub fn render(&self, values: &Values) -> Str {
        match self {
            Self::Plain(text) => text.clone(),
            Self::Parts(parts) => parts
                .iter()
                .map(|part| match part {
                    Part::Text(text) => &**text,
                    Part::Value(variable) => values.get(variable).map_or("", |value| &**value),
                })
                .collect::<String>()
                .into(),
        }
    }
}

impl fmt::Display for Template {
    /// As its author wrote it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |text: &str| text.replace("${", "$${");
        match self {
            Self::Plain(plain) => f.write_str(&text(plain)),
            Self::Parts(parts) => parts.iter().try_for_each(|part| match part {
                Part::Text(plain) => f.write_str(&text(plain)),
                Part::Value(variable) => write!(f, "${{{variable}}}"),
            }),
        }
    }
}

/// Finds the `}` of a variable: one in quotes does not count.
fn end_of_variable(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (None, '}') => return Some(at),
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_values() {
        let values: Values = [
            (Variable::PodName, "web-1".into()),
            (Variable::Label("app.kubernetes.io/version".into()), "1.2".into()),
            (Variable::Annotation("a}b".into()), "x".into()),
            (Variable::Port("metrics".into()), "9090".into()),
        ]
        .into();
        let table = [
            ("plain", "plain"),
            ("", ""),
            ("$5 {and} $", "$5 {and} $"),
            ("${pod.name}", "web-1"),
            ("v${pod.labels['app.kubernetes.io/version']}!", "v1.2!"),
            (r#"${pod.labels["app.kubernetes.io/version"]}${pod.name}"#, "1.2web-1"),
            ("${ pod.name }", "web-1"),
            ("${pod.annotations['a}b']}", "x"),
            ("http:${ports['metrics']}", "http:9090"),
            ("$${pod.name}", "${pod.name}"),
            ("zone-${node.zone}", "zone-"),
        ];
        for (text, expected) in table {
            let template = Template::parse(text).unwrap();
            assert_eq!(&*template.render(&values), expected, "{text}");
            assert_eq!(matches!(template, Template::Plain(_)), template.variables().next().is_none(), "{text}");
        }
    }

    #[test]
    fn a_variable_is_shown_as_it_is_written() {
        let texts =
            PLAIN.map(|(name, _)| name.to_owned()).into_iter().chain(KEYED.map(|(name, _)| format!("{name}['k']")));
        for text in texts {
            assert_eq!(Variable::parse(&text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_a_reason() {
        for text in ["${", "a${pod.name", "${pod.labels['a]}"] {
            assert_eq!(Template::parse(text), Err(BadTemplate::Open(text.to_owned())), "{text}");
        }
        for variable in [
            "",
            "pod",
            "pod.ip",
            "pod.labels",
            "pod.labels[a]",
            "pod.labels['a'",
            "pod.labels['']",
            "node.labels['a']",
            "ports.a",
        ] {
            let text = format!("${{{variable}}}");
            assert_eq!(Template::parse(&text), Err(BadTemplate::Unknown(variable.to_owned())), "{text}");
        }
    }
}
