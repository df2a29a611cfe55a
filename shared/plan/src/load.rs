//! A trace's requests at a rate of choice.

use crate::trace::Entry;
use shared::ids::TokenId;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Tokens of a block of Mooncake's traces.
pub const BLOCK_TOKENS: u32 = 512;

/// One request.
#[derive(Clone, Debug)]
pub struct Ask {
    /// When it is sent.
    pub at: Duration,
    /// Tokens of its prompt, at least 1.
    pub input: u32,
    /// Tokens of its answer, at least 1.
    pub output: u32,
    /// Names of the whole blocks of its prompt, which stand in for token ids: equal names, all
    /// names before them equal, are equal tokens. What has no name is in no other prompt.
    pub blocks: Arc<Vec<TokenId>>,
}

/// Requests, and the size of their blocks.
#[derive(Clone, Debug)]
pub struct Load {
    /// In order of time.
    pub asks: Vec<Ask>,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// So many at the start only fill the ring: how they fare is not counted.
    pub warm: usize,
}

impl Load {
    /// The entries as they are, their lengths and blocks divided by `divisor`, which is at least 1.
    pub fn of(entries: &[Entry], divisor: u32) -> Self {
        Self::repeated(entries, divisor, entries.len(), 1.0)
    }

    /// `count` requests, at this part of the time between them: the trace is played again where it
    /// is too short, its prompts then new ones. All are counted.
    pub fn repeated(entries: &[Entry], divisor: u32, count: usize, pace: f64) -> Self {
        let block_tokens = (BLOCK_TOKENS / divisor).max(1);
        let round = span(entries);
        let (mut names, mut next) = (HashMap::new(), 0);
        let one = |number: usize| {
            let (entry, lap) = (&entries[number % entries.len()], number / entries.len());
            if number.is_multiple_of(entries.len()) {
                names.clear();
            }
            let input = (entry.input as u32 / divisor).max(1);
            let whole = (input / block_tokens) as usize;
            let name = |&block: &u64| {
                *names.entry(block).or_insert_with(|| {
                    next += 1;
                    TokenId::new(next)
                })
            };
            let blocks = entry.blocks.iter().take(whole).map(name).collect();
            Ask {
                at: (entry.at + round * lap as u32).mul_f64(pace),
                input,
                output: (entry.output as u32 / divisor).max(1),
                blocks: Arc::new(blocks),
            }
        };
        Self { asks: (0..count).map(one).collect(), block_tokens, warm: 0 }
    }

    /// Requests a second.
    pub fn rate(&self) -> f64 {
        let seconds = self.asks.last().map_or(0.0, |last| last.at.as_secs_f64());
        self.asks.len() as f64 / seconds.max(1e-9)
    }
}

/// Requests a second of a trace at its own times.
pub fn rate(entries: &[Entry]) -> f64 {
    entries.len() as f64 / span(entries).as_secs_f64()
}

/// How long the trace takes: to its last request, and a mean gap more.
fn span(entries: &[Entry]) -> Duration {
    let last = entries.last().map_or(Duration::ZERO, |last| last.at);
    let gaps = entries.len().saturating_sub(1).max(1) as u32;
    (last + last / gaps).max(Duration::from_millis(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_played_again_with_prompts_of_its_own() {
        let entry = |at, input, blocks: &[u64]| Entry {
            at: Duration::from_secs(at),
            input,
            output: 3,
            blocks: blocks.to_vec(),
        };
        let entries = [entry(0, 1100, &[7, 8, 9]), entry(1, 1100, &[7, 8, 5])];
        let load = Load::repeated(&entries, 1, 4, 0.5);
        let blocks = |n: usize| &load.asks[n].blocks[..];
        assert_eq!((blocks(0).len(), blocks(0)), (2, blocks(1)), "of whole blocks");
        assert_ne!(blocks(0), blocks(2));
        assert_eq!(blocks(2), blocks(3));
        assert_eq!(load.asks[3].at, Duration::from_millis(1500));
        let plain = Load::of(&[entry(0, 1100, &[]), entry(1, 1100, &[])], 2);
        assert_eq!((plain.block_tokens, plain.asks[0].blocks.len()), (256, 0));
    }
}
