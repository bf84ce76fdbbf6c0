"""Checks OpenAPI 3.1 documents, the arguments, against the specification's own schema, their examples against theirs."""

import json
import sys

import jsonschema
from openapi_spec_validator import OpenAPIV31SpecValidator

for name in sys.argv[1:]:
    with open(name) as file:
        document = json.load(file)
    for error in OpenAPIV31SpecValidator(document).iter_errors():
        sys.exit(f"{name}: {error.message} at {list(error.path)}")
    for path, item in document["paths"].items():
        for operation in item.values():
            content = operation.get("requestBody", {}).get("content", {})
            for media_type in content.values():
                if "example" in media_type:
                    schema = {**media_type["schema"], "components": document["components"]}
                    jsonschema.Draft202012Validator(schema).validate(media_type["example"])
