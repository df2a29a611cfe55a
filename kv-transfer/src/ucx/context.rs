//! The library and the process's context.

use super::unavailable;
use crate::TransferError;
use kernels::cuda::Device;
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};
use ucx_sys::types::*;
use ucx_sys::{MIN_VERSION, UcxApi, status_of};

/// The one UCX of this process. UCX has global state and two copies of it would find each other's
/// libraries by name, so a process loads one and keeps it.
static LOADED: Mutex<Option<(Option<PathBuf>, &'static UcxApi)>> = Mutex::new(None);

/// UCX, loaded and initialised. Clones share the context.
#[derive(Clone)]
pub struct Ucx(Arc<Context>);

pub(super) struct Context {
    pub(super) api: &'static UcxApi,
    pub(super) handle: ucp_context_h,
    /// The GPU whose memory it moves, if it does.
    device: Option<Device>,
}

// SAFETY: the context is made for use by workers of several threads (`mt_workers_shared`), and UCX
// then locks it itself.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Ucx {
    /// Loads `libucp.so.0`, from `directory` if given, and initialises it.
    ///
    /// # Errors
    /// [`TransferError::Unavailable`] if there is none, it is too old, or it has no shared memory.
    pub fn open(directory: Option<&Path>) -> Result<Self, TransferError> {
        Context::new(load(directory)?, None).map(|context| Self(Arc::new(context)))
    }

    /// The same for pools in the memory of `device`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_on(device: &Device, directory: Option<&Path>) -> Result<Self, TransferError> {
        let context = Context::new(load(directory)?, Some(device.clone()))?;
        Ok(Self(Arc::new(context)))
    }

    /// The library and its version, for logs.
    pub fn version(&self) -> String {
        let (major, minor, release) = self.0.api.version();
        format!("UCX {major}.{minor}.{release} ({})", self.0.api.library())
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.0
    }
}

fn load(directory: Option<&Path>) -> Result<&'static UcxApi, TransferError> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((from, api)) = &*loaded {
        return if from.as_deref() == directory {
            Ok(*api)
        } else {
            Err(unavailable(format!(
                "this process already uses {}; one process has one UCX",
                api.library()
            )))
        };
    }
    let api = UcxApi::load(directory).map_err(|e| {
        unavailable(format!("{e}; install UCX (Debian: apt install libucx0) or name its folder"))
    })?;
    // Leaked: UCX does not expect to be unloaded.
    let api: &'static UcxApi = Box::leak(Box::new(api));
    // SAFETY: takes away the signal handlers that UCX's constructor may have installed; ours, and
    // the runtime's, are restored.
    unsafe { (api.ucs_debug_disable_signals)() };
    // SAFETY: both strings end in NUL, and UCX copies them. A refusal would leave its log chatty.
    let quiet =
        unsafe { (api.ucs_global_opts_set_value)(c"LOG_LEVEL".as_ptr(), c"fatal".as_ptr()) };
    if quiet != UCS_OK {
        tracing::debug!(reason = describe(api, quiet), "UCX keeps its own log level");
    }
    *loaded = Some((directory.map(Path::to_owned), api));
    Ok(api)
}

impl Context {
    fn new(api: &'static UcxApi, device: Option<Device>) -> Result<Self, TransferError> {
        let config = Config::read(api)?;
        // Not cma: UCX would prefer it even where it can store directly, at a third of the speed.
        let host = "posix,self";
        let transports = match &device {
            None => host.to_owned(),
            Some(device) => {
                device.bind().map_err(|e| unavailable(e.to_string()))?;
                format!("cuda_ipc,cuda_copy,{host}")
            }
        };
        config.set("TLS", &transports)?;
        // Registrations are few and kept by us. UCX's own cache of them wants its hooks, and
        // without them refuses pools on GPUs.
        config.set("RCACHE_ENABLE", "n")?;
        let params = ucp_params_t {
            field_mask: UCP_PARAM_FIELD_FEATURES
                | UCP_PARAM_FIELD_MT_WORKERS_SHARED
                | UCP_PARAM_FIELD_ESTIMATED_NUM_EPS,
            features: UCP_FEATURE_RMA,
            mt_workers_shared: 1,
            estimated_num_eps: 1,
            ..Default::default()
        };
        let mut handle = ptr::null_mut();
        let (major, minor) = MIN_VERSION;
        // SAFETY: parameters and settings outlive the call, and the place for the handle is ours.
        let status = unsafe {
            (api.ucp_init_version)(major, minor, &raw const params, config.handle, &raw mut handle)
        };
        check(api, status, &format!("initialising UCX with {transports}"))?;
        Ok(Self { api, handle, device })
    }

    /// Has this thread use the GPU, which UCX expects of its callers.
    pub(super) fn enter(&self) -> Result<(), TransferError> {
        let entered = self.device.as_ref().map_or(Ok(()), Device::bind);
        entered.map_err(|e| TransferError::broken(&e))
    }

    /// A status in words.
    pub(super) fn describe(&self, status: ucs_status_t) -> String {
        describe(self.api, status)
    }

    /// An error that says what failed, unless it did not.
    pub(super) fn check(&self, status: ucs_status_t, doing: &str) -> Result<(), TransferError> {
        check(self.api, status, doing)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Without the GPU, UCX cleans up what it can.
        let _ = self.enter();
        // SAFETY: workers and memory hold the context, so they are gone.
        unsafe { (self.api.ucp_cleanup)(self.handle) };
    }
}

/// Settings on their way into a context.
struct Config {
    api: &'static UcxApi,
    handle: ucp_config_h,
}

impl Config {
    fn read(api: &'static UcxApi) -> Result<Self, TransferError> {
        let mut handle = ptr::null_mut();
        // SAFETY: null prefix and file are the documented defaults; the place is ours.
        let status = unsafe { (api.ucp_config_read)(ptr::null(), ptr::null(), &raw mut handle) };
        check(api, status, "reading UCX's settings")?;
        Ok(Self { api, handle })
    }

    fn set(&self, name: &str, value: &str) -> Result<(), TransferError> {
        let text = |text: &str| CString::new(text).expect("setting names and values have no NUL");
        let (key, setting) = (text(name), text(value));
        // SAFETY: the handle is alive; UCX copies the strings.
        let status =
            unsafe { (self.api.ucp_config_modify)(self.handle, key.as_ptr(), setting.as_ptr()) };
        check(self.api, status, &format!("setting UCX's {name} to {value}"))
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        // SAFETY: made by `ucp_config_read`, freed once.
        unsafe { (self.api.ucp_config_release)(self.handle) };
    }
}

fn describe(api: &UcxApi, status: ucs_status_t) -> String {
    // SAFETY: any status has a static string.
    let text = unsafe { CStr::from_ptr((api.ucs_status_string)(status)) };
    text.to_string_lossy().into_owned()
}

fn check(api: &UcxApi, status: ucs_status_t, doing: &str) -> Result<(), TransferError> {
    status_of(status).map_err(|status| unavailable(format!("{doing}: {}", describe(api, status))))
}
