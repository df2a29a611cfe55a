//! Drawing tokens on the device, and their way to the host.
#![expect(unsafe_code, reason = "kernel launches and copies that the stream orders")]

use super::backend::CudaTensor;
use super::batch::{CudaBatch, ROWS_MAX};
use super::compile::Arch;
use super::device::{Device, DeviceMemory, Event, Pinned};
use super::module::{Arg, Entry, Kernel, Shape};
use crate::ops::OpError;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most alternatives reported beside a token: `kTopMax` of `cuda/sample_types.cuh`.
pub const TOP_MAX: usize = 20;
/// Threads of a block.
const THREADS: usize = 512;
/// `kSampleSharedBytes` of `cuda/sample_types.cuh`.
const SHARED: usize = 18_432;
/// Words of a `SampleResult` of `cuda/sample_types.cuh`.
const RESULT_WORDS: usize = 4 + 2 * TOP_MAX;

/// A token whose logit is changed before a row's token is drawn: `SampleAdjusted` of
/// `cuda/sample_types.cuh`. A row's list has no token twice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adjusted {
    /// Its id.
    pub token: u32,
    /// 0: neither prompt nor output has it, so that no penalty applies. Otherwise
    /// [`Self::IN_PROMPT`] more than the times that the output has it.
    pub seen: u32,
    /// Added to its logit; minus infinity rules it out.
    pub bias: f32,
}

impl Adjusted {
    /// What [`Self::seen`] is of a token that is in the prompt alone.
    pub const IN_PROMPT: u32 = 1;
    /// Words of an entry on the device.
    pub(super) const WORDS: usize = 3;

    /// Whether penalties apply, and how often the output has the token.
    pub fn times(&self) -> Option<u32> {
        self.seen.checked_sub(Self::IN_PROMPT)
    }

    pub(super) fn words(&self) -> [u32; Self::WORDS] {
        [self.token, self.seen, self.bias.to_bits()]
    }
}

/// How one row's token is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// 0 takes the best.
    pub temperature: f32,
    /// In (0, 1].
    pub top_p: f32,
    /// 0 keeps all.
    pub top_k: u32,
    /// In [0, 1].
    pub min_p: f32,
    /// Of the request.
    pub seed: u64,
    /// The random counter.
    pub output_index: u32,
    /// Alternatives to report, at most [`TOP_MAX`].
    pub top: u32,
    /// Above 0; 1 is none.
    pub repetition: f32,
    /// A time in the output; 0 is none.
    pub frequency: f32,
    /// Once, of what is in the output; 0 is none.
    pub presence: f32,
    /// Tokens that the three penalties or a bias apply to.
    pub adjusted: Arc<Vec<Adjusted>>,
    /// Bit `id % 32` of word `id / 32` is set where a token may be drawn, a bit for each of the
    /// vocabulary; absent: all may.
    pub mask: Option<Arc<Vec<u32>>>,
}

impl Draw {
    /// Words of a `SampleRow` of `cuda/sample_types.cuh`.
    pub(super) const WORDS: usize = 16;

    /// Takes the best, and reports no other.
    pub fn best() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: 0,
            output_index: 0,
            top: 0,
            repetition: 1.0,
            frequency: 0.0,
            presence: 0.0,
            adjusted: Arc::default(),
            mask: None,
        }
    }

    /// Words of what the row points to: its list, then its mask.
    pub(super) fn extra_words(&self) -> usize {
        self.adjusted.len() * Adjusted::WORDS + self.mask.as_ref().map_or(0, |mask| mask.len())
    }

    /// Writes what the row points to.
    ///
    /// # Panics
    /// If `into` is not of [`Self::extra_words`].
    pub(super) fn write_extra(&self, into: &mut [u32]) {
        let (list, mask) = into.split_at_mut(self.adjusted.len() * Adjusted::WORDS);
        let entries = list.chunks_exact_mut(Adjusted::WORDS).zip(self.adjusted.iter());
        entries.for_each(|(into, adjusted)| into.copy_from_slice(&adjusted.words()));
        mask.copy_from_slice(self.mask.as_ref().map_or(&[], |mask| mask.as_slice()));
    }

    /// As the kernel reads it, with what it points to at the address `extra`.
    pub(super) fn words(&self, extra: u64) -> [u32; Self::WORDS] {
        let penalties = [self.repetition, self.frequency, self.presence].map(f32::to_bits);
        let seed = [self.seed as u32, (self.seed >> 32) as u32];
        let filters = [self.temperature.to_bits(), self.top_p.to_bits(), self.top_k];
        let mut words = [0; Self::WORDS];
        words[..3].copy_from_slice(&filters);
        words[3] = self.min_p.to_bits();
        words[4..6].copy_from_slice(&seed);
        words[6..8].copy_from_slice(&[self.output_index, self.top]);
        words[8..11].copy_from_slice(&penalties);
        words[11] = self.adjusted.len() as u32;
        words[12..14].copy_from_slice(&[extra as u32, (extra >> 32) as u32]);
        if self.mask.is_some() {
            let mask = extra + 4 * (self.adjusted.len() * Adjusted::WORDS) as u64;
            words[14..16].copy_from_slice(&[mask as u32, (mask >> 32) as u32]);
        }
        words
    }
}

/// A token that was drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct DrawnToken {
    /// Its id.
    pub token: u32,
    /// Of the logits as they came.
    pub logprob: f32,
    /// The best tokens and their log-probabilities, as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

pub(super) struct Sampler {
    kernel: Kernel,
    hopper: bool,
    /// What the step before drew, a token a row; read by the next step's embedding.
    drawn: DeviceMemory,
    results: DeviceMemory,
    /// Before Hopper: terms of [`ROWS_MAX`] rows.
    workspace: DeviceMemory,
    vocab: usize,
}

/// `sample_slice` of `cuda/sample_types.cuh`.
fn slice(vocab: usize, ranks: usize) -> usize {
    vocab.div_ceil(ranks).next_multiple_of(128)
}

impl Sampler {
    /// Words of a row's mask.
    pub fn mask_words(&self) -> usize {
        self.vocab.div_ceil(32)
    }

    pub fn load(device: &Device, vocab: usize) -> Result<Self, OpError> {
        let hopper = device.arch() != Arch::Sm80;
        let workspace = if hopper { 0 } else { 4 * slice(vocab, 1) * ROWS_MAX };
        let shared = Self::shared(hopper, vocab, 8);
        if shared > device.shared_max()? {
            let text = format!("a vocabulary of {vocab} does not fit the sampler's shared memory");
            return Err(OpError::Device(text));
        }
        let definitions = &[format!("SAMPLE_THREADS={THREADS}")];
        let (stem, name) = ("sample", "sample_f32");
        let entry = Entry { stem, name, definitions, shared, overlaps: true };
        Ok(Self {
            kernel: Kernel::load(device, entry)?,
            hopper,
            drawn: device.upload(&[0_u32; ROWS_MAX])?,
            results: device.allocate(4 * RESULT_WORDS * ROWS_MAX)?,
            workspace: device.allocate(workspace)?,
            vocab,
        })
    }

    fn shared(hopper: bool, vocab: usize, ranks: usize) -> usize {
        if hopper { SHARED + 4 * slice(vocab, ranks) } else { SHARED }
    }

    /// Where the tokens of the step before are, a word a row.
    pub fn drawn(&self) -> u64 {
        self.drawn.address()
    }

    /// Draws a token from each row of `logits` that the batch samples.
    ///
    /// # Panics
    /// If there are more rows than [`ROWS_MAX`], or than `logits` has.
    pub fn draw(&self, logits: &CudaTensor, batch: &CudaBatch) -> Result<(), OpError> {
        let rows = batch.host.sampled.len();
        assert!(rows <= ROWS_MAX && rows <= logits.rows(), "{rows} rows to draw");
        assert_eq!(logits.width(), self.vocab, "vocabulary");
        // As `bench/gpu/sample.cu` measured on an H100: a row wants more blocks where few share it.
        let cluster = match (self.hopper, rows) {
            (false, _) => 1,
            (true, ..8) => 16,
            (true, _) => 8,
        };
        let shared = Self::shared(self.hopper, self.vocab, cluster);
        let shape = Shape { grid: (rows * cluster, 1), threads: THREADS, shared, cluster };
        let arguments = [
            Arg::Wide(logits.logits()),
            Arg::Wide(self.vocab as u64),
            Arg::Count(self.vocab as u32),
            Arg::Wide(batch.draws()),
            Arg::Wide(self.workspace.address()),
            Arg::Wide(self.drawn.address()),
            Arg::Wide(self.results.address()),
        ];
        // SAFETY: the kernel's arguments in order; logits, draws and results have the rows, as
        // checked above.
        unsafe { self.kernel.launch(shape, &arguments) }
    }

    /// Enqueues the copy of the first `rows` results to `fetch`.
    pub fn fetch(&self, rows: usize, fetch: &mut Fetch) -> Result<(), OpError> {
        fetch.rows = rows;
        fetch.computed.record()?;
        // SAFETY: `fetch` reads it only after the event below.
        unsafe { self.results.fetch(&fetch.host, 4 * RESULT_WORDS * rows) }?;
        fetch.done.record()
    }
}

/// Results on their way to the host.
pub struct Fetch {
    host: Pinned,
    /// Behind the step's last kernel.
    computed: Event,
    /// Behind the copy.
    done: Event,
    rows: usize,
}

impl Fetch {
    pub(super) fn new(device: &Device) -> Result<Self, OpError> {
        let host = Pinned::new(device, 4 * RESULT_WORDS * ROWS_MAX)?;
        Ok(Self { host, computed: Event::timed(device)?, done: Event::new(device)?, rows: 0 })
    }

    /// When the step's last kernel ended, by the device's clock, when it has; some microseconds too
    /// early rather than too late. Waits for all work that was enqueued since, so it is for stories
    /// of devices with nothing else to do.
    ///
    /// # Errors
    /// [`OpError::Device`] if the device failed.
    pub fn computed_at(&self, device: &Device) -> Result<Instant, OpError> {
        let (now, asked) = (Event::timed(device)?, Instant::now());
        now.record()?;
        now.wait()?;
        let micros = self.computed.micros_to(&now)?;
        let ago = Duration::from_secs_f64(micros.max(0.0) / 1e6);
        Ok(asked.checked_sub(ago).unwrap_or(asked))
    }

    /// Whether the step is done: reading waits for nothing.
    ///
    /// # Errors
    /// [`OpError::Device`] if the step failed.
    pub fn is_there(&self) -> Result<bool, OpError> {
        self.done.is_passed()
    }

    /// Waits for the step, and reads what was drawn: a token a row, with as many alternatives as
    /// `top` says of each.
    ///
    /// # Errors
    /// [`OpError::Device`] if the step failed.
    pub fn read(&mut self, top: impl Iterator<Item = usize>) -> Result<Vec<DrawnToken>, OpError> {
        self.done.wait()?;
        let results = self.host.words().chunks_exact(RESULT_WORDS).take(self.rows);
        let read = |(words, top): (&[u32], usize)| {
            let (ids, logprobs) = words[4..].split_at(TOP_MAX);
            let top = ids.iter().zip(logprobs).take(top.min(TOP_MAX));
            let top = top.map(|(&id, &logprob)| (id, f32::from_bits(logprob))).collect();
            DrawnToken { token: words[0], logprob: f32::from_bits(words[1]), top }
        };
        Ok(results.zip(top).map(read).collect())
    }
}
