"""Three gradient-boosted ensembles by XGBoost over the same features, converted by onnxmltools, with golden rows.

Usage: ensemble.py DIRECTORY. Writes schema.json and, for each of the three, N.onnx and N.jsonl.
"""

import json
import sys
from pathlib import Path

import numpy as np
import xgboost
from onnxmltools import convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType

directory = Path(sys.argv[1])
random = np.random.default_rng(20261122)
names = ["a", "b", "c", "d", "e"]
rows = random.normal(size=(400, len(names))).astype(np.float32)
rows[random.random(rows.shape) < 0.1] = np.nan
known = np.nan_to_num(rows)
outcomes = (known[:, 0] + known[:, 1] * known[:, 2] + random.normal(size=len(rows)) > 0).astype(int)

schema = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "ensemble",
    "type": "object",
    "properties": {name: {"type": "number", "x-scoregate": {"missing": "pass"}} for name in names},
    "x-scoregate": {"target": "outcome", "labels": ["no", "yes"]},
}
(directory / "schema.json").write_text(json.dumps(schema))

for number in range(3):
    model = xgboost.XGBClassifier(n_estimators=10 + 5 * number, max_depth=3 + number, n_jobs=1)
    model.fit(rows, outcomes)
    graph = convert_xgboost(model, initial_types=[("x", FloatTensorType([None, len(names)]))])
    (directory / f"{number}.onnx").write_bytes(graph.SerializeToString())
    golden = rows[:40]
    with (directory / f"{number}.jsonl").open("w") as file:
        for row, expected in zip(golden.tolist(), model.predict_proba(golden)[:, 1].tolist()):
            features = {name: value for name, value in zip(names, row) if value == value}
            file.write(json.dumps({"features": features, "expected": expected}) + "\n")
