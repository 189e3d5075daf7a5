//! OLE containers: old Office files, Outlook messages, and the macro projects of new ones.

use super::budget::Halt;
use super::rules::Scope;
use super::unpack::Walker;
use memchr::memmem;
use std::fs::File;
use std::io::{BufReader, Read};

/// Streams longer than this hold no macro source; their raw bytes were looked at already.
const LONGEST_MODULE: u64 = 4 << 20;

/// What an OLE file is, by the streams of its root; `None` if it is damaged.
pub(super) fn mime(file: &mut File) -> Option<&'static str> {
    let document = cfb::CompoundFile::open(BufReader::new(file)).ok()?;
    let names: Vec<String> = document.read_root_storage().map(|entry| entry.name().to_owned()).collect();
    let has = |name: &str| names.iter().any(|n| n.eq_ignore_ascii_case(name));
    let word = [
        ("EncryptedPackage", ENCRYPTED),
        ("__properties_version1.0", "application/vnd.ms-outlook"),
        ("WordDocument", "application/msword"),
        ("PowerPoint Document", "application/vnd.ms-powerpoint"),
        ("Workbook", "application/vnd.ms-excel"),
        ("Book", "application/vnd.ms-excel"),
    ];
    word.iter().find(|(name, _)| has(name)).map(|(_, mime)| *mime)
}

/// An OOXML document that is encrypted lies whole inside of an OLE file.
pub(super) const ENCRYPTED: &str = "application/x-ole-encrypted-package";

/// Looks at the decompressed source of every VBA module. A damaged container has been looked at
/// raw and gives nothing to a parser either.
pub(super) fn streams(walker: &mut Walker<'_>, file: &mut File) -> Result<(), Halt> {
    let Ok(mut document) = cfb::CompoundFile::open(BufReader::new(file)) else {
        walker.notes.push("ole_damaged");
        return Ok(());
    };
    let modules: Vec<_> = document
        .walk()
        .filter(|entry| entry.is_stream() && entry.len() <= LONGEST_MODULE)
        .map(|entry| entry.path().to_owned())
        .collect();
    let mut sieve = walker.rules.sieve();
    for path in modules {
        walker.budget.member()?;
        let mut bytes = Vec::new();
        let Ok(stream) = document.open_stream(&path) else { continue };
        if stream.take(LONGEST_MODULE).read_to_end(&mut bytes).is_err() {
            walker.notes.push("ole_damaged");
        }
        if path.ends_with("EncryptedPackage") {
            return Err(Halt::Opaque(
                "encrypted: the document cannot be read without its password".to_owned(),
            ));
        }
        for at in memmem::find_iter(&bytes, b"\0Attribut") {
            // The container's mark and the chunk's two-byte header stand before the flags.
            let Some(begin) = at.checked_sub(3) else { continue };
            sieve.next_stream();
            sieve.feed(&decompress(&bytes[begin..]));
        }
    }
    match sieve.verdict(Scope::Macro) {
        Some(name) => Err(Halt::Found(name.to_owned())),
        None => Ok(()),
    }
}

/// VBA's own compression (MS-OVBA 2.4.1), as far as the bytes make sense. Output is at most
/// 4096 bytes for each chunk, so it cannot explode.
fn decompress(container: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if container.first() != Some(&1) {
        return out;
    }
    let mut rest = &container[1..];
    while let [low, high, tail @ ..] = rest {
        let header = u16::from_le_bytes([*low, *high]);
        if header & 0x7000 != 0x3000 {
            break;
        }
        let size = usize::from(header & 0x0fff) + 1;
        let chunk = &tail[..size.min(tail.len())];
        if header & 0x8000 == 0 {
            out.extend_from_slice(chunk);
        } else {
            inflate_chunk(chunk, &mut out);
        }
        rest = &tail[chunk.len()..];
    }
    out
}

fn inflate_chunk(mut chunk: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    while let Some((&flags, tail)) = chunk.split_first() {
        chunk = tail;
        for bit in 0..8 {
            if out.len() - start >= 4096 {
                return;
            }
            match chunk {
                [byte, tail @ ..] if (flags >> bit) & 1 == 0 => {
                    out.push(*byte);
                    chunk = tail;
                }
                [low, high, tail @ ..] => {
                    let token = u16::from_le_bytes([*low, *high]);
                    chunk = tail;
                    if !copy(token, start, out) {
                        return;
                    }
                }
                _ => return,
            }
        }
    }
}

/// A copy token: its split between offset and length moves with the position in the chunk.
fn copy(token: u16, start: usize, out: &mut Vec<u8>) -> bool {
    let here = out.len() - start;
    let bits = (usize::BITS - here.saturating_sub(1).leading_zeros()).clamp(4, 12);
    let length = usize::from(token & (0xffff >> bits)) + 3;
    let offset = usize::from(token >> (16 - bits)) + 1;
    if offset > here {
        return false;
    }
    for _ in 0..length {
        out.push(out[out.len() - offset]);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vba_compression_is_undone() {
        // The worked example of the format's specification (MS-OVBA 3.2.2, "normal").
        let packed = [
            0x01, 0x2f, 0xb0, 0x00, 0x23, 0x61, 0x61, 0x61, 0x62, 0x63, 0x64, 0x65, 0x82, 0x66, 0x00, 0x70,
            0x61, 0x67, 0x68, 0x69, 0x6a, 0x01, 0x38, 0x08, 0x61, 0x6b, 0x6c, 0x00, 0x30, 0x6d, 0x6e, 0x6f,
            0x70, 0x06, 0x71, 0x02, 0x70, 0x04, 0x10, 0x72, 0x73, 0x74, 0x75, 0x76, 0x10, 0x77, 0x78, 0x79,
            0x7a, 0x00, 0x3c,
        ];
        assert_eq!(decompress(&packed), b"#aaabcdefaaaaghijaaaaaklaaamnopqaaaaaaaaaaaarstuvwxyzaaa");
    }

    #[test]
    fn rubbish_does_not_panic_or_explode() {
        for seed in 0..200_u32 {
            let bytes: Vec<u8> = (0..500_u32)
                .map(|i| (i.wrapping_mul(seed.wrapping_add(7)).wrapping_mul(2_654_435_761) >> 13) as u8)
                .collect();
            let mut packed = vec![1, 0xff, 0xbf];
            packed.extend(bytes);
            assert!(decompress(&packed).len() <= 4096 + 4098);
        }
    }
}
