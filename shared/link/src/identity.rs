//! Who this process is, with a fresh epoch.

use shared::ids::{Epoch, ServerId};
use shared::wire::handshake::{Identity, Role};
use std::io;

/// The identity of this incarnation. The epoch is drawn here, so call it once a start.
///
/// # Errors
/// If the kernel gives no random bytes.
pub fn draw(role: Role, id: ServerId) -> io::Result<Identity> {
    Ok(Identity { role, id, epoch: Epoch::new(getrandom::u64()?) })
}

/// Random bytes for a nonce.
pub(crate) fn nonce() -> io::Result<[u8; 16]> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce)?;
    Ok(nonce)
}
