//! What runs next. Pure: queues and page counts in, a plan out; the servers carry it out.

pub mod budget;
pub mod decode;
pub mod dfs;
pub mod prefill;
