//! Gives each kind of file to the code that reads it; containers come back here for each member.

use super::Hint;
use super::archive;
use super::charset;
use super::compound;
use super::document;
use super::draft::Draft;
use super::draft::Shape;
use super::kind;
use super::kind::Kind;
use super::mail;
use super::plain;
use super::wire::Refusal;
use crate::domain::Syntax;
use std::io::{Read, Seek, SeekFrom};

/// Structured text beyond this is taken as plain text, which streams: a table of so many rows
/// is no longer read by anyone as a table.
const MARKUP_BYTES: u64 = 16 * 1024 * 1024;

/// Reads a file into the draft.
pub(super) fn read(
    source: &mut (impl Read + Seek),
    hint: &Hint,
    draft: &mut Draft,
) -> Result<Shape, Refusal> {
    member(source, hint, draft, &mut archive::Budget::new())
}

/// Reads a file or a container's member, within the container's budget.
pub(super) fn member(
    source: &mut (impl Read + Seek),
    hint: &Hint,
    draft: &mut Draft,
    budget: &mut archive::Budget,
) -> Result<Shape, Refusal> {
    let size = source.seek(SeekFrom::End(0))?;
    source.rewind()?;
    let mut head = Vec::new();
    source.by_ref().take(kind::HEAD_BYTES as u64).read_to_end(&mut head)?;
    source.rewind()?;
    match kind::of(&head, hint) {
        Kind::Text(syntax) => plain::text(source, syntax, draft)?,
        Kind::Captions if size <= MARKUP_BYTES => plain::captions(&whole(source, size)?, draft)?,
        Kind::Markup(mime) if size <= MARKUP_BYTES => {
            let bytes = whole(source, size)?;
            document::markup(&bytes, &mime, hint, draft)?;
        }
        Kind::Captions | Kind::Markup(_) => plain::text(source, Syntax::Plain, draft)?,
        Kind::Document(mime) => return document::read(whole(source, size)?, &mime, hint, draft),
        Kind::Compound => {
            let mime = compound::identify(source)?;
            return document::read(whole(source, size)?, mime, hint, draft);
        }
        Kind::Mailbox => mail::mailbox(&whole(source, size)?, draft)?,
        Kind::Zip => {
            let bytes = whole(source, size)?;
            return match document::packaged(&bytes, hint) {
                Some(mime) => document::read(bytes, &mime, hint, draft),
                None => archive::zip(bytes, draft, budget).map(|()| Shape::Other),
            };
        }
        Kind::Tar => archive::tar(source, draft, budget)?,
        Kind::Gzip => archive::gzip(source, hint, draft, budget)?,
        Kind::Picture => {
            draft.picture(1);
            return Ok(Shape::Picture);
        }
        Kind::Unknown => {
            let what = hint.mime.clone().unwrap_or_else(|| "an unknown type".to_owned());
            return Err(Refusal::Unsupported { what });
        }
    }
    Ok(Shape::Other)
}

fn whole(source: &mut (impl Read + Seek), size: u64) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    source.rewind()?;
    source.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The characters of a markup file, whatever bytes they came in.
pub(super) fn characters(bytes: &[u8]) -> Result<String, Refusal> {
    Ok(charset::decoded(bytes, true)?)
}
