//! A step's arrays on the device: laid out as words, filled on the host, one copy.
//!
//! A [`CudaBatch`] takes a [`Slot`] (device memory, and the pinned memory it is filled from) and
//! gives it back when dropped; the stream orders who reads it. A [`Frame`] is a slot that stays
//! where it is, for recorded steps: each has its own [`Layout`] of it, for its number of rows.
#![expect(unsafe_code, reason = "copies that the stream orders")]

use super::device::{Device, DeviceMemory, Event, Pinned};
use super::heads::Heads;
use super::plan::{self, Plan};
use super::sample::Draw;
use crate::ops::{HostBatch, OpError, Segment};
use std::sync::{Arc, Mutex, PoisonError};

/// Most rows of a step whose tokens are drawn, and of one that decode attention takes.
pub const ROWS_MAX: usize = 256;
/// In place of a token: the one that row `token & !DRAWN` of the step before drew.
pub const DRAWN: u32 = 1 << 31;
/// Position of a row that is none.
const PADDING: u32 = u32::MAX;
/// Words of all rows' lists together that a [`Frame`] has room for beside their masks: 65,536
/// adjusted tokens. A step with more is enqueued kernel by kernel.
const FRAME_LISTS: usize = 3 << 16;
/// Query rows of a work item of `cuda/prefill_attention.cu`.
pub(super) const QUERY_TILE: usize = 128;

/// Which attention kernel a batch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Single tokens, by a plan.
    Decode,
    /// Chunks of prompts, in tiles.
    Prefill {
        /// How many.
        tiles: usize,
    },
    /// Shapes that have no kernel of their own.
    Any,
}

/// How many entries a layout has room for.
#[derive(Clone, Copy, Debug)]
struct Counts {
    tokens: usize,
    sampled: usize,
    workers: usize,
    items: usize,
    segments: usize,
    tiles: usize,
}

/// Where each array begins, in words; tokens begin at 0, page tables and then the lists of adjusted
/// tokens and the masks come last.
#[derive(Clone, Copy, Debug)]
struct Layout {
    positions: usize,
    table_at: usize,
    sampled: usize,
    draws: usize,
    workers: usize,
    items: usize,
    segments: usize,
    tiles: usize,
    tables: usize,
}

impl Layout {
    fn new(counts: &Counts) -> Self {
        let &Counts { tokens, sampled, workers, items, segments, tiles } = counts;
        let mut end = tokens;
        // Every array at a multiple of 16 bytes: some are read so.
        let mut next = |words: usize| {
            let begin = end.next_multiple_of(4);
            end = begin + words;
            begin
        };
        Self {
            positions: next(tokens),
            table_at: next(tokens),
            sampled: next(sampled),
            draws: next(sampled * Draw::WORDS),
            workers: next(workers),
            items: next(items * plan::Item::WORDS),
            segments: next(segments * 4),
            tiles: next(tiles * 2),
            tables: next(0),
        }
    }
}

/// What turns a host's batch into words.
pub(super) struct Writer {
    heads: Heads,
    limits: plan::Limits,
    plan: Plan,
}

impl Writer {
    pub fn new(heads: Heads, blocks: u32) -> Self {
        let rows = ROWS_MAX as u32;
        let limits = plan::Limits { blocks, kv_heads: heads.kv.kv_heads as u32, rows };
        Self { heads, limits, plan: Plan::new(limits) }
    }

    /// What the buffers of decode attention are sized by.
    pub fn limits(&self) -> plan::Limits {
        self.limits
    }

    fn decode_counts(&self, rows: usize) -> Counts {
        let limits = plan::Limits { rows: rows as u32, ..self.limits };
        let (workers, items) = (limits.workers(), limits.items());
        Counts { tokens: rows, sampled: rows, workers, items, segments: 0, tiles: 0 }
    }

    fn counts(&self, host: &HostBatch) -> (Work, Counts) {
        let segments = &host.segments;
        let (tokens, sampled) = (host.tokens.len(), host.sampled.len());
        let none = Counts { tokens, sampled, workers: 0, items: 0, segments: 0, tiles: 0 };
        if !self.heads.are_fast() {
            return (Work::Any, none);
        }
        if segments.len() <= ROWS_MAX && segments.iter().all(|segment| segment.len == 1) {
            return (Work::Decode, Counts { sampled, ..self.decode_counts(tokens) });
        }
        let tiles = segments.iter().map(|s| s.len.div_ceil(QUERY_TILE)).sum();
        (Work::Prefill { tiles }, Counts { segments: segments.len(), tiles, ..none })
    }

    /// Writes `host` to `words`, which will be at `address`, as `layout` has it; rows up to `rows`
    /// that it has not are padding.
    fn write(
        &mut self,
        (host, draws): (&HostBatch, &[Draw]),
        (layout, work, rows): (&Layout, Work, usize),
        (words, address): (&mut [u32], u64),
    ) {
        let tokens = host.tokens.len();
        words[..tokens].copy_from_slice(&host.tokens);
        words[tokens..rows].fill(0);
        let mut at = 0;
        for segment in &host.segments {
            assert!(segment.len > 0 && segment.first == at, "{segment:?}");
            for position in segment.start..segment.start + segment.len {
                words[layout.positions + at] = position as u32;
                words[layout.table_at + at] = segment.table as u32;
                at += 1;
            }
        }
        assert_eq!(at, tokens, "segments tile the tokens");
        words[layout.positions..][tokens..rows].fill(PADDING);
        words[layout.table_at..][tokens..rows].fill(0);
        assert!(host.sampled.iter().all(|&i| (i as usize) < tokens), "sampled tokens exist");
        words[layout.sampled..][..host.sampled.len()].copy_from_slice(&host.sampled);
        let into = words[layout.draws..layout.workers].chunks_exact_mut(Draw::WORDS);
        let mut list = layout.tables + host.pages.len();
        let rows_of = draws.iter().map(|draw| {
            let at = list;
            list += draw.extra_words();
            draw.words(address + 4 * at as u64)
        });
        let rows_of = rows_of.chain(std::iter::repeat(Draw::best().words(0)));
        into.zip(rows_of).for_each(|(into, row)| into.copy_from_slice(&row));
        match work {
            Work::Decode => self.write_plan(&host.segments, layout, words),
            Work::Prefill { .. } => write_tiles(&host.segments, layout, words),
            Work::Any => {}
        }
        let (tables, lists) = words[layout.tables..].split_at_mut(host.pages.len());
        tables.copy_from_slice(&host.pages);
        let mut rest = lists;
        for draw in draws {
            let (into, after) = rest.split_at_mut(draw.extra_words());
            draw.write_extra(into);
            rest = after;
        }
    }

    fn write_plan(&mut self, segments: &[Segment], layout: &Layout, words: &mut [u32]) {
        let mut lengths = [0; ROWS_MAX];
        let rows = segments.iter().zip(&mut lengths);
        rows.for_each(|(segment, length)| *length = segment.start as u32 + 1);
        self.plan.update(&lengths[..segments.len()]);
        let workers = self.plan.workers();
        words[layout.workers..][..workers.len()].copy_from_slice(workers);
        let into = words[layout.items..].chunks_exact_mut(plan::Item::WORDS);
        for (into, item) in into.zip(self.plan.items()) {
            let table = segments[item.row as usize].table as u32;
            into.copy_from_slice(&plan::Item { table, ..*item }.words());
        }
    }
}

/// Segments, then tiles of their rows, those that see most keys first.
fn write_tiles(segments: &[Segment], layout: &Layout, words: &mut [u32]) {
    let into = words[layout.segments..].chunks_exact_mut(4);
    for (into, s) in into.zip(segments) {
        into.copy_from_slice(&[s.first, s.len, s.start, s.table].map(|n| n as u32));
    }
    let mut tiles: Vec<_> = segments
        .iter()
        .enumerate()
        .flat_map(|(index, s)| {
            let end = move |tile: usize| s.start + s.len.min((tile + 1) * QUERY_TILE);
            (0..s.len.div_ceil(QUERY_TILE)).map(move |tile| (end(tile), index, tile))
        })
        .collect();
    tiles.sort_by_key(|&(end, ..)| std::cmp::Reverse(end));
    let into = words[layout.tiles..].chunks_exact_mut(2);
    for (into, (_, index, tile)) in into.zip(tiles) {
        into.copy_from_slice(&[index as u32, tile as u32]);
    }
}

/// Words of the draws' lists and masks.
fn extra_words(draws: &[Draw]) -> usize {
    draws.iter().map(Draw::extra_words).sum()
}

/// Memory that a batch is filled in and copied to.
pub(super) struct Slot {
    device: DeviceMemory,
    host: Pinned,
    /// The last copy from `host`.
    copied: Event,
}

impl Slot {
    fn new(device: &Device, words: usize) -> Result<Self, OpError> {
        let (host, copied) = (Pinned::new(device, 4 * words)?, Event::new(device)?);
        Ok(Self { device: device.allocate(4 * words)?, host, copied })
    }

    /// Lets `write` fill it and enqueues the copy of its first `words` words.
    fn fill(&mut self, words: usize, write: impl FnOnce(&mut [u32])) -> Result<(), OpError> {
        self.copied.wait()?;
        write(self.host.words());
        // SAFETY: `host` is written again only after `copied`.
        unsafe { self.device.fill(&self.host, 4 * words) }?;
        self.copied.record()
    }
}

/// Slots that no batch has.
pub(super) type Spare = Arc<Mutex<Vec<Slot>>>;

/// A batch that has been checked and is on its way to the device.
pub struct CudaBatch {
    pub(super) host: HostBatch,
    pub(super) work: Work,
    layout: Layout,
    address: u64,
    /// Given back in the end; a recorded step's lies in its frame.
    slot: Option<(Slot, Spare)>,
}

impl CudaBatch {
    /// # Panics
    /// If segments do not tile the tokens or a sampled index is out of bounds.
    pub(super) fn new(
        device: &Device,
        writer: &mut Writer,
        spare: &Spare,
        (host, draws): (HostBatch, &[Draw]),
    ) -> Result<Self, OpError> {
        let (work, counts) = writer.counts(&host);
        let layout = Layout::new(&counts);
        let words = layout.tables + host.pages.len() + extra_words(draws);
        let mut slots = spare.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = slots.iter().position(|slot| slot.host.len() >= 4 * words);
        let slot = fits.map(|at| slots.swap_remove(at));
        drop(slots);
        let slot = slot.map_or_else(|| Slot::new(device, words.next_power_of_two()), Ok);
        let mut slot = slot?;
        let address = slot.device.address();
        slot.fill(words, |words| {
            writer.write((&host, draws), (&layout, work, counts.tokens), (words, address));
        })?;
        Ok(Self { host, work, layout, address, slot: Some((slot, Arc::clone(spare))) })
    }

    fn at(&self, word: usize) -> u64 {
        self.address + 4 * word as u64
    }

    /// Token ids.
    pub(super) fn tokens(&self) -> u64 {
        self.at(0)
    }
    /// Positions in their sequences, an entry a token.
    pub(super) fn positions(&self) -> u64 {
        self.at(self.layout.positions)
    }
    /// Where each token's page table begins in [`Self::tables`].
    pub(super) fn table_at(&self) -> u64 {
        self.at(self.layout.table_at)
    }
    /// Indices of the sampled tokens, an entry each.
    pub(super) fn sampled(&self) -> u64 {
        self.at(self.layout.sampled)
    }
    /// How the sampled tokens' successors are drawn.
    pub(super) fn draws(&self) -> u64 {
        self.at(self.layout.draws)
    }
    /// [`Plan::workers`].
    pub(super) fn workers(&self) -> u64 {
        self.at(self.layout.workers)
    }
    /// [`Plan::items`].
    pub(super) fn items(&self) -> u64 {
        self.at(self.layout.items)
    }
    /// Segments as prefill attention reads them.
    pub(super) fn segments(&self) -> u64 {
        self.at(self.layout.segments)
    }
    /// Its work items.
    pub(super) fn tiles(&self) -> u64 {
        self.at(self.layout.tiles)
    }
    /// All page tables.
    pub(super) fn tables(&self) -> u64 {
        self.at(self.layout.tables)
    }
}

impl Drop for CudaBatch {
    fn drop(&mut self) {
        if let Some((slot, spare)) = self.slot.take() {
            spare.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
        }
    }
}

/// # Panics
/// If a page table is shorter than its segment needs.
pub(super) fn check_tables(host: &HostBatch, page_tokens: usize) {
    for segment in &host.segments {
        let pages = (segment.start + segment.len).div_ceil(page_tokens);
        assert!(segment.table + pages <= host.pages.len(), "{segment:?}: page table");
    }
}

/// Device memory for the batches of recorded steps, one at a time.
pub struct Frame {
    memory: DeviceMemory,
    /// Filled in turn, so that the next step's can be filled while one is copied.
    hosts: [(Pinned, Event); 2],
    turn: usize,
    /// Words of lists and masks that it has room for.
    extra: usize,
}

impl Frame {
    /// Whether it has room for what the draws adjust and mask.
    pub fn takes(&self, draws: &[Draw]) -> bool {
        extra_words(draws) <= self.extra
    }

    /// For up to [`ROWS_MAX`] rows with `pages` pages and `masks` words of masks in all.
    pub(super) fn new(
        device: &Device,
        writer: &Writer,
        (pages, masks): (usize, usize),
    ) -> Result<Self, OpError> {
        let arrays = Layout::new(&writer.decode_counts(ROWS_MAX)).tables;
        let extra = masks + FRAME_LISTS;
        let bytes = 4 * (arrays + pages + extra);
        let host = || Ok::<_, OpError>((Pinned::new(device, bytes)?, Event::new(device)?));
        let (memory, hosts) = (device.allocate(bytes)?, [host()?, host()?]);
        Ok(Self { memory, hosts, turn: 0, extra })
    }

    /// A batch of `rows` rows to record a step with: padding, of which nothing is read or written.
    pub(super) fn batch(&mut self, writer: &mut Writer, rows: usize) -> Result<CudaBatch, OpError> {
        let segment = |row| Segment { first: row, len: 1, start: 0, table: 0 };
        let host = HostBatch {
            tokens: vec![0; rows],
            segments: (0..rows).map(segment).collect(),
            pages: vec![0],
            sampled: (0..rows as u32).collect(),
        };
        self.fill(writer, rows, (&HostBatch::default(), &[]))?;
        let layout = Layout::new(&writer.decode_counts(rows));
        let address = self.memory.address();
        Ok(CudaBatch { host, work: Work::Decode, layout, address, slot: None })
    }

    /// Fills in what a step recorded with `rows` rows will read, and enqueues the copy.
    ///
    /// # Panics
    /// If `host` has more rows, or is no batch of single tokens that are all sampled, or the frame
    /// does not take the draws.
    pub(super) fn fill(
        &mut self,
        writer: &mut Writer,
        rows: usize,
        (host, draws): (&HostBatch, &[Draw]),
    ) -> Result<(), OpError> {
        let count = host.segments.len();
        assert!(count <= rows && host.sampled.len() == count, "{count} rows of {rows}");
        assert!(self.takes(draws), "room for lists and masks");
        let layout = Layout::new(&writer.decode_counts(rows));
        self.turn ^= 1;
        let (pinned, copied) = &mut self.hosts[self.turn];
        copied.wait()?;
        let words = pinned.words();
        let at = (&mut *words, self.memory.address());
        writer.write((host, draws), (&layout, Work::Decode, rows), at);
        (0..rows as u32).zip(&mut words[layout.sampled..]).for_each(|(row, word)| *word = row);
        let used = layout.tables + host.pages.len() + extra_words(draws);
        // SAFETY: this half is written again only after `copied`.
        unsafe { self.memory.fill(pinned, 4 * used) }?;
        copied.record()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::sample::Adjusted;
    use crate::ops::KvShape;
    use crate::parity::Random;

    fn writer() -> Writer {
        let kv = KvShape { layers: 2, kv_heads: 2, head_dim: 64, page_tokens: 16 };
        Writer::new(Heads { kv, heads: 4 }, 7)
    }

    /// Rows of random lengths, a token each, every one sampled.
    fn single(random: &mut Random, rows: usize) -> HostBatch {
        let mut batch = HostBatch::default();
        for row in 0..rows {
            let (start, table) = (random.below(300), batch.pages.len());
            batch.segments.push(Segment { first: row, len: 1, start, table });
            batch.tokens.push(random.below(1000) as u32);
            batch.sampled.push(row as u32);
            batch.pages.extend((0..(start + 1).div_ceil(16)).map(|_| random.below(999) as u32));
        }
        batch
    }

    #[test]
    fn arrays_lie_apart_at_multiples_of_16_bytes() {
        let mut random = Random(71);
        for _ in 0..200 {
            let mut any = || random.below(50);
            let (tokens, sampled, workers) = (any(), any(), any());
            let (items, segments, tiles) = (any(), any(), any());
            let l = Layout::new(&Counts { tokens, sampled, workers, items, segments, tiles });
            let arrays = [
                (0, tokens),
                (l.positions, tokens),
                (l.table_at, tokens),
                (l.sampled, sampled),
                (l.draws, sampled * Draw::WORDS),
                (l.workers, workers),
                (l.items, items * plan::Item::WORDS),
                (l.segments, segments * 4),
                (l.tiles, tiles * 2),
                (l.tables, 0),
            ];
            for pair in arrays.windows(2) {
                assert!(pair[1].0.is_multiple_of(4) && pair[0].0 + pair[0].1 <= pair[1].0);
            }
        }
    }

    #[test]
    fn a_recorded_step_pads_rows_that_it_has_not() {
        let (mut writer, mut random) = (writer(), Random(72));
        for (count, rows) in [(0, 1), (1, 1), (3, 8), (8, 8), (200, ROWS_MAX)] {
            let host = single(&mut random, count);
            let list = Arc::new(vec![Adjusted { token: 7, seen: 2, bias: -1.5 }]);
            let draw = |row| Draw {
                seed: row as u64 + 1,
                adjusted: if row % 2 == 1 { Arc::clone(&list) } else { Arc::default() },
                mask: (row % 4 == 3).then(|| Arc::new(vec![row as u32, 0x55])),
                ..Draw::best()
            };
            let draws: Vec<_> = (0..count).map(draw).collect();
            let layout = Layout::new(&writer.decode_counts(rows));
            let lists = layout.tables + host.pages.len();
            let mut words = vec![0xdead_beef; lists + extra_words(&draws)];
            let at = (&mut words[..], 1 << 40);
            writer.write((&host, &draws), (&layout, Work::Decode, rows), at);
            let mut word = lists;
            for row in (1..count).step_by(2) {
                let draw = &words[layout.draws + row * Draw::WORDS..];
                assert_eq!(draw[11..14], [1, 4 * word as u32, 1 << 8], "length and address");
                assert_eq!(words[word..][..Adjusted::WORDS], [7, 2, (-1.5_f32).to_bits()]);
                word += Adjusted::WORDS;
                if row % 4 == 3 {
                    assert_eq!(draw[14..16], [4 * word as u32, 1 << 8], "address of the mask");
                    assert_eq!(words[word..][..2], [row as u32, 0x55]);
                    word += 2;
                } else {
                    assert_eq!(draw[14..16], [0, 0], "no mask");
                }
            }
            assert_eq!(words[..count], host.tokens);
            assert!(words[count..rows].iter().all(|&token| token == 0), "a token that exists");
            let positions = &words[layout.positions..][..rows];
            let starts = host.segments.iter().map(|segment| segment.start as u32);
            assert!(positions.iter().copied().take(count).eq(starts));
            assert!(positions[count..].iter().all(|&position| position == PADDING));
            let seeds = words[layout.draws..].chunks(Draw::WORDS).take(rows).map(|draw| draw[4]);
            let expected = (1..=count as u32).chain(std::iter::repeat_n(0, rows - count));
            assert!(seeds.eq(expected));
            let items = words[layout.workers..][..writer.limits().workers()].last().unwrap();
            let tokens: u32 = words[layout.items..]
                .chunks(plan::Item::WORDS)
                .take(*items as usize)
                .map(|item| {
                    let segment = host.segments[item[0] as usize];
                    assert_eq!(
                        (item[4], item[5]),
                        (segment.start as u32 + 1, segment.table as u32)
                    );
                    item[3] - item[2]
                })
                .sum();
            let chunks =
                host.segments.iter().map(|segment| (segment.start as u32 + 1).div_ceil(16));
            // By the plan a head, or two at once, of each row's chunks.
            let all: u32 = chunks.sum();
            assert!(tokens == 2 * all || tokens == all, "{tokens} of {all}");
            assert_eq!(words[layout.tables..lists], host.pages);
        }
    }

    #[test]
    fn chunks_are_cut_into_tiles_that_see_most_first() {
        let mut writer = writer();
        let segment = |first, len, start, table| Segment { first, len, start, table };
        let host = HostBatch {
            tokens: vec![9; 301],
            segments: vec![segment(0, 1, 40, 0), segment(1, 300, 16, 3)],
            pages: (0..23).collect(),
            sampled: vec![0, 300],
        };
        let (work, counts) = writer.counts(&host);
        assert_eq!(work, Work::Prefill { tiles: 4 });
        let layout = Layout::new(&counts);
        let mut words = vec![0; layout.tables + host.pages.len()];
        writer.write((&host, &[]), (&layout, work, 301), (&mut words, 0));
        assert_eq!(words[layout.segments..][..8], [0, 1, 40, 0, 1, 300, 16, 3]);
        assert_eq!(words[layout.tiles..][..8], [1, 2, 1, 1, 1, 0, 0, 0]);
        assert_eq!(words[layout.positions..][300], 315, "16 + 299");
        assert_eq!(words[layout.table_at..][300], 3);
    }

    #[test]
    fn what_a_batch_is_decides_its_attention() {
        let (writer, mut random) = (writer(), Random(73));
        let work = |host: &HostBatch| writer.counts(host).0;
        assert_eq!(work(&single(&mut random, ROWS_MAX)), Work::Decode);
        let many = single(&mut random, ROWS_MAX + 1);
        assert_eq!(work(&many), Work::Prefill { tiles: ROWS_MAX + 1 });
        let kv = KvShape { layers: 1, kv_heads: 1, head_dim: 48, page_tokens: 16 };
        let odd = Writer::new(Heads { kv, heads: 1 }, 7);
        assert_eq!(odd.counts(&many).0, Work::Any);
    }
}
