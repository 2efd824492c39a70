//! HTTP/2 as far as pings: by hand, since the libraries answer them without a word to whoever uses them.

use anyhow::{Result, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Message, Over, Record};

/// What a client begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Types of frames, and their flag.
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;

pub(super) async fn speak<S>(mut stream: S, over: Over, record: Record) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    ensure!(preface == PREFACE, "not HTTP/2");
    send(&mut stream, SETTINGS, 0, &[]).await?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = Vec::new();
        (&mut stream).take(length.into()).read_to_end(&mut payload).await?;
        match (head[3], head[4] & ACK != 0) {
            (SETTINGS, false) => send(&mut stream, SETTINGS, ACK, &[]).await?,
            (PING, false) => {
                record.add(Message::Ping, &over);
                send(&mut stream, PING, ACK, &payload).await?;
            }
            _ => {}
        }
    }
}

/// Sends a frame of the connection as a whole.
async fn send(stream: &mut (impl AsyncWrite + Unpin), kind: u8, flags: u8, payload: &[u8]) -> Result<()> {
    let mut frame = vec![0, 0, u8::try_from(payload.len())?, kind, flags, 0, 0, 0, 0];
    frame.extend(payload);
    stream.write_all(&frame).await?;
    Ok(stream.flush().await?)
}
