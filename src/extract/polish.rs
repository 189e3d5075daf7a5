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

/// A Markdown text without what is there for renderers alone.
pub(super) struct Polished {
    pub text: String,
    pictures: Pictures,
}

/// What a text says of its pictures.
#[derive(Default)]
struct Pictures {
    count: usize,
    /// How many characters of the text are only their names.
    name_chars: usize,
}

impl Polished {
    /// True if there is nothing to read but pictures and their names.
    pub(super) fn is_pictures_alone(&self) -> bool {
        self.pictures.count > 0 && visible(&self.text) <= self.pictures.name_chars
    }
}

fn visible(text: &str) -> usize {
    text.chars().filter(|c| !c.is_whitespace()).count()
}

/// Takes out what Markdown writers put in for renderers: backslashes before signs that mean
/// nothing there, underline tags, and all of a picture but its description. Code blocks stay
/// as they are.
pub(super) fn markdown(text: &str) -> Polished {
    let mut polished = Polished { text: String::with_capacity(text.len()), pictures: Pictures::default() };
    let mut in_code = false;
    for line in text.split_inclusive('\n') {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if !in_code && line.trim().len() >= 5 && line.trim().bytes().all(|b| b == b'-') {
            // A rule between slides; below a line of text it would make a heading of it.
            polished.text.push('\n');
        } else if in_code || !line.contains(['\\', '<', '[']) {
            polished.text.push_str(line);
        } else {
            unescape(&without_pictures(line, &mut polished.pictures), &mut polished.text);
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

/// Puts the description in place of each picture; data within a link goes too.
fn without_pictures(line: &str, pictures: &mut Pictures) -> String {
    let mut bare = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((text, target)) = rest.split_once("](") {
        let Some((target, after)) = target.split_once(')') else { break };
        match text.rsplit_once("![") {
            Some((before, description)) => {
                pictures.count += 1;
                bare.push_str(before.strip_suffix('\\').unwrap_or(before));
                // Of a path only the name is worth a word.
                let name = description.rsplit(['/', '\\']).next().unwrap_or_default();
                let is_name = is_name(name);
                pictures.name_chars += if is_name { visible(name) } else { 0 };
                bare.push_str(if is_name { name } else { description });
            }
            None if target.starts_with("data:") => {
                let (before, label) = text.rsplit_once('[').unwrap_or(("", text));
                bare.push_str(before);
                bare.push_str(label);
            }
            // What is left of a link around a picture without a description.
            None if text.is_empty() && bare.ends_with('[') => bare.truncate(bare.len() - 1),
            None => {
                bare.push_str(text);
                bare.push_str("](");
                bare.push_str(target);
                bare.push(')');
            }
        }
        rest = after;
    }
    bare.push_str(rest);
    bare
}

/// True for a file name or a program's own "Picture 3": a description that describes nothing.
fn is_name(description: &str) -> bool {
    const ENDINGS: [&str; 11] =
        ["png", "jpg", "jpeg", "gif", "bmp", "emf", "wmf", "tif", "tiff", "svg", "webp"];
    let ending = description.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    let numbered = description.strip_prefix("Picture ").or_else(|| description.strip_prefix("Image "));
    ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
        || numbered.is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit()))
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
        assert_eq!(markdown(text).text, "Hee! <v> so \\# \\* 1.\n```\na\\!b\n```\n");
    }

    #[test]
    fn a_picture_leaves_its_description_only() {
        let text = "a ![A duck](media/1.png) [b](http://x) ![Picture 1](2.bin)![x.PNG](data:image/png;base64,AA) c\n";
        let polished = markdown(text);
        assert_eq!(polished.text, "a A duck [b](http://x) Picture 1x.PNG c\n");
        assert!(!polished.is_pictures_alone());
        assert!(markdown("\\![C:\\pics\\1.png](1.png)\n\n-----\n").is_pictures_alone());
        assert_eq!(markdown("[![](1.png)](http://x) go").text, " go");
        assert_eq!(markdown("[note](data:text/plain,x) [1] (2)").text, "note [1] (2)");
    }

    #[test]
    fn tags_scripts_and_comments_go_and_words_stay() {
        let html = "<p>a<!-- no > no --><script>no()</script> <b>b</b><style>no</style>";
        assert_eq!(untagged(html).split_whitespace().collect::<Vec<_>>(), ["a", "b"]);
    }
}
