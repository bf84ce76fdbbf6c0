"""Whether answers are as the document says, and say nothing that it does not.

Arguments: the document, and a file with a list of [method, path as documented, status, media type, answer, names of headers].
"""

import json
import sys

import jsonschema


def resolved(document, value):
    while "$ref" in value:
        found = document
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        value = found
    return value


def strict(document, schema):
    """The schema, with members that it does not name forbidden where it names any and says nothing of others."""
    if isinstance(schema, list):
        return [strict(document, part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "allOf" in schema:
        # What one part does not name another one may.
        return {"allOf": [resolved(document, part) for part in schema["allOf"]], "unevaluatedProperties": False}
    made = {name: strict(document, value) for name, value in schema.items()}
    if "properties" in schema and schema.get("type") == "object" and "additionalProperties" not in schema:
        made["unevaluatedProperties"] = False
    return made


# HTTP's own, and what tells browsers what a page may do.
OWN = {"content-type", "content-length", "content-encoding", "date", "vary", "connection", "content-security-policy"}
OWN |= {"x-content-type-options", "referrer-policy", "cross-origin-opener-policy"}

document, answers = sys.argv[1:]
with open(document) as file:
    document = json.load(file)
components = strict(document, document["components"])
with open(answers) as file:
    for method, path, status, media_type, answer, headers in json.load(file):
        response = resolved(document, document["paths"][path][method.lower()]["responses"][str(status)])
        told = {name.lower() for name in response["headers"]} | OWN
        if strange := {name.lower() for name in headers} - told:
            sys.exit(f"{method} {path} {status}: headers {strange}")
        media_type = media_type if media_type in response["content"] else media_type.split(";")[0]
        if answer is None:
            assert media_type in response["content"], f"{method} {path} {status}: {media_type}"
            continue
        schema = {**strict(document, response["content"][media_type]["schema"]), "components": components}
        for error in jsonschema.Draft202012Validator(schema).iter_errors(answer):
            sys.exit(f"{method} {path} {status}: {error.message} at {list(error.absolute_path)}")
