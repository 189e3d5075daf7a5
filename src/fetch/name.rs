//! What a downloaded file is called: Content-Disposition, else the last part of the URL.

use url::Url;

const LONGEST: usize = 255;

/// A harmless file name, never a path; `None` if neither source gives one.
pub(super) fn file_name(disposition: Option<&str>, url: &Url) -> Option<String> {
    disposition.and_then(from_disposition).or_else(|| {
        let last = url.path_segments()?.next_back()?;
        clean(&percent_decoded(last))
    })
}

/// `filename*` (RFC 5987, UTF-8) wins over `filename`.
fn from_disposition(header: &str) -> Option<String> {
    let mut plain = None;
    for parameter in parameters(header) {
        let Some((key, value)) = parameter.split_once('=') else { continue };
        let value = value.trim();
        match key.trim().to_ascii_lowercase().as_str() {
            "filename*" => {
                let mut parts = value.splitn(3, '\'');
                let charset = parts.next().unwrap_or_default();
                if let (true, Some(encoded)) = (charset.eq_ignore_ascii_case("utf-8"), parts.nth(1))
                    && let Some(name) = clean(&percent_decoded(encoded))
                {
                    return Some(name);
                }
            }
            "filename" => plain = clean(&unquoted(value)),
            _ => {}
        }
    }
    plain
}

/// Splits at semicolons outside of quotes.
fn parameters(header: &str) -> Vec<&str> {
    let (mut parts, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, byte) in header.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b';' if !quoted => {
                parts.push(&header[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&header[start..]);
    parts
}

fn unquoted(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')) else {
        return value.to_owned();
    };
    let mut escaped = false;
    inner
        .chars()
        .filter(|&c| {
            escaped = c == '\\' && !escaped;
            !escaped
        })
        .collect()
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = (first == b'%').then(|| tail.get(..2)).flatten();
        let value = code.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(value.unwrap_or(first));
        rest = if value.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The last path part, without control and direction characters, cut to 255 bytes.
fn clean(name: &str) -> Option<String> {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let mut kept: String = last
        .chars()
        .filter(|&c| {
            !c.is_control()
                && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        })
        .collect();
    while kept.len() > LONGEST {
        kept.pop();
    }
    let kept = kept.trim();
    (!kept.is_empty() && kept != "." && kept != "..").then(|| kept.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_header_then_the_url_and_are_never_paths() {
        let url = Url::parse("https://x.test/a/Jahres%20bericht.pdf?x=1").unwrap();
        let bare = Url::parse("https://x.test/").unwrap();
        let table: [(Option<&str>, &Url, Option<&str>); 10] = [
            (None, &url, Some("Jahres bericht.pdf")),
            (None, &bare, None),
            (Some("attachment"), &url, Some("Jahres bericht.pdf")),
            (Some("attachment; filename=\"a;b.txt\""), &bare, Some("a;b.txt")),
            (Some(r#"attachment; filename="a\"b.txt""#), &bare, Some("a\"b.txt")),
            (Some("attachment; filename=x.txt; filename*=UTF-8''%C3%BC.txt"), &bare, Some("ü.txt")),
            (Some("attachment; filename=\"../../etc/passwd\""), &bare, Some("passwd")),
            (Some("attachment; filename=\"..\""), &bare, None),
            (Some("attachment; filename=\"C:\\\\x\\\\y.doc\""), &bare, Some("y.doc")),
            (Some("attachment; filename=\"a\u{202e}fdp.exe\""), &bare, Some("afdp.exe")),
        ];
        for (header, url, expected) in table {
            assert_eq!(file_name(header, url).as_deref(), expected, "{header:?}");
        }
    }
}
