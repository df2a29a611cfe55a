//! A JSON object, followed character by character.
//!
//! The scanner knows where keys and values of the outermost object begin and end. It judges
//! structure only: escapes, digits and words inside a value are the reader's affair, so that a
//! model's slip there (`True`, `\'`) does not hide where the value ends.

/// Most open objects and lists: as deep as `serde_json` reads.
const DEPTH_MAX: usize = 128;

/// What a character was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The object goes on.
    More,
    /// The first character of a value of the outermost object; [`Scanner::key`] is its key.
    ValueStart,
    /// The last character of such a value, where that is a string, an object or a list.
    ValueEnd,
    /// The last character of the object; nothing may be pushed after.
    End,
    /// Not part of a JSON object; nothing may be pushed after.
    Bad,
}

/// Follows one object.
#[derive(Debug, Clone)]
pub struct Scanner {
    expect: Expect,
    token: Token,
    /// What closes each open object and list.
    open: Vec<char>,
    key: String,
}

/// What may come next outside of a string, word or number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Object,
    KeyOrEnd,
    Key,
    Colon,
    Value,
    ValueOrEnd,
    CommaOrEnd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    None,
    String,
    Escape,
    /// A number, `true`, `false` or `null`.
    Word,
}

impl Default for Scanner {
    fn default() -> Self {
        let (expect, token) = (Expect::Object, Token::None);
        Self { expect, token, open: Vec::new(), key: String::new() }
    }
}

impl Scanner {
    /// The latest key of the outermost object, as written: escapes are not resolved.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Takes the next character.
    pub fn push(&mut self, c: char) -> Step {
        match self.token {
            Token::String => return self.string(c),
            Token::Escape => {
                self.token = Token::String;
                return Step::More;
            }
            Token::Word if c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.') => {
                return Step::More;
            }
            Token::Word | Token::None => self.token = Token::None,
        }
        match (self.expect, c) {
            (_, ' ' | '\t' | '\n' | '\r') => Step::More,
            (Expect::Object, '{') => self.enter('}', Expect::KeyOrEnd),
            (Expect::KeyOrEnd, '}') | (Expect::ValueOrEnd, ']') => self.leave(),
            (Expect::CommaOrEnd, c) if self.open.last() == Some(&c) => self.leave(),
            (Expect::CommaOrEnd, ',') => {
                let in_object = self.open.last() == Some(&'}');
                self.expect = if in_object { Expect::Key } else { Expect::Value };
                Step::More
            }
            (Expect::KeyOrEnd | Expect::Key, '"') => {
                if self.open.len() == 1 {
                    self.key.clear();
                }
                (self.token, self.expect) = (Token::String, Expect::Colon);
                Step::More
            }
            (Expect::Colon, ':') => {
                self.expect = Expect::Value;
                Step::More
            }
            (Expect::Value | Expect::ValueOrEnd, c) => self.value(c),
            _ => Step::Bad,
        }
    }

    fn string(&mut self, c: char) -> Step {
        let is_key = self.expect == Expect::Colon;
        match c {
            '"' => {
                self.token = Token::None;
                return if !is_key && self.open.len() == 1 { Step::ValueEnd } else { Step::More };
            }
            '\\' => self.token = Token::Escape,
            _ => {}
        }
        if is_key && self.open.len() == 1 {
            self.key.push(c);
        }
        Step::More
    }

    fn value(&mut self, c: char) -> Step {
        let outermost = self.open.len() == 1;
        self.expect = Expect::CommaOrEnd;
        let step = match c {
            '{' => self.enter('}', Expect::KeyOrEnd),
            '[' => self.enter(']', Expect::ValueOrEnd),
            '"' => {
                self.token = Token::String;
                Step::More
            }
            c if c.is_ascii_alphanumeric() || c == '-' => {
                self.token = Token::Word;
                Step::More
            }
            _ => Step::Bad,
        };
        if step == Step::More && outermost { Step::ValueStart } else { step }
    }

    fn enter(&mut self, closer: char, expect: Expect) -> Step {
        if self.open.len() == DEPTH_MAX {
            return Step::Bad;
        }
        self.open.push(closer);
        self.expect = expect;
        Step::More
    }

    fn leave(&mut self) -> Step {
        self.open.pop();
        self.expect = Expect::CommaOrEnd;
        match self.open.len() {
            0 => Step::End,
            1 => Step::ValueEnd,
            _ => Step::More,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn steps(text: &str) -> Vec<(usize, Step)> {
        let mut scanner = Scanner::default();
        let mut steps = Vec::new();
        for (at, c) in text.char_indices() {
            match scanner.push(c) {
                Step::More => {}
                step @ (Step::End | Step::Bad) => {
                    steps.push((at, step));
                    return steps;
                }
                step => steps.push((at, step)),
            }
        }
        steps
    }

    #[test]
    fn outermost_values_are_found() {
        use Step::{Bad, End, ValueEnd, ValueStart};
        let text = r#" {"a": "x}\"", "b" :{"c":[1,{}]}, "d":-1.5e3,"e":[]}"#;
        let marks: Vec<(Step, &str)> =
            steps(text).iter().map(|&(at, step)| (step, &text[at..=at])).collect();
        assert_eq!(
            marks,
            [
                (ValueStart, "\""),
                (ValueEnd, "\""),
                (ValueStart, "{"),
                (ValueEnd, "}"),
                (ValueStart, "-"),
                (ValueStart, "["),
                (ValueEnd, "]"),
                (End, "}"),
            ]
        );
        for (text, at) in [
            ("x", 0),
            ("[", 0),
            ("{,", 1),
            ("{\"a\":1]", 6),
            ("{\"a\" 1", 5),
            ("{\"a\":}", 5),
            ("{\"a\":[}", 6),
            ("{\"a\":1,}", 7),
            ("{\"a\":1 2", 7),
        ] {
            assert_eq!(steps(text).last(), Some(&(at, Bad)), "{text}");
        }
        let deep = format!("{{\"a\":{}", "[".repeat(500));
        assert_eq!(steps(&deep).last(), Some(&(5 + DEPTH_MAX - 1, Bad)));
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            "[a\"\\\\{}\\[\\],:é<\n]{0,6}".prop_map(Value::String),
            any::<i32>().prop_map(|n| json!(n)),
            any::<bool>().prop_map(|b| json!(b)),
            Just(Value::Null),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                proptest::collection::vec(("[a\"\\\\}é]{0,3}", inner), 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn an_object_ends_where_it_ends(value in value(), pretty: bool) {
            let whole = json!({"k": value});
            let text = if pretty { format!("{whole:#}") } else { whole.to_string() };
            let end = text.len() - 1;
            let trailing = steps(&format!("{text}}} trailing"));
            prop_assert_eq!(trailing.last(), Some(&(end, Step::End)));
            for (at, _) in text.char_indices() {
                let last = steps(&text[..at]).last().copied();
                prop_assert!(!matches!(last, Some((_, Step::End | Step::Bad))));
            }
        }
    }
}
