//! Certificates, keys and tokens that change while Lictor runs.

use std::cell::Cell;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lictor_testbed::certificates::{Authority, Pair};
use lictor_testbed::{Consul, ConsulOptions, Operator, WorkDir, ports, wait};
use serde_json::{Value, json};

use crate::fixture::{Fixture, Mode, SOON, arg, metric, wait_for_metric};
use crate::outages::wait_not_ready;
use crate::refusals::token;

/// How often everything is replaced.
const ROTATIONS: usize = 10;

/// Changes the resource so many times, waits each time until Consul has it, and counts in `done`.
async fn change(fixture: &Fixture, name: &str, times: usize, done: &Cell<usize>) -> Result<()> {
    for number in 0..times {
        let tag = format!("{name}-{number}");
        fixture.apply_web(json!({ "tags": [tag] })).await?;
        let all =
            |found: &[lictor_testbed::Instance]| found.len() == 2 && found.iter().all(|i| i.tags == [tag.clone()]);
        fixture.wait_for(&format!("the tag {tag}"), all).await?;
        done.set(done.get() + 1);
    }
    Ok(())
}

/// Waits until Consul has one more change. An agent that reloads its configuration may lose what it is told meanwhile, so that
/// one reload after the other, as fast as they go, may keep a change away for as long as they last.
async fn one_more(done: &Cell<usize>) -> Result<()> {
    let before = done.get();
    wait::until("one more change", SOON, || async { Ok((done.get() > before).then_some(())) }).await
}

/// Counts the writes that did not come through.
async fn failed_writes(operator: &Operator) -> Result<f64> {
    let metrics = operator.metrics().await?;
    let of = |line: &str| {
        let (labels, value) = line.strip_prefix("lictor_consul_writes_total{")?.split_once("} ")?;
        if labels.contains("written") { None } else { value.parse::<f64>().ok() }
    };
    Ok(metrics.lines().filter_map(of).sum())
}

/// Waits until `/readyz` is `ok`, with a line that holds these words.
async fn wait_for_remark(operator: &Operator, words: &str) -> Result<()> {
    wait::until(format!("/readyz remarks {words:?}"), SOON, || async {
        let text = operator.get("/readyz").await?;
        ensure!(text.starts_with("ok") && text.contains(words), "{text}");
        Ok(Some(()))
    })
    .await
}

/// The files of a Consul with TLS and of a Lictor that it asks for a certificate.
struct Keys {
    files: WorkDir,
    /// What Lictor has read so far.
    read: usize,
}

impl Keys {
    fn new() -> Result<Self> {
        Ok(Self { files: WorkDir::create("rotation")?, read: 0 })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        self.files.write(name, text).map(drop)
    }

    /// Gives Consul a certificate of one authority, and has it trust these.
    async fn give_consul(&self, from: &Authority, trusted: &[&Authority], consul: Option<&Consul>) -> Result<()> {
        let Pair { public, private } = from.server(vec!["127.0.0.1".to_owned()])?;
        self.write("consul.crt", &public)?;
        self.write("consul.key", &private)?;
        self.write("consul-ca.crt", &trusted.iter().map(|authority| authority.certificate()).collect::<String>())?;
        if let Some(consul) = consul {
            consul.api().put("/v1/agent/reload", &Value::Null).await?;
        }
        Ok(())
    }

    /// Has Lictor trust these authorities.
    fn trust(&self, trusted: &[&Authority]) -> Result<()> {
        self.write("ca.crt", &trusted.iter().map(|authority| authority.certificate()).collect::<String>())
    }

    /// Gives Lictor a certificate and its key, one after the other, as whoever copies files does.
    fn give_lictor(&self, pair: &Pair) -> Result<()> {
        self.write("lictor.crt", &pair.public)?;
        self.write("lictor.key", &pair.private)
    }

    /// Waits until Lictor uses what the files hold.
    async fn wait_for_use(&mut self, operator: &Operator) -> Result<()> {
        self.read += 1;
        wait::until(format!("certificates were read {} times", self.read), SOON, || async {
            let found = operator.log().matches("new certificates for Consul are in use").count();
            ensure!(found >= self.read, "{found} times");
            Ok(Some(()))
        })
        .await
    }

    fn launch_flags(&self) -> [(&'static str, PathBuf); 3] {
        [
            ("--consul-ca-cert", self.path("ca.crt")),
            ("--consul-client-cert", self.path("lictor.crt")),
            ("--consul-client-key", self.path("lictor.key")),
        ]
    }
}

pub(crate) async fn certificates_rotate_under_change(fixture: &Fixture) -> Result<()> {
    let mut keys = Keys::new()?;
    let mut authority = Authority::new("authority 0")?;
    keys.give_consul(&authority, &[&authority], None).await?;
    keys.trust(&[&authority])?;
    keys.give_lictor(&authority.client("lictor", None)?)?;
    let https = ports::free()?;
    let quoted = |name: &str| arg(&keys.path(name)).map(|path| format!("{path:?}"));
    let (ca, cert, key) = (quoted("consul-ca.crt")?, quoted("consul.crt")?, quoted("consul.key")?);
    let extra_hcl = format!(
        "ports {{ https = {https} }}
         tls {{ https {{ ca_file = {ca}, cert_file = {cert}, key_file = {key}, verify_incoming = true }} }}"
    );
    let consul = fixture.own_consul(ConsulOptions { extra_hcl, persistent: true, ..ConsulOptions::default() }).await?;
    let pods = fixture.web(2).await?;
    let mut launch = fixture.operator().consul(&format!("https://127.0.0.1:{https}"));
    for (flag, path) in keys.launch_flags() {
        launch = launch.flag(flag, arg(&path)?);
    }
    fixture.apply_web(json!({})).await?;
    let operator = launch.ready().await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    let left = |credential: &str| format!("lictor_credential_remaining_seconds{{credential=\"{credential}\"}}");
    for credential in ["authorities", "certificate"] {
        wait_for_metric(&operator, &left(credential), |left| left.is_finite() && left > 86_400.0).await?;
    }
    wait_for_metric(&operator, &left("token"), |left| left == f64::INFINITY).await?;

    let changes = Cell::new(0);
    let rotations = async {
        for number in 1..=ROTATIONS {
            let next = Authority::new(&format!("authority {number}"))?;
            keys.trust(&[&authority, &next])?;
            keys.wait_for_use(&operator).await?;
            keys.give_consul(&next, &[&authority, &next], Some(consul)).await?;
            one_more(&changes).await?;
            if number == ROTATIONS / 2 {
                broken(&keys, &operator).await?;
            }
            keys.give_lictor(&next.client("lictor", None)?)?;
            keys.wait_for_use(&operator).await?;
            // From here on only the new ones do.
            keys.give_consul(&next, &[&next], Some(consul)).await?;
            one_more(&changes).await?;
            authority = next;
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::select! {
        done = rotations => done?,
        stopped = change(fixture, "during", usize::MAX, &changes) => stopped?,
    }
    // An agent that reloads its configuration does not know its own checks for a moment (Consul 1.22.7: it unloads all and
    // loads them again), so that it may answer 404 to the update of one.
    let failed = failed_writes(&operator).await?;
    ensure!(failed == 0.0 || fixture.mode == Mode::Agent, "{}", operator.metrics().await?);
    change(fixture, "after", 10, &changes).await?;
    ensure!(failed_writes(&operator).await? <= failed, "{}", operator.metrics().await?);
    ensure!(!operator.log().contains("Consul is unavailable"), "{}", operator.log());
    wait_for_metric(&operator, "lictor_credential_stale{credential=\"certificate\"}", |stale| stale == 0.0).await?;

    // Connections outlive their certificates: after a restart of Consul only the last ones open any.
    consul.kill()?;
    consul.start_again().await?;
    change(fixture, "anew", 1, &changes).await
}

/// Gives Lictor half a file, then a key of another certificate, then a certificate that Consul does not accept.
async fn broken(keys: &Keys, operator: &Operator) -> Result<()> {
    let stale = "lictor_credential_stale{credential=\"certificate\"}";
    let good = std::fs::read_to_string(keys.path("lictor.crt"))?;
    keys.write("lictor.crt", &good[..good.len() / 2])?;
    wait_for_remark(operator, "Lictor still uses its previous content").await?;
    wait_for_metric(operator, stale, |stale| stale > 0.0).await?;
    let stranger = Authority::new("a stranger")?.client("lictor", None)?;
    keys.write("lictor.crt", &stranger.public)?;
    wait_for_remark(operator, "does not belong to the certificate in").await?;
    keys.give_lictor(&stranger)?;
    wait_for_remark(operator, "the server does not accept the certificate in").await
}

pub(crate) async fn a_token_changes_and_one_ends(fixture: &Fixture) -> Result<()> {
    let consul = fixture.own_consul(ConsulOptions { acl: true, ..ConsulOptions::default() }).await?;
    let files = WorkDir::create("rotation")?;
    let first = token(fixture, r#"service_prefix "" { policy = "write" }"#).await?;
    let another = |ttl: Value| async move {
        let body = json!({ "Policies": [{ "Name": "lictor" }], "ExpirationTTL": ttl });
        let made = consul.api().put("/v1/acl/token", &body).await?;
        Ok::<_, anyhow::Error>(made["SecretID"].as_str().context("a token")?.to_owned())
    };
    let file = files.write("token", &first)?;
    let write = |text: &str| std::fs::write(&file, text).context("the token");
    let pods = fixture.web(2).await?;
    fixture.apply_web(json!({})).await?;
    let operator = fixture.operator().flag("--consul-token-file", arg(&file)?).ready().await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    let of_token = |name: &str| format!("lictor_credential_{name}{{credential=\"token\"}}");

    let changes_done = Cell::new(0);
    let changes = async {
        write(&first[..20])?;
        wait_for_remark(&operator, "Consul refuses it").await?;
        write("")?;
        wait_for_remark(&operator, "holds no Consul token").await?;
        wait_for_metric(&operator, &of_token("stale"), |stale| stale > 0.0).await?;
        // The shortest time that Consul knows.
        write(&another(json!("60s")).await?)?;
        wait_for_metric(&operator, &of_token("remaining_seconds"), |left| left < 60.0).await?;
        wait_for_metric(&operator, &of_token("stale"), |stale| stale == 0.0).await
    };
    tokio::select! {
        done = changes => done?,
        stopped = change(fixture, "during", usize::MAX, &changes_done) => stopped?,
    }
    ensure!(failed_writes(&operator).await? == 0.0, "{}", operator.metrics().await?);

    wait::until("the token ends soon", Duration::from_secs(70), || async {
        Ok((metric(&operator.metrics().await?, &of_token("ends_soon"))? > 0.0).then_some(()))
    })
    .await?;
    wait_for_remark(&operator, "the token for Consul ends at").await?;
    wait_not_ready(&operator, "the token is not known to Consul").await?;
    wait_for_metric(&operator, "lictor_consul_refuses", |refuses| refuses > 0.0).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    write(&another(Value::Null).await?)?;
    operator.wait_ready(SOON).await?;
    wait_for_metric(&operator, "lictor_consul_refuses", |refuses| refuses == 0.0).await?;
    change(fixture, "after", 1, &changes_done).await
}
