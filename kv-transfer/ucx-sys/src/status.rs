//! `UCS_PTR_STATUS` and friends: an operation returns null (done), a request, or an error code
//! disguised as a pointer.

use crate::types::{UCS_ERR_LAST, UCS_OK, ucs_status_ptr_t, ucs_status_t};

/// What a non-blocking operation returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Posted {
    /// Done at once, or failed at once, with this status; no callback comes.
    Now(ucs_status_t),
    /// In progress: the callback comes, the request must be freed after it.
    Request(ucs_status_ptr_t),
}

/// Splits what a `_nbx` call returned.
pub fn ptr_status(pointer: ucs_status_ptr_t) -> Posted {
    let address = pointer.addr().cast_signed();
    if address == 0 {
        Posted::Now(UCS_OK)
    } else if address >= isize::from(UCS_ERR_LAST) && address < 0 {
        // The range fits: UCS_ERR_LAST is -100.
        Posted::Now(ucs_status_t::try_from(address).unwrap_or(UCS_ERR_LAST))
    } else {
        Posted::Request(pointer)
    }
}

/// `Ok` or the error status.
///
/// # Errors
/// The status, if it is not `UCS_OK`.
pub const fn status_of(status: ucs_status_t) -> Result<(), ucs_status_t> {
    if status == UCS_OK { Ok(()) } else { Err(status) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::UCS_ERR_IO_ERROR;
    use std::ptr::without_provenance_mut;

    #[test]
    fn pointers_split_as_the_macros_do() {
        let at = |address: isize| without_provenance_mut(address.cast_unsigned());
        assert_eq!(ptr_status(at(0)), Posted::Now(UCS_OK));
        assert_eq!(ptr_status(at(-3)), Posted::Now(UCS_ERR_IO_ERROR));
        assert_eq!(ptr_status(at(-100)), Posted::Now(UCS_ERR_LAST));
        assert_eq!(ptr_status(at(-101)), Posted::Request(at(-101)));
        assert_eq!(ptr_status(at(0x1000)), Posted::Request(at(0x1000)));
    }
}
