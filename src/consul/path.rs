//! Paths of Consul's API, percent-encoded.

/// A path of the API from its segments and its query, all percent-encoded. A query value that is empty is a
/// bare flag.
#[must_use]
pub fn path(segments: &[&str], query: &[(&str, &str)]) -> String {
    let mut path = String::from("/v1");
    for segment in segments {
        path.push('/');
        encode(segment, &mut path);
    }
    for (index, (key, value)) in query.iter().enumerate() {
        path.push(if index == 0 { '?' } else { '&' });
        path.push_str(key);
        if !value.is_empty() {
            path.push('=');
            encode(value, &mut path);
        }
    }
    path
}

/// RFC 3986: everything but the unreserved characters.
pub(super) fn encode(text: &str, to: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => to.push(char::from(byte)),
            _ => {
                to.push('%');
                to.push(char::from(HEX[usize::from(byte >> 4)]));
                to.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_encoded() {
        assert_eq!(path(&["agent", "self"], &[]), "/v1/agent/self");
        assert_eq!(
            path(&["a b", "c:d/é"], &[("consistent", ""), ("filter", "ID == \"x\"")]),
            "/v1/a%20b/c%3Ad%2F%C3%A9?consistent&filter=ID%20%3D%3D%20%22x%22"
        );
    }
}
