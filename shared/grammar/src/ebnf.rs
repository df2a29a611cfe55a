//! EBNF as llama.cpp, XGrammar and so SGLang and vLLM write it, turned into Lark.
//!
//! `name ::= alternative | alternative`, made of `"text"`, `[a-z]`, `.`, names and groups, each
//! with `*`, `+`, `?`, `{2}`, `{2,}` or `{2,4}`; `#` begins a comment; `root` is where it starts.
//! A rule ends where the next one's `name ::=` begins, so it may go over several lines.

use std::fmt::Write;

/// Where a grammar is no EBNF.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct BadEbnf {
    /// From 1.
    pub line: usize,
    /// What stands there, and what was expected.
    pub what: String,
}

/// A word of the grammar.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    /// A rule's name.
    Name(String),
    /// `::=`
    Is,
    /// Text that goes to Lark as it is here.
    Lark(String),
}

/// The grammar in Lark, where `root` is `start`. Text that has no `::=` is taken for Lark already.
///
/// # Errors
/// [`BadEbnf`]: an unended string or class, a character that begins nothing, or no `root`.
pub fn lark_of_ebnf(text: &str) -> Result<String, BadEbnf> {
    if !text.contains("::=") {
        return Ok(text.to_owned());
    }
    let words = Scanner { rest: text, line: 1 }.words()?;
    let mut lark = String::new();
    let mut starts = false;
    let mut at = words.iter().peekable();
    while let Some((word, line)) = at.next() {
        let next_is = at.peek().is_some_and(|(word, _)| *word == Word::Is);
        match word {
            Word::Name(name) if next_is => {
                at.next();
                starts |= name == "root";
                let _ = write!(lark, "\n{}:", lark_name(name)); // a String takes all
            }
            _ if lark.is_empty() => {
                let what = "want a rule: name ::= …".to_owned();
                return Err(BadEbnf { line: *line, what });
            }
            Word::Name(name) => {
                let _ = write!(lark, " {}", lark_name(name));
            }
            Word::Lark(text) => {
                let repeats = matches!(text.as_str(), "*" | "+" | "?") || text.starts_with('{');
                let _ = write!(lark, "{}{text}", if repeats { "" } else { " " });
            }
            Word::Is => {
                let what = "`::=` stands after a rule's name".to_owned();
                return Err(BadEbnf { line: *line, what });
            }
        }
    }
    if !starts {
        return Err(BadEbnf { line: 1, what: "there is no rule `root`".to_owned() });
    }
    Ok(lark.trim_start().to_owned() + "\n")
}

/// Lark's rules are small letters, digits and `_`; other characters become their code points, so
/// that no two names become one.
fn lark_name(name: &str) -> String {
    if name == "root" {
        return "start".to_owned();
    }
    let mut lark = "r_".to_owned();
    for c in name.chars() {
        match c {
            'a'..='z' | '0'..='9' => lark.push(c),
            other => {
                let _ = write!(lark, "_{:x}_", u32::from(other));
            }
        }
    }
    lark
}

struct Scanner<'t> {
    rest: &'t str,
    /// From 1.
    line: usize,
}

impl Scanner<'_> {
    /// All words, each with its line.
    fn words(mut self) -> Result<Vec<(Word, usize)>, BadEbnf> {
        let mut words = Vec::new();
        loop {
            let blank = self.rest.len() - self.rest.trim_start().len();
            self.take(blank);
            let line = self.line;
            let Some(first) = self.rest.chars().next() else { return Ok(words) };
            let word = match first {
                '#' => {
                    self.take(self.rest.find('\n').unwrap_or(self.rest.len()));
                    continue;
                }
                _ if self.rest.starts_with("::=") => {
                    self.take(3);
                    Word::Is
                }
                '"' | '\'' => Word::Lark(string(self.until(first)?)),
                '[' => Word::Lark(class(self.until(']')?)),
                '.' => Word::Lark(self.token(1, "/(?s:.)/")),
                '{' => Word::Lark(self.until('}')?.replace(' ', "")),
                '|' | '(' | ')' | '*' | '+' | '?' => {
                    let text = self.take(1).to_owned();
                    Word::Lark(text)
                }
                c if is_name(c) => {
                    let end = self.rest.find(|c| !is_name(c)).unwrap_or(self.rest.len());
                    Word::Name(self.take(end).to_owned())
                }
                other => {
                    let what = format!("{other:?} begins nothing");
                    return Err(BadEbnf { line, what });
                }
            };
            words.push((word, line));
        }
    }

    fn take(&mut self, bytes: usize) -> &str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        self.line += taken.matches('\n').count();
        taken
    }

    fn token(&mut self, bytes: usize, lark: &str) -> String {
        self.take(bytes);
        lark.to_owned()
    }

    /// What stands up to `end`, both ends included; a backslash hides what follows it.
    fn until(&mut self, end: char) -> Result<&str, BadEbnf> {
        let mut hidden = false;
        for (at, c) in self.rest.char_indices().skip(1) {
            match c {
                _ if hidden => hidden = false,
                '\\' => hidden = true,
                c if c == end => return Ok(self.take(at + c.len_utf8())),
                _ => {}
            }
        }
        let what = format!("no {end:?} ends what begins here");
        Err(BadEbnf { line: self.line, what })
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-')
}

/// A string in Lark's quotes, which are those of JSON: escapes that JSON has not are resolved.
fn string(quoted: &str) -> String {
    let inner = &quoted[1..quoted.len() - 1];
    let mut text = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        let c = match chars.next() {
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('x') => code(&mut chars, 2),
            Some('u') => code(&mut chars, 4),
            Some('U') => code(&mut chars, 8),
            Some(other) => other,
            None => '\\',
        };
        text.push(c);
    }
    serde_json::Value::String(text).to_string()
}

/// The character whose code point the next `digits` hex digits are.
fn code(chars: &mut std::str::Chars<'_>, digits: usize) -> char {
    let hex: String = chars.take(digits).collect();
    u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32).unwrap_or('\u{fffd}')
}

/// A class between the slashes of a Lark regex, where a slash itself is hidden.
fn class(text: &str) -> String {
    let mut regex = "/[".to_owned();
    let inner = &text[1..text.len() - 1];
    for (at, c) in inner.char_indices() {
        let hidden = inner[..at].ends_with('\\') && !inner[..at].ends_with("\\\\");
        match c {
            '/' if !hidden => regex.push_str("\\/"),
            '[' if !hidden => regex.push_str("\\["),
            '\n' => regex.push_str("\\n"),
            other => regex.push(other),
        }
    }
    regex + "]/"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_become_larks() {
        let ebnf = "# a sum\nroot ::= term (\"+\" term)* ; \n";
        assert_eq!(lark_of_ebnf(ebnf).unwrap_err().to_string(), "line 2: ';' begins nothing");
        let ebnf =
            "# a sum\nroot ::= my-term (\"+\" my-term)*\nmy-term ::= [0-9]{1,3}\n  | \"\\x41/\"";
        let lark =
            "start: r_my_2d_term ( \"+\" r_my_2d_term )*\nr_my_2d_term: /[0-9]/{1,3} | \"A/\"\n";
        assert_eq!(lark_of_ebnf(ebnf).unwrap(), lark);
        assert_eq!(lark_of_ebnf("root ::= [a/\\]\"]+").unwrap(), "start: /[a\\/\\]\"]/+\n");
    }

    #[test]
    fn lark_stays_as_it_is() {
        let lark = "start: \"a\" | B\nB: /x+/\n";
        assert_eq!(lark_of_ebnf(lark).unwrap(), lark);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let check = |ebnf: &str, expected: &str| {
            assert_eq!(lark_of_ebnf(ebnf).unwrap_err().to_string(), expected);
        };
        check("root ::= \"a\n", "line 1: no '\"' ends what begins here");
        check("a ::= \"a\"", "line 1: there is no rule `root`");
        check("\n\"x\" root ::= \"a\"", "line 2: want a rule: name ::= …");
        check("root ::= a ::= ::= b", "line 1: `::=` stands after a rule's name");
    }
}
