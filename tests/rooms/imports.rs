//! Which file of `src` imports which, read from the sources.
//!
//! A path counts for the file that defines its name: a name that a module hands on (`use`, `pub use`) is followed to where
//! it comes from. A module and what is inside it belong together: imports between the two are no imports here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A module's path from the crate, one name after the other.
type Module = Vec<String>;

/// A file's imports.
#[derive(Default)]
struct Uses {
    /// The paths that it names.
    paths: Vec<Vec<String>>,
    /// What each name stands for that a `use` brings into the module.
    names: BTreeMap<String, Vec<String>>,
}

/// The imports between the modules of a crate: from which, to which.
pub(crate) fn imports(root: &Path, files: &[std::path::PathBuf]) -> BTreeSet<(Module, Module)> {
    let modules: BTreeMap<Module, Uses> =
        files.iter().filter_map(|file| Some((module(root, file)?, uses(&fs::read_to_string(file).ok()?)))).collect();
    let mut found = BTreeSet::new();
    for (from, uses) in &modules {
        for path in &uses.paths {
            let Some(to) = resolve(&modules, from, path, 0) else { continue };
            if !to.starts_with(from) && !from.starts_with(&to) {
                found.insert((from.clone(), to));
            }
        }
    }
    found
}

/// The module that a file is; none for tests and for the program's own root.
fn module(root: &Path, file: &Path) -> Option<Module> {
    let path = file.strip_prefix(root).ok()?.with_extension("");
    let mut names: Module = path.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    if names.iter().any(|name| name == "tests") || names == ["main"] {
        return None;
    }
    if names.last().is_some_and(|last| last == "mod" || last == "lib") {
        names.pop();
    }
    Some(names)
}

/// The module in which a path ends, seen from another module; none where it leads out of the crate.
fn resolve(modules: &BTreeMap<Module, Uses>, from: &Module, path: &[String], depth: usize) -> Option<Module> {
    let mut at = from.clone();
    let mut rest = path.iter();
    match path.first()?.as_str() {
        "crate" => {
            at.clear();
            rest.next();
        }
        "self" => _ = rest.next(),
        "super" => {}
        first => {
            let inside: Module = [from.as_slice(), &[first.to_owned()]].concat();
            if !modules.contains_key(&inside) {
                return None;
            }
        }
    }
    while let Some(name) = rest.next() {
        if name == "super" {
            at.pop();
            continue;
        }
        let inside: Module = [at.as_slice(), std::slice::from_ref(name)].concat();
        if modules.contains_key(&inside) {
            at = inside;
            continue;
        }
        let handed_on = modules.get(&at).and_then(|uses| uses.names.get(name)).filter(|_| depth < 8);
        let followed = handed_on.and_then(|path| {
            let path: Vec<String> = path.iter().chain(rest.clone()).cloned().collect();
            resolve(modules, &at, &path, depth + 1)
        });
        return Some(followed.unwrap_or(at));
    }
    Some(at)
}

/// The paths in a source, its tests left out.
fn uses(text: &str) -> Uses {
    let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let tokens = tokens(code);
    let (mut uses, mut at) = (Uses::default(), 0);
    while let Some(token) = tokens.get(at) {
        match token.as_str() {
            "use" => {
                let mut found = Vec::new();
                at = tree(&tokens, at + 1, &[], &mut found);
                for (path, name) in found {
                    uses.names.insert(name, path.clone());
                    uses.paths.push(path);
                }
            }
            "crate" | "super" | "self" if tokens.get(at + 1).is_some_and(|next| next == "::") => {
                let mut path = vec![token.clone()];
                while tokens.get(at + 1).is_some_and(|next| next == "::")
                    && tokens.get(at + 2).is_some_and(|next| is_name(next))
                {
                    path.push(tokens[at + 2].clone());
                    at += 2;
                }
                uses.paths.push(path);
                at += 1;
            }
            _ => at += 1,
        }
    }
    uses
}

/// Reads one tree of a `use`, and answers where it ends: the paths in it, each with the name that it gets.
fn tree(tokens: &[String], mut at: usize, prefix: &[String], found: &mut Vec<(Vec<String>, String)>) -> usize {
    let mut path = prefix.to_vec();
    while let Some(token) = tokens.get(at) {
        match token.as_str() {
            "::" => at += 1,
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token != "}") {
                    at = tree(tokens, at, &path, found);
                    at += usize::from(tokens.get(at).is_some_and(|token| token == ","));
                }
                return at + 1;
            }
            "as" => {
                found.push((path, tokens.get(at + 1).cloned().unwrap_or_default()));
                return at + 2;
            }
            "self" if !path.is_empty() => at += 1,
            name if is_name(token) => {
                path.push(name.to_owned());
                at += 1;
            }
            "*" => at += 1,
            _ => break,
        }
    }
    let name = path.last().cloned().unwrap_or_default();
    found.push((path, name));
    at
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The names and signs of a source; without comments and without what stands in double quotes.
fn tokens(code: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    for line in code.lines() {
        let mut rest = line.split("//").next().unwrap_or_default();
        let mut quoted = false;
        while let Some(first) = rest.chars().next() {
            let length = if quoted {
                quoted = first != '"';
                first.len_utf8() + usize::from(first == '\\') * rest.chars().nth(1).map_or(0, char::len_utf8)
            } else if first.is_alphanumeric() || first == '_' {
                rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else if rest.starts_with("'\"'") {
                3
            } else {
                quoted = first == '"';
                first.len_utf8()
            };
            let (token, after) = rest.split_at(length);
            if !quoted && !token.trim().is_empty() && token != "\"" {
                tokens.push(token.to_owned());
            }
            rest = after;
        }
    }
    tokens
}

/// The circles: modules of which each imports, over any number of others, each other one. Each with its imports.
pub(crate) fn circles(imports: &BTreeSet<(Module, Module)>) -> Vec<String> {
    let reached: BTreeMap<&Module, BTreeSet<&Module>> =
        imports.iter().map(|(from, _)| (from, reachable(imports, from))).collect();
    let leads_to = |from: &Module, to: &Module| reached.get(from).is_some_and(|all| all.contains(to));
    let in_circle = imports.iter().filter(|(from, to)| leads_to(to, from));
    in_circle.map(|(from, to)| format!("{} imports {}", from.join("::"), to.join("::"))).collect()
}

fn reachable<'a>(imports: &'a BTreeSet<(Module, Module)>, from: &'a Module) -> BTreeSet<&'a Module> {
    let (mut reached, mut new) = (BTreeSet::new(), vec![from]);
    while let Some(module) = new.pop() {
        for (_, to) in imports.iter().filter(|(from, _)| from == module) {
            if reached.insert(to) {
                new.push(to);
            }
        }
    }
    reached
}
