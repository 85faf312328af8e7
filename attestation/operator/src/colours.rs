//! Colours for the words that an operator looks for. They are put on at the very end, on text that came from outside and was made
//! harmless before: nothing but this file brings an escape sequence to a terminal.

use anstyle::{AnsiColor, Color, Style};

/// Words at the beginning of a line, or behind its first word, and what they are.
const WORDS: [(&str, AnsiColor); 14] = [
    ("ACCEPTED", AnsiColor::Green),
    ("accepted:", AnsiColor::Green),
    ("HOLDER", AnsiColor::Green),
    ("as expected", AnsiColor::Green),
    ("STANDBY", AnsiColor::Yellow),
    ("DESCRIBED", AnsiColor::Yellow),
    ("note:", AnsiColor::Yellow),
    ("NOT AS EXPECTED", AnsiColor::Red),
    ("REFUSED", AnsiColor::Red),
    ("UNKNOWN", AnsiColor::Red),
    ("NOT KNOWN", AnsiColor::Red),
    ("NOT CARRIED OUT", AnsiColor::Red),
    ("NOT TRUSTED", AnsiColor::Red),
    ("NO RECORD", AnsiColor::Red),
];

/// The same text with colours.
pub fn paint(text: &str) -> String {
    text.split_inclusive('\n').map(line).collect()
}

/// A line with its first word of these in colour.
fn line(text: &str) -> String {
    let found =
        WORDS.iter().filter_map(|(word, colour)| Some((text.find(word)?, *word, *colour))).min_by_key(|found| found.0);
    let Some((before, rest, word, colour)) = found
        .and_then(|(at, word, colour)| text.split_at_checked(at).map(|(before, rest)| (before, rest, word, colour)))
    else {
        return text.to_owned();
    };
    let style = Style::new().bold().fg_color(Some(Color::Ansi(colour)));
    format!("{before}{style}{word}{style:#}{}", rest.strip_prefix(word).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_change_nothing_but_the_look() {
        let text = "PCR0 ab  NOT AS EXPECTED\n\nREFUSED: no\nplain\nACCEPTED";
        let painted = paint(text);
        assert_eq!(painted.matches("\u{1b}[1m").count(), 3, "{painted:?}");
        assert_eq!(anstream::adapter::strip_str(&painted).to_string(), text);
        assert!(painted.contains("\u{1b}[31mREFUSED"), "{painted:?}");
    }
}
