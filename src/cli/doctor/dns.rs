//! One question to Consul's DNS (RFC 1035), over TCP so that no answer is cut short.
//!
//! In: where it answers, a name, a kind of record. Out: how many records the answer has, or that there is none.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The longest wait for an answer. Where Consul cannot put an answer into a packet, it sends none.
const PATIENCE: Duration = Duration::from_secs(3);

/// A type of DNS record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Records of IPv4 addresses.
    A,
    /// Records of IPv6 addresses.
    Aaaa,
    /// Addresses with their ports.
    Srv,
}

impl Kind {
    fn code(self) -> u16 {
        match self {
            Self::A => 1,
            Self::Aaaa => 28,
            Self::Srv => 33,
        }
    }
}

/// Asks the DNS at `server` (`HOST:PORT`) for `name`. Says how many records the answer has, none where no answer
/// comes; an error says that nobody can be asked.
pub(super) async fn ask(server: &str, name: &str, kind: Kind) -> Result<Option<u16>, String> {
    let Some(question) = question(name, kind) else { return Err(format!("{name:?} is not a domain name")) };
    let connected = timeout(PATIENCE, TcpStream::connect(server)).await;
    let mut connection = match connected {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return Err(format!("{server}: {error}")),
        Err(_) => return Err(format!("{server} does not answer within {} s", PATIENCE.as_secs())),
    };
    let exchange = async {
        connection.write_all(&question).await?;
        // The length, and the header: what is asked for is not looked at.
        let mut answer = [0; 14];
        connection.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(u16::from_be_bytes([answer[8], answer[9]]))
    };
    Ok(timeout(PATIENCE, exchange).await.ok().and_then(Result::ok))
}

/// A packet with one question, behind its length; none for what is no domain name.
fn question(name: &str, kind: Kind) -> Option<Vec<u8>> {
    // Any identity, recursion desired, one question.
    let header = [0x4c49, 0x0100, 1, 0, 0, 0_u16];
    let mut packet: Vec<u8> = header.iter().flat_map(|word| word.to_be_bytes()).collect();
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?);
        packet.extend_from_slice(label.as_bytes());
    }
    packet.push(0);
    packet.extend([kind.code(), 1].iter().flat_map(|word: &u16| word.to_be_bytes()));
    let length = u16::try_from(packet.len()).ok()?;
    Some(length.to_be_bytes().into_iter().chain(packet).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_a_packet_behind_its_length() {
        let packet = question("a_b.service.consul", Kind::Srv).unwrap();
        assert_eq!(packet.len(), usize::from(packet[1]) + 2);
        assert_eq!(&packet[14..], b"\x03a_b\x07service\x06consul\x00\x00\x21\x00\x01");
        for none in ["", "a..b", &"x".repeat(64)] {
            assert_eq!(question(none, Kind::A), None, "{none:?}");
        }
    }
}
