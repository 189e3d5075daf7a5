//! Token vectors to one vector a text.
//!
//! fastembed pools too, but through whole-batch copies that cost some percent of a chunk's
//! time; here each token vector is read once.

use super::EmbedError;
use fastembed::{OutputKey, Pooling, SingleBatchOutput, TextEmbedding};

/// What a model's output is called, in the order of preference, where the model does not say.
const OUTPUTS: [OutputKey; 4] = [
    OutputKey::OnlyOne,
    OutputKey::ByName("text_embeds"),
    OutputKey::ByName("last_hidden_state"),
    OutputKey::ByName("sentence_embedding"),
];

/// How a model's output becomes vectors.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    pub pooling: Pooling,
    /// The one output to read, if the model says so.
    pub output: Option<OutputKey>,
}

impl Pool {
    /// Runs `texts` as one batch.
    pub fn embed(&self, model: &mut TextEmbedding, texts: &[String]) -> Result<Vec<Vec<f32>>, EmbedError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let mut vectors = Vec::with_capacity(texts.len());
        for batch in model.transform(texts, Some(texts.len()))?.into_raw() {
            self.vectors(&batch, &mut vectors)?;
        }
        Ok(vectors)
    }

    fn vectors(&self, batch: &SingleBatchOutput, vectors: &mut Vec<Vec<f32>>) -> Result<(), EmbedError> {
        let keys = self.output.as_ref().map_or(OUTPUTS.as_slice(), std::slice::from_ref);
        let tensor = batch.select_output(&keys)?;
        let shape = tensor.shape().to_vec();
        let (Some(numbers), Some(mask)) = (tensor.as_slice(), batch.attention_mask_array.as_slice()) else {
            return Err(EmbedError::Shape(shape));
        };
        match *shape.as_slice() {
            // The model pooled already.
            [_, width] if width > 0 => vectors.extend(numbers.chunks(width).map(unit)),
            [_, length, width] if width > 0 && length > 0 => {
                for (tokens, mask) in numbers.chunks(length * width).zip(mask.chunks(length)) {
                    vectors.push(match self.pooling {
                        Pooling::Cls => unit(&tokens[..width]),
                        Pooling::Mean => unit(&sum(tokens, mask, width)),
                    });
                }
            }
            _ => return Err(EmbedError::Shape(shape)),
        }
        Ok(())
    }
}

/// The sum of the token vectors that are no padding: their mean, but for its length.
fn sum(tokens: &[f32], mask: &[i64], width: usize) -> Vec<f32> {
    let mut sum = vec![0.0_f32; width];
    for (token, kept) in tokens.chunks(width).zip(mask) {
        if *kept != 0 {
            for (total, number) in sum.iter_mut().zip(token) {
                *total += number;
            }
        }
    }
    sum
}

/// The vector of length one in the same direction; a zero vector stays, to be refused.
fn unit(vector: &[f32]) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length == 0.0 {
        return vector.to_vec();
    }
    vector.iter().map(|x| x / length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_has_no_part_in_the_mean() {
        let tokens = [1.0, 0.0, 0.0, 1.0, 7.0, 7.0];
        assert_eq!(sum(&tokens, &[1, 1, 0], 2), [1.0, 1.0]);
        let vector = unit(&[3.0, 4.0]);
        assert_eq!(vector, [0.6, 0.8]);
        assert_eq!(unit(&[0.0, 0.0]), [0.0, 0.0]);
    }
}
