//! The nodes themselves: pods run on them and find each other, and whatever happens to the process that has made them,
//! nothing of them is left.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says so by failing")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lictor_testbed::node::{APP_IMAGE, suite};
use lictor_testbed::{NodeCluster, NodeClusterOptions, TestNamespace, wait};

const SOON: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let test = |name, run| suite::Test { name, own_cluster: true, run };
    suite::run(
        (),
        vec![vec![
            test("pods_run_and_find_each_other", |()| Box::pin(pods_run_and_find_each_other())),
            test("no_node_outlives_a_killed_process", |()| Box::pin(no_node_outlives_a_killed_process())),
        ]],
    )
}

async fn pods_run_and_find_each_other() -> Result<()> {
    let begun = Instant::now();
    let cluster = NodeCluster::start(&NodeClusterOptions { nodes: 2, ..NodeClusterOptions::default() }).await?;
    println!("two nodes ready: {:?}", begun.elapsed());
    let shop = TestNamespace::create(cluster.plane(), "shop").await?;
    let begun = Instant::now();
    shop.apply_yaml(&deployment("user", 4)).await?;
    shop.apply_service("user", &[("app", "user")], &[("http", 80, "http")]).await?;
    // A Deployment is "Available" with three of four: the fourth pod may have no address yet.
    let four_ready = || async {
        let ready = shop.kubectl(&["get", "deployment", "user", "--output=jsonpath={.status.readyReplicas}"]).await?;
        Ok((ready == "4").then_some(()))
    };
    wait::until("four pods that are ready", SOON, four_ready).await?;
    println!("four pods ready: {:?}", begun.elapsed());

    // On both nodes; this machine reaches them; they reach each other by name, through the Service.
    let pods = shop.kubectl(&["get", "pods", "--output", PODS]).await?;
    let pods: Vec<Vec<&str>> = pods.lines().map(|line| line.split(' ').collect()).collect();
    ensure!(cluster.nodes().iter().all(|node| pods.iter().any(|pod| pod[2] == node.name())), "{pods:?}");
    for pod in &pods {
        let answer = reqwest::get(format!("http://{}:8080/", pod[1])).await?.text().await?;
        ensure!(answer.trim() == pod[0], "{pod:?} calls itself {answer}");
        let exec = ["exec", pod[0], "--", "/app"];
        let load = ["load", "-dns", "user", "-port", "80", "-rate", "100", "-duration", "1s"];
        // kube-proxy takes a moment to learn of the last pod.
        wait::until(format!("{} reaches all four", pod[0]), SOON, || async {
            let load = shop.kubectl(&[&exec[..], &load].concat()).await?;
            ensure!(!load.contains(r#""errors""#), "{load}");
            ensure!(pods.iter().all(|other| load.contains(other[0])), "{load} of {pods:?}");
            Ok(Some(()))
        })
        .await?;
    }

    // The cluster takes notice of a kubelet's end, and its pods are made anew elsewhere.
    let node = &cluster.nodes()[1];
    let begun = Instant::now();
    node.stop_kubelet()?;
    cluster.wait_ready(node, false).await?;
    println!("a silent node is not ready: {:?}", begun.elapsed());
    wait::until("four pods on the other node", SOON, four_ready).await?;
    println!("its pods are elsewhere: {:?}", begun.elapsed());
    node.start_kubelet()?;
    cluster.wait_ready(node, true).await?;
    Ok(())
}

const PODS: &str = r#"jsonpath={range .items[*]}{.metadata.name} {.status.podIP} {.spec.nodeName}{"\n"}{end}"#;

fn deployment(name: &str, replicas: u32) -> String {
    format!(
        r"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {name}
spec:
  replicas: {replicas}
  selector:
    matchLabels:
      app: {name}
  template:
    metadata:
      labels:
        app: {name}
    spec:
      containers:
        - name: app
          image: {APP_IMAGE}
          imagePullPolicy: Never
          args: [serve]
          ports:
            - name: http
              containerPort: 8080
          readinessProbe:
            httpGet:
              path: /ready
              port: http
            periodSeconds: 1
"
    )
}

async fn no_node_outlives_a_killed_process() -> Result<()> {
    let mut up = Command::new(env!("CARGO_BIN_EXE_testbed"));
    let mut child = up.args(["up", "--nodes", "1"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
    let work_dir = |line: &str| {
        let kubeconfig = line.trim().strip_prefix("export KUBECONFIG=")?;
        Some(Path::new(kubeconfig).parent()?.to_owned())
    };
    let plane = work_dir(&line).with_context(|| format!("it said {line:?}"))?;

    // What is there of it: processes, of whatever parent, that have its folders in their arguments; those folders;
    // cgroups, which one of these processes names.
    let mark = format!("-{}-", child.id());
    let processes = processes_with(&mark)?;
    ensure!(processes.len() >= 10, "only {processes:?}");
    let folders = folders_with(&std::env::temp_dir(), &mark)?;
    ensure!(folders.contains(&plane) && folders.len() >= 2, "{folders:?}");
    let mut configs = folders.iter().map(|folder| folder.join("node-1/kubelet.yaml"));
    let config = configs.find_map(|config| std::fs::read_to_string(config).ok()).context("no config")?;
    let config: serde_json::Value = serde_json::from_str(&config)?;
    let cgroup = config["cgroupRoot"].as_str().context("no cgroup")?.trim_start_matches('/').to_owned();
    ensure!(!cgroups_of(&cgroup)?.is_empty(), "no cgroup {cgroup}");
    let address = config["address"].as_str().context("no address")?;
    ensure!(route_to(address)?.contains("lictor"), "{}", route_to(address)?);

    child.kill()?;
    child.wait()?;
    wait::until("the end of all that", SOON, || async {
        let left = (processes_with(&mark)?, folders_with(&std::env::temp_dir(), &mark)?, cgroups_of(&cgroup)?);
        ensure!(left.0.is_empty() && left.1.is_empty() && left.2.is_empty(), "{left:?}");
        ensure!(!route_to(address)?.contains("lictor"), "the way to its node");
        Ok(Some(()))
    })
    .await
}

fn processes_with(mark: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc")? {
        let arguments = std::fs::read(process?.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        if arguments.contains(mark) {
            found.push(arguments);
        }
    }
    Ok(found)
}

fn folders_with(parent: &Path, mark: &str) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().contains(mark) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn cgroups_of(name: &str) -> Result<Vec<std::path::PathBuf>> {
    let root = Path::new("/sys/fs/cgroup");
    let mut found = folders_with(root, name)?;
    for hierarchy in std::fs::read_dir(root)?.flatten().filter(|entry| entry.path().is_dir()) {
        found.extend(folders_with(&hierarchy.path(), name)?);
    }
    Ok(found)
}

fn route_to(address: &str) -> Result<String> {
    let output = Command::new("ip").args(["route", "get", address]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
