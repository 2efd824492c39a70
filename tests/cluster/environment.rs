//! What all tests stand on: a cluster in which Consul runs as a pod, Helm, and images for what is to run.
//!
//! - By default, three nodes within this machine, and the image that the Dockerfile makes of the program that cargo
//!   built; with `LICTOR_IMAGE_FROM=source`, of what the Dockerfile itself builds.
//! - With `E2E_ON_KUBECONFIG=1`, the cluster of `KUBECONFIG`, such as one of `kind`, which has to be for these tests alone:
//!   they bring the CRD, a Consul and much else, and remove it in the end. `LICTOR_LOAD` is the command that takes an archive of images
//!   to it, such as `kind load image-archive`; without, the images have to be there. The image is made by the Docker
//!   that is on `PATH`.
//! - With `LICTOR_IMAGE`, the image of that name in place of our own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use lictor_testbed::node::suite::given_cluster;
use lictor_testbed::node::{APP_IMAGE, CONSUL_IMAGE, Docker, From, LICTOR_IMAGE, Node, app_image, consul_image};
use lictor_testbed::{
    ConsulApi, ControlPlane, Esm, Helm, Kubectl, NodeCluster, NodeClusterOptions, NodePrograms, Process, Programs,
    Shared, TestNamespace, WorkDir, init_tls, ports, process, wait,
};
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, MutexGuard};

use crate::rights::{self, Right};

/// The program under test.
const LICTOR: &str = env!("CARGO_BIN_EXE_lictor");
const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// The node that a test may let go silent: only what asks for it runs there.
pub(crate) const LONELY_NODE: &str = "node-3";

/// The label of namespaces that the tests have made.
pub(crate) const OURS: &str = "lictor.dev/e2e";

pub(crate) const CRD: &str = "crd/consulservices.lictor.dev";

/// What [`LONELY_NODE`] is tainted and labelled with.
pub(crate) const LONELY: &str = "lictor.dev/lonely";

/// For anything that should come within moments, on a machine that is busy.
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// Waits, with looks that run a program each: not so many of them.
pub(crate) async fn until<T, F: Future<Output = Result<Option<T>>>>(
    what: impl std::fmt::Display,
    look: impl FnMut() -> F,
) -> Result<T> {
    wait::until_every(Duration::from_millis(500), what, SOON, look).await
}

/// Made by the test that is first; it goes after the last.
#[derive(Default)]
pub(crate) struct Environment {
    cluster: Shared<Cluster>,
}

impl Environment {
    pub(crate) async fn cluster(&self) -> Result<&Cluster> {
        self.cluster.get("the cluster", Cluster::start).await
    }
}

/// The cluster. What is first here ends first.
pub(crate) struct Cluster {
    helm: Helm,
    chart: PathBuf,
    image: Option<PathBuf>,
    consul_address: String,
    _consul_forward: Option<Process>,
    /// What has to go on between tests, each of which has a runtime of its own.
    background: Background,
    shared_releases: Mutex<BTreeSet<String>>,
    granted: std::sync::Mutex<BTreeMap<String, BTreeSet<Right>>>,
    lonely_node: Mutex<()>,
    place: Place,
    work_dir: WorkDir,
}

enum Place {
    Nodes(Box<NodeCluster>),
    Given(Box<ControlPlane>),
}

/// A runtime that does not wait for its tasks when it goes.
struct Background(Option<Runtime>);

impl Background {
    fn new() -> Result<Self> {
        Ok(Self(Some(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)))
    }

    fn spawn<T>(&self, make: impl FnOnce() -> T) -> Result<T> {
        let runtime = self.0.as_ref().context("it has ended")?;
        let _inside = runtime.enter();
        Ok(make())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Notes what the service accounts of the operators ask for.
const AUDIT_POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: None
    userGroups: ["system:serviceaccounts:kube-system"]
  - level: Metadata
    userGroups: ["system:serviceaccounts"]
"#;

impl Cluster {
    async fn start() -> Result<Self> {
        init_tls();
        let begun = Instant::now();
        let consul = Programs::ensure_consul().await?;
        let work_dir = WorkDir::create("e2e")?;
        let place = async {
            Ok(match given_cluster() {
                Some(kubeconfig) => Place::Given(Box::new(ControlPlane::given(&kubeconfig).await?)),
                None => Place::Nodes(Box::new(nodes(&work_dir).await?)),
            })
        };
        let (place, image) = tokio::try_join!(place, image(&work_dir))?;
        println!("a cluster and an image: {:?}", begun.elapsed());

        let mut archives = vec![consul_image(&consul, &work_dir)?];
        archives.extend(image.clone());
        if let Place::Given(_) = place {
            archives.push(app_image(&NodePrograms::ensure_app().await?, &work_dir)?);
        }
        for archive in archives {
            place.load(&archive).await?;
        }
        println!("the images are loaded: {:?}", begun.elapsed());

        if let Place::Given(plane) = &place {
            ensure_unused(plane).await?;
        }
        install(place.plane()).await?;
        let (consul_address, consul_forward) = place.way_to_consul(&work_dir).await?;
        println!("Consul runs: {:?}", begun.elapsed());
        let helm = Helm::on(place.plane().kubeconfig()).await?;
        let chart = Path::new(REPOSITORY).join("charts/lictor");
        let background = Background::new()?;
        Ok(Self {
            helm,
            chart,
            image,
            consul_address,
            _consul_forward: consul_forward,
            background,
            shared_releases: Mutex::default(),
            granted: std::sync::Mutex::default(),
            lonely_node: Mutex::default(),
            place,
            work_dir,
        })
    }

    /// A namespace for one test. What is in it goes with the cluster.
    pub(crate) async fn namespace(&self, prefix: &str) -> Result<TestNamespace> {
        TestNamespace::create(self.plane(), prefix).await
    }

    pub(crate) fn plane(&self) -> &ControlPlane {
        self.place.plane()
    }

    pub(crate) fn kubectl(&self) -> &Kubectl {
        self.plane().kubectl_program()
    }

    pub(crate) fn helm(&self) -> &Helm {
        &self.helm
    }

    /// The chart, as the repository has it.
    pub(crate) fn chart(&self) -> &Path {
        &self.chart
    }

    pub(crate) fn work_dir(&self) -> &WorkDir {
        &self.work_dir
    }

    /// The archive of the image under test, unless that was there already.
    pub(crate) fn image(&self) -> Option<&Path> {
        self.image.as_deref()
    }

    /// The names of the releases that several tests share, as far as they are installed. While this is held, nobody else
    /// installs one.
    pub(crate) async fn shared_releases(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.shared_releases.lock().await
    }

    /// Notes the rights that a release gives, as its manifest has them.
    pub(crate) fn note_rights(&self, release: &str, manifest: &str) -> Result<()> {
        let rights = rights::given_by(manifest)?;
        let mut granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        granted.entry(release.to_owned()).or_default().extend(rights);
        Ok(())
    }

    /// The rights that each release has given at any time.
    pub(crate) fn granted(&self) -> BTreeMap<String, BTreeSet<Right>> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The DNS server that pods ask for Consul's names, as `HOST:PORT`; none where it is the cluster's own, which leads
    /// there. Others' clusters are not changed for that.
    pub(crate) async fn consul_names(&self) -> Result<Option<String>> {
        if self.own().is_ok() {
            return Ok(None);
        }
        let address = ["--namespace=consul", "get", "service", "consul-dns", "--output=jsonpath={.spec.clusterIP}"];
        Ok(Some(format!("{}:53", self.kubectl().run(&address).await?)))
    }

    /// The API of the Consul that runs in the cluster.
    pub(crate) fn consul(&self) -> ConsulApi {
        ConsulApi::new(&self.consul_address, None)
    }

    /// The same, as a URL.
    pub(crate) fn consul_address(&self) -> &str {
        &self.consul_address
    }

    /// A stand-in of consul-esm, for instances of which no agent has the checks. It is beside the cluster, and so has no
    /// way to the pods of a cluster that is not our own.
    pub(crate) fn esm(&self) -> Result<Option<Esm>> {
        match &self.place {
            Place::Nodes(_) => self.background.spawn(|| Some(Esm::start(self.consul()))),
            Place::Given(_) => Ok(None),
        }
    }

    /// Starts something that goes on between tests.
    pub(crate) async fn in_background<T: Send + 'static>(
        &self,
        start: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let started = self.background.spawn(|| tokio::spawn(start))?;
        started.await?
    }

    /// The nodes, which are our own.
    pub(crate) fn own(&self) -> Result<&NodeCluster> {
        match &self.place {
            Place::Nodes(nodes) => Ok(nodes),
            Place::Given(_) => Err(anyhow!("the nodes are not our own")),
        }
    }

    /// The node [`LONELY_NODE`], for one test at a time.
    pub(crate) async fn lonely_node(&self) -> Result<(&Node, MutexGuard<'_, ()>)> {
        let guard = self.lonely_node.lock().await;
        let node = self.own()?.nodes().iter().find(|node| node.name() == LONELY_NODE);
        Ok((node.context("no such node")?, guard))
    }

    /// What the apiserver has noted of the service accounts' requests.
    pub(crate) fn audit_log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.work_dir.join("audit.log"))?)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Place::Given(plane) = &self.place {
            clear_away(plane.kubectl_program());
        }
    }
}

/// Removes from a cluster that stays what the tests have made in it. What fails here may have been what failed before.
fn clear_away(kubectl: &Kubectl) {
    let run = |args: &[&str]| {
        let output = kubectl.command(args).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    };
    let ours = format!("--selector={OURS}");
    run(&["delete", "namespaces", &ours, "--wait=false"]);
    let names = r#"--output=jsonpath={range .items[*]}{.metadata.namespace} {.metadata.name}{"\n"}{end}"#;
    for resource in run(&["get", "csvc", "--all-namespaces", names]).lines() {
        if let Some((namespace, name)) = resource.split_once(' ') {
            let without = r#"{"metadata":{"finalizers":null}}"#;
            run(&["--namespace", namespace, "patch", "csvc", name, "--type=merge", "--patch", without]);
        }
    }
    run(&["delete", "clusterroles,clusterrolebindings", "--selector=app.kubernetes.io/name=lictor"]);
    run(&["delete", CRD]);
}

/// Fails if somebody has in a cluster what the tests would change.
async fn ensure_unused(plane: &ControlPlane) -> Result<()> {
    for object in ["namespace/consul", CRD] {
        let there = plane.kubectl(&["get", object, "--ignore-not-found", "--output=name"]).await?;
        ensure!(there.is_empty(), "{object} is there already: these tests need a cluster of their own");
    }
    Ok(())
}

/// Nodes of our own, one of which is not for everybody.
async fn nodes(work_dir: &WorkDir) -> Result<NodeCluster> {
    let policy = work_dir.write("audit-policy.yaml", AUDIT_POLICY)?;
    let apiserver_extra_args = vec![
        format!("--audit-policy-file={}", policy.display()),
        format!("--audit-log-path={}", work_dir.join("audit.log").display()),
    ];
    let options = NodeClusterOptions { nodes: 3, apiserver_extra_args, ..Default::default() };
    let nodes = NodeCluster::start(&options).await?;
    nodes.plane().kubectl(&["label", "node", LONELY_NODE, &format!("{LONELY}=")]).await?;
    nodes.plane().kubectl(&["taint", "node", LONELY_NODE, &format!("{LONELY}=:NoSchedule")]).await?;
    Ok(nodes)
}

/// An archive of the image of the program under test, unless there is one already.
async fn image(work_dir: &WorkDir) -> Result<Option<PathBuf>> {
    if std::env::var_os("LICTOR_IMAGE").is_some() {
        return Ok(None);
    }
    let archive = work_dir.join("lictor.tar");
    if given_cluster().is_some() {
        let path = archive.display().to_string();
        for args in [&["build", "--tag", LICTOR_IMAGE, REPOSITORY][..], &["save", "--output", &path, LICTOR_IMAGE]] {
            process::run(tokio::process::Command::new("docker").args(args)).await?;
        }
    } else {
        // The engine goes as soon as it has built.
        let docker = Docker::start().await?;
        let from = match std::env::var("LICTOR_IMAGE_FROM").as_deref() {
            Ok("source") => From::Source,
            _ => From::Program(Path::new(LICTOR)),
        };
        std::fs::rename(docker.build(Path::new(REPOSITORY), from).await?, &archive)?;
    }
    Ok(Some(archive))
}

/// Installs the CRD and Consul.
async fn install(plane: &ControlPlane) -> Result<()> {
    let crd = Command::new(LICTOR).arg("crd").output()?;
    ensure!(crd.status.success(), "lictor crd: {}", String::from_utf8_lossy(&crd.stderr));
    plane.install_crd(&String::from_utf8(crd.stdout)?).await?;
    let apply = ["apply", "--server-side", "--force-conflicts", "--filename", "-"];
    plane.kubectl_program().run_with_input(&apply, &with_images(include_str!("manifests/consul.yaml"))).await?;
    let rollout = ["--namespace=consul", "rollout", "status", "deployment/consul", "--timeout=90s"];
    if let Err(error) = plane.kubectl(&rollout).await {
        let pods = plane.kubectl(&["--namespace=consul", "describe", "pods"]).await;
        return Err(error.context(pods.unwrap_or_default()));
    }
    plane.kubectl(&["--namespace=consul", "wait", "pod/toolbox", "--for=condition=Ready", "--timeout=60s"]).await?;
    Ok(())
}

impl Place {
    fn plane(&self) -> &ControlPlane {
        match self {
            Self::Nodes(nodes) => nodes.plane(),
            Self::Given(plane) => plane,
        }
    }

    /// Takes an archive of images to the nodes.
    async fn load(&self, archive: &Path) -> Result<()> {
        if let Self::Nodes(nodes) = self {
            return nodes.load(archive).await;
        }
        let Ok(command) = std::env::var("LICTOR_LOAD") else { return Ok(()) };
        let loaded = Command::new("sh").arg("-c").arg(format!("{command} \"$1\"")).arg("sh").arg(archive).output()?;
        ensure!(loaded.status.success(), "{command}: {}", String::from_utf8_lossy(&loaded.stderr));
        Ok(())
    }

    /// Consul's address as seen from this machine, which need not have a way to pods that are not our own.
    async fn way_to_consul(&self, work_dir: &WorkDir) -> Result<(String, Option<Process>)> {
        let kubectl = self.plane().kubectl_program();
        if let Self::Nodes(_) = self {
            let address = "--output=jsonpath={.items[0].status.podIP}";
            let address = kubectl.run(&["--namespace=consul", "get", "pods", "--selector=app=consul", address]).await?;
            return Ok((format!("http://{address}:8500"), None));
        }
        let here = ports::free()?;
        let command =
            kubectl.command(&["--namespace=consul", "port-forward", "service/consul", &format!("{here}:8500")]);
        let process = Process::spawn("kubectl port-forward", command, &work_dir.join("forward.log"))?;
        wait::until("the forwarded port", SOON, || async {
            process.ensure_running()?;
            tokio::net::TcpStream::connect(("127.0.0.1", here)).await?;
            Ok(Some(()))
        })
        .await?;
        Ok((format!("http://127.0.0.1:{here}"), Some(process)))
    }
}

/// The image under test, as (repository, tag).
pub(crate) fn lictor_image() -> Result<(String, String)> {
    let image = std::env::var("LICTOR_IMAGE").unwrap_or_else(|_| LICTOR_IMAGE.to_owned());
    let (repository, tag) = image.rsplit_once(':').with_context(|| format!("{image}: no tag"))?;
    Ok((repository.to_owned(), tag.to_owned()))
}

/// A manifest with the names of the images that are there.
fn with_images(manifest: &str) -> String {
    manifest.replace("CONSUL_IMAGE", CONSUL_IMAGE).replace("APP_IMAGE", APP_IMAGE)
}
