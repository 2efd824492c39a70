//! What goes wrong at an installation, and who says so: Helm, the pod's log, `/readyz`, and `helm test` in the same words.

use anyhow::{Context, Result, ensure};
use lictor_testbed::Mode;

use crate::environment::{Environment, until};
use crate::release::{OPERATORS, Release};

/// A wrong value is refused by Helm, and nothing is installed.
pub(crate) async fn a_wrong_value(environment: &Environment) -> Result<()> {
    let release = Release::prepare(environment.cluster().await?, "wrong", Mode::Catalog).await?;
    for (value, words) in [
        ("registration=nowhere", "registration"),
        ("resyncIntervall=5s", "resyncIntervall"),
        ("replicaCount=two", "replicaCount"),
        ("leaderElection.leaseDuration=1s", "is not from 2s to 5m"),
    ] {
        let refused = release.install(&[value]).await.err().with_context(|| format!("{value} is taken"))?;
        ensure!(format!("{refused:#}").contains(words), "{value}: {refused:#}");
    }
    let left = release.kubectl(&["get", "deployments,serviceaccounts,secrets", "--output=name"]).await?;
    ensure!(left.trim() == "serviceaccount/default", "this is left: {left}");
    Ok(())
}

/// Secrets that are missing are waited for, without a restart, and then found: that of the authority, and that of the token.
pub(crate) async fn a_missing_secret(environment: &Environment) -> Result<()> {
    let release = Release::prepare(environment.cluster().await?, "secret", Mode::Catalog).await?;
    let tested = async {
        let values = ["consul.tls.ca.existingSecret=consul-ca", "consul.token.existingSecret=consul-token"];
        let words = "/etc/lictor/consul-ca/ca.crt: there is no such file yet";
        troubled(&release, &values, words, Who::Each).await?;
        // An authority, as good as any to a Consul without TLS: the cluster's own.
        let ca = ["get", "configmap", "kube-root-ca.crt", "--output=jsonpath={.data.ca\\.crt}"];
        let ca = format!("--from-literal=ca.crt={}", release.kubectl(&ca).await?);
        release.kubectl(&["create", "secret", "generic", "consul-ca", &ca]).await?;
        let words = "/etc/lictor/consul-token/token: there is no such file yet";
        for pod in release.pods().await? {
            says(&release, &pod, words).await?;
        }
        // Consul has no ACLs here, and takes any token.
        let token = ["create", "secret", "generic", "consul-token", "--from-literal=token=anything"];
        release.kubectl(&token).await?;
        well_again(&release).await
    };
    let tested = tested.await;
    release.close(tested).await
}

/// Nobody is at Consul's address.
pub(crate) async fn an_unreachable_consul(environment: &Environment) -> Result<()> {
    let release = Release::prepare(environment.cluster().await?, "nobody", Mode::Catalog).await?;
    let tested = async {
        let address = "http://consul.consul.svc:8501";
        troubled(&release, &[&format!("consul.address={address}")], address, Who::TheLeader).await?;
        release.upgrade(release.cluster.chart(), &[]).await?;
        well_again(&release).await
    };
    let tested = tested.await;
    release.close(tested).await
}

/// No role is bound to its account.
pub(crate) async fn no_permission(environment: &Environment) -> Result<()> {
    let release = Release::prepare(environment.cluster().await?, "rights", Mode::Catalog).await?;
    let tested = async {
        troubled(&release, &["rbac.create=false"], "forbidden", Who::Each).await?;
        release.upgrade(release.cluster.chart(), &[]).await?;
        well_again(&release).await
    };
    let tested = tested.await;
    release.close(tested).await
}

/// Whose trouble it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Each,
    /// Others do not ask Consul.
    TheLeader,
}

/// Installs it with what is wrong: the pods whose trouble it is say these words in their logs and their `/readyz`, and so
/// does `helm test`, which fails; nothing is restarted.
async fn troubled(release: &Release<'_>, values: &[&str], words: &str, who: Who) -> Result<()> {
    release.helm("install", release.cluster.chart(), &[], values).await?;
    let pods = until("the pods", || async {
        if who == Who::TheLeader {
            return Ok(release.leader().await?.map(|leader| vec![leader]));
        }
        Ok(Some(release.pods().await?).filter(|pods| pods.len() == 2))
    })
    .await?;
    for pod in &pods {
        says(release, pod, words).await?;
    }
    let (tested, said) = release.test().await;
    ensure!(tested.is_err(), "helm test succeeds: {said}");
    ensure!(said.contains("FAIL") && said.contains(words), "helm test said {said}");
    never_restarted(release).await
}

/// Waits until a pod says these words in its log and in `/readyz`, which is not ready.
async fn says(release: &Release<'_>, pod: &str, words: &str) -> Result<()> {
    until(format!("{words:?} in the log of {pod}"), || async {
        let log = release.kubectl(&["logs", pod]).await?;
        ensure!(log.contains(words), "it is {log}");
        Ok(Some(()))
    })
    .await?;
    until(format!("{words:?} in /readyz of {pod}"), || async {
        let said = release.ask(pod, "/readyz").await.err().context("it is ready")?;
        ensure!(format!("{said:#}").contains(words), "it is {said:#}");
        Ok(Some(()))
    })
    .await
}

async fn never_restarted(release: &Release<'_>) -> Result<()> {
    let restarts = "--output=jsonpath={.items[*].status.containerStatuses[*].restartCount}";
    let restarts = release.kubectl(&["get", "pods", OPERATORS, restarts]).await?;
    ensure!(!restarts.is_empty() && restarts.split(' ').all(|count| count == "0"), "restarts: {restarts}");
    Ok(())
}

async fn well_again(release: &Release<'_>) -> Result<()> {
    let deployment = format!("deployment/{}", release.full_name());
    release.kubectl(&["rollout", "status", &deployment, "--timeout=120s"]).await?;
    let (tested, said) = release.test().await;
    tested.context(said)?;
    never_restarted(release).await
}
