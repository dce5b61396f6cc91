//! The table as a file that outlives the host's memory of it.
//!
//! ```text
//! # comments
//! table bridge infinization; delete table bridge infinization; table bridge infinization {
//!   what `nft list table` prints
//! }
//! ```
//!
//! Invariant: loading such a file any number of times gives the same table, as it takes the place of
//! whatever there is in one transaction; and it changes nothing but that table. Making, deleting and
//! opening the table are one line, so that what is cut off inside the braces is no file at all.
//! Neighbours: `host::nft_file` writes and loads it, [`super::boot_unit`] has it loaded when the host boots.

use super::command::Hook;
use super::names::TABLE;
use super::text::empty_table_text;
use crate::types::InvalidValue;

const COMMENT: &str = "# The firewall of this host's virtual machines, as it was last. Loading it replaces the table.\n";

/// The file for what `nft list table` prints of our table; none if that is not the whole of it.
pub fn saved(listing: &str) -> Option<String> {
    let inside = listing.strip_prefix(&opening())?;
    let is_hooked = |hook: &Hook| inside.contains(&format!("\tchain {} {{\n", hook.as_str()));
    let is_whole = inside.ends_with("\n}\n") && Hook::ALL.iter().all(is_hooked);
    is_whole.then(|| replacing(inside))
}

/// The text to load for such a file, or for a plain listing of the table. What would do more than
/// replace our table is refused.
pub fn loadable(file: &str) -> Result<String, InvalidValue> {
    let refused = |why: &str| InvalidValue::new(format!("is not a saved firewall: {why}"));
    let begin = file.trim_start_matches(|c: char| c.is_ascii_whitespace());
    let text = skip_comments(begin);
    let inside = text
        .strip_prefix(&replacement())
        .or_else(|| text.strip_prefix(&opening()))
        .ok_or_else(|| refused("it does not begin with the table"))?;
    let inside = inside
        .trim_end()
        .strip_suffix("\n}")
        .ok_or_else(|| refused("it is cut off"))?;
    if !stays_inside(inside) {
        return Err(refused("there is something beside the table"));
    }
    Ok(replacing(&format!("{inside}\n}}\n")))
}

/// Whether the text opens no less than it closes, at every point: it never leaves the table.
fn stays_inside(text: &str) -> bool {
    let (mut depth, mut is_quoted) = (0_u32, false);
    for character in text.chars() {
        match character {
            '"' => is_quoted = !is_quoted,
            '{' if !is_quoted => depth += 1,
            '}' if !is_quoted && depth == 0 => return false,
            '}' if !is_quoted => depth -= 1,
            _ => {}
        }
    }
    depth == 0 && !is_quoted
}

/// The file that closes every managed port: the table with both hooks, and nobody's rules.
pub fn default_deny() -> String {
    let text = empty_table_text();
    let inside = text.strip_prefix(&opening()).unwrap_or(&text);
    replacing(inside)
}

fn opening() -> String {
    format!("table bridge {TABLE} {{\n")
}

fn replacement() -> String {
    format!(
        "table bridge {TABLE}; delete table bridge {TABLE}; {}",
        opening()
    )
}

fn replacing(inside: &str) -> String {
    format!("{COMMENT}{}{inside}", replacement())
}

fn skip_comments(mut text: &str) -> &str {
    while let Some(rest) = text.strip_prefix('#') {
        text = rest.split_once('\n').map_or("", |(_, after)| after);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing() -> String {
        empty_table_text()
    }

    #[test]
    fn p1_a_file_replaces_the_table_and_is_read_as_it_was_written() {
        let file = saved(&listing()).unwrap();
        let head = "table bridge infinization; delete table bridge infinization; table bridge infinization {";
        assert_eq!(file.lines().nth(1), Some(head));
        assert_eq!(loadable(&file).unwrap(), file);
        assert_eq!(loadable(&listing()).unwrap(), file, "the earlier form");
        assert_eq!(default_deny(), file);
    }

    #[test]
    fn a_listing_that_is_not_whole_is_not_saved() {
        let whole = listing();
        let unhooked = whole.replace("\tchain postrouting {", "\tchain elsewhere {");
        let cut = &whole[..whole.len() - 2];
        for listing in [&unhooked, cut, "", "table bridge other {\n}\n"] {
            assert_eq!(saved(listing), None, "{listing}");
        }
    }

    #[test]
    fn p3_a_torn_file_is_refused_wherever_it_was_cut() {
        let file = saved(&listing()).unwrap();
        for end in 0..file.trim_end().len() {
            assert!(loadable(&file[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn nothing_beside_the_table_is_loaded() {
        let file = saved(&listing()).unwrap();
        let more = [
            format!("flush ruleset\n{file}"),
            format!("{file}flush ruleset\n"),
            format!("{file}table bridge infinization {{\n}}\n"),
            file.replacen("\n\t", "\n}\nflush ruleset\n\t", 1),
            "\0\u{1}".to_owned(),
        ];
        for text in more {
            assert!(loadable(&text).is_err(), "{text}");
        }
    }
}
