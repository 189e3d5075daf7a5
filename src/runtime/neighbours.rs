//! What other processes of the same user may see of this one: nothing that is secret.
//!
//! The programs of MCP servers run under the worker's own user, and the settings' secrets stand in the
//! worker's environment. Before any of them starts, Linux is told that nobody but root looks into
//! this process: not through `/proc/<pid>/environ` or `mem`, not as a debugger, not in a core dump.
//! A program that it starts is its own again, and looks into itself as ever.

/// Closes this process to all but root. Elsewhere than on Linux it does nothing.
#[allow(unsafe_code, reason = "prctl has no safe door here")]
pub fn close_to_neighbours() {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: it takes numbers alone, and changes a flag of this process.
        let closed = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
        debug_assert_eq!(closed, 0, "the kernel knows 0 and 1");
    }
}
