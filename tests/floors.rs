//! The floors of the house, held: a module names only floors below its own, and neighbours on
//! one floor do not know each other.

use std::path::{Path, PathBuf};

/// Ground first. Every module of the crate stands on one.
const FLOORS: [&[&str]; 9] = [
    &["domain"],
    &["config"],
    &["guard"],
    &[
        "store",
        "queue",
        "objects",
        "fetch",
        "scan",
        "extract",
        "chunk",
        "embed",
        "seal",
        "oauth",
        "mcp",
        "catalogue",
        "api",
        "sql",
        "ground",
    ],
    &["context"],
    &["job"],
    &["jobs"],
    &["runtime"],
    &["cli", "main", "lib"],
];

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

fn rust_files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the crate's own folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// `src/store/chunks.rs` → `store`; everything below `jobs/` → `jobs`.
fn module_of(file: &Path, root: &Path) -> String {
    let inside = file.strip_prefix(root).expect("below the root");
    let mut parts = inside.components().map(|part| part.as_os_str().to_string_lossy().into_owned());
    let top = parts.next().expect("a folder");
    if top == "jobs" { top } else { parts.next().expect("a module").trim_end_matches(".rs").to_owned() }
}

#[test]
fn a_module_names_only_floors_below_its_own() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    rust_files(&root.join("src"), &mut files);
    rust_files(&root.join("jobs"), &mut files);
    assert!(files.len() > 50, "only {} files were found", files.len());
    let mut wrong = Vec::new();
    for file in &files {
        let module = module_of(file, root);
        let floor =
            floor_of(&module).unwrap_or_else(|| panic!("{module} stands on no floor: add it to FLOORS"));
        let text = std::fs::read_to_string(file).expect("a source file");
        for (n, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            assert!(
                !code.contains("crate::{") && !code.contains("super::super::super"),
                "{}:{}: write one `use crate::…` a line, so that this test can read it",
                file.display(),
                n + 1
            );
            for named in code.split("crate::").skip(1) {
                let named: String = named.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                // The schema's migrator is the library's own face.
                if named == module || (named == "MIGRATOR" && floor == FLOORS.len() - 1) {
                    continue;
                }
                match floor_of(&named) {
                    Some(below) if below < floor => {}
                    _ => wrong.push(format!("{}:{}: {module} names {named}", file.display(), n + 1)),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
