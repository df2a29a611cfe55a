//! What the driver's management library says (NVML): which processes compute on a GPU, and how two
//! GPUs are linked.
//!
//! A process is on the list while the driver holds anything of its contexts. That can be longer
//! than the process itself lives: a child that it forked keeps the driver's files open. So this,
//! and not the end of the process, says that its kernels write no more.
#![expect(unsafe_code, reason = "NVML's API is C")]

use libloading::Library;
use std::ffi::{CString, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::ptr;
use std::sync::OnceLock;

/// Comes with the driver, by this name in all versions so far.
const NAME: &str = "libnvidia-ml.so.1";

type Code = c_int;
const SUCCESS: Code = 0;
const NOT_SUPPORTED: Code = 3;
const INSUFFICIENT_SIZE: Code = 7;

/// Room in the first list asked for, and what is added to what a longer one then wants, for
/// processes that start in between.
const SPARE: c_uint = 64;
/// A list that grew under every look so far is given up.
const LOOKS: usize = 8;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ProcessInfo {
    pid: c_uint,
    used_memory: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

type DeviceHandle = *mut c_void;
type Init = unsafe extern "C" fn() -> Code;
type ByUuid = unsafe extern "C" fn(*const c_char, *mut DeviceHandle) -> Code;
type P2pStatus = unsafe extern "C" fn(DeviceHandle, DeviceHandle, c_int, *mut c_int) -> Code;
type LinkState = unsafe extern "C" fn(DeviceHandle, c_uint, *mut c_uint) -> Code;
type Processes = unsafe extern "C" fn(DeviceHandle, *mut c_uint, *mut ProcessInfo) -> Code;

/// The library, loaded and initialised; one a process, for good.
struct Nvml {
    by_uuid: ByUuid,
    /// Processes with contexts, and clients of MPS, which are on a list of their own.
    lists: [Processes; 2],
    /// How GPUs are linked; absent where the library does not say.
    links: Option<(P2pStatus, LinkState)>,
    /// Keeps the functions.
    #[expect(dead_code, reason = "held for the functions")]
    library: Library,
}

static NVML: OnceLock<Result<Nvml, String>> = OnceLock::new();

fn nvml() -> Result<&'static Nvml, String> {
    NVML.get_or_init(Nvml::load).as_ref().map_err(Clone::clone)
}

fn failed(doing: &str, code: Code) -> String {
    format!("NVML, {doing}: code {code}")
}

impl Nvml {
    fn load() -> Result<Self, String> {
        let missing = |e: libloading::Error| format!("{NAME}: {e}");
        // SAFETY: it loads a library by its name, whose initialisers are the driver's.
        let library = unsafe { Library::new(NAME) }.map_err(missing)?;
        // SAFETY: the function's type, as nvml.h has it.
        let init = *unsafe { library.get::<Init>(b"nvmlInit_v2\0") }.map_err(missing)?;
        // SAFETY: as above.
        let by_uuid = unsafe { library.get::<ByUuid>(b"nvmlDeviceGetHandleByUUID\0") };
        let by_uuid = *by_uuid.map_err(missing)?;
        // SAFETY: as above.
        let list = |name: &[u8]| unsafe { library.get::<Processes>(name) }.map(|found| *found);
        let lists = [
            list(b"nvmlDeviceGetComputeRunningProcesses_v3\0").map_err(missing)?,
            list(b"nvmlDeviceGetMPSComputeRunningProcesses_v3\0").map_err(missing)?,
        ];
        // SAFETY: as above.
        let p2p_status = unsafe { library.get::<P2pStatus>(b"nvmlDeviceGetP2PStatus\0") };
        // SAFETY: as above.
        let link_state = unsafe { library.get::<LinkState>(b"nvmlDeviceGetNvLinkState\0") };
        let links = p2p_status.ok().zip(link_state.ok()).map(|(p2p, state)| (*p2p, *state));
        // SAFETY: it takes nothing; it may be called at any time.
        match unsafe { init() } {
            SUCCESS => Ok(Self { by_uuid, lists, links, library }),
            code => Err(failed("starting", code)),
        }
    }

    fn device(&self, uuid: &[u8; 16]) -> Result<DeviceHandle, String> {
        let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
        let mut last = SUCCESS;
        // A part of a GPU has a name of another kind.
        for kind in ["GPU", "MIG"] {
            let name = format!("{kind}-{a}-{b}-{c}-{d}-{e}");
            let text = CString::new(name).map_err(|e| e.to_string())?;
            let mut device = ptr::null_mut();
            // SAFETY: the name ends in zero and outlives the call; the place is ours.
            last = unsafe { (self.by_uuid)(text.as_ptr(), &raw mut device) };
            if last == SUCCESS {
                return Ok(device);
            }
        }
        Err(failed("looking for the GPU", last))
    }

    /// `None` where the driver has no such list.
    fn names(
        &self,
        list: Processes,
        device: DeviceHandle,
        pid: u32,
    ) -> Result<Option<bool>, String> {
        let mut room = SPARE;
        let mut processes = Vec::new();
        for _ in 0..LOOKS {
            processes.resize(room as usize, ProcessInfo::default());
            let mut count = room;
            // SAFETY: `processes` has room for `count` entries, of the struct of this version.
            let code = unsafe { list(device, &raw mut count, processes.as_mut_ptr()) };
            match code {
                SUCCESS => {
                    processes.truncate(count as usize);
                    return Ok(Some(processes.iter().any(|process| process.pid == pid)));
                }
                INSUFFICIENT_SIZE => room = count.saturating_add(SPARE),
                NOT_SUPPORTED => return Ok(None),
                code => return Err(failed("listing a GPU's processes", code)),
            }
        }
        Err("NVML: the list of a GPU's processes does not hold still".to_owned())
    }
}

/// Whether process `pid`, as this process' namespace numbers it, computes on the GPU `uuid`.
///
/// # Errors
/// Why NVML cannot say, in words.
pub fn computes(uuid: &[u8; 16], pid: u32) -> Result<bool, String> {
    let nvml = nvml()?;
    let device = nvml.device(uuid)?;
    // Not every driver has the list of MPS; then its clients are on the other.
    let under_mps = nvml.names(nvml.lists[1], device, pid)?;
    let of_its_own = nvml.names(nvml.lists[0], device, pid)?;
    match (under_mps, of_its_own) {
        (None, None) => Err("NVML has no list of a GPU's processes here".to_owned()),
        lists => Ok(lists.0 == Some(true) || lists.1 == Some(true)),
    }
}

/// A GPU's NVLinks, as seen towards another GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NvLinks {
    /// Links that are up, to whatever.
    pub up: u32,
    /// Whether they lead to that other GPU.
    pub reach: bool,
}

/// The NVLinks of the GPU `from`, and whether they lead to the GPU `to`.
///
/// # Errors
/// Why NVML cannot say, in words.
pub fn nvlinks(from: &[u8; 16], to: &[u8; 16]) -> Result<NvLinks, String> {
    /// `NVML_P2P_CAPS_INDEX_NVLINK`, and its answer `NVML_P2P_STATUS_OK`.
    const BY_NVLINK: c_int = 2;
    const OK: c_int = 0;
    /// `NVML_NVLINK_MAX_LINKS`, and a link's state.
    const LINKS: c_uint = 18;
    const UP: c_uint = 1;
    let nvml = nvml()?;
    let (p2p_status, link_state) = nvml.links.ok_or("NVML does not say how GPUs are linked")?;
    let (from, to) = (nvml.device(from)?, nvml.device(to)?);
    let mut status = -1;
    // SAFETY: both handles are NVML's, the place is ours.
    let code = unsafe { p2p_status(from, to, BY_NVLINK, &raw mut status) };
    if code != SUCCESS {
        return Err(failed("asking how two GPUs are linked", code));
    }
    let is_up = |&link: &c_uint| {
        let mut state = 0;
        // SAFETY: as above. A link that is not there is an error code.
        let code = unsafe { link_state(from, link, &raw mut state) };
        code == SUCCESS && state == UP
    };
    Ok(NvLinks { up: (0..LINKS).filter(is_up).count() as u32, reach: status == OK })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::Device;

    #[test]
    fn an_unknown_gpu_is_an_error() {
        assert!(computes(&[0x5a; 16], 1).is_err());
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn cuda_nvml_knows_who_computes() {
        let device = Device::open(0).unwrap();
        let _memory = device.upload(&[1_u8; 1 << 20]).unwrap();
        let uuid = device.uuid().unwrap();
        let own = computes(&uuid, std::process::id());
        // Where processes are numbered in another namespace, NVML names none of this one.
        let host_pids = std::fs::read_link("/proc/self/ns/pid").unwrap()
            == std::path::Path::new("pid:[4026531836]");
        println!("NVML names this process: {own:?}, the host's pids: {host_pids}");
        assert!(own == Ok(true) || !host_pids, "{own:?}");
        assert_eq!(computes(&uuid, u32::MAX), Ok(false));
    }
}
