//! Small repairs before and after the parser: declarations, escapes, headers of e-mails.

use super::kind;

/// Says that a markup text is UTF-8, which it now is whatever it said before.
pub(super) fn declared_utf8(text: String) -> String {
    let end = text.find("?>").filter(|_| text.starts_with("<?xml"));
    let Some(end) = end else { return text };
    let declaration = &text[..end];
    let Some(start) = declaration.find("encoding=").map(|at| at + "encoding=".len()) else { return text };
    let Some(quote) = declaration[start..].chars().next().filter(|c| matches!(c, '"' | '\'')) else {
        return text;
    };
    let Some(length) = declaration[start + 1..].find(quote) else { return text };
    format!("{}UTF-8{}", &text[..=start], &text[start + 1 + length..])
}

/// Takes out what Markdown writers put in for renderers alone: backslashes before signs that
/// mean nothing there, and underline tags. Code blocks stay as they are.
pub(super) fn markdown(text: &str) -> String {
    let mut polished = String::with_capacity(text.len());
    let mut in_code = false;
    for line in text.split_inclusive('\n') {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code || !line.contains(['\\', '<']) {
            polished.push_str(line);
        } else {
            unescape(line, &mut polished);
        }
    }
    polished
}

fn unescape(line: &str, into: &mut String) {
    let mut plain = String::with_capacity(line.len());
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        let is_idle =
            c == '\\' && chars.peek().is_some_and(|next| "<>!.&~+{}\"'$%,:;=@^/?()".contains(*next));
        if !is_idle {
            plain.push(c);
        }
    }
    into.push_str(&plain.replace("<u>", "").replace("</u>", ""));
}

/// The text between the tags, without scripts and styles.
pub(super) fn untagged(text: &str) -> String {
    let mut bare = String::new();
    let mut rest = text;
    while let Some((before, tag)) = rest.split_once('<') {
        bare.push_str(before);
        bare.push(' ');
        let name: String = tag.chars().take_while(char::is_ascii_alphabetic).collect();
        let end = match name.to_ascii_lowercase().as_str() {
            "script" => "</script>",
            "style" => "</style>",
            _ if tag.starts_with("!--") => "-->",
            _ => ">",
        };
        rest = tag.split_once(end).map_or("", |(_, rest)| rest);
    }
    bare.push_str(rest);
    bare
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
pub(super) fn subject(mail: &[u8]) -> Option<String> {
    let headers = headers(mail);
    header(&headers, "subject").filter(|s| !s.is_empty() && !s.contains("=?")).map(str::to_owned)
}

/// True for PGP/MIME and enveloped S/MIME; a signed mail can be read.
pub(super) fn is_encrypted_mail(mail: &[u8]) -> bool {
    let headers = headers(mail);
    let kind = header(&headers, "content-type").unwrap_or_default().to_ascii_lowercase();
    kind.starts_with("multipart/encrypted") || (kind.contains("pkcs7-mime") && !kind.contains("signed-data"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declaration_follows_the_bytes() {
        let text = "<?xml version='1.0' encoding='ISO-8859-1'?><a/>".to_owned();
        assert_eq!(declared_utf8(text), "<?xml version='1.0' encoding='UTF-8'?><a/>");
        assert_eq!(declared_utf8("<a/>".to_owned()), "<a/>");
    }

    #[test]
    fn idle_escapes_and_underlines_go_but_code_stays() {
        let text = "Hee\\! \\<v\\> <u>so</u> \\# \\* 1\\.\n```\na\\!b\n```\n";
        assert_eq!(markdown(text), "Hee! <v> so \\# \\* 1.\n```\na\\!b\n```\n");
    }

    #[test]
    fn tags_scripts_and_comments_go_and_words_stay() {
        let html = "<p>a<!-- no > no --><script>no()</script> <b>b</b><style>no</style>";
        assert_eq!(untagged(html).split_whitespace().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn an_encrypted_mail_is_told_by_its_type() {
        let mail = b"Subject: x\r\nContent-Type: multipart/encrypted;\r\n\tboundary=foo\r\n\r\n--foo";
        assert!(is_encrypted_mail(mail));
        assert!(!is_encrypted_mail(b"Content-Type: multipart/signed; x\n\nmultipart/encrypted"));
        assert_eq!(subject(mail).as_deref(), Some("x"));
    }
}
