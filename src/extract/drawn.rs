//! Words in the charts and diagrams of Office documents, which the parser passes by.

use std::io::{Cursor, Read};

const PART_BYTES: u64 = 4 * 1024 * 1024;
const PARTS: usize = 200;
/// Folders of an Office package whose parts hold words: charts, `SmartArt`, text boxes on sheets.
const FOLDERS: [&str; 6] = [
    "word/charts/",
    "word/diagrams/data",
    "xl/charts/",
    "xl/diagrams/data",
    "xl/drawings/drawing",
    "ppt/diagrams/data",
];

/// The texts of each drawn part; empty for anything but an Office package.
pub(super) fn parts(bytes: &[u8]) -> Vec<Vec<String>> {
    let Ok(mut package) = zip::ZipArchive::new(Cursor::new(bytes)) else { return Vec::new() };
    let is_drawn = |name: &str| {
        FOLDERS.iter().any(|folder| name.strip_prefix(folder).is_some_and(|rest| !rest.contains('/')))
    };
    let drawn: Vec<usize> = (0..package.len())
        .filter(|index| {
            package.name_for_index(*index).and_then(Result::ok).is_some_and(|name| is_drawn(&name))
        })
        .take(PARTS)
        .collect();
    let mut parts = Vec::new();
    for index in drawn {
        let Ok(part) = package.by_index(index) else { continue };
        let mut xml = String::new();
        if part.take(PART_BYTES).read_to_string(&mut xml).is_ok() {
            parts.push(texts(&xml));
        }
    }
    parts
}

/// What of `parts` is not in `known` yet: a part with nothing new is left out as a whole.
pub(super) fn unknown(parts: Vec<Vec<String>>, known: &str) -> Vec<String> {
    // Numbers alone say nothing, and most charts show the numbers of a table.
    let is_news = |text: &String| text.chars().any(char::is_alphabetic) && !known.contains(text.as_str());
    parts.into_iter().filter(|texts| texts.iter().any(is_news)).map(|texts| texts.join("\n")).collect()
}

/// The paragraphs of a drawing, then the names and values of a chart.
fn texts(xml: &str) -> Vec<String> {
    let paragraphs = xml.split("</a:p>").map(|paragraph| elements(paragraph, "a:t").concat());
    let values = elements(xml, "c:v");
    paragraphs.chain(values).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()).collect()
}

/// The contents of the elements of one name that hold text alone.
pub(super) fn elements(xml: &str, name: &str) -> Vec<String> {
    let (open, close) = (format!("<{name}"), format!("</{name}>"));
    let mut found = Vec::new();
    let mut rest = xml;
    while let Some(start) = rest.find(&open) {
        let tag = &rest[start + open.len()..];
        let Some((attributes, after)) = tag.split_once('>') else { break };
        rest = after;
        let is_whole_name = attributes.is_empty() || attributes.starts_with(' ');
        if is_whole_name && !attributes.ends_with('/') {
            let Some((text, after)) = rest.split_once(&close) else { break };
            found.push(unescaped(text));
            rest = after;
        }
    }
    found
}

fn unescaped(text: &str) -> String {
    // The ampersand last, so that `&amp;lt;` stays `&lt;`.
    let named = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    named.iter().fold(text.to_owned(), |text, (escape, meant)| text.replace(escape, meant))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_by_their_whole_name() {
        let xml = "<a:t>a &amp;lt; b</a:t><a:tbl/><a:t/><a:t xml:space=\"preserve\"> c</a:t><a:tc>no</a:tc>";
        assert_eq!(elements(xml, "a:t"), ["a &lt; b", " c"]);
    }

    #[test]
    fn a_chart_whose_words_stand_in_the_text_is_no_news() {
        let chart = texts("<a:p><a:t>Ducks</a:t></a:p><c:v>2019</c:v><c:v>120</c:v>");
        assert_eq!(chart, ["Ducks", "2019", "120"]);
        assert!(unknown(vec![chart.clone()], "| Ducks |").is_empty());
        assert_eq!(unknown(vec![chart], "| Geese |"), ["Ducks\n2019\n120"]);
    }
}
