//! The lines of an answer, in the order of the way from Kubernetes to Consul, and the first one that holds it up.

use std::fmt::Write as _;

use super::advice::advice;

/// What a line says of its step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// It is as it should be.
    Ok,
    /// It is worth knowing, and holds nothing up.
    Note,
    /// It holds the rest up, and passes by itself.
    Wait,
    /// It holds the rest up.
    Fail,
    /// Nobody could be asked.
    Unknown,
}

/// A reason, in the words of a condition where it is one's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cause {
    /// In CamelCase.
    pub(super) reason: String,
    /// The message.
    pub(super) words: String,
}

/// The lines so far.
#[derive(Debug, Default)]
pub(super) struct Way {
    lines: Vec<(Mark, String, String)>,
    cause: Option<Cause>,
    /// A cause that counts only if no later line has one of its own.
    later: Option<Cause>,
    is_away: bool,
}

/// How an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// All is as desired.
    AsDesired,
    /// Something is not, or was not found.
    NotAsDesired,
    /// Not everybody could be asked.
    Unknown,
}

impl Way {
    /// Adds a step that is as it should be.
    pub(super) fn ok(&mut self, what: impl Into<String>, words: impl Into<String>) {
        self.line(Mark::Ok, what, words);
    }

    /// Adds what is worth knowing.
    pub(super) fn note(&mut self, what: impl Into<String>, words: impl Into<String>) {
        self.line(Mark::Note, what, words);
    }

    /// Adds a line that is no cause by itself.
    pub(super) fn line(&mut self, mark: Mark, what: impl Into<String>, words: impl Into<String>) {
        self.lines.push((mark, what.into(), words.into()));
    }

    /// Adds a step that holds the rest up.
    pub(super) fn stop(&mut self, mark: Mark, what: impl Into<String>, reason: &str, words: impl Into<String>) {
        let words = words.into();
        self.cause.get_or_insert_with(|| Cause { reason: reason.to_owned(), words: words.clone() });
        self.line(mark, what, words);
    }

    /// Adds a step that holds the rest up unless a later one says it closer.
    pub(super) fn may_stop(&mut self, mark: Mark, what: impl Into<String>, reason: &str, words: impl Into<String>) {
        let words = words.into();
        self.later.get_or_insert_with(|| Cause { reason: reason.to_owned(), words: words.clone() });
        self.line(mark, what, words);
    }

    /// Adds a step that holds the rest up for a reason that an earlier line may have said.
    pub(super) fn stops_as_said(
        &mut self,
        mark: Mark,
        what: impl Into<String>,
        reason: &str,
        words: impl Into<String>,
    ) {
        match self.later.take() {
            Some(said) => {
                self.cause.get_or_insert(said);
                self.line(mark, what, words);
            }
            None => self.stop(mark, what, reason, words),
        }
    }

    /// Adds that somebody could not be asked.
    pub(super) fn away(&mut self, who: &str, words: &str) {
        self.is_away = true;
        self.line(Mark::Unknown, who, words);
    }

    /// Says whether nothing holds it up so far.
    pub(super) fn is_clear(&self) -> bool {
        self.cause.is_none() && self.later.is_none()
    }

    /// The cause, if there is one.
    pub(super) fn cause(&self) -> Option<&Cause> {
        self.cause.as_ref().or(self.later.as_ref())
    }

    /// How it ends.
    pub(super) fn ending(&self) -> Ending {
        match self.cause() {
            _ if self.is_away => Ending::Unknown,
            Some(_) => Ending::NotAsDesired,
            None => Ending::AsDesired,
        }
    }

    /// The whole text, with what to do.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for (mark, what, words) in &self.lines {
            let mark = match mark {
                Mark::Ok => "ok",
                Mark::Note => "note",
                Mark::Wait => "wait",
                Mark::Fail => "FAIL",
                Mark::Unknown => "?",
            };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{mark:<5} {what}: {words}");
        }
        let (reason, words) = match (self.cause(), self.is_away) {
            (Some(cause), _) => (&*cause.reason, &*cause.words),
            (None, true) => ("Away", "not everybody could be asked"),
            (None, false) => return text + "\nwell: it is in Consul as desired\n",
        };
        let _ = writeln!(text, "\nwhy:  {reason}: {words}\ndo:   {}", advice(reason));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_that_holds_it_up_is_the_cause() {
        let mut way = Way::default();
        way.ok("pod shop/web-0", "it is ready");
        assert_eq!((way.ending(), way.is_clear()), (Ending::AsDesired, true));
        way.may_stop(Mark::Fail, "Registered", "Refused", "0 of 1");
        way.stop(Mark::Fail, "instance", "PortNotFound", "no port");
        way.stop(Mark::Wait, "Consul", "NotWritten", "not there");
        assert_eq!(way.ending(), Ending::NotAsDesired);
        let expected = "\
ok    pod shop/web-0: it is ready
FAIL  Registered: 0 of 1
FAIL  instance: no port
wait  Consul: not there

why:  PortNotFound: no port
do:   Set spec.port to a port that is there, or give the pod the port.
";
        assert_eq!(way.text(), expected);
    }

    #[test]
    fn what_was_said_before_is_the_cause_of_what_follows_from_it() {
        let mut way = Way::default();
        way.may_stop(Mark::Fail, "Registered", "Refused", "Permission denied");
        way.stops_as_said(Mark::Wait, "Consul", "NotWritten", "not there");
        assert_eq!(way.cause().map(|cause| &*cause.reason), Some("Refused"));
    }

    #[test]
    fn who_could_not_be_asked_leaves_it_open() {
        let mut way = Way::default();
        way.away("Consul", "connection refused");
        assert_eq!(way.ending(), Ending::Unknown);
        assert!(way.text().contains("?     Consul: connection refused\n\nwhy:  Away: "), "{}", way.text());
    }
}
