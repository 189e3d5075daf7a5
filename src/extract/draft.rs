//! A text being put together: readers add pages and members, and say what they missed.

use super::mend::Gate;
use super::wire::{Reading, Refusal, Scanned};
use crate::domain::Completeness;
use crate::domain::Page;
use crate::domain::Syntax;
use crate::domain::TextFacts;
use std::fs::File;
use std::io;

/// The longest title and label that is kept, in characters.
const LABEL_CHARS: usize = 300;
/// How many missing parts are named.
const NAMED_GAPS: usize = 20;
/// Shorter texts than this say too little about their language.
const LANGUAGE_CHARS: u64 = 60;

/// Collects text through the gate, with the facts about it.
pub(super) struct Draft {
    gate: Gate,
    pages: Vec<Page>,
    /// Pages that hold a picture and no text.
    pictured: Vec<u32>,
    /// Parts that could not be read, by name.
    gaps: Vec<(Gap, String)>,
    /// Above zero inside an archive member, whose own pages are not pages of the whole.
    depth: u32,
    pub(super) title: Option<String>,
    pub(super) syntax: Syntax,
}

/// Why a part of a container was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gap {
    Encrypted,
    Picture,
    Unread,
}

/// What an OCR engine would have to know about the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Pdf,
    Picture,
    Other,
}

impl Draft {
    pub(super) fn new(into: File, ceiling: u64) -> Self {
        Self {
            gate: Gate::new(into, ceiling),
            pages: Vec::new(),
            pictured: Vec::new(),
            gaps: Vec::new(),
            depth: 0,
            title: None,
            syntax: Syntax::Plain,
        }
    }

    /// Adds text as it is.
    pub(super) fn text(&mut self, text: &str) -> io::Result<()> {
        self.gate.push(text)
    }

    /// Adds text that stands apart from what came before.
    pub(super) fn block(&mut self, text: &str) -> io::Result<()> {
        if text.trim().is_empty() {
            return Ok(());
        }
        self.gate.paragraph()?;
        self.gate.push(text)
    }

    /// Adds a page; inside an archive member only its text.
    pub(super) fn page(&mut self, number: u32, label: Option<&str>, text: &str) -> io::Result<()> {
        if self.depth > 0 {
            return self.block(text);
        }
        if !text.trim().is_empty() {
            self.gate.paragraph()?;
        }
        let start = self.gate.offset();
        self.gate.push(text)?;
        self.close_page(number, label, start);
        Ok(())
    }

    /// Adds a member of a container: its name as a heading, then what `read` adds.
    pub(super) fn member<E: From<io::Error>>(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.gate.paragraph()?;
        let start = self.gate.offset();
        let (title, syntax) = (self.title.take(), self.syntax);
        self.gate.heading(&format!("# {}\n\n", name.replace(['\n', '\r'], " ")))?;
        self.depth += 1;
        let read = read(self);
        self.depth -= 1;
        (self.title, self.syntax) = (title, syntax);
        if self.depth == 0 {
            let number = self.next_number();
            self.close_page(number, Some(name), start);
        }
        read
    }

    /// Says that a page holds a picture and no text.
    pub(super) fn picture(&mut self, page: u32) {
        if self.depth > 0 {
            let number = self.next_number();
            self.gap(Gap::Picture, &format!("the pictures of part {number}"));
        } else {
            self.pictured.push(page);
        }
    }

    /// Says that a part could not be read.
    pub(super) fn gap(&mut self, why: Gap, what: &str) {
        let what = clipped(what);
        if self.gaps.last().is_none_or(|(_, last)| *last != what) {
            self.gaps.push((why, what));
        }
    }

    fn next_number(&self) -> u32 {
        self.pages.last().map_or(0, |page| page.number) + 1
    }

    /// True while inside a member.
    pub(super) fn is_inside(&self) -> bool {
        self.depth > 0
    }

    fn close_page(&mut self, number: u32, label: Option<&str>, start: u64) {
        let label = label.map(clipped).filter(|label| !label.is_empty());
        self.pages.push(Page { number, label, start, end: self.gate.offset() });
    }

    /// Seals the text; a file of which nothing could be read is refused instead.
    pub(super) fn finish(self, shape: Shape) -> Result<Reading, Refusal> {
        let sealed = self.gate.seal()?;
        let only = |why: Gap| !self.gaps.is_empty() && self.gaps.iter().all(|(gap, _)| *gap == why);
        let completeness = if sealed.seen_bytes > sealed.bytes {
            Completeness::Truncated { kept_bytes: sealed.bytes, total_bytes: Some(sealed.seen_bytes) }
        } else if sealed.blank && !self.pictured.is_empty() {
            Completeness::NeedsOcr { pages: self.pictured.clone() }
        } else if sealed.blank && only(Gap::Picture) {
            Completeness::NeedsOcr { pages: self.pages.iter().map(|page| page.number).collect() }
        } else if sealed.blank && only(Gap::Encrypted) {
            return Err(Refusal::Encrypted);
        } else if sealed.blank && !self.gaps.is_empty() {
            return Err(Refusal::NothingRead { detail: detail(&[], &self.gaps) });
        } else if sealed.blank {
            Completeness::Empty
        } else if self.pictured.is_empty() && self.gaps.is_empty() {
            Completeness::Complete
        } else {
            let detail = detail(&self.pictured, &self.gaps);
            Completeness::Partial { pages: self.pictured.clone(), detail }
        };
        let facts = TextFacts {
            text_bytes: sealed.bytes,
            text_chars: sealed.chars,
            text_sha256: sealed.sha256,
            completeness,
            pages: self.pages,
            language: if sealed.chars < LANGUAGE_CHARS { None } else { language(&sealed.sample) },
            syntax: self.syntax,
            title: self.title.as_deref().map(clipped).filter(|title| !title.is_empty()),
        };
        let scanned = match shape {
            Shape::Pdf if !self.pictured.is_empty() => Scanned::PdfPages(self.pictured),
            Shape::Picture => Scanned::Whole,
            _ => Scanned::Nothing,
        };
        Ok(Reading { facts, scanned })
    }
}

fn clipped(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(LABEL_CHARS).collect::<String>().trim().to_owned()
}

fn detail(pictured: &[u32], gaps: &[(Gap, String)]) -> String {
    let mut detail = String::new();
    if !pictured.is_empty() {
        detail.push_str("some pages are pictures and were not read");
    }
    if !gaps.is_empty() {
        let separator = if detail.is_empty() { "" } else { "; " };
        let named: Vec<&str> = gaps.iter().take(NAMED_GAPS).map(|(_, what)| what.as_str()).collect();
        detail.push_str(separator);
        detail.push_str("not read: ");
        detail.push_str(&named.join(", "));
        if gaps.len() > NAMED_GAPS {
            detail.push_str(" and more");
        }
    }
    detail
}

/// The language by its two letters, when the detector is sure.
fn language(sample: &str) -> Option<String> {
    let found = whatlang::detect(sample).filter(whatlang::Info::is_reliable)?;
    Some(two_letters(found.lang())?.to_owned())
}

/// ISO 639-1 of the languages that the detector knows; Mandarin stands for Chinese.
fn two_letters(lang: whatlang::Lang) -> Option<&'static str> {
    const PAIRS: &str = "\
        afr=af aka=ak amh=am ara=ar aze=az bel=be ben=bn bul=bg cat=ca ces=cs cmn=zh cym=cy dan=da \
        deu=de ell=el eng=en epo=eo est=et fin=fi fra=fr guj=gu heb=he hin=hi hrv=hr hun=hu hye=hy \
        ind=id ita=it jav=jv jpn=ja kan=kn kat=ka khm=km kor=ko lat=la lav=lv lit=lt mal=ml mar=mr \
        mkd=mk mya=my nep=ne nld=nl nob=nb ori=or pan=pa pes=fa pol=pl por=pt ron=ro rus=ru sin=si \
        slk=sk slv=sl sna=sn spa=es srp=sr swe=sv tam=ta tel=te tgl=tl tha=th tuk=tk tur=tr ukr=uk \
        urd=ur uzb=uz vie=vi yid=yi zul=zu";
    let code = lang.code();
    PAIRS
        .split_whitespace()
        .filter_map(|pair| pair.split_once('='))
        .find_map(|(three, two)| (three == code).then_some(two))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafted(write: impl FnOnce(&mut Draft)) -> (String, Reading) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut draft = Draft::new(file.reopen().unwrap(), 1 << 20);
        write(&mut draft);
        let finished = draft.finish(Shape::Other).unwrap();
        (std::fs::read_to_string(file.path()).unwrap(), finished)
    }

    #[test]
    fn pages_are_ranges_of_the_stored_text() {
        let (text, finished) = drafted(|draft| {
            draft.page(1, None, "ein\r\ns\0").unwrap();
            draft.page(2, None, "").unwrap();
            draft.page(3, Some("Schluß"), "zwei").unwrap();
        });
        let pages: Vec<&str> =
            finished.facts.pages.iter().map(|p| &text[p.start as usize..p.end as usize]).collect();
        assert_eq!(pages, ["ein\ns", "", "zwei"]);
        assert_eq!(finished.facts.pages[2].label.as_deref(), Some("Schluß"));
    }

    #[test]
    fn a_member_is_one_page_whatever_pages_it_has() {
        let (text, finished) = drafted(|draft| {
            draft
                .member("a.pdf", |inner| {
                    inner.page(1, None, "one")?;
                    inner.page(2, None, "two")
                })
                .unwrap();
        });
        assert_eq!(text, "# a.pdf\n\none\n\ntwo");
        assert_eq!(finished.facts.pages.len(), 1);
        assert_eq!(finished.facts.pages[0].end, text.len() as u64);
    }

    #[test]
    fn what_was_missed_decides_the_completeness() {
        let of = |write: fn(&mut Draft)| drafted(write).1.facts.completeness;
        assert_eq!(of(|_| ()), Completeness::Empty);
        assert_eq!(of(|draft| draft.picture(1)), Completeness::NeedsOcr { pages: vec![1] });
        assert_eq!(of(|draft| draft.text("x").unwrap()), Completeness::Complete);
        let partial = of(|draft| {
            draft.text("x").unwrap();
            draft.picture(2);
            draft.gap(Gap::Unread, "a.bin");
        });
        assert!(matches!(partial, Completeness::Partial { pages, detail }
            if pages == [2] && detail.contains("a.bin")));
    }

    #[test]
    fn a_language_is_told_only_when_the_detector_is_sure() {
        let german =
            "Der schnelle braune Fuchs springt über den faulen Hund, und niemand weiß warum. ".repeat(3);
        assert_eq!(language(&german).as_deref(), Some("de"));
        assert_eq!(language("12 34 56"), None);
    }

    #[test]
    fn every_language_of_the_detector_has_its_two_letters() {
        for lang in whatlang::Lang::all() {
            assert!(two_letters(*lang).is_some(), "{}", lang.code());
        }
    }
}
