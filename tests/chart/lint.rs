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

/// The oldest Helm makes of the chart what the newest one does. It knows no Kubernetes that is new enough by itself.
#[tokio::test]
async fn the_oldest_helm_makes_the_same() -> Result<()> {
    let (newest, oldest) = (Helm::new().await?, Helm::oldest().await?);
    for values in all_values() {
        let args: Vec<_> = with(&values).into_iter().chain(["--kube-version=1.31".as_ref()]).collect();
        assert_eq!(oldest.objects(&args).await?, newest.objects(&args).await?, "{}", values.display());
    }
    let none: [&str; 0] = [];
    let refused = oldest.refusal(&none).await?;
    assert!(refused.contains("chart requires kubeVersion: >=1.31.0-0"), "{refused}");
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
