//! An apiserver that knows the resource, with a namespace for each test.

use std::time::Duration;

use anyhow::{Result, anyhow};
use kube::Client;
use kube::core::Status;
use lictor::cluster::api;
use lictor_testbed::{ControlPlane, Shared, TestNamespace, wait};
use serde_json::{Value, json};

pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A namespace on the apiserver of this process.
pub(crate) struct Fixture {
    pub(crate) plane: &'static ControlPlane,
    namespace: TestNamespace,
}

impl Fixture {
    /// A new namespace. The apiserver is started by whoever asks first, and ends with this process.
    pub(crate) async fn make() -> Result<Self> {
        static PLANE: Shared<ControlPlane> = Shared::new();
        let plane = PLANE.get("the apiserver", start).await?;
        let fixture = Self { plane, namespace: TestNamespace::create(plane, "resource").await? };
        // Established comes a moment before every handler knows it.
        let made =
            || async { fixture.create("user", &smallest()).await?.map(Some).map_err(|status| anyhow!("{status}")) };
        wait::until("the resource can be made", SOON, made).await?;
        Ok(fixture)
    }

    /// A client of this test's own runtime.
    pub(crate) fn client(&self) -> &Client {
        self.namespace.client()
    }

    /// The name of the namespace.
    pub(crate) fn namespace(&self) -> &str {
        self.namespace.name()
    }

    /// The path of the resources of this namespace.
    pub(crate) fn path(&self) -> String {
        format!("/apis/lictor.dev/v1alpha1/namespaces/{}/consulservices", self.namespace.name())
    }

    /// Makes a resource in a dry run, as strictly as `kubectl apply` does, and gives the spec that would be stored, or
    /// the apiserver's refusal.
    pub(crate) async fn create(&self, name: &str, spec: &Value) -> Result<Result<Value, Box<Status>>> {
        let uri = format!("{}?dryRun=All&fieldValidation=Strict", self.path());
        let made = self.send("POST", &uri, &resource(name, spec)).await?;
        Ok(made.map(|mut made| made["spec"].take()))
    }

    /// Sends one request, and gives the answer or the refusal.
    pub(crate) async fn send(&self, method: &str, uri: &str, body: &Value) -> Result<Result<Value, Box<Status>>> {
        self.request(method, uri, "application/json", body).await
    }

    /// Makes a resource or gives it another spec, as `kubectl apply --server-side` does.
    pub(crate) async fn apply(&self, name: &str, spec: &Value, query: &str) -> Result<Result<Value, Box<Status>>> {
        let uri = format!("{}/{name}?fieldManager=test{query}", self.path());
        let applied = self.request("PATCH", &uri, "application/apply-patch+yaml", &resource(name, spec)).await?;
        Ok(applied.map(|mut applied| applied["spec"].take()))
    }

    /// Merges a patch into an object, and gives the object or the refusal.
    pub(crate) async fn merge(&self, uri: &str, patch: &Value) -> Result<Result<Value, Box<Status>>> {
        self.request("PATCH", uri, "application/merge-patch+json", patch).await
    }

    async fn request(&self, method: &str, uri: &str, kind: &str, body: &Value) -> Result<Result<Value, Box<Status>>> {
        let request = http::Request::builder()
            .method(method)
            .uri(uri)
            .header("content-type", kind)
            .body(serde_json::to_vec(body)?)?;
        match self.client().request::<Value>(request).await {
            Ok(answer) => Ok(Ok(answer)),
            Err(kube::Error::Api(status)) => Ok(Err(status)),
            Err(error) => Err(error.into()),
        }
    }

    /// The same, of what must be taken.
    pub(crate) async fn accepts(&self, spec: &Value) -> Result<Value> {
        self.create("user", spec).await?.map_err(|status| anyhow!("refused: {spec}\n{}", status.message))
    }

    /// Removes the namespace.
    pub(crate) async fn clear_away(self) {
        self.namespace.delete().await;
    }
}

async fn start() -> Result<ControlPlane> {
    let plane = ControlPlane::obtain().await?;
    plane.install_crd(&api::crd_yaml()).await?;
    Ok(plane)
}

/// A resource with this spec.
pub(crate) fn resource(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "lictor.dev/v1alpha1",
        "kind": "ConsulService",
        "metadata": { "name": name },
        "spec": spec,
    })
}

/// The smallest spec.
pub(crate) fn smallest() -> Value {
    json!({ "source": { "service": { "name": "user" } } })
}

/// A spec that is given as YAML. The source of [`smallest`] is its own, unless it has one.
pub(crate) fn spec(yaml: &str) -> Value {
    let mut spec = smallest();
    let given: Value = serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{yaml}\n{error}"));
    let Value::Object(given) = given else { panic!("not fields: {yaml}") };
    spec.as_object_mut().unwrap().extend(given);
    spec
}
