//! The rooms know only the rooms to their right: `cli → {cluster, consul, engine} → ports → state → model`. Held here by
//! reading the sources, so that a forbidden `use` fails the build before anyone gets used to it.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says so by failing")]

mod imports;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// All rooms.
const ROOMS: [&str; 11] =
    ["admin", "certificates", "cli", "cluster", "consul", "engine", "model", "policy", "ports", "settings", "state"];

/// A room, and what it may and may not name. Paths are looked for as they are written in code.
struct Room {
    name: &'static str,
    /// The other rooms that it may know.
    knows: &'static [&'static str],
    /// What of other crates it may not name.
    forbidden: &'static [&'static str],
}

const RULES: [Room; 9] = [
    Room {
        name: "model",
        knows: &[],
        forbidden: &[
            "kube::",
            "k8s_openapi",
            "reqwest",
            "http::",
            "tokio",
            "futures",
            "jiff",
            "std::time",
            "SystemTime",
            "Instant",
        ],
    },
    Room {
        name: "certificates",
        knows: &[],
        forbidden: &["kube::", "reqwest", "tokio", "std::fs", "Timestamp::now", "SystemTime"],
    },
    Room {
        name: "state",
        knows: &["model"],
        forbidden: &["kube::", "k8s_openapi", "reqwest", "futures", "Timestamp::now"],
    },
    Room { name: "policy", knows: &["model"], forbidden: &["kube::", "k8s_openapi", "reqwest"] },
    Room { name: "ports", knows: &["model", "state"], forbidden: &["kube::", "k8s_openapi", "reqwest"] },
    Room { name: "cluster", knows: &["certificates", "model", "ports", "state"], forbidden: &["reqwest"] },
    Room { name: "consul", knows: &["certificates", "model", "ports"], forbidden: &["kube::", "k8s_openapi"] },
    Room { name: "engine", knows: &["model", "ports", "state"], forbidden: &["kube::", "k8s_openapi", "reqwest"] },
    Room { name: "admin", knows: &["cluster", "consul", "engine", "state"], forbidden: &["kube::", "reqwest"] },
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a room is a folder") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The lines of a file that are code: without comments, where names of other rooms explain the picture.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn violations(root: &Path, rules: &[Room]) -> Vec<String> {
    let mut violations = Vec::new();
    for Room { name: room, knows, forbidden } in rules {
        let others = ROOMS.iter().filter(|other| *other != room && !knows.contains(other));
        let forbidden: Vec<String> =
            others.map(|other| format!("crate::{other}")).chain(forbidden.iter().map(ToString::to_string)).collect();
        let mut files = Vec::new();
        sources(&root.join("src").join(room), &mut files);
        assert!(!files.is_empty(), "{room} has no sources");
        for file in files {
            let text = fs::read_to_string(&file).expect("a readable source");
            for (number, line) in code(&text) {
                for name in forbidden.iter().filter(|name| names(line, name)) {
                    violations.push(format!("{}:{}: {room} may not know {name}", file.display(), number + 1));
                }
            }
        }
    }
    violations
}

/// Whether a line names a path, and not only a word that ends in it.
fn names(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

#[test]
fn each_room_knows_only_the_rooms_to_its_right() {
    let violations = violations(Path::new(env!("CARGO_MANIFEST_DIR")), &RULES);
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

/// A room that the list lacks could be known by every other one.
#[test]
fn the_list_has_all_rooms() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("a readable entry").path());
    let names = entries.map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned());
    let found: BTreeSet<String> = names.filter(|name| name != "lib" && name != "main").collect();
    let known: BTreeSet<String> = ROOMS.map(ToOwned::to_owned).into();
    assert_eq!(found, known);
}

#[test]
fn a_forbidden_use_is_found() {
    let rule = Room { name: "engine", knows: &[], forbidden: &[] };
    let caught = violations(Path::new(env!("CARGO_MANIFEST_DIR")), &[rule]);
    assert!(!caught.is_empty(), "the engine uses the model, and this rule forbids it");
}

/// The methods of `pub` traits that have a body, as `file:line`. Sources are formatted, so in a trait only the end
/// of a body is a brace at the depth of its methods.
fn default_bodies(root: &Path) -> Vec<String> {
    let (mut files, mut found) = (Vec::new(), Vec::new());
    sources(root, &mut files);
    for file in files {
        let text = fs::read_to_string(&file).expect("a readable source");
        let mut in_trait = false;
        for (number, line) in code(&text) {
            if line.starts_with("pub trait ") {
                in_trait = true;
            } else if line == "}" {
                in_trait = false;
            }
            let is_short = line.starts_with("    fn ") && line.ends_with('}');
            if in_trait && (line == "    }" || is_short) {
                found.push(format!("{}:{}", file.display(), number + 1));
            }
        }
    }
    found
}

/// The simulation stands in for the servers behind these traits. A default body answers in place of a stand-in that
/// has forgotten the method, and then no seed ever sees the other answers.
#[test]
fn no_method_of_a_port_has_a_default_body() {
    let found = default_bodies(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert!(found.is_empty(), "methods of traits with a body:\n{}", found.join("\n"));
}

#[test]
fn a_default_body_is_found() {
    let folder = std::env::temp_dir().join(format!("lictor-rooms-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let methods = "    fn a(&self);\n    fn b(&self) -> bool {\n        true\n    }\n    fn c(&self) {}\n";
    fs::write(folder.join("port.rs"), format!("pub trait Port {{\n{methods}}}\n")).unwrap();
    let found = default_bodies(&folder);
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(found.len(), 2, "{found:?}");
}

/// Files that import each other can only be understood, tested and changed together.
#[test]
fn no_files_import_each_other_in_a_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let imports = imports::imports(&root, &files);
    assert!(imports.len() > files.len(), "{} imports in {} files: they are not read", imports.len(), files.len());
    let circles = imports::circles(&imports);
    assert!(circles.is_empty(), "imports that close a circle:\n{}", circles.join("\n"));
}

#[test]
fn a_circle_is_found() {
    let folder = std::env::temp_dir().join(format!("lictor-circle-{}", std::process::id()));
    fs::create_dir_all(folder.join("b")).unwrap();
    for (file, text) in [
        ("lib.rs", "mod a;\nmod b;\nmod c;\n"),
        ("a.rs", "use crate::b::Inner;\n"),
        // What `b` hands on is what `b::inner` defines.
        ("b.rs", "mod inner;\npub use self::inner::Inner;\nuse super::c::{C as D, self};\n"),
        ("b/inner.rs", "// use crate::c;\nfn f() -> crate::a::A {}\n"),
        ("c.rs", "const TEXT: &str = \"crate::b\";\n\n#[cfg(test)]\nmod tests {\n    use crate::b;\n}\n"),
    ] {
        fs::write(folder.join(file), text).unwrap();
    }
    let mut files = Vec::new();
    sources(&folder, &mut files);
    let imports = imports::imports(&folder, &files);
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(imports.len(), 3, "{imports:?}");
    assert_eq!(imports::circles(&imports), ["a imports b::inner", "b::inner imports a"]);
}
