//! What a child process gives up before it touches a file that a stranger made.
//!
//! The child opens its two files first; after this it can open no file, no socket and no
//! program, and has so much memory, time and disk. Where the kernel has no Landlock or
//! seccomp the limits remain, and the answer says so.

use rlimit::Resource;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How long a child that overran its CPU seconds may take to die of the first signal.
const CPU_GRACE_SECONDS: u64 = 2;
const OPEN_FILES: u64 = 32;

/// What a child may use up.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Limits {
    pub memory_bytes: u64,
    pub cpu_seconds: u64,
    pub file_bytes: u64,
}

/// What a child may still do with files.
pub(super) enum Reach {
    /// Only with those it has open.
    Nothing,
    /// A helper program: read the system and `read`, write below `write`.
    Program { read: PathBuf, write: PathBuf },
}

/// What the kernel agreed to enforce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Enforced {
    pub landlock: bool,
    pub seccomp: bool,
}

/// Sets the resource limits of this process, for good.
pub(super) fn limit(limits: &Limits) -> std::io::Result<()> {
    lower(Resource::CORE, 0, 0)?;
    lower(Resource::AS, limits.memory_bytes, 0)?;
    lower(Resource::CPU, limits.cpu_seconds, CPU_GRACE_SECONDS)?;
    lower(Resource::FSIZE, limits.file_bytes, 0)?;
    lower(Resource::NOFILE, OPEN_FILES, 0)
}

/// Lowers a limit; one that is lower already stays.
fn lower(resource: Resource, soft: u64, grace: u64) -> std::io::Result<()> {
    let (_, ceiling) = resource.get()?;
    resource.set(soft.min(ceiling), soft.saturating_add(grace).min(ceiling))
}

/// Gives up files, network, and the calls a parser has no use for.
#[cfg(target_os = "linux")]
pub(super) fn enter(reach: &Reach) -> Enforced {
    let landlock = match linux::landlock(reach) {
        Ok(true) => true,
        Ok(false) => {
            eprintln!("landlock is not enforced: this kernel has none");
            false
        }
        Err(e) => {
            eprintln!("landlock is not enforced: {e}");
            false
        }
    };
    let seccomp = match linux::seccomp(reach) {
        Ok(()) => true,
        Err(e) => {
            eprintln!("seccomp is not enforced: {e}");
            false
        }
    };
    Enforced { landlock, seccomp }
}

/// There is nothing to give up on other systems.
#[cfg(not(target_os = "linux"))]
pub(super) fn enter(_: &Reach) -> Enforced {
    Enforced::default()
}

#[cfg(target_os = "linux")]
mod linux {
    use super::Reach;
    use landlock::{
        ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
        RulesetStatus, Scope, path_beneath_rules,
    };
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule,
    };
    use std::collections::BTreeMap;

    /// What a program and its libraries are made of.
    const SYSTEM: [&str; 9] = [
        "/usr",
        "/lib",
        "/lib64",
        "/bin",
        "/etc/fonts",
        "/etc/ld.so.cache",
        "/dev/null",
        "/proc/self",
        "/sys/devices/system/cpu",
    ];

    pub(super) fn landlock(reach: &Reach) -> Result<bool, RulesetError> {
        let known = ABI::V6;
        let ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(known))?
            .handle_access(AccessNet::from_all(known))?
            .scope(Scope::from_all(known))?
            .create()?;
        let ruleset = match reach {
            Reach::Nothing => ruleset,
            Reach::Program { read, write } => ruleset
                .add_rules(path_beneath_rules(SYSTEM, AccessFs::from_read(known)))?
                .add_rules(path_beneath_rules([read], AccessFs::ReadFile))?
                .add_rules(path_beneath_rules([write], AccessFs::from_all(known)))?,
        };
        Ok(ruleset.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
    }

    /// Why the filter could not be made or set.
    #[derive(Debug, thiserror::Error)]
    pub(super) enum SeccompError {
        #[error(transparent)]
        Backend(#[from] seccompiler::BackendError),
        #[error(transparent)]
        Apply(#[from] seccompiler::Error),
    }

    pub(super) fn seccomp(reach: &Reach) -> Result<(), SeccompError> {
        let forbidden = filter(forbidden(reach)?, libc::EPERM)?;
        // clone3 hides its flags from a filter; told that it is unknown, libc takes clone.
        let unknown = filter([(libc::SYS_clone3, vec![])].into(), libc::ENOSYS)?;
        seccompiler::apply_filter(&forbidden)?;
        Ok(seccompiler::apply_filter(&unknown)?)
    }

    type Rules = BTreeMap<i64, Vec<SeccompRule>>;

    fn filter(rules: Rules, errno: i32) -> Result<BpfProgram, seccompiler::BackendError> {
        let refuse = SeccompAction::Errno(errno.cast_unsigned());
        SeccompFilter::new(rules, SeccompAction::Allow, refuse, std::env::consts::ARCH.try_into()?)?
            .try_into()
    }

    fn forbidden(reach: &Reach) -> Result<Rules, seccompiler::BackendError> {
        const CALLS: [i64; 31] = [
            libc::SYS_socket,
            libc::SYS_socketpair,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_listen,
            libc::SYS_accept4,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_chroot,
            libc::SYS_pivot_root,
            libc::SYS_kill,
            libc::SYS_pidfd_open,
            libc::SYS_pidfd_getfd,
            libc::SYS_memfd_create,
            libc::SYS_setsid,
            libc::SYS_setpgid,
            libc::SYS_execveat,
        ];
        let mut rules: Rules = CALLS.iter().map(|call| (*call, vec![])).collect();
        // A new process is refused, a thread is not.
        let thread = u64::from(libc::CLONE_THREAD.cast_unsigned());
        let no_thread = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(thread), 0)?;
        rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![no_thread])?]);
        #[cfg(target_arch = "x86_64")]
        rules.extend([(libc::SYS_fork, vec![]), (libc::SYS_vfork, vec![])]);
        if matches!(reach, Reach::Nothing) {
            rules.insert(libc::SYS_execve, vec![]);
        }
        Ok(rules)
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    /// What `jailed` finds in a thread of its own: the jail holds for a thread and its heirs.
    fn within<T: Send + 'static>(jailed: impl FnOnce(Enforced) -> T + Send + 'static) -> T {
        std::thread::spawn(|| jailed(enter(&Reach::Nothing))).join().unwrap()
    }

    #[test]
    fn nothing_but_open_files_is_within_reach() {
        let open = tempfile::NamedTempFile::new().unwrap();
        let path = open.path().to_owned();
        let (enforced, file, read, program, thread) = within(move |enforced| {
            (
                enforced,
                open.as_file().metadata().is_ok(),
                std::fs::read(&path),
                std::process::Command::new("/bin/true").status(),
                std::thread::spawn(|| 1).join(),
            )
        });
        assert!(file && thread.is_ok());
        if enforced.landlock {
            assert_eq!(read.unwrap_err().kind(), ErrorKind::PermissionDenied);
        }
        if enforced.seccomp {
            assert!(program.is_err());
        }
        assert!(enforced.seccomp || !cfg!(target_arch = "x86_64"), "every kernel we support has seccomp");
    }

    #[test]
    fn sockets_and_io_uring_are_refused() {
        let refused = within(|_| {
            // SAFETY: both calls take numbers and a pointer that the filter refuses to look at.
            let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null::<u8>()) };
            let ring = (ring, std::io::Error::last_os_error().raw_os_error());
            (ring, std::net::UdpSocket::bind("127.0.0.1:0"), std::os::unix::net::UnixStream::pair())
        });
        assert_eq!(refused.0, (-1, Some(libc::EPERM)));
        assert_eq!(refused.1.unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(refused.2.unwrap_err().raw_os_error(), Some(libc::EPERM));
    }
}
