//! E-mails: what their headers say before the parser reads them, and boxes full of them.

use super::Hint;
use super::charset;
use super::document;
use super::draft::{Draft, Gap};
use super::kind;
use super::wire::Refusal;

/// The type of one e-mail.
pub(super) const MAIL: &str = "message/rfc822";

/// Reads each e-mail of a mailbox as a member.
pub(super) fn mailbox(bytes: &[u8], draft: &mut Draft) -> Result<(), Refusal> {
    let mut starts: Vec<usize> = Vec::new();
    let mut after_blank = true;
    let mut at = 0;
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        if after_blank && line.starts_with(b"From ") {
            starts.push(at);
        }
        after_blank = matches!(line, b"\n" | b"\r\n");
        at += line.len();
    }
    if starts.is_empty() {
        // No box at all, whatever its name says.
        return Ok(draft.block(&charset::decoded(bytes, false)?)?);
    }
    starts.push(bytes.len());
    for (number, range) in starts.windows(2).enumerate() {
        let mail = &bytes[range[0]..range[1]];
        // The "From " line belongs to the box.
        let mail = &mail[mail.iter().position(|b| *b == b'\n').map_or(mail.len(), |end| end + 1)..];
        let name = subject(mail).unwrap_or_else(|| format!("mail {}", number + 1));
        let hint = Hint { name: Some("mail.eml".to_owned()), mime: None };
        let read = draft.member(&name, |draft| document::read(mail.to_vec(), MAIL, &hint, draft).map(drop));
        match read {
            Ok(()) => {}
            Err(e @ Refusal::Io { .. }) => return Err(e),
            Err(Refusal::Encrypted) => draft.gap(Gap::Encrypted, &name),
            Err(_) => draft.gap(Gap::Unread, &name),
        }
    }
    Ok(())
}

/// The header lines of an e-mail, folded lines joined, up to the first empty line.
fn headers(mail: &[u8]) -> String {
    let end = kind::find(mail, b"\n\n").or_else(|| kind::find(mail, b"\n\r\n")).unwrap_or(mail.len());
    let headers = String::from_utf8_lossy(&mail[..end.min(64 * 1024)]).replace('\r', "");
    headers.replace("\n ", " ").replace("\n\t", " ")
}

fn header<'a>(headers: &'a str, name: &str) -> Option<&'a str> {
    headers.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// The subject of an e-mail, unless it is encoded.
fn subject(mail: &[u8]) -> Option<String> {
    let headers = headers(mail);
    header(&headers, "subject").filter(|s| !s.is_empty() && !s.contains("=?")).map(str::to_owned)
}

/// True for PGP/MIME and enveloped S/MIME; a signed mail can be read.
pub(super) fn is_encrypted(mail: &[u8]) -> bool {
    let headers = headers(mail);
    let kind = header(&headers, "content-type").unwrap_or_default().to_ascii_lowercase();
    kind.starts_with("multipart/encrypted") || (kind.contains("pkcs7-mime") && !kind.contains("signed-data"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encrypted_mail_is_told_by_its_type() {
        let mail = b"Subject: x\r\nContent-Type: multipart/encrypted;\r\n\tboundary=foo\r\n\r\n--foo";
        assert!(is_encrypted(mail));
        assert!(!is_encrypted(b"Content-Type: multipart/signed; x\n\nmultipart/encrypted"));
        assert_eq!(subject(mail).as_deref(), Some("x"));
    }
}
