//! Patterns of a policy: text in which `*` stands for any run of characters, also none.

use super::ids::Str;
use super::template::{Part, Template};

/// The only value that a pattern may name.
const NAMESPACE: &str = "{namespace}";

/// A pattern: `team-*`, `{namespace}-*`. `{namespace}` stands for the namespace of the resource. Everything else is meant
/// as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Str);

/// Says why a pattern cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pattern {0:?} holds a brace that is no part of {NAMESPACE}, the only value that a pattern may name")]
pub struct BadPattern(String);

/// A piece of a text that is compared with a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    /// This very character.
    Char(char),
    /// A value that is known for each instance alone: any text.
    Any,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    ///
    /// Fails if it holds a brace that is no part of `{namespace}`.
    pub fn parse(text: &str) -> Result<Self, BadPattern> {
        let rest = text.replace(NAMESPACE, "");
        if rest.contains(['{', '}']) { Err(BadPattern(text.to_owned())) } else { Ok(Self(text.into())) }
    }

    /// The pattern as its author wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Says whether it matches every text.
    #[must_use]
    pub fn matches_all(&self) -> bool {
        !self.0.is_empty() && self.0.chars().all(|c| c == '*')
    }

    /// Says whether it surely matches whatever another pattern matches. Both name no value.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let pieces: Vec<Piece> = other.0.chars().map(|c| if c == '*' { Piece::Any } else { Piece::Char(c) }).collect();
        self.fits(&pieces, "")
    }

    /// Says whether it is this very text, with no `*` and no value in it.
    #[must_use]
    pub fn is_literally(&self, text: &str) -> bool {
        !self.0.contains(['*', '{']) && *self.0 == *text
    }

    /// Says whether it matches a text, for a resource of `namespace`.
    #[must_use]
    pub fn matches(&self, text: &str, namespace: &str) -> bool {
        self.fits(&text.chars().map(Piece::Char).collect::<Vec<_>>(), namespace)
    }

    /// Says whether it matches whatever a text with values in it becomes. A value may be anything, since whoever makes the
    /// pods chooses it: it has to fall to a `*` as a whole.
    #[must_use]
    pub fn matches_template(&self, text: &Template, namespace: &str) -> bool {
        let pieces: Vec<Piece> = match text {
            Template::Plain(text) => text.chars().map(Piece::Char).collect(),
            Template::Parts(parts) => parts.iter().flat_map(pieces).collect(),
        };
        self.fits(&pieces, namespace)
    }

    /// Compares from left to right, and goes back to the last `*` where that does not lead on: it takes one piece more.
    fn fits(&self, text: &[Piece], namespace: &str) -> bool {
        // A namespace holds neither braces nor stars.
        let pattern: Vec<char> = self.0.replace(NAMESPACE, namespace).chars().collect();
        let (mut at, mut of, mut star) = (0, 0, None);
        while at < text.len() {
            match (pattern.get(of), text[at]) {
                (Some('*'), _) => {
                    star = Some((of, at));
                    of += 1;
                }
                (Some(wanted), Piece::Char(found)) if *wanted == found => {
                    at += 1;
                    of += 1;
                }
                _ => {
                    let Some((back, taken)) = star else { return false };
                    star = Some((back, taken + 1));
                    (of, at) = (back + 1, taken + 1);
                }
            }
        }
        pattern[of..].iter().all(|c| *c == '*')
    }
}

fn pieces(part: &Part) -> Vec<Piece> {
    match part {
        Part::Text(text) => text.chars().map(Piece::Char).collect(),
        Part::Value(_) => vec![Piece::Any],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_covers_what_it_matches_all_of() {
        for (pattern, other, expected) in [
            ("pay-*", "pay-eu", true),
            ("pay-*", "pay-*", true),
            ("pay-*", "pay-eu-*", true),
            ("pay-*", "pay*", false),
            ("pay-*", "pa*", false),
            ("*", "a*b", true),
            ("*-eu", "pay-*-eu", true),
            ("*-eu", "*", false),
            ("pay", "pay", true),
            ("pay", "p*", false),
        ] {
            let [pattern, other] = [pattern, other].map(|text| Pattern::parse(text).unwrap());
            assert_eq!(pattern.covers(&other), expected, "{pattern:?} {other:?}");
        }
    }

    #[test]
    fn a_star_stands_for_any_run_of_characters() {
        let table = [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "anything.at/all", true),
            ("web", "web", true),
            ("web", "webs", false),
            ("web*", "web", true),
            ("*web", "my-web", true),
            ("*web", "web-x", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c", false),
            ("{namespace}-*", "shop-web", true),
            ("{namespace}-*", "other-web", false),
            ("*.{namespace}", "web.shop", true),
            ("a?c", "abc", false),
            ("[a]", "a", false),
        ];
        for (pattern, text, expected) in table {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(text, "shop"), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_value_falls_to_a_star_as_a_whole() {
        let table = [
            ("v*", "v${pod.labels['version']}", true),
            ("v*", "${pod.labels['version']}", false),
            ("*", "${pod.name}${pod.uid}", true),
            ("team-*-x", "team-${pod.name}-x", true),
            ("team-*-x", "team-${pod.name}", false),
            ("env=prod", "env=${pod.labels['env']}", false),
            ("*prod", "${pod.name}", false),
            ("$*", "$${x}", true),
        ];
        for (pattern, text, expected) in table {
            let text = Template::parse(text).unwrap();
            assert_eq!(
                Pattern::parse(pattern).unwrap().matches_template(&text, "shop"),
                expected,
                "{pattern} {text:?}"
            );
        }
    }

    #[test]
    fn a_pattern_names_no_other_value() {
        for text in ["{name}", "{namespace", "}", "{{namespace}}", "{Namespace}-*"] {
            assert!(Pattern::parse(text).is_err(), "{text}");
        }
        assert!(Pattern::parse("*").unwrap().matches_all());
        assert!(!Pattern::parse("").unwrap().matches_all());
        assert!(Pattern::parse("vault").unwrap().is_literally("vault"));
        assert!(!Pattern::parse("vault*").unwrap().is_literally("vault*"));
    }
}
