"""What schemathesis cannot know of the gateway: bodies in CSV and NDJSON, the models there are, and why a row may be refused.

Environment: SCOREGATE_COUNTS, a file into which the number of cases per operation is written at the end, as JSON.
"""

import atexit
import json
import os
import re
from collections import Counter

import jsonschema
import schemathesis
from hypothesis import strategies as st

MODELS = ["churn", "saas_churn"]
FIELDS = ["tenure_days", "monthly_spend", "support_tickets_30d", "plan_tier", "country", "last_login_hours"]
VALUES = [214, 49.0, 1, 5, 0, -1, 1e39, 16777217, "pro", "US", "", "x,\"y\"\n", None, True]
COUNTS = Counter()

rows = st.dictionaries(st.sampled_from(FIELDS + ["other"]), st.sampled_from(VALUES), max_size=7)
good = st.fixed_dictionaries(dict(zip(FIELDS, map(st.just, [214, 49.0, 1, "pro", "US", 5]))))
lines = st.lists(st.one_of(good, rows).map(json.dumps) | st.text(max_size=20), max_size=5)
ndjson = lines.map("\n".join).map(lambda text: text.encode("utf-8", "surrogatepass"))
cells = st.sampled_from(["214", "49.0", "1", "pro", "US", "5", "", "-1", "1e39", "NaN", "\"a,b\"", "\"", "é"])
records = st.lists(st.lists(cells, min_size=5, max_size=7).map(",".join) | st.just("214,49.0,1,pro,US,5"), max_size=5)
table = records.map(lambda records: "\n".join([",".join(FIELDS), *records]).encode())
schemathesis.openapi.media_type("application/x-ndjson", st.one_of(ndjson, st.binary(max_size=200)))
schemathesis.openapi.media_type("text/csv", st.one_of(table, st.binary(max_size=200)))


@schemathesis.serializer("application/x-ndjson", "text/csv")
def as_it_is(context, value):
    """A body that is bytes or text already; what schemathesis puts in its place to be refused is sent as JSON."""
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogatepass")
    return value if isinstance(value, bytes) else json.dumps(value).encode()


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """Examples in text would have to be bytes here. Those of the document are sent by `examples_score` in tests/openapi.rs."""
    for path in raw_schema["paths"].values():
        for operation in path.values():
            for media_type in ("application/x-ndjson", "text/csv"):
                body = operation.get("requestBody", {}).get("content", {}).get(media_type, {})
                body.pop("example", None)


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    """Names of models that there are, in place of most of the others that could be."""
    model = (path_parameters or {}).get("model")
    if isinstance(model, str) and 1 <= len(model) <= 128 and len(model) % 4:
        path_parameters["model"] = MODELS[len(model) % 2]
    return path_parameters


@schemathesis.hook
def map_headers(context, headers):
    """The version that answers, in place of most of the others that could be pinned."""
    for name, value in (headers or {}).items():
        is_name = isinstance(value, str) and re.fullmatch("[A-Za-z0-9._-]{1,128}", value)
        if name.lower() == "x-model-version" and is_name and len(value) % 4:
            headers[name] = "stable"
    return headers


@schemathesis.hook
def after_call(context, case, response):
    COUNTS[case.operation.label] += 1


@atexit.register
def write_counts():
    if "SCOREGATE_COUNTS" in os.environ:
        with open(os.environ["SCOREGATE_COUNTS"], "w") as file:
            json.dump(COUNTS, file)


def header(case, name):
    return next((value for key, value in (case.headers or {}).items() if key.lower() == name), None)


@schemathesis.check
def accepted_as_documented(ctx, response, case):
    """What the document allows is scored, or refused for a reason that JSON Schema has no words for."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if response.status_code < 400 or response.status_code in (401, 403):
        return
    problem = response.json()
    codes = {fault["code"] for fault in problem.get("errors", [])}
    query = case.query or {}
    is_text = case.media_type != "application/json"
    is_any_model = "{model}" in case.operation.path
    match problem["code"]:
        case "invalid_parameter":
            # How to explain, without asking for an explanation; or in a way that the model does not have.
            asks = query.get("explain") in ("true", "full")
            names = {"space", "method"} if asks else {"top_k", "space", "class", "method"}
            # The document of one model lists its classes, that of all models cannot.
            names |= {"class"} if is_any_model else set()
            known = any(name in query for name in names)
        case "malformed_gzip":
            known = header(case, "content-encoding") == "gzip"
        case "invalid_row" | "invalid_rows":
            # What float32 does not hold; twice the same entity; text that is no row.
            known = is_text or is_any_model or codes <= {"precision", "duplicate_entity"}
        case "malformed_json":
            known = is_text
        case "not_found" | "unknown_model" | "unknown_version" | "no_background":
            # What the path, a rollout or a question about one model names is not there.
            known = "{" in case.operation.path or "model" in query
        case "invalid_rollout" | "rollout_changed":
            # Shares that come to more than everything; a revision that nobody has read, a version that is not rolled out.
            known = "/roll" in case.operation.path or header(case, "if-match") is not None
        case "no_previous_version":
            # Nothing was rolled out that could be taken back.
            known = case.operation.path.endswith("/rollback")
        case "invalid_name" | "invalid_upload" | "invalid_model" | "model_refused":
            # Bytes that are no model, or no schema; a model that is not there has none.
            known = case.operation.path.endswith("/versions")
        case _:
            known = False
    # What is pinned is not there.
    known = known or (problem["code"] == "unknown_version" and header(case, "x-model-version") is not None)
    assert known, f"{response.status_code} {problem['code']} {codes}: {problem['detail']}"


@schemathesis.check
def refused_as_documented(ctx, response, case):
    """A batch of which every row scored is one that the document allows."""
    path = case.operation.path
    if response.status_code != 200 or not path.endswith("/predict/batch") or "{model}" in path:
        return
    if case.media_type != "application/json" or header(case, "content-encoding") == "gzip":
        return
    if any("error" in row for row in response.json()["predictions"]):
        return
    document = case.operation.schema.raw_schema
    schema = case.operation.definition.raw["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(case.body)
