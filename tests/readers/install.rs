//! Installs the readers where the build's own temporary files are, each once for its pins.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lictor_testbed::Programs;
use lictor_testbed::process::run;
use tokio::process::Command;

use crate::readers::With;

pub(crate) const PYTHON: &str = include_str!("python.txt");
pub(crate) const PYTHON_CONSUL: &str = include_str!("python-consul.txt");
pub(crate) const PACKAGE: &str = include_str!("package.json");
const PACKAGE_LOCK: &str = include_str!("package-lock.json");

/// How a reader is run: a program, what comes before its arguments, where its packages are, and the CoreDNS that it asks.
#[derive(Clone)]
pub(crate) struct Runs {
    pub(crate) program: PathBuf,
    pub(crate) first: Vec<PathBuf>,
    pub(crate) packages: Option<PathBuf>,
    pub(crate) coredns: Option<PathBuf>,
}

/// What is there to run, or why it is not.
type Found = Result<Runs, String>;

pub(crate) struct Installed {
    python: Found,
    python_consul: Found,
    node: Found,
    go: Found,
    template: Found,
    coredns: Result<PathBuf, String>,
}

impl Installed {
    /// How to run what answers for a reader.
    pub(crate) fn command(&self, with: With) -> Found {
        match with {
            With::Dns(..) => Ok(plain(PathBuf::new())),
            With::CoreDns => {
                let coredns = Some(self.coredns.clone()?);
                self.python.clone().map(|python| Runs { coredns, ..python })
            }
            With::Python => self.python.clone(),
            With::PythonConsul => self.python_consul.clone(),
            With::Node => self.node.clone(),
            With::Go => self.go.clone(),
            With::Template => self.template.clone(),
        }
    }
}

fn plain(program: PathBuf) -> Runs {
    Runs { program, first: Vec::new(), packages: None, coredns: None }
}

/// Installs and builds all readers.
pub(crate) async fn everything() -> Installed {
    let programs = Programs::ensure_readers().await.map_err(|error| format!("{error:#}"));
    let described = |found: Result<Runs>| found.map_err(|error| format!("{error:#}"));
    Installed {
        python: described(python("python", PYTHON).await),
        python_consul: described(python("python-consul", PYTHON_CONSUL).await),
        node: described(node().await),
        go: programs.clone().map(|(reader, _)| plain(reader)),
        template: programs.map(|(_, template)| plain(template)),
        coredns: Programs::ensure_coredns().await.map_err(|error| format!("{error:#}")),
    }
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/readers").join(name)
}

/// A folder for these pins: true if it is complete.
fn folder(name: &str, pins: &str) -> Result<(PathBuf, bool)> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("readers").join(name);
    if fs::read_to_string(folder.join("installed")).is_ok_and(|there| there == pins) {
        return Ok((folder, true));
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("emptying {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok((folder, false))
}

async fn python(name: &str, pins: &str) -> Result<Runs> {
    let (folder, complete) = folder(name, pins)?;
    let requirements = source(&format!("{name}.txt"));
    if !complete {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"]);
        run(pip.arg(&folder).arg("--requirement").arg(requirements)).await?;
        fs::write(folder.join("installed"), pins)?;
    }
    // Itself, and not a program that looks for it at each start.
    let program = run(Command::new("python3").args(["-c", "import sys; print(sys.executable, end='')"])).await?;
    Ok(Runs { first: vec![source("ask.py")], packages: Some(folder), ..plain(program.into()) })
}

async fn node() -> Result<Runs> {
    let (folder, complete) = folder("node", PACKAGE_LOCK)?;
    if !complete {
        fs::write(folder.join("package.json"), PACKAGE)?;
        fs::write(folder.join("package-lock.json"), PACKAGE_LOCK)?;
        let mut npm = Command::new("npm");
        run(npm.args(["ci", "--silent", "--no-audit", "--no-fund"]).current_dir(&folder)).await?;
        fs::write(folder.join("installed"), PACKAGE_LOCK)?;
    }
    // Modules are looked for beside the program that asks for them.
    let program = folder.join("ask.js");
    fs::copy(source("ask.js"), &program)?;
    Ok(Runs { first: vec![program], ..plain("node".into()) })
}
