//! Calls told from content while the text comes.
//!
//! The text is read a character at a time, so what comes out does not depend on how it was cut.
//!
//! 1. *Text* goes out, but for an end that may become an opening tag, and blanks that are dropped
//!    if a call follows them.
//! 2. *Body*: an object begins. It is held until it has named a tool that was offered and its
//!    arguments begin; then the call is certain. If it turns out to be no call it is text, and what
//!    follows its tag is read again, for a call may be in it.
//! 3. *Arguments* go out as they come. If they break, all up to the closing tag is arguments: the
//!    client sees what the model wrote.
//! 4. *Tail* is the rest of the object; *close* looks for the closing tag. What does not fit there
//!    is read again as text.
//!
//! An object that has its arguments before its name is a call too, and goes out at its end.

use super::json::{Scanner, Step};
use crate::parts::Parts;
use std::ops::Range;
use std::sync::Arc;

/// What stands around a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// Opens a call. Only its first character is a `<`, so a failed match is never part of another.
    pub(super) open: &'static str,
    /// Closes it, if anything does; built as `open` is.
    pub(super) close: Option<&'static str>,
    /// An object that opens the output, or follows a call, needs no tag. `;` may stand between.
    bare: bool,
}

impl Format {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`
    pub const HERMES: Self = Self { open: "<tool_call>", close: Some("</tool_call>"), bare: false };
    /// `<|python_tag|>{"name": …, "parameters": …}; {…}`, where the tag may be missing.
    pub const LLAMA3: Self = Self { open: "<|python_tag|>", close: None, bare: true };

    /// Whether the tag that opens a call may be a special token, which is not text by default.
    pub fn needs_special_tokens(self) -> bool {
        self.open.starts_with("<|")
    }
}

/// Reads one output.
#[derive(Debug, Clone)]
pub struct CallParser {
    format: Format,
    /// Names of the tools that may be called.
    offered: Arc<[String]>,
    /// Whether there was a call yet.
    called: bool,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Text(Text),
    Body(Box<Body>),
    Arguments(Scanner),
    /// Arguments that are no JSON; so much of the closing tag has matched.
    Broken(usize),
    /// The scanner has seen `held`.
    Tail {
        held: String,
        scanner: Scanner,
    },
    /// Blanks before the closing tag, and how much of it has matched.
    Close {
        blanks: String,
        matched: usize,
    },
}

#[derive(Debug, Clone, Default)]
struct Text {
    /// Nothing but blanks since the output or the gap after a call began.
    in_gap: bool,
    /// Blanks that are dropped if a call follows: all in a gap, else one newline.
    blanks: String,
    /// How much of the opening tag has matched.
    matched: usize,
}

/// An object that may become a call.
#[derive(Debug, Clone, Default)]
struct Body {
    /// What stood before it: blanks and tag.
    opening: String,
    text: String,
    scanner: Scanner,
    /// Where the name begins in `text`.
    name_at: usize,
    name: Option<String>,
    /// Where the arguments are in `text`.
    arguments: Option<Range<usize>>,
}

impl State {
    fn gap() -> Self {
        Self::Text(Text { in_gap: true, ..Text::default() })
    }
}

/// Whether `c` goes on with a tag of which `matched` characters are there.
fn continues(tag: &str, matched: usize, c: char) -> bool {
    tag.as_bytes().get(matched).is_some_and(|&byte| char::from(byte) == c)
}

impl CallParser {
    /// For one output of a request that offered tools of these names.
    pub fn new(format: Format, offered: Arc<[String]>) -> Self {
        Self { format, offered, called: false, state: State::gap() }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, piece: &str, parts: &mut Parts) {
        let mut unread: Vec<char> = Vec::new(); // backwards
        for c in piece.chars() {
            unread.push(c);
            while let Some(c) = unread.pop() {
                let again = self.step(c, parts);
                unread.extend(again.chars().rev());
            }
        }
    }

    /// The output has ended.
    pub fn finish(&mut self, parts: &mut Parts) {
        while let State::Body(body) = &mut self.state {
            let body = std::mem::take(body);
            let again = self.give_back(*body, parts);
            self.push(&again, parts);
        }
        match &self.state {
            State::Text(text) => {
                if !(text.in_gap && self.called) {
                    parts.text(&text.blanks);
                }
                parts.text(&self.format.open[..text.matched]);
            }
            State::Broken(matched) => {
                parts.arguments(&self.format.close.unwrap_or_default()[..*matched]);
            }
            State::Body(_) | State::Arguments(_) | State::Tail { .. } | State::Close { .. } => {}
        }
        self.state = State::gap();
    }

    /// Reads a character; what it returns is to be read again.
    fn step(&mut self, c: char, parts: &mut Parts) -> String {
        match std::mem::replace(&mut self.state, State::Broken(0)) {
            State::Text(text) => self.text(text, c, parts),
            State::Body(body) => self.body(body, c, parts),
            State::Arguments(scanner) => self.arguments(scanner, c, parts),
            State::Broken(matched) => self.broken(matched, c, parts),
            State::Tail { held, scanner } => self.tail(held, scanner, c),
            State::Close { blanks, matched } => self.close(blanks, matched, c),
        }
    }

    fn text(&mut self, mut text: Text, c: char, parts: &mut Parts) -> String {
        let Format { open, bare, .. } = self.format;
        if continues(open, text.matched, c) {
            text.matched += 1;
            self.state = match text.matched < open.len() {
                true => State::Text(text),
                false => State::Body(Box::new(Body::new(text.blanks + open))),
            };
            return String::new();
        }
        if text.in_gap && text.matched == 0 {
            if c.is_whitespace() || (bare && self.called && c == ';') {
                text.blanks.push(c);
                self.state = State::Text(text);
                return String::new();
            }
            if bare && c == '{' {
                self.state = State::Body(Box::new(Body::new(text.blanks)));
                return c.into();
            }
        }
        parts.text(&text.blanks);
        parts.text(&open[..text.matched]);
        let mut next = Text::default();
        match c {
            '\n' => next.blanks.push(c),
            c if continues(open, 0, c) => next.matched = 1,
            c => parts.text(c.encode_utf8(&mut [0; 4])),
        }
        self.state = State::Text(next);
        String::new()
    }

    fn body(&mut self, mut body: Box<Body>, c: char, parts: &mut Parts) -> String {
        let at = body.text.len();
        body.text.push(c);
        let step = body.scanner.push(c);
        let may_be_a_call = match (step, body.scanner.key()) {
            (Step::ValueStart, "arguments" | "parameters") if c == '{' => {
                if let Some(name) = body.name.take() {
                    self.begin(name, parts);
                    parts.arguments("{");
                    self.state = State::Arguments(body.scanner);
                    return String::new();
                }
                body.arguments = Some(at..at);
                true
            }
            (Step::ValueEnd, "arguments" | "parameters") => {
                body.arguments = body.arguments.map(|span| span.start..body.text.len());
                true
            }
            (Step::ValueStart, "name") => {
                body.name_at = at;
                c == '"'
            }
            (Step::ValueEnd, "name") => {
                body.name = serde_json::from_str(&body.text[body.name_at..]).ok();
                body.name.as_ref().is_some_and(|name| self.offered.contains(name))
            }
            (Step::ValueStart, key) => matches!(key, "type" | "id"),
            (Step::End, _) => {
                if let (Some(name), Some(span)) = (body.name.take(), body.arguments.take()) {
                    self.begin(name, parts);
                    parts.arguments(&body.text[span]);
                    self.state = self.after_call();
                    return String::new();
                }
                false
            }
            (Step::Bad, _) => false,
            (Step::More | Step::ValueEnd, _) => true,
        };
        if !may_be_a_call {
            return self.give_back(*body, parts);
        }
        self.state = State::Body(body);
        String::new()
    }

    fn begin(&mut self, name: String, parts: &mut Parts) {
        self.called = true;
        parts.call(name);
    }

    /// The object is no call: what opened it is text, and it is read again itself.
    fn give_back(&mut self, body: Body, parts: &mut Parts) -> String {
        parts.text(&body.opening);
        self.state = State::Text(Text::default());
        body.text
    }

    fn arguments(&mut self, mut scanner: Scanner, c: char, parts: &mut Parts) -> String {
        let step = scanner.push(c);
        if step == Step::Bad {
            return c.into(); // the state is `Broken`
        }
        parts.arguments(c.encode_utf8(&mut [0; 4]));
        self.state = match step {
            Step::ValueEnd => State::Tail { held: String::new(), scanner },
            _ => State::Arguments(scanner),
        };
        String::new()
    }

    fn broken(&mut self, mut matched: usize, c: char, parts: &mut Parts) -> String {
        let close = self.format.close.unwrap_or_default();
        if continues(close, matched, c) {
            matched += 1;
            self.state = if matched < close.len() { State::Broken(matched) } else { State::gap() };
            return String::new();
        }
        parts.arguments(&close[..matched]);
        let opens = continues(close, 0, c);
        if !opens {
            parts.arguments(c.encode_utf8(&mut [0; 4]));
        }
        self.state = State::Broken(usize::from(opens));
        String::new()
    }

    fn tail(&mut self, mut held: String, mut scanner: Scanner, c: char) -> String {
        held.push(c);
        match scanner.push(c) {
            Step::End => {
                self.state = self.after_call();
                String::new()
            }
            Step::Bad => {
                self.state = self.after_call();
                held
            }
            Step::More | Step::ValueStart | Step::ValueEnd => {
                self.state = State::Tail { held, scanner };
                String::new()
            }
        }
    }

    fn after_call(&self) -> State {
        match self.format.close {
            Some(_) => State::Close { blanks: String::new(), matched: 0 },
            None => State::gap(),
        }
    }

    fn close(&mut self, mut blanks: String, mut matched: usize, c: char) -> String {
        let close = self.format.close.unwrap_or_default();
        if continues(close, matched, c) {
            matched += 1;
            self.state = match matched < close.len() {
                true => State::Close { blanks, matched },
                false => State::gap(),
            };
            return String::new();
        }
        if matched == 0 && c.is_whitespace() {
            blanks.push(c);
            self.state = State::Close { blanks, matched };
            return String::new();
        }
        self.state = State::gap();
        blanks.push_str(&close[..matched]);
        blanks.push(c);
        blanks
    }
}

impl Body {
    fn new(opening: String) -> Self {
        Self { opening, ..Self::default() }
    }
}
