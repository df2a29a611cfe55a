//! The lines that a process of the ring writes: `TIME LEVEL TARGET: MESSAGE name=value …`.

use std::time::{SystemTime, UNIX_EPOCH};

/// One line, read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line<'t> {
    /// µs since 1970.
    pub at_us: u64,
    pub target: &'t str,
    /// The message and its fields.
    pub text: &'t str,
}

/// Every line that is one; a panic's words, say, are not.
pub fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    text.lines().filter_map(line)
}

fn line(text: &str) -> Option<Line<'_>> {
    let (time, rest) = text.split_once(' ')?;
    let (_level, rest) = rest.trim_start().split_once(' ')?;
    let (target, text) = rest.split_once(": ")?;
    Some(Line { at_us: unix_us(time)?, target, text })
}

impl<'t> Line<'t> {
    /// The value of a field, without quotes.
    pub fn field(&self, name: &str) -> Option<&'t str> {
        let start = self.text.match_indices(name).find_map(|(at, _)| {
            let before = self.text[..at].chars().next_back();
            let after = self.text[at + name.len()..].strip_prefix('=')?;
            before.is_none_or(|c| c == ' ').then_some(after)
        })?;
        match start.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next(),
            None => start.split(' ').next(),
        }
    }

    /// A field that is a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.field(name)?.parse().ok()
    }

    /// The message, without its fields.
    pub fn message(&self) -> &'t str {
        let words = self.text.split(' ');
        let length = words.take_while(|word| !word.contains('=')).map(|word| word.len() + 1).sum();
        self.text.get(..length).unwrap_or(self.text).trim_end()
    }
}

/// A moment as the log's lines have it.
pub fn clock_us(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

/// `2026-11-24T14:05:22.123456Z` in µs since 1970.
fn unix_us(time: &str) -> Option<u64> {
    let (date, clock) = time.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut clock = clock.splitn(3, ':');
    let (hours, minutes) = (clock.next()?.parse::<u64>().ok()?, clock.next()?.parse::<u64>().ok()?);
    let (seconds, fraction) = clock.next()?.split_once('.')?;
    let micros = format!("{fraction:0<6}").get(..6)?.parse::<u64>().ok()?;
    let seconds: u64 = seconds.parse().ok()?;
    // Years begin in March, so that the odd day is the last one.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    let days = days.checked_sub(719_469)?; // to 1970-01-01
    Some((((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1_000_000 + micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_time_target_and_fields() {
        let text = "2026-11-24T14:05:22.123456Z  INFO role::core: model loaded role=decode \
                    pages=12 gpu=\"H 100\"";
        let line = lines(text).next().unwrap();
        assert_eq!((line.target, line.message()), ("role::core", "model loaded"));
        assert_eq!((line.field("role"), line.number("pages")), (Some("decode"), Some(12)));
        assert_eq!((line.field("gpu"), line.field("age")), (Some("H 100"), None));
        assert_eq!(lines("thread 'main' panicked at x.rs:1:2:\nno").next(), None);
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        let check = |text, expect| assert_eq!(unix_us(text), expect, "{text}");
        check("1970-01-01T00:00:00.000001Z", Some(1));
        check("2000-02-29T12:00:00.5Z", Some(951_825_600_500_000));
        check("2026-11-24T14:05:22.123456Z", Some(1_795_529_122_123_456));
        check("2026-11-24", None);
    }
}
