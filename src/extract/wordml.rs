//! Word documents saved as one XML file (2003, and the flat package of 2006): an XML reader
//! would take their styles and pictures for text.

use super::draft::Draft;
use super::drawn;
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
    for paragraph in text.split_inclusive("</w:p>").flat_map(|text| text.split("</a:p>")) {
        // Charts and drawings within the document write the same with another prefix.
        let words = [drawn::elements(paragraph, "w:t"), drawn::elements(paragraph, "a:t")].concat();
        draft.block(&words.concat())?;
    }
    Ok(())
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
                   <w:t>a</w:t><w:tab/><w:t xml:space=\"preserve\"> c</w:t><w:delText>gone</w:delText>\
                   </w:r></w:p><w:p><w:t/></w:p><w:p><w:t>d</w:t></w:p></w:tbl>";
        assert!(is_wordml(xml));
        paragraphs(xml, &mut draft).unwrap();
        draft.finish(Shape::Other).unwrap();
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "a c\n\nd");
    }
}
