//! Each field of `spec`, read back from Consul after the resource was made and after each edit.
//!
//! The one list is in [`lines`]: the scenario goes through it in each mode, and [`page`] makes `docs/fields.md` of it.
//! What the resources stand on is in [`environment`], how Consul is read in [`reading`]. Each line is a resource of its own,
//! so that nothing but its field is edited.

mod environment;
mod lines;
mod page;
mod reading;

use anyhow::{Context, Result, ensure};
use futures::StreamExt;

use self::environment::{Environment, Subject};
use self::lines::{Line, Wanted, lines};
use self::reading::{Reading, registered};
use crate::fixture::Fixture;

/// So many resources at a time.
const AT_ONCE: usize = 12;

pub(crate) async fn each_field_is_read_back(fixture: &Fixture) -> Result<()> {
    let environment = Environment::lay(fixture).await?;
    fixture.operator().with_checks().flag("--allow-static", &environment.allowed()).ready().await?;
    let mut lines = lines();
    // What takes longest begins first.
    lines.sort_by_key(|line| !matches!(line.reading, Reading::Runs(_)));
    let held = futures::stream::iter(&lines).map(|line| line.hold(&environment)).buffer_unordered(AT_ONCE);
    let held: Vec<Result<()>> = held.collect().await;
    let failures: Vec<String> = held.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    ensure!(
        failures.is_empty(),
        "{} of {} fields are not as wanted:\n{}",
        failures.len(),
        lines.len(),
        failures.join("\n")
    );
    Ok(())
}

impl Line {
    /// Makes the line's resource, edits it and removes it, and reads Consul after each.
    async fn hold(&self, environment: &Environment<'_>) -> Result<()> {
        let mut subject = Subject::make(self, environment).await.with_context(|| self.field.to_owned())?;
        for number in 0..self.steps.len() {
            let step = || format!("{}, {}: {}", self.field, self.step_name(number), self.steps[number].yaml);
            self.take(number, environment, &mut subject).await.with_context(step)?;
        }
        if self.reading != Reading::Left {
            environment.fixture.delete(&subject.name).await?;
            environment.fixture.wait_gone(&subject.name).await?;
        }
        let left = registered(environment.fixture, &subject.services).await?;
        ensure!(left.is_empty(), "{}: gone from Kubernetes, but not from Consul: {left:#?}", self.field);
        Ok(())
    }

    /// Takes one step.
    async fn take(&self, number: usize, environment: &Environment<'_>, subject: &mut Subject) -> Result<()> {
        let fixture = environment.fixture;
        if self.reading == Reading::Left {
            // The step before it has ended with the end of the resource.
            for step in &self.steps[..number] {
                fixture.apply(&subject.name, &subject.spec(step.yaml)?).await?;
                fixture.wait_ready(&subject.name).await?;
            }
        }
        let step = &self.steps[number];
        let before = registered(fixture, &subject.services).await?;
        subject.listen();
        fixture.apply(&subject.name, &subject.spec(step.yaml)?).await?;
        match step.wanted(fixture.mode) {
            Wanted::Refused(why) => {
                let message = fixture.wait_for_condition(&subject.name, "Accepted", "False", "NotSupported").await?;
                ensure!(message == *why, "refused, but not with {why:?}: {message:?}");
                let after = registered(fixture, &subject.services).await?;
                ensure!(after == before, "what was registered did not stay: {before:#?}\n{after:#?}");
            }
            Wanted::Shown(wanted) => {
                if self.reading == Reading::Left {
                    fixture.wait_ready(&subject.name).await?;
                    fixture.delete(&subject.name).await?;
                    fixture.wait_gone(&subject.name).await?;
                }
                self.reading.becomes(wanted, step, environment, subject).await?;
            }
        }
        Ok(())
    }
}

#[test]
fn every_field_has_a_line_and_every_line_a_field() {
    let mut fields = Vec::new();
    crate::schema::each("spec", |path, _, _| fields.push(path.to_owned()));
    let mut listed: Vec<String> = lines().iter().map(|line| line.field.to_owned()).collect();
    fields.sort();
    listed.sort();
    let without: Vec<_> = fields.iter().filter(|field| !listed.contains(field)).collect();
    assert!(without.is_empty(), "fields without a line in tests/e2e/fields/lines.rs: {without:#?}");
    assert_eq!(listed, fields, "lines of the same field, or of one that there is not");
}

#[test]
fn every_edit_is_to_be_seen() {
    for line in lines() {
        assert!(line.steps.len() > 1, "{} is not edited", line.field);
        for pair in line.steps.windows(2) {
            for wanted in [|step: &lines::Step| step.agent.clone(), |step: &lines::Step| step.catalog.clone()] {
                let [before, after] = [wanted(&pair[0]), wanted(&pair[1])];
                let refused = matches!(after, Wanted::Refused(_));
                assert!(refused || before != after, "{}: nobody sees the edit to {}", line.field, pair[1].yaml);
            }
        }
    }
}

#[test]
fn the_page_is_current() {
    crate::table::check_page("docs/fields.md", &page::document(&lines()));
}
