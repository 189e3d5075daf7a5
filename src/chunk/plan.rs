//! The chunks of a text as bytes for the database: neighbours differ little, so differences
//! are stored, seven bits a byte. A chunk takes about five bytes.

use crate::domain::Span;

/// Why stored bytes are not a plan.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("the stored plan ends inside a number")]
    Cut,
    #[error("the stored plan holds a number beyond 64 bits at byte {at}")]
    Overflow { at: usize },
}

/// Encodes spans in order of their starts, each with its length and tokens.
pub fn encode_plan(spans: &[Span]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(spans.len() * 6);
    let mut before = 0_u64;
    for span in spans {
        // Wrapping, so that any list survives, ordered or not.
        put(&mut bytes, span.start.wrapping_sub(before));
        put(&mut bytes, span.end.wrapping_sub(span.start));
        put(&mut bytes, u64::from(span.tokens));
        before = span.start;
    }
    bytes
}

/// Decodes what [`encode_plan`] wrote.
pub fn decode_plan(mut bytes: &[u8]) -> Result<Vec<Span>, PlanError> {
    let all = bytes.len();
    let mut spans = Vec::new();
    let mut before = 0_u64;
    while !bytes.is_empty() {
        let start = before.wrapping_add(take(&mut bytes, all)?);
        let end = start.wrapping_add(take(&mut bytes, all)?);
        let at = all - bytes.len();
        let tokens = u32::try_from(take(&mut bytes, all)?).map_err(|_| PlanError::Overflow { at })?;
        spans.push(Span { start, end, tokens });
        before = start;
    }
    Ok(spans)
}

fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take(bytes: &mut &[u8], all: usize) -> Result<u64, PlanError> {
    let at = all - bytes.len();
    let mut number = 0_u64;
    for shift in (0..).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(PlanError::Cut)?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if shift > 63 || (shift == 63 && bits > 1) {
            return Err(PlanError::Overflow { at });
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_plan_comes_back_as_it_was(raw: Vec<(u64, u64, u32)>) {
            let spans: Vec<_> =
                raw.into_iter().map(|(start, end, tokens)| Span { start, end, tokens }).collect();
            prop_assert_eq!(decode_plan(&encode_plan(&spans)).unwrap(), spans);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>) {
            if let Ok(spans) = decode_plan(&bytes) {
                prop_assert_eq!(decode_plan(&encode_plan(&spans)).unwrap(), spans);
            }
        }
    }

    #[test]
    fn a_chunk_of_an_ordinary_plan_takes_at_most_six_bytes() {
        let spans: Vec<_> =
            (0..1000).map(|n| Span { start: n * 900, end: n * 900 + 1010, tokens: 254 }).collect();
        assert!(encode_plan(&spans).len() <= 6000);
    }

    #[test]
    fn a_plan_cut_short_is_refused() {
        let bytes = encode_plan(&[Span { start: 1000, end: 2000, tokens: 254 }]);
        assert_eq!(decode_plan(&bytes[..bytes.len() - 1]), Err(PlanError::Cut));
        assert_eq!(decode_plan(&[0xff; 11]), Err(PlanError::Overflow { at: 0 }));
    }
}
