//! "Did you mean …?": the nearest of the words that are allowed.

/// Ends an error message about `word` with the nearest allowed word, or with all of them.
pub(crate) fn allowed<'a>(word: &str, allowed: impl Iterator<Item = &'a str> + Clone) -> String {
    let nearest = allowed.clone().map(|known| (distance(word, known), known)).min();
    match nearest {
        // A third of the letters wrong is a near miss; more is another word.
        Some((edits, known)) if edits * 3 <= known.len().max(word.len()) => {
            format!("did you mean {known:?}?")
        }
        _ => format!("allowed: {}", allowed.collect::<Vec<_>>().join(", ")),
    }
}

/// Levenshtein's distance, in bytes: the words compared are ASCII.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(!x.eq_ignore_ascii_case(&y));
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_miss_is_suggested_and_a_far_one_gets_the_list() {
        let known = ["h100-80gb-sxm5", "a30-24gb"];
        assert_eq!(allowed("h100-80gb-sxm", known.into_iter()), "did you mean \"h100-80gb-sxm5\"?");
        assert_eq!(allowed("voodoo", known.into_iter()), "allowed: h100-80gb-sxm5, a30-24gb");
    }
}
