//! Holds JSON against the published schemas: the keywords they use, and no others.

#![allow(dead_code, reason = "each test program uses a part of it")]

use serde_json::Value;
use std::path::Path;

/// The published schema of that name: report, comparison, caching, calibration, knee, audit.
pub fn published(name: &str) -> Value {
    read(&format!("loadgen-{name}.schema.json"))
}

/// Schemas refer to each other by file, as they lie beside each other.
fn read(file: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/formats").join(file);
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("the schema is JSON")
}

/// Every place where `value` is not what `schema` says.
pub fn broken(schema: &Value, value: &Value) -> Vec<String> {
    let mut list = Vec::new();
    check(schema, schema, value, "", &mut list);
    list
}

/// A report that a real run wrote keeps to its schema, and the check of it can fail: a field too many is found in it,
/// and one too few.
pub fn keeps_to(name: &str, report: &Value) {
    let schema = published(name);
    assert_eq!(report["schema"], schema["title"], "each report names its schema");
    assert_eq!(broken(&schema, report), Vec::<String>::new(), "{report}");
    let mut changed = report.clone();
    changed["surprise"] = 1.into();
    assert_eq!(broken(&schema, &changed).len(), 1, "a field too many");
    let mut changed = report.clone();
    if let Some(manifest) = changed["manifest"].as_object_mut() {
        manifest.remove("kernel");
        assert_eq!(broken(&schema, &changed).len(), 1, "a field too few");
    }
}

fn check(root: &Value, schema: &Value, value: &Value, at: &str, list: &mut Vec<String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        let (file, inner) = reference.split_once('#').unwrap_or((reference, ""));
        let within = |root: &Value, list: &mut Vec<String>| {
            let schema = root.pointer(inner).unwrap_or_else(|| panic!("{reference} refers to nothing"));
            check(root, schema, value, at, list);
        };
        match file {
            "" => within(root, list),
            file => within(&read(file), list),
        }
        return;
    }
    let known = [
        "$schema",
        "$defs",
        "title",
        "description",
        "type",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "enum",
        "const",
        "anyOf",
        "minimum",
    ];
    for word in schema.as_object().expect("a schema is an object").keys() {
        assert!(
            known.contains(&word.as_str()),
            "{at}: the schema says \"{word}\", which is not understood here"
        );
    }
    let mut wrong = |what: String| list.push(format!("{at}: {what}"));
    if let Some(expected) = schema.get("const").filter(|expected| *expected != value) {
        wrong(format!("{value} is not {expected}"));
    }
    if let Some(all) = schema["enum"].as_array().filter(|all| !all.contains(value)) {
        wrong(format!("{value} is none of {all:?}"));
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().map(|kind| kind.as_str().expect("text")).collect(),
        _ => vec![],
    };
    if !kinds.is_empty() && !kinds.iter().any(|kind| is_a(kind, value)) {
        wrong(format!("{value} is no {}", kinds.join(" or ")));
        return;
    }
    if schema["minimum"].as_f64().is_some_and(|minimum| value.as_f64().is_some_and(|found| found < minimum)) {
        wrong(format!("{value} is too small"));
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let wrong_in = |choice: &Value| {
            let mut inner = Vec::new();
            check(root, choice, value, at, &mut inner);
            inner
        };
        let nearest = choices.iter().map(wrong_in).min_by_key(Vec::len).unwrap_or_default();
        if !nearest.is_empty() {
            list.push(format!("{at}: fits none of the choices; in the nearest: {}", nearest.join("; ")));
        }
    }
    if let Some(object) = value.as_object() {
        for name in schema["required"].as_array().into_iter().flatten() {
            let name = name.as_str().expect("text");
            if !object.contains_key(name) {
                list.push(format!("{at}: \"{name}\" is missing"));
            }
        }
        for (name, inner) in object {
            let path = format!("{at}/{name}");
            match (&schema["properties"][name], &schema["additionalProperties"]) {
                (Value::Null, Value::Bool(false)) => list.push(format!("{path}: not in the schema")),
                (Value::Null, Value::Null) => {}
                (Value::Null, others) => check(root, others, inner, &path, list),
                (known, _) => check(root, known, inner, &path, list),
            }
        }
    }
    if let (Some(items), Some(array)) = (schema.get("items"), value.as_array()) {
        for (index, inner) in array.iter().enumerate() {
            check(root, items, inner, &format!("{at}/{index}"), list);
        }
    }
}

fn is_a(kind: &str, value: &Value) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type is called {other}"),
    }
}

/// Every object of a schema that names fields requires all of them and allows no others, every part says what it is, and
/// every reference leads somewhere.
pub fn is_whole(name: &str) {
    let root = published(name);
    whole(&root, &root, name);
}

fn whole(root: &Value, schema: &Value, at: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let (file, inner) = reference.split_once('#').unwrap_or((reference, ""));
        let other = (!file.is_empty()).then(|| read(file));
        assert!(
            other.as_ref().unwrap_or(root).pointer(inner).is_some(),
            "{at}: {reference} refers to nothing"
        );
        return;
    }
    assert!(schema["description"].is_string(), "{at}: no description");
    if let Some(properties) = schema["properties"].as_object() {
        let mut named: Vec<&str> = properties.keys().map(String::as_str).collect();
        let required =
            schema["required"].as_array().map(|all| all.iter().filter_map(Value::as_str).collect());
        let mut required: Vec<&str> = required.unwrap_or_default();
        named.sort_unstable();
        required.sort_unstable();
        assert_eq!(named, required, "{at}: a field that need not be there");
        assert_eq!(schema["additionalProperties"], false, "{at}: fields without a name");
        properties.iter().for_each(|(name, inner)| whole(root, inner, &format!("{at}/{name}")));
    }
    for inner in schema["$defs"].as_object().into_iter().flat_map(|all| all.iter()) {
        whole(root, inner.1, &format!("{at}#{}", inner.0));
    }
    for inner in schema["anyOf"].as_array().into_iter().flatten().chain(schema.get("items")) {
        whole(root, inner, at);
    }
}
