//! Glob patterns as Redis matches them: KEYS, SCAN MATCH, PSUBSCRIBE, CONFIG GET.
//!
//! `*` any run, `?` any byte, `[abc]`, `[^a]`, `[a-z]` (in either order), `\x` the byte x. Bytes compare as
//! signed characters in a range and an unfinished class ends with the pattern, because they do in Redis.
//! One star is remembered at a time, so a hostile pattern costs pattern × text and not more: what an earlier
//! star could still try, the later one has already tried.

/// Whether `pattern` covers the whole of `text`.
pub fn matches(pattern: &[u8], text: &[u8], ignore_case: bool) -> bool {
    // Redis never looks at the pattern of an empty text, not even at a star.
    if text.is_empty() {
        return pattern.is_empty();
    }
    let (mut at, mut seen) = (0, 0);
    // Where to go on when a byte does not match: behind the last star, one byte of text later.
    let mut retry: Option<(usize, usize)> = None;
    while seen < text.len() {
        if pattern.get(at) == Some(&b'*') {
            while pattern.get(at) == Some(&b'*') {
                at += 1;
            }
            if at == pattern.len() {
                return true;
            }
            retry = Some((at, seen));
        } else if let Some(next) = match_one(pattern, at, text[seen], ignore_case) {
            at = next;
            seen += 1;
        } else if let Some((behind_star, tried)) = retry {
            retry = Some((behind_star, tried + 1));
            (at, seen) = (behind_star, tried + 1);
        } else {
            return false;
        }
        if seen == text.len() {
            let rest = &pattern[at.min(pattern.len())..];
            if rest.iter().all(|&byte| byte == b'*') {
                return true;
            }
        }
    }
    false
}

/// Matches one element of the pattern, not a star, against one byte; returns where the next element starts.
fn match_one(pattern: &[u8], at: usize, byte: u8, ignore_case: bool) -> Option<usize> {
    let fold = |byte: u8| if ignore_case { byte.to_ascii_lowercase() } else { byte };
    match *pattern.get(at)? {
        b'?' => Some(at + 1),
        b'[' => {
            let (found, next) = match_class(pattern, at + 1, byte, fold);
            found.then_some(next)
        }
        b'\\' if at + 1 < pattern.len() => (fold(pattern[at + 1]) == fold(byte)).then_some(at + 2),
        literal => (fold(literal) == fold(byte)).then_some(at + 1),
    }
}

/// Matches what follows `[`; returns the verdict and where the next element starts.
fn match_class(pattern: &[u8], mut at: usize, byte: u8, fold: impl Fn(u8) -> u8) -> (bool, usize) {
    let negated = pattern.get(at) == Some(&b'^');
    at += usize::from(negated);
    let mut found = false;
    loop {
        match pattern.get(at..).unwrap_or_default() {
            [] => break,
            [b'\\', escaped, ..] => {
                // Redis compares an escaped byte exactly even where case is ignored.
                found |= *escaped == byte;
                at += 2;
            }
            [b']', ..] => {
                at += 1;
                break;
            }
            [first, b'-', last, ..] => {
                // Signed, as `char` is where Redis usually runs.
                let (first, last) = (*first as i8, *last as i8);
                let (low, high) = (fold(first.min(last) as u8) as i8, fold(first.max(last) as u8) as i8);
                found |= (low..=high).contains(&(fold(byte) as i8));
                at += 3;
            }
            [single, ..] => {
                found |= fold(*single) == fold(byte);
                at += 1;
            }
        }
    }
    (found != negated, at)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[track_caller]
    fn check(pattern: &str, text: &str, expected: bool) {
        assert_eq!(matches(pattern.as_bytes(), text.as_bytes(), false), expected, "{pattern:?} on {text:?}");
    }

    #[test]
    fn patterns_match_as_in_redis() {
        for (pattern, text, expected) in [
            ("*", "a", true),
            ("*", "", false), // KEYS * is a special case of the command, not of the matcher
            ("", "", true),
            ("a*", "a", true),
            ("a**", "a", true),
            ("*a*", "bab", true),
            ("*a*b", "xaxbxb", true),
            ("*a*b", "xaxbxc", false),
            ("a?c", "abc", true),
            ("a?", "a", false),
            ("[abc]", "b", true),
            ("[^abc]", "b", false),
            ("[z-a]x", "mx", true),
            ("[a-", "a", true), // an unfinished range is its two bytes
            ("[ab", "b", true), // an unfinished class ends with the pattern
            ("[^", "b", true),
            ("[", "[", false),
            ("[]a]", "a", false),   // an empty class, then a]
            (r"[\\]]", "]", false), // an escaped backslash, then the end, then ]
            (r"[\]]", "]", true),
            (r"\*", "*", true),
            (r"\*", "a", false),
            (r"\", r"\", true),
            ("h[^e]llo*", "hallo world", true),
        ] {
            check(pattern, text, expected);
        }
    }

    #[test]
    fn case_is_ignored_on_request() {
        assert!(matches(b"MAX*", b"maxmemory", true));
        assert!(matches(b"[A-C]x", b"bX", true));
        assert!(!matches(b"MAX*", b"maxmemory", false));
    }

    #[test]
    fn a_hostile_pattern_ends() {
        let pattern = b"a*".repeat(60);
        let text = b"a".repeat(5000);
        assert!(matches(&pattern, &text, false));
        let mut pattern = b"*a".repeat(200);
        pattern.push(b'b');
        assert!(!matches(&pattern, &text, false));
    }
}
