//! What the newcomer sees: aligned lines, with colour only on a terminal.

use std::io::{self, IsTerminal as _, Write};

/// Writes calm, aligned text.
pub(super) struct Screen<W> {
    out: W,
    coloured: bool,
}

/// How a piece of text looks on a terminal.
#[derive(Clone, Copy)]
pub(crate) enum Style {
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
    Cyan,
}

/// The text, wrapped in the terminal's codes if it is to be coloured.
pub(crate) fn paint(coloured: bool, style: Style, text: &str) -> String {
    if !coloured {
        return text.to_owned();
    }
    let code = match style {
        Style::Bold => "1",
        Style::Dim => "2",
        Style::Red => "31",
        Style::Green => "32",
        Style::Yellow => "33",
        Style::Cyan => "36",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

impl Screen<io::Stdout> {
    /// Standard output.
    pub(super) fn stdout() -> Screen<io::Stdout> {
        let out = io::stdout();
        let coloured = out.is_terminal();
        Screen { out, coloured }
    }
}

impl<W: Write> Screen<W> {
    /// Without colour, into any writer.
    #[cfg(test)]
    pub(super) fn plain(out: W) -> Screen<W> {
        Screen { out, coloured: false }
    }

    /// The text, wrapped in the terminal's codes if there is a terminal.
    pub(super) fn paint(&self, style: Style, text: &str) -> String {
        paint(self.coloured, style, text)
    }

    /// One line, indented by two columns, shown at once.
    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        let indent = if text.is_empty() { "" } else { "  " };
        writeln!(self.out, "{indent}{text}")?;
        self.out.flush()
    }

    /// A heading with an empty line before it.
    pub(super) fn heading(&mut self, text: &str) -> io::Result<()> {
        self.line("")?;
        let text = self.paint(Style::Bold, text);
        self.line(&text)
    }

    /// A name in a column of its own, then its value.
    pub(super) fn field(&mut self, name: &str, value: &str) -> io::Result<()> {
        let name = self.paint(Style::Dim, &format!("{name:<10}"));
        self.line(&format!("{name}  {value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_terminal_there_are_no_codes_and_columns_line_up() {
        let mut bytes = Vec::new();
        let mut screen = Screen::plain(&mut bytes);
        screen.heading("Try it").expect("written");
        screen.field("alice", "eyJ…").expect("written");
        screen.field("PostgreSQL", "17").expect("written");
        let text = String::from_utf8(bytes).expect("text");
        assert_eq!(text, "\n  Try it\n  alice       eyJ…\n  PostgreSQL  17\n");
    }
}
