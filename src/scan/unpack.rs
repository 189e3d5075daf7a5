//! The walk through a file's inside: archives, office parts, PDF streams, macros.
//!
//! Every inflated byte passes the rules and is counted. A member that is itself a container is
//! spooled to a nameless temporary file (bounded by the member ceiling) and walked in turn.

use super::budget::{Budget, Halt, Limit, Share};
use super::kind::{Shape, shape};
use super::rules::{Rules, Scope, Sieve};
use super::{mail, ole, pdf};
use flate2::bufread::GzDecoder;
use memchr::memmem;
use std::fs::File;
use std::io::{self, BufRead, Read, Seek, Write};

pub(super) const PIECE: usize = 64 << 10;
const CENTRAL_ENTRY: &[u8] = b"PK\x01\x02";
/// Bytes of an entry before its name.
const CENTRAL_FIXED: usize = 46;
/// The most that all names and comments of a directory may take.
const DIRECTORY_TEXTS: u64 = 16 << 20;

/// Who walks: the rules, the budget, and the findings that are worth a note.
pub(super) struct Walker<'a> {
    pub rules: &'a Rules,
    pub budget: Budget<'a>,
    /// What was passed over knowingly.
    pub notes: Vec<&'static str>,
}

impl Walker<'_> {
    /// The file itself: its raw bytes, then its inside.
    pub(super) fn file(&mut self, file: &mut File, shape: Shape, scope: Scope) -> Result<(), Halt> {
        let mut sieve = self.rules.sieve();
        feed_all(&mut sieve, file)?;
        if let Some(name) = sieve.verdict(scope) {
            return Err(Halt::Found(name.to_owned()));
        }
        self.inside(file, shape, 0, scope)
    }

    /// The inside of a container whose raw bytes were looked at already.
    fn inside(&mut self, file: &mut File, shape: Shape, depth: u32, scope: Scope) -> Result<(), Halt> {
        file.rewind()?;
        if matches!(shape, Shape::Zip | Shape::Gz | Shape::Tar | Shape::OtherArchive) {
            self.budget.nesting(depth)?;
        }
        match shape {
            Shape::Zip => self.zip(file, depth, scope),
            Shape::Gz => self.gz(file, depth, scope),
            Shape::Tar => self.tar(file, depth, scope),
            Shape::Pdf => pdf::streams(self, file),
            Shape::Ole => ole::streams(self, file),
            Shape::Mail => mail::attachments(self, file, depth),
            Shape::OtherArchive => Err(Halt::Opaque("packed in a way that is not looked into".to_owned())),
            Shape::Executable | Shape::Leaf => Ok(()),
        }
    }

    fn zip(&mut self, file: &mut File, depth: u32, scope: Scope) -> Result<(), Halt> {
        check_directory(file, self.budget.max_members())?;
        let mut archive = zip::ZipArchive::new(&mut *file).map_err(damaged)?;
        let office = scope == Scope::Office
            || archive.file_names_raw().any(|n| n == b"[Content_Types].xml" || n == b"META-INF/manifest.xml");
        let scope = if office { Scope::Office } else { Scope::Any };
        for index in 0..archive.len() {
            let (name, packed) = {
                let raw = archive.by_index_raw(index).map_err(damaged)?;
                if raw.is_dir() {
                    self.budget.member()?;
                    continue;
                }
                let name = String::from_utf8_lossy(raw.name_raw()).into_owned();
                if raw.encrypted() {
                    return Err(Halt::Opaque(format!("encrypted: member {name:?} cannot be read")));
                }
                (name, raw.compressed_size())
            };
            let mut member = archive.by_index(index).map_err(damaged)?;
            let share = Share { packed: Some(packed), counted: true, capped: true };
            self.member(&mut member, &name, share, (depth, scope))?;
        }
        Ok(())
    }

    fn gz(&mut self, file: &mut File, depth: u32, scope: Scope) -> Result<(), Halt> {
        let packed = Some(file.metadata()?.len());
        let mut inflated = GzMembers(Some(GzDecoder::new(io::BufReader::new(file))));
        let share = Share { packed, counted: true, capped: true };
        self.member(&mut inflated, "", share, (depth, scope))
    }

    fn tar(&mut self, file: &mut File, depth: u32, scope: Scope) -> Result<(), Halt> {
        let mut archive = tar::Archive::new(io::BufReader::new(file));
        // Raw: the crate would read long names and extensions into memory, however long.
        for entry in archive.entries()?.raw(true) {
            let mut entry = entry?;
            let share = Share { packed: None, counted: false, capped: true };
            self.member(&mut entry, "", share, (depth, scope))?;
        }
        Ok(())
    }

    /// One member: counted, looked at, and walked if it is a container.
    pub(super) fn member(
        &mut self,
        reader: &mut dyn Read,
        name: &str,
        mut share: Share,
        (depth, scope): (u32, Scope),
    ) -> Result<(), Halt> {
        self.budget.member()?;
        let mut piece = vec![0; PIECE];
        let mut filled = fill(reader, &mut piece)?;
        let form = shape(&piece[..filled]);
        if form == Shape::Executable && scope == Scope::Office {
            return Err(Halt::Found("Gristmill.Document.Executable".to_owned()));
        }
        // A tar inside of a gz is one archive, not two, and no single member.
        let tar_gz = form == Shape::Tar && name.is_empty() && share.counted;
        share.capped &= !tar_gz;
        let manifest = scope == Scope::Office && name == "META-INF/manifest.xml";
        let flat = matches!(form, Shape::Leaf | Shape::Executable);
        let mut spool = if flat { None } else { Some(tempfile::tempfile()?) };
        let mut sieve = self.rules.sieve();
        let mut size = 0;
        while filled > 0 {
            let bytes = &piece[..filled];
            size += filled as u64;
            self.budget.bytes(filled as u64, size, &share)?;
            sieve.feed(bytes);
            if manifest && memmem::find(bytes, b"encryption-data").is_some() {
                return Err(Halt::Opaque("encrypted: the document's parts cannot be read".to_owned()));
            }
            if let Some(spool) = &mut spool {
                spool.write_all(bytes)?;
            }
            filled = fill(reader, &mut piece)?;
        }
        let scope = if form == Shape::Pdf { Scope::Pdf } else { scope };
        if let Some(name) = sieve.verdict(scope) {
            return Err(Halt::Found(name.to_owned()));
        }
        match spool {
            Some(mut file) => self.inside(&mut file, form, if tar_gz { depth } else { depth + 1 }, scope),
            None => Ok(()),
        }
    }
}

/// The whole file, as it lies.
pub(super) fn feed_all(sieve: &mut Sieve<'_>, file: &mut File) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    file.rewind()?;
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(()),
            n => sieve.feed(&piece[..n]),
        }
    }
}

/// Reads until the buffer is full or the reader ends.
fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// All members of a gzip file after one another, up to bytes that are none: padding follows
/// some, and readers ignore it.
struct GzMembers<R>(Option<GzDecoder<R>>);

impl<R: BufRead> Read for GzMembers<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while let Some(decoder) = &mut self.0 {
            let n = decoder.read(into)?;
            if n > 0 || into.is_empty() {
                return Ok(n);
            }
            if let Some(mut rest) = self.0.take().map(GzDecoder::into_inner)
                && rest.fill_buf()?.starts_with(b"\x1f\x8b")
            {
                self.0 = Some(GzDecoder::new(rest));
            }
        }
        Ok(0)
    }
}

/// Bounds what the zip crate will keep in memory: it holds the whole central directory, whose
/// own figures are only claims. Entries of stored inner archives count as well, as their members
/// would.
pub(super) fn check_directory(file: &mut File, max_members: u64) -> Result<(), Halt> {
    let finder = memmem::Finder::new(CENTRAL_ENTRY);
    let (mut piece, mut kept, mut entries, mut texts) = (vec![0; PIECE], 0, 0_u64, 0_u64);
    file.rewind()?;
    loop {
        let n = file.read(&mut piece[kept..])?;
        if n == 0 {
            break;
        }
        let end = kept + n;
        // Every entry is taken once: when all of its fixed part lies in the window.
        let window = &piece[..end];
        for entry in finder.find_iter(window).filter_map(|at| window.get(at..at + CENTRAL_FIXED)) {
            // Lengths of name, extra field and comment.
            let length = |at: usize| u64::from(u16::from_le_bytes([entry[at], entry[at + 1]]));
            entries += 1;
            texts += length(28) + length(30) + length(32);
        }
        if entries > max_members || texts > DIRECTORY_TEXTS {
            return Err(Halt::Limit(Limit::Members));
        }
        kept = end.min(CENTRAL_FIXED - 1);
        piece.copy_within(end - kept..end, 0);
    }
    file.rewind()?;
    Ok(())
}

fn damaged(error: zip::result::ZipError) -> Halt {
    match error {
        zip::result::ZipError::Io(e) => e.into(),
        other => Halt::Opaque(format!("damaged: {other}")),
    }
}
