//! Logging in to Consul by an auth method, on a Consul with ACLs that asks the real API server about each token.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::config::Kubeconfig;
use lictor_testbed::{ConsulOptions, Proxy, WorkDir, wait};
use serde_json::{Value, json};

use crate::commands::says;
use crate::fixture::{Fixture, LICTOR, LOGIN_MINUTES, SOON, arg};
use crate::launch::Launch;
use crate::outages::wait_not_ready;

/// The name of the auth method, and of all that hangs on it.
const METHOD: &str = "lictor";

/// What the docs tell people to apply.
const EXAMPLE: &str = include_str!("../../examples/access/consul-auth-method.yaml");

/// A Consul that lets the service account `lictor` of the scenario's namespace log in.
struct Login<'a> {
    fixture: &'a Fixture,
    files: WorkDir,
    /// The file with the service account's token.
    token: PathBuf,
    /// The address and the authority of the API server.
    kubernetes: (String, String),
    /// The service account of the auth method, and all that it may.
    reviewer: String,
    lifetime: &'static str,
}

impl<'a> Login<'a> {
    async fn make(fixture: &'a Fixture, lifetime: &'static str) -> Result<Self> {
        fixture.own_consul(ConsulOptions { acl: true, ..ConsulOptions::default() }).await?;
        let files = WorkDir::create("login")?;
        let kubeconfig = Kubeconfig::read_from(&fixture.kubeconfig)?;
        let cluster = kubeconfig.clusters.first().and_then(|named| named.cluster.clone()).context("no cluster")?;
        let authority = std::fs::read_to_string(cluster.certificate_authority.context("no authority")?)?;
        let kubernetes = (cluster.server.context("no server")?, authority);
        let reviewer = format!("review-{}", fixture.namespace.name());
        let login = Self { fixture, token: files.join("token"), files, kubernetes, reviewer, lifetime };
        fixture.namespace.kubectl(&["create", "serviceaccount", "lictor"]).await?;
        login.grant().await?;
        login.be("lictor", &[]).await?;
        let rules = json!({ "Name": METHOD, "Rules": rules(fixture) });
        fixture.consul().put("/v1/acl/policy", &rules).await?;
        let role = json!({ "Name": METHOD, "Policies": [{ "Name": METHOD }] });
        fixture.consul().put("/v1/acl/role", &role).await?;
        login.make_method(json!({})).await?;
        login.bind().await?;
        Ok(login)
    }

    /// Applies the example, with names of this scenario alone.
    async fn grant(&self) -> Result<()> {
        let namespace = format!("namespace: {}\n", self.fixture.namespace.name());
        let example = EXAMPLE.replace("consul-auth-method", &self.reviewer);
        let example = example.replace("namespace: consul\n", &namespace).replace("namespace: lictor\n", &namespace);
        self.fixture.namespace.apply_yaml(&example).await.map(drop)
    }

    /// Has Lictor show a token of this service account.
    async fn be(&self, account: &str, more: &[&str]) -> Result<()> {
        let token = self.fixture.namespace.kubectl(&[&["create", "token", account], more].concat()).await?;
        self.show(&token)
    }

    fn show(&self, token: &str) -> Result<()> {
        self.files.write("token", token).map(drop)
    }

    /// Makes the auth method, or changes it.
    async fn make_method(&self, other: Value) -> Result<()> {
        let secret = ["get", "secret", &self.reviewer, "--output=go-template={{.data.token | base64decode}}"];
        let jwt = wait::until("the token of the auth method", SOON, || async {
            let token = self.fixture.namespace.kubectl(&secret).await?;
            Ok(token.starts_with("ey").then_some(token))
        })
        .await?;
        let (host, authority) = &self.kubernetes;
        let mut config = json!({ "Host": host, "CACert": authority, "ServiceAccountJWT": jwt.trim() });
        if let (Value::Object(config), Value::Object(other)) = (&mut config, other) {
            config.extend(other);
        }
        let method = json!({ "Name": METHOD, "Type": "kubernetes", "MaxTokenTTL": self.lifetime, "Config": config });
        let consul = self.fixture.consul();
        let is_there = consul.get(&format!("/v1/acl/auth-method/{METHOD}")).await.is_ok();
        let path = if is_there { format!("/v1/acl/auth-method/{METHOD}") } else { "/v1/acl/auth-method".to_owned() };
        consul.put(&path, &method).await.map(drop)
    }

    async fn bind(&self) -> Result<()> {
        let selector = format!(
            "serviceaccount.namespace=={:?} and serviceaccount.name==\"lictor\"",
            self.fixture.namespace.name()
        );
        let rule = json!({ "AuthMethod": METHOD, "BindType": "role", "BindName": METHOD, "Selector": selector });
        self.fixture.consul().put("/v1/acl/binding-rule", &rule).await.map(drop)
    }

    async fn unbind(&self) -> Result<()> {
        let consul = self.fixture.consul();
        let rules = consul.get(&format!("/v1/acl/binding-rules?authmethod={METHOD}")).await?;
        for rule in rules.as_array().into_iter().flatten().filter_map(|rule| rule["ID"].as_str()) {
            consul.delete(&format!("/v1/acl/binding-rule/{rule}")).await?;
        }
        Ok(())
    }

    /// The tokens that were given by the auth method and not given back.
    async fn tokens(&self) -> Result<Vec<Value>> {
        let tokens = self.fixture.consul().get(&format!("/v1/acl/tokens?authmethod={METHOD}")).await?;
        Ok(tokens.as_array().cloned().unwrap_or_default())
    }

    async fn wait_for_tokens(&self, count: usize) -> Result<()> {
        wait::until(format!("{count} tokens of logins"), SOON, || async {
            let tokens = self.tokens().await?;
            ensure!(tokens.len() == count, "they are {tokens:?}");
            Ok(Some(()))
        })
        .await
    }

    /// Deletes all tokens that were given by the auth method.
    async fn delete_tokens(&self) -> Result<()> {
        for token in self.tokens().await? {
            let accessor = token["AccessorID"].as_str().context("no accessor")?.to_owned();
            self.fixture.consul().delete(&format!("/v1/acl/token/{accessor}")).await?;
        }
        Ok(())
    }

    fn operator(&self) -> Result<Launch<'a>> {
        let launch = self.fixture.operator().flag("--consul-auth-method", METHOD);
        Ok(launch.flag("--consul-auth-bearer-token-file", arg(&self.token)?))
    }

    /// What a subcommand says that logs in, and ends with this code.
    fn says(&self, subcommand: &str, more: &[&str], code: i32) -> Result<String> {
        let flags = ["--consul-auth-method", METHOD, "--consul-auth-bearer-token-file", arg(&self.token)?];
        says(self.fixture, subcommand, &[&flags, more].concat(), code)
    }

    async fn clear_away(&self) -> Result<()> {
        self.fixture.namespace.kubectl(&["delete", "clusterrolebinding", &self.reviewer]).await.map(drop)
    }
}

/// What Lictor may do in Consul.
fn rules(fixture: &Fixture) -> String {
    format!(
        "agent_prefix \"\" {{ policy = \"read\" }}\n\
         node_prefix \"\" {{ policy = \"write\" }}\n\
         service_prefix \"\" {{ policy = \"read\" }}\n\
         service {:?} {{ policy = \"write\" }}\n\
         service \"lictor-doctor\" {{ policy = \"write\" }}\n",
        fixture.service
    )
}

pub(crate) async fn a_login_in_place_of_a_token(fixture: &Fixture) -> Result<()> {
    let login = Login::make(fixture, "1h").await?;
    let pods = fixture.web(2).await?;
    let proxy = Proxy::start(&fixture.consul_address()).await?;
    let launch = login.operator()?.consul(&proxy.addr()).flag("--consul-auth-meta", "pod=here/it-is,by=test");
    let operator = launch.ready().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    let tokens = login.tokens().await?;
    ensure!(tokens.len() == 1, "{tokens:?}");
    let description = tokens[0]["Description"].as_str().unwrap_or_default();
    ensure!(description.contains("here/it-is") && description.contains("by"), "{description}");
    let secrets = |text: &str| ["SecretID", "eyJ"].into_iter().any(|part| text.contains(part));
    ensure!(!secrets(&operator.log()), "the log shows a secret: {}", operator.log());

    // Whoever comes and goes logs in and out.
    let said = login.says("doctor", &[], 0)?;
    ensure!(said.contains("ok    Consul lets Lictor log in: a token for 3600 s, with role lictor"), "{said}");
    login.says("plan", &[], 0)?;
    let policy = login.files.write("policy.yaml", "rules: [{name: all, namespaces: ['*'], foreignNames: false}]\n")?;
    login.says("policy check", &[arg(&policy)?], 0)?;
    let tokens = login.tokens().await?;
    ensure!(tokens.len() == 1, "something is left behind: {tokens:?}");

    // One that stands by has a login of its own.
    operator.terminate(SOON).await?;
    login.wait_for_tokens(0).await?;
    let replica = || {
        Ok::<_, anyhow::Error>(
            login.operator()?.switch("--leader-election").flag("--lease-namespace", fixture.namespace.name()),
        )
    };
    let (first, second) = (replica()?.ready().await?, replica()?.ready().await?);
    login.wait_for_tokens(2).await?;
    first.terminate(SOON).await?;
    login.wait_for_tokens(1).await?;
    fixture.namespace.set_ready("web-1", false).await?;
    fixture.wait_for("one that is critical", |found| found.iter().any(|i| i.status == "critical")).await?;
    second.terminate(SOON).await?;
    login.wait_for_tokens(0).await?;

    login.says("detach", &["--deregister"], 0)?;
    fixture.wait_for_pods(&[]).await?;
    login.wait_for_tokens(0).await?;
    login.clear_away().await
}

pub(crate) async fn what_a_login_cannot_go_with(fixture: &Fixture) -> Result<()> {
    let login = Login::make(fixture, "1h").await?;
    for (more, words) in [
        (["--consul-auth-namespace", "team"], "no Enterprise and has neither namespaces nor partitions"),
        (["--consul-auth-partition", "east"], "no Enterprise and has neither namespaces nor partitions"),
        (["--consul-auth-datacenter", "dc9"], "knows no way to the datacenter \"dc9\""),
        (
            ["--consul-auth-bearer-token-file", "/dev/null"],
            "the file /dev/null of the service account's token is empty",
        ),
    ] {
        let flags = ["--consul-auth-method", METHOD];
        let file = if more[0].ends_with("file") {
            vec![]
        } else {
            vec!["--consul-auth-bearer-token-file", arg(&login.token)?]
        };
        let said = says(fixture, "doctor", &[&flags[..], &file, &more].concat(), 1)?;
        let line = said.lines().find(|line| line.starts_with("FAIL  Consul lets Lictor log in: "));
        ensure!(line.with_context(|| said.clone())?.contains(words), "{more:?}: {said}");
    }
    for (flag, variable) in [(Some(["--consul-token-file", "/dev/null"]), None), (None, Some("x"))] {
        let mut command = Command::new(LICTOR);
        command
            .args(["plan", "--registration", "catalog", "--consul-auth-method", METHOD])
            .args(flag.into_iter().flatten());
        command.envs(variable.map(|value| ("CONSUL_HTTP_TOKEN", value)));
        let output = command.output()?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(2) && said.lines().count() == 1, "{}: {said}", output.status);
        ensure!(said.contains("two ways to a token"), "{said}");
    }
    login.clear_away().await
}

/// What goes wrong with a login.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    Audience,
    NoToken,
    DamagedToken,
    NoServiceAccount,
    NewServiceAccount,
    MayNotReadServiceAccounts,
    MayNotReviewTokens,
    MethodsToken,
    Unreachable,
    Authority,
    NoBindingRule,
    NoMethod,
}

impl Wrong {
    const OF_WHO_LOGS_IN: [(Self, &'static str); 6] = [
        (Self::Audience, "is not for the audience of the API server"),
        (Self::NoToken, "does not accept the service account's token"),
        (Self::DamagedToken, "does not accept the service account's token"),
        (Self::NoServiceAccount, "create the service account again"),
        (Self::NewServiceAccount, "create the service account again"),
        (Self::NoBindingRule, "add a rule that selects it"),
    ];

    const OF_THE_METHOD: [(Self, &'static str); 6] = [
        (Self::MayNotReadServiceAccounts, "grant `get` on serviceaccounts"),
        (Self::MayNotReviewTokens, "bind the ClusterRole system:auth-delegator"),
        (Self::MethodsToken, "does not accept the ServiceAccountJWT"),
        (Self::Unreachable, "have to reach the Host of the auth method"),
        (Self::Authority, "CACert has to be that of the API server"),
        (Self::NoMethod, "Consul has no auth method \"lictor\""),
    ];

    async fn begin(self, login: &Login<'_>) -> Result<()> {
        let namespace = &login.fixture.namespace;
        let delete = |kind, name| async move { namespace.kubectl(&["delete", kind, name]).await.map(drop) };
        match self {
            Self::Audience => login.be("lictor", &["--audience=consul"]).await,
            Self::NoToken => login.show("no token at all"),
            Self::DamagedToken => {
                let token = std::fs::read_to_string(&login.token)?;
                let (signed, _) = token.rsplit_once('.').context("no token")?;
                login.show(&format!("{signed}.c2lnbmF0dXJl"))
            }
            Self::NoServiceAccount | Self::NewServiceAccount => {
                // There may be one from the case before.
                let _ = namespace.kubectl(&["create", "serviceaccount", "leaver"]).await;
                login.be("leaver", &[]).await?;
                delete("serviceaccount", "leaver").await?;
                if matches!(self, Self::NewServiceAccount) {
                    namespace.kubectl(&["create", "serviceaccount", "leaver"]).await?;
                }
                Ok(())
            }
            Self::MayNotReadServiceAccounts => delete("rolebinding", &login.reviewer).await,
            Self::MayNotReviewTokens => delete("clusterrolebinding", &login.reviewer).await,
            Self::MethodsToken => login.make_method(json!({ "ServiceAccountJWT": OTHER_JWT })).await,
            Self::Unreachable => login.make_method(json!({ "Host": "https://127.0.0.1:1" })).await,
            Self::Authority => {
                let other = lictor_testbed::certificates::Authority::new("another")?;
                login.make_method(json!({ "CACert": other.certificate() })).await
            }
            Self::NoBindingRule => login.unbind().await,
            Self::NoMethod => login.fixture.consul().delete(&format!("/v1/acl/auth-method/{METHOD}")).await.map(drop),
        }
    }

    async fn end(self, login: &Login<'_>) -> Result<()> {
        match self {
            Self::Audience | Self::NoToken | Self::DamagedToken | Self::NoServiceAccount | Self::NewServiceAccount => {
                login.be("lictor", &[]).await
            }
            Self::MayNotReadServiceAccounts | Self::MayNotReviewTokens => login.grant().await,
            Self::MethodsToken | Self::Unreachable | Self::Authority => login.make_method(json!({})).await,
            Self::NoBindingRule => login.bind().await,
            Self::NoMethod => {
                login.make_method(json!({})).await?;
                // It went with the method.
                login.bind().await
            }
        }
    }
}

/// A token of the right form that no API server has signed.
const OTHER_JWT: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJpc3MiOiJ4Iiwic3ViIjoieCJ9.c2lnbmF0dXJl";

/// Each of these faults while an operator runs, whose token is gone: what is registered stays, and it goes on by itself.
async fn endure(fixture: &Fixture, faults: &[(Wrong, &str)]) -> Result<()> {
    let login = Login::make(fixture, "1h").await?;
    let pods = fixture.web(2).await?;
    let operator = login.operator()?.ready().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    // A token that is gone is no fault as long as Lictor can log in.
    login.delete_tokens().await?;
    fixture.namespace.set_ready("web-1", false).await?;
    fixture.wait_for("one that is critical", |found| found.iter().any(|i| i.status == "critical")).await?;
    fixture.namespace.set_ready("web-1", true).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    ensure!(!operator.log().contains("Consul is unavailable"), "an outage, though it could log in");

    for (wrong, words) in faults {
        let case = async {
            wrong.begin(&login).await?;
            login.delete_tokens().await?;
            let said = wait_not_ready(&operator, words).await?;
            let lines: Vec<_> = said.trim().lines().collect();
            ensure!(lines.len() == 1 && lines[0].starts_with("Consul: "), "{said}");
            ensure!(said.contains("; Consul answered ") && !said.contains("eyJ"), "{said}");
            eprintln!("{wrong:?}: {}", said.trim());
            fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
            wrong.end(&login).await?;
            operator.wait_ready(SOON).await?;
            login.wait_for_tokens(1).await
        };
        case.await.with_context(|| format!("{wrong:?}"))?;
    }
    fixture.wait_ready("web").await?;
    operator.terminate(SOON).await?;
    login.wait_for_tokens(0).await?;
    login.clear_away().await
}

pub(crate) async fn a_login_is_refused_to_who_comes(fixture: &Fixture) -> Result<()> {
    endure(fixture, &Wrong::OF_WHO_LOGS_IN).await
}

pub(crate) async fn a_login_is_refused_by_its_method(fixture: &Fixture) -> Result<()> {
    endure(fixture, &Wrong::OF_THE_METHOD).await
}

pub(crate) async fn logins_of_one_minute(fixture: &Fixture) -> Result<()> {
    let minutes: u64 = std::env::var(LOGIN_MINUTES).map_or(Ok(1), |minutes| minutes.parse())?;
    let time = Duration::from_secs(minutes * 60 + 20);
    let login = Login::make(fixture, "1m").await?;
    let pods = fixture.web(2).await?;
    let proxy = Proxy::start(&fixture.consul_address()).await?;
    let operator = login.operator()?.consul(&proxy.addr()).ready().await?;
    fixture.apply_web(json!({})).await?;
    fixture.wait_for_pods(&[&pods[0], &pods[1]]).await?;
    // The token is deleted once in the midst of it.
    let (begun, is_deleted) = (Instant::now(), AtomicBool::default());
    let (mut logins, mut outs, mut writes, mut most) = (0, 0, 0, 0);
    while begun.elapsed() < time {
        for is_ready in [false, true] {
            fixture.namespace.set_ready("web-1", is_ready).await?;
            let status = if is_ready { "passing" } else { "critical" };
            let as_wanted = |found: &[lictor_testbed::Instance]| {
                found.iter().any(|i| i.address == pods[1].ip.to_string() && i.status == status)
            };
            fixture.wait_for(status, as_wanted).await?;
        }
        if begun.elapsed() > time / 2 && !is_deleted.swap(true, Ordering::SeqCst) {
            login.delete_tokens().await?;
        }
        most = most.max(login.tokens().await?.len());
        let records = proxy.records();
        proxy.clear();
        let to = |path: &'static str| records.iter().filter(move |record| record.path == path);
        logins += to("/v1/acl/login").count();
        outs += to("/v1/acl/logout").count();
        for record in records.iter().filter(|record| record.is_write() && !record.path.starts_with("/v1/acl/")) {
            writes += 1;
            // Sent again with another token at once: refused is only what is refused twice.
            ensure!(record.status != Some(403) || is_deleted.load(Ordering::SeqCst), "a write is denied: {record:?}");
        }
    }
    ensure!(!operator.log().contains("Consul is unavailable"), "there was an outage");
    let least = usize::try_from(time.as_secs() / 60)?;
    ensure!(logins > least && most <= 3, "{logins} logins, {most} tokens at once");
    operator.terminate(SOON).await?;
    let left = login.tokens().await?;
    println!(
        "{} s: {writes} writes, {logins} logins, {outs} logouts before the end, {most} tokens at once, {} left",
        time.as_secs(),
        left.len()
    );
    ensure!(left.is_empty(), "{left:?}");
    login.clear_away().await
}
