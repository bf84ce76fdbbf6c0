//! Tables of bad requests and how each must be answered.

use serde_json::Value;

use super::{Answer, Gateway, Request, scratch};

/// Stands in for every value that no answer may repeat.
pub(crate) const CANARY: &str = "zqCANARYqz";

/// One request and the refusal expected.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) request: Request,
    pub(crate) status: u16,
    pub(crate) code: &'static str,
    /// Each fault as `pointer code`, in order; of no interest if empty.
    pub(crate) faults: Vec<&'static str>,
}

pub(crate) fn case(
    name: impl Into<String>,
    request: Request,
    status: u16,
    code: &'static str,
    faults: &[&'static str],
) -> Case {
    Case { name: name.into(), request, status, code, faults: faults.to_vec() }
}

/// Sends every case on a connection of its own and reports all that were answered otherwise.
pub(crate) fn check(gateway: &Gateway, cases: &[Case]) {
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let answer = gateway.ask(&case.request);
            let faults = problem_faults(&answer);
            let expected = (case.status, case.code.to_owned());
            let document: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            let found = (answer.status, document["code"].as_str().unwrap_or_default().to_owned());
            let mut complaints = complaints(&answer);
            if found != expected {
                complaints.push(format!("expected {expected:?}, found {found:?}"));
            }
            if !case.faults.is_empty() && faults != case.faults {
                complaints.push(format!("expected the faults {:?}, found {faults:?}", case.faults));
            }
            let report = || format!("{}: {}\n    {}", case.name, complaints.join("; "), answer.text());
            (!complaints.is_empty()).then(report)
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// The faults of a problem document, each as `pointer code`.
pub(crate) fn problem_faults(answer: &Answer) -> Vec<String> {
    let document: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let faults = document["errors"].as_array().cloned().unwrap_or_default();
    let text = |fault: &Value, name: &str| fault[name].as_str().unwrap_or("?").to_owned();
    faults.iter().map(|fault| format!("{} {}", text(fault, "pointer"), text(fault, "code"))).collect()
}

/// What is wrong with `answer` whatever was asked: its form, and what must never leak into it.
pub(crate) fn complaints(answer: &Answer) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut expect = |holds: bool, what: &str| {
        if !holds {
            complaints.push(what.to_owned());
        }
    };
    let body = answer.text();
    if answer.status >= 400 {
        let document: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        expect(answer.all("content-type") == ["application/problem+json"], "no application/problem+json");
        expect(document["status"] == answer.status, "another status in the body");
        let id = answer.all("x-request-id");
        expect(id.len() == 1 && document["request_id"] == id[0], "another request_id in the body");
        for member in ["type", "title", "code", "detail", "instance"] {
            expect(document[member].as_str().is_some_and(|text| !text.is_empty()), &format!("no {member}"));
        }
        for fault in document["errors"].as_array().into_iter().flatten() {
            let is_pointer = fault["pointer"].as_str().is_some_and(|pointer| pointer.starts_with('#'));
            expect(is_pointer && fault["detail"].is_string(), "a fault without pointer or detail");
        }
    }
    expect(!body.contains(CANARY), "it repeats a value");
    // As written, not in any case: the letters of an identifier may spell a word.
    let leaks =
        ["onnx", "Onnx", "ONNX", "ort::", ".rs:", ".cc:", "panicked", "serde", "tokio", "stack backtrace"];
    for leak in leaks.into_iter().chain([scratch().to_str().unwrap()]) {
        expect(!body.contains(leak), &format!("it leaks \"{leak}\""));
    }
    complaints
}
