//! ONNX Runtime: found, loaded once a process, and kept.

use super::EmbedError;
use crate::config;
use ort::environment::Environment;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const LIBRARY: &str = "libonnxruntime.so";
/// How deep below the folder of `make deps` the library may lie.
const DEPTH: usize = 10;

/// The runtime's environment; the first caller decides which library is loaded.
pub fn environment(settings: &config::Embed, deps_dir: &Path) -> Result<Environment, EmbedError> {
    static LOADED: Mutex<Option<Environment>> = Mutex::new(None);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(environment) = loaded.as_ref() {
        return Ok(environment.clone());
    }
    let path = library(settings, deps_dir)?;
    // Absolute, because a relative path would be sought beside the executable first.
    let path = path.canonicalize().map_err(|source| EmbedError::Read { path, source })?;
    let environment = ort::init_from(&path)
        .map_err(|source| EmbedError::RuntimeRefused { path, source })?
        .with_telemetry(false)
        .build()?;
    *loaded = Some(environment.clone());
    Ok(environment)
}

/// What the settings name, else what `ORT_DYLIB_PATH` names, else what `make deps` brought.
fn library(settings: &config::Embed, deps_dir: &Path) -> Result<PathBuf, EmbedError> {
    // The variable is ort's own; whoever set it for other programs expects it to hold here.
    let named = if settings.onnxruntime.is_empty() {
        std::env::var_os("ORT_DYLIB_PATH").filter(|value| !value.is_empty()).map(PathBuf::from)
    } else {
        Some(PathBuf::from(&settings.onnxruntime))
    };
    match named {
        Some(path) if path.exists() => Ok(path),
        Some(path) => Err(EmbedError::RuntimeMissing(path)),
        None => {
            find(deps_dir, DEPTH).ok_or_else(|| EmbedError::RuntimeMissing(deps_dir.join("**").join(LIBRARY)))
        }
    }
}

fn find(folder: &Path, depth: usize) -> Option<PathBuf> {
    let mut entries: Vec<_> = std::fs::read_dir(folder).ok()?.flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    let found = entries
        .iter()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(LIBRARY) && entry.path().is_file());
    if let Some(entry) = found {
        return Some(entry.path());
    }
    if depth == 0 {
        return None;
    }
    // The entry's own type: a link to a folder could lead in a circle.
    let mut folders = entries.iter().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.find_map(|entry| find(&entry.path(), depth - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_found_however_deep_pip_put_it() {
        let deps = tempfile::tempdir().unwrap();
        let folder = deps.path().join("python/onnxruntime/capi");
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!(find(deps.path(), DEPTH), None);
        std::fs::write(folder.join("libonnxruntime_providers_shared.so"), "").unwrap();
        assert_eq!(find(deps.path(), DEPTH), None);
        std::fs::write(folder.join("libonnxruntime.so.1.31.1"), "").unwrap();
        assert_eq!(find(deps.path(), DEPTH), Some(folder.join("libonnxruntime.so.1.31.1")));
    }
}
