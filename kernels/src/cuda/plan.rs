//! The host's half of split-KV decode attention: cuts all (row, head group, strip) triples into
//! equal shares, one for each worker of the kernel (`cuda/decode_attention.cu`).
//!
//! 1. [`Plan::new`] reserves for the largest batch; nothing is allocated after it.
//! 2. [`Plan::update`], once a step, chooses the [`Mode`] and writes [`Plan::items`] and
//!    [`Plan::workers`]; both are copied to the device before the step's kernels are launched, and
//!    hold for all its layers.
//!
//! A chunk is 16 tokens; a strip is neighbouring chunks of one row, one for each warp that works on
//! a head. Strips are laid end to end in the order row, head group, strip, and worker `w` takes the
//! `w`-th of equal shares, so every worker reads the same number of bytes whatever the lengths are.
//! A share that ends inside a row leaves a piece; the worker that is last done with a row's pieces
//! merges them. Pieces cost time, so a share may be up to 1/24 larger where that makes fewer.

/// Tokens of a chunk.
pub const CHUNK_TOKENS: u32 = 16;
/// Warps of a block.
const WARPS: u32 = 8;

/// One worker's part of one row and head group, as the kernel reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Item {
    /// Row of the batch.
    pub row: u32,
    /// First kv head of the group.
    pub head: u32,
    /// First chunk.
    pub chunk_begin: u32,
    /// One past the last chunk.
    pub chunk_end: u32,
    /// Tokens of the row, the newest included.
    pub length: u32,
    /// Where the row's page table begins.
    pub table: u32,
    /// First of the slots for partial results of this row and head group; 0 and unused when
    /// `pieces` is 1.
    pub first_slot: u32,
    /// Pieces of this row and head group.
    pub pieces: u16,
    /// Which of them this is; its partial result goes to slot `first_slot + piece`.
    pub piece: u16,
}

impl Item {
    /// Of an item.
    pub const WORDS: usize = 8;

    /// As the kernel reads it.
    pub fn words(&self) -> [u32; Self::WORDS] {
        let pieces = u32::from(self.pieces) | u32::from(self.piece) << 16;
        let range = (self.chunk_begin, self.chunk_end);
        [self.row, self.head, range.0, range.1, self.length, self.table, self.first_slot, pieces]
    }
}
const _: () = assert!(size_of::<Item>() == 32, "the kernel reads two int4");

/// How a block's 8 warps are shared out.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One worker: 2 heads, 4 warps each. For many rows.
    TwoHeads = 0,
    /// One worker: 1 head, 8 warps. For few rows, which are cut.
    OneHead = 1,
    /// Two workers: 1 head, 4 warps. For few short rows, and where the kv heads do not pair up.
    Halves = 2,
}

impl Mode {
    /// Heads that a worker works on at once.
    pub const fn heads(self) -> u32 {
        match self {
            Self::TwoHeads => 2,
            Self::OneHead | Self::Halves => 1,
        }
    }
    /// Warps that share a head; also chunks of a strip.
    pub const fn ways(self) -> u32 {
        match self {
            Self::OneHead => 8,
            Self::TwoHeads | Self::Halves => 4,
        }
    }
    /// Workers of `blocks` blocks.
    pub const fn workers(self, blocks: u32) -> u32 {
        blocks * (WARPS / (self.heads() * self.ways()))
    }
}

/// What a plan is made for, and how large the kernel's buffers must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Blocks of the launch: multiprocessors.
    pub blocks: u32,
    /// Key/value heads.
    pub kv_heads: u32,
    /// Rows of the largest batch.
    pub rows: u32,
}

impl Limits {
    /// Items at most: one a row and head, and one more where a share ends.
    pub const fn items(&self) -> usize {
        (self.rows * self.kv_heads + 2 * self.blocks) as usize
    }
    /// Length of [`Plan::workers`].
    pub const fn workers(&self) -> usize {
        2 * self.blocks as usize + 2
    }
    /// Partial results at most, each of one kv head: `group * head_dim` floats in `partials` and
    /// `group` pairs in `partial_sums`. A cut makes at most two pieces.
    pub const fn partials(&self) -> usize {
        4 * self.blocks as usize
    }
    /// Length of `arrived`, all 0 before the first launch.
    pub const fn arrived(&self) -> usize {
        (self.rows * self.kv_heads) as usize
    }
}

/// Dynamic shared memory of a block, in bytes, with rings of `stages` slots.
pub const fn shared_bytes(head_dim: usize, group: usize, stages: usize) -> usize {
    WARPS as usize * (stages * 64 * head_dim + group * (4 * head_dim + 8) + 4)
}

/// The kernel's `STAGES` for a device whose blocks have at most `shared_max` bytes: 24 KiB a warp
/// in flight where they fit; `None` where not even two slots do.
pub fn stages(head_dim: usize, group: usize, shared_max: usize) -> Option<usize> {
    let wanted = 384 / head_dim;
    (2..=wanted).rev().find(|&n| shared_bytes(head_dim, group, n) <= shared_max)
}

/// A step's plan.
#[derive(Debug)]
pub struct Plan {
    limits: Limits,
    mode: Mode,
    items: Vec<Item>,
    workers: Vec<u32>,
    strips: Vec<u32>, // of each row
    slots: u32,
}

impl Plan {
    /// An empty plan.
    pub fn new(limits: Limits) -> Self {
        assert!(limits.blocks > 0 && limits.kv_heads > 0, "a plan needs blocks and heads");
        let mut plan = Self {
            limits,
            mode: Mode::OneHead,
            items: Vec::with_capacity(limits.items()),
            workers: Vec::with_capacity(limits.workers()),
            strips: Vec::with_capacity(limits.rows as usize),
            slots: 0,
        };
        plan.update(&[]);
        plan
    }

    /// Plans a batch: tokens of each row, the newest included; 0 for a padded row, which gets no
    /// item.
    pub fn update(&mut self, lengths: &[u32]) {
        self.update_as(self.choose(lengths), lengths);
    }

    /// [`Plan::update`] in a given mode.
    pub fn update_as(&mut self, mode: Mode, lengths: &[u32]) {
        assert!(lengths.len() <= self.limits.rows as usize, "more rows than reserved");
        assert_eq!(self.limits.kv_heads % mode.heads(), 0, "kv heads must pair up");
        self.mode = mode;
        self.strips.clear();
        let strip_tokens = CHUNK_TOKENS * mode.ways();
        self.strips.extend(lengths.iter().map(|length| length.div_ceil(strip_tokens)));
        let groups = self.limits.kv_heads / mode.heads();
        let total = self.strips.iter().sum::<u32>() * groups;
        let least = total.div_ceil(mode.workers(self.limits.blocks)).max(1);
        self.lay_out(lengths, self.best_share(groups, least));
    }

    /// One worker's part after another.
    pub fn items(&self) -> &[Item] {
        &self.items
    }
    /// The mode, then the first item of each worker, then the number of items up to the end.
    pub fn workers(&self) -> &[u32] {
        &self.workers
    }
    /// The mode that was chosen.
    #[cfg(test)]
    pub const fn mode(&self) -> Mode {
        self.mode
    }
    /// Slots in use; each holds a partial result for each head of a worker.
    #[cfg(test)]
    pub const fn slots(&self) -> u32 {
        self.slots
    }

    /// The fastest mode, by what `bench/gpu/decode_attention.cu` measured on an H100. Merging is
    /// what tells: a piece costs the warps of its head a trip to L2 and back, so where rows are
    /// cut, 8 warps a head, which halve the pieces, win by up to 10 %; where none is, 2 heads a
    /// worker.
    fn choose(&self, lengths: &[u32]) -> Mode {
        let (blocks, kv_heads) = (self.limits.blocks, self.limits.kv_heads);
        let (mut rows, mut strips, mut longest) = (0, 0, 0);
        for &length in lengths {
            let here = length.div_ceil(CHUNK_TOKENS * Mode::TwoHeads.ways());
            rows += u32::from(here > 0);
            strips += here;
            longest = longest.max(here);
        }
        // Every strip can have a worker of its own, and at most 8 are merged.
        if longest <= 8 && strips * kv_heads <= Mode::Halves.workers(blocks) {
            return Mode::Halves;
        }
        let total = (strips * kv_heads).div_ceil(2);
        let share = total.div_ceil(blocks);
        let pieces = 2 * total.div_ceil(share) / (rows * kv_heads);
        if pieces >= 2 || longest.div_ceil(share) > 8 {
            Mode::OneHead
        } else if kv_heads.is_multiple_of(2) {
            Mode::TwoHeads
        } else {
            Mode::Halves
        }
    }

    /// The share in `least..=least * 25 / 24` that makes the fewest cuts; the smallest of several.
    fn best_share(&self, groups: u32, least: u32) -> u32 {
        (least..=least + least / 24)
            .step_by((least / 64).max(1) as usize)
            .min_by_key(|&share| self.cuts(groups, share))
            .unwrap_or(least)
    }

    /// How many shares end inside a row and head group.
    fn cuts(&self, groups: u32, share: u32) -> u32 {
        let (mut cuts, mut begin, mut cut) = (0, 0, share);
        for &strips in &self.strips {
            let end = begin + strips * groups;
            while cut < end {
                cuts += u32::from(!(cut - begin).is_multiple_of(strips));
                cut += share;
            }
            begin = end;
        }
        cuts
    }

    fn lay_out(&mut self, lengths: &[u32], share: u32) {
        let (heads, ways) = (self.mode.heads(), self.mode.ways());
        self.items.clear();
        self.workers.clear();
        self.workers.extend([self.mode as u32, 0]);
        self.slots = 0;
        let mut room = share; // strips that the present worker can still take
        for (row, (&length, &strips)) in (0u32..).zip(lengths.iter().zip(&self.strips)) {
            if strips == 0 {
                continue;
            }
            let chunks = length.div_ceil(CHUNK_TOKENS);
            for head in (0..self.limits.kv_heads).step_by(heads as usize) {
                let pieces = if room == 0 {
                    strips.div_ceil(share)
                } else {
                    1 + strips.saturating_sub(room).div_ceil(share)
                };
                let first_slot = if pieces > 1 { self.slots } else { 0 };
                let mut strip = 0;
                for piece in 0..pieces {
                    if room == 0 {
                        self.workers.push(self.items.len() as u32);
                        room = share;
                    }
                    let take = room.min(strips - strip);
                    self.items.push(Item {
                        row,
                        head,
                        chunk_begin: strip * ways,
                        chunk_end: chunks.min((strip + take) * ways),
                        length,
                        table: 0,
                        first_slot,
                        pieces: pieces as u16,
                        piece: piece as u16,
                    });
                    strip += take;
                    room -= take;
                }
                if pieces > 1 {
                    self.slots += pieces;
                }
            }
        }
        self.workers.resize(self.limits.workers(), self.items.len() as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// xorshift64*.
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: u32) -> u32 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            ((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % u64::from(end)) as u32
        }
    }

    /// Each worker's items.
    fn shares(plan: &Plan, limits: Limits) -> Vec<&[Item]> {
        let workers = plan.mode().workers(limits.blocks) as usize;
        let first = &plan.workers()[1..];
        (0..workers).map(|w| &plan.items()[first[w] as usize..first[w + 1] as usize]).collect()
    }

    fn check_cover(plan: &Plan, limits: Limits, lengths: &[u32]) {
        let mut next = vec![0; lengths.len() * limits.kv_heads as usize];
        for item in plan.items() {
            let length = lengths[item.row as usize];
            assert_eq!(item.length, length);
            assert!(item.chunk_begin < item.chunk_end);
            for head in item.head..item.head + plan.mode().heads() {
                let at = &mut next[(item.row * limits.kv_heads + head) as usize];
                assert_eq!(*at, item.chunk_begin, "gap or overlap");
                *at = item.chunk_end;
            }
        }
        for (i, end) in next.iter().enumerate() {
            assert_eq!(*end, lengths[i / limits.kv_heads as usize].div_ceil(CHUNK_TOKENS));
        }
    }

    fn check_balance(plan: &Plan, limits: Limits, lengths: &[u32]) {
        let (ways, heads) = (plan.mode().ways(), plan.mode().heads());
        let strips = |item: &Item| (item.chunk_end - item.chunk_begin).div_ceil(ways);
        let total: u32 = lengths
            .iter()
            .map(|l| l.div_ceil(CHUNK_TOKENS * ways) * (limits.kv_heads / heads))
            .sum();
        let least = total.div_ceil(plan.mode().workers(limits.blocks)).max(1);
        let of_worker: Vec<u32> =
            shares(plan, limits).iter().map(|items| items.iter().map(strips).sum()).collect();
        assert_eq!(of_worker.iter().sum::<u32>(), total, "a worker is missing");
        assert!(*of_worker.iter().max().unwrap() <= least + least / 24);
    }

    fn check_slots(plan: &Plan, limits: Limits) {
        let mut used = vec![0; plan.slots() as usize];
        let mut groups = std::collections::HashMap::<(u32, u32), Vec<Item>>::new();
        for item in plan.items() {
            groups.entry((item.row, item.head)).or_default().push(*item);
        }
        for items in groups.values() {
            for (i, item) in (0..).zip(items) {
                assert_eq!(item.pieces as usize, items.len());
                assert_eq!(u32::from(item.piece), i);
                if item.pieces > 1 {
                    used[(item.first_slot + i) as usize] += 1;
                }
            }
        }
        assert!(used.iter().all(|&n| n == 1), "each slot has one owner");
        assert!((plan.slots() * plan.mode().heads()) as usize <= limits.partials());
        assert!(plan.items().len() <= limits.items());
        assert_eq!(plan.workers().len(), limits.workers());
    }

    #[test]
    fn any_batch_is_covered_once_in_even_shares() {
        let mut random = Random(20_261_124);
        for round in 0..600 {
            let limits = Limits {
                blocks: [132, 108, 1, 7, 148][random.below(5) as usize],
                kv_heads: [8, 1, 2, 3, 4, 5][random.below(6) as usize],
                rows: 300,
            };
            let top = [40, 600, 5000, 131_072][random.below(4) as usize];
            let rows = random.below(if round % 10 == 0 { 300 } else { 40 });
            let lengths: Vec<u32> = (0..rows)
                .map(|_| if random.below(8) == 0 { 0 } else { 1 + random.below(top) })
                .collect();
            let mut plan = Plan::new(limits);
            plan.update(&lengths);
            let chosen = plan.mode();
            for mode in [chosen, Mode::TwoHeads, Mode::OneHead, Mode::Halves] {
                if limits.kv_heads.is_multiple_of(mode.heads()) {
                    plan.update_as(mode, &lengths);
                    check_cover(&plan, limits, &lengths);
                    check_balance(&plan, limits, &lengths);
                    check_slots(&plan, limits);
                }
            }
        }
    }

    #[test]
    fn a_whole_batch_of_equal_rows_needs_no_merge() {
        let mut plan = Plan::new(Limits { blocks: 132, kv_heads: 8, rows: 64 });
        plan.update_as(Mode::TwoHeads, &[4096; 64]);
        assert_eq!((plan.items().len(), plan.slots()), (256, 0), "128 shares of two items");
    }

    #[test]
    fn the_mode_is_the_one_measured_fastest() {
        let limits = Limits { blocks: 132, kv_heads: 8, rows: 256 };
        let mode = |lengths: &[u32]| {
            let mut plan = Plan::new(limits);
            plan.update(lengths);
            plan.mode()
        };
        for (context, rows, fastest) in [
            (512, 1, Mode::Halves),
            (1024, 1, Mode::OneHead),
            (4096, 1, Mode::OneHead),
            (512, 4, Mode::Halves),
            (512, 8, Mode::OneHead),
            (4096, 8, Mode::OneHead),
            (512, 16, Mode::OneHead),
            (2048, 16, Mode::OneHead),
            (512, 32, Mode::TwoHeads),
            (2048, 32, Mode::TwoHeads),
            (512, 64, Mode::TwoHeads),
            (4096, 64, Mode::TwoHeads),
            (512, 256, Mode::TwoHeads),
        ] {
            assert_eq!(mode(&vec![context; rows]), fastest, "{rows} rows of {context}");
        }
        let mut long = [200; 64];
        long[9] = 100_000;
        assert_eq!(mode(&long), Mode::OneHead, "one long row makes the pieces");
    }

    #[test]
    fn nothing_is_allocated_after_the_start() {
        let limits = Limits { blocks: 132, kv_heads: 8, rows: 256 };
        let mut plan = Plan::new(limits);
        let room = |p: &Plan| (p.items.capacity(), p.workers.capacity(), p.strips.capacity());
        let before = room(&plan);
        for mode in [Mode::TwoHeads, Mode::OneHead, Mode::Halves] {
            let lengths: Vec<u32> = (0..256).map(|i| 1 + i * i % 7919).collect();
            plan.update_as(mode, &lengths);
            assert_eq!(room(&plan), before);
        }
    }

    #[test]
    fn rings_fit_the_device() {
        assert_eq!(stages(128, 8, 232_448), Some(3));
        assert_eq!(stages(64, 8, 232_448), Some(6));
        assert_eq!(stages(128, 8, 166_912), Some(2), "compute capability 8.0");
        assert_eq!(stages(128, 4, 101_376), None, "8.6, 8.9 and 12.0");
        assert_eq!(stages(64, 4, 101_376), Some(2));
    }
}
