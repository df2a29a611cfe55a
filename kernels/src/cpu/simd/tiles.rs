//! Tiles, as AMX has them: the sums of 16 rows by 16 outputs grow by up to 64 bytes of inputs each
//! in one instruction.
//!
//! 1. [`Tiles::parts`] shapes this thread's tiles.
//! 2. What it returns multiplies; no sums stay in a tile between two calls.
//! 3. Its drop releases the tiles, and the system need not save them when it switches threads.
//!
//! **Invariant:** an [`Amx`] exists only where the CPU has tiles of bf16 and the system lets this
//! process use them.
//! **Invariant:** a thread has one shape open at a time: a call checks lengths against the shape
//! that the CPU reads memory by.

use super::wide::WIDE;
use half::bf16;
use std::cell::Cell;
use std::marker::PhantomData;

/// Rows of a tile, at most.
pub const TILE: usize = 16;
/// Parts of an f32 that are bf16 and add up to it.
pub const PARTS: usize = 3;
/// Inputs of bf16 in a row of a tile.
pub const HALVES: usize = 32;

/// A word of each of 16 outputs.
type Line = [u32; WIDE];
/// A row's inputs of a step.
pub type Halves = [bf16; HALVES];
/// A step of inputs of a panel: words of two inputs.
pub type PairStep = [Line; TILE];
/// For each part and row, the sums of 16 outputs.
#[repr(align(64))]
pub struct PartSums(pub [[[f32; WIDE]; TILE]; PARTS]);

/// Who multiplies.
#[derive(Clone, Copy, Debug)]
pub enum Tiles {
    /// The CPU.
    #[cfg(target_arch = "x86_64")]
    Amx(Amx),
    /// Plain loops: the reference, to test what surrounds a product.
    Plain,
}

impl Tiles {
    /// For blocks of `rows`.
    pub fn parts(self, rows: usize) -> PartTiles {
        assert!((1..=TILE).contains(&rows), "{rows} rows");
        let (few, all) = ((rows, 64), (TILE, 64));
        PartTiles {
            tiles: self,
            rows,
            _open: Open::new(self, [few, few, few, (0, 0), all, few, few, few]),
        }
    }
}

thread_local! {
    static OPEN: Cell<bool> = const { Cell::new(false) };
}

/// This thread's tiles, in one shape, until it is dropped.
struct Open {
    tiles: Tiles,
    this_thread: PhantomData<*const ()>,
}

impl Open {
    /// `shapes`: rows and bytes of a row, of each tile.
    fn new(tiles: Tiles, shapes: [(usize, usize); 8]) -> Self {
        assert!(!OPEN.replace(true), "tiles are open on this thread");
        match tiles {
            #[cfg(target_arch = "x86_64")]
            Tiles::Amx(amx) => amx.configure(shapes),
            Tiles::Plain => assert!(shapes.iter().all(|shape| shape.0 <= TILE && shape.1 <= 64)),
        }
        Self { tiles, this_thread: PhantomData }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        match self.tiles {
            #[cfg(target_arch = "x86_64")]
            Tiles::Amx(amx) => amx.release(),
            Tiles::Plain => {}
        }
        OPEN.set(false);
    }
}

/// Tiles for products of whole rows.
pub struct PartTiles {
    tiles: Tiles,
    rows: usize,
    _open: Open,
}

impl PartTiles {
    /// Of each part and row, the products of all steps with a panel, summed. `x` is
    /// `[step][part][row]`; of rows that the shape has not, `sums` stay what they were.
    #[inline(always)]
    pub fn multiply(&self, x: &[Halves], weights: &[PairStep], sums: &mut PartSums) {
        let step = PARTS * self.rows;
        assert!(x.len() == weights.len() * step && !x.is_empty(), "{} by {step}", x.len());
        match self.tiles {
            #[cfg(target_arch = "x86_64")]
            Tiles::Amx(amx) => amx.parts((x, self.rows), weights, sums),
            Tiles::Plain => plain::parts((x, self.rows), weights, sums),
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::Amx;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Halves, PairStep, PartSums};
    use crate::cpu::gemm::AHEAD;
    use std::arch::asm;
    use std::arch::x86_64::__cpuid_count;
    use std::sync::OnceLock;

    /// Proof that the CPU has AMX with bf16, and that the system lets us use it.
    #[derive(Clone, Copy, Debug)]
    pub struct Amx(());

    /// What `ldtilecfg` reads.
    #[repr(C, align(64))]
    struct Config {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }
    const _: () = assert!(size_of::<Config>() == 64);

    impl Amx {
        /// Asks the CPU and the system, once a process. The CPU must have leaf 7.
        pub fn detect() -> Option<Self> {
            static FOUND: OnceLock<bool> = OnceLock::new();
            // Bits 22 and 24 of `edx`: bf16, tiles.
            let has = || __cpuid_count(7, 0).edx & 0x0140_0000 == 0x0140_0000;
            FOUND.get_or_init(|| has() && permitted()).then_some(Self(()))
        }

        pub(super) fn configure(self, shapes: [(usize, usize); 8]) {
            let mut config = Config {
                palette: 1,
                start_row: 0,
                reserved: [0; 14],
                row_bytes: [0; 16],
                rows: [0; 16],
            };
            for (tile, (rows, bytes)) in shapes.into_iter().enumerate() {
                (config.rows[tile], config.row_bytes[tile]) = (rows as u8, bytes as u16);
            }
            // SAFETY: AMX is proven; `config` is 64 readable bytes in the form of palette 1.
            unsafe {
                asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, preserves_flags, readonly));
            }
        }

        pub(super) fn release(self) {
            // SAFETY: AMX is proven; no tile holds anything between two calls.
            unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) }
        }

        /// Steps, at least one, as many of `x` as of `weights`.
        #[inline(always)]
        pub(super) fn parts(
            self,
            (x, rows): (&[Halves], usize),
            weights: &[PairStep],
            sums: &mut PartSums,
        ) {
            let part = rows * size_of::<Halves>();
            // SAFETY: AMX is proven. A turn reads one step of `x`, three parts of the `rows` that
            // the tiles are open for, and one of `weights`; the caller has checked that there are
            // as many. `sums` holds three tiles of any shape. No tile is in use. A prefetch is a
            // hint.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "2:",
                    "tileloadd tmm4, [{weights} + {line}*1]",
                    "tileloadd tmm5, [{x} + {line}*1]",
                    "add {x}, {part}",
                    "tileloadd tmm6, [{x} + {line}*1]",
                    "add {x}, {part}",
                    "tileloadd tmm7, [{x} + {line}*1]",
                    "add {x}, {part}",
                    "tdpbf16ps tmm0, tmm5, tmm4",
                    "tdpbf16ps tmm1, tmm6, tmm4",
                    "tdpbf16ps tmm2, tmm7, tmm4",
                    ".set .Lline, 0",
                    ".rept 16",
                    "prefetcht0 [{weights} + {ahead} + .Lline]",
                    ".set .Lline, .Lline + 64",
                    ".endr",
                    "add {weights}, 1024",
                    "dec {steps}",
                    "jnz 2b",
                    "tilestored [{sums} + {line}*1], tmm0",
                    "tilestored [{sums} + {line}*1 + 1024], tmm1",
                    "tilestored [{sums} + {line}*1 + 2048], tmm2",
                    weights = inout(reg) weights.as_ptr() => _,
                    x = inout(reg) x.as_ptr() => _,
                    steps = inout(reg) weights.len() => _,
                    part = in(reg) part,
                    sums = in(reg) std::ptr::from_mut(sums),
                    line = in(reg) 64_usize,
                    ahead = const AHEAD,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    }

    /// Asks the system for the state that tiles need, for all threads of this process. It refuses
    /// where it does not know of tiles, or where a signal stack is too small for them.
    #[cfg(target_os = "linux")]
    fn permitted() -> bool {
        const ARCH_PRCTL: isize = 158;
        const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
        const XFEATURE_XTILEDATA: usize = 18;
        let answer: isize;
        // SAFETY: this call takes two numbers and touches no memory of ours; the registers that a
        // system call changes are named.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => answer,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        answer == 0
    }

    #[cfg(not(target_os = "linux"))]
    fn permitted() -> bool {
        false
    }
}

mod plain {
    use super::{Halves, Line, PARTS, PairStep, PartSums};
    use half::bf16;

    fn halves(word: u32) -> [bf16; 2] {
        [word as u16, (word >> 16) as u16].map(bf16::from_bits)
    }

    /// A row times 16 outputs.
    fn add(sums: &mut [f32; 16], x: &[bf16], weights: &[Line]) {
        for (output, sum) in sums.iter_mut().enumerate() {
            for (pair, line) in x.as_chunks::<2>().0.iter().zip(weights) {
                let halves = pair.iter().zip(halves(line[output]));
                halves.for_each(|(x, w)| *sum += x.to_f32() * w.to_f32());
            }
        }
    }

    pub fn parts((x, rows): (&[Halves], usize), weights: &[PairStep], sums: &mut PartSums) {
        sums.0.iter_mut().for_each(|part| part[..rows].fill([0.0; 16]));
        for (x, weights) in x.chunks_exact(PARTS * rows).zip(weights) {
            for (x, sums) in x.chunks_exact(rows).zip(&mut sums.0) {
                x.iter().zip(sums).for_each(|(x, sums)| add(sums, x, weights));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "tiles are open")]
    fn one_shape_is_open_at_a_time() {
        let _first = Tiles::Plain.parts(16);
        let _second = Tiles::Plain.parts(8);
    }
}
