//! Word documents saved as one XML file (2003, and the flat package of 2006): an XML reader
//! would take their styles and pictures for text.

use super::draft::Draft;
use crate::domain::Syntax;
use std::io;

/// True for an XML file that Word wrote.
pub(super) fn is_wordml(text: &str) -> bool {
    let head = &text[..text.floor_char_boundary(4096)];
    text.starts_with("<?xml") && head.contains("progid=\"Word.Document\"")
}

/// Writes the text of each paragraph; deleted text has an element of its own, which is not read.
pub(super) fn paragraphs(text: &str, draft: &mut Draft) -> io::Result<()> {
    if !draft.is_inside() {
        draft.syntax = Syntax::Plain;
    }
    // Charts and drawings write the same with another prefix.
    let text = text.replace("<a:t>", "<w:t>").replace("</a:t>", "</w:t>").replace("</a:p>", "</w:p>");
    for paragraph in text.split("</w:p>") {
        let mut said = String::new();
        let mut rest = paragraph;
        while let Some(start) = rest.find("<w:t") {
            let tag = &rest[start + "<w:t".len()..];
            let Some((attributes, after)) = tag.split_once('>') else { break };
            rest = after;
            match attributes.chars().next() {
                // <w:t>, not <w:tab/> nor <w:tbl>.
                None | Some(' ') if !attributes.ends_with('/') => {
                    let Some((words, after)) = rest.split_once("</w:t>") else { break };
                    said.push_str(&unescaped(words));
                    rest = after;
                }
                Some('a') if attributes == "ab/" => said.push('\t'),
                _ => {}
            }
        }
        draft.block(&said)?;
    }
    Ok(())
}

fn unescaped(text: &str) -> String {
    // The ampersand last, so that `&amp;lt;` stays `&lt;`.
    let named = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    named.iter().fold(text.to_owned(), |text, (escape, meant)| text.replace(escape, meant))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract::draft::Shape;

    #[test]
    fn paragraphs_are_read_and_deletions_are_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut draft = Draft::new(file.reopen().unwrap(), 1000);
        let xml = "<?xml version=\"1.0\"?><?mso-application progid=\"Word.Document\"?><w:tbl><w:p><w:r>\
                   <w:t>a &amp;lt; b</w:t><w:tab/><w:t xml:space=\"preserve\"> c</w:t><w:delText>gone</w:delText>\
                   </w:r></w:p><w:p><w:t/></w:p><w:p><w:t>d</w:t></w:p></w:tbl>";
        assert!(is_wordml(xml));
        paragraphs(xml, &mut draft).unwrap();
        draft.finish(Shape::Other).unwrap();
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "a &lt; b\t c\n\nd");
    }
}
