//! `silu(gate) * up`, `silu(x) = x / (1 + e^-x)`.

use super::simd::{Kernel, LANES, Simd};

/// Of each row `[gate, up]` of `gate_up` into a row of `out`, `width` long.
pub struct SiluMul<'a> {
    pub gate_up: &'a [f32],
    pub width: usize,
    pub out: &'a mut [f32],
}

impl Kernel for SiluMul<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let rows = self.gate_up.chunks_exact(2 * self.width);
        for (row, out) in rows.zip(self.out.chunks_exact_mut(self.width)) {
            let (gate, up) = row.split_at(self.width);
            let ((gates, gate), (ups, up)) = (gate.as_chunks(), up.as_chunks());
            let (outs, out) = out.as_chunks_mut();
            for ((gate, up), out) in gates.iter().zip(ups).zip(outs) {
                lanes(simd, gate, up, out);
            }
            let mut tail = [[0.0; LANES]; 3];
            tail[0][..gate.len()].copy_from_slice(gate);
            tail[1][..up.len()].copy_from_slice(up);
            let [gate, up, result] = &mut tail;
            lanes(simd, gate, up, result);
            out.copy_from_slice(&result[..out.len()]);
        }
    }
}

#[inline(always)]
fn lanes<S: Simd>(simd: S, gate: &[f32; LANES], up: &[f32; LANES], out: &mut [f32; LANES]) {
    let gate = simd.load(gate);
    let one = simd.splat(1.0);
    let sigmoid = simd.div(one, simd.add(one, simd.exp(simd.sub(simd.splat(0.0), gate))));
    simd.store(simd.mul(simd.mul(gate, sigmoid), simd.load(up)), out);
}
