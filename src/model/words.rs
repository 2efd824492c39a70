//! The words of an outage, as far as they are worth keeping: at most [`LONGEST`] characters, without what differs from one
//! request to the next although the outage is the same.

use std::net::SocketAddr;

/// The most characters that are kept.
const LONGEST: usize = 300;

/// From so many hexadecimal digits on, a word is taken for the ID of a request or a trace.
const ID_DIGITS: usize = 16;

/// The names that proxies give to the ID of a request.
const ID_NAMES: [&str; 5] = ["request-id", "request_id", "requestid", "x-request-id", "trace-id"];

/// Shortens the words of an outage: ports of addresses and IDs of requests are left out. The port of a URL stays, since
/// that is how Consul's address is set.
pub(crate) fn brief(words: &str) -> String {
    let (mut text, mut before) = (String::new(), [String::new(), String::new()]);
    let mut rest = words;
    while let Some(first) = rest.chars().next() {
        if !is_of_word(first) {
            if !first.is_whitespace() {
                text.push(first);
            } else if !text.ends_with(' ') {
                text.push(' ');
            }
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let end = rest.find(|c| !is_of_word(c)).unwrap_or(rest.len());
        let word = rest[..end].trim_end_matches(['.', ',', ':', ';', '-']);
        let lower = word.to_lowercase();
        let is_named = ID_NAMES.contains(&&*before[1]) || before == ["request", "id"];
        match word.parse::<SocketAddr>() {
            Ok(address) if !text.ends_with("://") => text.push_str(&address.ip().to_string()),
            Err(_) if is_id(word) || is_named && !word.is_empty() => text.push('…'),
            _ => text.push_str(word),
        }
        text.push_str(&rest[word.len()..end]);
        rest = &rest[end..];
        before.swap(0, 1);
        before[1] = lower;
    }
    cut(text.trim())
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '.' | ':' | '-' | '_' | '[' | ']')
}

/// Says whether a word is a random ID.
fn is_id(word: &str) -> bool {
    let digits = word.chars().filter(char::is_ascii_hexdigit).count();
    let is_hexadecimal = word.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    is_hexadecimal && digits >= ID_DIGITS && word.chars().any(|c| c.is_ascii_digit())
}

fn cut(text: &str) -> String {
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    text.chars().take(LONGEST - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_request_to_request_is_left_out() {
        for (words, expected) in [
            ("No cluster leader", "No cluster leader"),
            (
                "Consul at http://127.0.0.1:8500: tcp connect error: 127.0.0.1:8500: Connection refused (os error 111)",
                "Consul at http://127.0.0.1:8500: tcp connect error: 127.0.0.1: Connection refused (os error 111)",
            ),
            ("read tcp 10.0.0.7:45678->10.0.0.1:8300: i/o timeout", "read tcp 10.0.0.7->10.0.0.1: i/o timeout"),
            ("dial tcp [::1]:8300: connect: connection refused", "dial tcp ::1: connect: connection refused"),
            ("Bad Gateway\n  (request 8f14e45f-ceea-467f-ab3e-0a1b2c3d4e5f)\n", "Bad Gateway (request …)"),
            ("upstream error, request_id=7f3k-22, retry", "upstream error, request_id=…, retry"),
            ("502 Request ID: K4/2", "502 Request ID: …/2"),
            ("trace 4bf92f3577b34da6a3ce929d0e0e4736.", "trace …."),
            ("index 1234567 of deadbeef", "index 1234567 of deadbeef"),
            ("", ""),
        ] {
            assert_eq!(brief(words), expected, "{words}");
        }
    }

    #[test]
    fn long_words_are_cut() {
        let found = brief(&"ä ".repeat(1000));
        assert_eq!((found.chars().count(), found.chars().last()), (LONGEST, Some('…')));
    }
}
