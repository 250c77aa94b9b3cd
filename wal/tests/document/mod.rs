//! The tables of a page in `docs/formats/`, and their fields laid beside those of the source. The tests of
//! `snapshot` include this file, too.

use wal::layout::Field;

/// The rows of the tables under a heading: their cells, code marks removed.
pub fn rows(page: &str, heading: &str) -> Vec<Vec<String>> {
    let section = page.split("\n## ").find(|section| section.starts_with(heading));
    let section = section.unwrap_or_else(|| panic!("no section {heading}"));
    let cells = |line: &str| {
        line.trim_matches('|').split(" | ").map(|cell| cell.replace('`', "").trim().into()).collect()
    };
    section.lines().filter(|line| line.starts_with('|') && !line.starts_with("|--")).map(cells).collect()
}

/// The table of fields under a heading says what the source says.
#[track_caller]
pub fn bound(page: &str, heading: &str, fields: &[Field]) {
    let written: Vec<(String, String, String)> = rows(page, heading)
        .into_iter()
        .filter(|row| row.len() == 5 && row[0].parse::<usize>().is_ok())
        .map(|row| {
            let size = match row[2].as_str() {
                "u32" => "4",
                "u64" => "8",
                _ => &row[1],
            };
            assert_eq!(row[1], size, "{heading}: {} is a {}", row[3], row[2]);
            (row[0].clone(), row[1].clone(), row[3].clone())
        })
        .collect();
    let source: Vec<(String, String, String)> = fields
        .iter()
        .map(|field| (field.offset.to_string(), field.size.to_string(), field.name.into()))
        .collect();
    assert_eq!(written, source, "the document, {heading}");
}
