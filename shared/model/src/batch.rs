//! From an engine's batch to the flat arrays that kernels want, checked on the way.

use crate::engine::{Batch, EngineError, Row};
use crate::forward::Step;
use kernels::ops::{HostBatch, Segment};

/// What bounds a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub vocab: u32,
    pub pages: u32,
    pub page_tokens: u32,
    /// Longest sequence.
    pub positions: usize,
}

impl Limits {
    /// The batch in flat form.
    pub fn flatten(&self, batch: &Batch) -> Result<(HostBatch, Step), EngineError> {
        let mut flat = HostBatch::default();
        for (index, row) in batch.rows.iter().enumerate() {
            self.check(row).map_err(|why| EngineError(format!("batch row {index}: {why}")))?;
            let (first, table) = (flat.tokens.len(), flat.pages.len());
            let (len, start) = (row.tokens.len(), row.start as usize);
            flat.segments.push(Segment { first, len, start, table });
            flat.tokens.extend(row.tokens.iter().map(|token| token.get()));
            flat.pages.extend(row.pages.iter().map(|page| page.get()));
            if row.sample.is_some() {
                flat.sampled.push((flat.tokens.len() - 1) as u32);
            }
        }
        let step = Step { tokens: flat.tokens.len(), sampled: flat.sampled.len() };
        Ok((flat, step))
    }

    fn check(&self, row: &Row) -> Result<(), String> {
        let end = row.start as usize + row.tokens.len();
        if row.tokens.is_empty() {
            return Err("no tokens".to_owned());
        }
        if end > self.positions {
            return Err(format!("{end} tokens, beyond the longest sequence {}", self.positions));
        }
        let needed = end.div_ceil(self.page_tokens as usize);
        if row.pages.len() < needed {
            return Err(format!("{} pages where {end} tokens take {needed}", row.pages.len()));
        }
        if let Some(page) = row.pages.iter().find(|page| page.get() >= self.pages) {
            return Err(format!("page {page} of a pool of {}", self.pages));
        }
        if let Some(token) = row.tokens.iter().find(|token| token.get() >= self.vocab) {
            return Err(format!("token {token} of a vocabulary of {}", self.vocab));
        }
        Ok(())
    }
}
