//! `lictor why`: troubles are planted, and it says what is wrong.
//!
//! The one list is in [`troubles`]; [`page`] makes the table of `docs/why.md` of it. What they are planted on is [`ground`].

mod ground;
mod page;
mod troubles;

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use lictor_testbed::ConsulOptions;
use serde_json::json;

use self::ground::Ground;
use self::troubles::{Trouble, away, before_the_stop, cut_off, running, stopped};
use crate::fixture::{Fixture, SOON};

/// So many troubles at a time.
const AT_ONCE: usize = 8;

pub(crate) async fn the_cause_of_each_trouble_is_said(fixture: &Fixture) -> Result<()> {
    let ground = Ground::lay(fixture).await?;
    let launch = fixture.operator().with_checks().consul(&ground.proxy.addr());
    let launch =
        launch.flag("--namespace", ground.other.name()).flag("--max-instances", "3").switch("--verify-endpoints");
    let operator = launch.ready().await?;
    let _esm = fixture.esm();
    before_the_stop(&ground).await?;
    all(&ground, &running()).await?;
    all(&ground, &away()).await?;
    all(&ground, &cut_off()).await?;
    operator.terminate(SOON).await?;
    all(&ground, &stopped()).await
}

/// Plants troubles, and holds what is said against the list.
async fn all(ground: &Ground<'_>, troubles: &[Trouble]) -> Result<()> {
    let held = futures::stream::iter(troubles).map(|trouble| ground.holds(trouble)).buffer_unordered(AT_ONCE);
    let held: Vec<Result<()>> = held.collect().await;
    let failures: Vec<String> = held.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    ensure!(failures.is_empty(), "{} of {}:\n{}", failures.len(), troubles.len(), failures.join("\n"));
    Ok(())
}

/// The least rights with which `lictor why` answers, in Kubernetes and in Consul, as `docs/why.md` has them.
pub(crate) async fn who_asks_needs_to_read_and_no_more(fixture: &Fixture) -> Result<()> {
    let ground = Ground::lay(fixture).await?;
    let consul = fixture.own_consul(ConsulOptions { acl: true, ..ConsulOptions::default() }).await?;
    let management = consul.management_token().context("a token")?;
    fixture.operator().token(management).ready().await?;
    ground.app("web", json!({})).await?;
    ground.registered("web", 1).await?;
    fixture.wait_ready("web").await?;
    let rule =
        |group: &str, resource: &str| json!({ "apiGroups": [group], "resources": [resource], "verbs": ["list"] });
    let rules = json!([
        rule("lictor.dev", "consulservices"),
        rule("discovery.k8s.io", "endpointslices"),
        rule("", "services"),
        rule("", "pods"),
    ]);
    ground.write_kubeconfig("reader", &rules).await?;
    let ask = |token: Option<&str>| ground.ask("pod/web-0 -n shop --kubeconfig kubeconfigs/reader", token);

    let (code, said) = ask(None)?;
    ensure!(code == Some(2) && said.contains("?     Consul: "), "{said}");
    let service = fixture.service_named("web");
    for (rules, code, words) in [
        ("node_prefix \"\" { policy = \"read\" }".to_owned(), 2, "missing rights of the token"),
        (format!("service {service:?} {{ policy = \"read\" }}"), 2, "missing rights of the token"),
        (
            format!("service {service:?} {{ policy = \"read\" }}\nnode_prefix \"\" {{ policy = \"read\" }}"),
            0,
            "well: it is in Consul as desired",
        ),
    ] {
        let name = format!("why-{code}-{}", rules.len());
        let consul = fixture.consul();
        consul.put("/v1/acl/policy", &json!({ "Name": name, "Rules": rules })).await?;
        let token = consul.put("/v1/acl/token", &json!({ "Policies": [{ "Name": name }] })).await?;
        let token = token["SecretID"].as_str().context("a token")?;
        let (found, said) = ask(Some(token))?;
        ensure!(found == Some(code) && said.contains(words), "{rules}: {found:?}\n{said}");
    }
    Ok(())
}

#[test]
fn the_page_is_current() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/why.md");
    let page = std::fs::read_to_string(path).unwrap_or_default();
    let all: Vec<Trouble> = [running(), cut_off(), stopped(), away()].into_iter().flatten().collect();
    crate::table::check_page("docs/why.md", &page::document(&page, &all));
}
