//! Dependencies between the crate's modules point one way: down the table in `lib.rs`.
//!
//! The sources are read as text. A reference is a path that starts at the crate's root (`crate::x`,
//! `crate::{x, y}`, or `super::x` from a top-level module); comments do not count.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// References to a module of the same layer that are wanted: (who, whom). An error names the VM it is
/// about; a configuration may hold a key for secrets; a command line, and a network, are made of a configuration; the manager runs the monitor, and so do its pieces
/// that work without it.
const SIDEWAYS: &[(&str, &str)] = &[
    ("error", "types"),
    ("config", "secrets"),
    ("qemu", "config"),
    ("network", "config"),
    ("manager", "monitor"),
    ("sync", "monitor"),
];

#[test]
fn dependencies_point_down() {
    let sources = read_sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")));
    let layers = Layers::parse(&sources["lib.rs"]);
    let faults = layers.faults(&sources);
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_kind_of_fault_is_found() {
    let root = "//! | 2 effects | [`host`], `qmp` |\n//! | 1 pure | `config`, `qemu` |\n\
                //! | 0 words | [`error`] |\npub use error::{Code, Failure};\n";
    let layers = Layers::parse(root);
    for (file, code, expected) in [
        ("config/mod.rs", "use crate::host::Tap;", Some("host")),
        ("config/mod.rs", "use crate::error::{self, Code};", None),
        ("config/mod.rs", "use crate::Failure;", None),
        ("config/mod.rs", "use crate::Stranger;", Some("Stranger")),
        ("config/mod.rs", "use crate::qemu::Drive;", Some("qemu")),
        ("qemu/mod.rs", "use crate::config::VmConfig;", None),
        ("host/tap.rs", "use crate::host::link;", None),
        (
            "host/tap.rs",
            "use crate::{\n    error::{Code, Failure},\n    qmp::Client,\n};",
            Some("qmp"),
        ),
        (
            "host/tap.rs",
            "fn f() -> crate::qmp::Client {}",
            Some("qmp"),
        ),
        ("host/tap.rs", "use super::link;", None),
        ("host/tap.rs", "use super::super::qmp;", Some("qmp")),
        ("host.rs", "use super::qmp;", Some("qmp")),
        ("host.rs", "mod tests {\n    use super::qmp;\n}", None),
        ("error.rs", "/// See [`crate::host`].", None),
        ("error.rs", "pub(crate) fn f() {} // crate::host", None),
        ("error.rs", "use crate::*;", Some("*")),
        ("novel.rs", "", Some("novel")),
    ] {
        let sources = BTreeMap::from([
            ("lib.rs".to_owned(), root.to_owned()),
            (file.to_owned(), code.to_owned()),
        ]);
        let faults = layers.faults(&sources);
        match expected {
            None => assert!(faults.is_empty(), "{file}: {code}: {faults:?}"),
            Some(module) => assert!(
                faults.len() == 1 && faults[0].contains(&format!("`{module}`")),
                "{file}: {code}: {faults:?}"
            ),
        }
    }
}

#[test]
fn the_core_has_never_heard_of_node() {
    let manifest = include_str!("../Cargo.toml");
    assert!(!manifest.contains("napi"), "only the bindings know napi");
}

/// The table in `lib.rs`, and the modules that the root's re-exports come from.
struct Layers {
    rank: BTreeMap<String, u8>,
    reexports: BTreeMap<String, String>,
}

impl Layers {
    fn parse(root: &str) -> Self {
        let rank = root.lines().filter_map(row).flatten().collect();
        let reexports = references(root, "pub use ")
            .into_iter()
            .flat_map(|path| {
                let (module, names) = path.split_once("::").unwrap_or((&path, ""));
                let module = module.to_owned();
                group(names)
                    .into_iter()
                    .map(move |name| (name, module.clone()))
                    .collect::<Vec<_>>()
            })
            .collect();
        Self { rank, reexports }
    }

    /// What is wrong in `sources` (path below `src` → text), one sentence each.
    fn faults(&self, sources: &BTreeMap<String, String>) -> Vec<String> {
        let mut faults = Vec::new();
        for (file, text) in sources.iter().filter(|(file, _)| *file != "lib.rs") {
            let module = module_of(file);
            let Some(&rank) = self.rank.get(module) else {
                faults.push(format!(
                    "src/{file}: `{module}` is not in the table of lib.rs"
                ));
                continue;
            };
            for target in targets(file, text) {
                if let Some(fault) = self.fault(module, rank, &target) {
                    faults.push(format!("src/{file}: {fault}"));
                }
            }
        }
        faults
    }

    fn fault(&self, module: &str, rank: u8, target: &str) -> Option<String> {
        let owner = self.reexports.get(target).map_or(target, String::as_str);
        if owner == module || SIDEWAYS.contains(&(module, owner)) {
            return None;
        }
        match self.rank.get(owner) {
            None => Some(format!(
                "`{target}` is no module of the table and no re-export of lib.rs"
            )),
            Some(&other) if other < rank => None,
            Some(&other) => Some(format!(
                "`{module}` (layer {rank}) must not use `{owner}` (layer {other})"
            )),
        }
    }
}

/// The modules of a row such as ``//! | 2 effects | [`host`], `events` |``.
fn row(line: &str) -> Option<Vec<(String, u8)>> {
    let mut cells = line.strip_prefix("//! |")?.split('|').map(str::trim);
    let rank = cells.next()?.split(' ').next()?.parse().ok()?;
    let names = cells.next()?.split('`').skip(1).step_by(2);
    Some(names.map(|name| (name.to_owned(), rank)).collect())
}

fn module_of(file: &str) -> &str {
    let first = file.split('/').next().unwrap_or(file);
    first.strip_suffix(".rs").unwrap_or(first)
}

/// The first segment of every path from the crate's root.
fn targets(file: &str, text: &str) -> Vec<String> {
    let code = without_comments(text);
    let mut found = references(&code, "crate::");
    // `super` inside an inline module stays within the file.
    let outer = code.split("mod tests {").next().unwrap_or(&code);
    found.extend(references(outer, &"super::".repeat(depth(file))));
    found
        .iter()
        .filter(|path| !path.starts_with("super"))
        .flat_map(|path| group(path))
        .collect()
}

/// How many `super` lead from `file` to the crate's root.
fn depth(file: &str) -> usize {
    let path = file.strip_suffix("/mod.rs").unwrap_or(file);
    path.split('/').count()
}

fn without_comments(text: &str) -> String {
    let code = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or(""));
    code.collect::<Vec<_>>().join("\n")
}

/// What follows each `prefix` that starts a path: up to the end of the path or of its group.
fn references(code: &str, prefix: &str) -> Vec<String> {
    code.match_indices(prefix)
        .filter(|(at, _)| {
            !code[..*at].ends_with(|c: char| c.is_alphanumeric() || "_:$".contains(c))
        })
        .map(|(at, _)| path_at(&code[at + prefix.len()..]).to_owned())
        .collect()
}

fn path_at(code: &str) -> &str {
    let mut open = 0_usize;
    for (at, c) in code.char_indices() {
        match c {
            '{' => open += 1,
            '}' if open == 0 => return &code[..at],
            '}' if open == 1 => return &code[..=at],
            '}' => open -= 1,
            c if open == 0 && !(c.is_alphanumeric() || "_:*".contains(c)) => return &code[..at],
            _ => {}
        }
    }
    code
}

/// The first segments of a path, or of the members of a `{…}` group.
fn group(path: &str) -> Vec<String> {
    let members = path
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'));
    let mut open = 0_i32;
    members
        .unwrap_or(path)
        .split(|c| {
            open += i32::from(c == '{') - i32::from(c == '}');
            c == ',' && open == 0
        })
        .map(|member| {
            member
                .trim()
                .split([':', ' '])
                .next()
                .unwrap_or("")
                .to_owned()
        })
        .filter(|segment| !segment.is_empty())
        .collect()
}

fn read_sources(root: &Path) -> BTreeMap<String, String> {
    let mut sources = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).expect("the sources can be read") {
            let entry = entry.expect("the sources can be read");
            let path = folder.join(entry.file_name());
            if entry.path().is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(entry.path()).expect("sources are UTF-8");
                sources.insert(path.to_string_lossy().into_owned(), text);
            }
        }
    }
    sources
}
