//! What all tests stand on: a cluster in which Consul and Lictor run, as pods, and images for more.
//!
//! - By default, nodes within this machine, and the image that the Dockerfile makes of the program that cargo built.
//! - With `KUBECONFIG`, that cluster, such as one of `kind`. `LICTOR_LOAD` is the command that takes an archive of images
//!   to it, such as `kind load image-archive`; without, the images have to be there.
//! - With `LICTOR_IMAGE`, the image of that name in place of our own.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use lictor_testbed::node::{APP_IMAGE, CONSUL_IMAGE, Docker, From, LICTOR_IMAGE, app_image, consul_image};
use lictor_testbed::{
    ConsulApi, ControlPlane, NodeCluster, NodeClusterOptions, NodePrograms, Process, Programs, TestNamespace, WorkDir,
    init_tls, ports, wait,
};
use tokio::sync::OnceCell;

/// The program under test.
const LICTOR: &str = env!("CARGO_BIN_EXE_lictor");
const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// For anything that should come within moments, on a machine that is busy.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Made by the test that is first; it goes after the last.
#[derive(Default)]
pub(crate) struct Ground {
    cluster: OnceCell<Result<Cluster, String>>,
}

impl Ground {
    pub(crate) async fn cluster(&self) -> Result<&Cluster> {
        let started = async { Box::pin(Cluster::start()).await.map_err(|error| format!("{error:#}")) };
        self.cluster.get_or_init(|| started).await.as_ref().map_err(|error| anyhow!("there is no cluster: {error}"))
    }
}

/// The cluster. What is first here ends first.
pub(crate) struct Cluster {
    consul_address: String,
    _consul_forward: Process,
    place: Place,
    _work_dir: WorkDir,
}

enum Place {
    Nodes(Box<NodeCluster>),
    Given(Box<ControlPlane>),
}

impl Cluster {
    async fn start() -> Result<Self> {
        init_tls();
        let begun = Instant::now();
        let programs = Programs::ensure().await?;
        let work_dir = WorkDir::create("e2e")?;
        let given = std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty());
        let place = async {
            Ok(match &given {
                Some(kubeconfig) => Place::Given(Box::new(ControlPlane::given(Path::new(kubeconfig)).await?)),
                None => Place::Nodes(Box::new(
                    NodeCluster::start(&NodeClusterOptions { nodes: 2, ..Default::default() }).await?,
                )),
            })
        };
        // The engine goes as soon as it has built.
        let image = async {
            if std::env::var_os("LICTOR_IMAGE").is_some() {
                return Ok(None);
            }
            let docker = Docker::start().await?;
            let built = docker.build(Path::new(REPOSITORY), From::Program(Path::new(LICTOR))).await?;
            let archive = work_dir.join("lictor.tar");
            std::fs::rename(built, &archive)?;
            anyhow::Ok(Some(archive))
        };
        let (place, image) = tokio::try_join!(place, image)?;
        println!("a cluster and an image: {:?}", begun.elapsed());

        let mut archives = vec![consul_image(&programs.consul, &work_dir)?];
        archives.extend(image);
        if let Place::Given(_) = place {
            archives.push(app_image(&NodePrograms::ensure_app().await?, &work_dir)?);
        }
        for archive in archives {
            place.load(&archive).await?;
        }
        println!("the images are loaded: {:?}", begun.elapsed());

        place.install().await?;
        let (consul_address, consul_forward) = place.forward(&work_dir, "consul", "service/consul", 8500).await?;
        println!("Consul and Lictor run: {:?}", begun.elapsed());
        Ok(Self { consul_address, _consul_forward: consul_forward, place, _work_dir: work_dir })
    }

    /// A namespace for one test. What is in it goes with the cluster.
    pub(crate) async fn namespace(&self, prefix: &str) -> Result<TestNamespace> {
        TestNamespace::create(self.place.plane(), prefix).await
    }

    /// The API of the Consul that runs in the cluster.
    pub(crate) fn consul(&self) -> ConsulApi {
        ConsulApi::new(&self.consul_address, None)
    }

    /// Adds to a failure what Lictor and Consul had to say.
    pub(crate) async fn explain<T>(&self, result: Result<T>) -> Result<T> {
        if result.is_ok() {
            return result;
        }
        let mut said = String::new();
        for name in ["lictor", "consul"] {
            let deployment = format!("deployment/{name}");
            let log = self.place.plane().kubectl(&["--namespace", name, "logs", "--tail=40", &deployment]).await;
            let pods = self.place.plane().kubectl(&["--namespace", name, "describe", "pods"]).await;
            for part in [log, pods] {
                said.push_str(&part.unwrap_or_else(|error| format!("{error:#}")));
            }
        }
        result.context(said)
    }
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

    /// Installs Consul, and Lictor as the documentation has it without a chart.
    async fn install(&self) -> Result<()> {
        self.apply(include_str!("manifests/consul.yaml")).await?;
        let crd = Command::new(LICTOR).arg("crd").output()?;
        ensure!(crd.status.success(), "lictor crd: {}", String::from_utf8_lossy(&crd.stderr));
        self.apply(&String::from_utf8(crd.stdout)?).await?;
        self.apply(include_str!("../../examples/access/kubernetes.yaml")).await?;
        let restricted = "pod-security.kubernetes.io/enforce=restricted";
        self.plane().kubectl(&["label", "--overwrite", "namespace", "lictor", restricted]).await?;
        self.apply(include_str!("manifests/lictor.yaml")).await?;
        for name in ["consul", "lictor"] {
            let deployment = format!("deployment/{name}");
            let rollout = ["--namespace", name, "rollout", "status", &deployment, "--timeout=90s"];
            if let Err(error) = self.plane().kubectl(&rollout).await {
                let pods = self.plane().kubectl(&["--namespace", name, "describe", "pods"]).await;
                return Err(error.context(pods.unwrap_or_default()));
            }
        }
        Ok(())
    }

    async fn apply(&self, manifest: &str) -> Result<()> {
        let manifest = with_images(manifest);
        let apply = ["apply", "--server-side", "--force-conflicts", "--filename", "-"];
        self.plane().kubectl_program().run_with_input(&apply, &manifest).await.map(drop)
    }

    /// Brings a port of the cluster to this machine, which need not have a way to pods.
    async fn forward(&self, work_dir: &WorkDir, namespace: &str, target: &str, port: u16) -> Result<(String, Process)> {
        let here = ports::free()?;
        let kubectl = self.plane().kubectl_program();
        let ports = format!("{here}:{port}");
        let command = kubectl.command(&["--namespace", namespace, "port-forward", target, &ports]);
        let process = Process::spawn("kubectl port-forward", command, &work_dir.join("forward.log"))?;
        wait::until("the forwarded port", SOON, || async {
            process.ensure_running()?;
            tokio::net::TcpStream::connect(("127.0.0.1", here)).await?;
            Ok(Some(()))
        })
        .await?;
        Ok((format!("http://127.0.0.1:{here}"), process))
    }
}

/// A manifest with the names of the images that are there.
pub(crate) fn with_images(manifest: &str) -> String {
    let lictor = std::env::var("LICTOR_IMAGE").unwrap_or_else(|_| LICTOR_IMAGE.to_owned());
    manifest.replace("LICTOR_IMAGE", &lictor).replace("CONSUL_IMAGE", CONSUL_IMAGE).replace("APP_IMAGE", APP_IMAGE)
}
