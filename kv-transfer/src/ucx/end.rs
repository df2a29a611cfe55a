//! The end of a process that has threads in UCX.

unsafe extern "C" {
    fn _exit(code: i32) -> !;
}

/// Ends the process without the clean-up of its libraries. Threads of ours may still compute, or
/// be in UCX: with `exit` its destructors run beside them, and now and then that is a crash. What
/// the process has the kernel takes back; pools are unlinked from the beginning.
pub fn end_process(code: u8) -> ! {
    // SAFETY: it is async-signal-safe, runs nothing of this process and does not return.
    unsafe { _exit(i32::from(code)) }
}
