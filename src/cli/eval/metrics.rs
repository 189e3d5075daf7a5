//! How good a ranking is, against what people judged.
//!
//! Documents nobody judged count as irrelevant, as `trec_eval` and BEIR have it.

use std::collections::HashMap;

/// What people said of the documents for one question: document to gain; 0 is irrelevant.
pub type Gains = HashMap<String, f64>;

/// The means over a set's questions, each in 0..=1.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
pub struct Figures {
    pub ndcg_at_10: f64,
    pub recall_at_10: f64,
    pub mrr_at_10: f64,
    pub questions: usize,
}

/// The means of `rankings` (best first), one beside each question's gains. A question without a
/// relevant document says nothing of a ranking and is left out.
pub fn figures<'a>(judged: impl IntoIterator<Item = (&'a Gains, &'a [String])>) -> Figures {
    let mut sum = Figures::default();
    for (gains, ranking) in judged {
        if !gains.values().any(|gain| *gain > 0.0) {
            continue;
        }
        sum.ndcg_at_10 += ndcg(gains, ranking, 10);
        sum.recall_at_10 += recall(gains, ranking, 10);
        sum.mrr_at_10 += reciprocal_rank(gains, ranking, 10);
        sum.questions += 1;
    }
    let n = sum.questions.max(1) as f64;
    Figures {
        ndcg_at_10: sum.ndcg_at_10 / n,
        recall_at_10: sum.recall_at_10 / n,
        mrr_at_10: sum.mrr_at_10 / n,
        questions: sum.questions,
    }
}

/// Normalised discounted cumulative gain with linear gains (Järvelin and Kekäläinen 2002): the
/// gain of each place over log2(place + 1), as a share of the best order's.
pub fn ndcg(gains: &Gains, ranking: &[String], depth: usize) -> f64 {
    let mut ideal: Vec<f64> = gains.values().copied().filter(|gain| *gain > 0.0).collect();
    ideal.sort_by(|a, b| b.total_cmp(a));
    let best = discounted(ideal.into_iter().take(depth));
    if best == 0.0 {
        return 0.0;
    }
    discounted(ranking.iter().take(depth).map(|document| gain(gains, document))) / best
}

/// The share of the relevant documents that stand in the first `depth` places.
pub fn recall(gains: &Gains, ranking: &[String], depth: usize) -> f64 {
    let relevant = gains.values().filter(|gain| **gain > 0.0).count();
    if relevant == 0 {
        return 0.0;
    }
    let found = ranking.iter().take(depth).filter(|document| gain(gains, document) > 0.0).count();
    found as f64 / relevant as f64
}

/// One over the place of the first relevant document; 0 when it is not in the first `depth`.
pub fn reciprocal_rank(gains: &Gains, ranking: &[String], depth: usize) -> f64 {
    let first = ranking.iter().take(depth).position(|document| gain(gains, document) > 0.0);
    first.map_or(0.0, |place| 1.0 / (place + 1) as f64)
}

fn gain(gains: &Gains, document: &str) -> f64 {
    gains.get(document).copied().unwrap_or(0.0)
}

fn discounted(gains: impl Iterator<Item = f64>) -> f64 {
    gains.enumerate().map(|(place, gain)| gain / (place as f64 + 2.0).log2()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gains(of: &[(&str, f64)]) -> Gains {
        of.iter().map(|(document, gain)| ((*document).to_owned(), *gain)).collect()
    }

    fn ranking(of: &[&str]) -> Vec<String> {
        of.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ndcg_is_what_a_hand_computes() {
        let gains = gains(&[("a", 3.0), ("b", 2.0), ("c", 1.0)]);
        // Found b, nothing, a: 2/log2(2) + 0 + 3/log2(4) = 3.5;
        // at best a, b, c: 3/1 + 2/1.584963 + 1/2 = 4.761860.
        let value = ndcg(&gains, &ranking(&["b", "x", "a"]), 10);
        assert!((value - 3.5 / 4.761_859_507).abs() < 1e-9, "{value}");
        assert!((ndcg(&gains, &ranking(&["a", "b", "c"]), 10) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn only_the_first_places_count() {
        let gains = gains(&[("a", 1.0), ("b", 1.0)]);
        let order = ranking(&["x", "a", "b"]);
        // 1/log2(3) over 1 + 1/log2(3).
        assert!((ndcg(&gains, &order, 2) - 0.630_929_754 / 1.630_929_754).abs() < 1e-9);
        assert_eq!(recall(&gains, &order, 2), 0.5);
        assert_eq!(recall(&gains, &order, 3), 1.0);
        assert_eq!(reciprocal_rank(&gains, &order, 2), 0.5);
        assert_eq!(reciprocal_rank(&gains, &order, 1), 0.0);
    }

    #[test]
    fn a_document_judged_irrelevant_is_no_find() {
        let gains = gains(&[("a", 1.0), ("b", 0.0)]);
        assert_eq!(recall(&gains, &ranking(&["b"]), 10), 0.0);
        assert_eq!(reciprocal_rank(&gains, &ranking(&["b", "a"]), 10), 0.5);
    }

    #[test]
    fn a_question_without_answer_is_left_out_of_the_means() {
        let (asked, empty) = (gains(&[("a", 1.0)]), gains(&[("a", 0.0)]));
        let order = ranking(&["a"]);
        let means = figures([(&asked, order.as_slice()), (&empty, order.as_slice())]);
        assert_eq!(means, Figures { ndcg_at_10: 1.0, recall_at_10: 1.0, mrr_at_10: 1.0, questions: 1 });
    }
}
