//! Finding, loading and checking `libucp`.

use crate::types::*;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{c_char, c_uint, c_void};
use std::path::{Path, PathBuf};

/// The oldest UCX that works, (major, minor); also the API version asked of `ucp_init_version`.
pub const MIN_VERSION: (c_uint, c_uint) = (1, 13);

/// Why UCX cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No library could be opened.
    #[error("{}", .tried.join("; "))]
    NotFound {
        /// Each name tried and what the loader said.
        tried: Vec<String>,
    },
    /// A library opened but lacks a function: it is too old, or not UCX.
    #[error("{library} has no {symbol}: want UCX {}.{} or newer", MIN_VERSION.0, MIN_VERSION.1)]
    MissingSymbol {
        /// What was opened.
        library: String,
        /// The first function that is missing.
        symbol: &'static str,
    },
    /// A library that says it is too old.
    #[error(
        "{library} is UCX {}.{}.{}: want {}.{} or newer",
        .found.0, .found.1, .found.2, MIN_VERSION.0, MIN_VERSION.1
    )]
    TooOld {
        /// What was opened.
        library: String,
        /// Its version.
        found: (c_uint, c_uint, c_uint),
    },
}

macro_rules! functions {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)*) => {
        /// UCX's functions. The library stays loaded while this lives; in practice for ever, as
        /// UCX does not expect to be unloaded.
        #[derive(Debug)]
        pub struct UcxApi {
            $($(#[$doc])* pub $name: unsafe extern "C" fn($($arg: $ty),*) $(-> $ret)?,)*
            library: String,
            version: (c_uint, c_uint, c_uint),
            #[expect(dead_code, reason = "keeps the functions' code mapped")]
            handle: Library,
        }

        impl UcxApi {
            fn from_handle(library: String, handle: Library) -> Result<Self, LoadError> {
                $(
                    let symbol = concat!(stringify!($name), "\0").as_bytes();
                    // SAFETY: the type is that of the function in UCX's public header, which UCX
                    // keeps within a major version; the pointer is kept beside the handle.
                    let found = unsafe {
                        handle.get::<unsafe extern "C" fn($($arg: $ty),*) $(-> $ret)?>(symbol)
                    };
                    let $name = match found {
                        Ok(symbol) => *symbol,
                        Err(_) => {
                            let symbol = stringify!($name);
                            return Err(LoadError::MissingSymbol { library, symbol });
                        }
                    };
                )*
                let mut api = Self { $($name,)* library, version: (0, 0, 0), handle };
                let (mut major, mut minor, mut release) = (0, 0, 0);
                // SAFETY: three valid places for numbers.
                unsafe { (api.ucp_get_version)(&raw mut major, &raw mut minor, &raw mut release) };
                api.version = (major, minor, release);
                if (major, minor) < MIN_VERSION {
                    return Err(LoadError::TooOld { library: api.library, found: api.version });
                }
                Ok(api)
            }
        }
    };
}

functions! {
    /// Version of the library.
    fn ucp_get_version(major: *mut c_uint, minor: *mut c_uint, release: *mut c_uint);
    /// A status in words; the string is static.
    fn ucs_status_string(status: ucs_status_t) -> *const c_char;
    /// Takes UCX's handlers of SIGSEGV and others away again.
    fn ucs_debug_disable_signals();
    /// Sets one of libucs's global settings, by its name without `UCX_`.
    fn ucs_global_opts_set_value(name: *const c_char, value: *const c_char) -> ucs_status_t;
    /// Reads settings from the environment.
    fn ucp_config_read(
        prefix: *const c_char, file: *const c_char, config: *mut ucp_config_h
    ) -> ucs_status_t;
    /// Changes one setting.
    fn ucp_config_modify(
        config: ucp_config_h, name: *const c_char, value: *const c_char
    ) -> ucs_status_t;
    /// Frees settings.
    fn ucp_config_release(config: ucp_config_h);
    /// Makes a context.
    fn ucp_init_version(
        major: c_uint, minor: c_uint, params: *const ucp_params_t, config: ucp_config_h,
        context: *mut ucp_context_h
    ) -> ucs_status_t;
    /// Destroys a context.
    fn ucp_cleanup(context: ucp_context_h);
    /// Allocates or registers memory.
    fn ucp_mem_map(
        context: ucp_context_h, params: *const ucp_mem_map_params_t, memory: *mut ucp_mem_h
    ) -> ucs_status_t;
    /// Address and length of mapped memory.
    fn ucp_mem_query(memory: ucp_mem_h, attributes: *mut ucp_mem_attr_t) -> ucs_status_t;
    /// Frees or deregisters memory.
    fn ucp_mem_unmap(context: ucp_context_h, memory: ucp_mem_h) -> ucs_status_t;
    /// Packs what a peer needs to reach memory.
    fn ucp_rkey_pack(
        context: ucp_context_h, memory: ucp_mem_h, buffer: *mut *mut c_void, size: *mut usize
    ) -> ucs_status_t;
    /// Frees a packed key.
    fn ucp_rkey_buffer_release(buffer: *mut c_void);
    /// Makes a worker.
    fn ucp_worker_create(
        context: ucp_context_h, params: *const ucp_worker_params_t, worker: *mut ucp_worker_h
    ) -> ucs_status_t;
    /// Destroys a worker and its endpoints; outstanding requests never call back.
    fn ucp_worker_destroy(worker: ucp_worker_h);
    /// Moves a worker's work on; returns 0 if nothing happened.
    fn ucp_worker_progress(worker: ucp_worker_h) -> c_uint;
    /// The address that a peer connects to.
    fn ucp_worker_get_address(
        worker: ucp_worker_h, address: *mut ucp_address_h, length: *mut usize
    ) -> ucs_status_t;
    /// Frees an address.
    fn ucp_worker_release_address(worker: ucp_worker_h, address: ucp_address_h);
    /// Makes an endpoint.
    fn ucp_ep_create(
        worker: ucp_worker_h, params: *const ucp_ep_params_t, ep: *mut ucp_ep_h
    ) -> ucs_status_t;
    /// Unpacks access to remote memory; maps it, where it is shared memory.
    fn ucp_ep_rkey_unpack(
        ep: ucp_ep_h, buffer: *const c_void, rkey: *mut ucp_rkey_h
    ) -> ucs_status_t;
    /// Gives access to remote memory back; unmaps it.
    fn ucp_rkey_destroy(rkey: ucp_rkey_h);
    /// Writes remote memory.
    fn ucp_put_nbx(
        ep: ucp_ep_h, buffer: *const c_void, count: usize, remote: u64, rkey: ucp_rkey_h,
        param: *const ucp_request_param_t
    ) -> ucs_status_ptr_t;
    /// Completes when everything before it on the endpoint is visible at the peer.
    fn ucp_ep_flush_nbx(ep: ucp_ep_h, param: *const ucp_request_param_t) -> ucs_status_ptr_t;
    /// Where remote memory is mapped here, if it is.
    fn ucp_rkey_ptr(rkey: ucp_rkey_h, remote: u64, local: *mut *mut c_void) -> ucs_status_t;
    /// Where a request stands: `UCS_INPROGRESS`, `UCS_OK` or its error.
    fn ucp_request_check_status(request: *mut c_void) -> ucs_status_t;
    /// Frees a request.
    fn ucp_request_free(request: *mut c_void);
}

impl UcxApi {
    /// Loads `libucp.so.0` from `directory` if given, else by the system's search path. Its
    /// sibling libraries and transport modules are found beside it.
    ///
    /// # Errors
    /// [`LoadError`] says what was tried and why it will not do.
    pub fn load(directory: Option<&Path>) -> Result<Self, LoadError> {
        let names = match directory {
            Some(directory) => vec![directory.join("libucp.so.0")],
            None => vec![PathBuf::from("libucp.so.0"), PathBuf::from("libucp.so")],
        };
        let mut tried = Vec::new();
        for name in names {
            // SAFETY: UCX's constructors read the environment and install signal handlers; the
            // caller takes those away again. RTLD_LOCAL keeps its symbols to itself.
            match unsafe { Library::open(Some(&name), RTLD_NOW | RTLD_LOCAL) } {
                Ok(handle) => return Self::from_handle(name.display().to_string(), handle),
                Err(error) => {
                    // What the loader said is the source, and names what it looked for.
                    let said = std::error::Error::source(&error).map(ToString::to_string);
                    let said = said.unwrap_or_else(|| error.to_string());
                    tried.push(format!("{}: {said}", name.display()));
                }
            }
        }
        Err(LoadError::NotFound { tried })
    }

    /// (major, minor, release) of the library.
    pub fn version(&self) -> (c_uint, c_uint, c_uint) {
        self.version
    }

    /// The name that was opened.
    pub fn library(&self) -> &str {
        &self.library
    }
}
