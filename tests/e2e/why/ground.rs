//! What the troubles are planted on, and how `lictor why` is asked there.

use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use kube::config::Kubeconfig;
use lictor_testbed::{Fault, NewPod, Proxy, Record, TestNamespace, WorkDir, wait};
use serde_json::{Value, json};

use super::troubles::Trouble;
use crate::fixture::{Fixture, LICTOR, SOON, apply, arg, merged, resources};

/// The namespaces, the operator's way to Consul, and the kubeconfigs that are not the administrator's.
pub(crate) struct Ground<'a> {
    pub(crate) fixture: &'a Fixture,
    /// Another namespace that the operator watches.
    pub(crate) other: Arc<TestNamespace>,
    /// One that it does not watch.
    pub(crate) unwatched: Arc<TestNamespace>,
    /// One without resources.
    empty: Arc<TestNamespace>,
    /// The operator's way to Consul.
    pub(crate) proxy: Proxy,
    /// Where the kubeconfigs are.
    folder: WorkDir,
}

/// What Consul says where a write is refused.
pub(crate) const REFUSAL: &str = "Permission denied: planted";

impl<'a> Ground<'a> {
    pub(crate) async fn lay(fixture: &'a Fixture) -> Result<Self> {
        fixture.nodes().await?;
        let proxy = Proxy::start(&fixture.consul_address()).await?;
        proxy.set_fault(refusing(fixture));
        Ok(Self {
            fixture,
            other: fixture.other_namespace("other").await?,
            unwatched: fixture.other_namespace("unwatched").await?,
            empty: fixture.other_namespace("empty").await?,
            proxy,
            folder: WorkDir::create("why")?,
        })
    }

    /// Makes a Service in front of port 8080 of the pods that have its name as their label `app`.
    pub(crate) async fn service(&self, name: &str) -> Result<()> {
        self.fixture.namespace.apply_service(name, &[("app", name)], &[("http", 80, "8080")]).await.map(drop)
    }

    /// A pod NAME-0 of the app NAME, to be made.
    pub(crate) fn new_pod(&self, name: &str) -> NewPod {
        let node = format!("{}-a", self.fixture.namespace.name());
        NewPod::new(&format!("{name}-0"), &node).label("app", name).port("http", 8080)
    }

    pub(crate) async fn pod(&self, pod: NewPod) -> Result<()> {
        self.fixture.namespace.create_pod(pod).await.map(drop)
    }

    /// The spec of a resource over the Service of its name, under a name of its own in Consul.
    pub(crate) fn spec(&self, name: &str, more: Value) -> Value {
        let consul = self.fixture.service_named(name);
        merged(json!({ "name": consul, "source": { "service": { "name": name } } }), more)
    }

    /// Makes a resource of this name.
    pub(crate) async fn resource(&self, name: &str, more: Value) -> Result<()> {
        self.fixture.apply(name, &self.spec(name, more)).await
    }

    /// Makes a Service, a ready pod and a resource of this name.
    pub(crate) async fn app(&self, name: &str, more: Value) -> Result<()> {
        self.service(name).await?;
        self.pod(self.new_pod(name)).await?;
        self.resource(name, more).await
    }

    /// Makes the same in another namespace, for the name in Consul that the app `consul` has here.
    pub(crate) async fn app_in(&self, namespace: &TestNamespace, name: &str, consul: &str) -> Result<()> {
        namespace.apply_service(name, &[("app", name)], &[("http", 80, "8080")]).await?;
        namespace.create_pod(self.new_pod(name)).await?;
        let consul = self.fixture.service_named(consul);
        let spec = json!({ "name": consul, "source": { "service": { "name": name } } });
        apply(&resources(namespace), name, &spec).await
    }

    /// Waits until Consul has so many instances of the app.
    pub(crate) async fn registered(&self, name: &str, count: usize) -> Result<Vec<lictor_testbed::Instance>> {
        let consul = self.fixture.service_named(name);
        self.fixture.consul().wait_for(&consul, "registered", |found| found.len() == count, SOON).await
    }

    /// Cuts the operator off from Consul.
    pub(crate) fn cut_off(&self) {
        self.proxy.set_fault(Fault::Refuse);
    }

    /// Writes a kubeconfig of a cluster that is away.
    pub(crate) fn write_kubeconfig_of_nobody(&self) -> Result<()> {
        let mut kubeconfig = Kubeconfig::read_from(&self.fixture.kubeconfig)?;
        for cluster in kubeconfig.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
            cluster.server = Some("https://127.0.0.1:1".to_owned());
        }
        self.folder.write("away", serde_json::to_string(&kubeconfig)?).map(drop)
    }

    /// Writes a kubeconfig of a service account of this name, which has what a Role of these rules gives it.
    pub(crate) async fn write_kubeconfig(&self, name: &str, rules: &Value) -> Result<()> {
        let namespace = self.fixture.namespace.name();
        let items = json!([
            { "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name } },
            { "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": { "name": name }, "rules": rules },
        ]);
        let items = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        self.fixture.namespace.apply_yaml(&items.to_string()).await?;
        let (role, account) = (format!("--role={name}"), format!("--serviceaccount={namespace}:{name}"));
        self.fixture.namespace.kubectl(&["create", "rolebinding", name, &role, &account]).await?;
        let token = self.fixture.namespace.kubectl(&["create", "token", name]).await?;
        let mut kubeconfig = Kubeconfig::read_from(&self.fixture.kubeconfig)?;
        for user in kubeconfig.auth_infos.iter_mut().filter_map(|named| named.auth_info.as_mut()) {
            *user = serde_json::from_value(json!({ "token": token.trim() }))?;
        }
        self.folder.write(name, serde_json::to_string(&kubeconfig)?).map(drop)
    }

    /// Asks with these words and this token for Consul, as they stand on the page. Gives the code and what is said, with the
    /// names of the page.
    pub(crate) fn ask(&self, typed: &str, token: Option<&str>) -> Result<(Option<i32>, String)> {
        let folder = self.folder.path().to_string_lossy().into_owned();
        let words = typed.split(' ').map(|word| match word.strip_prefix("kubeconfigs/") {
            Some(name) => format!("{folder}/{name}"),
            None => match self.others().into_iter().find(|(name, _)| *name == word) {
                Some((_, other)) => other.name().to_owned(),
                None => word.replace("shop", self.fixture.namespace.name()),
            },
        });
        let mut words: Vec<String> = words.collect();
        let mut add = |flag: &str, value: &str| {
            if !words.iter().any(|word| word == flag) {
                words.extend([flag.to_owned(), value.to_owned()]);
            }
        };
        add("--kubeconfig", arg(&self.fixture.kubeconfig)?);
        add("--consul-address", &self.fixture.consul_address());
        let mut command = Command::new(LICTOR);
        command.arg("why").args(&words).env_remove("CONSUL_HTTP_TOKEN").envs(token.map(|it| ("CONSUL_HTTP_TOKEN", it)));
        let output = command.output()?;
        let text = [output.stdout, output.stderr].concat();
        let mut text = String::from_utf8(text)?;
        for (name, other) in self.others() {
            text = text.replace(other.name(), name);
        }
        let text = text.replace(self.fixture.namespace.name(), "shop");
        Ok((output.status.code(), with_one_address(&text)))
    }

    /// The other namespaces, as the page names them.
    fn others(&self) -> [(&'static str, &TestNamespace); 3] {
        [("other", &self.other), ("unwatched", &self.unwatched), ("empty", &self.empty)]
    }

    /// Waits until `lictor why` says of a trouble what the page has.
    pub(crate) async fn holds(&self, trouble: &Trouble) -> Result<()> {
        (trouble.plant)(self).await.with_context(|| format!("planting {}", trouble.typed))?;
        self.says(trouble).await
    }

    /// Waits until `lictor why` says so.
    pub(crate) async fn says(&self, trouble: &Trouble) -> Result<()> {
        wait::until(format!("the cause of {}", trouble.typed), SOON, || async {
            let (code, said) = self.ask(trouble.typed, None)?;
            let lines = trouble.lines.iter().filter(|line| !said.lines().any(|there| there.starts_with(**line)));
            let lacking: Vec<_> = lines.collect();
            ensure!(lacking.is_empty(), "it lacks {lacking:#?}:\n{said}");
            ensure!(code == Some(trouble.code), "it ended with {code:?}:\n{said}");
            Ok(Some(()))
        })
        .await
    }

    pub(crate) fn empty(&self) -> &TestNamespace {
        &self.empty
    }
}

/// Refuses what is written of the app `refused`.
fn refusing(fixture: &Fixture) -> Fault {
    let name = fixture.service_named("refused");
    Fault::Rule(Arc::new(move |record: &Record| {
        let is_it = record.is_write() && String::from_utf8_lossy(&record.body).contains(&name);
        is_it.then(|| Fault::Status(403, REFUSAL.to_owned(), Vec::new()))
    }))
}

/// Writes each address of a pod as that of one.
fn with_one_address(text: &str) -> String {
    let mut parts = text.split("10.244.");
    let mut one = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        one.push_str("10.0.0.1");
        let end = part.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(part.len());
        one.push_str(&part[end..]);
    }
    one
}
