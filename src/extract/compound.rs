//! OLE files: which program made them, and whether they are locked.

use super::wire::Refusal;
use std::io::{Read, Seek};

const WORD: &str = "application/msword";
const EXCEL: &str = "application/vnd.ms-excel";
const POWERPOINT: &str = "application/vnd.ms-powerpoint";
const OUTLOOK: &str = "application/vnd.ms-outlook";

/// Tells the type of an OLE file by its streams; an encrypted one is refused.
pub(super) fn identify(source: &mut (impl Read + Seek)) -> Result<&'static str, Refusal> {
    source.rewind()?;
    let mut file = cfb::CompoundFile::open(&mut *source).map_err(Refusal::malformed)?;
    if file.exists("/EncryptedPackage") || file.exists("/\u{6}DataSpaces") {
        return Err(Refusal::Encrypted);
    }
    if file.exists("/WordDocument") {
        // FIB: the sixth word's bit 8 is fEncrypted ([MS-DOC] 2.5.2).
        let flags = word_at(&mut file, "/WordDocument", 10);
        return if flags & 0x0100 == 0 { Ok(WORD) } else { Err(Refusal::Encrypted) };
    }
    if file.exists("/PowerPoint Document") {
        // CurrentUserAtom.headerToken of an encrypted file ([MS-PPT] 2.3.2).
        let token = (word_at(&mut file, "/Current User", 12), word_at(&mut file, "/Current User", 14));
        return if token == (0xC4DF, 0xF3D1) { Err(Refusal::Encrypted) } else { Ok(POWERPOINT) };
    }
    if file.exists("/Workbook") || file.exists("/Book") {
        return Ok(EXCEL);
    }
    if file.exists("/__properties_version1.0") {
        return Ok(OUTLOOK);
    }
    Err(Refusal::Unsupported { what: "application/x-ole-storage".to_owned() })
}

fn word_at<F: Read + Seek>(file: &mut cfb::CompoundFile<F>, stream: &str, offset: usize) -> u16 {
    let mut head = Vec::new();
    let read = file.open_stream(stream).and_then(|stream| stream.take(64).read_to_end(&mut head));
    match (read, head.get(offset..offset + 2)) {
        (Ok(_), Some(bytes)) => u16::from_le_bytes([bytes[0], bytes[1]]),
        _ => 0,
    }
}
