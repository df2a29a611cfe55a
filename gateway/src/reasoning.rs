//! Reasoning content: the chain of thought between `<think>` and `</think>`, told from the answer.
//!
//! 1. [`ReasoningParser`] is the setting; [`ReasoningParser::style`] finds the model's [`Style`].
//! 2. [`Thoughts`] reads the text a character at a time. Only an output that opens with `<think>`
//!    has thoughts, or one whose prompt has opened them already: later tags are text.
//! 3. Newlines at the border of thought and answer are the template's, which writes them itself
//!    when the turn comes back, and are dropped.

use crate::parts::Parts;
use serde::Deserialize;

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// How a model writes its chain of thought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ReasoningParser {
    /// As the chat template has it; all is content where it has no `<think>`.
    #[default]
    Auto,
    /// `<think>…</think>` if the model thinks: Qwen3, QwQ.
    Qwen3,
    /// An output begins with thoughts, also without `<think>`: DeepSeek-R1.
    DeepseekR1,
    /// All is content.
    None,
}

/// Where an output begins if its prompt does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Thoughts have an opening tag.
    Tagged,
    /// The output begins with thoughts.
    Inside,
}

impl ReasoningParser {
    /// The style of a model with this chat template; `None` leaves thoughts in the text.
    pub fn style(self, template: Option<&str>) -> Option<Style> {
        let template = template.unwrap_or_default();
        match self {
            Self::Qwen3 => Some(Style::Tagged),
            Self::DeepseekR1 => Some(Style::Inside),
            Self::Auto if !template.contains(CLOSE) => None,
            Self::Auto if template.contains("<｜Assistant｜>") => Some(Style::Inside),
            Self::Auto => Some(Style::Tagged),
            Self::None => None,
        }
    }
}

/// Reads one output.
#[derive(Debug, Clone)]
pub struct Thoughts {
    style: Style,
    /// Whether thoughts are parts of their own; if not they are text, tags and all.
    separate: bool,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    /// Blanks, and so much of the opening tag.
    Start {
        blanks: String,
        matched: usize,
    },
    Thinking(Thinking),
    /// Between the closing tag and the answer.
    Border,
    Answer,
}

#[derive(Debug, Clone, Default)]
struct Thinking {
    begun: bool,
    /// Newlines that are dropped if the thoughts end here.
    newlines: usize,
    /// How much of the closing tag has matched.
    matched: usize,
}

impl Thoughts {
    /// For an output that follows `prompt`, which may have opened or closed the thoughts.
    pub fn new(style: Style, separate: bool, prompt: &str) -> Self {
        let prompt = prompt.trim_end();
        let state = if prompt.ends_with(OPEN) {
            State::Thinking(Thinking::default())
        } else if prompt.ends_with(CLOSE) {
            State::Border
        } else {
            State::Start { blanks: String::new(), matched: 0 }
        };
        Self { style, separate, state }
    }

    /// Takes the next piece of text; what is not thought is returned.
    pub fn push(&mut self, piece: &str, parts: &mut Parts) -> String {
        for (at, c) in piece.char_indices() {
            if let State::Answer = self.state {
                return piece[at..].to_owned();
            }
            let answer = self.step(c, parts);
            if let State::Answer = self.state {
                return answer + &piece[at + c.len_utf8()..];
            }
        }
        String::new()
    }

    /// The output has ended; what was held back and is not thought is returned.
    pub fn finish(&mut self, parts: &mut Parts) -> String {
        match std::mem::replace(&mut self.state, State::Answer) {
            State::Start { blanks, matched } => {
                let held = blanks + &OPEN[..matched];
                match self.style {
                    Style::Tagged => return held,
                    Style::Inside => self.thought(&held, parts),
                }
            }
            State::Thinking(thinking) => self.let_out(&thinking, parts),
            State::Border | State::Answer => {}
        }
        String::new()
    }

    /// Reads a character; where it makes the state `Answer`, the answer begins with what is
    /// returned.
    fn step(&mut self, c: char, parts: &mut Parts) -> String {
        match std::mem::replace(&mut self.state, State::Answer) {
            State::Start { mut blanks, mut matched } => {
                let continues = OPEN[matched..].starts_with(c);
                if continues {
                    matched += 1;
                } else if matched == 0 && c.is_whitespace() {
                    blanks.push(c);
                } else {
                    return self.no_tag(blanks + &OPEN[..matched], c, parts);
                }
                if matched == OPEN.len() {
                    self.format(&blanks, parts);
                    self.format(OPEN, parts);
                    self.state = State::Thinking(Thinking::default());
                } else {
                    self.state = State::Start { blanks, matched };
                }
                String::new()
            }
            State::Thinking(thinking) => {
                self.think(thinking, c, parts);
                String::new()
            }
            State::Border if c == '\n' => {
                self.format("\n", parts);
                self.state = State::Border;
                String::new()
            }
            State::Border | State::Answer => c.into(),
        }
    }

    /// The output does not open with the tag.
    fn no_tag(&mut self, mut held: String, c: char, parts: &mut Parts) -> String {
        held.push(c);
        if self.style == Style::Tagged {
            return held;
        }
        self.state = State::Thinking(Thinking::default());
        for c in held.chars() {
            if let State::Thinking(thinking) = &mut self.state {
                let thinking = std::mem::take(thinking);
                self.think(thinking, c, parts);
            }
        }
        String::new()
    }

    fn think(&mut self, mut thinking: Thinking, c: char, parts: &mut Parts) {
        if CLOSE[thinking.matched..].starts_with(c) {
            thinking.matched += 1;
        } else if c == '\n' && thinking.matched == 0 {
            thinking.newlines += 1;
        } else {
            self.let_out(&thinking, parts);
            // Only its first character is a `<`, so a failed match is never part of another.
            thinking = Thinking { begun: true, newlines: 0, matched: 0 };
            match c {
                '\n' => thinking.newlines = 1,
                '<' => thinking.matched = 1,
                c => self.thought(c.encode_utf8(&mut [0; 4]), parts),
            }
        }
        if thinking.matched == CLOSE.len() {
            self.format(&"\n".repeat(thinking.newlines), parts);
            self.format(CLOSE, parts);
            self.state = State::Border;
        } else {
            self.state = State::Thinking(thinking);
        }
    }

    /// What was held back is thought after all, but for newlines at the beginning.
    fn let_out(&self, thinking: &Thinking, parts: &mut Parts) {
        let newlines = "\n".repeat(thinking.newlines);
        if thinking.begun {
            self.thought(&newlines, parts);
        } else {
            self.format(&newlines, parts);
        }
        self.thought(&CLOSE[..thinking.matched], parts);
    }

    fn thought(&self, text: &str, parts: &mut Parts) {
        if self.separate {
            parts.thought(text);
        } else {
            parts.text(text);
        }
    }

    /// Tags and the newlines beside them.
    fn format(&self, text: &str, parts: &mut Parts) {
        if !self.separate {
            parts.text(text);
        }
    }
}
