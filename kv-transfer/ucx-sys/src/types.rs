//! Types and constants of `ucp/api/ucp.h` and `ucs/type/status.h` (UCX 1.22), by their C names.
#![expect(non_camel_case_types, reason = "the names are UCX's, so that its manual can be read")]

use std::ffi::{c_char, c_int, c_uint, c_ulong, c_void};
use std::mem::{align_of, offset_of, size_of};

macro_rules! opaque {
    ($($(#[$doc:meta])* $name:ident => $handle:ident;)*) => {$(
        #[doc = concat!("Opaque: behind [`", stringify!($handle), "`].")]
        #[repr(C)]
        #[derive(Debug)]
        pub struct $name {
            unused: [u8; 0],
        }
        $(#[$doc])*
        pub type $handle = *mut $name;
    )*};
}

opaque! {
    /// A context: transports and registered memory.
    ucp_context => ucp_context_h;
    /// Settings read before a context is made.
    ucp_config => ucp_config_h;
    /// A worker: one thread's progress engine.
    ucp_worker => ucp_worker_h;
    /// A worker's address as bytes.
    ucp_address => ucp_address_h;
    /// An endpoint: the way to one remote worker.
    ucp_ep => ucp_ep_h;
    /// Registered or allocated memory.
    ucp_mem => ucp_mem_h;
    /// Access to remote memory.
    ucp_rkey => ucp_rkey_h;
}

/// A status: `UCS_OK`, `UCS_INPROGRESS` or a negative error.
pub type ucs_status_t = i8;
/// Null, a request, or a status as a pointer; see [`crate::ptr_status`].
pub type ucs_status_ptr_t = *mut c_void;

pub const UCS_OK: ucs_status_t = 0;
pub const UCS_INPROGRESS: ucs_status_t = 1;
pub const UCS_ERR_IO_ERROR: ucs_status_t = -3;
pub const UCS_ERR_NO_MEMORY: ucs_status_t = -4;
pub const UCS_ERR_UNREACHABLE: ucs_status_t = -6;
pub const UCS_ERR_LAST: ucs_status_t = -100;

pub const UCS_MEMORY_TYPE_HOST: c_uint = 0;
pub const UCS_MEMORY_TYPE_CUDA: c_uint = 1;
pub const UCS_THREAD_MODE_SERIALIZED: c_uint = 1;

pub const UCP_PARAM_FIELD_FEATURES: u64 = 1;
pub const UCP_PARAM_FIELD_MT_WORKERS_SHARED: u64 = 1 << 5;
pub const UCP_PARAM_FIELD_ESTIMATED_NUM_EPS: u64 = 1 << 6;
pub const UCP_FEATURE_RMA: u64 = 1 << 1;

/// `ucp_params_t`.
#[repr(C)]
#[derive(Debug, Default)]
pub struct ucp_params_t {
    pub field_mask: u64,
    pub features: u64,
    pub request_size: usize,
    pub request_init: Option<unsafe extern "C" fn(*mut c_void)>,
    pub request_cleanup: Option<unsafe extern "C" fn(*mut c_void)>,
    pub tag_sender_mask: u64,
    pub mt_workers_shared: c_int,
    pub estimated_num_eps: usize,
    pub estimated_num_ppn: usize,
    pub name: *const c_char,
    pub node_local_id: usize,
}
const _: () = {
    assert!(size_of::<ucp_params_t>() == 88 && align_of::<ucp_params_t>() == 8);
    assert!(offset_of!(ucp_params_t, mt_workers_shared) == 48);
    assert!(offset_of!(ucp_params_t, estimated_num_eps) == 56);
    assert!(offset_of!(ucp_params_t, node_local_id) == 80);
};

pub const UCP_WORKER_PARAM_FIELD_THREAD_MODE: u64 = 1;

/// `ucp_worker_params_t`.
#[repr(C)]
#[derive(Debug, Default)]
pub struct ucp_worker_params_t {
    pub field_mask: u64,
    pub thread_mode: c_uint,
    pub cpu_mask: [c_ulong; 16],
    pub events: c_uint,
    pub user_data: *mut c_void,
    pub event_fd: c_int,
    pub flags: u64,
    pub name: *const c_char,
    pub am_alignment: usize,
    pub client_id: u64,
}
const _: () = {
    assert!(size_of::<ucp_worker_params_t>() == 200 && align_of::<ucp_worker_params_t>() == 8);
    assert!(offset_of!(ucp_worker_params_t, thread_mode) == 8);
    assert!(offset_of!(ucp_worker_params_t, events) == 144);
    assert!(offset_of!(ucp_worker_params_t, client_id) == 192);
};

pub const UCP_EP_PARAM_FIELD_REMOTE_ADDRESS: u64 = 1;
pub const UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE: u64 = 1 << 1;
pub const UCP_ERR_HANDLING_MODE_NONE: c_uint = 0;

/// `ucp_err_handler_t`.
#[repr(C)]
#[derive(Debug, Default)]
pub struct ucp_err_handler_t {
    pub cb: Option<unsafe extern "C" fn(*mut c_void, ucp_ep_h, ucs_status_t)>,
    pub arg: *mut c_void,
}

/// `ucs_sock_addr_t`.
#[repr(C)]
#[derive(Debug, Default)]
pub struct ucs_sock_addr_t {
    pub addr: *const c_void,
    pub addrlen: c_uint,
}

/// `ucp_ep_params_t`.
#[repr(C)]
#[derive(Debug, Default)]
pub struct ucp_ep_params_t {
    pub field_mask: u64,
    pub address: *const ucp_address,
    pub err_mode: c_uint,
    pub err_handler: ucp_err_handler_t,
    pub user_data: *mut c_void,
    pub flags: c_uint,
    pub sockaddr: ucs_sock_addr_t,
    pub conn_request: *mut c_void,
    pub name: *const c_char,
    pub local_sockaddr: ucs_sock_addr_t,
}
const _: () = {
    assert!(size_of::<ucp_ep_params_t>() == 104 && align_of::<ucp_ep_params_t>() == 8);
    assert!(offset_of!(ucp_ep_params_t, err_handler) == 24);
    assert!(offset_of!(ucp_ep_params_t, sockaddr) == 56);
    assert!(offset_of!(ucp_ep_params_t, local_sockaddr) == 88);
};

pub const UCP_MEM_MAP_PARAM_FIELD_ADDRESS: u64 = 1;
pub const UCP_MEM_MAP_PARAM_FIELD_LENGTH: u64 = 1 << 1;
pub const UCP_MEM_MAP_PARAM_FIELD_FLAGS: u64 = 1 << 2;
pub const UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE: u64 = 1 << 4;
pub const UCP_MEM_MAP_ALLOCATE: c_uint = 1 << 1;

/// `ucp_mem_map_params_t`.
#[repr(C)]
#[derive(Debug, Default)]
pub struct ucp_mem_map_params_t {
    pub field_mask: u64,
    pub address: *mut c_void,
    pub length: usize,
    pub flags: c_uint,
    pub prot: c_uint,
    pub memory_type: c_uint,
    pub exported_memh_buffer: *const c_void,
}
const _: () = {
    assert!(size_of::<ucp_mem_map_params_t>() == 48 && align_of::<ucp_mem_map_params_t>() == 8);
    assert!(offset_of!(ucp_mem_map_params_t, memory_type) == 32);
    assert!(offset_of!(ucp_mem_map_params_t, exported_memh_buffer) == 40);
};

pub const UCP_MEM_ATTR_FIELD_ADDRESS: u64 = 1;
pub const UCP_MEM_ATTR_FIELD_LENGTH: u64 = 1 << 1;

/// `ucp_mem_attr_t`.
#[repr(C)]
#[derive(Debug, Default)]
pub struct ucp_mem_attr_t {
    pub field_mask: u64,
    pub address: *mut c_void,
    pub length: usize,
    pub mem_type: c_uint,
}
const _: () = assert!(size_of::<ucp_mem_attr_t>() == 32 && align_of::<ucp_mem_attr_t>() == 8);

pub const UCP_OP_ATTR_FIELD_MEMORY_TYPE: u32 = 1 << 6;
pub const UCP_OP_ATTR_FIELD_MEMH: u32 = 1 << 8;

/// `ucp_send_nbx_callback_t`: request, status, user data. Must not unwind.
pub type ucp_send_nbx_callback_t = unsafe extern "C" fn(*mut c_void, ucs_status_t, *mut c_void);

/// `ucp_request_param_t`. Its unions are pointers of which only the send callback is used.
#[repr(C)]
#[derive(Debug, Default)]
pub struct ucp_request_param_t {
    pub op_attr_mask: u32,
    pub flags: u32,
    pub request: *mut c_void,
    pub cb_send: Option<ucp_send_nbx_callback_t>,
    pub datatype: u64,
    pub user_data: *mut c_void,
    pub reply_buffer: *mut c_void,
    pub memory_type: c_uint,
    pub recv_info: *mut c_void,
    pub memh: *mut ucp_mem,
    pub remote_datatype: u64,
    pub remote: *const c_void,
    pub remote_count: usize,
}
const _: () = {
    assert!(size_of::<ucp_request_param_t>() == 96 && align_of::<ucp_request_param_t>() == 8);
    assert!(offset_of!(ucp_request_param_t, cb_send) == 16);
    assert!(offset_of!(ucp_request_param_t, user_data) == 32);
    assert!(offset_of!(ucp_request_param_t, memory_type) == 48);
    assert!(offset_of!(ucp_request_param_t, recv_info) == 56);
    assert!(offset_of!(ucp_request_param_t, memh) == 64);
    assert!(offset_of!(ucp_request_param_t, remote_count) == 88);
};
