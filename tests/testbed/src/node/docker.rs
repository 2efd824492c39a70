//! An engine that builds the repository's Dockerfile: Debian's own, in a machine of its own.
//!
//! It can pull nothing. The images that the Dockerfile begins with are made here, of Debian's packages, under the names
//! that the Dockerfile has, less their digests: only a registry can vouch for those.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::machine::{Machine, Network};
use super::tools;
use crate::process::Process;
use crate::programs::cache;
use crate::wait;
use crate::work_dir::WorkDir;

const START: Duration = Duration::from_secs(60);

/// The name that [`Docker::build`] gives to what it builds.
pub const LICTOR_IMAGE: &str = "lictor.test/lictor:test";

/// A running engine; it goes, with all that it has built, when it is dropped.
#[derive(Debug)]
pub struct Docker {
    process: Process,
    _machine: Machine,
    socket: PathBuf,
    work_dir: WorkDir,
}

/// How to come by the program in the image.
#[derive(Debug, Clone, Copy)]
pub enum From<'a> {
    /// This one, which was built here.
    Program(&'a Path),
    /// What the Dockerfile builds of the repository. This takes minutes, and a network.
    Source,
}

impl Docker {
    /// Starts one, after installing it if it is missing.
    pub async fn start() -> Result<Self> {
        let dockerd = tokio::task::spawn_blocking(|| {
            super::prepare()?;
            if tools::find("dockerd").is_none() {
                tools::install(&["docker.io"])?;
            }
            tools::find("dockerd").context("no dockerd")
        })
        .await??;
        let work_dir = WorkDir::create("docker")?;
        let machine = Machine::start("docker", Network::Real, &work_dir).await?;
        let socket = work_dir.join("docker.sock");
        let mut command = machine.command(&dockerd);
        command
            .arg(format!("--host=unix://{}", socket.display()))
            .arg(format!("--data-root={}", machine.path("disk/docker").display()))
            .arg(format!("--cgroup-parent=/{}", machine.cgroup()))
            .args(["--exec-root=/run/docker", "--pidfile=/run/docker.pid", "--oom-score-adjust=0"])
            // Nothing of the real machine's network.
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
        let docker = Self { process: machine.spawn("dockerd", command)?, _machine: machine, socket, work_dir };
        let ready = wait::until("dockerd", START, || async {
            if let Err(ended) = docker.process.ensure_running() {
                return Ok(Some(Err(ended)));
            }
            tokio::net::UnixStream::connect(&docker.socket).await?;
            Ok(Some(Ok(())))
        });
        ready.await.with_context(|| docker.process.log_tail(20))??;
        Ok(docker)
    }

    /// Builds the Dockerfile of the repository as [`LICTOR_IMAGE`], and gives the path of an archive of it that lives
    /// as long as this engine.
    pub async fn build(&self, repository: &Path, from: From<'_>) -> Result<PathBuf> {
        let stages = without_digests(&std::fs::read_to_string(repository.join("Dockerfile"))?);
        let dockerfile = self.work_dir.join("Dockerfile");
        std::fs::write(&dockerfile, &stages)?;
        self.make_base(&base_of(&stages, "distroless")?, "runtime-base", repository).await?;
        let mut args = vec!["build", "--force-rm", "--tag", LICTOR_IMAGE];
        let context = match from {
            From::Program(program) => {
                args.extend(["--network=none", "--target=prebuilt"]);
                self.context_with(program, repository)?
            }
            From::Source => {
                self.make_base(&base_of(&stages, "rust")?, "builder-base", repository).await?;
                args.push("--network=host");
                repository.to_owned()
            }
        };
        let (dockerfile, context) = (dockerfile.display().to_string(), context.display().to_string());
        args.extend(["--file", &dockerfile, &context]);
        self.run(&args).await?;

        let archive = self.work_dir.join("lictor.tar");
        self.run(&["save", "--output", &archive.display().to_string(), LICTOR_IMAGE]).await?;
        Ok(archive)
    }

    /// Runs the client and gives what it prints.
    pub async fn run(&self, args: &[&str]) -> Result<String> {
        // Debian's client goes with Debian's engine; another one may be too new for it.
        let client = Path::new("/usr/bin/docker");
        let client = if client.is_file() { client.to_owned() } else { tools::find("docker").context("no docker")? };
        let mut command = Command::new(client);
        command.args(args).env("DOCKER_HOST", format!("unix://{}", self.socket.display())).env("DOCKER_BUILDKIT", "0");
        // The machine's own configuration may name credentials, proxies, another engine.
        command.env("DOCKER_CONFIG", self.work_dir.path()).env_remove("DOCKER_CONTEXT");
        tokio::task::spawn_blocking(move || tools::run(&mut command)).await?
    }

    /// A folder with the program, stripped as a release is, and what else that stage of the Dockerfile takes.
    fn context_with(&self, program: &Path, repository: &Path) -> Result<PathBuf> {
        let context = self.work_dir.join("context");
        std::fs::create_dir_all(&context)?;
        std::fs::copy(repository.join("LICENSE"), context.join("LICENSE"))?;
        let copy = context.join("lictor");
        std::fs::copy(program, &copy).with_context(|| format!("copying {}", program.display()))?;
        if let Some(strip) = tools::find("strip") {
            tools::run(Command::new(strip).arg(copy))?;
        }
        Ok(context)
    }

    /// Makes an image of the name `name` by the script `images/SCRIPT.sh`, whose output is kept.
    async fn make_base(&self, name: &str, script: &str, repository: &Path) -> Result<()> {
        let script = repository.join(format!("tests/testbed/images/{script}.sh"));
        let archive = tokio::task::spawn_blocking(move || base(&script)).await??;
        let archive = archive.display().to_string();
        let path = "ENV PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let args = ["import", "--change", path, &archive, name];
        self.run(&args).await.map(drop)
    }
}

/// The archive that a script writes, from the cache if it is there.
fn base(script: &Path) -> Result<PathBuf> {
    let content = std::fs::read_to_string(script).with_context(|| format!("reading {}", script.display()))?;
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = script.file_stem().and_then(|stem| stem.to_str()).context("a script without a name")?;
    let folder = cache()?.with_file_name("images");
    std::fs::create_dir_all(&folder)?;
    let digest = super::image::digest(&[content.as_bytes(), release.as_bytes()]);
    let archive = folder.join(format!("{name}-{}.tar", &digest[..16]));
    let lock = File::create(folder.join(format!("{name}.lock")))?;
    lock.lock()?;
    if !archive.is_file() {
        eprintln!("making {name} of Debian's packages …");
        if content.contains("debootstrap") && tools::find("debootstrap").is_none() {
            tools::install(&["debootstrap"])?;
        }
        let unfinished = archive.with_extension("unfinished");
        // The lists of packages may be missing, or older than what they name.
        if tools::run(Command::new(script).arg(&unfinished)).is_err() {
            tools::update()?;
            tools::run(Command::new(script).arg(&unfinished))?;
        }
        std::fs::rename(&unfinished, &archive)?;
    }
    Ok(archive)
}

/// A Dockerfile whose stages name images by their tags alone.
fn without_digests(dockerfile: &str) -> String {
    let by_tag = |line: &str| match line.split_once("@sha256:") {
        Some((image, rest)) if line.starts_with("FROM ") => {
            format!("{image}{}\n", rest.trim_start_matches(|c: char| c.is_ascii_hexdigit()))
        }
        _ => format!("{line}\n"),
    };
    dockerfile.lines().map(by_tag).collect()
}

/// The image that a stage of a Dockerfile begins with.
fn base_of(dockerfile: &str, stage: &str) -> Result<String> {
    let end = format!(" AS {stage}");
    let found = dockerfile.lines().find_map(|line| line.strip_prefix("FROM ")?.strip_suffix(&end));
    Ok(found.with_context(|| format!("no stage {stage} in the Dockerfile"))?.to_owned())
}
