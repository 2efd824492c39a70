//! What Helm and helm-unittest say of the chart.

use anyhow::Result;
use lictor_testbed::programs::tools::Tool;

use crate::helm::{Helm, all_values, chart, say, with};

#[tokio::test]
async fn helm_has_nothing_to_say_against_it() -> Result<()> {
    let (helm, chart) = (Helm::new().await?, chart());
    for values in all_values() {
        let said = helm.run(["lint".as_ref(), "--strict".as_ref(), chart.as_os_str()].into_iter().chain(with(&values)));
        assert!(said.await?.contains("0 chart(s) failed"));
    }
    Ok(())
}

/// The suites in `charts/lictor/tests`.
#[tokio::test]
async fn what_it_makes_follows_the_values() -> Result<()> {
    let chart = chart();
    let said = say(&Tool::HelmUnittest.ensure().await?, ["--strict".as_ref(), chart.as_os_str()]).await?;
    let suites = std::fs::read_dir(chart.join("tests"))?;
    let suites = suites.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().is_file())).count();
    assert!(said.contains(&format!("Test Suites: {suites} passed, {suites} total")), "{suites} suites:\n{said}");
    Ok(())
}
