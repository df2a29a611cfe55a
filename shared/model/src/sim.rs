//! [`SimEngine`]: an engine that computes nothing and takes the time that a table says, so that a
//! whole ring runs at the pace of a device that is not there. Pages, transports, schedulers and
//! links are the real ones.
//!
//! A page keeps, in place of a token's keys and values, eight bytes that name the whole sequence up
//! to it; a drawn token comes of them alone. So a page that is lost, mixed up or late changes the
//! tokens, and prefill and decode agree only where the right pages have arrived.

use crate::batch::Limits;
use crate::cpu::geometry;
use crate::engine::{Batch, Engine, EngineError, IN_FLIGHT, Input, Row, RowReads};
use crate::kv::KvMemory;
use crate::load::LoadError;
use crate::sample::Mask;
use checkpoint::Checkpoint;
use kernels::cpu::memory::HostMemory;
pub use plan::table::StepTable;
use shared::ids::TokenId;
use shared::kv::{KvDtype, PageStore};
use shared::request::{Read, Token};
use shared::scramble::scrambled;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two looks at whether a step has ended.
const LOOK_EVERY: Duration = Duration::from_micros(100);

/// Bytes of a token's name in its page.
const NAME: usize = 8;

/// How a simulated engine is set up.
pub struct SimConfig {
    /// How long steps take.
    pub table: StepTable,
    /// Element of keys and values, which decides how large pages are.
    pub dtype: KvDtype,
    /// Pages of the pool.
    pub pages: u32,
    /// Tokens of a page.
    pub page_tokens: u32,
    /// Memory for the pool that a transport allocated; absent: fresh memory.
    pub memory: Option<HostMemory>,
}

/// A step that was launched.
struct Step {
    ends: Instant,
    drawn: Vec<Option<Token>>,
    read: Vec<Option<Read>>,
}

/// The shape of a model, its pages, and a clock.
pub struct SimEngine {
    table: StepTable,
    limits: Limits,
    context_length: u32,
    hidden: usize,
    fingerprint: [u8; 32],
    kv: Arc<KvMemory>,
    /// Oldest first.
    steps: VecDeque<Step>,
    /// What the step collected last has read.
    read: Vec<Option<Read>>,
    /// What the rows of the last launched step drew.
    last: Vec<Option<u32>>,
    /// When the device is done with all that was launched.
    free_at: Instant,
}

impl SimEngine {
    /// An engine with the shape of this model; no weight is read.
    ///
    /// # Errors
    /// [`LoadError`]: memory, or a size that an engine cannot take, by name.
    pub fn new(checkpoint: &Checkpoint, config: SimConfig) -> Result<Self, LoadError> {
        let SimConfig { table, dtype, pages, page_tokens, memory } = config;
        let model = checkpoint.config();
        let kv = KvMemory::new(geometry(model, page_tokens, dtype)?, pages, memory)?;
        let room = pages as usize * page_tokens as usize;
        let steps = table.steps();
        let limits = Limits {
            vocab: model.vocab as u32,
            pages,
            page_tokens,
            positions: model.max_positions.min(room),
            rows: steps.rows_max as usize,
        };
        let mut hasher = blake3::Hasher::new_derive_key("tandem simulated model 1");
        hasher.update(format!("{model:?}").as_bytes());
        tracing::info!(pages, page_tokens, about = steps.about, "a simulated engine");
        Ok(Self {
            table,
            limits,
            context_length: model.max_positions as u32,
            hidden: model.hidden,
            fingerprint: *hasher.finalize().as_bytes(),
            kv: Arc::new(kv),
            steps: VecDeque::new(),
            read: vec![],
            last: vec![],
            free_at: Instant::now(),
        })
    }

    /// Writes the names of a row's new tokens into its pages; the last one's.
    fn write(&self, row: &Row, drawn: Option<u32>) -> u64 {
        let page_tokens = self.limits.page_tokens as usize;
        let place = |at: usize| {
            let byte = at % page_tokens * NAME;
            (row.pages[at / page_tokens], byte..byte + NAME)
        };
        let start = row.start as usize;
        let mut name = 0;
        if let Some(before) = start.checked_sub(1) {
            let (page, range) = place(before);
            let mut bytes = [0; NAME];
            self.kv.read(page, range, &mut bytes);
            name = u64::from_le_bytes(bytes);
        }
        let mut next = |at: usize, token: u32| {
            name = scrambled(name ^ (u64::from(token) + 1));
            let (page, range) = place(at);
            self.kv.write(page, range, &name.to_le_bytes());
        };
        match &row.input {
            Input::Tokens(tokens) => {
                tokens.iter().zip(start..).for_each(|(token, at)| next(at, token.get()));
            }
            Input::Drawn(_) => next(start, drawn.unwrap_or_default()),
        }
        name
    }

    fn draw(&self, row: &Row, drawn: Option<u32>) -> Option<Token> {
        let name = self.write(row, drawn);
        let sample = row.sample.as_ref()?;
        let wanted = (name % u64::from(self.limits.vocab)) as u32;
        let id = match &sample.mask {
            Some(mask) => allowed(mask, wanted, self.limits.vocab),
            None => wanted,
        };
        let id = TokenId::new(id);
        let top = sample.logprobs.filter(|count| *count > 0).map(|_| id);
        let top = top.into_iter().chain(sample.logprob_ids.iter().copied());
        Some(Token { id, logprob: 0.0, top: top.map(|id| (id, 0.0)).collect() })
    }

    /// What a row asks to be read: certain tokens and hidden states of zeros.
    fn read_of(&self, row: &Row) -> Option<Read> {
        row.reads.as_ref().map(|reads| match reads {
            RowReads::Tokens { tokens, ids, .. } => {
                let top: Vec<_> = ids.iter().map(|&id| (id, 0.0)).collect();
                let sure = |&id| Token { id, logprob: 0.0, top: top.clone() };
                Read::Tokens(tokens.iter().map(sure).collect())
            }
            RowReads::Next(tokens) => Read::Next(vec![0.0; tokens.len()]),
            RowReads::Last | RowReads::Sum => Read::Hidden(vec![0.0; self.hidden]),
        })
    }
}

/// The first token from `wanted` on, round the vocabulary, that a grammar allows.
fn allowed(mask: &Mask, wanted: u32, vocab: u32) -> u32 {
    let Some(words) = mask.wait() else { return wanted };
    let may =
        |id: &u32| words.get(*id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1);
    (wanted..vocab).chain(0..wanted).find(may).unwrap_or(wanted)
}

impl Engine for SimEngine {
    fn vocab(&self) -> u32 {
        self.limits.vocab
    }
    fn context_length(&self) -> u32 {
        self.context_length
    }
    fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }
    fn rows_max(&self) -> usize {
        self.limits.rows
    }
    fn overlaps(&self) -> bool {
        self.table.steps().overlaps
    }
    fn pages(&self) -> Arc<dyn PageStore> {
        Arc::<KvMemory>::clone(&self.kv)
    }
    fn launch(&mut self, batch: &Batch) -> Result<(), EngineError> {
        if self.steps.len() >= IN_FLIGHT {
            return Err(EngineError(format!("{IN_FLIGHT} steps are launched already")));
        }
        let before = |row: usize| self.last.get(row).copied().flatten();
        self.limits.flatten(batch, before)?;
        let input = |row: &Row| match row.input {
            Input::Drawn(of) => before(of),
            Input::Tokens(_) => None,
        };
        let drawn: Vec<_> = batch.rows.iter().map(|row| self.draw(row, input(row))).collect();
        let took =
            self.table.step(batch.rows.iter().map(|row| (row.start, row.input.len() as u32)));
        self.last = drawn.iter().map(|token| token.as_ref().map(|t| t.id.get())).collect();
        self.free_at = self.free_at.max(Instant::now()) + took;
        let read = batch.rows.iter().map(|row| self.read_of(row)).collect();
        self.steps.push_back(Step { ends: self.free_at, drawn, read });
        Ok(())
    }
    fn is_ready(&mut self) -> Result<bool, EngineError> {
        Ok(self.steps.front().is_none_or(|step| step.ends <= Instant::now()))
    }
    fn rest(&mut self) -> Result<(), EngineError> {
        let ends = self.steps.front().map_or_else(Instant::now, |step| step.ends);
        std::thread::sleep(ends.saturating_duration_since(Instant::now()).min(LOOK_EVERY));
        Ok(())
    }
    fn collect(&mut self) -> Result<Vec<Option<Token>>, EngineError> {
        let step = self.steps.pop_front();
        let step = step.ok_or_else(|| EngineError("collect without a launch".to_owned()))?;
        std::thread::sleep(step.ends.saturating_duration_since(Instant::now()));
        self.read = step.read;
        Ok(step.drawn)
    }
    fn read(&mut self) -> Vec<Option<Read>> {
        std::mem::take(&mut self.read)
    }
}

#[cfg(test)]
mod tests;
