//! Raw bindings of the part of UCX's UCP that Tandem uses, loaded at run time.
//!
//! - [`types`] mirrors `ucp/api/ucp.h` of UCX 1.22, names and all, with the layout of every struct
//!   proven at compile time against what bindgen 0.72 gives for that header. UCX only appends
//!   fields and reads or writes only those in a struct's field mask, so one binding serves every
//!   library from [`MIN_VERSION`] on (run on 1.13.1 and 1.22.0).
//! - [`UcxApi`] is a table of function pointers filled by `dlopen`: nothing links to UCX, and a
//!   program starts without it.
//! - C macros and inline functions (`UCS_PTR_IS_ERR`, `ucp_init`) are written out in Rust.
//!
//! Nothing here is safe to call but loading and asking for the version; the safe layer is
//! `kv_transfer::ucx`.
#![expect(unsafe_code, reason = "raw foreign functions; callers are fenced in kv_transfer::ucx")]

mod api;
mod status;
pub mod types;

pub use api::{LoadError, MIN_VERSION, UcxApi};
pub use status::{Posted, ptr_status, status_of};
