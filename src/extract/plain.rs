//! Files that are text already: streamed through the decoder, or freed of their times.

use super::charset;
use super::draft::Draft;
use super::wire::Refusal;
use crate::domain::Syntax;
use std::io::{Read, Seek};

/// Streams a text of any size and encoding.
pub(super) fn text(
    source: &mut (impl Read + Seek),
    syntax: Syntax,
    draft: &mut Draft,
) -> Result<(), Refusal> {
    if !draft.is_inside() {
        draft.syntax = syntax;
    }
    let encoding = charset::detect(source, false)?;
    charset::decode(source, encoding, |piece| draft.text(piece))?;
    Ok(())
}

/// `WebVTT` and `SubRip`: what is said, one cue a paragraph.
pub(super) fn captions(bytes: &[u8], draft: &mut Draft) -> Result<(), Refusal> {
    let text = charset::decoded(bytes, false)?.replace("\r\n", "\n");
    for block in text.split("\n\n") {
        let mut lines = block.lines().skip_while(|line| !line.contains("-->"));
        if lines.next().is_none() {
            // A header, a note or a style.
            continue;
        }
        let said: Vec<String> = lines.map(untagged).collect();
        draft.block(&said.join("\n"))?;
    }
    Ok(())
}

fn untagged(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, tag)) = rest.split_once('<') {
        text.push_str(before);
        let Some((_, after)) = tag.split_once('>') else {
            text.push('<');
            rest = tag;
            break;
        };
        rest = after;
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract::draft::Shape;

    #[test]
    fn captions_keep_what_is_said_and_nothing_else() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut draft = Draft::new(file.reopen().unwrap(), 1000);
        let vtt = "WEBVTT\n\nNOTE by hand\n\n1\n00:00.000 --> 00:02.000\n<v Esme>It is three, <i>dear</i>!\n\n00:02.000 --> 00:03.000\nNo";
        captions(vtt.as_bytes(), &mut draft).unwrap();
        draft.finish(Shape::Other).unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert_eq!(text, "It is three, dear!\n\nNo");
    }
}
