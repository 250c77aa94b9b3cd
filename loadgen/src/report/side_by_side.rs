//! Reports of `compare`, `caching` and `calibrate` read back from their files, and laid side by side.
//!
//! Each is a table already: a row is known by the words that name it, and its figures stand under names. Which those are is
//! said once for each kind ([`KINDS`]); the schemas in docs/formats say what they mean.

use super::overlay;
use super::stored::{StoredManifest, read_value};
use super::table::{align, number};
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

/// A figure of a row: what it is called, where it stands, and what it is divided by to be shown with so many places.
type Figure = (&'static str, &'static str, f64, usize);

/// How the rows of one kind of report are found.
#[derive(Debug)]
struct Kind {
    schema: &'static str,
    /// The `kind` of a report, where a schema has several.
    kind: Option<&'static str>,
    /// Where rows stand: lists in the report, or in each entry of a list of it.
    rows: &'static [&'static str],
    /// What names a row: of the entry, and of the row itself.
    name: &'static [&'static str],
    figures: &'static [Figure],
}

const KINDS: [Kind; 4] = [
    Kind {
        schema: crate::compare::SCHEMA,
        kind: None,
        rows: &["/cases", "/rows"],
        name: &["/case/name", "/target"],
        figures: &[
            ("throughput /s", "/throughput_per_s/median", 1.0, 0),
            ("server µs/request", "/server_us_per_request/median", 1.0, 3),
            ("p50 µs", "/p50_ns/median", 1e3, 1),
            ("p99 µs", "/p99_ns/median", 1e3, 1),
        ],
    },
    Kind {
        schema: crate::caching::SCHEMA,
        kind: Some("grid"),
        rows: &["/rows"],
        name: &["/target", "/shards", "/workers", "/cache"],
        figures: &[
            ("reads /s", "/reads_per_s/median", 1.0, 0),
            ("hit rate", "/hit_rate/median", 1.0, 4),
            ("server µs/operation", "/server_us_per_operation/median", 1.0, 3),
            ("told within, p99 µs", "/invalidation_p99_ns/median", 1e3, 1),
        ],
    },
    Kind {
        schema: crate::caching::SCHEMA,
        kind: Some("delay"),
        rows: &["/rows"],
        name: &["/target", "/shards", "/trackers"],
        figures: &[
            ("since acknowledged, p50 µs", "/since_acknowledged_p50_ns/median", 1e3, 1),
            ("p99 µs", "/since_acknowledged_p99_ns/median", 1e3, 1),
            ("since sent, p50 µs", "/since_sent_p50_ns/median", 1e3, 1),
            ("p99 µs", "/since_sent_p99_ns/median", 1e3, 1),
        ],
    },
    Kind {
        schema: crate::calibrate::SCHEMA,
        kind: None,
        rows: &["/cases", "/rows"],
        name: &["/case", "/loop", "/figure"],
        figures: &[("truth µs", "/truth_ns", 1e3, 1), ("reported µs", "/reported_ns", 1e3, 1)],
    },
];

/// A report that is a table.
#[derive(Debug)]
pub struct StoredTable {
    kind: &'static Kind,
    /// The conditions.
    pub manifest: StoredManifest,
    /// Rows by name, with their figures.
    rows: Vec<(String, Vec<Option<f64>>)>,
}

impl StoredTable {
    /// Reads such a report; `None`: it is of another kind.
    pub fn read(path: &Path) -> Result<Option<StoredTable>, String> {
        let (value, file) = read_value(path)?;
        StoredTable::of(&value).map_err(|error| format!("{}: {error}", file.display()))
    }

    fn of(value: &Value) -> Result<Option<StoredTable>, String> {
        let is_it = |kind: &&Kind| {
            value["schema"] == kind.schema && kind.kind.is_none_or(|kind| value["kind"] == kind)
        };
        let Some(kind) = KINDS.iter().find(is_it) else { return Ok(None) };
        let manifest = serde_json::from_value(value["manifest"].clone())
            .map_err(|error| format!("it lacks what its schema promises: {error}"))?;
        let list = |value: &Value, at: &str| {
            let list = value.pointer(at).and_then(Value::as_array).cloned();
            list.ok_or_else(|| format!("it lacks what its schema promises: {at} is no list"))
        };
        let mut rows = Vec::new();
        let mut put = |entry: &Value, row: &Value| {
            let words =
                kind.name.iter().filter_map(|at| match row.pointer(at).or_else(|| entry.pointer(at))? {
                    Value::Null => None,
                    Value::String(text) => Some(text.clone()),
                    other => Some(format!("{} {other}", at.trim_start_matches('/'))),
                });
            let figures = kind.figures.iter().map(|(_, at, unit, _)| Some(row.pointer(at)?.as_f64()? / unit));
            rows.push((words.collect::<Vec<_>>().join(", "), figures.collect()));
        };
        match kind.rows {
            [entries, inner] => {
                for entry in list(value, entries)? {
                    list(&entry, inner)?.iter().for_each(|row| put(&entry, row));
                }
            }
            [direct, ..] => list(value, direct)?.iter().for_each(|row| put(&Value::Null, row)),
            [] => unreachable!("every kind has rows"),
        }
        Ok(Some(StoredTable { kind, manifest, rows }))
    }
}

/// Two reports of one kind, row by row: `A`, `B`, and B over A.
pub fn text(old: &StoredTable, new: &StoredTable) -> Result<String, String> {
    if !std::ptr::eq(old.kind, new.kind) {
        return Err("the two reports are of different kinds: there is nothing to lay side by side".into());
    }
    let mut table = vec![["", "figure", "A", "B", "B / A"].map(str::to_string).to_vec()];
    let names = old.rows.iter().chain(new.rows.iter().filter(|(name, _)| find(old, name).is_none()));
    for (name, _) in names {
        let (a, b) = (find(old, name), find(new, name));
        for (at, (figure, _, _, places)) in old.kind.figures.iter().enumerate() {
            let of = |row: Option<&Vec<Option<f64>>>| row.and_then(|figures| figures[at]);
            let (a, b) = (of(a), of(b));
            if a.is_none() && b.is_none() {
                continue;
            }
            let ratio = a.filter(|a| *a != 0.0).zip(b).map(|(a, b)| b / a);
            table.push(vec![
                name.clone(),
                figure.to_string(),
                number(a, *places),
                number(b, *places),
                number(ratio, 3),
            ]);
        }
    }
    let mut text = align(&table);
    for line in overlay::differences(&[&old.manifest, &new.manifest]) {
        let _ = writeln!(text, "  {line}");
    }
    Ok(text)
}

fn find<'a>(table: &'a StoredTable, name: &str) -> Option<&'a Vec<Option<f64>>> {
    table.rows.iter().find(|(known, _)| known == name).map(|(_, figures)| figures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::Manifest;
    use serde_json::json;

    fn table(value: Value) -> StoredTable {
        let mut value = value;
        value["manifest"] = serde_json::to_value(Manifest::read()).expect("writes");
        StoredTable::of(&value).expect("well-formed").expect("a table")
    }

    fn comparison(throughput: f64, target: &str) -> StoredTable {
        table(json!({"schema": crate::compare::SCHEMA, "cases": [{"case": {"name": "GET"}, "rows": [
            {"target": "one", "throughput_per_s": {"median": throughput}, "p50_ns": {"median": 2_500.0}, "p99_ns": null},
            {"target": target, "throughput_per_s": {"median": 5.0}},
        ]}]}))
    }

    #[test]
    fn rows_are_matched_by_name_whatever_their_order() {
        let text = text(&comparison(1_000.0, "two"), &comparison(1_100.0, "three")).expect("of one kind");
        let line = |start: &str| {
            let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
            text.lines()
                .map(words)
                .find(|line| line.starts_with(start))
                .unwrap_or_else(|| panic!("{start}: {text}"))
        };
        assert_eq!(line("GET, one throughput"), "GET, one throughput /s 1000 1100 1.100");
        assert_eq!(line("GET, one p50"), "GET, one p50 µs 2.5 2.5 1.000");
        assert_eq!(line("GET, two"), "GET, two throughput /s 5 – –");
        assert_eq!(line("GET, three"), "GET, three throughput /s – 5 –");
        assert!(!text.contains("p99"), "a figure that neither has is no row: {text}");
    }

    #[test]
    fn kinds_are_not_mixed_and_other_reports_are_none_of_them() {
        let grid = table(json!({"schema": crate::caching::SCHEMA, "kind": "grid", "rows": [
            {"target": "millrace", "shards": null, "workers": 16, "cache": true, "hit_rate": {"median": 0.5}}]}));
        assert_eq!(grid.rows[0].0, "millrace, workers 16, cache true");
        let delay = table(json!({"schema": crate::caching::SCHEMA, "kind": "delay", "rows": []}));
        assert!(text(&grid, &delay).expect_err("of two kinds").contains("different kinds"));
        let calibration = table(json!({"schema": crate::calibrate::SCHEMA, "cases": [{"rows": [
            {"case": "c", "loop": "closed loop", "figure": "p99", "truth_ns": 1_000, "reported_ns": 2_000}]}]}));
        assert_eq!(calibration.rows[0], ("c, closed loop, p99".into(), vec![Some(1.0), Some(2.0)]));
        assert!(StoredTable::of(&json!({"schema": super::super::SCHEMA})).expect("no table").is_none());
        let lacking = StoredTable::of(&json!({"schema": crate::compare::SCHEMA}));
        assert!(lacking.expect_err("it has no manifest").contains("lacks"));
    }
}
