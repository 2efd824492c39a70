//! Lictor, installed by its chart.

use lictor_testbed::Mode;
use std::path::Path;

use anyhow::{Context, Result};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};

use crate::environment::{Cluster, OURS, lictor_image};

/// The value that gives the Lease its default duration.
pub(crate) const DEFAULT_LEASE: &str = "leaderElection.leaseDuration=4s";

/// What picks the operators' pods, and not those of hooks.
pub(crate) const OPERATORS: &str = "--selector=app.kubernetes.io/component=operator";

/// One release of the chart, in a namespace of its own that admits only what is of the level `restricted`. Its name is
/// also the class of its resources and the cluster's name in Consul, so that several do not meet.
pub(crate) struct Release<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) name: String,
    pub(crate) mode: Mode,
    client: Client,
}

impl<'a> Release<'a> {
    async fn of(cluster: &'a Cluster, name: &str, mode: Mode) -> Result<Self> {
        Ok(Self { cluster, name: format!("lictor-{name}"), mode, client: cluster.plane().client().await? })
    }

    /// Makes the namespace.
    pub(crate) async fn prepare(cluster: &'a Cluster, name: &str, mode: Mode) -> Result<Self> {
        let release = Self::of(cluster, name, mode).await?;
        let namespace = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {}\n  labels:\n    {OURS}: \"\"\n    \
             pod-security.kubernetes.io/enforce: restricted\n    pod-security.kubernetes.io/warn: restricted\n",
            release.name
        );
        cluster.kubectl().run_with_input(&["apply", "--filename=-"], &namespace).await?;
        Ok(release)
    }

    /// One that several tests share: the first of them installs it, and it stays.
    pub(crate) async fn shared(cluster: &'a Cluster, name: &str, mode: Mode) -> Result<Self> {
        let mut installed = cluster.shared_releases().await;
        if installed.contains(name) {
            return Self::of(cluster, name, mode).await;
        }
        let release = Self::installed(cluster, name, mode, &[]).await?;
        installed.insert(name.to_owned());
        Ok(release)
    }

    /// Installs it with these values besides, and waits until it is ready.
    pub(crate) async fn installed(cluster: &'a Cluster, name: &str, mode: Mode, values: &[&str]) -> Result<Self> {
        let release = Self::prepare(cluster, name, mode).await?;
        release.install(values).await?;
        Ok(release)
    }

    /// Installs it, and waits until it is ready; `more` are values, such as `class=blue`.
    pub(crate) async fn install(&self, more: &[&str]) -> Result<String> {
        self.helm("install", self.cluster.chart(), &["--wait", "--timeout=120s"], more).await
    }

    /// Upgrades it, and waits until it is ready.
    pub(crate) async fn upgrade(&self, chart: &Path, more: &[&str]) -> Result<String> {
        self.helm("upgrade", chart, &["--wait", "--timeout=120s"], more).await
    }

    /// Helm on this release, with the values of every test and `more`.
    pub(crate) async fn helm(&self, verb: &str, chart: &Path, flags: &[&str], more: &[&str]) -> Result<String> {
        let (repository, tag) = lictor_image()?;
        let values = [
            format!("image.repository={repository}"),
            format!("image.tag={tag}"),
            format!("registration={}", self.mode.as_str()),
            format!("clusterName={}", self.name),
            format!("class={}", self.name),
            format!("doctor.service={}-doctor", self.name),
            "consul.address=http://consul.consul.svc:8500".to_owned(),
            "crds.install=false".to_owned(),
            "resyncInterval=2s".to_owned(),
            "readinessProbe.periodSeconds=1".to_owned(),
            // Many tests side by side keep a machine busy. Those that are about the Lease have it as it comes.
            "leaderElection.leaseDuration=15s".to_owned(),
        ];
        let chart = chart.to_str().context("a path")?;
        let namespace = format!("--namespace={}", self.name);
        let mut args = vec![verb, &self.name, chart, &namespace];
        args.extend(flags);
        for value in values.iter().map(String::as_str).chain(more.iter().copied()) {
            args.extend(["--set", value]);
        }
        let done = self.cluster.helm().run(args).await;
        let done = self.explain(done).await?;
        let made = self.cluster.helm().run(["get", "manifest", &self.name, &namespace]).await?;
        self.cluster.note_rights(&self.name, &made)?;
        Ok(done)
    }

    /// Ends it for the sake of the tests that come: what `result` failed with is told with what its pods
    /// had to say.
    pub(crate) async fn close<T>(&self, result: Result<T>) -> Result<T> {
        let result = self.explain(result).await;
        let namespace = format!("--namespace={}", self.name);
        let ended =
            self.cluster.helm().run(["uninstall", &self.name, &namespace, "--no-hooks", "--ignore-not-found"]).await;
        result.and_then(|value| ended.map(|_| value))
    }

    /// Uninstalls it, hooks and all, and waits until its pods are gone.
    pub(crate) async fn uninstall(&self) -> Result<String> {
        let namespace = format!("--namespace={}", self.name);
        let done = self.cluster.helm().run(["uninstall", &self.name, &namespace, "--wait", "--timeout=150s"]).await;
        let done = self.explain(done).await?;
        self.kubectl(&["wait", "pods", OPERATORS, "--for=delete", "--timeout=60s"]).await?;
        Ok(done)
    }

    /// `helm test`, and what the test said.
    pub(crate) async fn test(&self) -> (Result<String>, String) {
        let namespace = format!("--namespace={}", self.name);
        let done = self.cluster.helm().run(["test", &self.name, &namespace, "--timeout=60s"]).await;
        let said = self.kubectl(&["logs", &format!("{}-doctor", self.full_name())]).await;
        (done, said.unwrap_or_else(|error| format!("{error:#}")))
    }

    /// `kubectl` in its namespace.
    pub(crate) async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let namespace = format!("--namespace={}", self.name);
        self.cluster.kubectl().run(&[&[namespace.as_str()], args].concat()).await
    }

    /// What a pod of its operators answers at a path of the admin port, such as `/readyz`. What is not a success is an
    /// error with these words.
    pub(crate) async fn ask(&self, pod: &str, path: &str) -> Result<String> {
        let address = self.kubectl(&["get", "pod", pod, "--output=jsonpath={.status.podIP}"]).await?;
        let url = format!("http://{address}:9808{path}");
        self.cluster.kubectl().run(&["--namespace=consul", "exec", "toolbox", "--", "/app", "get", &url]).await
    }

    /// The names of its operators' pods.
    pub(crate) async fn pods(&self) -> Result<Vec<String>> {
        let names = r#"--output=jsonpath={range .items[*]}{.metadata.name}{"\n"}{end}"#;
        Ok(self.kubectl(&["get", "pods", OPERATORS, names]).await?.lines().map(str::to_owned).collect())
    }

    /// The name of the pod that acts; none while nobody does.
    pub(crate) async fn leader(&self) -> Result<Option<String>> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.name);
        let holder = leases.get_opt(self.full_name()).await?.and_then(|lease| lease.spec?.holder_identity);
        // The pod's name, and what makes it this process'.
        Ok(holder.and_then(|holder| Some(holder.rsplit_once('_')?.0.to_owned())))
    }

    /// What the chart calls everything: the release's name, which has the chart's in it.
    pub(crate) fn full_name(&self) -> &str {
        &self.name
    }

    /// Adds to a failure what its pods had to say.
    pub(crate) async fn explain<T>(&self, result: Result<T>) -> Result<T> {
        let Err(error) = result else { return result };
        let mut said = format!("{error:#}\n");
        for args in [
            &["get", "pods", "--output=wide"][..],
            &["get", "events", "--sort-by=.lastTimestamp"],
            &["logs", "--selector=app.kubernetes.io/name=lictor", "--tail=40", "--prefix", "--ignore-errors"],
        ] {
            said.push_str(&self.kubectl(args).await.unwrap_or_else(|error| format!("{error:#}\n")));
        }
        Err(anyhow::anyhow!(said))
    }
}
