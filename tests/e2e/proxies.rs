//! A proxy on the way to Kubernetes, and the metrics at an address of their own.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use lictor_testbed::{WorkDir, wait};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::fixture::{Fixture, SOON};

/// A proxy that tunnels (RFC 9110, CONNECT), and how often it did. It ends with its tasks.
async fn tunnels() -> Result<(String, Arc<AtomicUsize>, JoinSet<()>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?.to_string();
    let (count, mut serving) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
    let counted = Arc::clone(&count);
    serving.spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let counted = Arc::clone(&counted);
            // Whoever asks sees what goes wrong.
            open.spawn(async move {
                let _ = tunnel(BufStream::new(stream), &counted).await;
            });
        }
    });
    Ok((address, count, serving))
}

async fn tunnel(mut from: BufStream<TcpStream>, counted: &AtomicUsize) -> Result<()> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        ensure!(from.read_line(&mut head).await? > 0, "no end of the headers");
    }
    let to = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).context("no CONNECT")?;
    let mut to = TcpStream::connect(to).await?;
    counted.fetch_add(1, Ordering::SeqCst);
    from.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    from.flush().await?;
    copy_bidirectional(&mut from, &mut to).await?;
    Ok(())
}

pub(crate) async fn a_proxy_on_the_way_to_kubernetes(fixture: &Fixture) -> Result<()> {
    // One that nobody serves is no matter: the server is on this machine.
    let operator = fixture.operator().env("HTTPS_PROXY", "http://user:secret@127.0.0.1:1").ready().await?;
    ensure!(!operator.log().contains("secret"), "{}", operator.log());
    operator.terminate(SOON).await?;

    let (address, tunnelled, mut serving) = tunnels().await?;
    let text = std::fs::read_to_string(&fixture.kubeconfig)?;
    let mut kubeconfig: Value = serde_saphyr::from_str(&text)?;
    kubeconfig["clusters"][0]["cluster"]["proxy-url"] = json!(format!("http://user:secret@{address}"));
    let folder = WorkDir::create("proxy")?;
    let through = folder.write("kubeconfig", kubeconfig.to_string())?;

    // The metrics are at an address of their own.
    let metrics = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?.local_addr()?.to_string();
    let launch = fixture.operator().kubeconfig(&through).env("NO_PROXY", "*").flag("--metrics-address", &metrics);
    let operator = launch.ready().await?;
    let pods = fixture.web(1).await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&[&pods[0]]).await?;
    fixture.wait_ready("web").await?;
    ensure!(tunnelled.load(Ordering::SeqCst) > 0, "nothing goes through the proxy");
    let found = reqwest::get(format!("http://{metrics}/metrics")).await?.error_for_status()?.text().await?;
    ensure!(found.contains("lictor_ready 1"), "{found}");
    ensure!(operator.get("/metrics").await.is_err(), "the metrics are at the address of the probes, too");

    serving.shutdown().await;
    let words = format!("requests go through the proxy http://{address} (proxy-url of the kubeconfig)");
    wait::until("the log names the proxy", SOON, || async { Ok(operator.log().contains(&words).then_some(())) })
        .await?;
    ensure!(!operator.log().contains("secret"), "{}", operator.log());
    Ok(())
}
