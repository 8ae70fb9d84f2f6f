//! What a person may have meant.

/// The word that `text` begins, or the one nearest to it, if near enough to be a slip: of the pen, of case, or of
/// dashes.
pub(super) fn near<'a>(text: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let text = plain(text);
    let words: Vec<_> = words.into_iter().collect();
    let begins = words.iter().find(|word| text.len() > 2 && plain(word).starts_with(&text));
    if let Some(word) = begins {
        return Some(word);
    }
    let limit = (text.chars().count() / 3).clamp(1, 3);
    let distances = words.into_iter().map(|word| (distance(&text, &plain(word)), word));
    let (steps, word) = distances.min_by_key(|(steps, _)| *steps)?;
    (steps <= limit && !text.is_empty()).then_some(word)
}

/// ` (did you mean "x"?)`, or nothing.
pub(super) fn did_you_mean<'a>(text: &str, words: impl IntoIterator<Item = &'a str>) -> String {
    near(text, words).map(|word| format!(" (did you mean {word:?}?)")).unwrap_or_default()
}

/// Only letters and digits, in one case, and not more than a name can have.
fn plain(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).take(64).collect::<String>().to_ascii_lowercase()
}

/// Insertions, deletions, substitutions and swaps of neighbours that lead from one text to the other.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<_>, Vec<_>) = (from.chars().collect(), to.chars().collect());
    let mut before_last = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in to.iter().enumerate() {
            let mut best = (last[j] + usize::from(a != b)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == to[j - 1] && from[i - 1] == *b {
                best = best.min(before_last[j - 1] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_seen_through_and_other_words_are_not() {
        let words = ["envvar", "volume-mounts", "cdi-annotations", "cdi-cri"];
        for (text, meant) in [
            ("envar", Some("envvar")),
            ("EnvVar", Some("envvar")),
            ("volumeMounts", Some("volume-mounts")),
            ("cdi-cir", Some("cdi-cri")),
            ("volume", Some("volume-mounts")),
            ("nothing", None),
            ("", None),
        ] {
            assert_eq!(near(text, words), meant, "{text}");
        }
    }

    #[test]
    fn steps_are_counted() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("ab", "ba"), 1);
    }
}
