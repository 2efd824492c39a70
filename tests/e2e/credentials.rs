//! Certificates and keys that cannot be used, or not any more.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::config::Kubeconfig;
use lictor_testbed::certificates::Authority;
use lictor_testbed::{ConsulOptions, WorkDir, ports, wait};
use serde_json::json;

use crate::fixture::{Fixture, LICTOR, SOON, arg};
use crate::outages::wait_not_ready;

/// Of X.509 version 1.
const VERSION_1: &str = include_str!("../support/version_1.crt");

const HOUR: Duration = Duration::from_secs(3600);

/// What `lictor doctor` says, to which not all is well.
fn doctor(fixture: &Fixture, kubeconfig: &Path, more: &[&str]) -> Result<String> {
    let consul = fixture.consul_address();
    let mut command = Command::new(LICTOR);
    command.args(["doctor", "--registration", fixture.mode.as_str(), "--cluster-name", &fixture.cluster]);
    command.args([
        "--namespace",
        fixture.namespace.name(),
        "--consul-address",
        &consul,
        "--kubeconfig",
        arg(kubeconfig)?,
    ]);
    let output = command.args(more).output()?;
    let text = String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(1), "it ended with {}: {text}", output.status);
    Ok(text)
}

/// A kubeconfig as the fixture's, in which the user has this client certificate and key; by their files, or in itself.
fn kubeconfig(fixture: &Fixture, files: &WorkDir, name: &str, pair: (&Path, &Path), inline: bool) -> Result<PathBuf> {
    let mut kubeconfig = Kubeconfig::read_from(&fixture.kubeconfig)?;
    let user = if inline {
        let encoded = |file: &Path| Ok::<_, anyhow::Error>(STANDARD.encode(std::fs::read(file)?));
        json!({ "client-certificate-data": encoded(pair.0)?, "client-key-data": encoded(pair.1)? })
    } else {
        json!({ "client-certificate": pair.0, "client-key": pair.1 })
    };
    for info in kubeconfig.auth_infos.iter_mut().filter_map(|named| named.auth_info.as_mut()) {
        *info = serde_json::from_value(user.clone())?;
    }
    // kube hides keys when it writes a kubeconfig for people to see: so it is put together here.
    let mut text = serde_json::to_value(&kubeconfig)?;
    text["users"][0]["user"] = user;
    files.write(name, text.to_string())
}

pub(crate) async fn certificates_that_cannot_be_used(fixture: &Fixture) -> Result<()> {
    let files = WorkDir::create("credentials")?;
    let file = |name: &str, text: &[u8]| files.write(name, text);
    let authority = Authority::new("an authority")?;
    let (one, other) = (authority.client("lictor", None)?, authority.client("lictor", None)?);
    let (good, key) = (file("good.crt", one.public.as_bytes())?, file("good.key", one.private.as_bytes())?);
    let encrypted = one.private.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let empty = file("empty.pem", b"")?;
    let no_pem = file("no.pem", b"no PEM at all\n")?;
    let bad = [
        (file("version-1.crt", VERSION_1.as_bytes())?, key.clone(), "is of X.509 version 1"),
        (good.clone(), file("encrypted.key", encrypted.as_bytes())?, "is encrypted"),
        (good.clone(), file("other.key", other.private.as_bytes())?, "does not belong to the certificate in"),
        (empty.clone(), key.clone(), "is empty"),
        (good.clone(), no_pem.clone(), "is not in PEM form"),
    ];
    for (number, (certificate, private, words)) in bad.iter().enumerate() {
        let at_fault = if *certificate == good { private } else { certificate };
        let flags = ["--consul-client-cert", arg(certificate)?, "--consul-client-key", arg(private)?];
        let said = doctor(fixture, &fixture.kubeconfig, &flags)?;
        let line = said.lines().find(|line| line.starts_with("FAIL  Consul is configured: ")).context(said.clone())?;
        ensure!(line.contains(words) && line.contains(arg(at_fault)?), "{words}: {said}");

        for inline in [false, true] {
            let name = format!("{number}-{inline}");
            let kubeconfig = kubeconfig(fixture, &files, &name, (certificate, private), inline)?;
            let said = doctor(fixture, &kubeconfig, &[])?;
            let line =
                said.lines().find(|line| line.starts_with("FAIL  Kubernetes is configured: ")).context(said.clone())?;
            let place = if inline { arg(&kubeconfig)? } else { arg(at_fault)? };
            ensure!(line.contains(words) && line.contains(place), "{words}: {said}");
        }
    }
    for (authorities, words) in
        [(&good, "holds no certificate of an authority"), (&empty, "is empty"), (&no_pem, "PEM form")]
    {
        let said = doctor(fixture, &fixture.kubeconfig, &["--consul-ca-cert", arg(authorities)?])?;
        ensure!(said.contains("FAIL  Consul is configured: ") && said.contains(words), "{said}");
        ensure!(said.contains(arg(authorities)?), "{said}");

        let mut kubeconfig = Kubeconfig::read_from(&fixture.kubeconfig)?;
        let cluster = kubeconfig.clusters.first_mut().and_then(|named| named.cluster.as_mut()).context("no cluster")?;
        (cluster.certificate_authority, cluster.certificate_authority_data) =
            (Some(arg(authorities)?.to_owned()), None);
        let kubeconfig = files.write("authorities", serde_json::to_string(&kubeconfig)?)?;
        let said = doctor(fixture, &kubeconfig, &[])?;
        ensure!(said.contains("FAIL  Kubernetes is configured: ") && said.contains(words), "{said}");
        ensure!(said.contains(arg(authorities)?), "{said}");
    }

    // One whose time is over is for the server to refuse.
    let now = SystemTime::now();
    let expired = authority.client_within("lictor", now - 2 * HOUR..now - HOUR)?;
    let (certificate, private) =
        (file("expired.crt", expired.public.as_bytes())?, file("expired.key", expired.private.as_bytes())?);
    let kubeconfig = kubeconfig(fixture, &files, "expired", (&certificate, &private), false)?;
    let operator = fixture.operator().kubeconfig(&kubeconfig).start()?;
    let why = wait_not_ready(&operator, "expired at").await?;
    ensure!(why.contains(arg(&certificate)?) && why.contains("renew it"), "{why}");
    Ok(())
}

pub(crate) async fn a_client_certificate_expires(fixture: &Fixture) -> Result<()> {
    let files = WorkDir::create("credentials")?;
    let file = |name: &str, text: &str| files.write(name, text);
    let authority = Authority::new("consul")?;
    let server = authority.server(vec!["127.0.0.1".to_owned()])?;
    let https = ports::free()?;
    let ca = file("ca.crt", authority.certificate())?;
    let (cert, key) = (file("server.crt", &server.public)?, file("server.key", &server.private)?);
    let (ca, cert, key) = (arg(&ca)?, arg(&cert)?, arg(&key)?);
    let extra_hcl = format!(
        "ports {{ https = {https} }}
         tls {{ https {{ ca_file = {ca:?}, cert_file = {cert:?}, key_file = {key:?}, verify_incoming = true }} }}"
    );
    let consul = fixture.own_consul(ConsulOptions { extra_hcl, persistent: true, ..ConsulOptions::default() }).await?;
    let pods = fixture.web(2).await?;
    fixture.apply_web(json!({})).await?;

    let now = SystemTime::now();
    let end = now + Duration::from_secs(20);
    let client = authority.client_within("lictor", now - HOUR..end)?;
    let certificate = file("client.crt", &client.public)?;
    let launch = fixture.operator().consul(&format!("https://127.0.0.1:{https}")).flag("--consul-ca-cert", ca);
    let launch = launch.flag("--consul-client-cert", arg(&certificate)?);
    let operator = launch.flag("--consul-client-key", arg(&file("client.key", &client.private)?)?).ready().await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    wait::until("the end of the certificate's time", SOON, || async { Ok((SystemTime::now() > end).then_some(())) })
        .await?;
    // A connection outlives the certificate that it began with.
    consul.kill()?;
    consul.start_again().await?;
    let why = wait_not_ready(&operator, "expired at").await?;
    ensure!(why.contains(arg(&certificate)?) && why.contains("renew it;"), "{why}");
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await.map(drop)
}
