"""Fits LightGBM on the churn data and writes what `scoregate import` takes: a graph with its ZipMap, schema and golden rows."""

import json
import sys
from pathlib import Path

import pandas as pd
from lightgbm import LGBMClassifier
from onnxmltools import convert_lightgbm
from onnxmltools.convert.common.data_types import FloatTensorType

GOLDEN_ROWS = 200

data, schema, directory, trees, leaves = sys.argv[1:]
table = pd.read_csv(data)
schema = json.loads(Path(schema).read_text())
directory = Path(directory)

features = {}
for name, field in schema["properties"].items():
    extension = field.setdefault("x-scoregate", {})
    if extension.get("role", "feature") != "feature":
        continue
    features[name] = table[name]
    if field["type"] == "string":
        categories = field.get("enum", sorted(table[name].unique()))
        extension["encode"] = {category: number for number, category in enumerate(categories)}
        features[name] = table[name].map(extension["encode"])
# The graph computes in float32: so does the library then.
matrix = pd.DataFrame(features).to_numpy("float32")

model = LGBMClassifier(n_estimators=int(trees), num_leaves=int(leaves), n_jobs=1, deterministic=True, verbose=-1)
model.fit(matrix, table[schema["x-scoregate"]["target"]])
types = [("input", FloatTensorType([None, len(features)]))]
graph = convert_lightgbm(model, initial_types=types, zipmap=True)

# Rows of the training data lie on no threshold, so that it does not matter that the converter rounds these.
rows = table[list(features)].head(GOLDEN_ROWS).to_dict("records")
expected = model.predict_proba(matrix[:GOLDEN_ROWS])[:, 1]
golden = [{"features": row, "expected": float(answer)} for row, answer in zip(rows, expected)]

directory.mkdir(parents=True, exist_ok=True)
(directory / "model.onnx").write_bytes(graph.SerializeToString())
(directory / "schema.json").write_text(json.dumps(schema))
(directory / "golden.jsonl").write_text("".join(json.dumps(row) + "\n" for row in golden))
