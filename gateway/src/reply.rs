//! An output's text as parts: first thoughts are told from the answer, then calls from text.
//! [`Reply`] is what the client is to see of them.
//!
//! What comes out, pieces joined, is the same however the text was cut.

use crate::parts::{Part, Parts};
use crate::reasoning::Thoughts;
use crate::tools::CallParser;

/// Reads one output; without parsers all is text.
#[derive(Debug, Clone, Default)]
pub struct Reader {
    /// Tells thoughts from the answer.
    pub thoughts: Option<Thoughts>,
    /// Tells calls from text.
    pub calls: Option<CallParser>,
}

impl Reader {
    /// Takes the next piece of text.
    pub fn push(&mut self, piece: &str) -> Vec<Part> {
        let mut parts = Parts::default();
        match &mut self.thoughts {
            Some(thoughts) => {
                let answer = thoughts.push(piece, &mut parts);
                self.answer(&answer, &mut parts);
            }
            None => self.answer(piece, &mut parts),
        }
        parts.into_vec()
    }

    /// What was held back, once the output has ended.
    pub fn finish(&mut self) -> Vec<Part> {
        let mut parts = Parts::default();
        if let Some(thoughts) = &mut self.thoughts {
            let answer = thoughts.finish(&mut parts);
            self.answer(&answer, &mut parts);
        }
        if let Some(calls) = &mut self.calls {
            calls.finish(&mut parts);
        }
        parts.into_vec()
    }

    fn answer(&mut self, text: &str, parts: &mut Parts) {
        match &mut self.calls {
            Some(calls) => calls.push(text, parts),
            None => parts.text(text),
        }
    }
}

/// One output on its way into a message.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    reader: Reader,
    /// Calls after the first are left out, as the client wants one at most.
    one_call: bool,
    /// A call is required: text is the beginning of one that was cut, and is left out.
    calls_only: bool,
    calls: usize,
}

impl Reply {
    /// An output that `reader` has not read yet.
    pub fn new(reader: Reader, one_call: bool, calls_only: bool) -> Self {
        Self { reader, one_call, calls_only, calls: 0 }
    }

    /// Tools called so far, also those that the client does not see.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Whether a tool was called.
    pub fn has_calls(&self) -> bool {
        self.calls > 0
    }

    /// The parts of the next text, the last one if `ended`, that the client is to see.
    pub fn parts(&mut self, text: &str, ended: bool) -> Vec<Part> {
        let mut parts = Parts::default();
        let mut read = self.reader.push(text);
        if ended {
            read.extend(self.reader.finish());
        }
        for part in read {
            self.calls += usize::from(matches!(part, Part::Call { .. }));
            let is_left_out = match part {
                Part::Call { .. } | Part::Arguments(_) => self.one_call && self.calls > 1,
                Part::Text(_) => self.calls_only,
                Part::Thought(_) => false,
            };
            if !is_left_out {
                parts.add(part);
            }
        }
        parts.into_vec()
    }
}

#[cfg(test)]
mod tests;
