//! `docs/errors.md` is the table of `error.rs`, rendered. After a change to the table, write it anew:
//! `INFINIZATION_WRITE_DOCS=1 cargo test -p infinization-core --test docs_errors`

use std::fmt::Write;
use std::fs;

use infinization_core::{ErrorClass, ErrorCode};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors.md");

#[test]
fn the_page_is_the_table() {
    let rendered = render();
    if std::env::var_os("INFINIZATION_WRITE_DOCS").is_some() {
        fs::write(PAGE, &rendered).expect("docs/errors.md can be written");
    }
    let page = fs::read_to_string(PAGE).expect("docs/errors.md can be read");
    let difference = rendered
        .lines()
        .zip(page.lines())
        .find(|(want, have)| want != have);
    assert!(
        page == rendered,
        "docs/errors.md is not the table of error.rs (first difference: {difference:?}): \
         set INFINIZATION_WRITE_DOCS=1 and run this again"
    );
}

const HEAD: &str = "\
<!-- Rendered from crates/infinization-core/src/error.rs by tests/docs_errors.rs: do not edit. -->

# Errors

Every rejection is an `Error` of one of the classes below, with

- `code`: one of the stable strings in this page. Codes are part of the interface: none is renamed
  or given another meaning without a new major version.
- `message`: a sentence for people. Its wording may change; do not match on it.
- `vmId`: the machine it is about, if any.
- `context`: facts for programs, such as `issues`, `path`, `errno`, `stderr`, `holder`.
- `cause`: the error that led to it, of the same shape, if any.

No message, code or context contains a password, a key or an answer file.
";

fn render() -> String {
    let mut page = HEAD.to_owned();
    writeln!(
        page,
        "\nA code that stands in two classes means what its class is about: {}.",
        shared_codes().join(", ")
    )
    .expect("a String takes all");
    for class in classes() {
        writeln!(
            page,
            "\n## `{}`\n\n| Code | Meaning |\n| --- | --- |",
            class.as_str()
        )
        .expect("a String takes all");
        for code in ErrorCode::ALL.iter().filter(|code| code.class() == class) {
            writeln!(page, "| `{}` | {} |", code.as_str(), code.sentence())
                .expect("a String takes all");
        }
    }
    page
}

fn shared_codes() -> Vec<String> {
    let mut codes: Vec<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
    codes.sort_unstable();
    let mut shared: Vec<_> = codes
        .windows(2)
        .filter(|pair| pair[0] == pair[1])
        .map(|pair| format!("`{}`", pair[0]))
        .collect();
    shared.dedup();
    shared
}

/// The classes in the order of the table.
fn classes() -> Vec<ErrorClass> {
    let mut classes: Vec<_> = ErrorCode::ALL.iter().map(|code| code.class()).collect();
    classes.dedup();
    classes
}
