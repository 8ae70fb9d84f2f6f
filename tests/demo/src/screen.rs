//! What the demo prints: plain in a pipe, with a little colour on a terminal.

use std::io::{self, IsTerminal, Write};

use crate::DemoError;

/// Lines of other programs are cut here, for a terminal of ordinary width.
const WIDEST: usize = 110;

/// Standard output.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Screen {
    colour: bool,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colour: wanted && io::stdout().is_terminal() }
    }

    /// A line of the story's frame.
    pub(crate) fn title(self, text: &str) -> Result<(), DemoError> {
        write(&format!("\n{}\n", self.paint("1", text)))
    }

    /// A step of the story.
    pub(crate) fn step(self, number: usize, text: &str) -> Result<(), DemoError> {
        write(&format!("\n{} {}\n\n", self.paint("1;32", &format!("{number}.")), self.paint("1", text)))
    }

    /// What is shown in a step.
    #[expect(
        clippy::unused_self,
        reason = "a screen prints; that a plain line needs no colour is its affair"
    )]
    pub(crate) fn gap(self) -> Result<(), DemoError> {
        write("\n")
    }

    /// What is shown in a step.
    #[expect(clippy::unused_self, reason = "a screen prints; that this needs no colour is its affair")]
    pub(crate) fn line(self, text: &str) -> Result<(), DemoError> {
        write(&format!("   {text}\n"))
    }

    /// What somebody types.
    pub(crate) fn command(self, text: &str) -> Result<(), DemoError> {
        write(&format!("   {} {text}\n", self.paint("36", "$")))
    }

    /// What the plugin says in its log.
    pub(crate) fn said(self, text: &str) -> Result<(), DemoError> {
        let text = without_date(text);
        let short: String = text.chars().take(WIDEST).collect();
        let dots = if short.len() < text.len() { "…" } else { "" };
        write(&format!("   {}\n", self.paint("2", &format!("│ {short}{dots}"))))
    }

    /// Text that stands out within a line.
    pub(crate) fn strong(self, text: &str) -> String {
        self.paint("1;33", text)
    }

    /// Text that keeps in the background within a line.
    pub(crate) fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(self, style: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{style}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A log line from its time of day on: `2026-01-31T12:00:00.123456Z  INFO …` begins at `12:00:00.123`.
fn without_date(line: &str) -> String {
    match line.split_once('Z') {
        Some((time, rest)) if time.len() == "2026-01-31T12:00:00.123456".len() => {
            format!("{}{}", time.get(11..23).unwrap_or(time), rest.replacen("  ", " ", 1))
        }
        _ => line.to_owned(),
    }
}

fn write(text: &str) -> Result<(), DemoError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(DemoError::io("write to standard output"))
}
