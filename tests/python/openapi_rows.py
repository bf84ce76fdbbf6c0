"""Whether rows pass the schema of a row just when the gateway scored them.

Arguments: the document, the schema's name, and a file with a list of [row, whether it was scored].
"""

import json
import sys

import jsonschema

document, name, rows = sys.argv[1:]
with open(document) as file:
    document = json.load(file)
schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
formats = jsonschema.FormatChecker(formats=())
# Of OpenAPI's registry of formats, which JSON Schema only notes.
formats.checks("int64")(lambda value: not isinstance(value, int | float) or -(2**63) <= value < 2**63)
validator = jsonschema.Draft202012Validator(schema, format_checker=formats)
with open(rows) as file:
    for row, scored in json.load(file):
        errors = [error.message for error in validator.iter_errors(row)]
        if scored != (not errors):
            sys.exit(f"{json.dumps(row)}: scored {scored}, by the document {errors or 'fine'}")
