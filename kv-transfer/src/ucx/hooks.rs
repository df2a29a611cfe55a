//! UCX must not patch this process's libc, nor the CUDA driver's library.
//!
//! When it is loaded, UCX overwrites the first bytes of `mmap`, `munmap` and others with jumps to
//! its own, to hear of memory that is unmapped under a registration. A thread that calls `mmap` at
//! that moment executes half an instruction and the process dies of SIGSEGV: seen once in some
//! hundred starts. We register pools that live as long as the process, so there is nothing to hear.
//! UCX reads the setting from the environment, in its constructor; hence this call.

use std::io;

/// UCX's settings for how it takes over `mmap` and the driver's calls; any value of the user's own
/// stays.
const SETTINGS: [&str; 2] = ["UCX_MEM_MMAP_HOOK_MODE", "UCX_MEM_CUDA_HOOK_MODE"];

/// Tells UCX to leave libc as it is. Call it first in `main`, before there are threads.
///
/// # Errors
/// If there are other threads already, which may be reading the environment.
pub fn leave_libc_alone() -> io::Result<()> {
    let unset = SETTINGS.into_iter().filter(|name| std::env::var_os(name).is_none());
    let unset: Vec<_> = unset.collect();
    if unset.is_empty() {
        return Ok(());
    }
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        let what = format!("{threads} threads run already; {unset:?} can be set before only");
        return Err(io::Error::other(what));
    }
    for name in unset {
        // SAFETY: this is the only thread, so nobody reads or writes the environment meanwhile.
        unsafe { std::env::set_var(name, "none") };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    /// The test harness has a thread beside this one.
    #[test]
    fn with_other_threads_the_environment_stays_as_it_is() {
        let error = super::leave_libc_alone().unwrap_err();
        assert!(error.to_string().contains("threads run already"), "{error}");
        assert!(super::SETTINGS.iter().all(|name| std::env::var_os(name).is_none()));
    }
}
