//! An output's text as parts: first thoughts are told from the answer, then calls from text.
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

#[cfg(test)]
mod tests;
