//! What reached a listener, in words that are the same each time.

use std::net::SocketAddr;

use super::{Heard, Message, Over};

/// Headers of the connection and of Go's own.
const OF_GO: [&str; 3] = ["accept-encoding", "connection", "content-length"];

/// Headers that a request of Consul's has in any case, with what is in them unless the check says otherwise.
const OF_CONSUL: [(&str, &str); 3] =
    [("accept", "text/plain, text/*, */*"), ("host", "ADDRESS:PORT"), ("user-agent", "Consul Health Check")];

impl Heard {
    /// In words, as Markdown: of a request's headers only those that are not always there, and of those that always
    /// are the ones that are missing. `own` is the listener's address.
    #[must_use]
    pub fn in_words(&self, own: SocketAddr) -> String {
        let mut words = match &self.what {
            Message::Request { method, target, headers, body } => {
                let mut words = vec![format!("`{method} {target}`")];
                words.extend(unusual(headers, own));
                words.extend((!body.is_empty()).then(|| format!("and then `{body}`")));
                words
            }
            Message::Connection => vec!["a connection".to_owned()],
            Message::Call { path, service } if service.is_empty() => {
                vec![format!("`{path}` of the server as a whole")]
            }
            Message::Call { path, service } => vec![format!("`{path}` of `{service}`")],
            Message::Ping => vec!["a ping".to_owned()],
            Message::Datagram(bytes) => vec![format!("a datagram of {} bytes", bytes.len())],
        };
        match &self.over {
            Over::Plain => {}
            Over::Tls { sni: Some(name) } => words.push(format!("over TLS, asking for `{name}`")),
            Over::Tls { sni: None } => words.push("over TLS, asking for no name".to_owned()),
        }
        words.join(", ")
    }
}

fn unusual(headers: &[(String, String)], own: SocketAddr) -> impl Iterator<Item = String> {
    let own = own.to_string();
    let asked_for = headers
        .iter()
        .map(move |(name, value)| (name.as_str(), value.replace(&own, "ADDRESS:PORT")))
        .filter(|(name, value)| !OF_GO.contains(name) && !OF_CONSUL.contains(&(name, value)))
        .map(|(name, value)| format!("`{name}: {value}`"));
    let missing = OF_CONSUL.iter().filter(|(name, _)| !headers.iter().any(|(there, _)| there == name));
    asked_for.chain(missing.map(|(name, _)| format!("without `{name}`")))
}
