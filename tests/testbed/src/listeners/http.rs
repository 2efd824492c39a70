//! HTTP/1.1: answers with the status that is set.

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Message, Over, Record};

pub(super) async fn speak<S>(stream: S, over: Over, record: Record) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let service = service_fn(|request| answer(request, &over, &record));
    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await?;
    Ok(())
}

async fn answer(request: Request<Incoming>, over: &Over, record: &Record) -> Result<Response<Empty<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut headers: Vec<(String, String)> =
        head.headers.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes()))).collect();
    headers.sort();
    let target = head.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    record.add(Message::Request { method: head.method.to_string(), target, headers, body: text(&body) }, over);
    Ok(Response::builder().status(record.answer().await).body(Empty::new())?)
}
