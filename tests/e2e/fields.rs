//! Each field of `spec`, read back from Consul after the resource was made and after each edit.
//!
//! The one list is in [`lines`]: the scenario goes through it in each mode, and [`page`] makes `docs/fields.md` of it.
//! What the resources stand on is in [`ground`], how Consul is read in [`reading`]. Each line is a resource of its own,
//! so that nothing but its field is edited.

mod ground;
mod lines;
mod page;
mod reading;

use anyhow::{Context, Result, ensure};
use futures::StreamExt;

use self::ground::{Ground, Subject};
use self::lines::{Line, Wanted, lines};
use self::reading::{Reading, registered};
use crate::bed::Bed;

/// So many resources at a time.
const AT_ONCE: usize = 12;

pub(crate) async fn each_field_is_read_back(bed: &Bed) -> Result<()> {
    let ground = Ground::lay(bed).await?;
    bed.operator().with_checks().flag("--allow-static", &ground.allowed()).ready().await?;
    let mut lines = lines();
    // What takes longest begins first.
    lines.sort_by_key(|line| !matches!(line.reading, Reading::Runs(_)));
    let held = futures::stream::iter(&lines).map(|line| line.hold(&ground)).buffer_unordered(AT_ONCE);
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
    async fn hold(&self, ground: &Ground<'_>) -> Result<()> {
        let mut subject = Subject::make(self, ground).await.with_context(|| self.field.to_owned())?;
        for number in 0..self.steps.len() {
            let step = || format!("{}, {}: {}", self.field, self.step_name(number), self.steps[number].yaml);
            self.take(number, ground, &mut subject).await.with_context(step)?;
        }
        if self.reading != Reading::Left {
            ground.bed.delete(&subject.name).await?;
            ground.bed.wait_gone(&subject.name).await?;
        }
        let left = registered(ground.bed, &subject.services).await?;
        ensure!(left.is_empty(), "{}: gone from Kubernetes, but not from Consul: {left:#?}", self.field);
        Ok(())
    }

    /// Takes one step.
    async fn take(&self, number: usize, ground: &Ground<'_>, subject: &mut Subject) -> Result<()> {
        let bed = ground.bed;
        if self.reading == Reading::Left {
            // The step before it has ended with the end of the resource.
            for step in &self.steps[..number] {
                bed.apply(&subject.name, &subject.spec(step.yaml)?).await?;
                bed.wait_ready(&subject.name).await?;
            }
        }
        let step = &self.steps[number];
        let before = registered(bed, &subject.services).await?;
        subject.listen();
        bed.apply(&subject.name, &subject.spec(step.yaml)?).await?;
        match step.wanted(bed.mode) {
            Wanted::Refused(why) => {
                let message = bed.wait_for_condition(&subject.name, "Accepted", "False", "NotSupported").await?;
                ensure!(message == *why, "refused, but not with {why:?}: {message:?}");
                let after = registered(bed, &subject.services).await?;
                ensure!(after == before, "what was registered did not stay: {before:#?}\n{after:#?}");
            }
            Wanted::Shown(wanted) => {
                if self.reading == Reading::Left {
                    bed.wait_ready(&subject.name).await?;
                    bed.delete(&subject.name).await?;
                    bed.wait_gone(&subject.name).await?;
                }
                self.reading.becomes(wanted, step, ground, subject).await?;
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
