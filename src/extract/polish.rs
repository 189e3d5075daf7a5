//! Small repairs before and after the parser: declarations, escapes, tags.

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
}
