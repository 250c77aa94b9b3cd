//! The repository's text files in memory, so that a rule is a pure function and can be shown samples that break it.

use std::fs;
use std::path::{Path, PathBuf};

/// One text file.
#[derive(Clone, Debug)]
pub struct File {
    /// Relative to the repository's root, with `/` between its parts.
    pub path: String,
    /// What it says. Files that are not UTF-8 are not read.
    pub text: String,
}

/// All text files, sorted by path.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// The files.
    pub files: Vec<File>,
}

impl Tree {
    /// Reads what a clone would contain: build products, installed packages and local results are left out.
    pub fn read() -> Tree {
        let root = root();
        let mut files = Vec::new();
        read_folder(&root, &root, &mut files);
        files.sort_by(|a, b| a.path.cmp(&b.path));
        assert!(
            files.len() > 20,
            "only {} files under {}: is this the repository?",
            files.len(),
            root.display()
        );
        Tree { files }
    }

    /// A small tree for a test of a rule.
    pub fn of(files: &[(&str, &str)]) -> Tree {
        let file = |&(path, text): &(&str, &str)| File { path: path.into(), text: text.into() };
        Tree { files: files.iter().map(file).collect() }
    }

    /// The text of one file.
    pub fn get(&self, path: &str) -> Option<&str> {
        self.files.iter().find(|file| file.path == path).map(|file| file.text.as_str())
    }

    /// Files whose name ends so.
    pub fn with_ending<'a>(&'a self, ending: &'a str) -> impl Iterator<Item = &'a File> {
        self.files.iter().filter(move |file| file.path.ends_with(ending))
    }
}

/// The repository's root: the folder above this crate's.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate is a folder of the repository")
        .to_path_buf()
}

fn read_folder(root: &Path, folder: &Path, files: &mut Vec<File>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let entry = entry.expect("a readable folder");
        let path = entry.path();
        let relative = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type().expect("a file type");
        if kind.is_dir() {
            let local_result = relative.starts_with("results/") && relative != "results/published";
            let generated = matches!(name.as_str(), ".git" | "target" | "node_modules" | "__pycache__");
            // Results are measurements: they name the machine they were taken on, and no rule reads them.
            if !generated && !local_result && relative != "results/published" {
                read_folder(root, &path, files);
            }
        } else if kind.is_file()
            && let Ok(text) = fs::read_to_string(&path)
        {
            files.push(File { path: relative, text });
        }
    }
}

/// A Rust source without comments and without what its string and character literals hold; line numbers stay.
///
/// Rules look at code, and a comment may well speak of `unsafe` or of another crate.
pub fn code_only(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut code = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => line_end(bytes, at),
            b'/' if bytes[at..].starts_with(b"/*") => block_comment_end(bytes, at),
            b'"' => string_end(bytes, at),
            b'r' | b'b' | b'c' if !follows_identifier(bytes, at) => raw_string_end(bytes, at).unwrap_or(at),
            b'\'' => character_end(bytes, at).unwrap_or(at),
            _ => at,
        };
        if end == at {
            code.push(bytes[at]);
            at += 1;
        } else {
            code.push(b' ');
            code.extend(bytes[at..end].iter().filter(|&&byte| byte == b'\n'));
            at = end;
        }
    }
    String::from_utf8_lossy(&code).into_owned()
}

fn follows_identifier(bytes: &[u8], at: usize) -> bool {
    at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_')
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |length| at + length)
}

fn block_comment_end(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0;
    while at < bytes.len() {
        match bytes.get(at..at + 2) {
            Some(b"/*") => (depth, at) = (depth + 1, at + 2),
            Some(b"*/") => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    at
}

fn string_end(bytes: &[u8], quote: usize) -> usize {
    let mut at = quote + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// `r"…"`, `br#"…"#`, `cr"…"`: the end of a raw string that starts here, if one does.
fn raw_string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + usize::from(matches!(bytes[start], b'b' | b'c'));
    if bytes.get(at) != Some(&b'r') {
        return None;
    }
    at += 1;
    let hashes = bytes[at..].iter().take_while(|&&byte| byte == b'#').count();
    at += hashes;
    if bytes.get(at) != Some(&b'"') {
        return None;
    }
    let closing: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let length = bytes[at + 1..].windows(closing.len()).position(|window| window == closing)?;
    Some(at + 1 + length + closing.len())
}

/// The end of a character literal; `None` where the quote belongs to a lifetime.
fn character_end(bytes: &[u8], quote: usize) -> Option<usize> {
    let rest = &bytes[quote + 1..];
    if rest.first() == Some(&b'\\') {
        let length = rest.iter().skip(2).position(|&byte| byte == b'\'')?;
        return Some(quote + 1 + 2 + length + 1);
    }
    // One character of up to four bytes, then the closing quote. In `'a` of a lifetime there is none.
    let length = match rest.first()? {
        0..=0x7f => 1,
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        _ => 4,
    };
    (rest.get(length) == Some(&b'\'')).then_some(quote + 1 + length + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked() {
        let code = code_only("let a = \"unsafe\"; // unsafe\n/* unsafe /* deep */ unsafe */ let b = 'x';");
        assert!(!code.contains("unsafe") && code.contains("let a =") && code.contains("let b ="), "{code}");
        let code =
            code_only("let a = r#\"a \" unsafe\"#; let b = br\"\\\"; let c: &'static str = b\"\\\"\"; end");
        assert!(!code.contains("unsafe") && code.contains("'static") && code.ends_with("end"), "{code}");
        let code = code_only("match c { '\"' => 1, '\\'' => 2, 'é' => 3, b'\\\\' => 4 } unsafe");
        assert!(code.ends_with("unsafe") && !code.contains('"'), "{code}");
        assert_eq!(code_only("a /* \n\n */ b").lines().count(), 3);
    }
}
