"""Reads manifests on standard input, holds each against the schemas of these versions of Kubernetes, and prints them as JSON."""

import json
import sys

import kubernetes_validate
import yaml

documents = [document for document in yaml.safe_load_all(sys.stdin) if document]
for document in documents:
    for version in sys.argv[1:]:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = ".".join(str(step) for step in error.path)
            sys.exit(f"{document['kind']} {document['metadata']['name']}, Kubernetes {version}: {where}: {error.message}")
print(json.dumps(documents))
