//! What a body becomes: one data-driven check per format.

use serde_json::json;

use super::*;

fn reader() -> RowReader {
    let schema = FeatureSchema::from_document(json!({
        "properties": {
            "age": {"type": "number", "minimum": 0},
            "visits": {"type": "integer"},
            "plan": {"type": "string", "enum": ["basic", "pro"]},
            "country": {"type": "string", "enum": ["DE", "US"], "x-scoregate": {"unknown": "pass"}},
            "score": {"type": "number", "x-scoregate": {"missing": {"impute": 7}}},
            "active": {"type": "boolean", "x-scoregate": {"missing": {"impute": true}}},
            "ratio": {"type": ["number", "null"]},
            "id": {"type": "string", "x-scoregate": {"role": "entity"}},
            "note": {"type": "string", "x-scoregate": {"role": "ignore"}}
        }
    }));
    let schema = schema.unwrap();
    RowReader::new(&schema, &Bindings::columns_of(&schema, str::to_owned))
}

const GOOD: &str = r#""age":1.5,"visits":2,"plan":"pro","country":"US""#;

fn read(body: &[u8]) -> Result<FeatureRows, BodyError> {
    let reader = reader();
    let mut rows = reader.empty(1);
    reader.json_row(body, &mut rows).map(|()| rows)
}

/// The codes of a row's faults by pointer, or nothing if it passes; a body error is its text.
fn check(body: &str) -> Vec<(String, &'static str)> {
    let reader = reader();
    match read(body.as_bytes()) {
        Err(error) => vec![(error.to_string(), "body")],
        Ok(rows) => {
            assert_eq!(rows.submitted, 1);
            assert_eq!(rows.len() + rows.faults.len(), 1);
            let faults = rows.faults.iter().flat_map(|row| &row.faults);
            faults.map(|fault| (reader.pointer(&fault.place), fault.code.as_str())).collect()
        }
    }
}

fn one(extra: &str) -> Vec<(String, &'static str)> {
    check(&format!("{{{GOOD},{extra}}}"))
}

fn fault(pointer: &str, code: &'static str) -> Vec<(String, &'static str)> {
    vec![(pointer.into(), code)]
}

#[test]
fn a_row_becomes_one_value_per_feature_in_schema_order() {
    let rows = read(format!(r#"{{"note":1,"id":"c-1",{GOOD}}}"#).as_bytes()).unwrap();
    assert_eq!(rows.columns.len(), 7);
    assert_eq!(rows.columns[0], Column::Number(vec![1.5]));
    assert_eq!(rows.columns[1], Column::Number(vec![2.0]));
    assert_eq!(rows.columns[2], Column::Category(CategoryColumn { codes: vec![1], others: vec![] }));
    assert_eq!(rows.columns[4], Column::Number(vec![7.0]));
    assert_eq!(rows.columns[5], Column::Number(vec![1.0]));
    assert!(matches!(&rows.columns[6], Column::Number(values) if values[0].is_nan()));
    assert_eq!(rows.entities, [Some("c-1".into())]);
}

#[test]
fn values_that_do_not_pass_have_their_code() {
    assert_eq!(one(r#""score":1"#), []);
    assert_eq!(one(r#""score":"1""#), fault("/score", "type"));
    assert_eq!(one(r#""score":true"#), fault("/score", "type"));
    assert_eq!(one(r#""score":[1]"#), fault("/score", "type"));
    assert_eq!(one(r#""score":{"a":{}}"#), fault("/score", "type"));
    assert_eq!(one(r#""active":1"#), fault("/active", "type"));
    assert_eq!(one(r#""active":null,"score":null,"ratio":null"#), []);
    assert_eq!(one(r#""score":16777216"#), []);
    assert_eq!(one(r#""score":16777217"#), fault("/score", "precision"));
    assert_eq!(one(r#""score":-16777217"#), fault("/score", "precision"));
    assert_eq!(one(r#""score":16777218"#), []);
    assert_eq!(one(r#""score":16777217.5"#), []);
    assert_eq!(one(r#""score":18446744073709551615"#), fault("/score", "precision"));
    assert_eq!(one(r#""score":99999999999999999999"#), fault("/score", "precision"));
    assert_eq!(one(r#""score":1e39"#), fault("/score", "overflow"));
    assert_eq!(one(r#""id":"a\u0007""#), fault("/id", "character"));
    assert_eq!(one(&format!(r#""id":"{}""#, "x".repeat(1025))), fault("/id", "length"));
    assert_eq!(
        check(r#"{"age":-1,"visits":1.5,"plan":"gold","country":"F\u0000"}"#),
        [
            ("/age".to_string(), "range"),
            ("/visits".to_string(), "type"),
            ("/plan".to_string(), "unknown_category"),
            ("/country".to_string(), "character"),
        ]
    );
    assert_eq!(
        check(r#"{"age":1,"visits":2.0,"plan":3,"county":"US"}"#),
        [
            ("/plan".to_string(), "type"),
            ("/county".to_string(), "unknown_field"),
            ("/country".to_string(), "required"),
        ]
    );
}

#[test]
fn an_unknown_category_that_passes_keeps_its_text() {
    let reader = reader();
    let Kind::Category { values: Some(listed) } = &reader.features().nth(3).unwrap().kind else {
        panic!("a category")
    };
    let body = format!(
        r#"[{{{GOOD}}},{{{}}},{{"age":1}},{{{}}}]"#,
        GOOD.replace("US", "FR"),
        GOOD.replace("US", "IT")
    );
    let read = reader.json_rows(body.as_bytes(), 10).unwrap().rows;
    let Column::Category(country) = &read.columns[3] else { panic!("a category") };
    let text = |code: &u32| {
        let code = *code as usize;
        listed.get(code).map_or_else(|| &*country.others[code - listed.len()], String::as_str)
    };
    assert_eq!(country.codes.iter().map(text).collect::<Vec<_>>(), ["US", "FR", "IT"]);
    assert_eq!(read.indices, [0, 1, 3]);
}

#[test]
fn malformed_json_is_an_error_of_the_body() {
    for body in [
        "",
        "{x}",
        "{\"age\":1,}",
        "{} {}",
        "\u{feff}{}",
        "{'age':1}",
        "{\"age\":NaN}",
        "{\"age\":01}",
        "{\"age\":.5}",
        "{\"age\":1.}",
        "{\"age\":0x10}",
        "{\"age\":1e400}",
        "{\"note\":\"\\ud800\"}",
        "null",
        "3",
        "\"text\"",
        "[]",
        "{/**/}",
        "{\"other\":\"\\ud800\"}",
    ] {
        assert_eq!(check(body).first().map(|fault| fault.1), Some("body"), "{body}");
    }
    for body in [r#"{"age":1,"age":1}"#, r#"{"zz":1,"zz":1}"#, r#"{"note":1,"note":2}"#] {
        assert!(check(body)[0].0.contains("names the same field twice"), "{body}");
    }
    let deep = format!("{{\"other\":{}", "[".repeat(100_000));
    assert!(check(&deep)[0].0.contains("recursion limit"));
    let mut bytes = b"{\"note\":\"".to_vec();
    bytes.extend([0xff, b'"', b'}']);
    assert!(matches!(read(&bytes), Err(BodyError::Json(_))));
}

#[test]
fn rows_of_several_bodies_are_read_side_by_side() {
    let reader = reader();
    let mut rows = reader.empty(4);
    let good = format!(r#"{{{GOOD},"id":"a"}}"#);
    reader.json_row(good.as_bytes(), &mut rows).unwrap();
    assert!(rows.take_fault().is_none());
    reader.json_row(br#"{"age":-1}"#, &mut rows).unwrap();
    assert_eq!(rows.take_fault().unwrap().faults.len(), 4);
    assert!(reader.json_row(br#"{"age":1,"visits":2,"plan":"pro","#, &mut rows).is_err());
    reader.json_row(good.replace("US", "FR").as_bytes(), &mut rows).unwrap();
    assert!(rows.take_fault().is_none() && rows.faults.is_empty());
    assert_eq!(rows.len(), 2, "one entity may be in two bodies");
    let second = rows.single(1);
    let mut alone = reader.empty(1);
    reader.json_row(good.replace("US", "FR").as_bytes(), &mut alone).unwrap();
    assert_eq!(format!("{:?}", second.columns), format!("{:?}", alone.columns));
    rows.clear();
    assert!(rows.is_empty() && rows.columns.iter().all(|column| column.len() == 0));
}

#[test]
fn a_batch_is_an_array_or_rows() {
    let row = format!("{{{GOOD}}}");
    let read = |body: &str| reader().json_rows(body.as_bytes(), 2);
    assert_eq!(read(&format!("[{row},3]")).unwrap().rows.faults.len(), 1);
    assert_eq!(read(&format!("{{\"rows\":[{row}]}}")).unwrap().prefix, "#/rows");
    assert_eq!(read("[]").unwrap_err(), BodyError::Empty);
    assert_eq!(read(&format!("[{row},{row},{row}]")).unwrap_err(), BodyError::TooManyRows { limit: 2 });
    assert!(read(&format!("[{row},{row}]")).is_ok());
    for (body, at) in
        [("{}", "#/rows"), ("{\"rows\":{}}", "#/rows"), ("{\"rows\":3}", "#/rows"), ("{\"row\":[]}", "#/row")]
    {
        assert!(matches!(read(body), Err(BodyError::Shape { pointer, .. }) if pointer == at), "{body}");
    }
    assert!(matches!(read("3"), Err(BodyError::Root { .. })));
    assert!(matches!(read("{\"rows\":[],\"rows\":[]}"), Err(BodyError::DuplicateField { .. })));
}

#[test]
fn rows_about_one_entity_are_all_refused() {
    let row = |id: &str| format!(r#"{{{GOOD},"id":"{id}"}}"#);
    let body = format!("[{},{{{GOOD}}},{},{},{{{GOOD}}}]", row("a"), row("b"), row("a"));
    let rows = reader().json_rows(body.as_bytes(), 10).unwrap().rows;
    assert_eq!(rows.indices, [1, 2, 4]);
    assert_eq!(rows.faults.iter().map(|fault| fault.index).collect::<Vec<_>>(), [0, 3]);
    assert!(rows.columns.iter().all(|column| match column {
        Column::Number(values) => values.len() == 3,
        Column::Category(column) => column.codes.len() == 3,
    }));
}

#[test]
fn whom_a_row_is_about_is_found_as_it_is_read() {
    let reader = reader();
    for (body, expected) in [
        (format!(r#"{{"id":"c-1",{GOOD}}}"#), Some("c-1")),
        (format!(r#"{{{GOOD},"note":{{"id":"x"}},"id":"c-1"}}"#), Some("c-1")),
        (format!(r#"{{"i\u0064":"c\u002d1",{GOOD}}}"#), Some("c-1")),
        // Rows that are refused are about somebody all the same.
        (format!(r#"{{"unknown":[1,{{"id":"x"}}],"id":"é",{GOOD}}}"#), Some("é")),
        (r#"{"age":"x","id":"c-1"}"#.into(), Some("c-1")),
        (format!(r#"{{"id":"",{GOOD}}}"#), Some("")),
        (format!(r#"{{"id":null,{GOOD}}}"#), None),
        (format!(r#"{{"id":7,{GOOD}}}"#), None),
        (format!(r#"{{"id":["c-1"],{GOOD}}}"#), None),
        (format!(r#"{{"id":"c\n1",{GOOD}}}"#), None),
        (format!(r#"{{"id":"{}",{GOOD}}}"#, "x".repeat(1025)), None),
        (format!("{{{GOOD}}}"), None),
    ] {
        assert_eq!(reader.entity_of(body.as_bytes()).as_deref(), expected, "{body}");
        let entities = |rows: &FeatureRows| -> Vec<_> {
            rows.entities_sent().map(|entity| entity.map(ToOwned::to_owned)).collect()
        };
        let expected = [None, expected.map(ToOwned::to_owned), None];
        let json = reader.json_rows(format!("[{{{GOOD}}},{body},{{}}]").as_bytes(), 9).unwrap();
        assert_eq!(entities(&json.rows), expected, "{body}");
        let ndjson = reader.ndjson_rows(format!("{{{GOOD}}}\n{body}\n{{").as_bytes(), 9).unwrap();
        assert_eq!(entities(&ndjson), expected, "{body}");
    }
    for body in ["", "[]", "7", "\"id\"", "{", r#"{"age":1,"#, r#"[{"id":"c-1"}]"#] {
        assert_eq!(reader.entity_of(body.as_bytes()), None, "{body}");
    }
    let twice = reader.csv_rows(
        b"age,visits,plan,country,id\n1,1,pro,US,a\n1,1,pro,US,b\n1,1,pro,US,a\n-1,1,pro,US,c\n1",
        9,
    );
    let twice = twice.unwrap();
    assert_eq!(
        twice.entities_sent().collect::<Vec<_>>(),
        [Some("a"), Some("b"), Some("a"), Some("c"), None],
        "rows about one entity stay its own"
    );
    assert!(reader.has_entity() && reader.reads_as(&self::reader()));
}

#[test]
fn some_of_the_rows_are_kept_in_their_places() {
    let reader = reader();
    let row =
        |age: i32, country: &str| format!(r#"{{"age":{age},"visits":1,"plan":"pro","country":"{country}"}}"#);
    let body = [row(1, "XA"), row(-1, "US"), row(2, "XB"), row(3, "DE"), "7".into(), row(4, "XC")].join("\n");
    let all = reader.ndjson_rows(body.as_bytes(), 9).unwrap();
    let mut odd = all.clone();
    odd.retain(|index| index % 2 == 1);
    assert_eq!((&odd.indices[..], odd.submitted), (&[3, 5][..], 6));
    assert_eq!(odd.faults.iter().map(|fault| fault.index).collect::<Vec<_>>(), [1]);
    assert_eq!(odd.columns[0], Column::Number(vec![3.0, 4.0]));
    let Column::Category(country) = &odd.columns[3] else { panic!("a country is a category") };
    assert_eq!((country.other(0, 2), country.other(1, 2)), (None, Some("XC")));
    let part = all.part(&reader, |index| index % 2 == 1);
    assert_eq!((&part.columns[..3], &part.faults), (&odd.columns[..3], &odd.faults));
    assert_eq!((&part.indices, part.submitted, &part.missing), (&odd.indices, 6, &odd.missing));
    let Column::Category(own) = &part.columns[3] else { panic!("a country is a category") };
    assert_eq!((own.other(0, 2), own.other(1, 2), own.others.len()), (None, Some("XC"), 1), "its own alone");
    let Column::Number(ages) = &odd.columns[0] else { panic!("an age is a number") };
    assert_eq!(ages.capacity(), 2, "what was forgotten takes no memory");
    // Score, activity and ratio are missing from each.
    assert_eq!(odd.missing.iter().map(|(row, _)| *row).collect::<Vec<_>>(), [0, 0, 0, 1, 1, 1]);
    let mut even = all;
    even.retain(|index| index % 2 == 0);
    assert_eq!(even.indices, [0, 2]);
    assert_eq!(even.faults.iter().map(|fault| fault.index).collect::<Vec<_>>(), [4]);
    let faults = [FieldFault { place: Place::Field(0), code: FaultCode::Required }; 1];
    let refused = FeatureRows::refused(2_000, (0..2_000).filter(|index| index % 3 == 0), &faults);
    assert!(refused.is_empty() && refused.faults.len() == 667);
    assert_eq!((refused.faults[1].index, &refused.faults[1].faults[..]), (3, &faults[..]));
}

#[test]
fn a_bad_line_is_its_own_fault() {
    let row = format!("{{{GOOD}}}");
    let body = format!("{row}\n\n{{\"age\":\r\n{row}\r\n{{\"age\":1,\"age\":1}}\n{row} {row}\n{row}");
    let rows = reader().ndjson_rows(body.as_bytes(), 10).unwrap();
    assert_eq!((rows.submitted, rows.indices), (6, vec![0, 2, 5]));
    assert!(rows.faults.iter().all(|fault| fault.faults[0].code == FaultCode::Malformed));
    assert_eq!(reader().ndjson_rows(b" \n\r\n", 10).unwrap_err(), BodyError::Empty);
    assert_eq!(reader().ndjson_rows(b"1\n2\n3", 2).unwrap_err(), BodyError::TooManyRows { limit: 2 });
}

#[test]
fn csv_is_read_by_its_header() {
    let body = "country,age,visits,plan,active\nUS, 1.5 ,2,pro,TRUE\n\"F,R\",1e0,2,basic,0\nUS,1,2\nUS,x,2.5,pro,maybe\nUS,inf,,pro,\n";
    let rows = reader().csv_rows(body.as_bytes(), 10).unwrap();
    assert_eq!(rows.indices, [0, 1]);
    assert_eq!(rows.columns[0], Column::Number(vec![1.5, 1.0]));
    let codes: Vec<Vec<&str>> =
        rows.faults.iter().map(|row| row.faults.iter().map(|fault| fault.code.as_str()).collect()).collect();
    assert_eq!(codes, [vec!["columns"], vec!["type", "type", "type"], vec!["type", "required"]]);
    let BodyError::Header(faults) = reader().csv_rows(b"age,age,plan,agee\n1,1,1,1\n", 10).unwrap_err()
    else {
        panic!("a header that does not fit")
    };
    assert_eq!(
        faults.iter().map(|fault| fault.code.as_str()).collect::<Vec<_>>(),
        ["malformed", "unknown_field", "required", "required"]
    );
    assert_eq!(reader().csv_rows(b"", 10).unwrap_err(), BodyError::Empty);
    assert_eq!(reader().csv_rows(b"age,visits,plan,country\n", 10).unwrap_err(), BodyError::Empty);
}

#[test]
fn json_and_csv_read_the_same_numbers() {
    proptest::proptest!(|(value in proptest::num::f64::NORMAL | proptest::num::f64::ZERO)| {
        let text = format!("{value:?}");
        let json = read(format!(r#"{{{GOOD},"score":{text}}}"#).as_bytes()).unwrap();
        let csv = reader().csv_rows(format!("age,visits,plan,country,score\n1.5,2,pro,US,{text}\n").as_bytes(), 1).unwrap();
        proptest::prop_assert_eq!(&json.columns[4], &csv.columns[4]);
        proptest::prop_assert_eq!(json.faults, csv.faults);
    });
}

#[test]
fn the_closest_name_is_suggested() {
    let reader = reader();
    let detail = |name: &str| {
        let fault = FieldFault { place: Place::Unknown(name.into()), code: FaultCode::UnknownField };
        reader.detail(&fault).into_owned()
    };
    for name in ["contry", "Country", "country_code"] {
        assert!(detail(name).ends_with("did you mean \"country\"?"), "{name}: {}", detail(name));
    }
    assert_eq!(detail("zzzzzzzz"), "the model has no such feature");
}

#[test]
fn a_small_body_makes_no_large_description() {
    let body = format!("[{}{{{GOOD}}}]", "{},".repeat(50_000));
    let rows = reader().json_rows(body.as_bytes(), 100_000).unwrap().rows;
    assert_eq!((rows.len(), rows.faults.len()), (1, 50_000));
    assert_eq!(rows.faults.iter().map(|row| row.faults.len()).sum::<usize>(), MAX_DESCRIBED_FAULTS);
}
