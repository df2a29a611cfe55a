//! Kernels: the operations a transformer is made of, over a backend's own buffers.
//!
//! - [`ops`] is the seam: one trait, one method an operation, named arguments. A backend brings its
//!   buffer types; calls enqueue, and nothing but the named uploads and [`ops::Ops::download`]
//!   takes host slices.
//! - [`oracle`] is the scalar reference, as short as the maths; every backend is tested against it.
//! - [`cpu`] is the fast CPU backend, [`cuda`] the one for NVIDIA GPUs.
//!
//! **Invariant:** nothing here knows a model, a server or a wire. Shapes are checked by `assert`,
//! since a wrong one is a bug of the caller and never a condition.

pub mod cpu;
pub mod cuda;
pub mod ops;
pub mod oracle;

#[cfg(test)]
mod parity;
