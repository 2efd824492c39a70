//! One question to Consul's DNS (RFC 1035): over TCP, where no answer is cut short, or over UDP, as most clients ask.
//!
//! In: where it answers, a name, a kind of record. Out: how many records the answer has, or that there is none.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket, lookup_host};
use tokio::time::timeout;

/// The longest wait for an answer. Where Consul cannot put an answer into a packet, it sends none.
const PATIENCE: Duration = Duration::from_secs(3);

/// The identity of our questions: each has a connection or a socket of its own.
const ID: u16 = 0x4c49;

/// The bit of the flags that says that there is more.
const TRUNCATED: u16 = 0x0200;

/// The bytes of a header.
const HEADER: usize = 12;

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

/// What the header of an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The number of records.
    records: u16,
    /// There are more (TC): a client asks again over TCP.
    truncated: bool,
}

impl Answer {
    /// Whether it lacks some of `all` records, and does not say so.
    pub(super) fn hides_some_of(self, all: u16) -> bool {
        self.records < all && !self.truncated
    }

    /// Reads the header of an answer to [`question`].
    fn of(packet: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
        (word(0)? == ID).then_some(())?;
        Some(Self { truncated: word(2)? & TRUNCATED != 0, records: word(6)? })
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
        let mut answer = [0; 2 + HEADER];
        connection.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(Answer::of(&answer[2..]))
    };
    let answer = timeout(PATIENCE, exchange).await.ok().and_then(Result::ok).flatten();
    Ok(answer.map(|answer| answer.records))
}

/// Asks the same over UDP without EDNS. None where no answer comes: UDP may be closed on the way.
pub(super) async fn ask_over_udp(server: &str, name: &str, kind: Kind) -> Option<Answer> {
    let question = question(name, kind)?;
    let exchange = async {
        let server = lookup_host(server).await.ok()?.next()?;
        let ours = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(ours).await.ok()?;
        socket.connect(server).await.ok()?;
        socket.send(&question[2..]).await.ok()?;
        // What does not fit is lost; the header is first.
        let mut answer = [0; HEADER];
        let length = socket.recv(&mut answer).await.ok()?;
        Answer::of(&answer[..length])
    };
    timeout(PATIENCE, exchange).await.ok().flatten()
}

/// A packet with one question, behind its length; none for what is no domain name.
fn question(name: &str, kind: Kind) -> Option<Vec<u8>> {
    // Recursion desired, one question.
    let header = [ID, 0x0100, 1, 0, 0, 0_u16];
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

    #[test]
    fn an_answer_hides_records_if_it_lacks_some_and_does_not_say_so() {
        for (flags, records, all, hides) in [
            (0x8180_u16, 3_u8, 3, false),
            (0x8180, 3, 4, true),
            (0x8180, 0, 1, true),
            // Of an instance that came between both questions.
            (0x8180, 4, 3, false),
            (0x8380, 3, 4, false),
        ] {
            let [high, low] = flags.to_be_bytes();
            let answer = Answer::of(&[0x4c, 0x49, high, low, 0, 1, 0, records, 0, 0, 0, 0]).unwrap();
            assert_eq!(answer.hides_some_of(all), hides, "{flags:#x}: {records} of {all}");
        }
        assert_eq!(Answer::of(&[0x4c, 0x49, 0x81, 0x80, 0, 1, 0]), None, "it is cut");
        assert_eq!(Answer::of(&[0, 1, 0x81, 0x80, 0, 1, 0, 3]), None, "it answers another question");
    }
}
