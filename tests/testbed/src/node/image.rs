//! Container images made of files that are here already, as archives that `ctr`, `docker load` and `kind load` take.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ring::digest::{Context as Digest, SHA256};
use serde_json::{Value, json};
use tar::{Archive, Builder, EntryType, Header, HeaderMode};

use crate::work_dir::{WorkDir, random_suffix};

/// What holds the namespaces of every pod.
pub const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10";

/// The image of `programs/app`.
pub const APP_IMAGE: &str = "lictor.test/app:1";

/// The image of Consul.
pub const CONSUL_IMAGE: &str = "lictor.test/consul:1";

/// An image of one layer.
#[derive(Debug, Clone)]
pub struct Image<'a> {
    /// Its names, such as `lictor.test/app:1`.
    pub names: &'a [&'a str],
    /// What is in it: (path in the image, file here). Anybody may run them.
    pub files: &'a [(&'a str, &'a Path)],
    /// Folders that anybody may write to.
    pub folders: &'a [&'a str],
    /// What it runs.
    pub entrypoint: &'a [&'a str],
    /// As whom, as `UID:GID`.
    pub user: &'a str,
}

impl Image<'_> {
    /// Writes the archive into a folder and gives its path.
    pub fn write(&self, work_dir: &WorkDir) -> Result<PathBuf> {
        let stem = random_suffix();
        let layer = work_dir.join(format!("{stem}.layer.tar"));
        self.write_layer(&layer)?;
        let config = serde_json::to_vec(&json!({
            "architecture": architecture(),
            "os": "linux",
            "config": { "Entrypoint": self.entrypoint, "User": self.user, "Env": ["PATH=/:/bin:/usr/bin"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", digest_of_file(&layer)?)] },
        }))?;
        let config_name = format!("{}.json", digest(&[&config]));
        let manifest = json!([{ "Config": config_name, "RepoTags": self.names, "Layers": ["layer.tar"] }]);

        let path = work_dir.join(format!("{stem}.tar"));
        let mut archive = Builder::new(BufWriter::new(File::create(&path)?));
        archive.mode(HeaderMode::Deterministic);
        append(&mut archive, "manifest.json", &serde_json::to_vec(&manifest)?)?;
        append(&mut archive, &config_name, &config)?;
        archive.append_path_with_name(&layer, "layer.tar")?;
        archive.into_inner()?.flush()?;
        std::fs::remove_file(layer)?;
        Ok(path)
    }

    fn write_layer(&self, path: &Path) -> Result<()> {
        let mut layer = Builder::new(BufWriter::new(File::create(path)?));
        for folder in self.folders {
            let mut header = header(EntryType::Directory, 0o1777, 0);
            layer.append_data(&mut header, folder.trim_start_matches('/'), std::io::empty())?;
        }
        for (name, file) in self.files {
            let file = File::open(file).with_context(|| format!("opening {}", file.display()))?;
            let mut header = header(EntryType::Regular, 0o755, file.metadata()?.len());
            layer.append_data(&mut header, name.trim_start_matches('/'), file)?;
        }
        layer.into_inner()?.flush()?;
        Ok(())
    }
}

/// Writes an archive of [`PAUSE_IMAGE`] into a folder; `app` is the program of the testbed.
pub(super) fn pause_image(app: &Path, work_dir: &WorkDir) -> Result<PathBuf> {
    let image = Image {
        names: &[PAUSE_IMAGE],
        files: &[("/app", app)],
        folders: &[],
        entrypoint: &["/app", "pause"],
        user: "65535:65535",
    };
    image.write(work_dir)
}

/// Writes an archive of [`APP_IMAGE`] into a folder: `/app`, run as nobody.
pub fn app_image(app: &Path, work_dir: &WorkDir) -> Result<PathBuf> {
    let image = Image {
        names: &[APP_IMAGE],
        files: &[("/app", app)],
        folders: &["/tmp"],
        entrypoint: &["/app"],
        user: "65532:65532",
    };
    image.write(work_dir)
}

/// Writes an archive of [`CONSUL_IMAGE`] into a folder: `/consul`, run as nobody.
pub fn consul_image(consul: &Path, work_dir: &WorkDir) -> Result<PathBuf> {
    let image = Image {
        names: &[CONSUL_IMAGE],
        files: &[("/consul", consul)],
        folders: &["/tmp"],
        entrypoint: &["/consul"],
        user: "65532:65532",
    };
    image.write(work_dir)
}

/// What is in an image.
#[derive(Debug)]
pub struct Contents {
    /// How it is run, in the words of the OCI image specification.
    pub config: Value,
    /// The files of all layers, without a leading slash.
    pub files: BTreeSet<String>,
    /// The size of all layers, in bytes.
    pub size: u64,
}

/// Reads an archive, in the layout of `docker save`.
pub fn contents_of(archive: &Path) -> Result<Contents> {
    let read = |wanted: &str| {
        let mut found = Vec::new();
        let mut entries = Archive::new(File::open(archive)?);
        for entry in entries.entries()? {
            let mut entry = entry?;
            if entry.path()?.to_str() == Some(wanted) {
                entry.read_to_end(&mut found)?;
                return Ok(found);
            }
        }
        bail!("{}: no {wanted}", archive.display())
    };
    let manifest: Value = serde_json::from_slice(&read("manifest.json")?)?;
    let path = |value: &Value| value.as_str().map(str::to_owned).context("no path");
    let config: Value = serde_json::from_slice(&read(&path(&manifest[0]["Config"])?)?)?;
    let mut contents = Contents { config: config["config"].clone(), files: BTreeSet::new(), size: 0 };
    for layer in manifest[0]["Layers"].as_array().context("no layers")? {
        let layer = read(&path(layer)?)?;
        contents.size += u64::try_from(layer.len())?;
        for entry in Archive::new(&layer[..]).entries()? {
            let entry = entry?;
            if !entry.header().entry_type().is_dir() {
                contents.files.insert(entry.path()?.to_string_lossy().trim_start_matches("./").to_owned());
            }
        }
    }
    Ok(contents)
}

fn append(archive: &mut Builder<impl Write>, name: &str, content: &[u8]) -> Result<()> {
    let size = u64::try_from(content.len())?;
    archive.append_data(&mut header(EntryType::Regular, 0o644, size), name, content)?;
    Ok(())
}

/// Owned by root, and as old as all others.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn digest_of_file(path: &Path) -> Result<String> {
    let (mut file, mut digest) = (File::open(path)?, Digest::new(&SHA256));
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex(digest.finish().as_ref()));
        }
        digest.update(&buffer[..read]);
    }
}

/// The SHA-256 of these parts, one after the other.
pub(super) fn digest(parts: &[&[u8]]) -> String {
    let mut digest = Digest::new(&SHA256);
    for part in parts {
        digest.update(part);
    }
    hex(digest.finish().as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// This machine's, in the words of Go, whose words these are.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
