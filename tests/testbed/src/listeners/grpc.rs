//! The standard gRPC health service (`grpc.health.v1.Health/Check`): one call, of one field each way.

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Message, Over, Record};

/// `HealthCheckResponse.ServingStatus`.
const SERVING: u8 = 1;
const NOT_SERVING: u8 = 2;

pub(super) async fn speak<S>(stream: S, over: Over, record: Record) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(call) = connection.accept().await {
        let (request, respond) = call?;
        // The body arrives only while the connection is driven.
        let (over, record) = (over.clone(), record.clone());
        tokio::spawn(async move { answer(request, respond, over, record).await });
    }
    Ok(())
}

async fn answer(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    over: Over,
    record: Record,
) -> Result<()> {
    let (head, mut stream) = request.into_parts();
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend(data);
    }
    let path = head.uri.path().to_owned();
    record.add(Message::Call { path, service: service(&body) }, &over);
    let status = if record.status() == 200 { SERVING } else { NOT_SERVING };
    let head = Response::builder().header("content-type", "application/grpc").body(())?;
    let mut answer = respond.send_response(head, false)?;
    // A frame of two bytes, not compressed: field 1, a varint.
    answer.send_data(Bytes::from(vec![0, 0, 0, 0, 2, 0x08, status]), false)?;
    answer.send_trailers(HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]))?;
    Ok(())
}

/// `HealthCheckRequest.service`, the only field: behind a frame's head of five bytes, its tag and its length. It is
/// absent where it is empty.
fn service(frame: &[u8]) -> String {
    frame.get(7..).map(|text| String::from_utf8_lossy(text).into_owned()).unwrap_or_default()
}
