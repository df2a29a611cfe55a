//! What a process of ours is to its machine: logs, signals, the service manager, its own small HTTP
//! face, and the keys of its config file.
#![forbid(unsafe_code)]

pub mod admin;
pub mod keys;
pub mod logs;
pub mod notify;
pub mod shutdown;
