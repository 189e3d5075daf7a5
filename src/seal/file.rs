//! The key file of the embedded default: made once, readable by its owner alone.
//!
//! Two programs that start at once both make one; the first to put it in place wins, and the
//! other reads that.

use crate::seal::SealError;
use crate::seal::text;
use secrecy::zeroize::Zeroizing;
use std::io::{ErrorKind, Write};
use std::path::Path;

/// The key that lies in `path`; a fresh one is put there when there is none.
pub fn key(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, SealError> {
    let wrong = |why: String| SealError::File { path: path.display().to_string(), why };
    if !path.try_exists().map_err(|error| wrong(error.to_string()))? {
        make(path).map_err(|error| wrong(error.to_string()))?;
    }
    if others_may_read(path).map_err(|error| wrong(error.to_string()))? {
        return Err(wrong("others may read it; take their rights away (chmod 600)".to_owned()));
    }
    let text = Zeroizing::new(std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?);
    Ok(text::either(&text))
}

fn make(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    // A temporary file has mode 0600 from its first moment.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    let key = Zeroizing::new(rand::random::<[u8; 32]>());
    writeln!(file, "{}", *Zeroizing::new(hex::encode(*key)))?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error.error),
    }
}

#[cfg(unix)]
fn others_may_read(path: &Path) -> std::io::Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::metadata(path)?.permissions().mode() & 0o077 != 0)
}

#[cfg(not(unix))]
fn others_may_read(_: &Path) -> std::io::Result<bool> {
    Ok(false)
}
