//! What a look at the surroundings found, and what to do about it: the lines of `hookway doctor` and
//! `hookway-relay check`.

use std::fmt;

/// Of what was found, in characters.
const MAX_TEXT: usize = 500;

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, or may; somebody should look.
    Warn,
    /// It does not work.
    Fail,
}

impl State {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at. Shown, it is a line, and one with the next step where there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, in a word.
    pub check: &'static str,
    /// How it is.
    pub state: State,
    /// What was found, for a person.
    pub detail: String,
    /// What to do about it.
    pub next: Option<String>,
}

impl Finding {
    /// It is as it should be.
    #[must_use]
    pub fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, state: State::Ok, detail: harmless(&detail.into()), next: None }
    }

    /// Somebody should look.
    #[must_use]
    pub fn warn(check: &'static str, detail: impl Into<String>, next: impl Into<String>) -> Self {
        Self { state: State::Warn, next: Some(harmless(&next.into())), ..Self::ok(check, detail) }
    }

    /// It does not work.
    #[must_use]
    pub fn fail(check: &'static str, detail: impl Into<String>, next: impl Into<String>) -> Self {
        Self { state: State::Fail, ..Self::warn(check, detail, next) }
    }
}

/// Some of it comes from outside: it must not steer a terminal, begin a line, or fill the screen.
fn harmless(text: &str) -> String {
    let steers = |c: char| {
        let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        c.is_control() || turns
    };
    text.chars().take(MAX_TEXT).map(|c| if steers(c) { '\u{fffd}' } else { c }).collect()
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<4}  {:<11}  {}", self.state.name(), self.check, self.detail)?;
        match &self.next {
            Some(next) => write!(f, "\n      next:        {next}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_shown_with_its_next_step_below() {
        assert_eq!(Finding::ok("dns", "it is there").to_string(), "ok    dns          it is there");
        let shown = Finding::fail("certificate", "it has ended", "renew it").to_string();
        assert_eq!(shown, "fail  certificate  it has ended\n      next:        renew it");
        let shown = Finding::ok("relay", "line\nok    dns \u{1b}[2J").to_string();
        assert_eq!(shown, "ok    relay        line\u{fffd}ok    dns \u{fffd}[2J");
        assert!(State::Fail > State::Warn && State::Warn > State::Ok);
    }
}
