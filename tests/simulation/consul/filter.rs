//! As much of Consul's filter language (`go-bexpr`) as the registries use: `==`, `!=` and `matches "^literal"` over
//! fields and `Meta["key"]`, joined by `and` and `or`; `(?i)` before the literal is for any case.

use super::store::fold;

/// Whether something fits a filter; `get` answers the value of a field, or of a meta key by `Meta.KEY`.
pub fn fits(filter: &str, get: &dyn Fn(&str) -> Option<String>) -> bool {
    filter.split(" or ").any(|alternative| alternative.split(" and ").all(|term| holds(term.trim(), get)))
}

fn holds(term: &str, get: &dyn Fn(&str) -> Option<String>) -> bool {
    let of = |text: &str| get(&text.trim().replace("[\"", ".").replace("\"]", ""));
    if let Some((field, value)) = term.split_once(" == ") {
        return of(field).as_deref() == Some(unquoted(value));
    }
    if let Some((field, value)) = term.split_once(" != ") {
        return of(field).as_deref() != Some(unquoted(value));
    }
    let (field, pattern) = term.split_once(" matches ").unwrap_or_else(|| panic!("not in the model: filter {term}"));
    let (pattern, any_case) =
        unquoted(pattern).strip_prefix("(?i)").map_or((unquoted(pattern), false), |rest| (rest, true));
    let literal = pattern.strip_prefix('^').unwrap_or_else(|| panic!("not in the model: {pattern}"));
    assert!(!literal.contains(['\\', '.', '*', '[', '(', '$', '+', '?']), "not in the model: {pattern}");
    of(field).is_some_and(
        |value| if any_case { fold(&value).starts_with(&fold(literal)) } else { value.starts_with(literal) },
    )
}

fn unquoted(text: &str) -> &str {
    text.trim().trim_matches('"')
}

#[test]
fn filters_that_the_registries_use() {
    let get = |field: &str| match field {
        "ID" => Some("c:x".to_owned()),
        "Meta.lictor-cluster" => Some("d".to_owned()),
        _ => None,
    };
    for (filter, expected) in [
        ("Meta[\"lictor-cluster\"] == \"c\" or ID matches \"^c:\"", true),
        ("Meta[\"lictor-cluster\"] == \"c\" and ID matches \"^c:\"", false),
        ("Meta[\"absent\"] == \"c\"", false),
        ("Meta[\"lictor-cluster\"] == \"d\"", true),
        ("Meta[\"lictor-cluster\"] != \"d\"", false),
        ("Meta[\"absent\"] != \"c\"", true),
        ("Meta[\"lictor-cluster\"] == \"c\" or ID matches \"(?i)^C:\"", true),
        ("ID matches \"^C:\"", false),
    ] {
        assert_eq!(fits(filter, &get), expected, "{filter}");
    }
}
