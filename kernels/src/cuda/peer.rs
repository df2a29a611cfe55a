//! Other GPUs of this machine: which of them a GPU can write to.
#![expect(unsafe_code, reason = "the driver's API is C")]

use super::device::{Device, failed};
use crate::ops::OpError;
use cudarc::driver::{result, sys};
use std::fmt;

/// How a GPU reaches the memory of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// They are the same.
    Same,
    /// It is a peer.
    Peer,
    /// It is not visible to this process (CUDA_VISIBLE_DEVICES). The driver maps memory there all
    /// the same, if they are peers (`cudaIpcOpenMemHandle` in the CUDA Runtime API says so).
    Unseen,
    /// Not at all.
    Never,
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Same => "one GPU",
            Self::Peer => "peer access",
            Self::Unseen => "its GPU is not visible to this process (see CUDA_VISIBLE_DEVICES)",
            Self::Never => "its GPU and this one have no peer access (nvidia-smi topo -p2p w)",
        })
    }
}

impl Device {
    /// Its name in every process of this host.
    ///
    /// # Errors
    /// [`OpError::Device`].
    pub fn uuid(&self) -> Result<[u8; 16], OpError> {
        let uuid = self.context().uuid().map_err(|e| failed("asking for the GPU's UUID", e))?;
        Ok(uuid.bytes.map(|byte| byte as u8))
    }

    /// Lets kernels and copies here write memory that this process has on `other`.
    ///
    /// # Errors
    /// [`OpError::Device`] if the two have no peer access.
    pub(super) fn enable_peer(&self, other: &Self) -> Result<(), OpError> {
        self.bind()?;
        // SAFETY: both contexts are alive; they stay the process' for good.
        let code = unsafe { sys::cuCtxEnablePeerAccess(other.context().cu_ctx(), 0) };
        match code {
            sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            code => code.result().map_err(|e| failed("opening a peer GPU's memory", e)),
        }
    }

    /// Whether kernels here can write memory of the GPU that is named `uuid`.
    ///
    /// # Errors
    /// [`OpError::Device`].
    pub fn reach(&self, uuid: &[u8; 16]) -> Result<Reach, OpError> {
        if self.uuid()? == *uuid {
            return Ok(Reach::Same);
        }
        let asking = |e| failed("looking for a peer GPU", e);
        for ordinal in 0..result::device::get_count().map_err(asking)? {
            let other = result::device::get(ordinal).map_err(asking)?;
            let name = result::device::get_uuid(other).map_err(asking)?;
            if name.bytes.map(|byte| byte as u8) != *uuid {
                continue;
            }
            let mut can = 0;
            // SAFETY: the place is ours, both devices exist.
            unsafe { sys::cuDeviceCanAccessPeer(&raw mut can, self.context().cu_device(), other) }
                .result()
                .map_err(asking)?;
            return Ok(if can == 0 { Reach::Never } else { Reach::Peer });
        }
        Ok(Reach::Unseen)
    }
}
