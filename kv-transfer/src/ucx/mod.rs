//! UCX over shared memory: the source stores straight into the target's pool. This is the fence:
//! all `unsafe` of the crate is in this folder.
//!
//! 0. [`leave_libc_alone`], called before the process has threads, keeps UCX from patching libc;
//!    [`end_process`] keeps it from cleaning up beside threads that are in it.
//! 1. [`Ucx::open`] loads `libucp` and makes the process's context: transports `posix,self` only,
//!    error mode none (with peer error mode UCX refuses shared memory), no signal handlers.
//! 2. A target's pool lies in memory that UCX allocates ([`Ucx::shared_memory`], in `/dev/shm`,
//!    unlinked at once, so that nothing stays behind whoever is killed; what one left that was
//!    killed in that moment goes at the next start); a source's pool is ordinary memory
//!    ([`private_memory`]). Either gives the memory once, for the pool, and keeps a [`Region`] of
//!    it for the transport.
//! 3. Accept: the offer has the worker's address, the pool's remote key and a nonce. Connect: one
//!    worker, endpoint and unpacked key a peer; it refuses unless UCX maps the pool here, since
//!    UCX would *emulate* puts otherwise, slowly, and may abort the survivor of a peer's death. It
//!    puts the nonce and its own answer into a probe slot behind the pool, and the target confirms
//!    by reading both there.
//! 4. Puts are stores by this thread; flush is a fence. Frozen or dead peers look alike and harm
//!    nobody: the memory stays mapped. Noticing them is the control connection's work.
//! 5. Closing destroys key, endpoint and worker in this order, which unmaps the peer's pool. The
//!    target cannot take a mapping back, so revoking gives [`crate::Proof::ProcessEnd`].
//! 6. A pool on a GPU is registered where it is ([`Region::on_device`]), in a context that has
//!    `cuda_ipc` as well; a put is a whole run of pages then, since each costs the CPU some
//!    microseconds.
#![expect(unsafe_code, reason = "the UCX fence: foreign handles and memory that peers write")]

mod hooks;
mod end;
mod leftovers;
mod context;
mod memory;
mod device;
mod worker;
mod endpoint;
mod source;
mod target;

pub use context::Ucx;
pub use end::end_process;
pub use hooks::leave_libc_alone;
pub use memory::{Region, private_memory};
pub use source::UcxSource;
pub use target::UcxTarget;

use crate::{Kind, TransferError};

const NAME: &str = Kind::Ucx.name();

fn unavailable(reason: impl Into<String>) -> TransferError {
    TransferError::Unavailable { transport: NAME, reason: reason.into() }
}

fn refused(reason: impl Into<String>) -> TransferError {
    TransferError::Refused { transport: NAME, reason: reason.into() }
}
