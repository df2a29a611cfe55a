//! From an engine's batch to the flat arrays that kernels want, checked on the way.

use crate::engine::{Batch, EngineError, Input, Row, RowReads};
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
    /// Most rows whose tokens are drawn.
    pub rows: usize,
}

impl Limits {
    /// The batch in flat form. `drawn` says what stands for the token that a row of the step before
    /// draws, if it draws one.
    pub fn flatten(
        &self,
        batch: &Batch,
        drawn: impl Fn(usize) -> Option<u32>,
    ) -> Result<(HostBatch, Step), EngineError> {
        let mut flat = HostBatch::default();
        for (index, row) in batch.rows.iter().enumerate() {
            let bad = |why| EngineError(format!("batch row {index}: {why}"));
            self.check(row).map_err(bad)?;
            let (first, table) = (flat.tokens.len(), flat.pages.len());
            let (len, start) = (row.input.len(), row.start as usize);
            flat.segments.push(Segment { first, len, start, table });
            match &row.input {
                Input::Tokens(tokens) => flat.tokens.extend(tokens.iter().map(|token| token.get())),
                &Input::Drawn(row) => flat.tokens.push(drawn(row).ok_or_else(|| {
                    bad(format!("takes the token of row {row} of the step before, which drew none"))
                })?),
            }
            flat.pages.extend(row.pages.iter().map(|page| page.get()));
            if row.sample.is_some() {
                flat.sampled.push((flat.tokens.len() - 1) as u32);
            }
        }
        if flat.sampled.len() > self.rows {
            let (rows, most) = (flat.sampled.len(), self.rows);
            return Err(EngineError(format!("{rows} rows draw a token; {most} is the most")));
        }
        let step = Step { tokens: flat.tokens.len(), sampled: flat.sampled.len() };
        Ok((flat, step))
    }

    fn check(&self, row: &Row) -> Result<(), String> {
        let end = row.start as usize + row.input.len();
        if row.input.is_empty() {
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
        self.check_reads(row)?;
        let Input::Tokens(tokens) = &row.input else { return Ok(()) };
        if let Some(token) = tokens.iter().find(|token| token.get() >= self.vocab) {
            return Err(format!("token {token} of a vocabulary of {}", self.vocab));
        }
        Ok(())
    }
    fn check_reads(&self, row: &Row) -> Result<(), String> {
        let (tokens, ids): (&[_], &[_]) = match &row.reads {
            None | Some(RowReads::Last | RowReads::Sum) => (&[], &[]),
            Some(RowReads::Next(ids)) => (&[], ids),
            Some(RowReads::Tokens { first, tokens, ids, .. }) => {
                let (end, len) = (first.saturating_add(tokens.len()), row.input.len());
                if end > len {
                    return Err(format!("{end} tokens are read where {len} are new"));
                }
                (tokens, ids)
            }
        };
        let of_draw = row.sample.iter().flat_map(|sample| sample.logprob_ids.iter());
        match tokens.iter().chain(ids).chain(of_draw).find(|id| id.get() >= self.vocab) {
            Some(id) => Err(format!("token {id} is read, of a vocabulary of {}", self.vocab)),
            None => Ok(()),
        }
    }
}
