use super::*;
use proptest::prelude::*;
use std::fmt::Write as _;

/// A small tokenizer of the family that most embedding models use: known words, else
/// letters, else (beyond a hundred letters) unknown.
pub(super) fn wordpiece() -> Tokenizer {
    let mut vocabulary = vec!["[PAD]".to_owned(), "[UNK]".to_owned(), "[CLS]".to_owned(), "[SEP]".to_owned()];
    for letter in ('!'..='~').filter(|c| !c.is_ascii_uppercase()) {
        vocabulary.push(letter.to_string());
        vocabulary.push(format!("##{letter}"));
    }
    vocabulary
        .extend(["the", "mill", "grinds", "corn", "##ing", "##er", "water", "ab", "##cd"].map(String::from));
    let vocabulary: serde_json::Map<_, _> =
        vocabulary.into_iter().enumerate().map(|(id, word)| (word, id.into())).collect();
    let special = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    };
    let tokenizer = serde_json::json!({
        "version": "1.0",
        // Present and wrong on purpose: the chunker must not be misled by them.
        "truncation": {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": null,
        "added_tokens": [special(0, "[PAD]"), special(1, "[UNK]"), special(2, "[CLS]"), special(3, "[SEP]")],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary},
    });
    Tokenizer::from_bytes(tokenizer.to_string()).unwrap()
}

/// The same words, but with the blank before a word as part of its tokens.
fn metaspace() -> Tokenizer {
    let mut json: serde_json::Value = serde_json::from_str(&wordpiece().to_string(false).unwrap()).unwrap();
    json["pre_tokenizer"] = serde_json::json!({"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": true});
    Tokenizer::from_bytes(json.to_string()).unwrap()
}

/// What must hold of every plan: order, borders, coverage, and the promise to the model.
fn hold(text: &str, spans: &[Span], tokenizer: &Tokenizer, size: usize) {
    let mut free = tokenizer.clone();
    free.with_truncation(None).unwrap();
    let mut covered = 0;
    let mut last: Option<&Span> = None;
    for span in spans {
        let (start, end) = (span.start as usize, span.end as usize);
        let chunk = text.get(start..end).expect("a span within the text, at character borders");
        assert!(!chunk.is_empty() && chunk.trim() == chunk, "blanks around {chunk:?}");
        if let Some(last) = last {
            assert!(span.start > last.start && span.end > last.end, "{span:?} after {last:?}");
        }
        if start > covered {
            assert!(text[covered..start].trim().is_empty(), "left out {:?}", &text[covered..start]);
        }
        covered = end;
        let tokens = free.encode_fast(chunk, true).unwrap().len();
        assert_eq!(tokens, span.tokens as usize, "tokens of {chunk:?}");
        assert!(tokens <= size, "{tokens} tokens in {chunk:?}");
        last = Some(span);
    }
    assert!(text[covered..].trim().is_empty(), "left out the end {:?}", &text[covered..]);
}

const SYNTAXES: [Syntax; 6] =
    [Syntax::Plain, Syntax::Markdown, Syntax::Rust, Syntax::Python, Syntax::Javascript, Syntax::Go];

fn texts() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        8 => "[a-z]{1,12}",
        2 => prop_oneof![Just("the mill grinds corn"), Just("milling"), Just("abcd")].prop_map(String::from),
        2 => prop_oneof![Just(" "), Just("\n"), Just("\n\n"), Just("\r\n"), Just("\t"), Just("      ")].prop_map(String::from),
        1 => prop_oneof![Just("# "), Just("- "), Just("```\n"), Just("|a|b|\n"), Just("fn f() {"), Just("}")].prop_map(String::from),
        1 => "\\PC{1,8}",
        1 => any::<char>().prop_map(String::from),
        1 => prop_oneof![Just("\u{0}"), Just("\u{b}"), Just("\u{85}"), Just("\u{a0}"), Just("\u{fdfa}"), Just("e\u{301}"), Just("<\u{338}"), Just("野口里佳"), Just("👩‍👩‍👧"), Just("[CLS]"), Just("[UNK]")].prop_map(String::from),
        1 => (0..400_usize).prop_map(|n| "x".repeat(n)),
        1 => (0..400_usize).prop_map(|n| "a,b;".repeat(n)),
    ];
    prop::collection::vec((piece, any::<bool>()), 0..120).prop_map(|pieces| {
        pieces.into_iter().map(|(piece, blank)| if blank { piece + " " } else { piece }).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_is_covered_in_order_by_chunks_that_the_model_reads_whole(
        text in texts(), syntax in prop::sample::select(SYNTAXES.to_vec()), size in 24..80_usize,
    ) {
        let tokenizer = wordpiece();
        let chunker = Chunker::new(tokenizer.clone(), size, size / 8).unwrap();
        let spans = chunker.plan_str(&text, syntax).unwrap();
        hold(&text, &spans, &tokenizer, size);
        prop_assert_eq!(chunker.plan_str(&text, syntax).unwrap(), spans);
    }

    #[test]
    fn a_tokenizer_that_counts_blanks_keeps_the_promise_too(text in texts(), size in 24..80_usize) {
        let tokenizer = metaspace();
        let chunker = Chunker::new(tokenizer.clone(), size, size / 8).unwrap();
        hold(&text, &chunker.plan_str(&text, Syntax::Plain).unwrap(), &tokenizer, size);
    }
}

fn long_text(sentences: usize) -> String {
    let mut text = String::new();
    for n in 0..sentences {
        let _ = write!(text, "The mill number {n} grinds corn with water. ");
        if n % 7 == 6 {
            text.push_str("\n\n");
        }
    }
    text
}

#[test]
fn a_file_of_many_windows_is_planned_as_one_text() {
    let (tokenizer, text) = (wordpiece(), long_text(4000));
    assert!(text.len() > 2 * LARGEST_WINDOW);
    let chunker = Chunker::new(tokenizer.clone(), 64, 8).unwrap();
    let spans = chunker.plan_str(&text, Syntax::Plain).unwrap();
    hold(&text, &spans, &tokenizer, 64);

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &text).unwrap();
    assert_eq!(chunker.plan(file.path(), Syntax::Plain).unwrap(), spans);
}

/// The first windows' chunks do not depend on what window they were cut in.
#[test]
fn borders_of_windows_leave_no_mark() {
    let text = long_text(4000);
    let chunker = Chunker::new(wordpiece(), 64, 8).unwrap();
    let windowed = chunker.plan_str(&text, Syntax::Plain).unwrap();
    let mut seen = Seen::default();
    let whole = chunker.split(&text, Syntax::Plain, &mut seen).unwrap();
    let same = windowed.iter().filter(|span| whole.contains(span)).count();
    assert!(same * 100 >= windowed.len() * 95, "{same} of {} chunks as without windows", windowed.len());
    let shared = |spans: &[Span]| spans.windows(2).filter(|pair| pair[1].start < pair[0].end).count();
    assert!(shared(&windowed) * 100 >= shared(&whole) * 99);
}

#[test]
fn text_without_any_break_is_cut_into_pieces_of_bounded_length() {
    let tokenizer = wordpiece();
    let chunker = Chunker::new(tokenizer.clone(), 64, 8).unwrap();
    for text in ["q".repeat(60_000), "a,b;".repeat(15_000), "野口".repeat(10_000), " ".repeat(60_000) + "x"]
    {
        let spans = chunker.plan_str(&text, Syntax::Plain).unwrap();
        hold(&text, &spans, &tokenizer, 64);
        let longest = spans.iter().map(|span| span.end - span.start).max().unwrap();
        assert!(longest <= 64 * 2 * WINDOW_BYTES_PER_TOKEN as u64, "a chunk of {longest} bytes");
    }
}

#[test]
fn blank_text_has_no_chunks() {
    let chunker = Chunker::new(wordpiece(), 64, 8).unwrap();
    for text in ["", " ", "\n\n\t\r\n \u{a0}\u{2003}"] {
        assert_eq!(chunker.plan_str(text, Syntax::Plain).unwrap(), []);
    }
}

#[test]
fn a_text_that_is_not_utf8_is_refused_with_its_place() {
    let chunker = Chunker::new(wordpiece(), 64, 8).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"the mill \xff grinds").unwrap();
    let refused = chunker.plan(file.path(), Syntax::Plain);
    assert!(matches!(refused, Err(ChunkError::NotUtf8 { at: 9 })), "{refused:?}");
    std::fs::write(file.path(), "the mill é".as_bytes().split_last().unwrap().1).unwrap();
    let refused = chunker.plan(file.path(), Syntax::Plain);
    assert!(matches!(refused, Err(ChunkError::NotUtf8 { at: 9 })), "{refused:?}");
}

#[test]
fn sizes_never_pass_what_the_model_reads() {
    let of = |size, overlap, model| sizes(&config::Chunk { size, overlap }, model);
    assert_eq!(of(0, 0, 256), (256, 32));
    assert_eq!(of(0, 0, 8192), (512, 64));
    assert_eq!(of(1000, 10, 256), (256, 10));
    assert_eq!(of(128, 0, 256), (128, 16));
    assert!(matches!(Chunker::new(wordpiece(), 10, 1), Err(ChunkError::TooSmall { size: 10, least: 18 })));
    assert!(matches!(Chunker::new(wordpiece(), 64, 62), Err(ChunkError::Overlap { .. })));
}

#[test]
fn markdown_is_cut_at_its_headings() {
    let text = include_str!("sample.md");
    let chunker = Chunker::new(wordpiece(), 120, 15).unwrap();
    let spans = chunker.plan_str(text, Syntax::Markdown).unwrap();
    let chunks: Vec<String> = spans
        .iter()
        .map(|s| {
            format!(
                "{}..{} ({} tokens)\n{}",
                s.start,
                s.end,
                s.tokens,
                &text[s.start as usize..s.end as usize]
            )
        })
        .collect();
    insta::assert_snapshot!(chunks.join("\n-----\n"));
}

#[test]
fn text_nested_to_harm_is_split_as_plain_text() {
    assert!(has_structure("# A\n\n- one\n- two\n\nfn f() {\n    g((1 + 2) * 3);\n}\n"));
    let harmful = ["if x {\n".repeat(500), "[".repeat(5000), "> - ".repeat(5000), "a,b;".repeat(5000)];
    let tokenizer = wordpiece();
    let chunker = Chunker::new(tokenizer.clone(), 64, 8).unwrap();
    for text in harmful {
        assert!(!has_structure(&text), "{}", &text[..20]);
        let spans = chunker.plan_str(&text, Syntax::Javascript).unwrap();
        hold(&text, &spans, &tokenizer, 64);
        assert_eq!(spans, chunker.plan_str(&text, Syntax::Plain).unwrap());
    }
}
