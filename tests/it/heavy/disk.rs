//! A full disk under the files of jobs at work.

use crate::world::{World, settings};
use gristmill::runtime::every_kind;
use sqlx::PgPool;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A small file system of its own; gone with the test.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` where this user may not mount.
    fn new(bytes: u32) -> anyhow::Result<Option<Self>> {
        let folder = tempfile::tempdir()?;
        let at = CString::new(folder.path().as_os_str().as_bytes())?;
        let size = CString::new(format!("size={bytes}"))?;
        // SAFETY: every pointer is to a C string that outlives the call.
        let mounted = unsafe {
            libc::mount(c"tmpfs".as_ptr(), at.as_ptr(), c"tmpfs".as_ptr(), 0, size.as_ptr().cast())
        };
        if mounted != 0 {
            eprintln!("skipped: no small disk here ({})", std::io::Error::last_os_error());
            return Ok(None);
        }
        Ok(Some(Self { folder }))
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Ok(at) = CString::new(self.folder.path().as_os_str().as_bytes()) {
            // SAFETY: the pointer is to a C string that outlives the call.
            unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

/// Every file below a folder.
fn files(below: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(below).into_iter().flatten().flatten();
    entries.flat_map(|e| if e.path().is_dir() { files(&e.path()) } else { vec![e.path()] }).collect()
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_full_disk_fails_the_large_file_with_its_reason_and_no_other(db: PgPool) -> anyhow::Result<()> {
    let Some(disk) = SmallDisk::new(2 << 20)? else { return Ok(()) };
    let mut quick = settings();
    quick.queue.backoff_ceiling_seconds = 0.1;
    let mut world = World::with(db, quick).await?;
    world.restart(|settings| disk.path().clone_into(&mut settings.embedded.data_dir))?;
    let large = world.upload("large.txt", "Nine sacks of rye. ".repeat(250_000).as_bytes()).await?;
    let small = world.upload("small.txt", b"One sack of rye.").await?;
    world.work(every_kind).await?;

    assert_eq!(world.ended(large).await?, ("FAILED".into(), "gave_up".into(), "-".into()));
    let reasons = world.words("SELECT reason FROM gristmill.jobs WHERE state = 'DEAD'").await?;
    assert_eq!(reasons.len(), 1);
    assert!(reasons[0].contains("No space left"), "{reasons:?}");
    assert_eq!(world.ended(small).await?, ("READY".into(), "-".into(), "INDEXED".into()));
    assert_eq!(files(disk.path()), Vec::<PathBuf>::new(), "nothing is left behind");

    // Once there is room again, as when somebody cleared the disk, new work goes on.
    let later = world.upload("later.txt", b"Two sacks of rye.").await?;
    world.work(every_kind).await?;
    assert_eq!(world.ended(later).await?.0, "READY");
    Ok(())
}
