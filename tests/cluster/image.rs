//! The image, as the Dockerfile makes it.

use anyhow::{Context, Result, ensure};
use lictor_testbed::node::contents_of;

use crate::environment::Environment;

/// It runs as nobody in particular, has nothing to run but the program, and says what it is.
pub(crate) async fn holds_what_it_needs(environment: &Environment) -> Result<()> {
    let archive = environment.cluster().await?.image().context("the image is somebody else's")?;
    let contents = contents_of(archive)?;
    println!("the image: {} kB in {} files", contents.size / 1_000, contents.files.len());

    let config = &contents.config;
    ensure!(config["User"] == "65532:65532" && config["Entrypoint"][0] == "/lictor", "{config:#}");
    for label in ["title", "description", "source", "documentation", "licenses", "version", "revision"] {
        let label = format!("org.opencontainers.image.{label}");
        ensure!(config["Labels"][&label].as_str().is_some_and(|text| !text.is_empty()), "{label}: {config:#}");
    }
    ensure!(contents.files.contains("lictor") && contents.files.contains("LICENSE"), "{:?}", contents.files);
    let of_programs = |name: &&String| {
        let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
        folder.ends_with("bin") || matches!(name.rsplit('/').next(), Some("sh" | "bash" | "busybox"))
    };
    let others: Vec<_> = contents.files.iter().filter(of_programs).collect();
    ensure!(others.is_empty(), "other programs: {others:?}");
    Ok(())
}
