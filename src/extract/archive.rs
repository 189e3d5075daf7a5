//! The members of zip, tar and gzip files, each read as the file it is, within one budget.
//!
//! The limits are those of the scan, counted here again while inflating: a child believes
//! nobody.

use super::Hint;
use super::draft::Draft;
use super::draft::Gap;
use super::reader;
use super::wire::Refusal;
use std::io::{Cursor, Read};

const TOTAL_BYTES: u64 = 200 * 1024 * 1024;
const MEMBER_BYTES: u64 = 50 * 1024 * 1024;
const MEMBERS: u32 = 10_000;
const NESTING: u32 = 3;

/// What may still be unpacked of one file, over all its members and their members.
pub(super) struct Budget {
    bytes: u64,
    members: u32,
    nesting: u32,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { bytes: TOTAL_BYTES, members: MEMBERS, nesting: NESTING }
    }

    /// Inflates a member, or says that it is too large.
    fn inflate(&mut self, member: &mut impl Read, ceiling: u64) -> Result<Vec<u8>, Refusal> {
        let ceiling = self.bytes.min(ceiling);
        let mut bytes = Vec::new();
        let read = member.take(ceiling + 1).read_to_end(&mut bytes);
        self.bytes -= (bytes.len() as u64).min(self.bytes);
        if bytes.len() as u64 > ceiling {
            return Err(Refusal::Inflates);
        }
        // What is wrong here is the member, not our disk: it lies in memory already.
        read.map_err(Refusal::malformed)?;
        Ok(bytes)
    }

    /// Reads what a container holds, one level deeper.
    fn descend<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Refusal>) -> Result<T, Refusal> {
        if self.nesting == 0 {
            return Err(Refusal::malformed("archives are nested too deep"));
        }
        self.nesting -= 1;
        let read = read(self);
        self.nesting += 1;
        read
    }
}

/// Reads every member of a zip file.
pub(super) fn zip(bytes: Vec<u8>, draft: &mut Draft, budget: &mut Budget) -> Result<(), Refusal> {
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(Refusal::malformed)?;
    budget.descend(|budget| {
        for index in 0..archive.len() {
            let Some(Ok(name)) = archive.name_for_index(index) else { continue };
            let name = name.into_owned();
            let mut entry = match archive.by_index(index) {
                Ok(entry) => entry,
                Err(e) => {
                    draft.gap(if is_about_encryption(&e) { Gap::Encrypted } else { Gap::Unread }, &name);
                    continue;
                }
            };
            if !entry.is_dir() && !one(&name, &mut entry, draft, budget)? {
                break;
            }
        }
        Ok(())
    })
}

fn is_about_encryption(e: &zip::result::ZipError) -> bool {
    use zip::result::ZipError;
    matches!(e, ZipError::InvalidPassword)
        || matches!(e, ZipError::UnsupportedArchive(why) if *why == ZipError::PASSWORD_REQUIRED)
}

/// Reads every file of a tar file.
pub(super) fn tar(source: &mut impl Read, draft: &mut Draft, budget: &mut Budget) -> Result<(), Refusal> {
    let mut archive = ::tar::Archive::new(source);
    let entries = archive.entries().map_err(Refusal::malformed)?;
    budget.descend(|budget| {
        for entry in entries {
            let Ok(mut entry) = entry else {
                // A tar file has no directory to find the next member by.
                draft.gap(Gap::Unread, "the rest of the archive");
                break;
            };
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            if entry.header().entry_type().is_file() && !one(&name, &mut entry, draft, budget)? {
                break;
            }
        }
        Ok(())
    })
}

/// Reads the one file that gzip wraps, as if it lay there bare.
pub(super) fn gzip(
    source: &mut impl Read,
    hint: &Hint,
    draft: &mut Draft,
    budget: &mut Budget,
) -> Result<(), Refusal> {
    let ceiling = budget.bytes;
    let bytes = budget.inflate(&mut flate2::read::MultiGzDecoder::new(source), ceiling)?;
    let name = hint.name.as_deref().map(|name| match name.strip_suffix(".tgz") {
        Some(stem) => format!("{stem}.tar"),
        None => name.strip_suffix(".gz").unwrap_or(name).to_owned(),
    });
    let hint = Hint { name, mime: None };
    budget.descend(|budget| reader::member(&mut Cursor::new(bytes), &hint, draft, budget)).map(drop)
}

/// Reads one member; false if the budget is used up.
fn one(name: &str, member: &mut impl Read, draft: &mut Draft, budget: &mut Budget) -> Result<bool, Refusal> {
    if is_litter(name) {
        return Ok(true);
    }
    if budget.members == 0 || budget.bytes == 0 {
        draft.gap(Gap::Unread, "what lies beyond the limits of an archive");
        return Ok(false);
    }
    budget.members -= 1;
    let read = budget.inflate(member, MEMBER_BYTES).and_then(|bytes| {
        if bytes.is_empty() {
            return Ok(());
        }
        let hint = Hint { name: Some(name.to_owned()), mime: None };
        draft.member(name, |draft| reader::member(&mut Cursor::new(bytes), &hint, draft, budget).map(drop))
    });
    match read {
        Ok(()) => {}
        Err(e @ Refusal::Io { .. }) => return Err(e),
        Err(Refusal::Encrypted) => draft.gap(Gap::Encrypted, name),
        Err(_) => draft.gap(Gap::Unread, name),
    }
    Ok(true)
}

/// What archivers and desktops leave between the files.
fn is_litter(name: &str) -> bool {
    name.starts_with("__MACOSX/")
        || name.rsplit('/').next().is_some_and(|file| file == ".DS_Store" || file == "Thumbs.db")
}
