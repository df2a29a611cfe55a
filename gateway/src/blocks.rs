//! An output as blocks: every thought, text and call of it as one piece that opens, grows, closes.
//!
//! Anthropic's content blocks and the Responses API's items are both these.

use crate::parts::Part;

/// What a block is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The chain of thought.
    Thought,
    /// The answer.
    Text,
    /// A call of a tool; its text is the arguments, a JSON object unless the output was cut.
    Call {
        /// The tool that is called.
        name: String,
    },
}

/// One block.
#[derive(Debug, Clone)]
pub struct Block {
    /// What it is.
    pub kind: Kind,
    /// 24 random letters and digits, to make ids of.
    pub letters: String,
    /// Its text so far.
    pub text: String,
}

/// What happened to the block of that index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It began, with no text yet.
    Opened(usize),
    /// This text came new.
    Grew(usize, String),
    /// It is complete.
    Closed(usize),
}

/// The blocks of one output, of which only the last may be open.
#[derive(Debug, Clone, Default)]
pub struct Blocks {
    all: Vec<Block>,
    open: bool,
}

impl Blocks {
    /// Takes what came next.
    pub fn take(&mut self, parts: Vec<Part>) -> Vec<Step> {
        let mut steps = Vec::with_capacity(parts.len());
        for part in parts {
            let (kind, text) = match part {
                Part::Thought(text) => (Some(Kind::Thought), text),
                Part::Text(text) => (Some(Kind::Text), text),
                Part::Call { name } => (Some(Kind::Call { name }), String::new()),
                Part::Arguments(text) => (None, text), // of the call that is open
            };
            if let Some(kind) = kind {
                self.enter(kind, &mut steps);
            }
            if let Some(at) = self.all.len().checked_sub(1).filter(|_| !text.is_empty()) {
                self.all[at].text.push_str(&text);
                steps.push(Step::Grew(at, text));
            }
        }
        steps
    }

    /// The output has ended: closes the last block.
    pub fn close(&mut self) -> Option<Step> {
        std::mem::take(&mut self.open).then(|| Step::Closed(self.all.len() - 1))
    }

    /// The block of that index.
    pub fn get(&self, at: usize) -> &Block {
        &self.all[at]
    }

    /// All of them.
    pub fn all(&self) -> &[Block] {
        &self.all
    }

    /// Goes on with the open block, or opens one: every call is a block of its own.
    fn enter(&mut self, kind: Kind, steps: &mut Vec<Step>) {
        let goes_on = self.open && self.all.last().is_some_and(|block| block.kind == kind);
        if goes_on && !matches!(kind, Kind::Call { .. }) {
            return;
        }
        steps.extend(self.close());
        steps.push(Step::Opened(self.all.len()));
        self.all.push(Block { kind, letters: letters(), text: String::new() });
        self.open = true;
    }
}

/// 24 random letters and digits.
pub fn letters() -> String {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut drawn = [0; 24];
    getrandom::fill(&mut drawn)
        .expect("the kernel gives random bytes on every system that we run on");
    drawn.map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()])).iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_kind_are_one_block_and_every_call_is_its_own() {
        let mut blocks = Blocks::default();
        let text = |text: &str| Part::Text(text.into());
        let call = || Part::Call { name: "f".into() };
        let more = |at, text: &str| Step::Grew(at, text.into());
        use Step::{Closed, Opened};
        assert_eq!(blocks.close(), None);
        let steps = blocks.take(vec![Part::Thought("hm".into()), text("a")]);
        assert_eq!(steps, [Opened(0), more(0, "hm"), Closed(0), Opened(1), more(1, "a")]);
        assert_eq!(blocks.take(vec![text("b"), call()]), [more(1, "b"), Closed(1), Opened(2)]);
        let steps = blocks.take(vec![Part::Arguments("{}".into()), call()]);
        assert_eq!(steps, [more(2, "{}"), Closed(2), Opened(3)]);
        assert_eq!((blocks.close(), blocks.close()), (Some(Closed(3)), None));
        let texts: Vec<&str> = blocks.all().iter().map(|block| &*block.text).collect();
        assert_eq!(texts, ["hm", "ab", "{}", ""]);
    }
}
