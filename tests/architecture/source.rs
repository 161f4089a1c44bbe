//! Rust source as far as the rules need it: text without comments and literals, the modules it declares, what it imports.
//!
//! Relies on `rustfmt`: a module in braces ends at the closing brace of its own indentation.

use std::path::{Path, PathBuf};

/// One file.
pub(super) struct SourceFile {
    /// From the root of the repository, with `/`.
    pub(super) path: String,
    /// The top-level module it belongs to; `lib` and `main` for the roots.
    pub(super) module: String,
    /// The text; comments and the inside of literals are blanks, so that lines and columns are where they were.
    pub(super) code: String,
    pub(super) lines: usize,
    /// Its own module's depth: 1 for `src/x.rs` and `src/x/mod.rs`.
    depth: usize,
    /// The whole file is `#[cfg(test)]`.
    test: bool,
    /// First and last line of modules in braces, and whether they are tests.
    inner: Vec<(usize, usize, bool)>,
    /// Paths, without extension, of modules in other files that this one declares for tests only.
    pub(super) test_modules: Vec<PathBuf>,
}

/// All of `src/`.
pub(super) struct Tree {
    pub(super) files: Vec<SourceFile>,
}

impl Tree {
    pub(super) fn read() -> Tree {
        let mut files = rust_files(&["src"]);
        let test_only: Vec<PathBuf> = files.iter().flat_map(|file| file.test_modules.clone()).collect();
        for file in &mut files {
            let path = Path::new(&file.path).with_extension("");
            file.test = test_only.iter().any(|module| path.starts_with(module));
        }
        Tree { files }
    }

    /// In the order of their declaration in `src/lib.rs`.
    pub(super) fn modules(&self) -> Vec<String> {
        let lib = self.files.iter().find(|file| file.path == "src/lib.rs").expect("src/lib.rs");
        declared_modules(&lib.code)
    }
}

impl SourceFile {
    pub(super) fn parse(path: &str, text: &str) -> SourceFile {
        let code = blank_out(text);
        let inside: Vec<&str> = path.trim_end_matches(".rs").split('/').skip(1).collect();
        let depth = inside.len() - usize::from(inside.last() == Some(&"mod"));
        let module = inside.first().copied().unwrap_or_default().to_owned();
        let inner = braced_modules(&code);
        let test_modules = test_modules(path, &code, text);
        let lines = text.lines().count();
        SourceFile { path: path.to_owned(), module, lines, code, depth, test: false, inner, test_modules }
    }

    pub(super) fn is_root(&self) -> bool {
        self.path == "src/lib.rs" || self.path == "src/main.rs"
    }

    /// Whether the line (from 1) is compiled for tests only.
    pub(super) fn is_test_line(&self, line: usize) -> bool {
        self.test || self.inner.iter().any(|(first, last, test)| *test && (*first..=*last).contains(&line))
    }

    /// Line and name of every top-level module that is named by `crate::` or by enough `super::`.
    pub(super) fn imports(&self) -> impl Iterator<Item = (usize, String)> {
        let mut found = Vec::new();
        let tokens: Vec<(usize, &str)> = words(&self.code).collect();
        for (index, (at, word)) in tokens.iter().enumerate() {
            if !matches!(*word, "crate" | "super") {
                continue;
            }
            let line = line_of(&self.code, *at);
            let goes_on = |from: usize| self.code[from..].trim_start().strip_prefix("::");
            let rest = match *word {
                "crate" => goes_on(at + word.len()),
                _ => {
                    let before = tokens[..index].iter().rev();
                    let chain = 1 + before.zip(1..).take_while(|((b, w), n)| *w == "super" && at - b == 7 * n).count();
                    let inner =
                        self.inner.iter().filter(|(first, last, _)| (*first + 1..=*last).contains(&line)).count();
                    // The crate's root is reached, and this is the last `super` of the chain.
                    let reached = chain == self.depth + inner;
                    goes_on(at + word.len()).filter(|_| reached)
                }
            };
            let Some(rest) = rest else { continue };
            found.extend(first_names(rest).into_iter().map(|name| (line, name)));
        }
        found.into_iter()
    }

    /// Line and name of every one of these paths that occurs, as whole words.
    pub(super) fn mentions<'a>(&self, paths: &'a [&'a str]) -> impl Iterator<Item = (usize, &'a str)> {
        let imports: Vec<_> = self.imports().collect();
        let mut found = Vec::new();
        for path in paths {
            match path.strip_prefix("crate::") {
                Some(name) => found.extend(imports.iter().filter(|(_, n)| n == name).map(|(line, _)| (*line, *path))),
                None => {
                    let lines = self.code.lines().zip(1..).filter(|(line, _)| contains_path(line, path));
                    found.extend(lines.map(|(_, number)| (number, *path)));
                }
            }
        }
        found.sort_unstable();
        found.into_iter()
    }
}

fn test_modules(path: &str, code: &str, text: &str) -> Vec<PathBuf> {
    let path = Path::new(path);
    let beside = path.parent().expect("a folder");
    let folder = match path.file_name().and_then(|name| name.to_str()) {
        Some("mod.rs" | "lib.rs" | "main.rs") => beside.to_owned(),
        _ => path.with_extension(""),
    };
    let (mut found, mut marked, mut elsewhere) = (Vec::new(), false, None);
    // What stands in the literal of `#[path]` is only in the text.
    for (line, text) in code.lines().map(str::trim).zip(text.lines().map(str::trim)) {
        if let Some(name) = module_name(line).and_then(|rest| rest.strip_suffix(';')) {
            let module = elsewhere.take().unwrap_or_else(|| folder.join(name));
            found.extend(marked.then_some(module));
        }
        if let Some(file) = text.strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix(".rs\"]")) {
            elsewhere = Some(beside.join(file));
        }
        marked = line.starts_with("#[cfg(test)]") || (marked && line.starts_with('#'));
    }
    found
}

/// Every Rust file below these folders of the repository.
pub(super) fn rust_files(folders: &[&str]) -> Vec<SourceFile> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    folders.iter().for_each(|folder| collect(&root.join(folder), &mut paths));
    paths.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("a readable file");
        let inside = path.strip_prefix(root).expect("below the root");
        let parts: Vec<_> = inside.iter().map(|part| part.to_str().expect("plain names")).collect();
        SourceFile::parse(&parts.join("/"), &text)
    };
    paths.into_iter().map(read).collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && name != "node_modules" && name != "target" {
            collect(&path, paths);
        } else if name.ends_with(".rs") {
            paths.push(path);
        }
    }
}

/// Names of `mod x;` and `mod x {` without indentation.
pub(super) fn declared_modules(code: &str) -> Vec<String> {
    let names = code.lines().filter(|line| !line.starts_with(' ')).filter_map(module_name);
    names.map(|name| name.trim_end_matches([';', ' ', '{']).to_owned()).collect()
}

/// What follows `mod ` in a declaration.
fn module_name(line: &str) -> Option<&str> {
    let line = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(") ")?.1,
        Some(rest) => rest.trim_start(),
        None => line,
    };
    line.strip_prefix("mod ")
}

fn braced_modules(code: &str) -> Vec<(usize, usize, bool)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    let mut marked = false;
    for (index, line) in lines.iter().enumerate() {
        let text = line.trim();
        if module_name(text).is_some_and(|name| name.ends_with('{')) {
            let end = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
            let length = lines[index..].iter().position(|line| line.trim_end() == end).expect("a closing brace");
            found.push((index + 1, index + length + 1, marked));
        }
        marked = text.starts_with("#[cfg(test)]") || (marked && text.starts_with('#'));
    }
    found
}

/// Offset and text of every identifier.
pub(super) fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + code[at..].find(is_part)?;
        let end = code[start..].find(|c| !is_part(c)).map_or(code.len(), |length| start + length);
        at = end;
        Some((start, &code[start..end]))
    })
}

/// The first name of a path, or of each path in braces.
fn first_names(rest: &str) -> Vec<String> {
    let rest = rest.trim_start();
    let Some(group) = rest.strip_prefix('{') else {
        return words(rest).next().filter(|(at, _)| *at == 0).map(|(_, name)| name.to_owned()).into_iter().collect();
    };
    let (mut names, mut depth, mut expected) = (Vec::new(), 0, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => expected = true,
            _ if expected && !c.is_whitespace() => {
                names.extend(words(&group[at..]).next().map(|(_, name)| name.to_owned()));
                expected = false;
            }
            _ => {}
        }
    }
    names
}

fn contains_path(line: &str, path: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(is_part);
        let after = line[at + path.len()..].chars().next().is_some_and(is_part);
        !before && !after
    })
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// Replaces comments and the inside of string and character literals by blanks.
fn blank_out(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let skipped = comment(&text[at..]).or_else(|| raw_string(text, at)).or_else(|| literal(&text[at..]));
        match skipped {
            Some(length) => {
                out.extend(text[at..at + length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
                at += length;
            }
            None => {
                let c = text[at..].chars().next().expect("inside the text");
                out.push(c);
                at += c.len_utf8();
            }
        }
    }
    out
}

fn comment(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    rest.starts_with("/*").then(|| rest.find("*/").map_or(rest.len(), |end| end + 2))
}

fn raw_string(text: &str, at: usize) -> Option<usize> {
    let rest = &text[at..];
    let inside_word = text[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_');
    let hashes = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r')).filter(|_| !inside_word)?;
    let count = hashes.len() - hashes.trim_start_matches('#').len();
    let body = hashes[count..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(count));
    let start = rest.len() - body.len();
    Some(body.find(&end).map_or(rest.len(), |length| start + length + end.len()))
}

/// A string, or a character that is no lifetime.
fn literal(rest: &str) -> Option<usize> {
    let mut chars = rest.char_indices();
    let quote = chars.next().map(|(_, c)| c).filter(|c| matches!(c, '"' | '\''))?;
    if quote == '\'' {
        let (first, second) = (rest[1..].chars().next()?, rest[1..].chars().nth(1));
        if first != '\\' && second != Some('\'') {
            return None;
        }
    }
    let mut escaped = false;
    for (at, c) in chars {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    Some(rest.len())
}
