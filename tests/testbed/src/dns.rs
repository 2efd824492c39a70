//! As much of DNS (RFC 1035, RFC 2782, RFC 3596) as `dig +short NAME` needs for A, AAAA and SRV, so that neither
//! tests nor the demo need `dig`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::net::UdpSocket;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(3);

const NAME_ERROR: u8 = 3;
const TRUNCATED: u16 = 0x0200;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const TYPE_SRV: u16 = 33;
const CLASS_INTERNET: u16 = 1;

/// One SRV record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Srv {
    /// Lower ones first.
    pub priority: u16,
    /// Among those of one priority.
    pub weight: u16,
    /// Where the service answers.
    pub port: u16,
    /// The name of its machine, with a dot at the end.
    pub target: String,
}

/// What a name server said.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The name does not exist (NXDOMAIN).
    pub no_such_name: bool,
    /// It says that there is more than it has (TC).
    pub truncated: bool,
    /// A and AAAA records of the answer section.
    pub addresses: Vec<IpAddr>,
    /// SRV records, likewise.
    pub srv: Vec<Srv>,
    /// Addresses that came along with SRV records, by name.
    pub along: BTreeMap<String, IpAddr>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Places where a service answers.
    Srv,
}

/// Asks a name server for a name, given without its last dot.
pub async fn ask(server: SocketAddr, name: &str, kind: Kind) -> Result<Answer> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(server).await?;
    let id = fastrand::u16(..);
    socket.send(&query(id, name, kind)?).await?;
    let mut packet = [0; 4096];
    let length = timeout(PATIENCE, socket.recv(&mut packet)).await.context("no answer from Consul's DNS")??;
    let packet = &packet[..length];
    ensure!(packet.starts_with(&id.to_be_bytes()), "an answer to another question");
    parse(packet).context("reading a DNS answer")
}

fn query(id: u16, name: &str, kind: Kind) -> Result<Vec<u8>> {
    let kind = match kind {
        Kind::A => TYPE_A,
        Kind::Aaaa => TYPE_AAAA,
        Kind::Srv => TYPE_SRV,
    };
    // Recursion desired, one question.
    let header = [id, 0x0100, 1, 0, 0, 0];
    let mut packet: Vec<u8> = header.iter().flat_map(|word| word.to_be_bytes()).collect();
    for label in name.split('.') {
        ensure!((1..64).contains(&label.len()), "{name:?} is not a domain name");
        packet.push(u8::try_from(label.len())?);
        packet.extend_from_slice(label.as_bytes());
    }
    packet.push(0);
    packet.extend([kind, CLASS_INTERNET].iter().flat_map(|word| word.to_be_bytes()));
    Ok(packet)
}

fn parse(packet: &[u8]) -> Result<Answer> {
    let mut reader = Reader { packet, at: 2 };
    let flags = reader.word()?;
    let [questions, answers, authorities, additional] =
        [reader.word()?, reader.word()?, reader.word()?, reader.word()?];
    let code = flags.to_be_bytes()[1] & 0x0f;
    ensure!(code == 0 || code == NAME_ERROR, "the name server answers with error {code}");
    for _ in 0..questions {
        reader.name()?;
        reader.skip(4)?;
    }
    let truncated = flags & TRUNCATED != 0;
    let mut answer = Answer { no_such_name: code == NAME_ERROR, truncated, ..Answer::default() };
    for number in 0..usize::from(answers) + usize::from(authorities) + usize::from(additional) {
        let name = reader.name()?;
        let kind = reader.word()?;
        // Class and time to live.
        reader.skip(6)?;
        let length = usize::from(reader.word()?);
        let end = reader.at + length;
        let is_answer = number < usize::from(answers);
        let address: Option<IpAddr> = match kind {
            TYPE_A => Some(Ipv4Addr::from(reader.bytes::<4>()?).into()),
            TYPE_AAAA => Some(Ipv6Addr::from(reader.bytes::<16>()?).into()),
            _ => None,
        };
        match (kind, address) {
            (_, Some(address)) if is_answer => answer.addresses.push(address),
            (_, Some(address)) => _ = answer.along.insert(name, address),
            (TYPE_SRV, None) if is_answer => {
                let [priority, weight, port] = [reader.word()?, reader.word()?, reader.word()?];
                answer.srv.push(Srv { priority, weight, port, target: reader.name()? });
            }
            _ => {}
        }
        reader.at = end;
    }
    Ok(answer)
}

/// A place in a packet.
struct Reader<'a> {
    packet: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.packet.get(self.at..self.at + N).context("it ends too soon")?;
        self.at += N;
        Ok(bytes.try_into()?)
    }

    fn word(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.bytes()?))
    }

    fn skip(&mut self, bytes: usize) -> Result<()> {
        self.at += bytes;
        ensure!(self.at <= self.packet.len(), "it ends too soon");
        Ok(())
    }

    /// A name, with a dot after each label. Its end may be a pointer to an earlier name.
    fn name(&mut self) -> Result<String> {
        let (mut name, mut after) = (String::new(), None);
        // A name has at most 127 labels: more means pointers in a circle.
        for _ in 0..128 {
            let [length] = self.bytes::<1>()?;
            match length {
                0 => {
                    self.at = after.unwrap_or(self.at);
                    return Ok(name);
                }
                1..=0x3f => {
                    let label = self.packet.get(self.at..self.at + usize::from(length)).context("it ends too soon")?;
                    name.push_str(&String::from_utf8_lossy(label));
                    name.push('.');
                    self.at += usize::from(length);
                }
                _ => {
                    let [low] = self.bytes::<1>()?;
                    after.get_or_insert(self.at);
                    self.at = usize::from(u16::from_be_bytes([length & 0x3f, low]));
                }
            }
        }
        bail!("a name that does not end")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer to `query(7, "a.b", …)` with these records, as (name, type, data).
    fn packet(flags: u16, answers: &[(&[u8], u16, &[u8])], additional: &[(&[u8], u16, &[u8])]) -> Result<Vec<u8>> {
        let mut packet = query(7, "a.b", Kind::Srv)?;
        packet[2..4].copy_from_slice(&flags.to_be_bytes());
        packet[7] = u8::try_from(answers.len())?;
        packet[11] = u8::try_from(additional.len())?;
        for (name, kind, data) in answers.iter().chain(additional) {
            packet.extend_from_slice(name);
            packet.extend_from_slice(&kind.to_be_bytes());
            packet.extend_from_slice(&[0, 1, 0, 0, 0, 0]);
            packet.extend_from_slice(&u16::try_from(data.len())?.to_be_bytes());
            packet.extend_from_slice(data);
        }
        Ok(packet)
    }

    /// The question's own name, at offset 12, by a pointer.
    const POINTER: &[u8] = &[0xc0, 12];

    #[test]
    fn records_are_read() -> Result<()> {
        let target = b"\x01x\xc0\x0c";
        let srv = [&[0, 1, 0, 2, 0x23, 0x82], &target[..]].concat();
        let packet = packet(
            0x8180,
            &[
                (POINTER, TYPE_A, &[10, 0, 0, 1]),
                (POINTER, TYPE_AAAA, &Ipv6Addr::LOCALHOST.octets()),
                (POINTER, TYPE_SRV, &srv),
            ],
            &[(target, TYPE_A, &[10, 0, 0, 2])],
        )?;
        let answer = parse(&packet)?;
        assert_eq!(answer.addresses, [IpAddr::from([10, 0, 0, 1]), Ipv6Addr::LOCALHOST.into()]);
        assert_eq!(answer.srv, [Srv { priority: 1, weight: 2, port: 9090, target: "x.a.b.".to_owned() }]);
        assert_eq!(answer.along.get("x.a.b."), Some(&IpAddr::from([10, 0, 0, 2])));
        for length in 0..packet.len() {
            assert!(parse(&packet[..length]).is_err(), "cut at {length}");
        }
        Ok(())
    }

    #[test]
    fn a_name_that_does_not_exist_is_no_error_and_a_failure_is() -> Result<()> {
        assert!(parse(&packet(0x8183, &[], &[])?)?.no_such_name);
        assert!(parse(&packet(0x8182, &[], &[])?).is_err());
        assert!(parse(&packet(0x8380, &[], &[])?)?.truncated);
        Ok(())
    }

    #[test]
    fn a_circle_of_pointers_ends() -> Result<()> {
        let mut packet = packet(0x8180, &[(POINTER, TYPE_A, &[10, 0, 0, 1])], &[])?;
        packet[12..14].copy_from_slice(POINTER);
        assert!(parse(&packet).is_err());
        Ok(())
    }
}
