//! When what a file holds now takes the place of what it held before.
//!
//! In: what the file holds at each look. Out: what to try. What is in use stays so until something else is known to work:
//! a file that is half written, or holds what Consul refuses, takes nothing away.

use std::time::Duration;

use tokio::time::Instant;

/// The time after which what did not work is tried again, since Consul may accept it by then.
const RETRY: Duration = Duration::from_secs(5);

/// Something that is read from files again and again.
pub(super) struct Followed<T> {
    in_use: T,
    /// The content that the last look found, if it is not in use.
    found: Option<Result<T, String>>,
    /// The time when it may be tried again.
    not_before: Option<Instant>,
    /// The reason why it does not replace the content in use.
    fault: Option<String>,
}

impl<T: PartialEq + Clone> Followed<T> {
    pub(super) fn new(in_use: T) -> Self {
        Self { in_use, found: None, not_before: None, fault: None }
    }

    /// Takes in what the files hold now. Gives what is to be tried, if it stands there for the second time: whoever writes
    /// a file may not be done at the first.
    pub(super) fn look(&mut self, found: Result<T, String>, now: Instant) -> Option<T> {
        if found.as_ref() == Ok(&self.in_use) {
            *self = Self::new(self.in_use.clone());
            return None;
        }
        if self.found.as_ref() != Some(&found) {
            self.found = Some(found);
            self.not_before = None;
            return None;
        }
        match found {
            Err(why) => {
                self.fault = Some(why);
                None
            }
            Ok(candidate) => self.not_before.is_none_or(|at| at <= now).then_some(candidate),
        }
    }

    /// Notes that something works, and is in use from now on.
    pub(super) fn works(&mut self, in_use: T) {
        *self = Self::new(in_use);
    }

    /// Notes that what was to be tried does not work; no reason where that could not be told.
    pub(super) fn fails(&mut self, why: Option<String>, now: Instant) {
        self.fault = why;
        self.not_before = Some(now + RETRY);
    }

    /// The reason why the present content of the files is not in use.
    pub(super) fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step of the test: the content of the files, the content to try, and the result of the trial.
    type Step = (Result<&'static str, &'static str>, Option<&'static str>, Option<Result<(), &'static str>>);

    fn run(steps: &[Step]) -> (Followed<&'static str>, Instant) {
        let mut followed = Followed::new("old");
        let mut now = Instant::now();
        for (n, (found, tried, outcome)) in steps.iter().enumerate() {
            now += Duration::from_secs(1);
            let candidate = followed.look(found.map_err(str::to_owned), now);
            assert_eq!(candidate, *tried, "step {n}");
            match (candidate, outcome) {
                (Some(candidate), Some(Ok(()))) => followed.works(candidate),
                (Some(_), Some(Err(why))) => followed.fails(Some((*why).to_owned()), now),
                (Some(_), None) => followed.fails(None, now),
                (None, _) => {}
            }
        }
        (followed, now)
    }

    #[test]
    fn what_works_takes_the_place_of_what_was_there() {
        let (followed, _) = run(&[
            (Ok("old"), None, None),
            (Ok("half"), None, None),
            (Ok("new"), None, None),
            (Ok("new"), Some("new"), Some(Ok(()))),
            (Ok("new"), None, None),
        ]);
        assert_eq!((followed.in_use, followed.fault()), ("new", None));
    }

    #[test]
    fn what_does_not_work_takes_nothing_away() {
        let (mut followed, now) = run(&[
            (Err("empty"), None, None),
            (Err("empty"), None, None),
            (Ok("bad"), None, None),
            (Ok("bad"), Some("bad"), Some(Err("refused"))),
            (Ok("bad"), None, None),
        ]);
        assert_eq!((followed.in_use, followed.fault()), ("old", Some("refused")));
        assert_eq!(followed.look(Ok("bad"), now + RETRY), Some("bad"), "Consul may accept it later");
        followed.fails(None, now + RETRY);
        assert_eq!(followed.fault(), None, "nobody can tell");
        assert_eq!(followed.look(Ok("new"), now + RETRY), None);
        assert_eq!(followed.look(Ok("new"), now + RETRY), Some("new"), "another one need not wait");
        followed.fails(Some("refused".to_owned()), now + RETRY);
        assert_eq!((followed.look(Ok("old"), now + RETRY), followed.fault()), (None, None), "put back");
    }

    #[test]
    fn a_fault_is_told_of_what_stays_only() {
        let (followed, _) = run(&[(Err("empty"), None, None), (Ok("old"), None, None), (Err("gone"), None, None)]);
        assert_eq!(followed.fault(), None);
        let (followed, _) = run(&[(Err("empty"), None, None), (Err("empty"), None, None)]);
        assert_eq!(followed.fault(), Some("empty"));
    }
}
